//! The model of a command, its adapters and its text.

mod adapter_directory;
mod framing;
mod model_text;
mod open_model;

pub use adapter_directory::{
    adapter_directory, check_adapter_directory, fetch_adapter, is_saved_by_pyreft,
};
pub use framing::Framing;
pub use model_text::{FileRows, ModelText};
pub use open_model::{Model, ModelArgs, model_name, open_config, open_decoder};
