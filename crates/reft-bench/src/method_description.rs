use std::path::Path;

use reft_models::ReftConfig;
use serde_json::{Map, Value};

use crate::bottleneck::BottleneckConfig;
use crate::combined::CombinedAdapter;
use crate::error::Result;
use crate::method_config::{MethodConfig, MethodOptions, method_option_names};
use crate::peft_config::{Ia3Config, LoraConfig, PrefixConfig, PromptConfig};
use crate::prompt::PromptInit;
use crate::red::RedConfig;
use crate::registry::AdapterKind;
use crate::{baseline_file, peft_file};

/// A method and its options.
type Described = (String, MethodOptions);

impl MethodConfig {
    /// The method by name, and all of its options: [`MethodConfig::resolve`] makes the same of them.
    ///
    /// Of a combination, an option that its methods have decided differently by their defaults is left open again.
    ///
    /// # Errors
    /// If options have no form in JSON: numbers that are none.
    pub fn describe(&self) -> Result<(String, MethodOptions)> {
        let empty = MethodOptions::default();
        Ok(match self {
            Self::Reft(config) => of_reft(config),
            Self::Lora(config) => of_lora(config),
            Self::Prefix(config, text) => {
                let (name, options) = of_prefix(config);
                (name, MethodOptions { init_tokens: text.clone(), ..options })
            }
            Self::Prompt(config, init) => {
                let (name, options) = of_prompt(config);
                let (init, init_tokens) = match init {
                    PromptInit::Random => (Some("random".to_owned()), None),
                    PromptInit::Vocabulary => (Some("vocabulary".to_owned()), None),
                    PromptInit::Text(tokens) => (None, Some(tokens.clone())),
                };
                (name, MethodOptions { init, init_tokens, ..options })
            }
            Self::Ia3(config) => of_ia3(config),
            Self::Red(config) => of_red(config),
            Self::Bottleneck(config) => of_bottleneck(config),
            Self::Full => ("full".to_owned(), empty),
            Self::Combined(methods) => {
                joined(&methods.iter().map(Self::describe).collect::<Result<Vec<_>>>()?)?
            }
        })
    }
}

/// Method and options of the adapter in a directory. How a prefix or a soft prompt started is not kept there.
///
/// # Errors
/// If the directory holds no adapter, or its configuration is broken.
pub fn adapter_options(dir: &Path) -> Result<(String, MethodOptions)> {
    Ok(match AdapterKind::of(dir)? {
        AdapterKind::Reft => of_reft(&ReftConfig::read(dir)?),
        AdapterKind::Lora => of_lora(&peft_file::read_config(dir)?),
        AdapterKind::Prefix => of_prefix(&peft_file::read_config(dir)?),
        AdapterKind::Prompt => of_prompt(&peft_file::read_config(dir)?),
        AdapterKind::Ia3 => of_ia3(&peft_file::read_config(dir)?),
        AdapterKind::Red => of_red(&baseline_file::read_config(dir)?),
        AdapterKind::Bottleneck => of_bottleneck(&baseline_file::read_config(dir)?),
        AdapterKind::Full => ("full".to_owned(), MethodOptions::default()),
        AdapterKind::Combined => {
            let parts = CombinedAdapter::parts(dir)?;
            let described = parts.iter().map(|part| adapter_options(part));
            joined(&described.collect::<Result<Vec<_>>>()?)?
        }
    })
}

fn of_reft(config: &ReftConfig) -> Described {
    let options = MethodOptions {
        layers: Some(config.layers.clone()),
        rank: Some(config.low_rank_dimension),
        dropout: Some(config.dropout),
        component: Some(config.component.to_string()),
        positions: Some(config.positions),
        position_rule: Some(config.position_rule),
        share_weights: Some(config.share_weights),
        orthonormal_map: Some(config.orthonormal_map),
        act_fn: Some(config.act_fn),
        add_bias: Some(config.add_bias),
        init: Some(config.init.to_string()),
        ..MethodOptions::default()
    };
    (config.method.name().to_owned(), options)
}

fn of_lora(config: &LoraConfig) -> Described {
    let options = MethodOptions {
        layers: config.layers_to_transform.clone(),
        rank: Some(config.r),
        dropout: Some(config.lora_dropout),
        alpha: Some(config.lora_alpha),
        target_modules: Some(config.target_modules.clone()),
        ..MethodOptions::default()
    };
    (config.method().to_owned(), options)
}

fn of_prefix(config: &PrefixConfig) -> Described {
    let options = MethodOptions {
        n_virtual_tokens: Some(config.num_virtual_tokens),
        encoder_hidden_size: config.prefix_projection.then_some(config.encoder_hidden_size),
        ..MethodOptions::default()
    };
    ("prefix".to_owned(), options)
}

fn of_prompt(config: &PromptConfig) -> Described {
    let n_virtual_tokens = Some(config.num_virtual_tokens);
    ("prompt".to_owned(), MethodOptions { n_virtual_tokens, ..MethodOptions::default() })
}

fn of_ia3(config: &Ia3Config) -> Described {
    let options = MethodOptions {
        target_modules: Some(config.target_modules.clone()),
        feedforward_modules: Some(config.feedforward_modules.clone()),
        ..MethodOptions::default()
    };
    ("ia3".to_owned(), options)
}

fn of_red(config: &RedConfig) -> Described {
    let options = MethodOptions {
        layers: Some(config.layers.clone()),
        components: Some(config.components.iter().map(ToString::to_string).collect()),
        ..MethodOptions::default()
    };
    ("red".to_owned(), options)
}

fn of_bottleneck(config: &BottleneckConfig) -> Described {
    let options = MethodOptions {
        layers: Some(config.layers.clone()),
        act_fn: Some(config.act_fn),
        components: Some(config.components.iter().map(ToString::to_string).collect()),
        bottleneck_size: Some(config.bottleneck_size),
        ..MethodOptions::default()
    };
    (config.method.name().to_owned(), options)
}

/// The options that all methods which have them agree upon.
fn joined(parts: &[Described]) -> Result<Described> {
    let broken = |source| reft_models::Error::Json { path: "the method's options".into(), source };
    let mut options: Vec<(Vec<&str>, Value)> = Vec::new();
    for (name, own) in parts {
        let own = serde_json::to_value(own).map_err(broken)?;
        options.push((method_option_names(name)?, own));
    }
    let mut agreed = Map::new();
    for name in MethodOptions::names() {
        let mut values =
            options.iter().filter(|(names, _)| names.contains(&name)).map(|(_, own)| own.get(name));
        let Some(Some(first)) = values.next() else { continue };
        if values.all(|value| value == Some(first)) {
            agreed.insert(name.to_owned(), first.clone());
        }
    }
    let names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    let options = serde_json::from_value(Value::Object(agreed)).map_err(broken)?;
    Ok((names.join("+"), options))
}
