use std::rc::Rc;

use reft_models::{Dose, Layout, Reach, Row, Span, send};
use tch::Tensor;

use crate::forward::outputs::Targets;
use crate::reuse::frozen_row::{FrozenPast, FrozenRow};
use crate::{Batch, FrozenStore, Learner, Result};

/// A batch on its way to the device: the inputs of all of an objective's forwards and references.
#[derive(Debug)]
pub(crate) struct Ready {
    /// A forward for each of its doses.
    pub(crate) forwards: Vec<ReadyBatch>,
    /// The cached part of each of its references.
    pub(crate) references: Vec<Vec<Tensor>>,
}

/// A batch on its way to the device: the inputs of one forward that do not depend on trained parameters.
///
/// It is made ahead, while the device computes the batch before, or on demand. The result is the same in both cases.
#[derive(Debug)]
pub(crate) struct ReadyBatch {
    /// How the adapters are to be used.
    pub(crate) dose: Dose,
    /// With cached activations, rows are aligned at their first touched token.
    pub(crate) layout: Layout,
    /// The first column that is computed.
    pub(crate) first_column: usize,
    /// The first column whose final hidden states are read.
    pub(crate) first_wanted: usize,
    /// The first stage that is run.
    pub(crate) stage: usize,
    /// Token ids `[b, t]`; with a past, the frozen hidden states `[b, t, d]` that enter the stage.
    pub(crate) input: Tensor,
    /// The frozen model's keys and values of the columns before `first_column`.
    pub(crate) past: Option<FrozenPast>,
    pub(crate) targets: Targets,
}

impl ReadyBatch {
    /// Makes a batch ready for a forward with the adapters at a dose; rows that the store does not have are computed.
    pub(crate) fn new(
        learner: &Learner,
        dose: Dose,
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Self> {
        let model = learner.model;
        let (layout, first_column, stage, input, past);
        if let Some((store, reaches)) = frozen.zip(reaches(learner, dose, batch)) {
            let rows = batch.layout.rows();
            let token_of = |row: &Row, first| learner.reach(dose, row, first).token;
            let of_row = |(row, reach): (&Row, &Reach)| store.row(model, row, *reach, &token_of);
            let frozen_rows = rows.iter().zip(&reaches).map(of_row);
            let frozen_rows: Vec<Rc<FrozenRow>> = frozen_rows.collect::<Result<_>>()?;
            let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
            layout = Layout::aligned(rows.to_vec(), &tokens)?;
            first_column = tokens.into_iter().max().unwrap_or(0);
            stage = reaches[0].stage;
            let width = (layout.width() - first_column) as i64;
            let options = (model.kind(), model.placement().device(stage));
            input = FrozenRow::batch(&frozen_rows, width, options);
            past = Some(FrozenPast::of_rows(&frozen_rows, stage, first_column as i64, model));
        } else {
            layout = match dose.is_none() {
                true => batch.layout.clone().with_virtual_tokens(0), // the plain model has none
                false => batch.layout.clone(),
            };
            input = layout.input_ids(model.device());
            (first_column, stage, past) = (0, 0, None);
        }
        let first_wanted = batch.first_wanted_column(&layout);
        let columns = first_wanted..layout.width();
        let (places, labels) = batch.targets(&Span { layout: &layout, columns });
        let on_device = |numbers: &[i64]| send(&Tensor::from_slice(numbers), model.device());
        let targets = Targets { places: on_device(&places), labels: on_device(&labels) };
        Ok(Self { dose, layout, first_column, first_wanted, stage, input, past, targets })
    }

    /// Whether a batch can be made ready without the device computing anything for it.
    pub(crate) fn is_cached(
        learner: &Learner,
        dose: Dose,
        batch: &Batch,
        frozen: Option<&FrozenStore>,
    ) -> bool {
        let Some((store, reaches)) = frozen.zip(reaches(learner, dose, batch)) else {
            return true;
        };
        batch.layout.rows().iter().zip(reaches).all(|(row, reach)| store.has(row, reach))
    }
}

/// Each row's reach, all at the lowest stage of any; `None` if no work is the frozen model's alone.
fn reaches(learner: &Learner, dose: Dose, batch: &Batch) -> Option<Vec<Reach>> {
    if !dose.is_none() && batch.layout.virtual_tokens() > 0 {
        return None; // virtual tokens and their activations are trained, not frozen
    }
    let rows = batch.layout.rows().iter().zip(&batch.first_wanted);
    let mut reaches: Vec<Reach> =
        rows.map(|(row, first)| learner.reach(dose, row, *first)).collect();
    let stage = reaches.iter().map(|reach| reach.stage).min()?;
    reaches.iter_mut().for_each(|reach| reach.stage = stage);
    (stage > 0 || reaches.iter().any(|reach| reach.token > 0)).then_some(reaches)
}
