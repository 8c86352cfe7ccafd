use std::rc::Rc;

use reft_models::{Layout, Reach, Row, Span, send};
use tch::Tensor;

use crate::Result;
use crate::data::batch::Batch;
use crate::forward::learner::Learner;
use crate::forward::outputs::Targets;
use crate::reuse::frozen_row::{FrozenPast, FrozenRow};
use crate::reuse::frozen_store::FrozenStore;

/// A batch on its way to the device: the inputs of one forward that do not depend on trained parameters.
///
/// It is made ahead, while the device is at work on the batch before, or when it is wanted; it is the same either way.
#[derive(Debug)]
pub(crate) struct ReadyBatch {
    /// The strength that the adapters are to have.
    pub(crate) strength: f64,
    /// Behind frozen columns, rows are aligned at their first touched token.
    pub(crate) layout: Layout,
    /// The first column that is computed.
    pub(crate) first_column: usize,
    /// The first column whose final hidden states are read.
    pub(crate) first_wanted: usize,
    pub(crate) start: Start,
    pub(crate) targets: Targets,
}

/// What a forward begins with.
#[derive(Debug)]
pub(crate) enum Start {
    /// Token ids `[b, t]`.
    Tokens(Tensor),
    /// What the frozen model has made of them: what goes into a stage, `[b, t, d]`, and all that stands before it.
    Frozen { stage: usize, hidden_states: Tensor, past: FrozenPast },
}

impl ReadyBatch {
    /// Makes a batch ready for a forward with the adapters at a strength; what the store does not have of its rows is computed.
    pub(crate) fn new(
        learner: &Learner,
        strength: f64,
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Self> {
        let rows = batch.layout.rows();
        let Some((store, reaches)) = frozen.zip(reaches(learner, strength, batch)) else {
            let layout = match strength {
                0.0 => batch.layout.clone().with_virtual_tokens(0), // the plain model has none
                _ => batch.layout.clone(),
            };
            let start = Start::Tokens(layout.input_ids(learner.model.device()));
            return Ok(Self::starting(learner, strength, batch, (layout, 0), start));
        };
        let token_of = |row: &Row, first| learner.reach(strength, row, first).token;
        let frozen_rows: Vec<Rc<FrozenRow>> = rows
            .iter()
            .zip(&reaches)
            .map(|(row, reach)| store.row(learner.model, row, *reach, &token_of))
            .collect::<Result<_>>()?;

        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let aligned = Layout::aligned(rows.to_vec(), &tokens)?;
        let column = tokens.into_iter().max().unwrap_or(0);
        let width = (aligned.width() - column) as i64;
        let options = (learner.model.kind(), learner.model.device());
        let stage = reaches[0].stage;
        let past = FrozenPast::of_rows(&frozen_rows, stage, column as i64, options);
        let hidden_states = FrozenRow::batch(&frozen_rows, width, options);
        let start = Start::Frozen { stage, hidden_states, past };
        Ok(Self::starting(learner, strength, batch, (aligned, column), start))
    }

    /// Whether a batch can be made ready without the device computing anything for it.
    pub(crate) fn is_cached(
        learner: &Learner,
        strength: f64,
        batch: &Batch,
        frozen: Option<&FrozenStore>,
    ) -> bool {
        let Some((store, reaches)) = frozen.zip(reaches(learner, strength, batch)) else {
            return true;
        };
        batch.layout.rows().iter().zip(reaches).all(|(row, reach)| store.has(row, reach))
    }

    fn starting(
        learner: &Learner,
        strength: f64,
        batch: &Batch,
        (layout, first_column): (Layout, usize),
        start: Start,
    ) -> Self {
        let first_wanted = batch.first_wanted_column(&layout);
        let columns = first_wanted..layout.width();
        let (places, labels) = batch.targets(&Span { layout: &layout, columns });
        let on_device =
            |numbers: &[i64]| send(&Tensor::from_slice(numbers), learner.model.device());
        let targets = Targets { places: on_device(&places), labels: on_device(&labels) };
        Self { strength, layout, first_column, first_wanted, start, targets }
    }
}

/// Where each row is reached, all at the lowest stage of any; `None` if nothing is left to the frozen model.
fn reaches(learner: &Learner, strength: f64, batch: &Batch) -> Option<Vec<Reach>> {
    if strength != 0.0 && batch.layout.virtual_tokens() > 0 {
        return None; // what stands before every token is not frozen
    }
    let rows = batch.layout.rows().iter().zip(batch.first_wanted());
    let mut reaches: Vec<Reach> =
        rows.map(|(row, first)| learner.reach(strength, row, *first)).collect();
    let stage = reaches.iter().map(|reach| reach.stage).min()?;
    reaches.iter_mut().for_each(|reach| reach.stage = stage);
    (stage > 0 || reaches.iter().any(|reach| reach.token > 0)).then_some(reaches)
}
