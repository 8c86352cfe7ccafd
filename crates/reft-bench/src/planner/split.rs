use std::ops::Range;

use reft_models::{DeviceRoom, Placement};
use serde::Serialize;
use tch::Device;

use crate::planner::memory::{self, StepBytes};
use crate::planner::step::Needs;
use crate::{Result, TimingCase};

/// The memory of one of several devices at the peak of a step, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DevicePlan {
    /// Its first block, counted from 0.
    pub first_block: usize,
    /// Number of its blocks.
    pub blocks: usize,
    /// Its memory.
    pub room: u64,
    /// Weights: of its blocks, of the embeddings on the first device, of the final norm and the head on the last.
    pub weights: u64,
    /// Trained tensors of its blocks with their gradients and AdamW's moments. Tensors outside blocks are on the device that computes the logits.
    pub optimizer: u64,
    /// Activations of its blocks that the backward needs.
    pub activations: u64,
    /// Temporary tensors at the peak.
    pub transient: u64,
    /// The batch's kept keys, values and hidden states.
    pub frozen_batch: u64,
}

impl DevicePlan {
    /// The sum of the parts, without the driver's own memory.
    pub fn total(&self) -> u64 {
        self.weights + self.optimizer + self.activations + self.transient + self.frozen_batch
    }

    /// Whether the sum fits into the device's memory.
    pub fn fits(&self) -> bool {
        self.total() <= self.room
    }
}

/// A case whose model is split over several devices, as with `--device` and a list.
#[derive(Debug)]
pub struct Split(Needs);

/// The most devices and the most rows that are tried.
const MOST_DEVICES: usize = 64;
const MOST_ROWS: usize = 1 << 16;

impl Split {
    /// Reads the shapes of a case that [`TimingCase::check`] accepts.
    ///
    /// # Errors
    /// Errors of the method.
    pub fn of(case: &TimingCase) -> Result<Self> {
        Ok(Self(Needs::of(case)?))
    }

    /// Each device's memory, with `rows` in a batch.
    ///
    /// # Errors
    /// [`reft_models::Error::Placement`] if there are fewer blocks than devices, or the weights alone do not fit.
    pub fn over(&self, memories: &[u64], rows: usize) -> Result<Vec<DevicePlan>> {
        let needs = &self.0;
        let room =
            |(i, bytes): (usize, &u64)| DeviceRoom { device: Device::Cuda(i), free: Some(*bytes) };
        let rooms: Vec<DeviceRoom> = memories.iter().enumerate().map(room).collect();
        let placement = Placement::by_memory(&rooms, &needs.weights)?;
        let layers = needs.model.num_hidden_layers;
        let step = StepBytes::of(&needs.model, &needs.shape.with_rows(rows), &needs.extra);
        let home = if needs.is_tied { 0 } else { placement.parts() - 1 };
        let device = |(part, blocks): (usize, Range<usize>)| {
            let own = |(layer, _): &&(Option<usize>, usize)| {
                layer.map_or(home, |layer| placement.part(layer)) == part
            };
            let trained = needs.trained.iter().filter(own).map(|(_, n)| *n);
            let (optimizer, update) = needs.optimizer(trained);
            let behind = if blocks.end == layers { needs.weights[layers] } else { 0 };
            DevicePlan {
                first_block: blocks.start,
                blocks: blocks.len(),
                room: memories[part],
                weights: needs.weights[blocks.clone()].iter().sum::<u64>() + behind,
                optimizer,
                activations: step.activations(blocks.clone()),
                transient: step.transient(part == home).max(update) + memory::WORKSPACE,
                frozen_batch: step.frozen_batch(blocks),
            }
        };
        Ok(placement.runs(0..layers).into_iter().enumerate().map(device).collect())
    }

    fn fits(&self, memories: &[u64], rows: usize) -> bool {
        self.over(memories, rows).is_ok_and(|devices| devices.iter().all(DevicePlan::fits))
    }

    /// The most rows of a batch that fit; 0: none does.
    pub fn most_rows(&self, memories: &[u64]) -> usize {
        let (mut fit, mut too_many) = (0, 1);
        while too_many < MOST_ROWS && self.fits(memories, too_many) {
            (fit, too_many) = (too_many, 2 * too_many);
        }
        while too_many - fit > 1 {
            let between = fit.midpoint(too_many);
            if self.fits(memories, between) { fit = between } else { too_many = between }
        }
        fit
    }

    /// The fewest devices with `memory` bytes each that a batch of `rows` fits on; `None` if 64 devices are too few.
    pub fn fewest(&self, memory: u64, rows: usize) -> Option<usize> {
        let most = MOST_DEVICES.min(self.0.model.num_hidden_layers);
        (1..=most).find(|n| self.fits(&vec![memory; *n], rows))
    }

    /// Bytes of the trained tensors' gradients in f32, which processes sum in every step.
    pub fn gradient_bytes(&self) -> u64 {
        self.0.trained.iter().map(|(_, n)| 4 * *n as u64).sum()
    }
}
