use std::fmt::Display;

use crate::{AdapterStack, Error, ModelDescription, Result};

/// The number of tokens that a model's context must hold: a row's own, the adapters' before them, and the generated ones after them.
///
/// All checks of row lengths use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextLimit {
    /// The model's `max_position_embeddings`.
    pub limit: usize,
    /// Number of virtual tokens and of prefix tokens before every row.
    pub before: usize,
    /// Tokens to be generated after a row.
    pub new_tokens: usize,
}

impl ContextLimit {
    /// The context of a model with `before` virtual or prefix tokens before every row.
    pub fn new(model: &ModelDescription, before: usize) -> Self {
        let limit = model.max_position_embeddings.max(0) as usize;
        Self { limit, before, new_tokens: 0 }
    }

    /// The context of a model with adapters.
    pub fn of(model: &ModelDescription, adapters: &AdapterStack) -> Self {
        Self::new(model, adapters.virtual_tokens() + adapters.prefix_length())
    }

    /// The same with tokens to be generated.
    pub fn generating(self, new_tokens: usize) -> Self {
        Self { new_tokens, ..self }
    }

    /// Tokens that a row may have.
    pub fn room(self) -> usize {
        self.limit.saturating_sub(self.before).saturating_sub(self.new_tokens)
    }

    /// Checks the lengths of rows, by their names.
    ///
    /// # Errors
    /// [`Error::ContextFull`] with the rows that are too long.
    pub fn check<N: Display>(self, rows: impl IntoIterator<Item = (N, usize)>) -> Result<()> {
        let long = rows.into_iter().filter(|(_, length)| *length > self.room());
        let rows: Vec<(String, usize)> =
            long.map(|(name, length)| (name.to_string(), length)).collect();
        let (room, Self { limit, before, new_tokens }) = (self.room(), self);
        match rows.is_empty() {
            true => Ok(()),
            false => Err(Error::ContextFull { rows, limit, before, new_tokens, room }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_do_not_fit_are_named_with_what_to_do() {
        let context = ContextLimit { limit: 256, before: 4, new_tokens: 0 };
        assert_eq!(context.room(), 252);
        let fits = |n: usize| context.check([("row 1", n), ("row 2", 0)]).is_ok();
        assert_eq!([0, 252, 253].map(fits), [true, true, false]);
        let refused = context.check((1..10).map(|i| (format!("row {i}"), 246 + i)));
        let rows: Vec<(String, usize)> = (7..10).map(|i| (format!("row {i}"), 246 + i)).collect();
        assert!(
            matches!(
                &refused,
                Err(Error::ContextFull { rows: found, limit: 256, before: 4, new_tokens: 0, room: 252 })
                    if *found == rows
            ),
            "{refused:?}"
        );
        let said = |context: ContextLimit, n: usize| {
            let refused = context.check((1..=n).map(|i| (format!("row {i}"), 300)));
            refused.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(
            said(context, 1),
            "row 1 has 300 tokens, beside 4 virtual tokens or tokens of a prefix before it; the model's context is 256: shorten to 252 (max_length cuts examples), or leave out"
        );
        let said = said(ContextLimit { before: 0, ..context }.generating(6), 7);
        assert!(said.starts_with("row 1 has 300 tokens, row 2 has"), "{said}");
        let end = "and 2 more are too long, beside 6 new ones after it; the model's context is 256: shorten to 250, or lower max_new_tokens";
        assert!(said.ends_with(end), "{said}");
    }
}
