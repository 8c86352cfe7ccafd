use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use reft_models::Row;

use crate::Needed;

/// Sequences whose frozen part is computed in one forward: one forward of eight rows is faster than eight of one row.
///
/// The rounding of a row depends on the other rows of its forward, so a row is always computed with the same group, whichever batch asks for
/// it first. Rows of equal tokens are one row, in the first group that has them.
#[derive(Debug, Default)]
pub(crate) struct Groups<'d> {
    groups: Vec<Vec<Needed<'d>>>,
    group_of: HashMap<u64, usize>, // by the hash of a row's tokens
}

/// Smallest length in a group, as a share of its longest row's: padding costs time too.
const LEAST_SHARE: f64 = 0.8;

impl<'d> Groups<'d> {
    /// Groups of the sequences of micro-batches: sequences of one batch are together if they are of like length.
    pub(crate) fn new(batches: impl IntoIterator<Item = Vec<Needed<'d>>>) -> Self {
        let mut groups = Self::default();
        let length = |needed: &Needed| needed.tokens().len();
        for mut batch in batches {
            batch.sort_by_key(length);
            let mut rest = batch.as_slice();
            while let Some(longest) = rest.last().map(length) {
                let is_like = |i: &Needed| length(i) as f64 >= LEAST_SHARE * longest as f64;
                let (shorter, group) = rest.split_at(rest.partition_point(|i| !is_like(i)));
                groups.add(group);
                rest = shorter;
            }
        }
        groups
    }

    fn add(&mut self, group: &[Needed<'d>]) {
        let number = self.groups.len();
        let mut members = Vec::with_capacity(group.len());
        for needed in group {
            let hash = hash(&needed.row());
            if let std::collections::hash_map::Entry::Vacant(entry) = self.group_of.entry(hash) {
                entry.insert(number);
                members.push(*needed);
            }
        }
        if !members.is_empty() {
            self.groups.push(members);
        }
    }

    /// The number and the sequences of a row's group, if it has one; on a hash collision, a group without the row.
    pub(crate) fn of(&self, row: &Row) -> Option<(usize, &[Needed<'d>])> {
        let number = *self.group_of.get(&hash(row))?;
        Some((number, &self.groups[number]))
    }

    /// All groups, by their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[Needed<'d>]> {
        self.groups.iter().map(Vec::as_slice)
    }
}

fn hash(row: &Row) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&row.input_ids, &row.token_types).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::Sequence;

    fn sequence(input_ids: Vec<i64>) -> Sequence {
        let labels = input_ids.clone();
        Sequence { row: Row { input_ids, prompt_length: 1, ..Row::default() }, labels }
    }

    fn groups<'d>(sequences: &'d [Sequence], batches: &[&[usize]]) -> Groups<'d> {
        let needed = |i: &usize| Needed::new(&sequences[*i], 0..0, true);
        Groups::new(batches.iter().map(|batch| batch.iter().map(needed).collect()))
    }

    #[test]
    fn rows_of_a_batch_are_together_if_little_would_be_padding() {
        let sequences = [11, 10, 5, 9, 4].map(|n| sequence((0..n).collect()));
        let groups = groups(&sequences, &[&[0, 1, 2, 3], &[4]]);
        let lengths = |n: i64| {
            let (_, group) = groups.of(&Row::prompt((0..n).collect()))?;
            Some(group.iter().map(|needed| needed.tokens().len()).collect::<Vec<_>>())
        };
        // a row ends before its last token, which predicts nothing
        assert_eq!(lengths(9), Some(vec![8, 9, 10]));
        assert_eq!(lengths(4), Some(vec![4]));
        assert_eq!(lengths(3), Some(vec![3]));
        assert_eq!(lengths(7), None);
    }

    #[test]
    fn equal_rows_are_of_the_first_group_that_has_them() {
        let sequences = [vec![1, 2, 3], vec![4, 5, 6], vec![1, 2, 3], vec![7, 8, 9]].map(sequence);
        let groups = groups(&sequences, &[&[0, 1], &[2, 3]]);
        let first = |tokens: Vec<i64>| {
            let (_, group) = groups.of(&Row::prompt(tokens))?;
            Some(group.iter().map(|needed| needed.tokens()[0]).collect::<Vec<_>>())
        };
        assert_eq!(first(vec![1, 2]), Some(vec![1, 4]));
        assert_eq!(first(vec![7, 8]), Some(vec![7]));
    }
}
