use std::fmt;
use std::ops::Range;

use tch::{Device, Tensor};

use crate::{Error, Result, Site};

/// The devices of a model: one device, or parts of consecutive blocks with a device each.
///
/// All tensors of a stage of a [`Forward`](crate::Forward) are on the device of its part: its input, the block's weights, its keys and values,
/// and the tensors trained at its sites. Embeddings belong to the first stage; the final norm is the stage after the last block. Token ids and
/// logits are on the device of the head, [`Self::home`].
///
/// Hidden states are copied from part to part, even if both are on the same device. So a model in parts runs the same code on any devices. A
/// model in one part copies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    parts: Vec<Part>, // one at least
    home: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    device: Device,
    first_stage: usize,
}

/// A device for a part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRoom {
    /// The device.
    pub device: Device,
    /// Its free memory in bytes, if known.
    pub free: Option<u64>,
}

/// Share of the GPUs' free memory to fill with weights before blocks go to a CPU; the rest is for activations.
const FILLED: f64 = 0.8;

impl From<Device> for Placement {
    fn from(device: Device) -> Self {
        Self { parts: vec![Part { device, first_stage: 0 }], home: 0 }
    }
}

impl Placement {
    /// A given number of consecutive blocks on each device, in this order; the head with the last.
    ///
    /// # Errors
    /// [`Error::Placement`] if there is no device, or one without blocks.
    pub fn of_blocks(parts: &[(Device, usize)]) -> Result<Self> {
        if parts.is_empty() || parts.iter().any(|(_, blocks)| *blocks == 0) {
            let reason = "found a device without a block, expected one block each at least; name fewer devices";
            return Err(Error::Placement { reason: reason.to_owned() });
        }
        let mut first_stage = 0;
        let part = |(device, blocks): &(Device, usize)| {
            let part = Part { device: *device, first_stage };
            first_stage += blocks;
            part
        };
        Ok(Self { parts: parts.iter().map(part).collect(), home: parts.len() - 1 })
    }

    /// Spreads a model over devices in proportion to their free memory, by the bytes of each stage: the blocks in order, then the final norm
    /// with the head. A CPU beside GPUs takes the blocks that do not fit on the GPUs, at least one. A device that is named twice divides its
    /// memory between its parts.
    ///
    /// # Errors
    /// [`Error::Placement`] if there are fewer blocks than devices, or a device would hold more than its free memory.
    pub fn by_memory(rooms: &[DeviceRoom], stages: &[u64]) -> Result<Self> {
        let blocks = stages.len().saturating_sub(1);
        if rooms.len() > blocks {
            let n = rooms.len();
            let reason =
                format!("found {n} devices for {blocks} blocks; name {blocks} devices at most");
            return Err(Error::Placement { reason });
        }
        let spread = spread(&shared_out(rooms, stages), stages);
        let parts: Vec<(Device, usize)> =
            rooms.iter().zip(&spread).map(|(room, own)| (room.device, own.len())).collect();
        check_room(rooms, &spread, stages)?;
        Self::of_blocks(&parts)
    }

    /// The same with the head beside the embeddings, for tied weights.
    pub(crate) fn with_head_first(self) -> Self {
        Self { home: 0, ..self }
    }

