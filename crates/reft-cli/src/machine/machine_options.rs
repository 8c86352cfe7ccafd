use std::fs;

use anyhow::{Result, bail};
use reft_bench::Precision;
use reft_core::{DeclaredOptions, declare_options};
use reft_models::{DeviceRoom, ModelDescription, Placement, WeightStorage};
use serde::Deserialize;
use tch::Device;

use crate::machine::device_choice::{DeviceChoice, Devices};
use crate::machine::kind_choice::KindChoice;
use crate::machine::{cuda, cuda_driver};
use crate::options::{Declared, FlagGroup, in_flags};
use crate::terminal::note;

declare_options! {
    /// Where a command computes, and with which kinds of numbers.
    pub struct MachineOptions {
        /// Kind of the frozen model's numbers: f32, bf16, f16, or auto (bf16 if the processor or GPU has instructions for it, else f32). Edits
        /// are always f32
        kind: KindChoice = KindChoice::default(), Text("KIND") in "Machine";
        /// Form of the frozen matrices in memory: dense, as-stored (GGUF's blocks stay packed), int8 or int4. Packed matrices are expanded when
        /// they are used, block by block in training
        weights: WeightStorage = WeightStorage::Dense, Text("FORM") in "Machine";
        /// Where to compute: auto (the first GPU if there is one), cpu or cuda:N. A list such as cuda:0,cuda:1 splits the model's blocks over
        /// these devices in this order, by their free memory
        device: Devices = Devices::default(), Text("DEVICE") in "Machine";
        /// On a GPU: compute f32 products, also of edits, on TF32 units; faster, and accurate to three digits
        tf32: bool = false, Switch("BOOL") in "Machine";
        /// On a CPU with AVX2: round hidden states to eight bits in products with four-bit weights, as llama.cpp does; prompts and tokens take
        /// less time, and results are less exact
        int8_products: bool = false, Switch("BOOL") in "Machine";
        /// CPU threads to compute with [default: one per core]
        threads: Option<usize> = None, Count("N") in "Machine" if |n: usize| (1..=4096).contains(&n), "a number from 1 to 4096";
    }
}

impl MachineOptions {
    /// Sets libtorch's number of threads and TF32; returns the number of threads.
    ///
    /// # Errors
    /// If the number of threads is out of range, TF32 is asked for and this libtorch has no switch for it, or products in eight bits are asked for
    /// where they make no difference.
    pub fn set_up(&self) -> Result<usize> {
        self.check_each().map_err(|error| in_flags(reft_train::Error::from(error)))?;
        if let Some(n) = self.threads {
            tch::set_num_threads(n as i32);
        }
        if self.tf32 && !cuda::allow_tf32() {
            bail!("--tf32: this libtorch has no switch for TF32; leave it out");
        }
        if self.int8_products {
            self.check_int8_products(&self.device.resolve()?)?;
        }
        Ok(tch::get_num_threads() as usize)
    }

    /// Checks that products in eight bits make a difference on these devices.
    fn check_int8_products(&self, devices: &[Device]) -> Result<()> {
        let weights = self.weights;
        if !matches!(weights, WeightStorage::Int4 | WeightStorage::AsStored) {
            bail!(
                "--int8-products is for four-bit weights, and --weights is {weights}; give --weights int4, or as-stored for a GGUF file"
            );
        }
        if !devices.contains(&Device::Cpu) {
            bail!(
                "--int8-products is for a CPU, and the model is on a GPU; leave it out, or give --device cpu"
            );
        }
        if !has_avx2() {
            bail!("--int8-products needs a processor with AVX2; leave it out");
        }
        Ok(())
    }

    /// The kind that a model is computed in, and the devices of its blocks. Several devices share the blocks by their free memory.
    ///
    /// # Errors
    /// If a device is not there, or the model does not fit on them.
    pub fn placement(&self, model: &ModelDescription) -> Result<(Precision, Placement)> {
        let devices = self.device.resolve()?;
        let kind = self.kind.resolve(&devices);
        if let [device] = devices[..] {
            return Ok((kind, device.into()));
        }
        let room = |device: &Device| DeviceRoom { device: *device, free: free_memory(*device) };
        let rooms: Vec<DeviceRoom> = devices.iter().map(room).collect();
        let stages = self.weights.bytes_of_stages(model, kind.kind());
        let placement = Placement::by_memory(&rooms, &stages)?;
        note(format!("blocks: {placement}"));
        Ok((kind, placement))
    }
}

fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Free memory of a device in bytes, if known.
fn free_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => cuda_driver::free_memory(index),
        _ => {
            let text = fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kilobytes * 1024)
        }
    }
}

impl FlagGroup for MachineOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

/// The flags that give a child process the same device and number of threads.
pub fn place_flags(device: Device, threads: usize) -> [String; 4] {
    let device = DeviceChoice::of(device).to_string();
    ["--device".to_owned(), device, "--threads".to_owned(), threads.to_string()]
}

/// The device and the threads of [`MachineOptions`], without the kinds of numbers.
#[derive(Debug, Clone, Deserialize)]
pub struct DeviceAndThreads(pub MachineOptions);

impl DeviceAndThreads {
    /// The device, and the number of threads in force.
    ///
    /// # Errors
    /// If the device is not there, or the number of threads is out of range.
    pub fn set_up(&self) -> Result<(Device, usize)> {
        Ok((self.0.device.one()?, self.0.set_up()?))
    }
}

impl FlagGroup for DeviceAndThreads {
    fn declared() -> Vec<Declared> {
        let is_place = |option: &Declared| ["device", "threads"].contains(&option.name);
        MachineOptions::declared().into_iter().filter(is_place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_in_eight_bits_want_weights_in_four_and_a_cpu() {
        let check = |weights, devices: &[Device]| {
            let options = MachineOptions { weights, int8_products: true, ..Default::default() };
            options.check_int8_products(devices).map_err(|error| error.to_string())
        };
        for weights in [WeightStorage::Dense, WeightStorage::Int8] {
            let error = check(weights, &[Device::Cpu]).expect_err("no four-bit weights");
            assert!(error.contains(&format!("--weights is {weights}; give")), "{error}");
        }
        for weights in [WeightStorage::Int4, WeightStorage::AsStored] {
            let error = check(weights, &[Device::Cuda(0)]).expect_err("no CPU");
            assert!(error.contains("the model is on a GPU"), "{error}");
            for devices in [&[Device::Cpu][..], &[Device::Cuda(0), Device::Cpu]] {
                assert_eq!(check(weights, devices).is_ok(), has_avx2());
            }
        }
    }
}
