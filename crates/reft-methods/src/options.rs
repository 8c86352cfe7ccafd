//! The options of methods. Each is declared once; the command line, recipes, files and documentation use this declaration.

use reft_core::Positions;
use reft_models::Component;
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{Error, Result, TargetModules};

/// An option that one or several methods have.
#[derive(Debug, PartialEq, Eq)]
pub struct MethodOption {
    /// Its name in files; the flag has the same name, with `-` for `_`.
    pub name: &'static str,
    /// The type of its values.
    pub value: ValueKind,
    /// The placeholder of a value in help.
    pub value_name: &'static str,
    /// Its heading in the help.
    pub heading: &'static str,
    /// Its help text, in one line.
    pub help: &'static str,
    /// Its default, as the help shows it.
    pub default: &'static str,
    /// Another name of the flag.
    pub alias: Option<&'static str>,
}

/// The type of an option's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueKind {
    /// A whole number; each method checks its range.
    Count,
    /// A number.
    Number,
    /// Yes or no.
    Switch,
    /// One of some names.
    Name(&'static [&'static str]),
    /// Layers, counted from 0.
    Layers,
    /// Prompt positions, `f7+l7`.
    Positions,
    /// Components of a block by name.
    Components,
    /// Projections, as [`TargetModules`] says them.
    Modules,
    /// Token ids.
    Tokens,
}

const EVERY: &str = "Method";
const REFT: &str = "Method: ReFT";
const MODULES: &str = "Method: LoRA, (IA)³ and others on projections";
const VIRTUAL: &str = "Method: prefix and prompt";
const BRANCHES: &str = "Method: RED, BREP and bottleneck adapters";

/// Declares options, and the list of them.
macro_rules! method_options {
    ($($name:ident: $text:literal, $value:expr, $value_name:literal, $heading:ident, $default:literal,
       $alias:expr => $help:literal;)*) => {
        $(#[doc = $help] pub static $name: MethodOption = MethodOption {
            name: $text,
            value: $value,
            value_name: $value_name,
            heading: $heading,
            help: $help,
            default: $default,
            alias: $alias,
        };)*

        /// The options declared here, in the order that files keep them in. The options of single methods follow.
        static SHARED: &[&MethodOption] = &[$(&$name),*];
    };
}

use ValueKind::{Components, Count, Layers, Modules, Name, Number, Switch, Tokens};

