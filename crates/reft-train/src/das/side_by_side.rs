use std::cell::RefCell;

use reft_models::{Adapter, Layout, Mode, PaddingSide, Place, Row, TokenAt, Weight};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::computation::Computation;
use crate::das::accuracy::{Accuracy, likeliest_of, targets};
use crate::dataset::Example;
use crate::model::Model;
use crate::reuse::FrozenStore;

/// A model that runs every row once for each of several alignments, all in one forward.
///
/// Copy `c` of a row that names counterfactual `i` names `c · counterfactuals + i`: so an
/// [`AlignmentAdapter`](crate::das::AlignmentAdapter) whose swaps begin there ([`VariableSwap::first`](crate::das::VariableSwap::first))
/// holds alignments that know nothing of each other, each with the losses and gradients that it would have alone. A loss that is summed
/// is summed over the copies; the batch, and so the number of targets that it is divided by, is that of one.
///
/// Alignments in the order of their stages each begin at their own: their rows come into the forward there, and every weight above is
/// read once for all of them.
pub struct SideBySide<'a> {
    model: &'a dyn Model,
    copies: usize,
    counterfactuals: usize,
    losses: RefCell<Vec<f64>>,
}

impl<'a> SideBySide<'a> {
    /// A model for `copies` alignments of `counterfactuals` each.
    pub fn new(model: &'a dyn Model, copies: usize, counterfactuals: usize) -> Self {
        Self { model, copies, counterfactuals, losses: RefCell::new(Vec::new()) }
    }

    /// The mean loss of each alignment in the last batch that was trained on.
    pub fn last_losses(&self) -> Vec<f64> {
        self.losses.borrow().clone()
    }

    /// How many examples each alignment answers as expected, as [`accuracy`](crate::das::accuracy) counts them, about `rows` rows at a
    /// time.
    ///
    /// # Errors
    /// What the model or the adapter refuses.
    pub fn accuracies(
        &self,
        adapter: &dyn Adapter,
        examples: &[Example],
        rows: usize,
        answers: &[i64],
        mut frozen: Option<&mut FrozenStore>,
    ) -> Result<Vec<Accuracy>> {
        let answers = Tensor::from_slice(answers).to_device(self.device());
        let mut hits = vec![0; self.copies];
        for examples in examples.chunks((rows / self.copies.max(1)).max(1)) {
            let batch = Batch::collate(examples, 0)?;
            let given = likeliest_of(self, &[adapter], &batch, &answers, frozen.as_deref_mut())?;
            let mut given = given.into_iter();
            for hits in &mut hits {
                for example in examples {
                    let expected: Vec<i64> = targets(example).collect();
                    let given: Vec<i64> = given.by_ref().take(expected.len()).collect();
                    *hits += usize::from(given == expected);
                }
            }
        }
        let total = examples.len();
        Ok(hits.into_iter().map(|hits| Accuracy { hits, total }).collect())
    }

    /// The batch's rows, once for each alignment.
    fn copied(&self, batch: &Batch) -> Result<Batch> {
        let copy = |c: usize| {
            let named = move |row: &Row| {
                let first = c * self.counterfactuals;
                Row { counterfactual: row.counterfactual.map(|i| first + i), ..row.clone() }
            };
            batch.layout.rows().iter().map(named)
        };
        let rows: Vec<Row> = (0..self.copies).flat_map(copy).collect();
        let copies = || std::iter::repeat_n(batch, self.copies);
        Ok(Batch {
            layout: Layout::new(rows, PaddingSide::Right)?,
            labels: copies().flat_map(|batch| batch.labels.clone()).collect(),
            ids: copies().flat_map(|batch| batch.ids.clone()).collect(),
        })
    }
}

impl Model for SideBySide<'_> {
    fn target_losses(&self, computation: Computation, mode: Mode) -> Result<Tensor> {
        let Computation { adapters, batch, frozen, .. } = computation;
        let copied = self.copied(batch)?;
        let losses = self.model.target_losses(Computation::new(adapters, &copied, frozen), mode)?;
        let of_each = losses.detach().view([self.copies as i64, -1]);
        let means = of_each.mean_dim([1i64].as_slice(), false, Kind::Double);
        *self.losses.borrow_mut() = Vec::try_from(means)?; // sync
        Ok(losses)
    }

    fn target_logits(
        &self,
        computation: Computation,
        answers: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let Computation { adapters, batch, frozen, .. } = computation;
        let copied = self.copied(batch)?;
        self.model.target_logits(Computation::new(adapters, &copied, frozen), answers)
    }

    fn collect(&self, layout: &Layout, wanted: Vec<(Place, Vec<TokenAt>)>) -> Result<Vec<Tensor>> {
        self.model.collect(layout, wanted)
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.model.weights()
    }

    fn kind(&self) -> Kind {
        self.model.kind()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn describe(&self) -> String {
        self.model.describe()
    }
}
