use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{ChatVars, Error, Result, json_error, load_safetensors_metadata};

/// The framing of an adapter's training texts. Prompts for the adapter are framed in the same way by default.
///
/// It is stored in the metadata of the adapter's tensor file, beside the identity of the base model. Other readers, such as PEFT, ignore it
/// there; PEFT's configuration has no field for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainedText {
    /// The template, as `--template` names it.
    pub template: String,
    /// Variables of the chat template.
    #[serde(default, skip_serializing_if = "ChatVars::is_empty")]
    pub chat_vars: ChatVars,
}

/// Its name among the metadata.
const NAME: &str = "trained_text";

impl TrainedText {
    /// Its entry in the metadata of a file of tensors.
    ///
    /// # Errors
    /// [`Error::Json`] if the variables have no form in JSON.
    pub fn metadata(&self, file: &Path) -> Result<(String, String)> {
        Ok((NAME.to_owned(), serde_json::to_string(self).map_err(json_error(file))?))
    }

    /// Reads it from a file of tensors; `None` if the file has no such entry, as from an older version or another program.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Safetensors`] or [`Error::Json`] if the file is missing or broken.
    pub fn read(file: &Path) -> Result<Option<Self>, Error> {
        let metadata = load_safetensors_metadata(file)?;
        let text = metadata.get(NAME).map(|text| serde_json::from_str(text));
        text.transpose().map_err(json_error(file))
    }
}
