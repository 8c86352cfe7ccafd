//! Data, the trainer and checkpoints: how an adapter learns.
//!
//! A run reads a data file ([`read_records`]), tokenises it ([`tokenize`]), holds some of it out ([`Dataset::split`]) and trains an
//! adapter on the rest ([`Trainer`]). Everything random follows from the seed and the step, so a run that is stopped at any
//! moment and resumed gives the same numbers as one that is not.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use reft_models::{Adapter, ChatTemplate, Decoder, Tokenizer};
//! use reft_train::{Dataset, Silent, Template, TextEncoder, TrainConfig, Trainer, read_records, tokenize};
//!
//! fn train(model: &Path, data: &Path, output: &Path, adapter: &mut dyn Adapter) -> reft_train::Result<()> {
//!     let decoder = Decoder::open(model, tch::Kind::Float, tch::Device::Cpu)?;
//!     let tokenizer = Tokenizer::open(model)?;
//!     let chat_template = ChatTemplate::open(model).ok();
//!     let encoder = TextEncoder {
//!         tokenizer: &tokenizer,
//!         chat_template: chat_template.as_ref(),
//!         template: Template::Auto,
//!     };
//!     let config = TrainConfig { epochs: Some(3), lr: 4e-3, validation: 0.1, ..TrainConfig::default() };
//!     let records = read_records(data)?;
//!     let vocab_size = decoder.config().vocab_size;
//!     let examples = tokenize(&records, Some(&encoder), vocab_size, config.max_length)?;
//!     let dataset = Dataset::split(examples, config.validation, config.seed)?;
//!     let mut trainer = Trainer::new(&decoder, adapter, &dataset, config)?.starting_in(output)?;
//!     trainer.run(&mut Silent, &AtomicBool::new(false))?;
//!     Ok(())
//! }
//! ```

mod error;
mod seed;
mod share;
mod train_config;

mod data;
mod template;

mod batches;
mod dataset;

mod adamw;
mod checkpointing;
mod clip;
mod computation;
mod loss;
mod loss_scaler;
mod model;
mod prepared;
mod schedule;

mod checkpoint;
mod metrics;
mod out_of_memory;
mod outcome;
mod progress;
mod run_directory;

mod reuse;

mod evaluate;
mod feed;
mod trainer;

pub mod das;

pub use adamw::AdamW;
pub use batches::{Batch, Shuffle, epoch_batches};
pub use checkpoint::Best;
pub use clip::clip_grad_norm;
pub use computation::{Backward, Computation};
pub use data::{Content, Record, read_prompts, read_records};
pub use dataset::{Dataset, Example, IGNORE_INDEX, tokenize};
pub use error::{Error, Result};
pub use evaluate::{LossReport, evaluate};
pub use loss::loss_sum;
pub use loss_scaler::{Grads, LossScaler};
pub use metrics::{StepStats, ValidationStats};
pub use model::Model;
pub use out_of_memory::is_out_of_memory;
pub use outcome::{Outcome, Step, Summary};
pub use prepared::Prepared;
pub use progress::{Plan, Progress, Silent};
pub use reuse::{FrozenStore, ReuseConfig};
pub use schedule::{Schedule, ScheduleKind};
pub use share::{Alone, Reduce, Share};
pub use template::{Template, TextEncoder};
pub use train_config::TrainConfig;
pub use trainer::Trainer;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
