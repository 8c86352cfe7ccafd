use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use reft_core::{Positions, TokenGroup};
use reft_methods::{
    INIT_TOKENS, LAYERS, MethodOptions, Methods, POSITION_RULE, POSITIONS, check_adapter,
    load_adapters, load_trainable_adapters, options_of, resolve,
};
use reft_models::{Adapter, Model, ModelDescription, Tokenizer};
use reft_train::{ObjectiveOptions, ReferenceRun};
use serde_json::{Value, json};
use toml::Table;

use crate::model::adapter_directory;
use crate::options::{flag, in_flags};
use crate::train::config_file;
use crate::train::run_options::{RunOptions, table};

/// The method of a run, decided and checked before the model's weights are read.
#[derive(Debug)]
pub struct TrainMethod {
    name: String,
    options: MethodOptions,
    start: Start,
}

/// Where the adapters come from.
#[derive(Debug)]
enum Start {
    New(Methods),
    Adapter(PathBuf),
}

impl TrainMethod {
    /// The method that the options ask for, or the method of the adapter to start from.
    ///
    /// # Errors
    /// If the method does not have an option or a value is invalid (the error names the flag), or if options contradict the adapter to
    /// start from.
    pub fn of(
        run: &RunOptions,
        given: &Table,
        model: &ModelDescription,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self> {
        let mut asked = method_options(given, model)?;
        if let Some(named) = &run.init_adapter {
            let in_start = || format!("cannot start from adapter {}", named.display());
            let dir = &adapter_directory(named)?;
            let (name, options) = Methods::read(dir).with_context(in_start)?.describe();
            if run.init_text.is_some() {
                bail!(
                    "--init-text is the start of a new adapter, leave it out with --init-adapter"
                );
            }
            let method = given.get("method").map(|_| run.method.as_str());
            check_against((method, &asked), (&name, &options), dir, model)?;
            check_adapter(dir, model).with_context(in_start)?;
            return Ok(Self { name, options, start: Start::Adapter(dir.clone()) });
        }
        if let Some(text) = &run.init_text {
            if !options_of(&run.method)?.contains(&&INIT_TOKENS) {
                let method = &run.method;
                bail!("--init-text is for prefix and prompt, the method is {method}; leave it out");
            }
            if asked.get::<Value>(&INIT_TOKENS).is_some() {
                bail!("--init-text and --init-tokens are both given; give one of them");
            }
            asked = asked.with(&INIT_TOKENS, tokens_of(text, tokenizer)?);
        }
        let methods = resolve(&run.method, &asked, model).map_err(in_flags)?;
        let (name, options) = methods.describe();
        Ok(Self { name, options, start: Start::New(methods) })
    }

    /// The adapters before their first step.
    ///
    /// # Errors
    /// If one does not fit the model, or the adapter to start from is broken.
    pub fn adapters(
        &self,
        seed: u64,
        model: &dyn Model,
        model_name: &str,
    ) -> Result<Vec<Box<dyn Adapter>>> {
        match &self.start {
            Start::New(methods) => {
                tch::manual_seed(seed as i64); // for the initial weights
                Ok(methods.build(model, model_name)?)
            }
            Start::Adapter(dir) => load_trainable_adapters(dir, model)
                .with_context(|| format!("cannot start from adapter {}", dir.display())),
        }
    }

    /// The adapters of the reference model for preferences. Empty if the plain model is the reference, or the objective has no reference.
    ///
    /// # Errors
    /// If the reference is `start`, and the run starts from no adapter.
    pub fn reference(
        &self,
        options: &ObjectiveOptions,
        model: &dyn Model,
    ) -> Result<Vec<Box<dyn Adapter>>> {
        let compares = options.objective.compares;
        match (&self.start, options.reference) {
            (Start::New(_), Some(ReferenceRun::Start)) => {
                bail!(
                    "--reference start is the adapter of --init-adapter; give one, or leave it out"
                )
            }
            (Start::Adapter(dir), None | Some(ReferenceRun::Start)) if compares => {
                Ok(load_adapters(dir, model)?)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Indices of the edited tokens of a prompt of `n` tokens. Empty if the method has no option for positions.
    pub fn edited(&self, n: usize) -> BTreeSet<usize> {
        let positions: Option<Positions> = self.options.get(&POSITIONS);
        let rule = self.options.get(&POSITION_RULE).unwrap_or_default();
        let tokens =
            positions.map(|positions| positions.in_prompt(n, rule).group(TokenGroup::FirstAndLast));
        tokens.into_iter().flatten().collect()
    }

    /// All options of the method, with defaults filled in.
    ///
    /// # Errors
    /// If it has no form in TOML.
    pub fn resolved(&self, run: &RunOptions) -> Result<Table> {
        let mut table = table(&self.options)?;
        table.insert("method".to_owned(), self.name.clone().into());
        if run.init_text.is_some() {
            table.remove(INIT_TOKENS.name); // init_text stands for it
        }
        config_file::checked(table).map_err(|(name, reason)| anyhow!("{name}: {reason:#}"))
    }
}

/// The options of methods among all that are given.
fn method_options(given: &Table, model: &ModelDescription) -> Result<MethodOptions> {
    let mut options = MethodOptions::default();
    for option in reft_methods::all_options() {
        let Some(value) = given.get(option.name) else { continue };
        let value = match (option == &LAYERS, value.as_str()) {
            (true, Some("all")) => all_layers(model),
            _ => serde_json::to_value(value)?,
        };
        options.set(option, value).map_err(in_flags)?;
    }
    Ok(options)
}

fn all_layers(model: &ModelDescription) -> Value {
    json!((0..model.num_hidden_layers).collect::<Vec<_>>())
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

/// Checks that the given method and options are those of the adapter to start from.
fn check_against(
    asked: (Option<&str>, &MethodOptions),
    own: (&str, &MethodOptions),
    dir: &Path,
    model: &ModelDescription,
) -> Result<()> {
    let refuse = |option: &str, asked: &Value, own: Option<Value>| {
        let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
        let own = own.as_ref().map_or_else(|| "none".to_owned(), text);
        anyhow!(
            "{} is {}, but the adapter to start from, {}, has {own}; leave the option out",
            flag(option),
            text(asked),
            dir.display()
        )
    };
    if let Some(method) = asked.0.filter(|method| *method != own.0) {
        return Err(refuse("method", &json!(method), Some(json!(own.0))));
    }
    let takes = options_of(own.0)?;
    for (option, asked) in asked.1.given() {
        let mut value = own.1.get(option);
        if option == &LAYERS && takes.contains(&option) {
            value.get_or_insert_with(|| all_layers(model));
        }
        if value.as_ref() != Some(asked) {
            return Err(refuse(option.name, asked, value));
        }
    }
    Ok(())
}
