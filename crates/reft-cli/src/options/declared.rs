use anyhow::{Context, Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches};
use reft_core::{DeclaredOptions, OptionKind};
use reft_methods::{MethodOption, ValueKind, all_options};
use reft_models::plain_reason;
use serde_json::Value as Json;
use toml::{Table, Value};

/// An option as its library declares it. Flags and fields of files are made from it.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Its name in files; the flag has the same name, with `-` for `_`.
    pub name: &'static str,
    /// The help text, with the default.
    pub help: String,
    /// Its heading in the help text.
    pub heading: &'static str,
    /// Another option that cannot be given with it on a command line.
    pub excludes: Option<&'static str>,
    value_name: &'static str,
    alias: Option<&'static str>,
    kind: OptionKind,
    source: Source,
}

/// The declaration that checks the values of an option.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// The option of a method.
    Method(&'static MethodOption),
    /// A struct with a field of the option's name. The function reads a value as this field, and writes it again.
    Field(fn(&str, Value) -> Result<Value>),
}

impl Declared {
    /// The fields of a struct.
    pub fn of<T: DeclaredOptions>() -> Vec<Self> {
        let defaults = Table::try_from(T::default()).unwrap_or_default();
        let default = |name| match defaults.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Float(x) => Some(x.to_string()),
            Value::Table(_) => None,
            other => Some(other.to_string()),
        };
        let declared = T::DECLARED.iter().map(|option| Self {
            name: option.name,
            help: with_default(option.help, default(option.name)),
            heading: option.heading,
            excludes: None,
            value_name: option.value_name,
            alias: None,
            kind: option.kind,
            source: Source::Field(field::<T>),
        });
        declared.collect()
    }

    /// The options of all methods.
    pub fn of_methods() -> Vec<Self> {
        let declared = all_options().into_iter().map(|option| Self {
            name: option.name,
            help: with_default(option.help, Some(option.default).filter(|text| !text.is_empty())),
            heading: option.heading,
            excludes: None,
            value_name: option.value_name,
            alias: option.alias,
            kind: match option.value {
                ValueKind::Count => OptionKind::Count,
                ValueKind::Number => OptionKind::Number,
                ValueKind::Switch => OptionKind::Switch,
                _ => OptionKind::Text,
            },
            source: Source::Method(option),
        });
        declared.collect()
    }

    /// The flag.
    pub fn flag(self) -> Arg {
        let flag = self.name.replace('_', "-");
        let (flag, action) = match (self.kind, flag.strip_suffix('s')) {
            (OptionKind::Table, Some(one)) => (one.to_owned(), ArgAction::Append),
            (OptionKind::Texts, _) => (flag, ArgAction::Append),
            _ => (flag, ArgAction::Set),
        };
        let arg = Arg::new(self.name)
            .long(flag)
            .action(action)
            .value_name(self.value_name)
            .help(self.help.clone())
            .help_heading(self.heading)
            .visible_aliases(self.alias)
            .conflicts_with_all(self.excludes);
        let arg = match self.kind {
            OptionKind::Count | OptionKind::Number => arg.allow_negative_numbers(true),
            OptionKind::Switch => {
                arg.num_args(0..=1).default_missing_value("true").require_equals(true)
            }
            OptionKind::Text | OptionKind::Texts | OptionKind::Table => arg,
        };
        arg.value_parser(move |text: &str| self.parse(text))
    }

    /// Parses a flag's text into a value as files have it.
    fn parse(&self, text: &str) -> Result<Value> {
        if let Source::Method(option) = self.source {
            return in_files(option, option.parse(text)?);
        }
        let value = match self.kind {
            OptionKind::Count => text.parse().ok().map(Value::Integer),
            OptionKind::Number => text.parse().ok().map(Value::Float),
            OptionKind::Switch => text.parse().ok().map(Value::Boolean),
            OptionKind::Text | OptionKind::Texts => None,
            OptionKind::Table => Some(Value::Table(entry(text)?)),
        };
        if value.is_none() && self.kind == OptionKind::Count && is_natural(text) {
            bail!("{} is {text}, expected at most {}", self.name, i64::MAX);
        }
        self.checked(value.unwrap_or_else(|| Value::String(text.to_owned())))
    }

    /// The value on a command line, if any. A table collects all its entries, and a list of texts all its values.
    pub fn given(&self, matches: &ArgMatches) -> Option<Value> {
        let values = matches.get_many::<Value>(self.name)?.cloned();
        let one = |above: Value, below: Value| match (above, below) {
            (Value::Table(mut table), Value::Table(entries)) => {
                table.extend(entries);
                Value::Table(table)
            }
            (above, below) if self.kind == OptionKind::Texts => {
                let mut texts = match above {
                    Value::Array(texts) => texts,
                    first => vec![first],
                };
                texts.push(below);
                Value::Array(texts)
            }
            (_, last) => last,
        };
        values.reduce(one)
    }

    /// Checks a value of the option, and returns it as files keep it.
    ///
    /// # Errors
    /// If the value is invalid. The error names the value found and the values expected.
    pub fn checked(&self, value: Value) -> Result<Value> {
        let field = match self.source {
            Source::Method(option) => {
                return in_files(option, option.checked(serde_json::to_value(value)?)?);
            }
            Source::Field(field) => field,
        };
        let (is_one, expected) = match self.kind {
            OptionKind::Count => (value.as_integer().is_some_and(|n| n >= 0), "a whole number"),
            OptionKind::Number => (value.is_integer() || value.is_float(), "a number"),
            OptionKind::Switch => (value.is_bool(), "true or false"),
            OptionKind::Text => (value.is_str(), "a text"),
            OptionKind::Texts => {
                let texts = value.as_array().map(|list| list.iter().all(Value::is_str));
                (value.is_str() || texts == Some(true), "a text or a list of texts")
            }
            OptionKind::Table => (value.is_table(), "values by name, as { name = value }"),
        };
        if !is_one {
            bail!("{} is {value}, expected {expected}", self.name);
        }
        field(self.name, value)
    }
}

