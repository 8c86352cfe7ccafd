use reft_core::{Activation, Init, InterventionConfig, MapKind, Method, PositionRule, Positions};
use reft_models::{Adapter, BaseModel, Component, Decoder, DecoderConfig, ReftAdapter, ReftConfig};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{BottleneckAdapter, BottleneckConfig, BottleneckKind};
use crate::combined::CombinedAdapter;
use crate::error::{Error, Result};
use crate::full::FullAdapter;
use crate::ia3::Ia3Adapter;
use crate::lora::LoraAdapter;
use crate::peft_config::{Ia3Config, LoraConfig, PrefixConfig, PromptConfig};
use crate::prefix::PrefixAdapter;
use crate::prompt::{PromptAdapter, PromptInit};
use crate::red::{RedAdapter, RedConfig};
use crate::target_modules::TargetModules;

/// The options of all methods, as a command line or a TOML table gives them. An option that the method does not have is an error.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodOptions {
    /// Layers, 0-based; all of them by default (ReFT, LoRA, RED, bottleneck adapters).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// Rank r: the subspace of ReFT methods, `B A` of LoRA; 8 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<i64>,
    /// Dropout: on the edit of ReFT methods, on the input of LoRA; 0 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// ReFT: where in a block; block_output by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// ReFT: prompt tokens edited; f7+l7 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<Positions>,
    /// ReFT: what happens to prompts shorter than the positions; paper by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position_rule: Option<PositionRule>,
    /// ReFT: one intervention per layer for both ends of the prompt; true by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_weights: Option<bool>,
    /// ReFT: how `R` is kept orthonormal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orthonormal_map: Option<MapKind>,
    /// Activation: of ReFT's learned source (linear by default), of bottleneck adapters (relu by default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub act_fn: Option<Activation>,
    /// ReFT: a bias of noreft's projection; false by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_bias: Option<bool>,
    /// Start: identity or reference (ReFT), random or vocabulary (prompt).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Prefix and prompt: the tokens of a text to start from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_tokens: Option<Vec<i64>>,
    /// LoRA: alpha of `scaling = alpha / rank`; twice the rank by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// LoRA and (IA)³: projections; all seven, and k_proj, v_proj, down_proj, by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
    /// (IA)³: projections whose input is rescaled; down_proj by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedforward_modules: Option<TargetModules>,
    /// Prefix and prompt: number of virtual tokens; 20 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_virtual_tokens: Option<i64>,
    /// Prefix: inner size of an MLP that makes the prefix while it trains; none by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_hidden_size: Option<i64>,
    /// RED and bottleneck adapters: where in a block; mlp_output by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub components: Option<Vec<String>>,
    /// Bottleneck adapters: inner size; 64 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck_size: Option<i64>,
}

/// A method with everything decided, checked against a model.
#[derive(Debug, Clone, PartialEq)]
pub enum MethodConfig {
    /// A representation edit; its base model has no name yet.
    Reft(Box<ReftConfig>),
    /// LoRA, rsLoRA or DoRA.
    Lora(Box<LoraConfig>),
    /// Prefix tuning, and the text that it starts from.
    Prefix(Box<PrefixConfig>, Option<Vec<i64>>),
    /// Prompt tuning, and its start.
    Prompt(Box<PromptConfig>, PromptInit),
    /// (IA)³.
    Ia3(Box<Ia3Config>),
    /// RED; its base model has no name yet.
    Red(Box<RedConfig>),
    /// Series or parallel adapters; their base model has no name yet.
    Bottleneck(Box<BottleneckConfig>),
    /// Full fine-tuning.
    Full,
    /// Several at once.
    Combined(Vec<MethodConfig>),
}

const REFT_OPTIONS: &[&str] = &[
    "layers",
    "rank",
    "dropout",
    "component",
    "positions",
    "position_rule",
    "share_weights",
    "orthonormal_map",
    "act_fn",
    "add_bias",
    "init",
];
const LORA_OPTIONS: &[&str] = &["layers", "rank", "dropout", "alpha", "target_modules"];
const BOTTLENECK_OPTIONS: &[&str] = &["layers", "act_fn", "components", "bottleneck_size"];

