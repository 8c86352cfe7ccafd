use std::path::{Path, PathBuf};

use reft_methods::{MethodOptions, resolve};
use reft_models::{Key, ModelDescription, line_of, read_text, toml_error};
use reft_train::{ColumnNames, NEXT_TOKEN, ObjectiveOptions, ReferenceRun};
use serde::{Deserialize, Deserializer, Serialize};

use crate::fields::{read_fields, with_field};
use crate::{Budget, Error, Precision, Result, SweepConfig};

/// A comparison: methods, data and budget.
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
    /// For a task of pairs, how they are learned: `objective` (dpo, ipo, orpo or simpo) and its options. For every task, the terms beside
    /// it: `kl_weight`, `kl_top_k` and `replay_batch_size`. All as `reft train` takes them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub objective: ObjectiveOptions,
    /// Rows that the divergence of `kl_weight` is measured on; the path is relative to this file. By default the training rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<PathBuf>,
    /// Values that are set one after the other: a whole comparison at each point of a grid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<SweepConfig>,
    /// Fields that `--quick` replaces, beside using one rate and one seed.
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
    /// The meaning of the files' columns, as `reft train --columns` takes it; by default their names say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<ColumnNames>,
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
    /// Its label in the report; by default its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Learning rates. Every method must have the same number of them.
    pub lr: Vec<f64>,
    /// Learning rate of its rotations, as a multiple of `lr`; by default the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_lr_factor: Option<f64>,
    /// Its options.
    #[serde(default, deserialize_with = "read_options")]
    pub options: MethodOptions,
}

/// Fields that `--quick` replaces.
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

fn is_default(objective: &ObjectiveOptions) -> bool {
    *objective == ObjectiveOptions::default()
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

fn read_options<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MethodOptions, D::Error> {
    read_fields(deserializer, |options, name, value| {
        *options = with_field(options, name, value)?;
        Ok(())
    })
}

impl MethodEntry {
    /// The method's label in the report.
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
            let options = &mut self.train.options;
            (options.epochs, options.max_steps) = (quick.epochs, quick.max_steps);
        }
        self
    }

    /// The first invalid value: its place, and the reason.
    pub(super) fn check(&self) -> Result<(), (Vec<Key<'static>>, String)> {
        use Key::{Index, Name};
        let at = |path: &[Key<'static>], reason: String| Err((path.to_vec(), reason));
        let Self { data, seeds, .. } = self;
        let numbers = [
            (None, "method", self.method.len()),
            (None, "seeds", seeds.len()),
            (Some("data"), "test", data.test.len()),
            (Some("data"), "train_size", data.train_size.unwrap_or(1)),
            (Some("data"), "validation_size", data.validation_size),
            (Some("data"), "test_size", data.test_size.unwrap_or(1)),
        ];
        if let Some((table, name, _)) = numbers.into_iter().find(|(.., n)| *n == 0) {
            let place = table.into_iter().chain([name]).map(Name).collect();
            return Err((place, format!("{name}: none, expected at least 1")));
        }
        if let Some(i) = (1..seeds.len()).find(|&i| seeds[..i].contains(&seeds[i])) {
            return at(&[Name("seeds")], format!("seed {} is there twice", seeds[i]));
        }
        let expected = self.method[0].lr.len();
        for (i, entry) in self.method.iter().enumerate() {
            let (label, lr) = (entry.label(), [Name("method"), Index(i), Name("lr")]);
            if entry.lr.len() != expected || entry.lr.is_empty() {
                let (found, first) = (entry.lr.len(), self.method[0].label());
                let reason = format!(
                    "{label} has {found} learning rates, {first} has {expected}; give every method the same number, at least one"
                );
                return at(&lr, reason);
            }
            for (j, &rate) in entry.lr.iter().enumerate() {
                if entry.lr[..j].contains(&rate) {
                    return at(&lr, format!("{label} has the learning rate {rate} twice"));
                }
                if let Err((field, reason)) = self.train.check(entry, rate) {
                    let is_own = ["lr", "rotation_lr_factor"].contains(&field);
                    let table = if is_own { &lr[..2] } else { &[Name("train")] };
                    return at(&[table, &[Name(field)]].concat(), reason);
                }
            }
            let is_same = |other: &MethodEntry| slug(other.label()) == slug(label);
            if label.is_empty() {
                let reason = "label is empty; give a name, or leave it out".to_owned();
                return at(&[Name("method"), Index(i), Name("label")], reason);
            }
            if self.method[..i].iter().any(is_same) || slug(label) == "base" {
                let reason = format!("the name {label:?} is taken; tell methods apart with label");
                return at(&[Name("method"), Index(i)], reason);
            }
        }
        if let Err(error) = self.objective.check() {
            return at(&[Name("objective")], error.to_string());
        }
        let kind = self.objective.objective;
        if *kind != NEXT_TOKEN && !kind.prefers() {
            let reason = format!(
                "objective is {kind}, which follows from the task: give it the type {kind}, and leave this out"
            );
            return at(&[Name("objective"), Name("objective")], reason);
        }
        if self.objective.reference == Some(ReferenceRun::Start) {
            let reason = "reference is start, and every run starts anew; use base".to_owned();
            return at(&[Name("objective"), Name("reference")], reason);
        }
        if self.replay.is_some() && self.objective.kl_weight.is_none() {
            let reason =
                "replay is given without kl_weight below [objective]; give both".to_owned();
            return at(&[Name("replay")], reason);
        }
        if let Some((axis, field, reason)) = self.sweep.as_ref().and_then(SweepConfig::fault) {
            return at(&[Name("sweep"), Name(axis), Name(field)], reason);
        }
        Ok(())
    }
}

