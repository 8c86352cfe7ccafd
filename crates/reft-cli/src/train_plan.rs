//! From the options of a run to what they mean, every default filled in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use reft_core::{InterventionConfig, Method, Positions};
use reft_models::{BaseModel, Component, Decoder, DecoderConfig, ReftAdapter, ReftConfig};
use reft_train::{Shuffle, Template, TrainConfig};
use serde::Serialize;

use crate::layers::Layers;
use crate::machine::{DeviceChoice, KindChoice};
use crate::model::load_adapter;
use crate::train_options::TrainOptions;

/// What every run needs to be told.
#[derive(Debug)]
pub struct Inputs {
    pub model: String,
    pub data: PathBuf,
    pub output: PathBuf,
}

/// The inputs named by the options.
///
/// # Errors
/// If one is missing.
pub fn inputs(options: &TrainOptions) -> Result<Inputs> {
    fn given<T: Clone>(value: &Option<T>, flag: &str) -> Result<T> {
        value.clone().ok_or_else(|| {
            anyhow!("--{flag} is missing; give it as a flag or in the file of --config")
        })
    }
    Ok(Inputs {
        model: given(&options.model, "model")?,
        data: given(&options.data, "data")?,
        output: given(&options.output, "output")?,
    })
}

/// The trainer's part of the options.
///
/// # Errors
/// If a value cannot be; the message names the flag.
pub fn train_config(options: &TrainOptions) -> Result<TrainConfig> {
    let default = TrainConfig::default();
    let shuffle = match (options.shuffle, options.no_shuffle) {
        (None, Some(true)) => Shuffle::None,
        (shuffle, _) => shuffle.unwrap_or(default.shuffle),
    };
    let config = TrainConfig {
        epochs: options.epochs,
        max_steps: options.max_steps,
        batch_size: options.batch_size.unwrap_or(default.batch_size),
        grad_accum: options.grad_accum.unwrap_or(default.grad_accum),
        lr: options.lr.unwrap_or(default.lr),
        schedule: options.schedule.unwrap_or(default.schedule),
        warmup_ratio: options.warmup_ratio.unwrap_or(default.warmup_ratio),
        weight_decay: options.weight_decay.unwrap_or(default.weight_decay),
        max_grad_norm: options.max_grad_norm.unwrap_or(default.max_grad_norm),
        max_length: options.max_length.unwrap_or(default.max_length),
        seed: options.seed.unwrap_or(default.seed),
        shuffle,
        validation: options.validation.unwrap_or(default.validation),
        eval_every: options.eval_every.unwrap_or(default.eval_every),
        checkpoint_every: options.checkpoint_every.unwrap_or(default.checkpoint_every),
    };
    let config = match (config.epochs, config.max_steps) {
        (None, None) => TrainConfig { epochs: Some(DEFAULT_EPOCHS), ..config },
        _ => config,
    };
    match config.check() {
        Ok(()) => Ok(config),
        Err(reft_train::Error::Config { field, found, expected }) => {
            bail!("--{} is {found}, expected {expected}", field.replace('_', "-"))
        }
        Err(other) => Err(other.into()),
    }
}

const DEFAULT_EPOCHS: usize = 3;
const DEFAULT_RANK: i64 = 8;
const DEFAULT_POSITIONS: (usize, usize) = (7, 7);

/// What the adapter is to be: from the options, or from the adapter to start from.
///
/// # Errors
/// If it cannot be on this model, or options contradict the adapter to start from.
pub fn reft_config(
    options: &TrainOptions,
    model: &str,
    decoder: &DecoderConfig,
) -> Result<ReftConfig> {
    if let Some(dir) = &options.init_adapter {
        crate::model::check_adapter_directory(dir)?;
        let config = ReftConfig::read(dir)
            .with_context(|| format!("cannot start from adapter {}", dir.display()))?;
        check_against(options, &config, dir, decoder.num_hidden_layers)?;
        return Ok(config);
    }
    let method = options.method.unwrap_or(Method::Loreft);
    let intervention = InterventionConfig {
        orthonormal_map: options.orthonormal_map.unwrap_or_default(),
        act_fn: options.act_fn.unwrap_or_default(),
        dropout: options.dropout.unwrap_or(0.0),
        add_bias: options.add_bias.unwrap_or(false),
        init: options.init,
        ..InterventionConfig::new(method, options.rank.unwrap_or(DEFAULT_RANK))
    };
    if intervention.add_bias && method != Method::Noreft {
        bail!("--add-bias is for noreft only, the method is {method}; leave it out");
    }
    intervention.check(decoder.hidden_size)?; // before a start is chosen for it
    let layers = options.layers.clone().unwrap_or_default().of_model(decoder.num_hidden_layers)?;
    let (first, last) = DEFAULT_POSITIONS;
    let positions = options.positions.map_or_else(|| Positions::new(first, last), Ok)?;
    let config = ReftConfig {
        component: options.component.unwrap_or(Component::BlockOutput),
        position_rule: options.position_rule.unwrap_or_default(),
        share_weights: options.share_weights.unwrap_or(false),
        ..ReftConfig::new(&intervention, layers, positions, BaseModel::of(decoder, model))
    };
    config.check()?;
    Ok(config)
}

