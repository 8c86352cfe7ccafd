use std::fmt::Debug;
use std::path::Path;

use reft_core::MapKind;
use reft_models::{Adapter, Model, ModelDescription};

use crate::{Joining, MethodOption, MethodOptions, Result};

/// The declaration of a method. Flags, recipes, the output of `inspect`, `plan`, `bench` and `compare`, and the documentation's table come
/// from it.
#[derive(Debug)]
pub struct MethodDeclaration {
    /// Its name in files and on the command line.
    pub name: &'static str,
    /// Its name in prose.
    pub title: &'static str,
    /// Its equation.
    pub equation: &'static str,
    /// The paper that introduced it.
    pub source: &'static str,
    /// Its options.
    pub options: &'static [&'static MethodOption],
    /// The form of its adapters on disk.
    pub files: AdapterFiles,
    /// Whether it can become part of the weights.
    pub merging: Merging,
    /// Whether several of its adapters can be joined to one.
    pub joining: Joining,
    /// Whether it changes how generated tokens are computed: the base model would compute something else from the same cache of keys and
    /// values. Prefixes and soft prompts act through that cache alone.
    pub acts_on_generated: bool,
    /// Whether each row of a batch may have its own adapter.
    pub per_row: bool,
    /// The highest learning rate of `reft train` if none is given; docs/guide.md has the measurements.
    pub usual_lr: f64,
    /// Fills in the options that are not given, and checks all against a model, so that nothing fails when training starts.
    pub resolve: fn(&str, &MethodOptions, &ModelDescription) -> Result<Box<dyn Method>>,
    /// Reads the configuration of an adapter directory.
    pub read: fn(&Path) -> Result<Box<dyn Method>>,
}

impl MethodDeclaration {
    /// The field of its adapters' configuration, and its value, that tell it from other methods with the same files.
    pub(crate) fn mark(&self) -> Option<(&'static str, &'static str)> {
        match self.files {
            AdapterFiles::Peft(peft_type) => Some(("peft_type", peft_type)),
            AdapterFiles::Own => Some(("method", self.name)),
            AdapterFiles::Reft | AdapterFiles::Weights => None,
        }
    }
}

/// The form of an adapter on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterFiles {
    /// `reft_config.json` and `reft_model.safetensors`
    Reft,
    /// PEFT's `adapter_config.json` and `adapter_model.safetensors`, with this `peft_type`.
    Peft(&'static str),
    /// `baseline_config.json` and `baseline_model.safetensors`: of methods that PEFT does not have.
    Own,
    /// `model.safetensors`: all weights.
    Weights,
}

/// Whether a method can become part of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merging {
    /// It can.
    IntoWeights,
    /// It cannot, and why.
    Never(&'static str),
}

impl AdapterFiles {
    /// Names of the files: tensors, then configuration.
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Reft => &["reft_model.safetensors", "reft_config.json"],
            Self::Peft(_) => &["adapter_model.safetensors", "adapter_config.json"],
            Self::Own => &["baseline_model.safetensors", "baseline_config.json"],
            Self::Weights => &["model.safetensors"],
        }
    }

    /// Name of the tensors' file.
    pub(crate) fn tensors(self) -> &'static str {
        self.names()[0]
    }

    /// Name of the file that describes the adapter.
    pub(crate) fn configuration(self) -> &'static str {
        self.names()[self.names().len() - 1]
    }
}

/// A method with all options set.
pub trait Method: Debug {
    /// Its name, as on the command line.
    fn name(&self) -> &str;

    /// All of its options: the declaration's `resolve` makes the same method of them. Files do not keep how virtual tokens started.
    fn options(&self) -> MethodOptions;

    /// Makes a new adapter. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// `base_model` is the model's name or directory, as the adapter's files will give it.
    ///
    /// # Errors
    /// Errors of the method.
    fn build(&self, model: &dyn Model, base_model: &str) -> Result<Box<dyn Adapter>>;

    /// Reads the adapter of the directory that this configuration was read from.
    ///
    /// # Errors
    /// Tensors that are missing, unexpected or misshapen, by name; another base model.
    fn load(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>>;

    /// [`Self::load`] for further training.
    ///
    /// # Errors
    /// As [`Self::load`]; errors of the trainable form.
    fn load_trainable(&self, dir: &Path, model: &dyn Model) -> Result<Box<dyn Adapter>> {
        self.load(dir, model)
    }

    /// Checks, without weights, that the directory's adapter belongs to a model.
    ///
    /// # Errors
    /// As [`Self::load`].
    fn check_files(&self, dir: &Path, model: &ModelDescription) -> Result<()>;

    /// Puts the directory's adapter into the model's weights.
    ///
    /// # Errors
    /// As [`Self::load`]; [`crate::Error::NotFinite`]: the model is merged in part then, and should be opened anew.
    fn merge(&self, dir: &Path, model: &dyn Model) -> Result<()>;

    /// Whether it can become part of the weights.
    fn merging(&self) -> Merging;

    /// Bytes per token that its own backward keeps in each block, beside the frozen block's.
    ///
    /// A trained matrix keeps its input; a trained vector keeps its other factor. Edits of a few positions, prefixes and soft
    /// prompts keep next to nothing beside their columns: the default.
    ///
    /// # Errors
    /// Errors of the method about the model.
    fn kept_per_token(&self, model: &ModelDescription, _kind_bytes: f64) -> Result<Vec<f64>> {
        Ok(vec![0.0; model.num_hidden_layers])
    }

    /// Tokens of the model's context that it takes beside the row's own: virtual tokens and a prefix.
    fn context_taken(&self) -> usize {
        0
    }

    /// The rotations that it trains, if any: the map that keeps them orthonormal, and their shape `[n, d, r]`.
    fn rotations(&self) -> Option<(MapKind, [i64; 3])> {
        None
    }
}
