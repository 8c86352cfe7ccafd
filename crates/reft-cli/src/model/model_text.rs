use std::path::Path;

use anyhow::{Context, Result};
use reft_models::{ChatOptions, ChatTemplate, Tokenizer};
use reft_train::{
    Encoding, Error, Example, Labels, ObjectiveDeclaration, Record, Template, TextEncoder, Turns,
};

use crate::terminal::note;

/// The text part of a model: its tokenizer and its chat template.
pub struct ModelText {
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
}

impl ModelText {
    /// Reads the tokenizer and the chat template.
    ///
    /// # Errors
    /// If one is broken, or variables are given and the model has no chat template.
    pub fn open(model: &Path, chat: &ChatOptions) -> Result<Self> {
        let has_tokenizer = Tokenizer::is_in(model)?;
        let tokenizer = has_tokenizer.then(|| Tokenizer::open(model)).transpose()?;
        let chat_template = match ChatTemplate::open(model) {
            _ if !has_tokenizer && model.is_file() && chat.chat_vars.is_empty() => None,
            Err(reft_models::Error::NoChatTemplate { .. }) if chat.chat_vars.is_empty() => None,
            template => Some(template?.with_variables(&chat.chat_vars)?),
        };
        Ok(Self { tokenizer, chat_template })
    }

    /// The encoder of rows into tokens; `None` without a tokenizer.
    pub fn encoder(&self, template: Template, turns: Turns) -> Option<TextEncoder<'_>> {
        let chat_template = self.chat_template.as_ref();
        let encoder = |tokenizer| TextEncoder { tokenizer, chat_template, template, turns };
        self.tokenizer.as_ref().map(encoder)
    }
}

/// The rows of a file.
pub struct FileRows<'a> {
    /// The rows.
    pub records: &'a [Record],
    /// The file of the rows.
    pub file: &'a Path,
    /// The labels that a head learns.
    pub labels: Option<&'a Labels>,
}

impl FileRows<'_> {
    /// The examples of the rows. With `drop_too_long`, an example without a label within the maximum length is left out instead of refused.
    ///
    /// # Errors
    /// The first row that cannot be used.
    pub fn examples(
        &self,
        objective: &ObjectiveDeclaration,
        encoding: &Encoding,
        drop_too_long: bool,
    ) -> Result<Vec<Example>> {
        let examples = match drop_too_long {
            true => self.fitting(objective, encoding),
            false => objective.examples(self.records, encoding, self.labels),
        };
        let advice = match &examples {
            Err(Error::NoTarget { .. }) => " (--drop-too-long leaves such examples out)",
            _ => "",
        };
        examples.with_context(|| format!("cannot use {}{advice}", self.file.display()))
    }

    fn fitting(
        &self,
        objective: &ObjectiveDeclaration,
        encoding: &Encoding,
    ) -> reft_train::Result<Vec<Example>> {
        let (examples, dropped) = objective.fitting(self.records, encoding, self.labels)?;
        let (n, max) = (examples.len() + dropped, encoding.max_length);
        if dropped > 0 {
            note(format!(
                "{dropped} of {n} examples have no label within {max} tokens and are left out"
            ));
        }
        Ok(examples)
    }
}