method_options! {
    LAYERS: "layers", Layers, "LAYERS", EVERY, "all", None =>
        "Layers, counted from 0: all, 15, or 3;9;18";
    RANK: "rank", Count, "R", EVERY, "8", None =>
        "Rank r: dimension of the subspace that ReFT edits, B·A of LoRA";
    DROPOUT: "dropout", Number, "P", EVERY, "0", Some("lora-dropout") =>
        "Probability of dropout in training, on ReFT's edit or LoRA's input, 0 to below 1";
    COMPONENT: "component", Name(&["block_input", "attention_output", "mlp_output", "block_output"]), "COMPONENT", REFT, "block_output", None =>
        "Where in a layer: block_input, attention_output, mlp_output or block_output";
    POSITIONS: "positions", ValueKind::Positions, "POSITIONS", REFT, "l1", None =>
        "Prompt tokens to edit: l1 = the last one, f7+l7 = the first and the last 7, all = every one";
    POSITION_RULE: "position_rule", Name(&["paper", "pyreft"]), "RULE", REFT, "paper", None =>
        "Rule for prompts shorter than the positions: paper or pyreft";
    SHARE_WEIGHTS: "share_weights", Switch, "BOOL", REFT, "false", None =>
        "One intervention per layer for first and last tokens (tied), not one for each";
    TOKENS: "tokens", Name(&["all", "prompt"]), "TOKENS", EVERY, "all", None =>
        "Tokens that the method acts on, where it could act on all: all, or the prompt's alone";
    ORTHONORMAL_MAP: "orthonormal_map", Name(&["householder", "qr"]), "MAP", REFT, "householder", None =>
        "How the subspace is kept orthonormal: householder or qr";
    ACT_FN: "act_fn", Name(&["linear", "relu", "gelu", "silu", "tanh", "sigmoid"]), "NAME", EVERY, "", None =>
        "Activation: of ReFT's learned source (linear), of bottleneck adapters (relu); gelu, silu, tanh, sigmoid";
    ADD_BIAS: "add_bias", Switch, "BOOL", REFT, "false", None =>
        "Give the projection of noreft a bias";
    MAX_EDIT_NORM: "max_edit_norm", Number, "X", REFT, "none", None =>
        "Longest edit, as a multiple of the hidden state's norm";
    INIT: "init", Name(&["identity", "reference", "vocabulary", "random"]), "INIT", EVERY, "", None =>
        "Start: identity or reference (ReFT; identity where the method has one), vocabulary or random (prompt; vocabulary)";
    INIT_TOKENS: "init_tokens", Tokens, "IDS", VIRTUAL, "", None =>
        "Start from these token ids, as 12,7,99";
    ALPHA: "alpha", Number, "X", MODULES, "twice the rank", Some("lora-alpha") =>
        "LoRA: alpha of scaling = alpha / rank";
    TARGET_MODULES: "target_modules", Modules, "MODULES", MODULES, "all of a block; (IA)³: k_proj,v_proj,down_proj", None =>
        "Projections, as q_proj,v_proj, a regular expression, or all-linear";
    FEEDFORWARD_MODULES: "feedforward_modules", Modules, "MODULES", MODULES, "down_proj", None =>
        "(IA)³: the target modules whose input is rescaled";
    N_VIRTUAL_TOKENS: "n_virtual_tokens", Count, "N", VIRTUAL, "20", None =>
        "Number of virtual tokens";
    ENCODER_HIDDEN_SIZE: "encoder_hidden_size", Count, "N", VIRTUAL, "none", None =>
        "Prefix: inner size of an MLP that makes the prefix while it trains";
    COMPONENTS: "components", Components, "COMPONENTS", BRANCHES, "mlp_output; BREP: up_proj", None =>
        "Where in a layer: mlp_output, block_output (RED), attention_output (bottleneck); BREP: a projection";
    BOTTLENECK_SIZE: "bottleneck_size", Count, "N", BRANCHES, "64", None =>
        "Bottleneck adapters: inner size";
}

/// Options and the fields of adapters' configurations, PEFT's and ReFT's, that have another name.
const FIELDS: [(&str, &str); 5] = [
    ("layers", "layers_to_transform"),
    ("rank", "r"),
    ("rank", "low_rank_dimension"),
    ("dropout", "lora_dropout"),
    ("alpha", "lora_alpha"),
];

/// The place of an option among others: the order above, then options of single methods by name.
fn order(option: &MethodOption) -> (usize, &'static str) {
    let place = SHARED.iter().position(|shared| *shared == option);
    (place.unwrap_or(SHARED.len()), option.name)
}

/// Options of several methods, each once, in the order that files keep them in.
pub(crate) fn union<'a>(
    methods: impl IntoIterator<Item = &'a [&'static MethodOption]>,
) -> Vec<&'static MethodOption> {
    let mut options: Vec<&MethodOption> = methods.into_iter().flatten().copied().collect();
    options.sort_by_key(|option| order(option));
    options.dedup();
    options
}