/// A label as a directory name: letters, digits, `-`, `+`, and `.` except as the first character, since `..` is the parent directory and
/// names with a leading dot are hidden.
pub(crate) fn slug(label: &str) -> String {
    let keep = |(i, c): (usize, char)| {
        let is_kept = c.is_ascii_alphanumeric() || "-+".contains(c) || (c == '.' && i > 0);
        if is_kept { c.to_ascii_lowercase() } else { '-' }
    };
    label.chars().enumerate().map(keep).collect()
}

/// A configuration with the file that it came from, for messages that name a line.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// Its contents, checked as far as possible without a model.
    pub config: CompareConfig,
    pub(super) text: String,
}

impl ConfigFile {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`reft_models::Error::Line`] for an unknown field, a wrong type, or an invalid value.
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
        config
            .check()
            .map_err(|(place, reason)| Error::line(path, line_of(&text, &place), reason))?;
        Ok(Self { path: path.to_owned(), config, text })
    }

    /// Decides and checks every method's options against a model.
    ///
    /// # Errors
    /// [`reft_models::Error::Line`] for an unknown method, an option that a method does not have, or a value that does not fit the model.
    pub fn check_methods(&self, model: &ModelDescription) -> Result<()> {
        for (i, entry) in self.config.method.iter().enumerate() {
            resolve(&entry.method, &entry.options, model).map_err(|error| {
                let place = [Key::Name("method"), Key::Index(i), Key::Name("method")];
                Error::line(&self.path, line_of(&self.text, &place), error.to_string())
            })?;
        }
        Ok(())
    }

    /// The path of a file that the configuration names. A relative path with an extension is relative to the configuration's directory; a name
    /// without an extension is not a file and stays as it is.
    pub fn beside(&self, file: &Path) -> PathBuf {
        match (file.extension(), self.path.parent()) {
            (Some(_), Some(directory)) if file.is_relative() => directory.join(file),
            _ => file.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use reft_methods::RANK;
    use reft_models::DecoderConfig;

    use super::*;

    #[test]
    fn no_label_leads_out_of_its_directory() {
        for (label, name) in [
            ("LoReFT r4", "loreft-r4"),
            ("..", "-."),
            (".", "-"),
            ("../../x", "-.-..-x"),
            ("/etc/passwd", "-etc-passwd"),
            (".hidden", "-hidden"),
            ("a\\b\0", "a-b-"),
        ] {
            assert_eq!(slug(label), name);
        }
    }
    use crate::error::line_refused;

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
        line_refused(ConfigFile::parse(TEXT.replacen(from, to, 1), Path::new("c.toml")))
    }

    #[test]
    fn a_file_says_all_there_is_to_say() -> Result<()> {
        let file = ConfigFile::parse(TEXT.to_owned(), Path::new("recipes/c.toml"))?;
        assert_eq!(file.config.name, "c");
        assert_eq!(file.config.method[0].options.get::<i64>(&RANK), Some(4));
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
        let model = DecoderConfig::open(&path)?.describe();
        let refused = |from: &str, to: &str| -> Result<(usize, String)> {
            let file = ConfigFile::parse(TEXT.replacen(from, to, 1), Path::new("c.toml"))?;
            Ok(line_refused(file.check_methods(&model)))
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
