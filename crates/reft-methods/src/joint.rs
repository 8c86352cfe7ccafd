//! A method's rule for making one adapter of several, and the result.

use std::path::{Path, PathBuf};

use reft_models::{BaseModel, Model, TrainedText};
use serde::Serialize;

use crate::Result;

/// Whether adapters of a method can be joined to one adapter that computes the same as a stack of them.
#[derive(Debug)]
pub enum Joining {
    /// They can, exactly.
    Exactly {
        /// The methods whose adapters may be among them.
        with: &'static [&'static str],
        /// How.
        how: &'static str,
        /// Whether the base model's weights are needed for it.
        needs_weights: bool,
        /// Writes the one adapter into a directory.
        join: fn(&Joint, &Path) -> Result<Joined>,
    },
    /// They cannot, and why.
    Never(&'static str),
}

/// An adapter directory, and its strength in the stack.
#[derive(Debug, Clone, PartialEq)]
pub struct JoinPart {
    /// The directory.
    pub directory: PathBuf,
    /// `s`: `base + s · (edited − base)`.
    pub strength: f64,
}

/// How adapters are joined.
#[derive(Clone, Copy, Default)]
pub struct JoinOptions<'a> {
    /// For low-rank updates: keep the best approximation of this rank instead of the exact sum.
    pub svd_rank: Option<i64>,
    /// The base model: only some methods need it.
    pub model: Option<&'a dyn Model>,
}

/// The adapters of a stack, all of one kind, to be joined.
pub struct Joint<'a> {
    pub(crate) parts: Vec<JoinPart>,
    pub(crate) options: JoinOptions<'a>,
    pub(crate) base_model: Option<BaseModel>,
    pub(crate) text: Option<TrainedText>,
}

/// The adapter made of several.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Joined {
    /// The method of the one adapter.
    pub method: String,
    /// Number of its parameters.
    pub parameters: i64,
    /// Of low-rank updates: rank and kept part of each module.
    pub modules: Vec<JoinedModule>,
    /// Notes for its user.
    pub notes: Vec<String>,
}

/// The update of a module that was joined.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JoinedModule {
    /// The module.
    pub module: String,
    /// The rank of its update.
    pub rank: i64,
    /// The part of the squared norm of the sum that the update keeps: 1 is all.
    pub kept: f64,
}

/// Why methods with virtual tokens or a prefix are not joined.
pub(crate) const ONE_PLACE: &str = "a model has one place before its prompt, so two adapters there have no order; a stack refuses them too";
