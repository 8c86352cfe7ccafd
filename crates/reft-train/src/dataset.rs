use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use reft_models::Row;
use sha2::{Digest, Sha256};

use crate::data::{Content, Record};
use crate::seed::seed_of;
use crate::template::TextEncoder;
use crate::{Error, Result};

/// The label of a token that does not count in the loss.
pub const IGNORE_INDEX: i64 = -100;

/// A tokenised row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The row's id.
    pub id: String,
    /// Its tokens.
    pub row: Row,
    /// One per token: the token itself where it counts in the loss, else [`IGNORE_INDEX`].
    pub labels: Vec<i64>,
}

/// Examples to train on, and examples held out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    /// Examples to train on.
    pub train: Vec<Example>,
    /// Examples held out: their loss chooses the adapter that is kept.
    pub validation: Vec<Example>,
}

/// Tokenises rows, in parallel.
///
/// An example longer than `max_length` is cut at its end. `encoder` may be left out if every row holds tokens.
///
/// # Errors
/// The first of the rows that fails, with its id: [`Error::Template`], [`Error::Example`], [`Error::TokenId`],
/// [`Error::PromptLength`], [`Error::LabelCount`], or [`Error::NoTarget`] if no label is left after the cut.
pub fn tokenize(
    records: &[Record],
    encoder: Option<&TextEncoder>,
    vocab_size: i64,
    max_length: usize,
) -> Result<Vec<Example>> {
    let examples: Vec<Result<Example>> = records
        .par_iter()
        .map(|record| Example::from_record(record, encoder, vocab_size, max_length))
        .collect();
    examples.into_iter().collect() // the first error in the file's order, whatever thread found one first
}

impl Example {
    fn from_record(
        record: &Record,
        encoder: Option<&TextEncoder>,
        vocab_size: i64,
        max_length: usize,
    ) -> Result<Self> {
        let id = || record.id.clone();
        let (mut input_ids, prompt_length, labels) = match (&record.content, encoder) {
            (Content::Tokens { input_ids, prompt_length, labels }, _) => {
                (input_ids.clone(), *prompt_length, labels.clone())
            }
            (_, Some(encoder)) => {
                let (prompt, completion) = encoder.encode(record)?;
                let prompt_length = prompt.len();
                ([prompt, completion].concat(), prompt_length, None)
            }
            (_, None) => {
                let reason =
                    "the row holds text and the model has no tokenizer; give input_ids".into();
                return Err(Error::Template { id: id(), reason });
            }
        };
        let length = input_ids.len();
        if prompt_length > length {
            return Err(Error::PromptLength { id: id(), prompt_length, length });
        }
        let mut labels = labels.unwrap_or_else(|| {
            let prompt = std::iter::repeat_n(IGNORE_INDEX, prompt_length);
            prompt.chain(input_ids[prompt_length..].iter().copied()).collect()
        });
        if labels.len() != length {
            return Err(Error::LabelCount { id: id(), labels: labels.len(), tokens: length });
        }
        let targets = labels.iter().filter(|&&label| label != IGNORE_INDEX);
        let mut tokens = input_ids.iter().chain(targets);
        if let Some(&token) = tokens.find(|token| !(0..vocab_size).contains(*token)) {
            return Err(Error::TokenId { id: id(), token, vocab_size });
        }
        input_ids.truncate(max_length);
        labels.truncate(max_length);
        // The first token has none before it that it could be predicted from.
        if labels.iter().skip(1).all(|&label| label == IGNORE_INDEX) {
            return Err(Error::NoTarget { id: id(), length, max_length });
        }
        let prompt_length = prompt_length.min(input_ids.len());
        let row =
            Row { input_ids, prompt_length, subspace: record.subspace.clone(), ..Row::default() };
        Ok(Self { id: id(), row, labels })
    }
}

impl Dataset {
    /// Holds examples out at random: a share of them (`validation` below 1, rounded, at least one), a number (1 and above), or
    /// none (0). What is left keeps its order.
    ///
    /// # Errors
    /// [`Error::TooFewExamples`] if none is left to train on.
    pub fn split(examples: Vec<Example>, validation: f64, seed: u64) -> Result<Self> {
        let n = examples.len();
        let held_out = match validation {
            0.0 => 0,
            share if share < 1.0 => ((share * n as f64).round() as usize).max(1),
            count => count as usize,
        };
        if held_out >= n {
            let train = n.saturating_sub(held_out);
            return Err(Error::TooFewExamples { train, validation: held_out });
        }
        let mut is_held_out = vec![false; n];
        is_held_out[..held_out].fill(true);
        is_held_out.shuffle(&mut StdRng::seed_from_u64(seed_of(&[seed, n as u64])));
        let mut dataset = Self::default();
        for (example, is_held_out) in examples.into_iter().zip(is_held_out) {
            let part = if is_held_out { &mut dataset.validation } else { &mut dataset.train };
            part.push(example);
        }
        Ok(dataset)
    }

    /// SHA-256 of everything that training depends on, in hexadecimal.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        let mut number = |x: i64| hasher.update(x.to_le_bytes());
        for part in [&self.train, &self.validation] {
            number(part.len() as i64);
            for Example { row, labels, .. } in part {
                number(row.prompt_length as i64);
                let subspace = row.subspace.as_deref();
                number(subspace.map_or(-1, |subspace| subspace.len() as i64));
                subspace.unwrap_or_default().iter().for_each(|&x| number(x));
                number(labels.len() as i64);
                row.input_ids.iter().chain(labels).for_each(|&x| number(x));
            }
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input_ids: &[i64], prompt_length: usize, labels: Option<&[i64]>) -> Record {
        let content = Content::Tokens {
            input_ids: input_ids.to_vec(),
            prompt_length,
            labels: labels.map(<[_]>::to_vec),
        };
        Record { id: "it".to_owned(), content, subspace: Some(vec![1]) }
    }