/// The adapter before its first step.
///
/// # Errors
/// If it does not fit the model, or the adapter to start from is broken.
pub fn new_adapter(
    options: &TrainOptions,
    config: &ReftConfig,
    seed: u64,
    decoder: &Decoder,
) -> Result<ReftAdapter> {
    match &options.init_adapter {
        Some(dir) => load_adapter(dir, decoder)
            .and_then(|adapter| Ok(adapter.into_trainable()?))
            .with_context(|| format!("cannot start from adapter {}", dir.display())),
        None => {
            tch::manual_seed(seed as i64); // the start
            Ok(ReftAdapter::new(config.clone(), decoder)?)
        }
    }
}

/// All options in force, none left out.
pub fn resolved(
    options: &TrainOptions,
    train: &TrainConfig,
    reft: &ReftConfig,
    device: DeviceChoice,
    threads: usize,
) -> TrainOptions {
    TrainOptions {
        model: options.model.clone(),
        data: options.data.clone(),
        output: options.output.clone(),
        init_adapter: options.init_adapter.clone(),
        method: Some(reft.method),
        layers: Some(Layers::Some(reft.layers.clone())),
        component: Some(reft.component),
        rank: Some(reft.low_rank_dimension),
        positions: Some(reft.positions),
        position_rule: Some(reft.position_rule),
        share_weights: Some(reft.share_weights),
        orthonormal_map: Some(reft.orthonormal_map),
        act_fn: Some(reft.act_fn),
        add_bias: Some(reft.add_bias),
        dropout: Some(reft.dropout),
        init: Some(reft.init),
        template: Some(options.template.unwrap_or(Template::Auto)),
        max_length: Some(train.max_length),
        drop_too_long: Some(options.drop_too_long.unwrap_or(false)),
        validation: Some(train.validation),
        shuffle: Some(train.shuffle),
        no_shuffle: None,
        epochs: train.epochs,
        max_steps: train.max_steps,
        batch_size: Some(train.batch_size),
        grad_accum: Some(train.grad_accum),
        lr: Some(train.lr),
        schedule: Some(train.schedule),
        warmup_ratio: Some(train.warmup_ratio),
        weight_decay: Some(train.weight_decay),
        max_grad_norm: Some(train.max_grad_norm),
        seed: Some(train.seed),
        eval_every: Some(train.eval_every),
        checkpoint_every: Some(train.checkpoint_every),
        kind: Some(options.kind.unwrap_or_default()),
        device: Some(device),
        threads: Some(threads),
    }
}

/// Checks that what the options say of the adapter is what the adapter to start from says.
fn check_against(
    options: &TrainOptions,
    adapter: &ReftConfig,
    dir: &Path,
    n_layers: usize,
) -> Result<()> {
    fn differs<T: PartialEq + Serialize>(asked: &Option<T>, own: &T) -> Option<(String, String)> {
        let text = |value: &T| {
            serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
        };
        asked.as_ref().filter(|asked| *asked != own).map(|asked| (text(asked), text(own)))
    }
    let layers = options.layers.as_ref().map(|layers| layers.of_model(n_layers)).transpose()?;
    let component = options.component.map(|component| component.name());
    let fields = [
        ("method", differs(&options.method, &adapter.method)),
        ("layers", differs(&layers, &adapter.layers)),
        ("component", differs(&component, &adapter.component.name())),
        ("rank", differs(&options.rank, &adapter.low_rank_dimension)),
        ("positions", differs(&options.positions, &adapter.positions)),
        ("position-rule", differs(&options.position_rule, &adapter.position_rule)),
        ("share-weights", differs(&options.share_weights, &adapter.share_weights)),
        ("orthonormal-map", differs(&options.orthonormal_map, &adapter.orthonormal_map)),
        ("act-fn", differs(&options.act_fn, &adapter.act_fn)),
        ("add-bias", differs(&options.add_bias, &adapter.add_bias)),
        ("dropout", differs(&options.dropout, &adapter.dropout)),
        ("init", differs(&options.init, &adapter.init)),
    ];
    for (flag, difference) in fields {
        if let Some((asked, own)) = difference {
            let dir = dir.display();
            bail!(
                "--{flag} is {asked}, but the adapter to start from, {dir}, has {own}; leave the option out"
            );
        }
    }
    Ok(())
}

/// The device and the kind that the options ask for.
pub fn machine(options: &TrainOptions) -> (KindChoice, DeviceChoice) {
    (options.kind.unwrap_or_default(), options.device.unwrap_or_default())
}
