//! From data rows to tokens, and what becomes of rows that are too long.

use std::path::Path;
use std::slice;

use anyhow::{Context, Result};
use reft_train::{Error, Example, Record, TextEncoder, tokenize};

use crate::output::note;

/// How rows become examples.
#[derive(Debug)]
pub struct ExampleOptions<'a> {
    /// The model's tokenizer and templates, if it has any.
    pub encoder: Option<TextEncoder<'a>>,
    /// Vocabulary of the model.
    pub vocab_size: i64,
    /// Longest example in tokens.
    pub max_length: usize,
    /// Whether an example that has no label left when it is cut is left out rather than refused.
    pub drop_too_long: bool,
}

impl ExampleOptions<'_> {
    /// The examples of the rows of a file.
    ///
    /// # Errors
    /// The first row that cannot be used.
    pub fn examples(&self, records: &[Record], file: &Path) -> Result<Vec<Example>> {
        let examples =
            if self.drop_too_long { self.fitting(records) } else { self.tokenize(records) };
        let advice = match &examples {
            Err(Error::NoTarget { .. }) => " (--drop-too-long leaves such examples out)",
            _ => "",
        };
        examples.with_context(|| format!("cannot use {}{advice}", file.display()))
    }

    fn tokenize(&self, records: &[Record]) -> reft_train::Result<Vec<Example>> {
        tokenize(records, self.encoder.as_ref(), self.vocab_size, self.max_length)
    }

    fn fitting(&self, records: &[Record]) -> reft_train::Result<Vec<Example>> {
        let mut examples = Vec::with_capacity(records.len());
        for record in records {
            match self.tokenize(slice::from_ref(record)) {
                Ok(example) => examples.extend(example),
                Err(Error::NoTarget { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        let (dropped, n, max) = (records.len() - examples.len(), records.len(), self.max_length);
        if dropped > 0 {
            note(&format!(
                "{dropped} of {n} examples have no label within {max} tokens and are left out"
            ));
        }
        Ok(examples)
    }
}
