use std::ops::Range;

use reft_models::{Layout, PaddingSide, Span};

use crate::{Example, IGNORE_INDEX, Needed, Result, Sequence};

/// The purpose of the examples of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Part {
    /// Examples to train on, or to evaluate on.
    #[default]
    Task,
    /// Replayed examples, to be answered as before the training.
    Replay,
}

/// Examples that are computed together: one forward and backward.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The layout of all sequences. Tokens that no needed hidden state depends on are left out.
    pub layout: Layout,
    /// The labels of each sequence, one per token; [`IGNORE_INDEX`] where there is none.
    pub labels: Vec<Vec<i64>>,
    /// The id of each example.
    pub ids: Vec<String>,
    /// The value of each example.
    pub values: Vec<Option<f64>>,
    /// The sequences of each example, as rows of the layout.
    pub rows: Vec<Range<usize>>,
    /// Their purpose.
    pub part: Part,
    /// Per sequence, the first token whose final hidden state is read; the sequence's length if there is none.
    pub(crate) first_wanted: Vec<usize>,
}

impl Batch {
    /// Pads sequences on the right to the longest, after `virtual_tokens` placeholders. `needed` selects each sequence's needed tokens.
    ///
    /// # Errors
    /// [`reft_models::Error::EmptyBatch`] or [`reft_models::Error::PromptLength`].
    pub(crate) fn collate<'a>(
        examples: impl IntoIterator<Item = &'a Example>,
        needed: impl Fn(&'a Sequence) -> Needed<'a>,
        virtual_tokens: usize,
    ) -> Result<Self> {
        let (mut sequences, mut labels, mut first_wanted) = (Vec::new(), Vec::new(), Vec::new());
        let (mut ids, mut values, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for example in examples {
            rows.push(sequences.len()..sequences.len() + example.sequences.len());
            ids.push(example.id.clone());
            values.push(example.value);
            for sequence in &example.sequences {
                let needed = needed(sequence);
                sequences.push(needed.row());
                labels.push(sequence.labels.clone());
                first_wanted.push(needed.first_wanted);
            }
        }
        let layout =
            Layout::new(sequences, PaddingSide::Right)?.with_virtual_tokens(virtual_tokens);
        Ok(Self { layout, labels, ids, values, rows, part: Part::Task, first_wanted })
    }

    /// The targets: for every label, the place in the span's `[b·t]` of the token before it, and the label. The span is of
    /// the batch's layout, or of one with the same rows in other columns.
    ///
    /// The first token of a row has a preceding token only with virtual tokens.
    ///
    /// # Panics
    /// If the span does not hold the token before a label.
    pub fn targets(&self, span: &Span) -> (Vec<i64>, Vec<i64>) {
        let place = |(row, column, label)| {
            let place = span.flat_column(row, column).expect("a span that holds every target");
            (place, label)
        };
        self.target_columns(span.layout).map(place).unzip()
    }

    /// The first column whose final hidden states are read, in a layout of the batch's rows.
    pub(crate) fn first_wanted_column(&self, layout: &Layout) -> usize {
        let targets = self.target_columns(layout).map(|(_, column, _)| column);
        let rows = layout.rows().iter().zip(&self.first_wanted).enumerate();
        let wanted = rows.filter(|(_, (row, first))| **first < row.input_ids.len());
        let wanted = wanted.map(|(i, (_, first))| layout.column(i, *first));
        targets.chain(wanted).min().unwrap_or(0)
    }

    /// Row, column of the token before, and label of every target.
    fn target_columns(&self, layout: &Layout) -> impl Iterator<Item = (usize, usize, i64)> {
        let first = usize::from(layout.virtual_tokens() == 0);
        self.labels.iter().enumerate().flat_map(move |(row, labels)| {
            let targets = labels.iter().enumerate().skip(first);
            let targets = targets.filter(|&(_, &label)| label != IGNORE_INDEX);
            targets.map(move |(token, &label)| (row, layout.column(row, token) - 1, label))
        })
    }

    /// Indices and labels of a sequence's labelled tokens, without the first token: the labels that every run predicts, with or without
    /// virtual tokens.
    pub(crate) fn labelled(labels: &[i64]) -> impl Iterator<Item = (usize, i64)> {
        let behind_another = labels.iter().copied().enumerate().skip(1);
        behind_another.filter(|(_, label)| *label != IGNORE_INDEX)
    }

    /// Per sequence, the number of [labels](Self::labelled) that every run predicts.
    pub(crate) fn n_labelled(&self) -> Vec<i64> {
        self.labels.iter().map(|labels| Self::labelled(labels).count() as i64).collect()
    }

    /// Indices of the [targets](Self::targets) that every run predicts; `None` for all of them.
    pub(crate) fn targets_behind_another(&self) -> Option<Vec<i64>> {
        if self.layout.virtual_tokens() == 0 {
            return None;
        }
        let tokens = self.labels.iter().flat_map(|labels| {
            let tokens = labels.iter().enumerate();
            tokens.filter(|(_, label)| **label != IGNORE_INDEX).map(|(token, _)| token)
        });
        Some((0..).zip(tokens).filter(|(_, token)| *token > 0).map(|(i, _)| i).collect())
    }

    /// Number of tokens that count in the loss.
    pub fn n_targets(&self) -> i64 {
        self.target_columns(&self.layout).count() as i64
    }

    /// Number of tokens of the examples, padding and virtual ones not among them.
    pub fn n_tokens(&self) -> usize {
        self.labels.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::Row;

    fn example(length: usize, prompt_length: usize) -> Example {
        let input_ids: Vec<i64> = (10..10 + length as i64).collect();
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&input_ids[prompt_length..]);
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Example::of(format!("{length}"), row, labels)
    }

    fn collate(examples: &[Example], virtual_tokens: usize) -> Result<Batch> {
        let needed = |sequence| Needed::new(sequence, 0..0, true);
        Batch::collate(examples, needed, virtual_tokens)
    }

    #[test]
    fn targets_are_the_labels_seen_from_the_token_before() -> Result<()> {
        let examples = [example(5, 3), example(3, 1)];
        let batch = collate(&examples, 0)?;
        assert_eq!(batch.targets(&batch.layout.whole()), (vec![2, 3, 4, 5], vec![13, 14, 11, 12]));
        assert_eq!((batch.n_targets(), batch.n_tokens()), (4, 8));
        assert_eq!(batch.layout.width(), 4); // nothing is predicted from a last token
        assert_eq!(batch.first_wanted_column(&batch.layout), 0);
        let virtual_tokens = collate(&examples, 2)?; // width 6
        assert_eq!(
            virtual_tokens.targets(&virtual_tokens.layout.whole()),
            (vec![4, 5, 8, 9], vec![13, 14, 11, 12])
        );
        assert_eq!(virtual_tokens.first_wanted_column(&virtual_tokens.layout), 2);
        Ok(())
    }

    #[test]
    fn the_first_token_is_a_target_only_behind_virtual_tokens() -> Result<()> {
        let examples = [example(2, 0)];
        let targets = |virtual_tokens| -> Result<_> {
            let batch = collate(&examples, virtual_tokens)?;
            Ok((batch.targets(&batch.layout.whole()), batch.first_wanted_column(&batch.layout)))
        };
        assert_eq!(targets(0)?, ((vec![0], vec![11]), 0));
        assert_eq!(targets(1)?, ((vec![0, 1], vec![10, 11]), 0));
        Ok(())
    }

    #[test]
    fn the_sequences_of_an_example_are_neighbours() -> Result<()> {
        let mut pair = example(5, 3);
        pair.sequences.extend(example(4, 3).sequences);
        let batch = collate(&[example(3, 2), pair, example(6, 4)], 0)?;
        assert_eq!(batch.rows, [0..1, 1..3, 3..4]);
        assert_eq!((batch.ids.len(), batch.labels.len(), batch.layout.batch_size()), (3, 4, 4));
        assert_eq!(batch.first_wanted, [1, 2, 2, 3]);
        Ok(())
    }
}