impl MethodOption {
    /// Its flag: `--n-virtual-tokens`.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// Parses a flag's text into the value that files keep.
    ///
    /// # Errors
    /// [`Error::OptionValue`].
    pub fn parse(&self, text: &str) -> Result<Value> {
        let text = text.trim();
        let list = || text.split([',', ';']).map(str::trim);
        let value = match self.value {
            ValueKind::Count => text.parse::<i64>().ok().map(|n| json!(n)),
            ValueKind::Number => {
                text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| json!(x))
            }
            ValueKind::Switch => text.parse::<bool>().ok().map(|yes| json!(yes)),
            ValueKind::Tokens => {
                let ids: Option<Vec<i64>> = list().map(|part| part.parse().ok()).collect();
                ids.map(|ids| json!(ids))
            }
            ValueKind::Components => Some(json!(list().collect::<Vec<_>>())),
            ValueKind::Modules => Some(json!(TargetModules::from(text))),
            ValueKind::Layers | ValueKind::Name(_) | ValueKind::Positions => None,
        };
        self.checked(value.unwrap_or_else(|| json!(text)))
    }

    /// A value of a file in its normal form: layers as a list, numbers in their kind.
    ///
    /// # Errors
    /// [`Error::OptionValue`].
    pub fn checked(&self, value: Value) -> Result<Value> {
        let one_of;
        let (kept, expected) = match self.value {
            ValueKind::Count => (read_as::<i64>(&value), "a whole number"),
            ValueKind::Number => (read_as::<f64>(&value), "a number"),
            ValueKind::Switch => (read_as::<bool>(&value), "true or false"),
            ValueKind::Name(names) => {
                one_of = format!("one of {}", names.join(", "));
                let is_one = |name: &Value| names.iter().any(|own| name == own);
                (Some(value.clone()).filter(is_one), &*one_of)
            }
            ValueKind::Positions => {
                let positions = value.as_str().map(str::parse::<Positions>).transpose()?;
                (positions.map(|positions| json!(positions)), "positions such as f7+l7, or all")
            }
            ValueKind::Components => {
                let names: Option<Vec<String>> = serde_json::from_value(value.clone()).ok();
                let parse = |name: &String| name.parse::<Component>();
                let known =
                    names.map(|names| names.iter().map(parse).collect::<Result<Vec<_>, _>>());
                (known.transpose()?.map(|known| json!(known)), "a list of components")
            }
            ValueKind::Modules => {
                (read_as::<TargetModules>(&value), "a list of modules, or a pattern")
            }
            ValueKind::Tokens => (read_as::<Vec<i64>>(&value), "a list of token ids"),
            ValueKind::Layers => (
                layers(&value),
                "all, one layer such as 15, or several such as 3;9;18 (counted from 0), each once",
            ),
        };
        kept.ok_or_else(|| {
            let found =
                value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
            self.refuse(found, expected)
        })
    }

    /// The error for a value that is not allowed.
    pub(crate) fn refuse(&self, found: impl ToString, expected: &str) -> Error {
        let (found, expected) = (found.to_string(), expected.to_owned());
        Error::OptionValue { option: self.name, found, expected }
    }
}

/// Reads a value as a type, and writes it in that type's form; `None` if it is not of the type.
fn read_as<T: DeserializeOwned + Serialize>(value: &Value) -> Option<Value> {
    let value: T = serde_json::from_value(value.clone()).ok()?;
    serde_json::to_value(value).ok()
}

/// Layers as a sorted list, or "all".
fn layers(value: &Value) -> Option<Value> {
    let mut layers: Vec<usize> = match value {
        Value::String(text) if text.trim() == "all" => return Some(json!("all")),
        Value::String(text) => {
            text.split([';', ',']).map(|part| part.trim().parse().ok()).collect::<Option<_>>()?
        }
        Value::Number(_) => vec![serde_json::from_value(value.clone()).ok()?],
        _ => serde_json::from_value(value.clone()).ok()?,
    };
    layers.sort_unstable();
    let is_set = !layers.is_empty() && layers.windows(2).all(|pair| pair[0] < pair[1]);
    is_set.then(|| json!(layers))
}

/// Options with values, of any methods, from a command line or a TOML table. An option that a method does not have is an error when the
/// method is resolved.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MethodOptions(Vec<(&'static MethodOption, Value)>);

impl MethodOptions {
    /// The same with one more option.
    ///
    /// # Panics
    /// If the value has no form in JSON, or is not allowed for the option.
    #[must_use]
    pub fn with(mut self, option: &'static MethodOption, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).expect("invariant: a value of an option is plain");
        self.set(option, value).expect("invariant: a value of the option");
        self
    }

    /// [`Self::with`] if there is a value.
    #[must_use]
    pub fn with_some<T: Serialize>(self, option: &'static MethodOption, value: Option<T>) -> Self {
        match value {
            Some(value) => self.with(option, value),
            None => self,
        }
    }

    /// Sets an option; "all" for layers leaves it open.
    ///
    /// # Errors
    /// [`Error::OptionValue`].
    pub fn set(&mut self, option: &'static MethodOption, value: Value) -> Result<()> {
        let value = option.checked(value)?;
        self.0.retain(|(own, _)| *own != option);
        if option.value != ValueKind::Layers || value != "all" {
            self.0.push((option, value));
            self.0.sort_by_key(|(own, _)| order(own));
        }
        Ok(())
    }

