use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use bytesize::ByteSize;
use reft_core::{DeclaredOptions, LARGEST_COUNT, declare_options};
use reft_distributed::Reduction;
use reft_methods::method_names;
use reft_models::ChatOptions;
use reft_train::{
    ColumnOptions, DataSources, OBJECTIVES, ObjectiveOptions, ReuseConfig, RowKind, Shuffle,
    Template, TrainConfig, TurnOptions,
};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Table;

use crate::machine::MachineOptions;
use crate::options::{Declared, FlagGroup, in_flags, method_name};
use crate::train::watch::options::WatchOptions;

declare_options! {
    /// The options of a run that are neither its method's nor its trainer's.
    pub struct RunOptions {
        /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
        model: Option<String> = None, Text("DIR") in "Input and output";
        /// Examples: a CSV, TSV, JSON, JSONL or Parquet file with prompt and completion, instruction and output, question and answer, messages,
        /// text or input_ids. Give it several times for several files; FILE:2 takes the rows of a file twice
        data: Option<DataSources> = None, Texts("FILE[:N]") in "Input and output";
        /// Directory to write: adapter, train.toml, metrics.jsonl, checkpoint; new or empty
        output: Option<PathBuf> = None, Text("DIR") in "Input and output";
        /// Licence of the adapter for its model card, by the hub's name for it, such as apache-2.0
        license: Option<String> = None, Text("NAME") in "Input and output";
        /// Start from this adapter, a directory or a hub name such as org/name, and take its method, layers, rank and other method options
        init_adapter: Option<PathBuf> = None, Text("DIR") in "Input and output";
        /// bitfit needs a model with biases, and head trains the objective's head alone; loreft+lora trains both methods at once
        #[serde(deserialize_with = "read_method")]
        method: String = "loreft".to_owned(), Text("METHOD") in "Method";
        /// Virtual tokens: start from this text, repeated or cut to the number of virtual tokens
        init_text: Option<String> = None, Text("TEXT") in "Method";
        /// Template of a row: auto (from the row's form), chat, alpaca or plain
        template: Template = Template::Auto, Text("NAME") in "Data";
        /// File of examples for choosing the best adapter, instead of a part of --data
        validation_data: Option<PathBuf> = None, Text("FILE") in "Data";
        /// File of rows on which --kl-weight applies, instead of on the data; with or without replies
        replay: Option<PathBuf> = None, Text("FILE") in "Objective";
        /// Learn the tokens of prompts, too
        learn_prompt: bool = false, Switch("BOOL") in "Data";
        /// Learn only the first N tokens of each reply; the rest is left out
        response_tokens: Option<usize> = None, Count("N") in "Data" if |n: usize| (1..=LARGEST_COUNT).contains(&n), "a whole number of at least 1 and at most 1,000,000,000";
        /// Leave out examples that have no label left when they are cut, instead of failing
        drop_too_long: bool = false, Switch("BOOL") in "Data";
        /// Take the examples in the order of the file: the same as --shuffle none
        no_shuffle: bool = false, Switch("BOOL") in "Data";
        /// Compute the frozen model's activations for each example in every step, instead of once
        no_reuse: bool = false, Switch("BOOL") in "Machine";
        /// Memory of each process for cached activations of the frozen model, such as 4GB or 512MiB [default: half of the free memory, divided
        /// among the processes]
        reuse_memory: Option<ByteSize> = None, Text("SIZE") in "Machine";
        /// Directory for a file of cached activations that do not fit into --reuse-memory [default: they are computed again]
        reuse_dir: Option<PathBuf> = None, Text("DIR") in "Machine";
        /// Processes of this machine that share every step; each takes a batch of its own
        processes: Option<usize> = None, Count("N") in "Machine" if |n: usize| (1..=1024).contains(&n), "a number from 1 to 1024";
        /// Library that sums the gradients of several processes on GPUs: nccl (from GPU to GPU), gloo (through the host), or auto (NCCL if
        /// each process has it and a GPU of its own)
        reduce: Reduction = Reduction::Auto, Text("ENGINE") in "Machine";
    }
}

fn read_method<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    method_name(&text).map_err(serde::de::Error::custom)
}

/// Pairs of options of which only one may be given, as flags and in files.
pub const EXCLUSIVE: [(&str, &str); 2] = [("max_steps", "epochs"), ("no_shuffle", "shuffle")];
/// Pairs that exclude each other as flags only, because files of earlier versions may have both.
const EXCLUSIVE_FLAGS: [(&str, &str); 3] =
    [("reuse_memory", "no_reuse"), ("reuse_dir", "no_reuse"), ("validation_data", "validation")];

/// The flags of `reft train` that are given, by their names in files.
#[derive(Debug, Clone, Deserialize)]
pub struct TrainFlags(pub Table);

impl FlagGroup for TrainFlags {
    fn declared() -> Vec<Declared> {
        declared()
    }
}