    /// Number of parts.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The devices of the parts.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        self.parts.iter().map(|part| part.device)
    }

    /// The part that a stage belongs to.
    pub fn part(&self, stage: usize) -> usize {
        self.parts.iter().rposition(|part| part.first_stage <= stage).unwrap_or(0)
    }

    /// The device of a stage.
    pub fn device(&self, stage: usize) -> Device {
        self.parts[self.part(stage)].device
    }

    /// The device of the hidden states of a site; home for tensors of no site.
    pub fn device_of(&self, site: Option<Site>) -> Device {
        site.map_or(self.home(), |site| self.device(site.stage()))
    }

    /// The device of token ids, final hidden states and logits.
    pub fn home(&self) -> Device {
        self.parts[self.home].device
    }

    /// Checks that every part has at least one of `blocks` blocks.
    pub(crate) fn check(&self, blocks: usize) -> Result<()> {
        match self.parts.last().map_or(0, |part| part.first_stage) {
            first if first < blocks || first == 0 => Ok(()),
            first => {
                let reason = format!(
                    "found parts for more than {first} blocks, expected {blocks} blocks in all"
                );
                Err(Error::Placement { reason })
            }
        }
    }

    /// Splits a range of stages at the borders of the parts.
    pub fn runs(&self, stages: Range<usize>) -> Vec<Range<usize>> {
        let firsts = self.parts.iter().map(|part| part.first_stage);
        let ends = firsts.clone().skip(1).chain([usize::MAX]);
        let within = |(first, end): (usize, usize)| first.max(stages.start)..end.min(stages.end);
        firsts.zip(ends).map(within).filter(|run| !run.is_empty()).collect()
    }

    /// Moves the output of a stage to the part of the next stage.
    pub(crate) fn after(&self, stage: usize, h: Tensor) -> Tensor {
        self.moved(h, self.part(stage), self.part(stage + 1))
    }

    /// Moves token ids from home to the part of the embeddings.
    pub(crate) fn to_embeddings(&self, ids: &Tensor) -> Tensor {
        self.moved(ids.shallow_clone(), self.home, 0)
    }

    /// Moves final hidden states to the part of the head.
    pub(crate) fn to_head(&self, h: Tensor) -> Tensor {
        self.moved(h, self.parts.len() - 1, self.home)
    }

    /// Moves a tensor of any shape from home to the part of a site, by a copy through which gradients flow.
    pub fn bring(&self, x: &mut Tensor, site: Site) {
        let to = self.part(site.stage());
        if to != self.home {
            *x = self.moved(x.shallow_clone(), self.home, to);
        }
    }

    /// Moves a tensor from part to part, by a copy through which gradients flow.
    fn moved(&self, x: Tensor, from: usize, to: usize) -> Tensor {
        if from == to {
            return x;
        }
        #[cfg(test)]
        MOVES.with(|moves| moves.set(moves.get() + 1));
        let device = self.parts[to].device;
        // the host would read memory that a GPU has not written yet
        let may_go_on = device.is_cuda();
        x.to_device_(device, x.kind(), may_go_on, true)
    }
}

