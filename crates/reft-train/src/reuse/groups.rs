use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use reft_models::Row;

use crate::Result;
use crate::batches::{Batch, needed};
use crate::dataset::Example;

/// Rows whose frozen part is computed side by side: one forward of eight rows takes less time than eight of one.
///
/// How a row is rounded depends on what stands beside it, so a row is always computed beside the same ones, whichever batch asks for it
/// first. Rows of equal tokens are one row, of the first group that has them.
#[derive(Debug, Default)]
pub(crate) struct Groups<'d> {
    examples: &'d [Example],
    members: Vec<Vec<usize>>,
    group_of: HashMap<u64, usize>, // by the hash of a row's tokens
}

/// A row is computed beside longer ones only if it is at least this share of their length: padding is computed too.
const LEAST_SHARE: f64 = 0.8;

impl<'d> Groups<'d> {
    /// Groups of the rows of micro-batches, those of a batch together as far as they are of like length.
    pub(crate) fn new(examples: &'d [Example], batches: &[Vec<usize>]) -> Self {
        let mut groups = Self { examples, ..Self::default() };
        let length = |&i: &usize| needed(&examples[i]).len();
        for batch in batches {
            let mut sorted = batch.clone();
            sorted.sort_by_key(length);
            let mut rest = sorted.as_slice();
            while let Some(longest) = rest.last().map(length) {
                let is_like = |i: &usize| length(i) as f64 >= LEAST_SHARE * longest as f64;
                let (shorter, group) = rest.split_at(rest.partition_point(|i| !is_like(i)));
                groups.add(group);
                rest = shorter;
            }
        }
        groups
    }

    fn add(&mut self, rows: &[usize]) {
        let number = self.members.len();
        let mut members = Vec::with_capacity(rows.len());
        for &row in rows {
            let hash = hash(needed(&self.examples[row]));
            if let std::collections::hash_map::Entry::Vacant(entry) = self.group_of.entry(hash) {
                entry.insert(number);
                members.push(row);
            }
        }
        if !members.is_empty() {
            self.members.push(members);
        }
    }

    /// The group that a row is computed in, if it is of one; a group without it if two hashes are equal by chance.
    pub(crate) fn of(&self, row: &Row) -> Result<Option<Batch>> {
        let Some(&number) = self.group_of.get(&hash(&row.input_ids)) else { return Ok(None) };
        self.batch(&self.members[number]).map(Some)
    }

    /// All groups.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Batch>> {
        self.members.iter().map(|members| self.batch(members))
    }

    fn batch(&self, members: &[usize]) -> Result<Batch> {
        Batch::collate(members.iter().map(|&i| &self.examples[i]), 0)
    }
}

fn hash(input_ids: &[i64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    input_ids.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(input_ids: Vec<i64>) -> Example {
        let labels = input_ids.clone();
        let row = Row { input_ids, prompt_length: 1, ..Row::default() };
        Example { id: String::new(), row, labels }
    }

    fn lengths(group: Option<Batch>) -> Vec<usize> {
        group.iter().flat_map(|g| g.layout.rows()).map(|row| row.input_ids.len()).collect()
    }

    #[test]
    fn rows_of_a_batch_are_together_if_little_would_be_padding() -> Result<()> {
        let examples: Vec<Example> = [11, 10, 5, 9, 4].map(|n| example((0..n).collect())).into();
        let groups = Groups::new(&examples, &[vec![0, 1, 2, 3], vec![4]]);
        let row = |n: i64| Row::prompt((0..n).collect());
        // a row ends before its last token, which predicts nothing
        assert_eq!(lengths(groups.of(&row(9))?), [8, 9, 10]);
        assert_eq!(lengths(groups.of(&row(4))?), [4]);
        assert_eq!(lengths(groups.of(&row(3))?), [3]);
        assert!(groups.of(&row(7))?.is_none());
        Ok(())
    }

    #[test]
    fn equal_rows_are_of_the_first_group_that_has_them() -> Result<()> {
        let examples: Vec<Example> =
            [vec![1, 2, 3], vec![4, 5, 6], vec![1, 2, 3], vec![7, 8, 9]].map(example).into();
        let groups = Groups::new(&examples, &[vec![0, 1], vec![2, 3]]);
        let first = |group: Option<Batch>| -> Vec<i64> {
            group.iter().flat_map(|g| g.layout.rows()).map(|row| row.input_ids[0]).collect()
        };
        assert_eq!(first(groups.of(&Row::prompt(vec![1, 2]))?), [1, 4]);
        assert_eq!(first(groups.of(&Row::prompt(vec![7, 8]))?), [7]);
        Ok(())
    }
}
