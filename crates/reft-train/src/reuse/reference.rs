use std::rc::Rc;

use reft_models::{AdapterStack, Model, PaddingSide, send};
use tch::{Device, Tensor};

use crate::reuse::frozen_row::FrozenRow;
use crate::{Batch, FrozenStore, Result, Sequence, cross_entropy, likeliest};

/// A run of the frozen model or of an earlier adapter that the trained model is compared with.
#[derive(Clone)]
pub struct Reference<'a> {
    /// The adapters of the run: none for the plain model. They are not the adapters that are trained.
    pub stack: AdapterStack<'a>,
    /// The outputs to cache.
    pub outputs: ReferenceOutputs,
}

/// The outputs of a sequence's reference to cache, for each label that has a token before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReferenceOutputs {
    /// `log p` of the label, `[m]`.
    LogProbabilities,
    /// The likeliest tokens at the label's position, `[m, k]`, and their `log p`, `[m, k + 1]`: the last is of all other tokens together.
    Likeliest(usize),
    /// The hidden states that the label is predicted from, `[m, d]`: the whole distribution.
    HiddenStates,
}

impl Reference<'_> {
    /// The cached outputs of a batch's sequences, concatenated, on the model's device.
    pub(crate) fn of_batch(
        &self,
        model: &dyn Model,
        batch: &Batch,
        mut frozen: Option<&mut FrozenStore>,
    ) -> Result<Vec<Tensor>> {
        let of_sequence = |sequence: Sequence| match frozen.as_deref_mut() {
            Some(store) => store.reference(self.key(sequence), &|own| self.compute(model, own)),
            None => Ok(Rc::new(self.compute(model, &sequence)?)),
        };
        let rows: Vec<Rc<FrozenRow>> = sequences(batch).map(of_sequence).collect::<Result<_>>()?;
        let n = rows.first().map_or(0, |row| row.tensors().count());
        let column = |i: usize| {
            let own: Vec<&Tensor> = rows.iter().filter_map(|row| row.tensors().nth(i)).collect();
            send(&Tensor::cat(&own, 0), model.device())
        };
        Ok((0..n).map(column).collect())
    }

    /// Whether all of a batch's sequences are in the store.
    pub(crate) fn is_cached(&self, batch: &Batch, frozen: Option<&FrozenStore>) -> bool {
        let Some(store) = frozen else { return false };
        sequences(batch).all(|sequence| store.has_reference(self.key(sequence)))
    }

    /// The key of a sequence in the store. An objective has one reference that is not the plain model.
    fn key(&self, sequence: Sequence) -> (Sequence, ReferenceOutputs, bool) {
        (sequence, self.outputs, self.stack.entries().is_empty())
    }

    /// Runs a sequence by itself, so that its numbers do not depend on the batch that asks for it.
    fn compute(&self, model: &dyn Model, Sequence { row, labels }: &Sequence) -> Result<FrozenRow> {
        let _guard = tch::no_grad_guard();
        let h = self.stack.hidden_states(model, vec![row.clone()], PaddingSide::Right)?.remove(0);
        let before = self.stack.virtual_tokens();
        let (places, labels): (Vec<i64>, Vec<i64>) =
            Batch::labelled(labels).map(|(t, label)| ((before + t - 1) as i64, label)).unzip();
        let on_device = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(h.device());
        let h = h.index_select(0, &on_device(&places)); // [m, d]
        let computed = match self.outputs {
            ReferenceOutputs::LogProbabilities => {
                vec![-cross_entropy(model, &h, &on_device(&labels))]
            }
            ReferenceOutputs::Likeliest(k) => likeliest(model, &h, k).into(),
            ReferenceOutputs::HiddenStates => vec![h],
        };
        Ok(FrozenRow::from_tensors(
            computed.into_iter().map(|tensor| tensor.to_device(Device::Cpu)),
        ))
    }
}

/// The sequences of a batch, cut to the computed tokens.
fn sequences(batch: &Batch) -> impl Iterator<Item = Sequence> {
    let rows = batch.layout.rows().iter().zip(&batch.labels);
    rows.map(|(row, labels)| Sequence { row: row.clone(), labels: labels.clone() })
}