/// One entry of a table, NAME=VALUE: JSON is taken as such, anything else as a text.
fn entry(text: &str) -> Result<Table> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.trim().is_empty())
        .with_context(|| format!("{text:?} is no NAME=VALUE"))?;
    let json = serde_json::from_str(value).unwrap_or_else(|_| Json::from(value));
    let value = Value::try_from(json)
        .with_context(|| format!("{name} is {value}, which files of options cannot hold"))?;
    Ok(Table::from_iter([(name.trim().to_owned(), value)]))
}

fn is_natural(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_digit())
}

fn with_default(help: &str, default: Option<impl AsRef<str>>) -> String {
    let default = default.map(|text| format!(" [default: {}]", text.as_ref()));
    help.to_owned() + &default.unwrap_or_default()
}

/// Writes layers as flags have them, `3;9;18`. Other values stay unchanged.
fn in_files(option: &MethodOption, value: Json) -> Result<Value> {
    match (option.value, value) {
        (ValueKind::Layers, Json::Array(layers)) => {
            let layers: Vec<String> = layers.iter().map(Json::to_string).collect();
            Ok(Value::String(layers.join(";")))
        }
        (_, value) => Value::try_from(value).with_context(|| format!("cannot use {}", option.name)),
    }
}

fn field<T: DeclaredOptions>(name: &str, value: Value) -> Result<Value> {
    let one = Table::from_iter([(name.to_owned(), value.clone())]);
    let options: T = one.try_into().map_err(|error: toml::de::Error| {
        anyhow!("{}", plain_reason(&error.message()).replace('`', ""))
    })?;
    let mut table = Table::try_from(options).with_context(|| format!("cannot use {name}"))?;
    Ok(table.remove(name).unwrap_or(value)) // an empty table is not serialised
}
