use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use tch::Tensor;

use crate::{Error, Hooks, Layout, Result, Row, Site, TaskHead, TrainedText};

/// Whether a forward is part of training (dropout is on) or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is on.
    Train,
    /// Everything is deterministic.
    Eval,
}

/// The lowest point of a row's forward that a method changes, or needs a gradient at.
///
/// Everything before it belongs to the frozen model alone and is the same in every step: the hidden states that go into stage `stage` of
/// [`Forward`](crate::Forward), and, as no token sees a later one, the hidden states of the tokens before `token` at every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reach {
    /// The first stage that is not the plain model's.
    pub stage: usize,
    /// The first token of the row that is touched; the row's length if none is.
    pub token: usize,
}

impl Reach {
    /// Anything may change.
    pub const EVERYTHING: Self = Self { stage: 0, token: 0 };

    /// The reach of a method that touches tokens from `token` on at some sites.
    pub fn of_sites(sites: impl IntoIterator<Item = Site>, token: usize) -> Self {
        let stage = sites.into_iter().map(Site::stage).min().unwrap_or(usize::MAX);
        Self { stage, token }
    }

    /// The reach of two methods together.
    pub fn and(self, other: Self) -> Self {
        Self { stage: self.stage.min(other.stage), token: self.token.min(other.token) }
    }
}

/// The adapter of a fine-tuning method: trainable tensors, and the hooks that apply them to a frozen model.
///
/// One trainer, one generator and one evaluator serve every method through an [`AdapterStack`](crate::AdapterStack) of these.
pub trait Adapter {
    /// Name of the method, as on the command line.
    fn method(&self) -> &str;

    /// The leaves that an optimizer updates.
    fn parameters(&self) -> Vec<Parameter>;

    /// The hooks for one forward over a batch. Work that serves every layer (an orthonormal map) is done here, once.
    ///
    /// # Errors
    /// Whatever of the batch the method has to refuse, for instance a subspace that does not exist.
    fn hooks<'a>(&'a self, layout: &Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>>;

    /// Hooks that turn a forward away from the adapter's concept, if the method has some: the part of hidden states along its
    /// direction is taken out. Without them an adapter is turned around, at strength −1.
    fn away<'a>(&'a self, _layout: &Layout) -> Option<Result<Box<dyn Hooks + 'a>>> {
        None
    }

    /// The directions `[d]` that it adds to hidden states at some sites, as they are trained, if it does so.
    fn directions(&self) -> Option<BTreeMap<Site, Tensor>> {
        None
    }

    /// Number of virtual tokens that stand before every prompt: the layout must hold them.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Number of keys and values that its hooks put before every layer's own ([`Hooks::prefix`]).
    fn prefix_length(&self) -> usize {
        0
    }

    /// Number of coordinates of the subspace that it edits in. A row may name the ones to be changed.
    fn subspace_size(&self) -> Option<i64> {
        None
    }

    /// Whether it is the model's weights themselves: without its hooks there is no base model then, and no strength but 1.
    fn is_in_weights(&self) -> bool {
        false
    }

    /// Whether [`Self::hooks`] change tokens behind the prompt too. Where they do not, a token that is generated costs what it costs the base
    /// model, whatever adapters are in its batch.
    fn acts_on_replies(&self) -> bool {
        true
    }

    /// The lowest point of a row's forward that [`Self::hooks`] touch: everything before it need not be computed in every step.
    ///
    /// Where in doubt, claim more: [`Reach::EVERYTHING`], the default, is always right.
    fn reach(&self, _row: &Row) -> Reach {
        Reach::EVERYTHING
    }

    /// Everything a checkpoint needs to go on bit for bit, which may be more than [`Self::save`] keeps: by default the parameters.
    fn state(&self) -> BTreeMap<String, Tensor> {
        let copy = |p: Parameter| (p.name, p.tensor.detach().copy());
        self.parameters().into_iter().map(copy).collect()
    }

    /// Goes back to a [`Self::state`]: the tensors are overwritten in place, so handles on them stay valid.
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape, by name; nothing is changed then.
    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        write_into(&self.parameters(), state)
    }

    /// Keeps with the adapter how the texts are framed that it is trained on: [`Self::save`] writes it. An adapter without files keeps
    /// nothing.
    fn keep_trained_text(&mut self, _text: TrainedText) {}

    /// Keeps the head of a task that is trained with the adapter: [`Self::save`] writes it as it is then. An adapter without files keeps
    /// nothing.
    fn keep_head(&mut self, _head: &TaskHead) {}

    /// Writes the adapter's files into a directory that exists.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, dir: &Path) -> Result<()>;
}

/// Writes a state into parameters.
fn write_into(parameters: &[Parameter], state: &BTreeMap<String, Tensor>) -> Result<()> {
    let mut problems = Vec::new();
    for Parameter { name, tensor, .. } in parameters {
        let expected = tensor.size();
        match state.get(name).map(Tensor::size) {
            None => problems.push(format!("{name} is missing")),
            Some(found) if found == expected => {}
            Some(found) => {
                problems.push(format!("{name} has shape {found:?}, expected {expected:?}"));
            }
        }
    }
    let is_known = |name: &str| parameters.iter().any(|parameter| parameter.name == name);
    let unexpected = state.keys().filter(|name| !is_known(name));
    problems.extend(unexpected.map(|name| format!("{name} is unexpected")));
    if !problems.is_empty() {
        let problems = problems.join("; ");
        return Err(Error::Adapter { reason: format!("not this adapter's state: {problems}") });
    }
    tch::no_grad(|| {
        for Parameter { name, tensor, .. } in parameters {
            tensor.shallow_clone().copy_(&state[name]);
        }
    });
    Ok(())
}