/// The methods that are not ReFT's, and the options that each has.
const BASELINES: [(&str, &[&str]); 10] = [
    ("lora", LORA_OPTIONS),
    ("rslora", LORA_OPTIONS),
    ("dora", LORA_OPTIONS),
    ("prefix", &["n_virtual_tokens", "encoder_hidden_size", "init_tokens"]),
    ("prompt", &["n_virtual_tokens", "init", "init_tokens"]),
    ("ia3", &["target_modules", "feedforward_modules"]),
    ("red", &["layers", "components"]),
    ("series-adapter", BOTTLENECK_OPTIONS),
    ("parallel-adapter", BOTTLENECK_OPTIONS),
    ("full", &[]),
];

/// The name of every method that can stand alone.
pub fn method_names() -> Vec<&'static str> {
    let reft = Method::ALL.iter().map(|method| method.name());
    reft.chain(BASELINES.map(|(name, _)| name)).collect()
}

/// The options of a method, or of several joined with `+`.
///
/// # Errors
/// [`Error::UnknownMethod`].
pub fn method_option_names(method: &str) -> Result<Vec<&'static str>> {
    let mut names = Vec::new();
    for one in method.split('+') {
        let own = options_of(one.trim())?;
        names.extend(own.iter().filter(|name| !names.contains(*name)).collect::<Vec<_>>());
    }
    Ok(names)
}

impl MethodConfig {
    /// Decides everything that the options leave open, and checks it against a model: nothing is left to fail when training starts.
    ///
    /// Names joined with `+` are used at once; each takes the options that it has.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`], [`Error::UnknownOption`], [`Error::OptionValue`], or what the method itself refuses.
    pub fn resolve(name: &str, options: &MethodOptions, model: &DecoderConfig) -> Result<Self> {
        let names: Vec<&str> = name.split('+').map(str::trim).collect();
        let accepted = method_option_names(name)?;
        if let Some(option) = options.given().find(|option| !accepted.contains(&option.as_str())) {
            let accepted = if accepted.is_empty() { "none".into() } else { accepted.join(", ") };
            return Err(Error::UnknownOption { method: name.to_owned(), option, accepted });
        }
        if let &[name] = names.as_slice() {
            return Self::resolve_one(name, options, model);
        }
        let one = |name: &&str| Self::resolve_one(name, &options.of_method(name)?, model);
        Ok(Self::Combined(names.iter().map(one).collect::<Result<_>>()?))
    }

