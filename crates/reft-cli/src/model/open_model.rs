use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_methods::{has_head, load_adapters, trained_text};
use reft_models::{
    Adapter, AdapterStack, Decoder, DecoderConfig, TrainedText, Weights, resolve_model,
};

use crate::machine::MachineOptions;
use crate::model::adapter_directory::adapter_directory;
use crate::model::framing::trained_together;
use crate::options::Flags;
use crate::terminal::note;

/// The flags of every command that runs a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Adapter: a directory, or a hub name such as org/name
    ///
    /// Give it several times to use several adapters at once, in this order.
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    #[command(flatten)]
    machine: Flags<MachineOptions>,
}

impl ModelArgs {
    /// Loads the model and its adapters for a command that needs next tokens.
    ///
    /// # Errors
    /// If one of them is not there or broken, an adapter belongs to another model, or the model is an encoder.
    pub fn open_for(&self, command: &str) -> Result<Model> {
        open_config(&self.model)?.1.check_predicts(command)?;
        let model = self.open()?;
        for directory in &model.directories {
            if has_head(directory)? {
                let name = directory.display();
                note(format!(
                    "warning: {name} has a head, which {command} does not use; `reft eval --task classification`, `regression` or `reward` does"
                ));
            }
        }
        Ok(model)
    }

    /// Loads the model and its adapters.
    ///
    /// # Errors
    /// If one of them is not there or broken, or an adapter belongs to another model.
    pub fn open(&self) -> Result<Model> {
        self.machine.0.set_up()?;
        let (path, decoder) = open_decoder(&self.model, &self.machine.0)?;
        let mut adapters: Vec<Box<dyn Adapter>> = Vec::new();
        let (mut names, mut trained, mut directories) = (Vec::new(), Vec::new(), Vec::new());
        for dir in &self.adapter {
            let load = || {
                let files = adapter_directory(dir)?;
                let (own, text) = (load_adapters(&files, &decoder)?, trained_text(&files)?);
                Ok::<_, anyhow::Error>((own, text, files))
            };
            let (own, text, files) = load().with_context(|| {
                format!("cannot run adapter {} on {}", dir.display(), self.model)
            })?;
            let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
            names.extend(own.iter().map(|_| name.clone().into_owned()));
            adapters.extend(own);
            trained.extend(text);
            directories.push(files);
        }
        let trained = trained_together(trained);
        Ok(Model { path, decoder, adapters, names, directories, trained })
    }
}

/// A model with its adapters.
pub struct Model {
    /// Directory or file that it was read from.
    pub path: PathBuf,
    /// The frozen model.
    pub decoder: Decoder,
    /// The adapters, in the order given.
    pub adapters: Vec<Box<dyn Adapter>>,
    /// For each adapter, the last component of its given path.
    pub names: Vec<String>,
    /// The directories of adapters, in the order given.
    pub directories: Vec<PathBuf>,
    /// The framing of the adapters' training texts, if all adapters have the same.
    pub trained: Option<TrainedText>,
}

impl Model {
    /// The adapters together.
    ///
    /// # Errors
    /// If they cannot be used at once.
    pub fn stack(&self) -> Result<AdapterStack<'_>> {
        Ok(AdapterStack::of_boxed(&self.adapters)?)
    }

    /// The empty stack, to compare the adapters with the plain model.
    ///
    /// # Errors
    /// If there is no adapter, or one has changed the model's weights.
    pub fn base(&self) -> Result<AdapterStack<'static>> {
        if self.adapters.is_empty() {
            bail!(
                "--compare-base compares adapters with the model without them, and none is given; give --adapter"
            );
        }
        if let Some(adapter) = self.adapters.iter().find(|adapter| adapter.is_in_weights()) {
            bail!(
                "the adapter of method {} is the model's weights: beside it there is no base model; run the command once with it and once without",
                adapter.method()
            );
        }
        Ok(AdapterStack::EMPTY)
    }
}

/// The model's name in the files of its adapters: its name on the hub if it has one, else the name of its directory or file, never a
/// path.
pub fn model_name(model: &str, path: &Path) -> String {
    // a snapshot in the hub's cache: models--ORG--NAME/snapshots/COMMIT
    let of_cache = path.ancestors().find_map(|folder| {
        let name = folder.file_name()?.to_str()?.strip_prefix("models--")?;
        name.split_once("--").map(|(organisation, name)| format!("{organisation}/{name}"))
    });
    let of_hub = || (path != Path::new(model)).then(|| model.to_owned());
    let of_directory = || {
        let whole = std::fs::canonicalize(path).ok()?;
        Some(whole.file_name()?.to_string_lossy().into_owned())
    };
    of_cache.or_else(of_hub).or_else(of_directory).unwrap_or_else(|| model.to_owned())
}

/// Finds and loads a model.
///
/// # Errors
/// If it is not there or broken.
pub fn open_decoder(model: &str, machine: &MachineOptions) -> Result<(PathBuf, Decoder)> {
    let path = resolve_model(model)?;
    let failed = || format!("cannot load model {model}");
    let config = DecoderConfig::open(&path).with_context(failed)?;
    let (kind, placement) = machine.placement(&config.describe())?;
    let decoder = Weights::open(&path)
        .and_then(|weights| {
            let weights = weights.held_as(machine.weights).int8_products(machine.int8_products);
            Decoder::from_weights(config, &weights, kind.kind(), placement)
        })
        .with_context(failed)?;
    Ok((path, decoder))
}

/// The configuration of a model, read without its weights.
///
/// # Errors
/// If it is not there or broken.
pub fn open_config(model: &str) -> Result<(PathBuf, DecoderConfig)> {
    let path = resolve_model(model)?;
    let config =
        DecoderConfig::open(&path).with_context(|| format!("cannot load model {model}"))?;
    Ok((path, config))
}
