//! Multimodal models that contain a decoder: only the decoder is read, from `text_config`.

use std::path::Path;

use serde_json::{Value, json};

use crate::transformer::config::config_file::Resolved;
use crate::{Error, Field, Fields, Result, TRANSFORMERS_FIELDS, read_json};

/// The `model_type`s of such models, each with the default `model_type` of its decoder.
const WITH_DECODER: [(&str, &str); 2] = [("gemma3", "gemma3_text"), ("mistral3", "mistral")];

/// The fields beside `text_config`.
pub(crate) const MULTIMODAL: Fields = Fields {
    file: "`config.json` of a model that sees images (gemma3, mistral3), of which the decoder is read",
    groups: &[
        &[
            Field::applied(&["model_type", "text_config", "tie_word_embeddings"])
                .with_note("`text_config` is read as the `config.json` of its own `model_type`"),
            Field::neutral(
                &[
                    "boi_token_index",
                    "eoi_token_index",
                    "image_token_id",
                    "image_token_index",
                    "mm_tokens_per_image",
                    "multimodal_projector_bias",
                    "projector_hidden_act",
                    "spatial_merge_size",
                    "vision_config",
                    "vision_feature_layer",
                ],
                "of images, which are not read",
            ),
            Field::refused(
                &["quantization_config"],
                "use the model's safetensors in f32, bf16 or f16, or a GGUF file",
            ),
        ],
        TRANSFORMERS_FIELDS,
    ],
};

/// The `config.json` of the decoder, if the `config.json` at `path` is of a multimodal model.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`], or [`Error::Config`] if a field beside the decoder's is refused.
pub fn decoder_config(path: &Path) -> Result<Option<Value>> {
    let json: Value = read_json(path)?;
    let own = text_part(json.clone()).map_err(Error::Config)?;
    Ok(Some(own).filter(|own| *own != json))
}

/// The configuration of the decoder alone.
pub(crate) fn text_part(mut json: Value) -> Resolved<Value> {
    let model_type = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let found = WITH_DECODER.iter().find(|(own, _)| *own == model_type);
    let Some((_, own_type)) = found.filter(|_| json.get("text_config").is_some()) else {
        return Ok(json);
    };
    MULTIMODAL.check(json.as_object().into_iter().flatten())?;
    let is_tied = json.get("tie_word_embeddings").cloned();
    let mut text = json["text_config"].take();
    let Some(fields) = text.as_object_mut() else {
        return Err(format!("text_config is {text}, expected an object"));
    };
    fields.entry("model_type").or_insert_with(|| json!(own_type));
    if let Some(is_tied) = is_tied {
        fields.insert("tie_word_embeddings".to_owned(), is_tied);
    }
    Ok(text)
}
