use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use reft_core::as_text;
use tch::{Cuda, Device};

use crate::machine::cuda;
use crate::terminal::note;

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
        match (self, cuda.obstacle()) {
            (Self::Cuda(index), Some(obstacle)) => {
                bail!("device cuda:{index} is not there: {obstacle}. Use --device cpu or auto")
            }
            (Self::Cuda(index), None) if index as i64 >= Cuda::device_count() => {
                let last = Cuda::device_count() - 1;
                bail!(
                    "device cuda:{index} is not there: the GPUs are cuda:0 to cuda:{last}; use one of them, or --device auto"
                )
            }
            (Self::Cuda(index), None) => Ok(Device::Cuda(index)),
            (_, Some(obstacle)) => {
                if cuda.is_worth_a_note() {
                    note(format!("computing on the CPU: {obstacle}"));
                }
                Ok(Device::Cpu)
            }
            (_, None) => Ok(Device::cuda_if_available()),
        }
    }

    /// What this choice is for one of several processes on a machine: a GPU of its own, unless one or none is named.
    pub fn of_process(self, number: usize) -> Self {
        match self {
            Self::Auto if cuda::load().obstacle().is_none() => {
                Self::Cuda(number % (Cuda::device_count().max(1) as usize))
            }
            other => other,
        }
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
        match (s, s.strip_prefix("cuda:").and_then(|index| index.parse().ok())) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(index)) => Ok(Self::Cuda(index)),
            _ => bail!("unknown device {s:?}; use auto, cpu, or cuda:0 for the first GPU"),
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

as_text!(DeviceChoice);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() -> Result<()> {
        for device in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(device.parse::<DeviceChoice>()?.to_string(), device);
        }
        assert_eq!("cuda".parse::<DeviceChoice>()?, DeviceChoice::Cuda(0));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong} is taken for a device");
        }
        Ok(())
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        assert!(DeviceChoice::Cuda(4_000).resolve().is_err());
    }
}
