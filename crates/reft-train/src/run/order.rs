use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::{Example, TrainConfig, seed_of};

/// Order in which examples are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shuffle {
    /// Shuffled, but examples of a micro-batch are of like length, so that little is padding.
    #[default]
    Length,
    /// Shuffled.
    Plain,
    /// As they stand in the file.
    None,
}

reft_core::names!(Shuffle, "shuffle", reft_models::Error, {
    Length => "length", Plain => "plain", None => "none",
});

/// Micro-batches whose examples are sorted by length together.
const BUCKET: usize = 32;

/// The micro-batches of an epoch, as indices into `examples`: a pure function of its arguments.
///
/// Every example is in one of them. Only the last may be smaller than `batch_size`.
pub(crate) fn epoch_batches(
    examples: &[Example],
    config: &TrainConfig,
    epoch: usize,
) -> Vec<Vec<usize>> {
    let TrainConfig { batch_size, shuffle, seed, .. } = *config;
    let mut rng = StdRng::seed_from_u64(seed_of(&[seed, epoch as u64]));
    let mut order: Vec<usize> = (0..examples.len()).collect();
    if shuffle != Shuffle::None {
        order.shuffle(&mut rng);
    }
    if shuffle == Shuffle::Length {
        for bucket in order.chunks_mut(BUCKET * batch_size) {
            bucket.sort_by_key(|&i| examples[i].length()); // stable: ties stay shuffled
        }
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[_]>::to_vec).collect();
    if shuffle == Shuffle::Length {
        let whole = examples.len() / batch_size; // a smaller batch stays last
        batches[..whole].shuffle(&mut rng);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reft_models::Row;

    fn example(length: usize) -> Example {
        Example::of("", Row::prompt(vec![7; length]), vec![7; length])
    }

    #[test]
    fn length_grouping_pads_less_than_a_plain_shuffle() {
        let examples: Vec<_> = (0..200).map(|i| example(2 + (i * 37) % 100)).collect();
        let columns = |shuffle| -> usize {
            let longest = |batch: &Vec<usize>| batch.iter().map(|&i| examples[i].length()).max();
            let config = TrainConfig { batch_size: 4, shuffle, seed: 1, ..TrainConfig::default() };
            let batches = epoch_batches(&examples, &config, 0);
            batches.iter().map(|batch| batch.len() * longest(batch).unwrap_or(0)).sum()
        };
        let tokens: usize = examples.iter().map(Example::length).sum();
        assert!(columns(Shuffle::Length) < tokens * 106 / 100);
        assert!(columns(Shuffle::Plain) > tokens * 130 / 100);
    }

    #[test]
    fn epochs_and_seeds_have_orders_of_their_own() {
        let examples: Vec<_> = (0..50).map(|i| example(2 + i % 7)).collect();
        let order_of = |shuffle, seed, epoch| {
            let config = TrainConfig { batch_size: 3, shuffle, seed, ..TrainConfig::default() };
            epoch_batches(&examples, &config, epoch)
        };
        for shuffle in [Shuffle::Length, Shuffle::Plain] {
            let order = |seed, epoch| order_of(shuffle, seed, epoch);
            assert_eq!(order(5, 2), order(5, 2));
            assert_ne!(order(5, 2), order(5, 3));
            assert_ne!(order(5, 2), order(6, 2));
        }
        let as_is: Vec<usize> = order_of(Shuffle::None, 5, 2).into_iter().flatten().collect();
        assert_eq!(as_is, (0..50).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn every_example_is_in_one_batch(n in 0usize..90, batch_size in 1usize..9, kind in 0usize..3, seed: u64) {
            let examples: Vec<_> = (0..n).map(|i| example(2 + (i * 7) % 11)).collect();
            let shuffle = [Shuffle::Length, Shuffle::Plain, Shuffle::None][kind];
            let config = TrainConfig { batch_size, shuffle, seed, ..TrainConfig::default() };
            let batches = epoch_batches(&examples, &config, 3);
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
