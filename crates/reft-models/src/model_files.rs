use crate::Fields;
use crate::gguf::fields::GGUF;
use crate::text::tokenizer_config::{GENERATION_CONFIG, TOKENIZER_CONFIG};
use crate::transformer::config_file::CONFIG;

/// The fields of every file that belongs to a model and is read here.
pub const MODEL_FILES: [&Fields; 4] = [&CONFIG, &GENERATION_CONFIG, &TOKENIZER_CONFIG, &GGUF];
