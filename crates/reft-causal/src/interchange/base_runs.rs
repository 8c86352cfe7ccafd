use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use reft_models::{AdapterStack, Layout, Model, Past, Reach, Row, Span, TokenAt, send};
use reft_train::{Batch, Example, IGNORE_INDEX, Learner, NextToken, Result};
use sysinfo::System;
use tch::Tensor;

use crate::interchange::accuracy::per_example;
use crate::interchange::base_row::{BasePast, BaseRow};
use crate::{InterchangeHooks, Swap};

/// A model, and its runs on the bases of counterfactuals.
///
/// The whole run of a base is cached: the input of every stage, and all keys and values. So one run serves swaps at any layer and token,
/// and a run with swaps computes only the part that they change. A cached run takes about as much memory as the row's hidden states times
/// the number of layers.
pub struct BaseRuns<'a> {
    model: &'a dyn Model,
    kept: RefCell<HashMap<Vec<i64>, Rc<BaseRow>>>,
    /// Bytes left for cached runs; `None`: nothing is cached.
    room: Cell<Option<u64>>,
}

impl<'a> BaseRuns<'a> {
    /// Base runs that are cached while they fit into half of the memory that is free now. The others are recomputed whenever they are needed.
    pub fn new(model: &'a dyn Model) -> Self {
        let mut system = System::new();
        system.refresh_memory();
        let room = Some(system.available_memory() / 2);
        Self { room: room.into(), ..Self::uncached(model) }
    }

    /// Base runs without a cache: a run with swaps begins at the embeddings, and its rows are computed together. For networks of a few layers.
    pub fn uncached(model: &'a dyn Model) -> Self {
        Self { model, kept: RefCell::default(), room: Cell::default() }
    }

