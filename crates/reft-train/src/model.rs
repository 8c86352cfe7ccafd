use reft_models::{
    Adapter, Decoder, FeedForward, Layout, Mode, Place, Stacked, TokenAt, Weight, send,
};
use tch::{Device, Kind, Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::checkpointing::checkpointed_backward;
use crate::computation::{Backward, Computation};
use crate::loss::{target_logits, target_losses};
use crate::prepared::Prepared;
use crate::reuse::FrozenStore;

/// What the trainer needs of a model: it predicts labels from rows, under the hooks of adapters.
pub trait Model {
    /// `−log p(target)` of every target token of a batch, `[m]` in f32, differentiable in the adapters' parameters.
    ///
    /// # Errors
    /// What the model or an adapter refuses.
    fn target_losses(&self, computation: Computation, mode: Mode) -> Result<Tensor>;

    /// The sum of [`Self::target_losses`], a scalar.
    ///
    /// # Errors
    /// What the model or an adapter refuses.
    fn loss_sum(&self, computation: Computation, mode: Mode) -> Result<Tensor> {
        Ok(self.target_losses(computation, mode)?.sum(Kind::Float))
    }

    /// Adds the gradient of a batch's loss to those of the adapters' parameters; returns the loss, as [`Self::loss_sum`] has it, without
    /// gradient.
    ///
    /// # Errors
    /// What the model or an adapter refuses.
    fn backward(&self, computation: Computation, backward: Backward) -> Result<Tensor> {
        tch::manual_seed(backward.seed as i64); // dropout
        let loss = self.loss_sum(computation, Mode::Train)?;
        // no gradient: of these examples, nothing that is predicted follows what the adapter changes
        if loss.requires_grad() {
            (&loss * backward.factor).backward();
        }
        Ok(loss.detach())
    }

    /// As [`Self::backward`], in less memory: activations are computed again where they are needed. A model that has no use for it
    /// keeps them.
    ///
    /// # Errors
    /// What the model or an adapter refuses.
    fn checkpointed_backward(
        &self,
        computation: Computation,
        backward: Backward,
    ) -> Result<Tensor> {
        self.backward(computation, backward)
    }

    /// Makes a batch ready ahead of its turn, without waiting for the device: what is kept of its rows is read and sent. `None` if the device
    /// would have to compute for it, or if there is nothing to make ready.
    ///
    /// # Errors
    /// What the model refuses.
    fn prepare(
        &self,
        _adapters: &[&dyn Adapter],
        _batch: &Batch,
        _frozen: Option<&mut FrozenStore>,
    ) -> Result<Option<Prepared>> {
        Ok(None)
    }

    /// Logits `[m, v]` in f32 that the targets of a batch are predicted by, and the targets `[m]`, without gradient. With `answers`, which
    /// are `[a]` tokens, the logits of these alone, `[m, a]`.
    ///
    /// # Errors
    /// What the model or an adapter refuses.
    fn target_logits(
        &self,
        computation: Computation,
        answers: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)>;

    /// A source run: hidden states `[m, d]` of chosen tokens at chosen places, without gradient.
    ///
    /// # Errors
    /// If there is no such place or token.
    fn collect(&self, layout: &Layout, wanted: Vec<(Place, Vec<TokenAt>)>) -> Result<Vec<Tensor>>;

    /// Every weight by name.
    fn weights(&self) -> Vec<(String, Weight)>;

    /// The kind of its hidden states.
    fn kind(&self) -> Kind;

    /// Where it is.
    fn device(&self) -> Device;

    /// Its family and sizes: a run is resumed only with a model of the same.
    fn describe(&self) -> String;
}

impl Model for Decoder {
    fn target_losses(&self, computation: Computation, mode: Mode) -> Result<Tensor> {
        target_losses(self, computation, mode)
    }

    fn checkpointed_backward(
        &self,
        computation: Computation,
        backward: Backward,
    ) -> Result<Tensor> {
        checkpointed_backward(self, computation, backward)
    }

    fn prepare(
        &self,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Option<Prepared>> {
        Prepared::ahead(self, adapters, batch, frozen)
    }

    fn target_logits(
        &self,
        computation: Computation,
        answers: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let _guard = tch::no_grad_guard();
        target_logits(self, computation, answers)
    }

    fn collect(&self, layout: &Layout, wanted: Vec<(Place, Vec<TokenAt>)>) -> Result<Vec<Tensor>> {
        Ok(self.collect(layout, wanted)?)
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.weights()
    }

    fn kind(&self) -> Kind {
        self.kind()
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn describe(&self) -> String {
        let config = self.config();
        format!(
            "{} of {} layers, hidden size {}, vocabulary {}",
            config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size
        )
    }
}

/// A network without order: every token of a row is an input of its own, and predicts the label of the token after it.
impl Model for FeedForward {
    fn target_losses(&self, computation: Computation, mode: Mode) -> Result<Tensor> {
        let Computation { adapters, batch, .. } = computation;
        let mut hooks = hooks_of(adapters, batch, mode)?;
        let (places, labels) = batch.targets(&batch.layout.whole());
        let logits = at(&self.logits(&batch.layout, &mut hooks)?, &places); // [m, classes]
        let labels = send(&Tensor::from_slice(&labels), self.device());
        Ok(logits.cross_entropy_loss(&labels, None::<Tensor>, Reduction::None, -100, 0.0))
    }

    fn target_logits(
        &self,
        computation: Computation,
        answers: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let _guard = tch::no_grad_guard();
        let Computation { adapters, batch, .. } = computation;
        let mut hooks = hooks_of(adapters, batch, Mode::Eval)?;
        let (places, labels) = batch.targets(&batch.layout.whole());
        let logits = at(&self.logits(&batch.layout, &mut hooks)?, &places);
        let logits = answers.map_or(logits.shallow_clone(), |a| logits.index_select(-1, a));
        Ok((logits, send(&Tensor::from_slice(&labels), self.device())))
    }

    fn collect(&self, layout: &Layout, wanted: Vec<(Place, Vec<TokenAt>)>) -> Result<Vec<Tensor>> {
        Ok(self.collect(layout, wanted)?)
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.weights()
    }

    fn kind(&self) -> Kind {
        Kind::Float
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn describe(&self) -> String {
        let shape = |(_, weight): (String, Weight)| format!("{:?}", weight.size());
        let shapes: Vec<String> = self.weights().into_iter().map(shape).collect();
        format!("feed-forward network of weights {}", shapes.join(" "))
    }
}

fn hooks_of<'a>(adapters: &[&'a dyn Adapter], batch: &'a Batch, mode: Mode) -> Result<Stacked<'a>> {
    let hooks = adapters.iter().map(|adapter| adapter.hooks(&batch.layout, mode));
    Ok(Stacked(hooks.collect::<Result<_, _>>()?))
}

/// The places `[m]` of `[b, t, ..]`.
fn at(x: &Tensor, places: &[i64]) -> Tensor {
    x.flatten(0, 1).index_select(0, &send(&Tensor::from_slice(places), x.device()))
}
