use std::rc::Rc;

use reft_models::{Adapter, Decoder, Reach, Row, Span, send};
use tch::Tensor;

use crate::Result;
use crate::batches::Batch;
use crate::reuse::{FrozenBatch, FrozenRow, FrozenStore};

/// A batch on its way to the device: all that its forward needs and that no trained number has a part in.
///
/// It is made ahead, while the device is at work on the batch before, or when it is wanted; it is the same either way.
#[derive(Debug)]
pub struct Prepared {
    /// The batch as it is computed: behind frozen columns its rows are aligned at their first touched token.
    pub(crate) batch: Batch,
    /// The first column that is computed.
    pub(crate) first_column: usize,
    /// The first column that a label is predicted from.
    pub(crate) first_target: usize,
    pub(crate) start: Start,
    pub(crate) targets: Targets,
}

/// What a forward begins with.
#[derive(Debug)]
pub(crate) enum Start {
    /// Token ids `[b, t]`.
    Tokens(Tensor),
    /// What the frozen model has made of them.
    Frozen(FrozenBatch),
}

/// What is to be predicted from the hidden states that a forward ends with.
#[derive(Debug)]
pub(crate) struct Targets {
    pub(crate) places: Tensor, // [m], in [b·q]
    pub(crate) labels: Tensor, // [m]
}

impl Prepared {
    /// Prepares a batch; what the store does not have of its rows is computed.
    pub(crate) fn now(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Self> {
        let Some((store, reaches)) = frozen.zip(reaches(decoder, adapters, batch)) else {
            return Ok(Self::of_tokens(decoder, batch));
        };
        let rows = batch.layout.rows().iter().zip(&reaches);
        let token_of = |row: &Row, first| reach_of(decoder, adapters, row, first).token;
        let rows = rows.map(|(row, &reach)| store.row(decoder, row, reach, &token_of));
        Self::behind(decoder, batch, &reaches, &rows.collect::<Result<Vec<_>>>()?)
    }

    /// As [`Self::now`], unless the device would have to compute for it: `None` then.
    pub(crate) fn ahead(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Option<Self>> {
        let Some((store, reaches)) = frozen.zip(reaches(decoder, adapters, batch)) else {
            return Ok(Some(Self::of_tokens(decoder, batch)));
        };
        let rows = batch.layout.rows().iter().zip(&reaches);
        if !rows.clone().all(|(row, &reach)| store.has(row, reach)) {
            return Ok(None);
        }
        let rows: Option<Vec<_>> = rows.map(|(row, &reach)| store.kept_row(row, reach)).collect();
        rows.map(|rows| Self::behind(decoder, batch, &reaches, &rows)).transpose()
    }

    /// A forward from the embeddings on.
    fn of_tokens(decoder: &Decoder, batch: &Batch) -> Self {
        let ids = batch.layout.input_ids(decoder.device());
        Self::new(decoder, batch.clone(), 0, Start::Tokens(ids))
    }

    /// A forward that begins where the adapters do, each row at its reach.
    fn behind(
        decoder: &Decoder,
        batch: &Batch,
        reaches: &[Reach],
        rows: &[Rc<FrozenRow>],
    ) -> Result<Self> {
        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let stage = reaches.first().map_or(0, |reach| reach.stage);
        let batch = batch.aligned(&tokens)?;
        let column = tokens.into_iter().max().unwrap_or(0);
        let width = (batch.layout.width() - column) as i64;
        let options = (decoder.kind(), decoder.device());
        let frozen = FrozenBatch::of_rows(rows, stage, column as i64, width, options);
        Ok(Self::new(decoder, batch, column, Start::Frozen(frozen)))
    }

    fn new(decoder: &Decoder, batch: Batch, first_column: usize, start: Start) -> Self {
        let first_target = batch.first_target_column();
        let columns = first_target..batch.layout.width();
        let (places, labels) = batch.targets(&Span { layout: &batch.layout, columns });
        let on_device = |numbers: &[i64]| send(&Tensor::from_slice(numbers), decoder.device());
        let targets = Targets { places: on_device(&places), labels: on_device(&labels) };
        Self { batch, first_column, first_target, start, targets }
    }
}

/// What the adapters leave of each row to the frozen model, down to one stage for all rows; `None` if that is nothing.
fn reaches(decoder: &Decoder, adapters: &[&dyn Adapter], batch: &Batch) -> Option<Vec<Reach>> {
    if batch.layout.virtual_tokens() > 0 {
        return None; // what stands before every token is not frozen
    }
    let rows = batch.layout.rows().iter().zip(batch.first_targets());
    let reaches = rows.map(|(row, first)| reach_of(decoder, adapters, row, first));
    let reaches: Vec<Reach> = reaches.collect();
    let stage = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
    let is_something = stage > 0 || reaches.iter().any(|reach| reach.token > 0);
    is_something.then(|| reaches.into_iter().map(|reach| Reach { stage, ..reach }).collect())
}

/// What the adapters leave of a row to the frozen model, if its first target is predicted from token `first`.
fn reach_of(decoder: &Decoder, adapters: &[&dyn Adapter], row: &Row, first: usize) -> Reach {
    let none = Reach { stage: decoder.config().num_hidden_layers, token: first };
    adapters.iter().map(|adapter| adapter.reach(row)).fold(none, Reach::and)
}