    fn resolve_one(name: &str, options: &MethodOptions, model: &DecoderConfig) -> Result<Self> {
        let all_layers = || (0..model.num_hidden_layers).collect::<Vec<_>>();
        let layers = options.layers.clone();
        let base_model = BaseModel::of(model, "");
        let rank = options.rank.unwrap_or(8);
        match name {
            "lora" | "rslora" | "dora" => {
                let alpha = options.alpha.unwrap_or(2.0 * rank as f64);
                let all = || TargetModules::of(&Component::PROJECTIONS);
                let target_modules = options.target_modules.clone().unwrap_or_else(all);
                let mut config = LoraConfig::new(rank, alpha, target_modules);
                config.lora_dropout = options.dropout.unwrap_or(0.0);
                config.layers_to_transform = layers.filter(|layers| *layers != all_layers());
                config.use_rslora = name == "rslora";
                config.use_dora = name == "dora";
                config.check()?;
                for projection in
                    config.target_modules.select(model, config.layers_to_transform.as_deref())?
                {
                    config.rank_and_scaling(&projection.module)?;
                }
                Ok(Self::Lora(Box::new(config)))
            }
            "prefix" => {
                let n = options.virtual_tokens()?;
                let encoder = options.encoder_hidden_size;
                positive("encoder_hidden_size", encoder.unwrap_or(1))?;
                let text = options.init_tokens.clone();
                if text.is_some() && encoder.is_some() {
                    return Err(Error::OptionValue {
                        option: "init_tokens",
                        found: "given with encoder_hidden_size".into(),
                        expected: "one of the two".into(),
                    });
                }
                let text = text.map(|text| cycled(text, n)).transpose()?;
                Ok(Self::Prefix(Box::new(PrefixConfig::new(n, encoder, model)), text))
            }
            "prompt" => {
                let n = options.virtual_tokens()?;
                let init = match (options.init.as_deref(), &options.init_tokens) {
                    (None, Some(tokens)) => PromptInit::Text(cycled(tokens.clone(), n)?),
                    (None | Some("vocabulary"), None) => PromptInit::Vocabulary,
                    (Some("random"), None) => PromptInit::Random,
                    (Some(found), _) => {
                        return Err(Error::OptionValue {
                            option: "init",
                            found: format!("{found:?}"),
                            expected: "random or vocabulary, or init_tokens alone".into(),
                        });
                    }
                };
                Ok(Self::Prompt(Box::new(PromptConfig::new(n, model)), init))
            }
            "ia3" => {
                let (outputs, input) = ([Component::Key, Component::Value], [Component::Down]);
                let all = || TargetModules::of(&[outputs[0], outputs[1], input[0]]);
                let targets = options.target_modules.clone().unwrap_or_else(all);
                let inputs = || TargetModules::of(&input);
                let feedforward = options.feedforward_modules.clone().unwrap_or_else(inputs);
                let config = Ia3Config::new(targets, feedforward);
                config.projections(model)?;
                Ok(Self::Ia3(Box::new(config)))
            }
            "red" => {
                let layers = layers.unwrap_or_else(all_layers);
                let config = RedConfig::new(layers, options.components()?, base_model);
                config.check(model)?;
                Ok(Self::Red(Box::new(config)))
            }
            "series-adapter" | "parallel-adapter" => {
                let kind = match name {
                    "series-adapter" => BottleneckKind::Series,
                    _ => BottleneckKind::Parallel,
                };
                let size = options.bottleneck_size.unwrap_or(64);
                let (layers, components) =
                    (layers.unwrap_or_else(all_layers), options.components()?);
                let mut config = BottleneckConfig::new(kind, size, layers, components, base_model);
                config.act_fn = options.act_fn.unwrap_or(config.act_fn);
                config.check(model)?;
                Ok(Self::Bottleneck(Box::new(config)))
            }
            "full" => Ok(Self::Full),
            _ => {
                let method: Method = name.parse()?;
                let mut intervention = InterventionConfig::new(method, rank);
                intervention.dropout = options.dropout.unwrap_or(0.0);
                intervention.orthonormal_map = options.orthonormal_map.unwrap_or_default();
                intervention.act_fn = options.act_fn.unwrap_or_default();
                intervention.add_bias = options.add_bias.unwrap_or(false);
                if intervention.add_bias && method != Method::Noreft {
                    return Err(Error::OptionValue {
                        option: "add_bias",
                        found: format!("true for {name}"),
                        expected: "false: it is for noreft's projection".into(),
                    });
                }
                let init = options.init.as_deref().map(str::parse::<Init>);
                intervention.init = init.transpose()?;
                intervention.check(model.hidden_size)?; // before a start is chosen for it
                let positions = match options.positions {
                    Some(positions) => positions,
                    None => "f7+l7".parse()?,
                };
                let layers = layers.unwrap_or_else(all_layers);
                let mut config = ReftConfig::new(&intervention, layers, positions, base_model);
                if let Some(component) = &options.component {
                    config.component = component.parse()?;
                }
                config.position_rule = options.position_rule.unwrap_or_default();
                config.share_weights = options.share_weights.unwrap_or(true);
                config.check_model(model)?;
                Ok(Self::Reft(Box::new(config)))
            }
        }
    }