#[cfg(test)]
thread_local! {
    /// Number of moves from part to part by this thread.
    pub(crate) static MOVES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A tensor, copied to the device of another if it is not there. Both can have any shape.
pub fn beside(x: &Tensor, other: &Tensor) -> Tensor {
    let device = other.device();
    if x.device() == device { x.shallow_clone() } else { x.to_device(device) }
}

/// The name of a device on command lines: `cpu`, `cuda:0`.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The weight of each device in the distribution of the blocks.
fn shared_out(rooms: &[DeviceRoom], stages: &[u64]) -> Vec<f64> {
    let free = |room: &DeviceRoom| room.free.map(|free| own_share(rooms, room.device, free));
    let Some(free) = rooms.iter().map(free).collect::<Option<Vec<f64>>>() else {
        return vec![1.0; rooms.len()];
    };
    let of_gpus = rooms.iter().zip(&free).filter(|(room, _)| room.device.is_cuda());
    let of_gpus: f64 = of_gpus.map(|(_, free)| free).sum();
    if of_gpus == 0.0 {
        return free;
    }
    let others = rooms.iter().filter(|room| !room.device.is_cuda()).count().max(1) as f64;
    let all: f64 = stages.iter().map(|bytes| *bytes as f64).sum();
    let left = (all / FILLED - of_gpus).max(1.0) / others;
    let of_room = |(room, free): (&DeviceRoom, &f64)| match room.device.is_cuda() {
        true => free.max(1.0),
        false => left.min(free.max(1.0)),
    };
    rooms.iter().zip(&free).map(of_room).collect()
}

/// The free memory of a device for one of its parts.
fn own_share(rooms: &[DeviceRoom], device: Device, free: u64) -> f64 {
    free as f64 / rooms.iter().filter(|room| room.device == device).count() as f64
}

/// The blocks of each device that minimise `Σ bytes² / room`: the bytes are then in proportion to the rooms, as far as whole blocks allow.
fn spread(rooms: &[f64], stages: &[u64]) -> Vec<Range<usize>> {
    let blocks = stages.len() - 1;
    let cost = |device: usize, own: Range<usize>| {
        let last = if own.end == blocks { stages[blocks] } else { 0 };
        let bytes = (stages[own].iter().sum::<u64>() + last) as f64;
        bytes * bytes / rooms[device]
    };
    // best[end]: the least cost of the blocks before `end` on the devices so far, and the end of each device's blocks
    let mut best: Vec<Option<(f64, Vec<usize>)>> = vec![None; blocks + 1];
    best[0] = Some((0.0, Vec::new()));
    for device in 0..rooms.len() {
        let of_end = |end: usize| {
            let with_start = |start: usize| {
                let (before, ends) = best[start].as_ref()?;
                Some((before + cost(device, start..end), ends, start))
            };
            let found = (0..end).filter_map(with_start).min_by(|a, b| a.0.total_cmp(&b.0))?;
            Some((found.0, found.1.iter().copied().chain([end]).collect()))
        };
        best = (0..=blocks).map(of_end).collect();
    }
    let ends = best[blocks].take().map(|(_, ends)| ends).unwrap_or_default();
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect()
}

/// Checks that no device would hold more than its free memory.
fn check_room(rooms: &[DeviceRoom], spread: &[Range<usize>], stages: &[u64]) -> Result<()> {
    let gb = |bytes: f64| bytes / 1e9;
    let all: u64 = stages.iter().sum();
    for (room, own) in rooms.iter().zip(spread) {
        let last = if own.end + 1 == stages.len() { stages[own.end] } else { 0 };
        let held = (stages[own.clone()].iter().sum::<u64>() + last) as f64;
        let Some(free) = room.free.map(|free| own_share(rooms, room.device, free)) else {
            continue;
        };
        if held > free {
            let reason = format!(
                "{} is to hold {:.1} GB of weights, of {:.1} GB in all, and has {:.1} GB free; name more devices, or hold the weights in fewer bits",
                device_name(room.device),
                gb(held),
                gb(all as f64),
                gb(free)
            );
            return Err(Error::Placement { reason });
        }
    }
    Ok(())
}

impl fmt::Display for Placement {
    /// The devices, with the first block of each part but the first: `cuda:0, from block 12 on cuda:1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Part { device, first_stage }) in self.parts.iter().enumerate() {
            if i > 0 {
                write!(f, ", from block {first_stage} on ")?;
            }
            f.write_str(&device_name(*device))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    const GB: u64 = 1_000_000_000;

    fn room(device: Device, gb: u64) -> DeviceRoom {
        DeviceRoom { device, free: Some(gb * GB) }
    }

    fn blocks(rooms: &[DeviceRoom], stages: &[u64]) -> Result<Vec<usize>> {
        let placement = Placement::by_memory(rooms, stages)?;
        let runs = placement.runs(0..stages.len() - 1);
        Ok(runs.into_iter().map(|run| run.len()).collect())
    }

    #[test]
    fn blocks_are_spread_by_free_memory() -> Result<()> {
        let (first, second) = (Device::Cuda(0), Device::Cuda(1));
        let even = [&[GB; 12][..], &[0]].concat();
        assert_eq!(blocks(&[room(first, 20), room(second, 20)], &even)?, [6, 6]);
        assert_eq!(blocks(&[room(first, 30), room(second, 10)], &even)?, [9, 3]);
        // embeddings and head count for their own device
        let ends = [&[3 * GB][..], &[GB; 11], &[4 * GB]].concat();
        assert_eq!(blocks(&[room(first, 20), room(second, 20)], &ends)?, [7, 5]);
        // a CPU takes the blocks left over, and one at least
        assert_eq!(blocks(&[room(first, 100), room(Device::Cpu, 500)], &even)?, [11, 1]);
        let three = [room(first, 8), room(Device::Cpu, 500)];
        assert_eq!(blocks(&three, &even)?, [6, 6]);
        let unknown = DeviceRoom { device: Device::Cpu, free: None };
        assert_eq!(blocks(&[unknown, unknown, unknown], &even)?, [4, 4, 4]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_refused_with_figures() {
        let refused = |rooms: &[DeviceRoom], stages: &[u64]| match blocks(rooms, stages) {
            Err(Error::Placement { reason }) => reason,
            other => panic!("{other:?}"),
        };
        let even = [&[GB; 12][..], &[0]].concat();
        let one = room(Device::Cuda(0), 10);
        let told = refused(&[one, one], &even); // it has 10 GB, not 20
        assert!(told.contains("cuda:0 is to hold 6.0 GB of weights, of 12.0 GB in all"), "{told}");
        assert!(told.contains("has 5.0 GB free; name more devices"), "{told}");
        let told = refused(&[one, one], &[1, 1]);
        assert!(told.contains("found 2 devices for 1 blocks"), "{told}");
        assert!(Placement::of_blocks(&[(Device::Cpu, 2), (Device::Cpu, 0)]).is_err());
        assert!(
            Placement::of_blocks(&[(Device::Cpu, 2), (Device::Cpu, 1)])
                .is_ok_and(|p| { p.check(2).is_err() && p.check(3).is_ok() })
        );
    }

    #[test]
    fn each_stage_has_its_device_and_what_is_outside_goes_home() -> Result<()> {
        let (a, b) = (Device::Cuda(3), Device::Cpu);
        let placement = Placement::of_blocks(&[(a, 2), (b, 3)])?;
        let devices: Vec<Device> = (0..=5).map(|stage| placement.device(stage)).collect();
        assert_eq!(devices, [a, a, b, b, b, b]);
        assert_eq!((placement.home(), placement.clone().with_head_first().home()), (b, a));
        assert_eq!(placement.runs(1..5), [1..2, 2..5]);
        assert_eq!(placement.runs(3..5), vec![3..5]);
        let output = Site { layer: 1, component: crate::Component::BlockOutput };
        let within = Site { layer: 1, component: crate::Component::MlpOutput };
        assert_eq!([Some(output), Some(within), None].map(|at| placement.device_of(at)), [b, a, b]);
        assert_eq!(placement.to_string(), "cuda:3, from block 2 on cpu");
        assert_eq!(Placement::from(a).to_string(), "cuda:3");
        Ok(())
    }

    #[test]
    fn a_state_is_copied_between_parts_and_only_there() -> Result<()> {
        let placement = Placement::of_blocks(&[(Device::Cpu, 2), (Device::Cpu, 1)])?;
        let h = Tensor::arange(6, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let within = placement.after(0, h.shallow_clone());
        assert_eq!(within.data_ptr(), h.data_ptr());
        let moved = placement.after(1, h.shallow_clone());
        assert_ne!(moved.data_ptr(), h.data_ptr());
        (&moved * &moved).sum(Kind::Float).backward();
        assert_eq!(h.grad(), &h * 2.0); // exact: small integers
        assert_eq!(placement.to_head(h.shallow_clone()).data_ptr(), h.data_ptr());
        let tied = placement.with_head_first();
        assert_ne!(tied.to_head(h.shallow_clone()).data_ptr(), h.data_ptr());
        Ok(())
    }
}
