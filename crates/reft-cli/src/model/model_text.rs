use std::path::Path;
use std::slice;

use anyhow::{Context, Result};
use reft_models::{ChatTemplate, Tokenizer};
use reft_train::{Encoding, Error, Example, Record, Template, TextEncoder};

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
    let mut examples = Vec::with_capacity(records.len());
    for record in records {
        match encoding.examples(slice::from_ref(record)) {
            Ok(example) => examples.extend(example),
            Err(Error::NoTarget { .. }) => {}
            Err(other) => return Err(other),
        }
    }
    let (dropped, n, max) = (records.len() - examples.len(), records.len(), encoding.max_length);
    if dropped > 0 {
        note(format!(
            "{dropped} of {n} examples have no label within {max} tokens and are left out"
        ));
    }
    Ok(examples)
}
