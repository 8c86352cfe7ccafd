use std::ops::Range;

use reft_models::Row;

/// The label of a token that does not count in the loss.
pub const IGNORE_INDEX: i64 = -100;

/// A tokenised sequence and its labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// Its tokens.
    pub row: Row,
    /// One per token: the token itself where it counts in the loss, else [`IGNORE_INDEX`].
    pub labels: Vec<i64>,
}

/// The unit of a batch size: one sequence, or several that belong together (a pair), which no micro-batch splits.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The id of its row.
    pub id: String,
    /// Its sequences, at least one.
    pub sequences: Vec<Sequence>,
    /// A class or a number, for objectives that learn one.
    pub value: Option<f64>,
}

impl Sequence {
    /// The range of tokens that labels are predicted from; empty if there are none.
    ///
    /// The first token's label does not count: only virtual tokens can precede it.
    pub fn predicting(&self) -> Range<usize> {
        let is_label = |label: &i64| *label != IGNORE_INDEX;
        let labels = self.labels.get(1..).unwrap_or_default();
        let first = labels.iter().position(is_label).unwrap_or(0);
        let end = labels.iter().rposition(is_label).map_or(0, |last| last + 1);
        first..end
    }
}

impl Example {
    /// An example of one sequence.
    pub fn of(id: impl Into<String>, row: Row, labels: Vec<i64>) -> Self {
        Self { id: id.into(), sequences: vec![Sequence { row, labels }], value: None }
    }

    /// Labels every token, prompts' tokens too.
    pub fn label_all(&mut self) {
        for Sequence { row, labels } in &mut self.sequences {
            labels.clone_from(&row.input_ids);
        }
    }

    /// Keeps the first `n` labels of each sequence, and cuts the sequence after the last of them.
    pub fn keep_labels(&mut self, n: usize) {
        for Sequence { row, labels } in &mut self.sequences {
            let labelled = labels.iter().enumerate().filter(|(_, label)| **label != IGNORE_INDEX);
            let Some((last, _)) = labelled.take(n).last() else { continue };
            let length = (last + 1).max(row.prompt_length);
            labels[last + 1..].fill(IGNORE_INDEX);
            labels.truncate(length);
            row.input_ids.truncate(length);
            row.token_types.iter_mut().for_each(|types| types.truncate(length));
        }
    }

    /// The tokens of its first sequence.
    ///
    /// # Panics
    /// If it has no sequence.
    pub fn row(&self) -> &Row {
        &self.sequences[0].row
    }

    /// The labels of its first sequence.
    ///
    /// # Panics
    /// If it has no sequence.
    pub fn labels(&self) -> &[i64] {
        &self.sequences[0].labels
    }

    /// Number of tokens of its longest sequence.
    pub fn length(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.row.input_ids.len()).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_labels_of_each_sequence_stay() {
        let of = |labels: &[i64], prompt_length: usize| {
            let input_ids = (0..labels.len() as i64).collect();
            let row = Row { input_ids, prompt_length, ..Row::default() };
            Sequence { row, labels: labels.to_vec() }
        };
        let kept = |labels: &[i64], prompt_length: usize, n: usize| {
            let sequences = vec![of(labels, prompt_length); 2];
            let mut example = Example { id: "it".to_owned(), sequences, value: None };
            example.keep_labels(n);
            assert_eq!(example.sequences[0], example.sequences[1]);
            assert_eq!(example.labels().len(), example.row().input_ids.len());
            example.labels().to_vec()
        };
        const NO: i64 = IGNORE_INDEX;
        assert_eq!(kept(&[NO, NO, 2, 3, 4], 2, 2), [NO, NO, 2, 3]);
        assert_eq!(kept(&[NO, 1, NO, 3, 4], 1, 2), [NO, 1, NO, 3]);
        assert_eq!(kept(&[NO, 1, NO, NO], 3, 1), [NO, 1, NO]); // the prompt stays whole
        assert_eq!(kept(&[NO, 1, 2], 1, 7), [NO, 1, 2]);
        assert_eq!(kept(&[NO, NO], 1, 3), [NO, NO]);
    }
}
