use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use tch::Tensor;

use crate::Result;
use crate::hooks::Hooks;
use crate::layout::Layout;

/// Whether a forward is part of training (dropout is on) or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Dropout is on.
    Train,
    /// Everything is deterministic.
    Eval,
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