/// Every option of a run, in the order of help and files.
pub fn declared() -> Vec<Declared> {
    const PLACES: [&str; 7] =
        ["Input", "Method", "Data", "Objective", "Training", "Watching", "Machine"];
    let of_trainer = Declared::of::<TrainConfig>();
    let of_trainer = of_trainer.into_iter().filter(|option| option.name != "reuse"); // --no-reuse
    let mut options = Declared::of::<RunOptions>();
    options.extend(Declared::of::<ColumnOptions>());
    options.extend(Declared::of::<TurnOptions>());
    options.extend(Declared::of::<ChatOptions>());
    options.extend(Declared::of_methods());
    options.extend(Declared::of::<WatchOptions>());
    options.extend(Declared::of::<ObjectiveOptions>());
    options.extend(of_trainer.chain(Declared::of::<MachineOptions>()));
    options.sort_by_key(|option| PLACES.iter().position(|place| option.heading.starts_with(place)));
    for option in &mut options {
        let mut exclusive = EXCLUSIVE.iter().chain(&EXCLUSIVE_FLAGS);
        option.excludes = exclusive.find(|(one, _)| *one == option.name).map(|(_, other)| *other);
        if option.name == "method" {
            option.help = format!("{}; {}", method_names().join(", "), option.help);
        }
        if option.name == "objective" {
            option.help = format!("{}: {}", option.help, names_by_rows());
        }
    }
    options
}

/// The names of the objectives, by the rows that they take.
fn names_by_rows() -> String {
    let of_rows = |(rows, what): (RowKind, &str)| {
        let own = OBJECTIVES.iter().filter(|objective| objective.rows == rows);
        let names: Vec<&str> = own.map(|objective| objective.name).collect();
        format!("{what}{}", names.join(", "))
    };
    let kinds = [
        (RowKind::Replies, ""),
        (RowKind::Pairs, "of pairs "),
        (RowKind::Labelled, "of labelled texts "),
    ];
    kinds.map(of_rows).join("; ")
}

/// The given options that a struct declares, and its defaults for the others.
///
/// # Errors
/// If a value is invalid for its option.
pub fn part<T: DeclaredOptions>(given: &Table) -> Result<T> {
    let is_own = |name: &str| T::DECLARED.iter().any(|option| option.name == name);
    let own = given.iter().filter(|(name, _)| is_own(name));
    let own: Table = own.map(|(name, value)| (name.clone(), value.clone())).collect();
    own.try_into().context("cannot use the options")
}

impl RunOptions {
    /// Where each of `processes` processes on this machine keeps the frozen model's part of its examples.
    pub fn reuse(&self, processes: usize) -> ReuseConfig {
        let memory = self.reuse_memory.map(|size| size.as_u64());
        ReuseConfig { memory, directory: self.reuse_dir.clone(), processes }
    }

    /// The given options of the objective.
    ///
    /// # Errors
    /// If a value is invalid, or a given option is not used. The message names the flag.
    pub fn objective(&self, given: &Table) -> Result<ObjectiveOptions> {
        let objective: ObjectiveOptions = part(given)?;
        objective.check().map_err(in_flags)?;
        if let (Some(_), None) = (&self.replay, objective.kl_weight) {
            bail!("--replay is given without --kl-weight; give both, or neither");
        }
        let kind = objective.objective;
        let (learns_whole, learns_replies) =
            (kind.rows == RowKind::Replies, kind.rows != RowKind::Labelled && kind.told.is_none());
        if self.learn_prompt && (!learns_whole || self.response_tokens.is_some()) {
            bail!(
                "--learn-prompt learns whole rows by the next token; leave out --objective and --response-tokens, or it"
            );
        }
        if let Some(n) = self.response_tokens.filter(|_| !learns_replies) {
            bail!("--response-tokens is {n}, and objective {kind} learns no reply; leave it out");
        }
        if kind.rows == RowKind::Labelled && self.template != Template::Auto {
            bail!(
                "--template is {}, and the texts of objective {kind} are taken as they stand; leave it out",
                self.template
            );
        }
        if kind.told.is_none() {
            return Ok(objective);
        }
        if objective.kl_weight.is_some() && self.replay.is_none() {
            bail!(
                "--kl-weight keeps next tokens as they are, and the rows of objective {kind} have none; name rows that have some with --replay, or leave it out"
            );
        }
        if !part::<WatchOptions>(given)?.sample_prompt.0.is_empty() {
            bail!("--sample-prompt shows replies, and objective {kind} trains none; leave it out");
        }
        Ok(objective)
    }

    /// The given options of the trainer.
    ///
    /// # Errors
    /// If a value is invalid. The message names the flag.
    pub fn train_config(&self, given: &Table) -> Result<TrainConfig> {
        let mut config: TrainConfig = part(given)?;
        config.reuse = !self.no_reuse;
        if self.no_shuffle {
            config.shuffle = Shuffle::None;
        }
        config.check().map_err(in_flags)?;
        Ok(config)
    }
}

/// An input that every run needs.
///
/// # Errors
/// If it is not given.
pub fn needed<T: Clone>(value: &Option<T>, flag: &str) -> Result<T> {
    value.clone().with_context(|| {
        format!("--{flag} is missing; give it as a flag or in the file of --config")
    })
}

/// The options of a part by name.
///
/// # Errors
/// If they have no form in TOML.
pub fn table(options: &impl Serialize) -> Result<Table> {
    Table::try_from(options).context("cannot write the options as TOML")
}

/// The options as the text of a file.
pub fn in_toml(options: &Table) -> String {
    let line =
        |option: Declared| Some(format!("{} = {}\n", option.name, options.get(option.name)?));
    declared().into_iter().filter_map(line).collect()
}
