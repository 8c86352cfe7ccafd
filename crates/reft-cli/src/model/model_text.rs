use std::path::Path;

use anyhow::{Context, Result};
use reft_models::{ChatOptions, ChatTemplate, Tokenizer};
use reft_train::{Encoding, Error, Example, Record, Template, TextEncoder, Turns};

use crate::terminal::note;

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
    /// If one is broken, or variables are given and there is no template to have them.
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

    /// What turns rows into tokens.
    pub fn encoder(&self, template: Template, turns: Turns) -> Option<TextEncoder<'_>> {
        let chat_template = self.chat_template.as_ref();
        let encoder = |tokenizer| TextEncoder { tokenizer, chat_template, template, turns };
        self.tokenizer.as_ref().map(encoder)
    }
}

/// The examples of the rows of a file. If `drop_too_long`, one that has no label left when it is cut is left out rather than refused.
///
/// # Errors
/// The first row that cannot be used.
pub fn examples(
    records: &[Record],
    file: &Path,
    encoding: &Encoding,
    drop_too_long: bool,
) -> Result<Vec<Example>> {
    let examples =
        if drop_too_long { fitting(records, encoding) } else { encoding.examples(records) };
    let advice = match &examples {
        Err(Error::NoTarget { .. }) => " (--drop-too-long leaves such examples out)",
        _ => "",
    };
    examples.with_context(|| format!("cannot use {}{advice}", file.display()))
}

fn fitting(records: &[Record], encoding: &Encoding) -> reft_train::Result<Vec<Example>> {
    let (examples, dropped) = encoding.fitting(records)?;
    let (n, max) = (examples.len() + dropped, encoding.max_length);
    if dropped > 0 {
        note(format!(
            "{dropped} of {n} examples have no label within {max} tokens and are left out"
        ));
    }
    Ok(examples)
}