    /// The options that a configuration has fields for, by their own names or as [`FIELDS`] says.
    pub(crate) fn of_config(options: &[&'static MethodOption], config: &impl Serialize) -> Self {
        let config = json!(config);
        let given = |option: &MethodOption| {
            let other =
                FIELDS.iter().filter(|(name, _)| *name == option.name).map(|(_, field)| *field);
            let mut values = other.chain([option.name]).filter_map(|field| config.get(field));
            values.find(|value| !value.is_null()).cloned()
        };
        options.iter().fold(Self::default(), |all, option| all.with_some(option, given(option)))
    }

    /// The value of an option, if it is given.
    pub fn get<T: DeserializeOwned>(&self, option: &MethodOption) -> Option<T> {
        let (_, value) = self.0.iter().find(|(own, _)| *own == option)?;
        let value = serde_json::from_value(value.clone());
        Some(value.expect("invariant: values were checked when they were set"))
    }

    /// The options that are given, with their values.
    pub fn given(&self) -> impl Iterator<Item = (&'static MethodOption, &Value)> {
        self.0.iter().map(|(option, value)| (*option, value))
    }

    /// Some of the options.
    pub(crate) fn only(&self, options: &[&'static MethodOption]) -> Self {
        Self(self.0.iter().filter(|(own, _)| options.contains(own)).cloned().collect())
    }

    /// The options whose value is the same in all methods that have them; the others are left open.
    pub(crate) fn agreed(parts: &[(&[&'static MethodOption], Self)]) -> Self {
        let mut agreed = Self::default();
        for option in union(parts.iter().map(|(own, _)| *own)) {
            let having = parts.iter().filter(|(own, _)| own.contains(&option));
            let mut values = having.map(|(_, options)| options.get::<Value>(option));
            if let Some(Some(first)) = values.next()
                && values.all(|value| value.as_ref() == Some(&first))
            {
                agreed.0.push((option, first));
            }
        }
        agreed
    }

    /// The layers asked for; all of `n` without.
    pub(crate) fn layers_of(&self, n: usize) -> Vec<usize> {
        self.get(&LAYERS).unwrap_or_else(|| (0..n).collect())
    }

    /// The components asked for.
    pub(crate) fn components(&self) -> Vec<Component> {
        self.get(&COMPONENTS).unwrap_or_else(|| vec![Component::MlpOutput])
    }
}

impl Serialize for MethodOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(option, value)| (option.name, value)))
    }
}

#[cfg(test)]
mod tests {
    use reft_core::{Activation, Init, MapKind, PositionRule};

    use super::*;

    fn names<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str) -> Vec<&'static str> {
        all.iter().map(|value| name(*value)).collect()
    }

    /// An option accepts the same names as the type that it is read into.
    #[test]
    fn accepted_names_are_those_of_the_types() {
        let accepted = |option: &MethodOption| match option.value {
            ValueKind::Name(names) => names.to_vec(),
            _ => Vec::new(),
        };
        assert_eq!(accepted(&ACT_FN), names(Activation::ALL, Activation::name));
        assert_eq!(accepted(&POSITION_RULE), names(PositionRule::ALL, PositionRule::name));
        assert_eq!(accepted(&ORTHONORMAL_MAP), names(MapKind::ALL, MapKind::name));
        assert_eq!(accepted(&INIT)[..2], names(Init::ALL, Init::name));
    }

    #[test]
    fn layers_are_all_one_or_several_in_any_order() {
        let parse = |text: &str| LAYERS.parse(text).ok();
        assert_eq!(parse("all"), Some(json!("all")));
        assert_eq!(parse("15"), Some(json!([15])));
        assert_eq!(parse("18;3;9"), Some(json!([3, 9, 18])));
        assert_eq!(parse("3, 9,18"), Some(json!([3, 9, 18])));
        for wrong in ["1;1", "", ";", "1;", "-1", "all;1", "one", "1..3", "99999999999999999999"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        let value = |value: Value| LAYERS.checked(value).ok();
        assert_eq!(value(json!([18, 3, 9])), Some(json!([3, 9, 18])));
        assert_eq!(value(json!(15)), Some(json!([15])));
        for wrong in [json!([1, 1]), json!(-1), json!(1.5), json!([]), json!([-1])] {
            assert_eq!(value(wrong.clone()), None, "{wrong}");
        }
    }
}
