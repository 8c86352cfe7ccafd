use std::path::Path;

use anyhow::Result;
use reft_models::{ChatTemplate, Tokenizer};
use reft_train::{Template, TextEncoder};

/// What a model brings for text.
pub struct ModelText {
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelText {
    /// Reads both.
    ///
    /// # Errors
    /// If one is broken.
    pub fn open(model: &Path) -> Result<Self> {
        let is_without = model.is_dir() && !model.join("tokenizer.json").exists();
        let tokenizer = if is_without { None } else { Some(Tokenizer::open(model)?) };
        let chat_template = match ChatTemplate::open(model) {
            Err(reft_models::Error::NoChatTemplate { .. }) => None,
            template => Some(template?),
        };
        Ok(Self { tokenizer, chat_template })
    }

    /// What turns rows into tokens.
    pub fn encoder(&self, template: Template) -> Option<TextEncoder<'_>> {
        let chat_template = self.chat_template.as_ref();
        let encoder = |tokenizer| TextEncoder { tokenizer, chat_template, template };
        self.tokenizer.as_ref().map(encoder)
    }
}
