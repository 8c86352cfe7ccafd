//! Where a command computes, and in which kind of number.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use tch::{Cuda, Device, Kind};

use crate::cuda;
use crate::output::note;

/// The kind of the frozen model's numbers: `f32`, `bf16` or `f16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindChoice(pub Kind);

impl Default for KindChoice {
    fn default() -> Self {
        Self(Kind::Float)
    }
}

const KINDS: [(&str, Kind); 3] =
    [("f32", Kind::Float), ("bf16", Kind::BFloat16), ("f16", Kind::Half)];

impl FromStr for KindChoice {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let kind = KINDS.iter().find(|(name, _)| *name == s).map(|(_, kind)| Self(*kind));
        kind.ok_or_else(|| anyhow!("unknown kind {s:?}; use one of f32, bf16, f16"))
    }
}

impl fmt::Display for KindChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| *kind == self.0).map_or("f32", |(name, _)| name);
        f.write_str(name)
    }
}

/// The device asked for: `auto`, `cpu` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

impl DeviceChoice {
    /// The device meant.
    ///
    /// # Errors
    /// If it is a GPU that is not there.
    pub fn resolve(self) -> Result<Device> {
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        let cuda = cuda::load();
        let obstacle = cuda.obstacle();
        let Self::Cuda(index) = self else {
            if let Some(obstacle) = obstacle {
                if cuda.is_worth_a_note() {
                    note(&format!("computing on the CPU: {obstacle}"));
                }
                return Ok(Device::Cpu);
            }
            return Ok(Device::cuda_if_available());
        };
        if let Some(obstacle) = obstacle {
            bail!("device cuda:{index} is not there: {obstacle}. Use --device cpu or auto");
        }
        let found = Cuda::device_count();
        if index as i64 >= found {
            bail!(
                "device cuda:{index} is not there: the GPUs are cuda:0 to cuda:{}; use one of them, or --device auto",
                found - 1
            );
        }
        Ok(Device::Cuda(index))
    }

    /// The choice that names a device.
    pub fn of(device: Device) -> Self {
        match device {
            Device::Cuda(index) => Self::Cuda(index),
            _ => Self::Cpu,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(
                || anyhow!("unknown device {s:?}; use auto, cpu, or cuda:0 for the first GPU"),
            ),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Lets f32 products run on TF32 units where the GPU has them, if that is wanted.
///
/// # Errors
/// If this libtorch has no such switch.
pub fn set_tf32(wanted: bool) -> Result<()> {
    if wanted && !cuda::allow_tf32() {
        bail!("--tf32: this libtorch has no switch for TF32; leave it out");
    }
    Ok(())
}

/// Sets the number of threads that libtorch computes with, and returns the number in force.
///
/// # Errors
/// If it is 0, or more than a machine has.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    if let Some(n) = threads {
        if !(1..=4096).contains(&n) {
            bail!("--threads is {n}, expected a number from 1 to 4096");
        }
        tch::set_num_threads(n as i32);
    }
    Ok(tch::get_num_threads() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_devices_are_read_as_they_are_written() -> Result<()> {
        for kind in ["f32", "bf16", "f16"] {
            assert_eq!(kind.parse::<KindChoice>()?.to_string(), kind);
        }
        for device in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(device.parse::<DeviceChoice>()?.to_string(), device);
        }
        assert_eq!("cuda".parse::<DeviceChoice>()?, DeviceChoice::Cuda(0));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong} is taken for a device");
        }
        assert!("f64".parse::<KindChoice>().is_err());
        Ok(())
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        assert!(DeviceChoice::Cuda(4_000).resolve().is_err());
    }
}
