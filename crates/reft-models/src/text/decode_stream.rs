//! Decoding token by token.

use crate::{Result, Tokenizer};

/// Turns generated ids into text as they come.
///
/// A token may end inside a UTF-8 character, and the text of a token may depend on the token before it. So text is returned only once
/// it can no longer change; all returned texts, plus [`DecodeStream::finish`], are exactly [`Tokenizer::decode`] of all ids.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids of the last returned piece, then the ids without returned text.
    ids: Vec<i64>,
    n_given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), n_given: 0 }
    }

    /// Takes the next id, and returns the text that can no longer change, if any.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the id is negative.
    pub fn push(&mut self, id: i64) -> Result<Option<String>> {
        self.ids.push(id);
        let certain = |text: &String| !text.ends_with(char::REPLACEMENT_CHARACTER); // this may be the first bytes of a character
        let new = self.pending()?.filter(certain);
        if new.is_some() {
            self.ids.drain(..self.n_given);
            self.n_given = self.ids.len();
        }
        Ok(new)
    }

    /// The remaining text after the last id, such as an unfinished character.
    ///
    /// # Errors
    /// As [`DecodeStream::push`].
    pub fn finish(self) -> Result<Option<String>> {
        self.pending()
    }

    /// The text after the last returned piece, if there is any.
    fn pending(&self) -> Result<Option<String>> {
        let given = self.tokenizer.decode(&self.ids[..self.n_given], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(text.strip_prefix(&given).filter(|new| !new.is_empty()).map(str::to_owned))
    }
}
