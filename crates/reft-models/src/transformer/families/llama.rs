use serde_json::json;

use super::{Family, NO_FIELDS, as_llama};
use crate::transformer::config::rope_file::{USUAL_ROPE, one_rope};
use crate::transformer::config::windows::Window;

/// Llama 1 to 3.x, TinyLlama, SmolLM2 (Touvron et al. 2023, arXiv:2302.13971).
pub(super) const LLAMA: Family = Family {
    model_type: "llama",
    fields: NO_FIELDS,
    defaults: || json!({ "max_position_embeddings": 2048 }),
    reads_attention_bias: true,
    reads_mlp_bias: true,
    window: Window::Never,
    ropes: |file, head_dim| one_rope(file, head_dim, &USUAL_ROPE),
    options: as_llama,
};