    /// The model.
    pub fn model(&self) -> &'a dyn Model {
        self.model
    }

    /// Number of rows that are kept.
    pub fn kept_rows(&self) -> usize {
        self.kept.borrow().len()
    }

    /// The model's answer at every target of each example: the likeliest of `answers`, or of all tokens if none are named.
    ///
    /// # Errors
    /// Errors of the model.
    pub fn likeliest(
        &self,
        examples: &[Example],
        batch_size: usize,
        answers: &[i64],
    ) -> Result<Vec<Vec<i64>>> {
        let mut given = Vec::with_capacity(examples.len());
        for examples in examples.chunks(batch_size.max(1)) {
            let of_batch = self.answers(&self.batch(examples)?, 1, Vec::new(), answers)?;
            given.extend(per_example(examples, &mut of_batch.into_iter()));
        }
        Ok(given)
    }

    /// Examples in one batch, as the trainer makes it.
    pub(crate) fn batch(&self, examples: &[Example]) -> Result<Batch> {
        Learner::new(self.model, &AdapterStack::EMPTY, &NextToken).batch(examples)
    }

    /// The likeliest of `answers`, or of all tokens if there are none, at every target of [`Self::run`].
    pub(crate) fn answers(
        &self,
        batch: &Batch,
        trials: usize,
        swaps: Vec<Swap>,
        answers: &[i64],
    ) -> Result<Vec<i64>> {
        self.model.description().check_predicts("an interchange of answers")?;
        let _guard = tch::no_grad_guard();
        let (h, _) = self.run(batch, trials, swaps)?;
        let head = self.model.head();
        let found = if answers.is_empty() {
            head.logits(&h).argmax(-1, false)
        } else {
            let answers = Tensor::from_slice(answers).to_device(self.model.device());
            let likeliest = head.of_tokens(&answers).logits(&h).argmax(-1, false);
            answers.index_select(0, &likeliest)
        };
        Ok(found.try_into()?) // sync
    }

    /// Runs a batch's rows once for each trial with the swaps; row `i` of trial `c` is row `c · b + i` of the run. Returns the hidden states
    /// `[m, d]` that targets are predicted from, and the targets `[m]`, row by row.
    ///
    /// If the rows are sorted by the stage of their first swap, each enters the forward at that stage, and the weights above are read once for
    /// all. Otherwise all rows enter at the lowest of these stages.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        trials: usize,
        swaps: Vec<Swap>,
    ) -> Result<(Tensor, Tensor)> {
        let (model, blocks) = (self.model, self.model.description().num_hidden_layers);
        let options = (model.kind(), model.device());
        let on_device = |numbers: &[i64]| send(&Tensor::from_slice(numbers), model.device());
        let rows = batch.layout.rows().iter().collect::<Vec<&Row>>().repeat(trials);
        let labels = batch.labels.iter().collect::<Vec<_>>().repeat(trials).into_iter();
        let labels = labels.enumerate().flat_map(|(row, labels)| {
            let labels = labels.iter().skip(1).enumerate();
            labels.map(move |(token, &label)| (TokenAt { row, token }, label))
        });
        let (targets, labels): (Vec<TokenAt>, Vec<i64>) =
            labels.filter(|&(_, label)| label != IGNORE_INDEX).unzip();

        let reaches = self.reaches(&rows, &targets, &swaps);
        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let layout = Layout::aligned(rows.iter().copied().cloned().collect(), &tokens)?;
        let mut hooks = InterchangeHooks::new(swaps, &layout)?;
        let first_column = tokens.into_iter().max().unwrap_or(0);
        let first_target = targets.iter().map(|at| layout.column(at.row, at.token)).min();
        let first_target = first_target.unwrap_or(first_column);

        let base_rows = match reaches.iter().all(|reach| *reach == Reach::EVERYTHING) {
            true => Vec::new(),
            false => self.base_rows(&rows)?,
        };
        let base_rows: Vec<(&Rc<BaseRow>, Reach)> = base_rows.iter().zip(reaches.clone()).collect();
        let mut past = BasePast::of_rows(&base_rows, options);

        let mut running: Option<Tensor> = None; // the rows that have entered
        let mut entered = 0;
        for entering in reaches.chunk_by(|a, b| a.stage == b.stage) {
            let entering = entered..entered + entering.len();
            entered = entering.end;
            let end = reaches.get(entered).map_or(blocks, |reach| reach.stage);
            let stages = reaches[entering.start].stage..end;
            let layout = layout.keep_rows(&(0..entered).collect::<Vec<_>>());
            let span = Span { layout: &layout, columns: first_column..layout.width() };
            let mut forward = model.forward(&span, 0);
            forward.want_from(first_target);
            let own = match base_rows.get(entering) {
                Some(rows) => BaseRow::all_entering(rows, span.width() as i64, options),
                None => forward.embed(&layout.input_ids(model.device())),
            };
            let h = match running.take() {
                None => own,
                Some(running) => {
                    // the last block returns only the columns from the first target on
                    let (t, width) = (running.size()[1], own.size()[1]);
                    Tensor::cat(&[&running, &own.narrow(1, width - t, t)], 0)
                }
            };
            let past = past.as_mut().map(|past| past as &mut dyn Past);
            let h = forward.run(stages, h, past, &mut hooks)?;
            let is_last = entered == rows.len();
            running = Some(if is_last { forward.finish(h, &mut hooks)? } else { h });
        }
        let h = running.expect("invariant: a layout has rows"); // [b, q, d]
        let span = Span { layout: &layout, columns: first_target..layout.width() };
        let (_, places) = TokenAt::in_span(&targets, &span);
        Ok((h.flatten(0, 1).index_select(0, &on_device(&places)), on_device(&labels)))
    }

    /// Where the run of each row begins: at its first swap or target. Everything before comes from its base run.
    fn reaches(&self, rows: &[&Row], targets: &[TokenAt], swaps: &[Swap]) -> Vec<Reach> {
        if self.room.get().is_none() {
            return vec![Reach::EVERYTHING; rows.len()];
        }
        let model = self.model.description();
        let untouched =
            |row: &&Row| Reach { stage: model.num_hidden_layers, token: row.input_ids.len() };
        let mut reaches: Vec<Reach> = rows.iter().map(untouched).collect();
        let read = targets.iter().map(|at| (at, model.num_hidden_layers));
        let swapped = swaps
            .iter()
            .flat_map(|swap| swap.tokens.iter().map(|at| (at, swap.place.site.stage())));
        for (at, stage) in read.chain(swapped) {
            reaches[at.row] = reaches[at.row].and(Reach { stage, token: at.token });
        }
        if !model.is_causal {
            reaches.iter_mut().for_each(|reach| reach.token = 0); // earlier tokens see the swapped ones
        }
        if !reaches.is_sorted_by_key(|reach| reach.stage) {
            let lowest = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
            reaches.iter_mut().for_each(|reach| reach.stage = lowest);
        }
        reaches
    }

    /// The base run of every row.
    fn base_rows<'r>(&self, rows: &[&'r Row]) -> Result<Vec<Rc<BaseRow>>> {
        let mut kept = self.kept.borrow_mut();
        let mut of_batch: HashMap<&'r [i64], Rc<BaseRow>> = HashMap::new(); // also base rows that the cache has no room for
        let mut base_row = |row: &&'r Row| {
            let ids = &row.input_ids[..];
            if let Some(base_row) = of_batch.get(ids).or_else(|| kept.get(ids)) {
                return Ok(Rc::clone(base_row));
            }
            let base_row = Rc::new(BaseRow::compute(self.model, row)?);
            if let Some(room) = self.room.get().and_then(|room| room.checked_sub(base_row.bytes()))
            {
                self.room.set(Some(room));
                kept.insert(ids.to_vec(), Rc::clone(&base_row));
            }
            of_batch.insert(ids, Rc::clone(&base_row));
            Ok(base_row)
        };
        rows.iter().map(&mut base_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::Decoder;
    use tch::{Device, Kind};

    #[test]
    fn what_there_is_no_room_for_is_computed_again() -> crate::Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let example = |i: i64| {
            let row = Row { input_ids: vec![5 + i, 9, 31, 7], prompt_length: 3, ..Row::default() };
            let labels = vec![IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 7];
            Example::of(i.to_string(), row, labels)
        };
        let examples: Vec<Example> = (0..3).map(example).collect();
        let roomy = BaseRuns::new(&decoder);
        let expected = roomy.likeliest(&examples, 2, &[])?;
        let row = BaseRow::compute(&decoder, &Row::prompt(vec![5, 9, 31]))?;
        for rows in 0..3 {
            let room = Cell::new(Some(rows * row.bytes() + 1));
            let base = BaseRuns { room, ..BaseRuns::uncached(&decoder) };
            for _ in 0..2 {
                assert_eq!(base.likeliest(&examples, 2, &[])?, expected);
                assert_eq!(base.kept_rows() as u64, rows);
            }
        }
        assert_eq!(roomy.kept_rows(), 3);
        Ok(())
    }
}