    /// Makes a new adapter. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// `base_model` is the name or directory that the adapter's files will tell their reader.
    ///
    /// # Errors
    /// What the method refuses.
    pub fn build(&self, decoder: &Decoder, base_model: &str) -> Result<Box<dyn Adapter>> {
        let named = || BaseModel::of(decoder.config(), base_model);
        Ok(match self {
            Self::Reft(config) => {
                let config = ReftConfig { base_model: named(), ..(**config).clone() };
                Box::new(ReftAdapter::new(config, decoder)?)
            }
            Self::Lora(config) => {
                Box::new(LoraAdapter::new((**config).clone(), decoder, base_model)?)
            }
            Self::Prefix(config, text) => Box::new(match text {
                Some(text) => {
                    PrefixAdapter::from_text((**config).clone(), text, decoder, base_model)?
                }
                None => PrefixAdapter::new((**config).clone(), decoder, base_model)?,
            }),
            Self::Prompt(config, init) => {
                Box::new(PromptAdapter::new((**config).clone(), init, decoder, base_model)?)
            }
            Self::Ia3(config) => {
                Box::new(Ia3Adapter::new((**config).clone(), decoder, base_model)?)
            }
            Self::Red(config) => {
                let config = RedConfig { base_model: named(), ..(**config).clone() };
                Box::new(RedAdapter::new(config, decoder)?)
            }
            Self::Bottleneck(config) => {
                let config = BottleneckConfig { base_model: named(), ..(**config).clone() };
                Box::new(BottleneckAdapter::new(config, decoder)?)
            }
            Self::Full => Box::new(FullAdapter::new(decoder, base_model)),
            Self::Combined(methods) => {
                let adapters = methods.iter().map(|method| method.build(decoder, base_model));
                Box::new(CombinedAdapter::new(adapters.collect::<Result<_>>()?)?)
            }
        })
    }
}

/// Makes a new adapter of a method by name: [`MethodConfig::resolve`] and [`MethodConfig::build`].
///
/// # Errors
/// Those of the two.
pub fn new_adapter(
    name: &str,
    options: &MethodOptions,
    decoder: &Decoder,
    base_model: &str,
) -> Result<Box<dyn Adapter>> {
    MethodConfig::resolve(name, options, decoder.config())?.build(decoder, base_model)
}

impl MethodOptions {
    /// Names of the options of all methods.
    pub fn names() -> Vec<&'static str> {
        let mut names = REFT_OPTIONS.to_vec();
        for (_, options) in BASELINES {
            names.extend(options.iter().filter(|name| !names.contains(*name)).collect::<Vec<_>>());
        }
        names
    }

    /// Names of the options that are set.
    fn given(&self) -> impl Iterator<Item = String> {
        let json = serde_json::to_value(self).unwrap_or_default();
        let fields = json.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        fields.unwrap_or_default().into_iter()
    }

    /// Those of the options that a method, or several joined with `+`, has.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`].
    pub fn of_method(&self, method: &str) -> Result<Self> {
        self.only(&method_option_names(method)?)
    }

    /// Some of the options.
    fn only(&self, names: &[&str]) -> Result<Self> {
        let path = || "the method's options".into();
        let broken = |source| reft_models::Error::Json { path: path(), source };
        let mut json = serde_json::to_value(self).map_err(broken)?;
        if let Some(fields) = json.as_object_mut() {
            fields.retain(|name, _| names.contains(&name.as_str()));
        }
        Ok(serde_json::from_value(json).map_err(broken)?)
    }

    fn virtual_tokens(&self) -> Result<i64> {
        let n = self.n_virtual_tokens.unwrap_or(20);
        positive("n_virtual_tokens", n)?;
        Ok(n)
    }

    fn components(&self) -> Result<Vec<Component>> {
        let Some(names) = &self.components else { return Ok(vec![Component::MlpOutput]) };
        Ok(names.iter().map(|name| name.parse()).collect::<reft_models::Result<_>>()?)
    }
}

fn options_of(method: &str) -> Result<&'static [&'static str]> {
    if method.parse::<Method>().is_ok() {
        return Ok(REFT_OPTIONS);
    }
    let known = BASELINES.iter().find(|(name, _)| *name == method);
    known.map(|(_, options)| *options).ok_or_else(|| Error::UnknownMethod {
        found: method.to_owned(),
        accepted: method_names().join(", "),
    })
}

fn positive(option: &'static str, found: i64) -> Result<()> {
    if found > 0 {
        return Ok(());
    }
    let expected = "a positive number".into();
    Err(Error::OptionValue { option, found: found.to_string(), expected })
}

/// The first `n` of the tokens, repeated if they are fewer.
fn cycled(tokens: Vec<i64>, n: i64) -> Result<Vec<i64>> {
    if tokens.is_empty() {
        let (found, expected) = ("empty".into(), "at least one token".into());
        return Err(Error::OptionValue { option: "init_tokens", found, expected });
    }
    Ok(tokens.into_iter().cycle().take(n as usize).collect())
}
