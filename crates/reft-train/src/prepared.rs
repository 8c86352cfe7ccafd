use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use reft_models::{Adapter, Decoder, Reach, Row, Span, send};
use tch::Tensor;

use crate::Result;
use crate::batches::Batch;
use crate::reuse::{FrozenPast, FrozenRow, FrozenStore, side_by_side};

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
    /// What the frozen model has made of them: the rows that come in at each stage, the lowest first, and all that stands before them.
    Frozen { entering: Vec<Entering>, past: FrozenPast },
}

/// Rows that come into a forward at one stage.
#[derive(Debug)]
pub(crate) struct Entering {
    pub(crate) stage: usize,
    /// The rows of the batch that have begun then, these among them.
    pub(crate) begun: usize,
    /// What goes into the stage, of these rows: `[b, t, d]`.
    pub(crate) hidden_states: Tensor,
}

/// What is to be predicted from the hidden states that a forward ends with.
#[derive(Debug)]
pub(crate) struct Targets {
    pub(crate) places: Tensor, // [m], in [b·q]
    pub(crate) labels: Tensor, // [m]
}

/// The frozen parts of rows, by their tokens and where they are reached.
type FrozenRows<'b> = HashMap<(&'b [i64], Reach), Rc<FrozenRow>>;

impl Prepared {
    /// Prepares a batch; what the store does not have of its rows is computed.
    pub(crate) fn now(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Self> {
        let Some((store, begins)) = frozen.zip(Begins::of(decoder, adapters, batch)) else {
            return Ok(Self::of_tokens(decoder, batch));
        };
        let token_of = |row: &Row, first| reach_of(decoder, adapters, row, first).token;
        let mut rows = FrozenRows::new();
        for (row, reach) in begins.needed(batch) {
            if let Entry::Vacant(entry) = rows.entry((row.input_ids.as_slice(), reach)) {
                entry.insert(store.row(decoder, row, reach, &token_of)?);
            }
        }
        begins.prepare(decoder, batch, &rows)
    }

    /// As [`Self::now`], unless the device would have to compute for it: `None` then.
    pub(crate) fn ahead(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Option<Self>> {
        let Some((store, begins)) = frozen.zip(Begins::of(decoder, adapters, batch)) else {
            return Ok(Some(Self::of_tokens(decoder, batch)));
        };
        if !begins.needed(batch).all(|(row, reach)| store.has(row, reach)) {
            return Ok(None);
        }
        let mut rows = FrozenRows::new();
        for (row, reach) in begins.needed(batch) {
            if let Entry::Vacant(entry) = rows.entry((row.input_ids.as_slice(), reach)) {
                let Some(kept) = store.kept_row(row, reach) else { return Ok(None) };
                entry.insert(kept);
            }
        }
        begins.prepare(decoder, batch, &rows).map(Some)
    }

    /// A forward from the embeddings on.
    fn of_tokens(decoder: &Decoder, batch: &Batch) -> Self {
        let ids = batch.layout.input_ids(decoder.device());
        Self::new(decoder, batch.clone(), 0, Start::Tokens(ids))
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

/// Where each row of a batch begins, behind what the adapters leave of it to the frozen model.
struct Begins {
    reaches: Vec<Reach>, // the lowest stage first
    lowest: usize,
}

impl Begins {
    /// Each row at its own stage if they come in the order of their stages, else all at the lowest; `None` if nothing is left to the frozen
    /// model.
    fn of(decoder: &Decoder, adapters: &[&dyn Adapter], batch: &Batch) -> Option<Self> {
        if batch.layout.virtual_tokens() > 0 {
            return None; // what stands before every token is not frozen
        }
        let rows = batch.layout.rows().iter().zip(batch.first_targets());
        let reaches = rows.map(|(row, first)| reach_of(decoder, adapters, row, first));
        let mut reaches: Vec<Reach> = reaches.collect();
        let lowest = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
        if lowest == 0 && reaches.iter().all(|reach| reach.token == 0) {
            return None;
        }
        if !reaches.is_sorted_by_key(|reach| reach.stage) {
            reaches.iter_mut().for_each(|reach| reach.stage = lowest);
        }
        Some(Self { reaches, lowest })
    }

    /// What is needed of each row: keys and values from the lowest stage on, and what goes into its own.
    fn needed<'b>(&self, batch: &'b Batch) -> impl Iterator<Item = (&'b Row, Reach)> {
        let rows = batch.layout.rows().iter().zip(&self.reaches);
        rows.flat_map(|(row, &reach)| [(row, self.past_of(reach)), (row, reach)])
    }

    fn past_of(&self, reach: Reach) -> Reach {
        Reach { stage: self.lowest, ..reach }
    }

    /// A forward behind the frozen parts of the rows.
    fn prepare(&self, decoder: &Decoder, batch: &Batch, frozen: &FrozenRows) -> Result<Prepared> {
        let tokens: Vec<usize> = self.reaches.iter().map(|reach| reach.token).collect();
        let aligned = batch.aligned(&tokens)?;
        let column = tokens.into_iter().max().unwrap_or(0);
        let width = (aligned.layout.width() - column) as i64;
        let options = (decoder.kind(), decoder.device());
        let rows: Vec<(&[i64], Reach)> = batch
            .layout
            .rows()
            .iter()
            .map(|row| row.input_ids.as_slice())
            .zip(self.reaches.iter().copied())
            .collect();

        // rows of one text have the same keys and values
        let mut numbers: HashMap<(&[i64], usize), i64> = HashMap::new();
        let (mut pasts, mut which) = (Vec::new(), Vec::with_capacity(rows.len()));
        for &(ids, reach) in &rows {
            let new = numbers.len() as i64;
            let number = *numbers.entry((ids, reach.token)).or_insert(new);
            if number == new {
                pasts.push(Rc::clone(&frozen[&(ids, self.past_of(reach))]));
            }
            which.push(number);
        }
        let past = FrozenPast::of_rows(&pasts, &which, self.lowest, column as i64, options);

        let (mut entering, mut begun) = (Vec::new(), 0);
        for of_stage in rows.chunk_by(|(_, a), (_, b)| a.stage == b.stage) {
            begun += of_stage.len();
            let own: Vec<_> = of_stage.iter().map(|row| Rc::clone(&frozen[row])).collect();
            let hidden_states = side_by_side(&own, width, options);
            entering.push(Entering { stage: of_stage[0].1.stage, begun, hidden_states });
        }
        Ok(Prepared::new(decoder, aligned, column, Start::Frozen { entering, past }))
    }
}

/// What the adapters leave of a row to the frozen model, if its first target is predicted from token `first`.
fn reach_of(decoder: &Decoder, adapters: &[&dyn Adapter], row: &Row, first: usize) -> Reach {
    let none = Reach { stage: decoder.config().num_hidden_layers, token: first };
    adapters.iter().map(|adapter| adapter.reach(row)).fold(none, Reach::and)
}
