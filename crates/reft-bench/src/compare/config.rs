use std::path::{Path, PathBuf};

use reft_models::DecoderConfig;
use reft_train::{ScheduleKind, Shuffle, TrainConfig};
use serde::{Deserialize, Serialize};
use tch::Kind;

use crate::compare::sweep::SweepConfig;
use crate::error::{Error, Result, read_text};
use crate::method_config::{MethodConfig, MethodOptions};
use crate::tasks::{Key, line_of, toml_error};

/// What is compared, on what, with which budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareConfig {
    /// Title of the report; by default the file's name.
    #[serde(default)]
    pub name: String,
    /// The model: a directory, a GGUF file, or a hub name.
    #[serde(default)]
    pub model: String,
    /// Kind of the frozen model's numbers.
    #[serde(default)]
    pub kind: Precision,
    /// A built-in task, or a TOML file that describes one, beside this file.
    pub task: PathBuf,
    /// The task of the training file, if its rows are of another form than the test files'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_task: Option<PathBuf>,
    /// The data.
    pub data: DataConfig,
    /// A text that has nothing to do with the task, beside this file: how much its loss rises is reported as forgetting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neutral: Option<PathBuf>,
    /// Seeds of the runs; rates are chosen with the first.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u64>,
    /// Questions computed at once when a model is measured.
    #[serde(default = "default_eval_batch_size")]
    pub eval_batch_size: usize,
    /// The budget, the same for all methods.
    #[serde(default)]
    pub train: Budget,
    /// The methods.
    pub method: Vec<MethodEntry>,
    /// Values that are set one after the other: a whole comparison at each point of a grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepConfig>,
    /// What `--quick` changes, beside using one rate and one seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quick: Option<QuickConfig>,
}

/// Where the data are and how much of them is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Directory that the files are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// File to train on.
    pub train: PathBuf,
    /// File to choose rates on; by default rows of `train` that are not trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Files to test on.
    pub test: Vec<PathBuf>,
    /// Rows to train on, drawn with `seed`; by default all that are not held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_size: Option<usize>,
    /// Rows to choose rates on.
    #[serde(default = "default_validation_size")]
    pub validation_size: usize,
    /// Rows of each test file; by default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_size: Option<usize>,
    /// Seed of the draws.
    #[serde(default)]
    pub seed: u64,
}

/// A method with its options and the learning rates that are tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodEntry {
    /// Its name, as `reft train --method` takes it.
    pub method: String,
    /// What it is called in the report; by default its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Learning rates: as many as every other method has.
    pub lr: Vec<f64>,
    /// Learning rate of its rotations, as a multiple of `lr`; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_lr_factor: Option<f64>,
    /// Its options.
    #[serde(default)]
    pub options: MethodOptions,
}

/// How long and how every method is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Passes over the data; without it and without `max_steps`: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// Optimizer steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Examples of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub grad_accum: usize,
    /// How the learning rate changes over the run.
    pub schedule: ScheduleKind,
    /// Share of the steps in which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of all gradients together; 0: not clipped.
    pub max_grad_norm: f64,
    /// Longest example in tokens.
    pub max_length: usize,
    /// Order of the examples.
    pub shuffle: Shuffle,
    /// Training ends early, after the first step whose loss is no more than this; by default all steps are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_at_loss: Option<f64>,
}

/// What `--quick` changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuickConfig {
    /// Rows to train on.
    pub train_size: Option<usize>,
    /// Rows held out.
    pub validation_size: Option<usize>,
    /// Rows of each test file.
    pub test_size: Option<usize>,
    /// Passes over the data.
    pub epochs: Option<usize>,
    /// Optimizer steps.
    pub max_steps: Option<usize>,
}

/// Kind of the frozen model's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits, trained with a loss scale.
    F16,
}

impl Precision {
    /// tch's word for it.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

fn default_seeds() -> Vec<u64> {
    vec![0, 1, 2]
}

fn default_eval_batch_size() -> usize {
    16
}

fn default_validation_size() -> usize {
    200
}

impl Default for Budget {
    fn default() -> Self {
        let train = TrainConfig::default();
        Self {
            epochs: None,
            max_steps: None,
            batch_size: train.batch_size,
            grad_accum: train.grad_accum,
            schedule: train.schedule,
            warmup_ratio: train.warmup_ratio,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            max_length: train.max_length,
            shuffle: train.shuffle,
            stop_at_loss: None,
        }
    }
}

impl Budget {
    /// The trainer's options for a rate and a seed. Nothing is held out: every method takes all steps.
    pub fn train_config(&self, lr: f64, rotation_lr_factor: Option<f64>, seed: u64) -> TrainConfig {
        TrainConfig {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            lr,
            rotation_lr_factor: rotation_lr_factor.unwrap_or(1.0),
            schedule: self.schedule,
            warmup_ratio: self.warmup_ratio,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            max_length: self.max_length,
            seed,
            shuffle: self.shuffle,
            validation: 0.0,
            eval_every: 0,
            checkpoint_activations: false,
            reuse: true,
            checkpoint_every: 0,
        }
    }
}

impl MethodEntry {
    /// What the method is called in the report.
    pub fn label(&self) -> &str {
        self.label.as_deref().unwrap_or(&self.method)
    }
}

impl DataConfig {
    /// A file of the data.
    pub fn path(&self, file: &Path) -> PathBuf {
        self.directory.as_deref().map_or_else(|| file.to_owned(), |dir| dir.join(file))
    }
}

impl CompareConfig {
    /// A small version: one rate (the middle one of each grid), one seed, and the sizes under `quick`.
    pub fn quick(mut self) -> Self {
        let quick = self.quick.clone().unwrap_or_default();
        self.seeds.truncate(1);
        for method in &mut self.method {
            method.lr = vec![method.lr[method.lr.len() / 2]];
        }
        self.data.train_size = quick.train_size.or(self.data.train_size);
        self.data.validation_size = quick.validation_size.unwrap_or(self.data.validation_size);
        self.data.test_size = quick.test_size.or(self.data.test_size);
        if let Some(sweep) = &mut self.sweep {
            sweep.quick();
        }
        if quick.epochs.is_some() || quick.max_steps.is_some() {
            (self.train.epochs, self.train.max_steps) = (quick.epochs, quick.max_steps);
        }
        self
    }

