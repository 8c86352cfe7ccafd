//! The method of a training run: from the options of its flags to an adapter before its first step.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use reft_bench::{
    MethodConfig, MethodOptions, adapter_options, load_trainable_adapter, method_option_names,
};
use reft_models::{Adapter, Decoder, DecoderConfig, Tokenizer};
use serde_json::Value;
use toml::Table;

use crate::config_file;
use crate::model::check_adapter_directory;
use crate::train_options::TrainOptions;

/// What a run trains, decided and checked before the model's weights are read.
#[derive(Debug)]
pub struct TrainMethod {
    name: String,
    options: MethodOptions,
    start: Start,
}

/// Where the adapter comes from.
#[derive(Debug)]
enum Start {
    New(Box<MethodConfig>),
    Adapter(PathBuf),
}

impl TrainMethod {
    /// The method that the options ask for, or that of the adapter to start from.
    ///
    /// # Errors
    /// An option that the method does not have, or a value that cannot be, by its flag; options that contradict the adapter to start
    /// from.
    pub fn of(
        options: &TrainOptions,
        model: &DecoderConfig,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        if let Some(dir) = &options.init_adapter {
            return Self::of_adapter(dir, options, model);
        }
        let name = options.method.clone().unwrap_or_default();
        let takes = method_option_names(name.as_str())?;
        let mut asked = method_options(options, model)?;
        if takes.contains(&"share_weights") {
            asked.share_weights.get_or_insert(false); // as its flag says
        }
        if let Some(text) = &options.init_text {
            if !takes.contains(&"init_tokens") {
                bail!("--init-text is for prefix and prompt, the method is {name}; leave it out");
            }
            if options.init_tokens.is_some() {
                bail!("--init-text and --init-tokens are both given; give one of them");
            }
            asked.init_tokens = Some(tokens_of(text, tokenizer)?);
        }
        let config = MethodConfig::resolve(name.as_str(), &asked, model).map_err(in_flags)?;
        let (name, options) = config.describe()?;
        Ok(Self { name, options, start: Start::New(Box::new(config)) })
    }

    fn of_adapter(dir: &Path, options: &TrainOptions, model: &DecoderConfig) -> Result<Self> {
        let in_start = || format!("cannot start from adapter {}", dir.display());
        check_adapter_directory(dir)?;
        let (name, own) = adapter_options(dir).with_context(in_start)?;
        if options.init_text.is_some() {
            bail!("--init-text is the start of a new adapter, leave it out with --init-adapter");
        }
        check_against(options, &name, &own, dir, model)?;
        reft_bench::check_adapter(dir, model).with_context(in_start)?;
        Ok(Self { name, options: own, start: Start::Adapter(dir.to_owned()) })
    }

    /// The adapter before its first step.
    ///
    /// # Errors
    /// If it does not fit the model, or the adapter to start from is broken.
    pub fn adapter(&self, seed: u64, decoder: &Decoder, model: &str) -> Result<Box<dyn Adapter>> {
        match &self.start {
            Start::New(config) => {
                tch::manual_seed(seed as i64); // the start
                Ok(config.build(decoder, model)?)
            }
            Start::Adapter(dir) => load_trainable_adapter(dir, decoder)
                .with_context(|| format!("cannot start from adapter {}", dir.display())),
        }
    }

    /// The method's part of the options in force, none left out.
    ///
    /// # Errors
    /// If it has no form in TOML.
    pub fn resolved(&self, asked: &TrainOptions) -> Result<Table> {
        let mut table = Table::try_from(&self.options).context("cannot write the options")?;
        table.insert("method".to_owned(), self.name.clone().into());
        if let Some(text) = &asked.init_text {
            table.remove("init_tokens");
            table.insert("init_text".to_owned(), text.clone().into());
        }
        Ok(table)
    }
}

/// The options of methods among all that are given.
fn method_options(options: &TrainOptions, model: &DecoderConfig) -> Result<MethodOptions> {
    let names = MethodOptions::names();
    let mut table = config_file::table(options)?;
    table.retain(|name, _| name != "layers" && names.contains(&name));
    let layers = options.layers.as_ref();
    let layers = layers.map(|layers| layers.of_model(model.num_hidden_layers)).transpose()?;
    let others: MethodOptions = table.try_into().context("cannot use the method's options")?;
    Ok(MethodOptions { layers, ..others })
}

/// The tokens of the text that virtual tokens start from.
fn tokens_of(text: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<i64>> {
    let Some(tokenizer) = tokenizer else {
        bail!("--init-text needs the model's tokenizer, and it has none; give --init-tokens");
    };
    let tokens = tokenizer.encode(text, false)?;
    if tokens.is_empty() {
        bail!("--init-text {text:?} has no token; give at least one word");
    }
    Ok(tokens)
}

/// The error with options named as on the command line.
pub fn in_flags(error: reft_bench::Error) -> anyhow::Error {
    match error {
        reft_bench::Error::UnknownOption { method, option, accepted } => {
            let accepted: Vec<String> = match accepted.as_str() {
                "none" => vec![accepted],
                names => names.split(", ").map(flag).collect(),
            };
            let accepted = accepted.join(", ");
            anyhow!(
                "{} is no option of method {method}, which takes {accepted}; leave it out",
                flag(&option)
            )
        }
        reft_bench::Error::OptionValue { option, found, expected } => {
            anyhow!("{} is {found}, expected {expected}", flag(option))
        }
        other => other.into(),
    }
}

/// The flag of an option.
fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}

/// Checks that what the options say of the adapter is what the adapter to start from says.
fn check_against(
    options: &TrainOptions,
    name: &str,
    own: &MethodOptions,
    dir: &Path,
    model: &DecoderConfig,
) -> Result<()> {
    let with_method = |options: &MethodOptions, method: Option<&str>| -> Result<Value> {
        let mut value = serde_json::to_value(options).context("cannot compare the options")?;
        value["method"] = method.into();
        Ok(value)
    };
    let asked = method_options(options, model)?;
    let mut own = own.clone();
    if method_option_names(name)?.contains(&"layers") {
        own.layers.get_or_insert_with(|| (0..model.num_hidden_layers).collect());
    }
    let asked = with_method(&asked, options.method.as_ref().map(|name| name.as_str()))?;
    let own = with_method(&own, Some(name))?;
    let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
    for (option, asked) in asked.as_object().into_iter().flatten() {
        let own = own.get(option);
        if asked.is_null() || own == Some(asked) {
            continue;
        }
        let (asked, own) = (text(asked), own.map_or_else(|| "none".to_owned(), text));
        bail!(
            "{} is {asked}, but the adapter to start from, {}, has {own}; leave the option out",
            flag(option),
            dir.display()
        );
    }
    Ok(())
}
