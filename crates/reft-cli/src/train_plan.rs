//! From the options of a run to what they mean, every default filled in.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use reft_train::{ReuseConfig, Shuffle, Template, TrainConfig};

use crate::config_file;
use crate::machine::{DeviceChoice, KindChoice};
use crate::train_method::TrainMethod;
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
        rotation_lr_factor: options.rotation_lr_factor.unwrap_or(default.rotation_lr_factor),
        schedule: options.schedule.unwrap_or(default.schedule),
        warmup_ratio: options.warmup_ratio.unwrap_or(default.warmup_ratio),
        weight_decay: options.weight_decay.unwrap_or(default.weight_decay),
        max_grad_norm: options.max_grad_norm.unwrap_or(default.max_grad_norm),
        max_length: options.max_length.unwrap_or(default.max_length),
        seed: options.seed.unwrap_or(default.seed),
        shuffle,
        validation: options.validation.unwrap_or(default.validation),
        eval_every: options.eval_every.unwrap_or(default.eval_every),
        checkpoint_activations: options
            .checkpoint_activations
            .unwrap_or(default.checkpoint_activations),
        reuse: options.no_reuse != Some(true),
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

/// Where the frozen model's part of the examples is kept.
pub fn reuse(options: &TrainOptions) -> ReuseConfig {
    let memory = options.reuse_memory.map(|size| size.as_u64());
    ReuseConfig { memory, directory: options.reuse_dir.clone() }
}

/// All options in force, none left out.
///
/// # Errors
/// If they have no form in TOML.
pub fn resolved(
    options: &TrainOptions,
    train: &TrainConfig,
    method: &TrainMethod,
    device: DeviceChoice,
    threads: usize,
) -> Result<TrainOptions> {
    let run = TrainOptions {
        model: options.model.clone(),
        data: options.data.clone(),
        output: options.output.clone(),
        init_adapter: options.init_adapter.clone(),
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
        rotation_lr_factor: Some(train.rotation_lr_factor),
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
        checkpoint_activations: Some(train.checkpoint_activations),
        no_reuse: Some(!train.reuse),
        reuse_memory: options.reuse_memory,
        reuse_dir: options.reuse_dir.clone(),
        ..TrainOptions::default()
    };
    let mut table = config_file::table(&run)?;
    table.extend(method.resolved(options)?);
    table.try_into().context("cannot put the options together")
}

/// The device and the kind that the options ask for.
pub fn machine(options: &TrainOptions) -> (KindChoice, DeviceChoice) {
    (options.kind.unwrap_or_default(), options.device.unwrap_or_default())
}
