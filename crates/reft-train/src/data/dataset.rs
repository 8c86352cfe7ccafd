use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use crate::{Error, Example, Result, Sequence, seed_of};

/// Examples to train on, and examples held out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    /// Examples to train on.
    pub train: Vec<Example>,
    /// Examples held out: their loss chooses the adapter that is kept.
    pub validation: Vec<Example>,
}

impl Dataset {
    /// Holds examples out at random: a share of them (`validation` below 1, rounded, at least one), a number (1 and above), or
    /// none (0). The rest keeps its order.
    ///
    /// # Errors
    /// [`Error::TooFewExamples`] if none is left to train on.
    pub fn split(examples: Vec<Example>, validation: f64, seed: u64) -> Result<Self> {
        Self::weighted(vec![(examples, 1.0)], validation, seed)
    }

    /// [`Self::split`] over several sources. Training examples of a source are repeated by its weight; a fraction takes that share of them,
    /// rounded and drawn by the seed. Held-out examples are held out once and never trained on.
    ///
    /// # Errors
    /// As [`Self::split`].
    pub fn weighted(sources: Vec<(Vec<Example>, f64)>, validation: f64, seed: u64) -> Result<Self> {
        let n = sources.iter().map(|(examples, _)| examples.len()).sum();
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
        let mut is_held_out = is_held_out.into_iter();
        let mut dataset = Self::default();
        for (i, (examples, weight)) in sources.into_iter().enumerate() {
            let mut train = Vec::with_capacity(examples.len());
            for (example, is_held_out) in examples.into_iter().zip(&mut is_held_out) {
                let part = if is_held_out { &mut dataset.validation } else { &mut train };
                part.push(example);
            }
            dataset.train.extend(taken(train, weight, seed_of(&[seed, n as u64, i as u64])));
        }
        if dataset.train.is_empty() {
            return Err(Error::TooFewExamples { train: 0, validation: held_out });
        }
        Ok(dataset)
    }