    /// The first value that cannot be: where it is, and why.
    pub(super) fn check(&self) -> Result<(), (Vec<Key<'static>>, String)> {
        use Key::{Index, Name};
        let at = |path: &[Key<'static>], reason: String| Err((path.to_vec(), reason));
        if self.method.is_empty() {
            return at(&[Name("method")], "no method; give at least one [[method]]".to_owned());
        }
        let expected = self.method[0].lr.len();
        for (i, entry) in self.method.iter().enumerate() {
            let (label, lr) = (entry.label(), [Name("method"), Index(i), Name("lr")]);
            if entry.lr.len() != expected || entry.lr.is_empty() {
                let (found, first) = (entry.lr.len(), self.method[0].label());
                return at(
                    &lr,
                    format!(
                        "{label} has {found} learning rates, {first} has {expected}; give every method the same number, at least one"
                    ),
                );
            }
            for (j, rate) in entry.lr.iter().enumerate() {
                if !(rate.is_finite() && *rate > 0.0) {
                    return at(&lr, format!("lr is {rate}, expected a number above 0"));
                }
                if entry.lr[..j].contains(rate) {
                    return at(&lr, format!("{label} has the learning rate {rate} twice"));
                }
            }
            let same = |other: &&MethodEntry| slug(other.label()) == slug(label);
            if self.method[..i].iter().any(|other| same(&other)) || slug(label) == "base" {
                let reason = format!("the name {label:?} is taken; tell methods apart with label");
                return at(&[Name("method"), Index(i)], reason);
            }
        }
        if self.seeds.is_empty() {
            return at(&[Name("seeds")], "no seed; give at least one, better three".to_owned());
        }
        if let Some((_, seed)) =
            self.seeds.iter().enumerate().find(|(i, seed)| self.seeds[..*i].contains(seed))
        {
            return at(&[Name("seeds")], format!("seed {seed} is there twice"));
        }
        if self.data.test.is_empty() {
            return at(&[Name("data"), Name("test")], "no test file; give at least one".to_owned());
        }
        let sizes = [
            ("train_size", self.data.train_size),
            ("validation_size", Some(self.data.validation_size)),
            ("test_size", self.data.test_size),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == Some(0)) {
            return at(&[Name("data"), Name(name)], format!("{name} is 0, expected at least 1"));
        }
        if let Some((axis, field, reason)) = self.sweep.as_ref().and_then(SweepConfig::fault) {
            return at(&[Name("sweep"), Name(axis), Name(field)], reason);
        }
        if let Some(loss) = self.train.stop_at_loss.filter(|loss| loss.is_nan() || *loss <= 0.0) {
            let reason = format!("stop_at_loss is {loss}, expected a number above 0");
            return at(&[Name("train"), Name("stop_at_loss")], reason);
        }
        for (i, method) in self.method.iter().enumerate() {
            if let Some(factor) = method.rotation_lr_factor.filter(|x| !x.is_finite() || *x <= 0.0)
            {
                let reason = format!("rotation_lr_factor is {factor}, expected a number above 0");
                return at(&[Name("method"), Index(i), Name("rotation_lr_factor")], reason);
            }
        }
        match self.train.train_config(self.method[0].lr[0], None, 0).check() {
            Err(error @ reft_train::Error::Config { field, .. }) => {
                at(&[Name("train"), Name(field)], error.to_string())
            }
            Err(error) => at(&[Name("train")], error.to_string()),
            Ok(()) => Ok(()),
        }
    }
}

/// A name as a directory's: letters, digits, `-`, `+` and `.`.
pub(crate) fn slug(label: &str) -> String {
    let keep = |c: char| c.is_ascii_alphanumeric() || "-+.".contains(c);
    label.chars().map(|c| if keep(c) { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// A configuration with the file that it came from, for messages that name a line.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// What it says, checked as far as that goes without a model.
    pub config: CompareConfig,
    pub(super) text: String,
}

impl ConfigFile {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error::Line`] for an unknown field, a wrong type, or a value that cannot be.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(read_text(path)?, path)
    }

    /// The configuration in a text that came from `path`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn parse(text: String, path: &Path) -> Result<Self> {
        let mut config: CompareConfig =
            toml::from_str(&text).map_err(|error| toml_error(&text, path, &error))?;
        if config.name.is_empty() {
            config.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        config.check().map_err(|(place, reason)| Error::Line {
            path: path.to_owned(),
            line: line_of(&text, &place),
            reason,
        })?;
        Ok(Self { path: path.to_owned(), config, text })
    }

    /// Decides and checks every method's options against a model.
    ///
    /// # Errors
    /// [`Error::Line`] for an unknown method, an option that a method does not have, or a value that does not fit the model.
    pub fn check_methods(&self, model: &DecoderConfig) -> Result<()> {
        for (i, entry) in self.config.method.iter().enumerate() {
            let resolved = MethodConfig::resolve(&entry.method, &entry.options, model);
            resolved.map_err(|error| Error::Line {
                path: self.path.clone(),
                line: line_of(
                    &self.text,
                    &[Key::Name("method"), Key::Index(i), Key::Name("method")],
                ),
                reason: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// A file that the configuration names, which stands beside it unless its path says otherwise; a name without ending is no file.
    pub fn beside(&self, file: &Path) -> PathBuf {
        match (file.extension(), self.path.parent()) {
            (Some(_), Some(directory)) if file.is_relative() => directory.join(file),
            _ => file.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"model = "m"
task = "lm"
seeds = [0, 1, 2]

[data]
train = "train.jsonl"
test = ["test.jsonl"]

[train]
epochs = 2

[[method]]
method = "loreft"
lr = [1e-3, 4e-3]
options = { rank = 4, positions = "f3+l3" }

[[method]]
method = "lora"
lr = [1e-4, 1e-3]

[method.options]
rank = 8
"#;

    fn refused(from: &str, to: &str) -> (usize, String) {
        match ConfigFile::parse(TEXT.replacen(from, to, 1), Path::new("c.toml")) {
            Err(Error::Line { line, reason, .. }) => (line, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_says_all_there_is_to_say() -> Result<()> {
        let file = ConfigFile::parse(TEXT.to_owned(), Path::new("recipes/c.toml"))?;
        assert_eq!(file.config.name, "c");
        assert_eq!(file.config.method[0].options.rank, Some(4));
        assert_eq!(file.config.method[1].lr, [1e-4, 1e-3]);
        assert_eq!(file.beside(Path::new("lm")), Path::new("lm"));
        assert_eq!(file.beside(Path::new("t.toml")), Path::new("recipes/t.toml"));
        let quick = file.config.quick();
        assert_eq!((quick.seeds.len(), quick.method[0].lr.as_slice()), (1, [4e-3].as_slice()));
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_named_with_its_line() {
        assert_eq!(refused("lr = [1e-4, 1e-3]", "lr = [1e-4]").0, 19);
        assert_eq!(refused("lr = [1e-4, 1e-3]", "lr = [1e-4, -1.0]").0, 19);
        assert_eq!(refused("lr = [1e-4, 1e-3]", "lr = [1e-4, 1e-4]").0, 19);
        let factor = "lr = [1e-4, 1e-3]\nrotation_lr_factor = 0.0";
        assert_eq!(refused("lr = [1e-4, 1e-3]", factor).0, 20);
        assert_eq!(refused("epochs = 2", "epochs = 0").0, 10);
        assert_eq!(refused("epochs = 2", "epoch = 2").0, 10);
        assert_eq!(refused("epochs = 2", "epochs = 2\nstop_at_loss = 0.0").0, 11);
        assert_eq!(refused("epochs = 2", "epochs = 2\nstop_at_loss = nan").0, 11);
        assert_eq!(refused("seeds = [0, 1, 2]", "seeds = [0, 0]").0, 3);
        assert_eq!(refused("\"lora\"", "\"loreft\"").0, 17);
        assert_eq!(refused("rank = 8", "ranks = 8").0, 22);
        assert_eq!(refused("test = [\"test.jsonl\"]", "test = []").0, 7);
    }

    #[test]
    fn unknown_methods_and_options_are_named_with_their_line() -> Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/tiny_llama");
        let model = DecoderConfig::open(&path)?;
        let refused = |from: &str, to: &str| -> Result<(usize, String)> {
            let file = ConfigFile::parse(TEXT.replacen(from, to, 1), Path::new("c.toml"))?;
            match file.check_methods(&model) {
                Err(Error::Line { line, reason, .. }) => Ok((line, reason)),
                other => panic!("{other:?}"),
            }
        };
        let (line, reason) = refused("\"lora\"", "\"lorra\"")?;
        assert!(line == 18 && reason.contains("unknown method \"lorra\""), "{line} {reason}");
        let (line, reason) = refused("rank = 8", "positions = \"l1\"")?;
        assert!(line == 18 && reason.contains("no option positions"), "{line} {reason}");
        let (line, _) = refused("rank = 4", "rank = 400")?;
        assert_eq!(line, 13);
        Ok(())
    }
}
