use std::str::FromStr;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use reft_models::{Layout, PaddingSide, Row, Span};
use serde::{Deserialize, Serialize};

use crate::dataset::{Example, IGNORE_INDEX};
use crate::seed::seed_of;
use crate::{Error, Result};

/// Order in which examples are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Shuffled, but examples of a micro-batch are of like length, so that little is padding.
    #[default]
    Length,
    /// Shuffled.
    Plain,
    /// As they stand in the file.
    None,
}

impl FromStr for Shuffle {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "length" => Ok(Self::Length),
            "plain" => Ok(Self::Plain),
            "none" => Ok(Self::None),
            _ => Err(Error::UnknownName {
                what: "shuffle",
                found: s.to_owned(),
                accepted: "length, plain, none",
            }),
        }
    }
}

/// Micro-batches whose examples are sorted by length together.
const BUCKET: usize = 32;

/// The micro-batches of an epoch, as indices into `examples`: a pure function of its arguments.
///
/// Every example is in one of them. Only the last may be smaller than `batch_size`.
pub fn epoch_batches(
    examples: &[Example],
    batch_size: usize,
    shuffle: Shuffle,
    seed: u64,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let mut rng = StdRng::seed_from_u64(seed_of(&[seed, epoch as u64]));
    let mut order: Vec<usize> = (0..examples.len()).collect();
    if shuffle != Shuffle::None {
        order.shuffle(&mut rng);
    }
    if shuffle == Shuffle::Length {
        for bucket in order.chunks_mut(BUCKET * batch_size) {
            bucket.sort_by_key(|&i| examples[i].row.input_ids.len()); // stable: ties stay shuffled
        }
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[_]>::to_vec).collect();
    if shuffle == Shuffle::Length {
        let whole = examples.len() / batch_size; // a smaller batch stays last
        batches[..whole].shuffle(&mut rng);
    }
    batches
}

/// Examples side by side: one forward and backward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Where their tokens stand. What is behind the token that the last label is predicted from is left out, but for the prompt: no
    /// earlier hidden state depends on it.
    pub layout: Layout,
    /// The labels of each example, one per token; [`IGNORE_INDEX`] where there is none.
    pub labels: Vec<Vec<i64>>,
    /// The examples' ids.
    pub ids: Vec<String>,
}

impl Batch {
    /// Pads examples to the longest, on the right, behind `virtual_tokens` placeholders.
    ///
    /// # Errors
    /// [`reft_models::Error::EmptyBatch`] or [`reft_models::Error::PromptLength`].
    pub fn collate<'a>(
        examples: impl IntoIterator<Item = &'a Example>,
        virtual_tokens: usize,
    ) -> Result<Self> {
        let (mut rows, mut labels, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            rows.push(Row { input_ids: needed(example).to_vec(), ..example.row.clone() });
            labels.push(example.labels.clone());
            ids.push(example.id.clone());
        }
        let layout = Layout::new(rows, PaddingSide::Right)?.with_virtual_tokens(virtual_tokens);
        Ok(Self { layout, labels, ids })
    }

    /// The same examples in columns where token `tokens[i]` of row `i` stands in the same one for all rows.
    ///
    /// # Errors
    /// As [`Self::collate`].
    pub(crate) fn aligned(&self, tokens: &[usize]) -> Result<Self> {
        let layout = Layout::aligned(self.layout.rows().to_vec(), tokens)?;
        Ok(Self { layout, labels: self.labels.clone(), ids: self.ids.clone() })
    }

    /// What is to be predicted: for every label, the place in the span's `[b·t]` of the token before it, and the label.
    ///
    /// The first token of a row has a token before it only behind virtual tokens.
    ///
    /// # Panics
    /// If the span does not hold the token before a label.
    pub fn targets(&self, span: &Span) -> (Vec<i64>, Vec<i64>) {
        let place = |(row, column, label)| {
            let place = span.flat_column(row, column).expect("a span that holds every target");
            (place, label)
        };
        self.target_columns().map(place).unzip()
    }

    /// The first column that a label is predicted from.
    pub(crate) fn first_target_column(&self) -> usize {
        self.target_columns().map(|(_, column, _)| column).min().unwrap_or(0)
    }

    /// The first token of each row that a label is predicted from; the row's length if there is none.
    pub(crate) fn first_targets(&self) -> Vec<usize> {
        let mut first: Vec<usize> = self.labels.iter().map(Vec::len).collect();
        for (row, column, _) in self.target_columns() {
            first[row] = first[row].min(column.saturating_sub(self.layout.column(row, 0)));
        }
        first
    }

    /// Row, column of the token before, and label of every target.
    fn target_columns(&self) -> impl Iterator<Item = (usize, usize, i64)> {
        let first = usize::from(self.layout.virtual_tokens() == 0);
        self.labels.iter().enumerate().flat_map(move |(row, labels)| {
            let targets = labels.iter().enumerate().skip(first);
            let targets = targets.filter(|&(_, &label)| label != IGNORE_INDEX);
            targets.map(move |(token, &label)| (row, self.layout.column(row, token) - 1, label))
        })
    }

    /// Number of tokens that count in the loss.
    pub fn n_targets(&self) -> i64 {
        self.target_columns().count() as i64
    }

    /// Number of tokens of the examples, padding and virtual ones not among them.
    pub fn n_tokens(&self) -> usize {
        self.labels.iter().map(Vec::len).sum()
    }
}