    /// SHA-256 of everything that training depends on, in hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        let mut number = |x: i64| hasher.update(x.to_le_bytes());
        for part in [&self.train, &self.validation] {
            number(part.len() as i64);
            for Example { sequences, value, .. } in part {
                // optional parts get markers below 0, which no prompt length equals
                if sequences.len() != 1 {
                    number(-1 - sequences.len() as i64);
                }
                for Sequence { row, labels } in sequences {
                    number(row.prompt_length as i64);
                    let subspace = row.subspace.as_deref();
                    number(subspace.map_or(-1, |subspace| subspace.len() as i64));
                    subspace.unwrap_or_default().iter().for_each(|&x| number(x));
                    number(labels.len() as i64);
                    row.input_ids.iter().chain(labels).for_each(|&x| number(x));
                    if let Some(types) = &row.token_types {
                        number(i64::MIN + 1);
                        types.iter().for_each(|&x| number(x));
                    }
                }
                if let Some(value) = value {
                    number(i64::MIN);
                    number(value.to_bits() as i64);
                }
            }
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Examples, repeated by a weight, in their order.
fn taken(examples: Vec<Example>, weight: f64, seed: u64) -> Vec<Example> {
    if weight == 1.0 {
        return examples;
    }
    let (n, whole) = (examples.len(), weight.trunc() as usize);
    let mut is_once_more = vec![false; n];
    is_once_more[..(weight.fract() * n as f64).round() as usize].fill(true);
    is_once_more.shuffle(&mut StdRng::seed_from_u64(seed));
    let times =
        |(example, is_once_more)| std::iter::repeat_n(example, whole + usize::from(is_once_more));
    examples.into_iter().zip(is_once_more).flat_map(times).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::IGNORE_INDEX;
    use reft_models::Row;

    fn example(input_ids: &[i64], prompt_length: usize) -> Example {
        let mut labels = input_ids.to_vec();
        labels[..prompt_length].fill(IGNORE_INDEX);
        let (input_ids, subspace) = (input_ids.to_vec(), Some(vec![1]));
        let row = Row { input_ids, prompt_length, subspace, ..Row::default() };
        Example::of("it", row, labels)
    }

    #[test]
    fn a_split_is_seeded_whole_and_of_the_size_asked_for() -> Result<()> {
        let examples: Vec<Example> = (0..40).map(|i| example(&[i, i, i], 1)).collect();
        for (validation, held_out) in [(0.0, 0), (0.1, 4), (0.001, 1), (7.0, 7), (39.0, 39)] {
            let split = Dataset::split(examples.clone(), validation, 3)?;
            assert_eq!((split.train.len(), split.validation.len()), (40 - held_out, held_out));
            let in_order = |part: &[Example]| {
                part.windows(2).all(|w| w[0].row().input_ids[0] < w[1].row().input_ids[0])
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
    fn weights_take_training_examples_more_or_less_often_and_held_out_ones_once() -> Result<()> {
        let of = |first: i64| (first..first + 20).map(|i| example(&[i, i], 1)).collect::<Vec<_>>();
        let weighted = |weights: [f64; 2], validation| {
            Dataset::weighted(vec![(of(0), weights[0]), (of(20), weights[1])], validation, 3)
        };
        let plain = Dataset::split([of(0), of(20)].concat(), 8.0, 3)?;
        let more = weighted([1.0, 2.5], 8.0)?;
        assert_eq!(more.validation, plain.validation);
        let counts = |dataset: &Dataset| -> Vec<usize> {
            let of = |i| dataset.train.iter().filter(|e| e.row().input_ids[0] == i).count();
            (0..40).map(of).collect()
        };
        let (plain, more) = (counts(&plain), counts(&more));
        assert_eq!(more[..20], plain[..20]);
        let second = || plain[20..].iter().zip(&more[20..]);
        assert!(second().all(|(once, times)| once * 2 <= *times && *times <= once * 3));
        let (n, taken) = (plain[20..].iter().sum::<usize>(), more[20..].iter().sum::<usize>());
        assert_eq!(taken, 2 * n + (n as f64 / 2.0).round() as usize);
        assert_eq!(counts(&weighted([0.5, 1.0], 0.0)?)[..20].iter().sum::<usize>(), 10);
        let none = weighted([0.01, 0.01], 0.0);
        assert!(matches!(none, Err(Error::TooFewExamples { train: 0, validation: 0 })));
        Ok(())
    }

    #[test]
    fn the_digest_changes_with_every_part_of_the_data() {
        let digest =
            |example: Example| Dataset { train: vec![example], validation: Vec::new() }.digest();
        let reference = example(&[5, 6, 7], 1);
        // hashlib.sha256 of the numbers 1, 1, 1, 1, 3, 5, 6, 7, -100, 6, 7, 0 as little-endian i64
        let expected = "5f3a4ebe32ad1e6e0a8cb4840366adf9f47e1c7e22127646186dbc23b28ec92e";
        assert_eq!(digest(reference.clone()), expected);
        let changed = |change: &dyn Fn(&mut Example)| {
            let mut example = reference.clone();
            change(&mut example);
            digest(example)
        };
        let mut digests = vec![
            expected.to_owned(),
            digest(example(&[5, 6, 8], 1)),
            digest(example(&[5, 6, 7], 2)),
            changed(&|example| example.sequences[0].labels[1] = IGNORE_INDEX),
            changed(&|example| example.sequences[0].row.prompt_length = 2),
            changed(&|example| example.sequences[0].row.subspace = None),
            changed(&|example| example.sequences[0].row.token_types = Some(vec![0, 0, 0])),
            changed(&|example| example.sequences[0].row.token_types = Some(vec![0, 0, 1])),
            changed(&|example| example.value = Some(0.0)),
            changed(&|example| example.value = Some(1.0)),
            changed(&|example| example.sequences.push(reference.sequences[0].clone())),
            changed(&|example| example.sequences.clear()),
        ];
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 12);
    }
}
