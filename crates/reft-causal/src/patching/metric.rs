use std::fmt;

use reft_models::Tokenizer;
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// A number of the next token's logits: one quantity of a token, or the difference of two, as `logit( him)-logit( her)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    text: String,
    terms: Vec<Term>,
}

/// A quantity of a token, with its sign.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Term {
    sign: f64,
    quantity: Quantity,
    token: i64,
}

/// The value that is read at a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantity {
    Logit,
    LogProbability,
    Probability,
}

impl Quantity {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Logit, "logit"), (Self::LogProbability, "logprob"), (Self::Probability, "prob")];

    /// The quantity of every token, `[m, v]`, from logits `[m, v]`.
    fn of(self, logits: &Tensor) -> Tensor {
        match self {
            Self::Logit => logits.shallow_clone(),
            Self::LogProbability => logits.log_softmax(-1, Kind::Float),
            Self::Probability => logits.softmax(-1, Kind::Float),
        }
    }
}

impl Metric {
    /// Reads a metric: `logit(TOKEN)`, `logprob(TOKEN)` or `prob(TOKEN)`, alone or minus a second term. A token is written as in the text, with
    /// its space.
    ///
    /// # Errors
    /// [`Error::OptionValue`] for a text of another form, or a TOKEN that is not exactly one token of the model.
    pub fn parse(text: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let refused = |expected: String| Error::OptionValue {
            option: "metric",
            found: format!("{text:?}"),
            expected,
        };
        let form = || {
            refused("logit(TOKEN), logprob(TOKEN) or prob(TOKEN), or one of them less another, as \"logit( him)-logit( her)\"".to_owned())
        };
        let mut terms = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let sign = match (terms.len(), rest.strip_prefix('-')) {
                (0, None) => 1.0,
                (1, Some(after)) => {
                    rest = after.trim_start();
                    -1.0
                }
                _ => return Err(form()),
            };
            let (name, after) = rest.split_once('(').ok_or_else(form)?;
            let quantity = Quantity::ALL.into_iter().find(|(_, own)| *own == name.trim());
            let (quantity, _) = quantity.ok_or_else(form)?;
            // a token may contain `)`: the term ends at the first `)` before the end of the text or before the minus sign
            let end = after.match_indices(')').map(|(at, _)| at).find(|at| {
                let behind = after[at + 1..].trim_start();
                behind.is_empty() || (behind.starts_with('-') && terms.is_empty())
            });
            let end = end.ok_or_else(form)?;
            let (token, behind) = (&after[..end], &after[end + 1..]);
            let ids = tokenizer.encode(token, false)?;
            let [token] = ids[..] else {
                return Err(refused(format!(
                    "one token in brackets, and {token:?} is {} of this model",
                    ids.len()
                )));
            };
            terms.push(Term { sign, quantity, token });
            rest = behind.trim_start();
        }
        if terms.is_empty() {
            return Err(form());
        }
        Ok(Self { text: text.trim().to_owned(), terms })
    }

    /// Its value `[m]` for logits `[m, v]` in f32.
    pub fn of(&self, logits: &Tensor) -> Tensor {
        let term = |term: &Term| term.quantity.of(logits).select(-1, term.token) * term.sign;
        let mut values = self.terms.iter().map(term);
        let first = values.next().expect("invariant: a metric has a term");
        values.fold(first, |sum, value| sum + value)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}
