use std::str::FromStr;

use anyhow::{Context, Result, bail};
use reft_models::{ChatOptions, Tokenizer};
use reft_train::{Template, TextEncoder, Turns};

use crate::generation::prompts::prompt_record;
use crate::model::ModelText;

/// A prompt as its model sees it.
#[derive(Debug, Clone)]
pub struct PromptTokens {
    /// Its token ids.
    pub ids: Vec<i64>,
    /// The text of each.
    pub texts: Vec<String>,
}

impl PromptTokens {
    /// The tokens of a text, as it stands or as a user's message.
    ///
    /// # Errors
    /// If the model has no tokenizer, if `chat` is set and it has no chat template, or if the text has no token.
    pub fn of(text: &str, model: &ModelText, chat: bool) -> Result<Self> {
        let template = if chat { Template::Chat } else { Template::Plain };
        let encoder = encoder(model, template)?;
        let ids = encoder.prompt(&prompt_record("the prompt", text))?;
        if ids.is_empty() {
            bail!("the prompt has no token; give at least one");
        }
        let texts = texts(&ids, encoder.tokenizer)?;
        Ok(Self { ids, texts })
    }

    /// Indices of the named tokens, in ascending order, each once.
    ///
    /// # Errors
    /// If a name matches no token of the prompt.
    pub fn named(&self, names: &[TokenName]) -> Result<Vec<usize>> {
        let mut found = Vec::new();
        for name in names {
            let before = found.len();
            let n = self.ids.len();
            match name {
                TokenName::All => found.extend(0..n),
                TokenName::At(at) if *at >= 0 => found.extend((0..n).nth(*at as usize)),
                TokenName::At(at) => found.extend(n.checked_sub(at.unsigned_abs() as usize)),
                TokenName::Text(text) => {
                    let is_it = |own: &&String| own.trim() == text.trim();
                    let places = self.texts.iter().enumerate().filter(|(_, own)| is_it(own));
                    found.extend(places.map(|(at, _)| at));
                }
            }
            if found.len() == before {
                bail!("the prompt has no token {name:?}; its {n} tokens are {:?}", self.texts);
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// Turns the prompts of these commands into tokens.
///
/// # Errors
/// If the model has no tokenizer.
pub fn encoder(model: &ModelText, template: Template) -> Result<TextEncoder<'_>> {
    model.encoder(template, Turns::Last).context("the model has no tokenizer; this needs text")
}

/// The text of each token.
///
/// # Errors
/// If a token cannot be decoded.
pub fn texts(ids: &[i64], tokenizer: &Tokenizer) -> Result<Vec<String>> {
    Ok(ids.iter().map(|id| tokenizer.decode(&[*id], false)).collect::<Result<_, _>>()?)
}

/// Opens a model's tokenizer and chat template.
///
/// # Errors
/// As [`ModelText::open`].
pub fn text_of(model: &std::path::Path) -> Result<ModelText> {
    ModelText::open(model, &ChatOptions::default())
}

/// A name of one or several tokens of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenName {
    /// All tokens.
    All,
    /// The token at an index from 0, or at a negative index from the end: −1 is the last token.
    At(i64),
    /// All tokens with this text, without the spaces around it.
    Text(String),
}

impl FromStr for TokenName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.trim() {
            "all" => Self::All,
            "last" => Self::At(-1),
            name => name.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::At),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_named_by_place_and_text() -> Result<()> {
        let texts = ["The", " cat", " saw", " the", " cat"].map(str::to_owned).to_vec();
        let prompt = PromptTokens { ids: vec![1, 2, 3, 4, 2], texts };
        let named = |names: &str| {
            let names: Vec<TokenName> = names.split(',').map(|n| n.parse().unwrap()).collect();
            prompt.named(&names)
        };
        assert_eq!(named("last")?, [4]);
        assert_eq!(named("cat,0")?, [0, 1, 4]);
        assert_eq!(named("-2,all")?, [0, 1, 2, 3, 4]);
        for wrong in ["5", "-6", "dog"] {
            let refused = named(wrong).map_err(|error| error.to_string());
            assert!(refused.as_ref().is_err_and(|text| text.contains("saw")), "{refused:?}");
        }
        Ok(())
    }
}
