use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use tch::Tensor;

use crate::{Error, Hooks, Layout, Result, Row, Site, TaskHead, TrainedText};

/// Whether a forward is part of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is on.
    Train,
    /// Everything is deterministic.
    Eval,
}

/// The earliest point of a row's forward that a method changes, or needs a gradient at.
///
/// Everything before it depends on the frozen model only and is the same in every step: the input of stage `stage` of
/// [`Forward`](crate::Forward), and, as no token sees a later one, the hidden states of the tokens before `token` at every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reach {
    /// The first stage that differs from the plain model's.
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
    /// If the method refuses the batch, for instance because a subspace does not exist.
    fn hooks<'a>(&'a self, layout: &Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>>;

    /// Hooks that steer a forward away from the adapter's concept, if the method has them: they remove the component of hidden states
    /// along its direction. Without them an adapter is used at strength −1 instead.
    fn away<'a>(&'a self, _layout: &Layout) -> Option<Result<Box<dyn Hooks + 'a>>> {
        None
    }

    /// The trained directions `[d]` that it adds to hidden states, by site, if the method adds directions.
    fn directions(&self) -> Option<BTreeMap<Site, Tensor>> {
        None
    }

    /// Number of virtual tokens before every prompt: the layout must hold them.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Number of keys and values that its hooks put before every layer's own ([`Hooks::prefix`]).
    fn prefix_length(&self) -> usize {
        0
    }

    /// Number of coordinates of the subspace that it edits. A row may name the coordinates to change.
    fn subspace_size(&self) -> Option<i64> {
        None
    }

    /// Whether the adapter is the model's weights themselves: then no base model is left, and the only strength is 1.
    fn is_in_weights(&self) -> bool {
        false
    }

    /// Whether [`Self::hooks`] change tokens after the prompt too. If not, a generated token costs as much as with the base model, also in a
    /// batch with other adapters.
    fn acts_on_replies(&self) -> bool {
        true
    }

    /// The earliest point of a row's forward that [`Self::hooks`] touch: everything before it need not be computed in every step.
    ///
    /// An earlier point is always correct; so is the default, [`Reach::EVERYTHING`].
    fn reach(&self, _row: &Row) -> Reach {
        Reach::EVERYTHING
    }

    /// The tensors that a checkpoint needs to resume training bit for bit, perhaps more than [`Self::save`] keeps, in the shapes that they are trained in.
    /// Default: the parameters.
    fn state(&self) -> BTreeMap<String, Tensor> {
        let copy = |p: Parameter| (p.name, p.tensor.detach().copy());
        self.parameters().into_iter().map(copy).collect()
    }

    /// Restores a [`Self::state`]: the tensors are overwritten in place, so handles on them stay valid.
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape, by name; nothing is changed then.
    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        write_into(&self.parameters(), state)
    }

    /// Sets the framing of the training texts, which [`Self::save`] writes. An adapter without files ignores it.
    fn keep_trained_text(&mut self, _text: TrainedText) {}

    /// Sets the task head that is trained with the adapter; [`Self::save`] writes the head's values at that time. An adapter without files
    /// ignores it.
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
