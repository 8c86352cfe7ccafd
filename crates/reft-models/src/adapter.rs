use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use tch::Tensor;

use crate::Result;
use crate::hooks::Hooks;
use crate::layout::{Layout, Row};
use crate::site::Site;

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
/// All that is before it is the frozen model's alone, the same in every step: the hidden states that go into stage `stage` of
/// [`Forward`](crate::Forward), and, as no token sees a later one, those of the tokens before `token` at every layer.
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

/// What a fine-tuning method adds to a frozen model: trainable tensors, and the hooks that apply them.
///
/// One trainer, one generator and one evaluator serve every method through this trait.
pub trait Adapter {
    /// Name of the method, as on the command line.
    fn method(&self) -> &str;

    /// The leaves that an optimizer updates.
    fn parameters(&self) -> Vec<Parameter>;

    /// The hooks for one forward over a batch. Work that serves every layer (an orthonormal map) is done here, once.
    ///
    /// # Errors
    /// Whatever of the batch the method has to refuse, for instance a subspace that does not exist.
    fn hooks<'a>(&'a self, layout: &'a Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>>;

    /// Number of virtual tokens that stand before every prompt: the layout must hold them.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// Number of parts that are trained side by side and know nothing of each other: the entries of the first dimension of every
    /// parameter. The gradient of each is clipped by itself.
    fn parts(&self) -> i64 {
        1
    }

    /// Tells which share of training is done, 0 to 1, before each step: for what changes on a schedule, such as a temperature.
    fn begin_step(&mut self, _share: f64) {}

    /// What a step's loss has added to it, a scalar, before gradients are taken; it is not part of the loss that is reported.
    fn penalty(&self) -> Option<Tensor> {
        None
    }

    /// The lowest point of a row's forward that [`Self::hooks`] touch: what is before it need not be computed in every step.
    ///
    /// Rows may differ in their stages; where a batch has them in the order of their stages, each begins at its own. Where in doubt, claim
    /// more: [`Reach::EVERYTHING`], the default, is always right.
    fn reach(&self, _row: &Row) -> Reach {
        Reach::EVERYTHING
    }

    /// Everything a checkpoint needs to go on bit for bit: more than [`Self::save`] keeps.
    fn state(&self) -> BTreeMap<String, Tensor>;

    /// Goes back to a [`Self::state`].
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape, by name.
    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()>;

    /// Writes the adapter's files into a directory that exists.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, dir: &Path) -> Result<()>;
}