    fn one(record: Record, max_length: usize) -> Result<Example> {
        Ok(tokenize(&[record], None, 100, max_length)?.remove(0))
    }

    #[test]
    fn tokens_are_taken_as_they_are() -> Result<()> {
        let example = one(tokens(&[5, 6, 7, 8], 2, None), 512)?;
        assert_eq!(example.labels, [-100, -100, 7, 8]);
        let row = Row {
            input_ids: vec![5, 6, 7, 8],
            prompt_length: 2,
            subspace: Some(vec![1]),
            ..Row::default()
        };
        assert_eq!((example.id.as_str(), &example.row), ("it", &row));
        let example = one(tokens(&[5, 6, 7, 8], 2, Some(&[-100, -100, -100, 3])), 512)?;
        assert_eq!(example.labels, [-100, -100, -100, 3]);
        Ok(())
    }

    #[test]
    fn what_is_too_long_is_cut_at_its_end() -> Result<()> {
        let example = one(tokens(&[5, 6, 7, 8], 2, None), 3)?;
        assert_eq!((example.row.input_ids, example.labels), (vec![5, 6, 7], vec![-100, -100, 7]));
        Ok(())
    }

    #[test]
    fn impossible_examples_are_refused_by_id() {
        let no_target = |record, max_length| {
            let refused = one(record, max_length);
            assert!(
                matches!(&refused, Err(Error::NoTarget { id, length: 4, .. }) if id == "it"),
                "{refused:?}"
            );
        };
        no_target(tokens(&[5, 6, 7, 8], 2, None), 2);
        no_target(tokens(&[5, 6, 7, 8], 4, None), 512);
        no_target(tokens(&[5, 6, 7, 8], 0, Some(&[5, -100, -100, -100])), 512);
        assert!(matches!(
            one(tokens(&[5, 100, 7], 1, None), 512),
            Err(Error::TokenId { token: 100, vocab_size: 100, .. })
        ));
        assert!(matches!(
            one(tokens(&[5, 6, 7], 1, Some(&[-100, -1, 7])), 512),
            Err(Error::TokenId { token: -1, .. })
        ));
        assert!(matches!(
            one(tokens(&[5, 6], 3, None), 512),
            Err(Error::PromptLength { prompt_length: 3, length: 2, .. })
        ));
        assert!(matches!(
            one(tokens(&[5, 6, 7], 1, Some(&[-100, 6])), 512),
            Err(Error::LabelCount { labels: 2, tokens: 3, .. })
        ));
        let text = Content::Completion { prompt: "a".into(), completion: "b".into() };
        let text = Record { id: "it".into(), content: text, subspace: None };
        assert!(matches!(one(text, 512), Err(Error::Template { id, .. }) if id == "it"));
    }

    #[test]
    fn the_first_bad_row_is_the_one_reported() {
        let mut records = vec![tokens(&[5, 6, 7], 1, None); 500];
        for i in [499, 137, 300] {
            records[i] = tokens(&[5, 6, 100 + i as i64], 1, None);
        }
        assert!(matches!(
            tokenize(&records, None, 100, 512),
            Err(Error::TokenId { token: 237, .. })
        ));
    }

    #[test]
    fn a_split_is_seeded_whole_and_of_the_size_asked_for() -> Result<()> {
        let examples: Vec<Example> =
            (0..40).map(|i| one(tokens(&[i, i, i], 1, None), 512)).collect::<Result<_>>()?;
        for (validation, held_out) in [(0.0, 0), (0.1, 4), (0.001, 1), (7.0, 7), (39.0, 39)] {
            let split = Dataset::split(examples.clone(), validation, 3)?;
            assert_eq!((split.train.len(), split.validation.len()), (40 - held_out, held_out));
            let in_order = |part: &[Example]| {
                part.windows(2).all(|w| w[0].row.input_ids[0] < w[1].row.input_ids[0])
            };
            assert!(in_order(&split.train) && in_order(&split.validation));
            assert_eq!(split, Dataset::split(examples.clone(), validation, 3)?);
        }
        let split = |seed| Dataset::split(examples.clone(), 0.5, seed).map(|split| split.digest());
        assert_ne!(split(1)?, split(2)?);
        assert!(matches!(
            Dataset::split(examples, 40.0, 3),
            Err(Error::TooFewExamples { train: 0, validation: 40 })
        ));
        Ok(())
    }

    #[test]
    fn the_digest_changes_with_every_part_of_the_data() -> Result<()> {
        let digest = |record: Record| -> Result<String> {
            Ok(Dataset { train: vec![one(record, 512)?], validation: Vec::new() }.digest())
        };
        let reference = digest(tokens(&[5, 6, 7], 1, None))?;
        assert_eq!(reference, digest(tokens(&[5, 6, 7], 1, None))?);
        let mut other_subspace = tokens(&[5, 6, 7], 1, None);
        other_subspace.subspace = None;
        for other in [
            tokens(&[5, 6, 8], 1, None),
            tokens(&[5, 6, 7], 1, Some(&[-100, -100, 7])),
            tokens(&[5, 6, 7], 2, Some(&[-100, 6, 7])),
            other_subspace,
        ] {
            assert_ne!(reference, digest(other)?);
        }
        Ok(())
    }
}
