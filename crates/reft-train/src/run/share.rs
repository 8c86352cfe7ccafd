use tch::Tensor;

use crate::{Error, Result};

/// Which part of a run is this process's: the `rank`-th of `world`, as `torch.distributed` counts them.
///
/// All processes hold all examples and draw the same order of the examples from the seed. A step takes `world` times as many micro-batches as
/// with one process. This process has every `world`-th of them, from the `rank`-th on. At the end of an epoch some processes may have fewer
/// micro-batches than others, or none: unlike torch's `DistributedSampler`, no example is repeated or left out.
///
/// The random numbers of a micro-batch follow from the seed, the step, and the index of the micro-batch among the micro-batches of all
/// processes. So `world` processes draw the same numbers as one process with `world` times as many micro-batches a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    rank: usize,
    world: usize,
}

impl Share {
    /// The whole run, by one process.
    pub const WHOLE: Self = Self { rank: 0, world: 1 };

    /// The part of one process among `world`.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] unless `rank` is below `world`.
    pub fn new(rank: usize, world: usize) -> Result<Self> {
        if rank < world {
            return Ok(Self { rank, world });
        }
        let found = format!("{rank} of a world of {world}");
        let (option, expected) = ("rank", "a number from 0 to below world");
        Err(reft_core::Error::OptionValue { option, found, expected }.into())
    }

    /// The process's number, from 0.
    pub fn rank(self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn world(self) -> usize {
        self.world
    }

    /// Whether this process does the work that is done once: files, and penalties that are no sum over examples.
    pub fn is_first(self) -> bool {
        self.rank == 0
    }

    /// Steps of an epoch of `micro_batches`, if each process takes `each` of them a step.
    pub(crate) fn steps(self, micro_batches: usize, each: usize) -> usize {
        micro_batches.div_ceil(each * self.world)
    }

    /// The places of the process's own micro-batches in a step of `each`, among an epoch's `micro_batches`.
    pub(crate) fn places(
        self,
        step: usize,
        each: usize,
        micro_batches: usize,
    ) -> impl Iterator<Item = usize> {
        let first = step * each * self.world;
        let end = micro_batches.min(first + each * self.world);
        (first + self.rank..end).step_by(self.world)
    }

    /// The place of a process's `i`-th micro-batch among all of its step.
    pub(crate) fn place_in_step(self, i: usize) -> usize {
        i * self.world + self.rank
    }
}

/// Sums over the processes of a run.
///
/// Every process calls it equally often, with equally many tensors of the same shapes and kinds: counts and losses in f64 on the host, and
/// gradients in f32 on the model's device.
pub trait Reduce {
    /// Replaces each tensor, in place, by its sum over all processes, which must have the same shapes.
    ///
    /// # Errors
    /// [`crate::Error::Reduction`] if a process is gone or cannot be reached; the run ends then.
    fn sum(&self, tensors: &mut [Tensor]) -> Result<()>;
}

/// The reduction of a process that is alone: its own tensors are the sum.
#[derive(Debug, Clone, Copy)]
pub struct Alone;

impl Reduce for Alone {
    fn sum(&self, _tensors: &mut [Tensor]) -> Result<()> {
        Ok(())
    }
}

/// This process's share of a run, and its sums with the others.
#[derive(Clone, Copy)]
pub(crate) struct Processes<'a> {
    pub(crate) share: Share,
    pub(crate) reduction: &'a dyn Reduce,
}

impl Processes<'_> {
    /// The whole run, by one process.
    pub(crate) const ALONE: Processes<'static> =
        Processes { share: Share::WHOLE, reduction: &Alone };

    /// Sums the `n` numbers of each process over all processes. A failure of one process is an error of all, so none waits for it.
    ///
    /// # Errors
    /// The process's own; [`Error::OutOfMemory`] or [`Error::Elsewhere`] for another process's failure.
    pub(crate) fn sums_of(&self, own: Result<Vec<f64>>, n: usize, step: usize) -> Result<Vec<f64>> {
        let is_memory = matches!(own, Err(Error::OutOfMemory { .. }));
        let failed = [is_memory, own.is_err() && !is_memory].map(f64::from);
        let numbers = own.as_ref().map_or_else(|_| vec![0.0; n], Vec::clone);
        let mut sums = self.sums(&[numbers.as_slice(), &failed].concat())?;
        let failed = sums.split_off(n);
        own?;
        if failed[0] > 0.0 {
            let reason = "on another process of the run".to_owned();
            return Err(Error::OutOfMemory { step, reason });
        }
        if failed[1] > 0.0 { Err(Error::Elsewhere) } else { Ok(sums) }
    }

    /// Sums the numbers of each process over all processes.
    pub(crate) fn sums(&self, own: &[f64]) -> Result<Vec<f64>> {
        let mut sums = [Tensor::from_slice(own)];
        self.reduction.sum(&mut sums)?;
        let [sums] = sums;
        Ok(sums.try_into()?)
    }

    /// For each flag, whether any process sets it: all processes decide alike.
    pub(crate) fn any<const N: usize>(&self, own: [bool; N]) -> Result<[bool; N]> {
        let sums = self.sums(&own.map(f64::from))?;
        Ok(std::array::from_fn(|i| sums[i] > 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use proptest::prelude::*;

    #[test]
    fn a_rank_outside_of_the_world_is_refused() {
        for (rank, world) in [(0, 0), (1, 1), (5, 3)] {
            let refused = Share::new(rank, world);
            assert!(
                matches!(
                    refused,
                    Err(Error::Core(reft_core::Error::OptionValue { option: "rank", .. }))
                ),
                "{refused:?}"
            );
        }
        assert!(Share::new(2, 3).is_ok_and(|share| !share.is_first()));
        assert_eq!(Share::new(0, 1).ok(), Some(Share::WHOLE));
    }

    proptest! {
        /// The processes' parts of a step make up one process's step of `world` times the size, interleaved.
        #[test]
        fn processes_share_out_a_step(world in 1usize..6, each in 1usize..4, n in 1usize..40) {
            let whole_steps = Share::WHOLE.steps(n, each * world);
            for step in 0..whole_steps {
                let whole: Vec<usize> = Share::WHOLE.places(step, each * world, n).collect();
                let mut shared = Vec::new();
                for rank in 0..world {
                    let share = Share { rank, world };
                    prop_assert_eq!(share.steps(n, each), whole_steps);
                    let places: Vec<usize> = share.places(step, each, n).collect();
                    prop_assert!(places.len() <= each);
                    for (i, place) in places.iter().enumerate() {
                        prop_assert_eq!(whole[share.place_in_step(i)], *place);
                    }
                    shared.extend(places);
                }
                shared.sort_unstable();
                prop_assert_eq!(shared, whole);
            }
        }
    }
}
