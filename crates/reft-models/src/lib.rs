//! Frozen language models on libtorch with hooks at every site, the adapters that use them, their files, tokenizers and generation.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use reft_models::{AdapterStack, Decoder, GenerationConfig, Row, Tokenizer, generate};
//!
//! # fn main() -> reft_models::Result<()> {
//! let directory = Path::new("models/SmolLM2-135M-Instruct");
//! let decoder = Decoder::open(directory, tch::Kind::Float, tch::Device::Cpu)?;
//! let tokenizer = Tokenizer::open(directory)?;
//! let row = Row::prompt(tokenizer.encode("The ocean is", true)?);
//! let config = GenerationConfig { max_new_tokens: 20, ..GenerationConfig::default() };
//! let go_on = &mut |_, _| ControlFlow::Continue(());
//! let replies = generate(&decoder, &AdapterStack::EMPTY, &[row], &config, go_on)?;
//! println!("{}", tokenizer.decode(replies[0].text_ids(), true)?);
//! # Ok(())
//! # }
//! ```

mod error;
mod model_files;
mod place;
mod site;
mod task_head;

mod model;
mod transformer;
mod weights;

mod adapters;
mod generation;
mod text;

mod files;
mod gguf;
mod hub;

pub use adapters::adapter::{Adapter, Mode, Reach};
pub use adapters::base_model::BaseModel;
pub(crate) use adapters::by_row::ByRow;
pub use adapters::stack::{AdapterStack, Dose, StackAdapter, StackEntry};
pub use adapters::trained_text::TrainedText;
pub use error::{Error, Result};
pub use files::atomic_file::{atomic_directory, atomic_write, io_error, is_partial};
pub use files::claim::Claim;
pub use files::directory_lock::DirectoryLock;
pub use files::fields::{Fate, Field, Fields, says_nothing};
pub use files::model_dir::convert_gguf;
pub use files::reason::{JsonReason, plain_reason};
pub use files::safetensors_file::{load_safetensors, load_safetensors_metadata, save_safetensors};
pub use files::text_file::{
    Key, json_error, line_of, read_json, read_text, toml_error, write_json, write_json_in_order,
    write_text,
};
pub use files::weights_digest::weights_digest;
pub use generation::engine::{Engine, EngineOptions, Event, Request, TokenLogprobs};
pub use generation::generate::{Finish, Generated, generate};
pub use generation::reply_text::ReplyText;
pub use generation::sampling::GenerationConfig;
pub use gguf::control_vector::ControlVector;
pub use gguf::fields::GGUF;
pub use gguf::gguf_file::Gguf;
pub use gguf::writing::file::export_gguf;
pub use gguf::writing::kind::GgufKind;
pub use hub::names::{Hub, is_hub_name, resolve_model};
pub use hub::push::{Push, PushFile, Pushed};
pub use model::attention_weights::attention_weights;
pub use model::collect::{Collect, TokenAt, collect};
pub use model::context::ContextLimit;
pub use model::description::{ModelDescription, ModelTensor, Projection, TensorRole};
pub use model::frozen_model::{Forward, Head, Model};
pub use model::hooks::{Cut, HookPoint, Hooks, LowRank, NoHooks, OnPrompt, Stacked, TokenEdit};
pub use model::kv_cache::{KeyValueRecorder, KvCache, Past};
pub(crate) use model::kv_pool::KvPool;
pub use model::layout::{Layout, PaddingSide, Row, Span};
pub use model::placement::{DeviceRoom, Placement, beside, device_name};
pub use model::task_head_form::TaskHeadForm;
pub use model_files::model_files;
pub use place::Place;
pub use reft_kernels::release_threads;
pub use site::{Component, Site};
pub use task_head::TaskHead;
pub use text::chat_template::ChatTemplate;
pub use text::chat_vars::{ChatOptions, ChatVars};
pub use text::decode_stream::DecodeStream;
pub use text::message::Message;
pub use text::tokenizer::Tokenizer;
pub use text::tokenizer_config::{GENERATION_CONFIG, TOKENIZER_CONFIG};
pub use transformer::config::config_file::TRANSFORMERS_FIELDS;
pub use transformer::config::decoder_config::DecoderConfig;
pub use transformer::config::module_names::ModuleNames;
pub use transformer::config::options::{
    AttentionOptions, EmbeddingOptions, LearnedPositions, MlpActivation, MlpKind, MlpOptions,
    Multipliers, NormKind, NormOptions, NormPlaces, QkNorm, QueryScaling, RopeOptions, RopeScaling,
};
pub use transformer::config::text_part::decoder_config;
pub use transformer::decoder::Decoder;
pub(crate) use transformer::pass::{BlockColumns, Pass};
pub use weights::checkpoint::Weights;
pub use weights::quantised::Quantised;
pub use weights::send::send;
pub use weights::shards::{save_weights, weights_facts};
pub use weights::weight::{Linear, Weight, WeightStorage};
