//! Decoding token by token.

use crate::{Result, Tokenizer};

/// Turns generated ids into text as they come.
///
/// A token may end inside a UTF-8 character, and how a token reads may depend on the one before it. So text is given out only
/// once it is certain; everything pushed, plus [`DecodeStream::finish`], is exactly [`Tokenizer::decode`] of all ids.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The ids of the last piece given out, then the ids not given out yet.
    ids: Vec<i64>,
    n_given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), n_given: 0 }
    }

    /// Takes the next id, and returns the text that has become certain, if any.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the id is negative.
    pub fn push(&mut self, id: i64) -> Result<Option<String>> {
        self.ids.push(id);
        let certain = |text: &String| !text.ends_with(char::REPLACEMENT_CHARACTER); // else perhaps the first bytes of a character
        let new = self.pending()?.filter(certain);
        if new.is_some() {
            self.ids.drain(..self.n_given);
            self.n_given = self.ids.len();
        }
        Ok(new)
    }

    /// The text that is left when no more ids come, such as an unfinished character.
    ///
    /// # Errors
    /// As [`DecodeStream::push`].
    pub fn finish(self) -> Result<Option<String>> {
        self.pending()
    }

    /// The text that follows the last piece given out, if there is any.
    fn pending(&self) -> Result<Option<String>> {
        let given = self.tokenizer.decode(&self.ids[..self.n_given], self.skip_special)?;
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(text.strip_prefix(&given).filter(|new| !new.is_empty()).map(str::to_owned))
    }
}
