//! Data, objectives, the trainer and checkpoints: how adapters learn.
//!
//! A run reads a data file ([`read_records`]), makes examples of its rows ([`Encoding::examples`]), holds some of them out
//! ([`Dataset::split`]) and trains adapters on the rest ([`Trainer`]). Everything random follows from the seed and the step. So a run that
//! is stopped at any moment and resumed gives the same numbers as an uninterrupted run.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use reft_models::{Adapter, AdapterStack, ChatTemplate, Decoder, Model, Tokenizer};
//! use reft_train::{
//!     Dataset, Encoding, Learner, NextToken, Silent, Template, TextEncoder, TrainConfig, Trainer, Turns,
//!     read_records,
//! };
//!
//! fn train(model: &Path, data: &Path, output: &Path, adapter: &dyn Adapter) -> reft_train::Result<()> {
//!     let decoder = Decoder::open(model, tch::Kind::Float, tch::Device::Cpu)?;
//!     let tokenizer = Tokenizer::open(model)?;
//!     let chat_template = ChatTemplate::open(model).ok();
//!     let config = TrainConfig { epochs: Some(3), lr: 4e-3, validation: 0.1, ..TrainConfig::default() };
//!     let encoding = Encoding {
//!         text: Some(TextEncoder {
//!             tokenizer: &tokenizer,
//!             chat_template: chat_template.as_ref(),
//!             template: Template::Auto,
//!             turns: Turns::Last,
//!         }),
//!         vocab_size: decoder.description().vocab_size,
//!         max_length: config.max_length,
//!     };
//!     let examples = encoding.examples(&read_records(data, None)?)?;
//!     let dataset = Dataset::split(examples, config.validation, config.seed)?;
//!     let learner = Learner::new(&decoder, &AdapterStack::one(adapter), &NextToken);
//!     let mut trainer = Trainer::new(&learner, &dataset, config)?.starting_in(output)?;
//!     trainer.run(&mut Silent, &AtomicBool::new(false))?;
//!     Ok(())
//! }
//! ```

mod error;
mod seed;

mod data;

mod objective;

mod forward;
mod objectives;
mod reuse;

mod optimizer;

mod run;

pub use data::batch::{Batch, Part};
pub use data::dataset::Dataset;
pub use data::encoding::Encoding;
pub use data::example::{Example, IGNORE_INDEX, Sequence};
pub use data::files::table::{RowPlace, TableRow, read_table};
pub use data::labels::{Labels, Told};
pub use data::rows::columns::{ColumnNames, ColumnOptions};
pub use data::rows::data_source::{DataSource, DataSources, ReadRows};

pub use data::rows::form::{LABELLED_FORMS, Need, PREFERENCE_FORM, ROW_FORMS, RowColumn, RowForm};
pub use data::rows::record::{
    Content, LabelledText, Record, read_labelled, read_labelled_rows, read_preferences,
    read_prompts, read_records,
};
pub use data::template::{Template, TextEncoder, Turn, TurnOptions, Turns};
pub use data::text_template::{Rendered, TextTemplate, column};
pub use error::{Error, Result};
pub use forward::cross_entropy::cross_entropy;
pub use forward::divergence::divergence_of_hidden_states;
pub use forward::head_outputs::head_outputs;
pub use forward::learner::{Learner, LossReport};
pub use forward::outputs::{Forwards, Outputs};
pub use objective::{Objective, Term};
pub use objectives::OBJECTIVES;
pub use objectives::declaration::{
    BuildObjective, EachExample, Ingredients, ObjectiveDeclaration, RowKind,
};
pub use objectives::head_objective::HeadObjective;
pub use objectives::keeping_close::KeepingClose;
pub use objectives::metrics::metric::Metric;
pub use objectives::next_token::{NEXT_TOKEN, NextToken};
pub use objectives::options::{ObjectiveOptions, ReferenceRun};
pub use objectives::reft_r1::REFT_R1;
pub use objectives::reps::Factors;
pub use optimizer::adamw::AdamW;
pub use optimizer::loss_scaler::{Grads, LossScaler};
pub use optimizer::schedule::ScheduleKind;
pub use reuse::frozen_store::{FrozenStore, ReuseConfig};
pub use reuse::reference::{Reference, ReferenceOutputs};
pub use run::checkpoint::{Best, WEIGHTS_DIGEST};
pub use run::order::Shuffle;
pub use run::out_of_memory::is_out_of_memory;
pub use run::progress::{
    Listeners, Outcome, Plan, Progress, Silent, Step, StepStats, Summary, ValidationStats,
};
pub use run::resident_memory::resident_memory;
pub(crate) use run::share::Processes;
pub use run::share::{Alone, Reduce, Share};
pub use run::train_config::TrainConfig;
pub use run::trainer::Trainer;

pub use seed::seed_of;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
pub(crate) use data::needed::Needed;
pub(crate) use forward::divergence::{divergence_of_likeliest, likeliest};
pub(crate) use forward::logits_in_chunks::of_logits;
pub(crate) use forward::ready_batch::{Ready, ReadyBatch};