/// The tokens of an example that its loss depends on, and the rest of its prompt.
pub(crate) fn needed(example: &Example) -> &[i64] {
    let Row { input_ids, prompt_length, .. } = &example.row;
    let last = example.labels.iter().rposition(|&label| label != IGNORE_INDEX);
    let end = last.map_or(input_ids.len(), |last| last.max(*prompt_length).max(1));
    &input_ids[..end.min(input_ids.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(length: usize, prompt_length: usize) -> Example {
        let input_ids: Vec<i64> = (10..10 + length as i64).collect();
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&input_ids[prompt_length..]);
        Example {
            id: format!("{length}"),
            row: Row { input_ids, prompt_length, ..Row::default() },
            labels,
        }
    }

    #[test]
    fn targets_are_the_labels_seen_from_the_token_before() -> Result<()> {
        let examples = [example(5, 3), example(3, 1)];
        let batch = Batch::collate(&examples, 0)?;
        assert_eq!(batch.targets(&batch.layout.whole()), (vec![2, 3, 4, 5], vec![13, 14, 11, 12]));
        assert_eq!((batch.n_targets(), batch.n_tokens()), (4, 8));
        assert_eq!(batch.layout.width(), 4); // nothing is predicted from a last token
        let virtual_tokens = Batch::collate(&examples, 2)?; // width 6
        assert_eq!(
            virtual_tokens.targets(&virtual_tokens.layout.whole()),
            (vec![4, 5, 8, 9], vec![13, 14, 11, 12])
        );
        Ok(())
    }

    #[test]
    fn the_first_token_is_a_target_only_behind_virtual_tokens() -> Result<()> {
        let examples = [example(2, 0)];
        let targets = |virtual_tokens| -> Result<_> {
            let batch = Batch::collate(&examples, virtual_tokens)?;
            Ok(batch.targets(&batch.layout.whole()))
        };
        assert_eq!(targets(0)?, (vec![0], vec![11]));
        assert_eq!(targets(1)?, (vec![0, 1], vec![10, 11]));
        Ok(())
    }

    #[test]
    fn tokens_behind_the_last_that_predicts_are_left_out_but_not_those_of_the_prompt() {
        let unlabelled = |from: usize, prompt_length| {
            let mut example =
                Example { row: Row { prompt_length, ..example(6, 2).row }, ..example(6, 2) };
            example.labels[from..].fill(IGNORE_INDEX);
            needed(&example).len()
        };
        assert_eq!(unlabelled(6, 2), 5);
        assert_eq!(unlabelled(4, 2), 3);
        assert_eq!(unlabelled(4, 5), 5);
        assert_eq!(unlabelled(0, 2), 6); // nothing to predict
        assert_eq!(needed(&example(1, 0)).len(), 1);
    }

    #[test]
    fn length_grouping_pads_less_than_a_plain_shuffle() -> Result<()> {
        let examples: Vec<_> = (0..200).map(|i| example(2 + (i * 37) % 100, 1)).collect();
        let columns = |shuffle| -> Result<usize> {
            let mut sum = 0;
            for batch in epoch_batches(&examples, 4, shuffle, 1, 0) {
                let batch = Batch::collate(batch.iter().map(|&i| &examples[i]), 0)?;
                sum += batch.layout.width() * batch.layout.batch_size();
            }
            Ok(sum)
        };
        let tokens: usize = examples.iter().map(|e| e.row.input_ids.len()).sum();
        assert!(columns(Shuffle::Length)? < tokens * 106 / 100);
        assert!(columns(Shuffle::Plain)? > tokens * 130 / 100);
        Ok(())
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let examples: Vec<_> = (0..50).map(|i| example(2 + i % 7, 1)).collect();
        for shuffle in [Shuffle::Length, Shuffle::Plain] {
            let order = |seed, epoch| epoch_batches(&examples, 3, shuffle, seed, epoch);
            assert_eq!(order(5, 2), order(5, 2));
            assert_ne!(order(5, 2), order(5, 3));
            assert_ne!(order(5, 2), order(6, 2));
        }
        let as_is: Vec<usize> =
            epoch_batches(&examples, 3, Shuffle::None, 5, 2).into_iter().flatten().collect();
        assert_eq!(as_is, (0..50).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn every_example_is_in_one_batch(n in 0usize..90, batch_size in 1usize..9, kind in 0usize..3, seed: u64) {
            let examples: Vec<_> = (0..n).map(|i| example(2 + (i * 7) % 11, 1)).collect();
            let shuffle = [Shuffle::Length, Shuffle::Plain, Shuffle::None][kind];
            let batches = epoch_batches(&examples, batch_size, shuffle, seed, 3);
            prop_assert_eq!(batches.len(), n.div_ceil(batch_size));
            for batch in batches.iter().rev().skip(1) {
                prop_assert_eq!(batch.len(), batch_size);
            }
            let mut seen: Vec<usize> = batches.into_iter().flatten().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }
}
