//! The model of a command, its adapters and its text.

mod adapter_directory;
mod examples;
mod model_args;
mod model_text;
mod open_model;

pub use adapter_directory::{check_adapter_directory, is_saved_by_pyreft};
pub use examples::examples;
pub use model_args::ModelArgs;
pub use model_text::ModelText;
pub use open_model::{Model, open_config, open_decoder};
