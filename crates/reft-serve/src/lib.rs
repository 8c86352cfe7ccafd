//! An HTTP server with OpenAI's API: one model and many adapters, which each request chooses for itself.
//!
//! One thread owns all tensors and computes, step by step, a token of every reply in flight; other threads handle HTTP.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use reft_models::{ChatTemplate, ChatVars, Decoder, Tokenizer};
//! use reft_serve::{ServeOptions, ServedText, Server};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = Path::new("models/SmolLM2-135M-Instruct");
//! let emoji = ("emoji".to_owned(), "runs/emoji".into());
//! let options = ServeOptions { adapters: vec![emoji], ..ServeOptions::new("SmolLM2-135M-Instruct") };
//! let server = Server::bind(options)?;
//! println!("http://{}", server.address());
//! let model = Decoder::open(directory, tch::Kind::Float, tch::Device::Cpu)?;
//! let text = ServedText {
//!     tokenizer: Tokenizer::open(directory)?,
//!     chat_template: Some(ChatTemplate::open(directory)?),
//!     chat_vars: ChatVars::default(),
//! };
//! server.serve(&model, text, || println!("it is ready"))?;
//! # Ok(())
//! # }
//! ```

mod error;
mod options;

mod api;
mod http;
mod worker;

pub use api::fields::{CHAT_FIELDS, COMPLETION_FIELDS};
pub use api::prompt::ServedText;
pub use error::{Error, Result};
pub use http::api_keys::ApiKeys;
pub use http::log_entry::{LogEntry, LoggedReply};
pub use http::server::{Server, Stopper};
pub use options::ServeOptions;
