use std::ops::Range;

use reft_models::Row;

use crate::Sequence;

/// The tokens of a sequence that an objective needs: its prompt, and the tokens up to the last whose final hidden state is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needed<'d> {
    pub(crate) sequence: &'d Sequence,
    /// Number of tokens that are needed.
    length: usize,
    /// The first token whose final hidden state is read; the length if there is none.
    pub(crate) first_wanted: usize,
}

impl<'d> Needed<'d> {
    /// The needed tokens if the final hidden states of `wanted` tokens are read, and of the tokens that labels are predicted from.
    ///
    /// Without `is_cut` every token is needed: the model is not causal, or depends on the length of a row.
    pub(crate) fn new(sequence: &'d Sequence, wanted: Range<usize>, is_cut: bool) -> Self {
        let n = sequence.row.input_ids.len();
        let read = [wanted, sequence.predicting()].into_iter().filter(|range| !range.is_empty());
        let read = read.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let length = match &read {
            Some(read) if is_cut => read.end.max(sequence.row.prompt_length).max(1).min(n),
            _ => n,
        };
        Self { sequence, length, first_wanted: read.map_or(length, |read| read.start) }
    }

    /// The tokens.
    pub(crate) fn tokens(&self) -> &'d [i64] {
        &self.sequence.row.input_ids[..self.length]
    }

    /// The sequence's row, cut to the needed tokens.
    pub(crate) fn row(&self) -> Row {
        let mut row = self.sequence.row.clone();
        row.input_ids.truncate(self.length);
        row.token_types.iter_mut().for_each(|types| types.truncate(self.length));
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::IGNORE_INDEX;

    /// Six tokens with labels in `labelled`.
    fn sequence(prompt_length: usize, labelled: Range<usize>) -> Sequence {
        let row = Row { input_ids: (10..16).collect(), prompt_length, ..Row::default() };
        let label = |token: usize| if labelled.contains(&token) { 9 } else { IGNORE_INDEX };
        Sequence { row, labels: (0..6).map(label).collect() }
    }

    fn needed(sequence: &Sequence, wanted: Range<usize>, is_cut: bool) -> (usize, usize) {
        let needed = Needed::new(sequence, wanted, is_cut);
        (needed.row().input_ids.len(), needed.first_wanted)
    }

    #[test]
    fn tokens_behind_the_last_that_predicts_are_left_out_but_not_those_of_the_prompt() {
        assert_eq!(needed(&sequence(2, 2..6), 0..0, true), (5, 1));
        assert_eq!(needed(&sequence(2, 2..4), 0..0, true), (3, 1));
        assert_eq!(needed(&sequence(5, 2..4), 0..0, true), (5, 1));
        assert_eq!(needed(&sequence(0, 0..2), 0..0, true), (1, 0));
        assert_eq!(needed(&sequence(2, 6..6), 0..0, true), (6, 6)); // nothing to predict
    }

    #[test]
    fn tokens_that_the_objective_reads_are_needed_too() {
        assert_eq!(needed(&sequence(2, 2..4), 5..6, true), (6, 1));
        assert_eq!(needed(&sequence(2, 4..5), 1..2, true), (4, 1));
        assert_eq!(needed(&sequence(2, 6..6), 3..4, true), (4, 3));
    }

    #[test]
    fn every_token_is_needed_where_later_ones_tell() {
        assert_eq!(needed(&sequence(2, 2..4), 0..0, false), (6, 1));
        assert_eq!(needed(&sequence(2, 6..6), 3..4, false), (6, 3));
    }
}
