use anyhow::{Result, bail};
use reft_core::{DeclaredOptions, declare_options};
use reft_models::WeightStorage;
use serde::Deserialize;
use tch::Device;

use crate::machine::cuda;
use crate::machine::device_choice::DeviceChoice;
use crate::machine::kind_choice::KindChoice;
use crate::options::{Declared, FlagGroup, in_flags};

declare_options! {
    /// Where a command computes, and with which kinds of numbers.
    pub struct MachineOptions {
        /// Kind of the frozen model's numbers: f32, bf16, f16, or auto (bf16 where processor or GPU has instructions for it, else f32); edits
        /// are always f32
        kind: KindChoice = KindChoice::default(), Text("KIND") in "Machine";
        /// How the frozen matrices are held: dense, as-stored (GGUF's blocks stay packed), int8 or int4; packed ones are expanded when they are
        /// computed with, block by block in training
        weights: WeightStorage = WeightStorage::Dense, Text("FORM") in "Machine";
        /// Where to compute: auto (the first GPU if there is one), cpu or cuda:N
        device: DeviceChoice = DeviceChoice::Auto, Text("DEVICE") in "Machine";
        /// On a GPU: f32 products on TF32 units, faster and to three digits; edits too
        tf32: bool = false, Switch("BOOL") in "Machine";
        /// CPU threads to compute with [default: one per core]
        threads: Option<usize> = None, Count("N") in "Machine" if |n: usize| (1..=4096).contains(&n), "a number from 1 to 4096";
    }
}

impl MachineOptions {
    /// Lets libtorch compute as asked for; returns the number of its threads.
    ///
    /// # Errors
    /// If the number cannot be, or this libtorch has no TF32.
    pub fn set_up(&self) -> Result<usize> {
        self.check_each().map_err(|error| in_flags(reft_train::Error::from(error)))?;
        if let Some(n) = self.threads {
            tch::set_num_threads(n as i32);
        }
        if self.tf32 && !cuda::allow_tf32() {
            bail!("--tf32: this libtorch has no switch for TF32; leave it out");
        }
        Ok(tch::get_num_threads() as usize)
    }
}

impl FlagGroup for MachineOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

/// The flags that let a process of its own compute in the same place.
pub fn place_flags(device: Device, threads: usize) -> [String; 4] {
    let device = DeviceChoice::of(device).to_string();
    ["--device".to_owned(), device, "--threads".to_owned(), threads.to_string()]
}

/// The part of [`MachineOptions`] that changes no kind of number.
#[derive(Debug, Clone, Deserialize)]
pub struct Place(pub MachineOptions);

impl Place {
    /// The device, and the number of threads in force.
    ///
    /// # Errors
    /// If one of them is not there or cannot be.
    pub fn set_up(&self) -> Result<(Device, usize)> {
        Ok((self.0.device.resolve()?, self.0.set_up()?))
    }
}

impl FlagGroup for Place {
    fn declared() -> Vec<Declared> {
        let is_place = |option: &Declared| ["device", "threads"].contains(&option.name);
        MachineOptions::declared().into_iter().filter(is_place).collect()
    }
}
