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

/// What a batch size counts: one sequence, or several that belong together (a pair), which no micro-batch splits.
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
    /// The tokens that labels are predicted from, from the first to the last; empty if there are none.
    ///
    /// A label of the first token is not among them: only virtual tokens stand before it.
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
