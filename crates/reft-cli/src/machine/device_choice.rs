use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
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
    /// The device of this choice.
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

    /// The device of process `number` on a machine: with `auto` a GPU of its own, if there are GPUs; else the named device.
    pub fn of_process(self, number: usize) -> Self {
        match self {
            Self::Auto if cuda::load().obstacle().is_none() => {
                Self::Cuda(number % (Cuda::device_count().max(1) as usize))
            }
            other => other,
        }
    }

    /// The choice of a given device.
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

/// The devices of a model: one, or several that hold its blocks in this order, `cuda:0,cuda:1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<DeviceChoice>); // at least one; `auto` only alone

impl Devices {
    /// The devices of this choice.
    ///
    /// # Errors
    /// As [`DeviceChoice::resolve`].
    pub fn resolve(&self) -> Result<Vec<Device>> {
        self.0.iter().map(|own| own.resolve()).collect()
    }

    /// The only device, for commands that compute on one.
    ///
    /// # Errors
    /// If several are named; as [`DeviceChoice::resolve`].
    pub fn one(&self) -> Result<Device> {
        match self.0[..] {
            [own] => own.resolve(),
            _ => bail!(
                "--device is {self}, and this command computes on one device; name one (train, generate, chat, eval, logits and serve take several)"
            ),
        }
    }

    /// The devices of process `number` of the `here` processes on a machine. Several named devices are divided evenly.
    ///
    /// # Errors
    /// If several devices are named that cannot be shared out.
    pub fn of_process(&self, number: usize, here: usize) -> Result<Self> {
        if let [own] = self.0[..] {
            return Ok(own.of_process(number).into());
        }
        let n = self.0.len();
        ensure!(
            n.is_multiple_of(here) && number < here,
            "--device names {n} devices, which {here} processes cannot share; name as many for each, or one device"
        );
        let own = n / here;
        Ok(Self(self.0[number * own..(number + 1) * own].to_vec()))
    }

    /// The choice of given devices.
    pub fn of(devices: impl IntoIterator<Item = Device>) -> Self {
        Self(devices.into_iter().map(DeviceChoice::of).collect())
    }
}

impl Default for Devices {
    fn default() -> Self {
        DeviceChoice::Auto.into()
    }
}

impl From<DeviceChoice> for Devices {
    fn from(own: DeviceChoice) -> Self {
        Self(vec![own])
    }
}

impl FromStr for Devices {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let all: Vec<DeviceChoice> = s.split(',').map(str::parse).collect::<Result<_>>()?;
        if all.len() > 1 && all.contains(&DeviceChoice::Auto) {
            bail!(
                "found auto in {s:?}, expected the name of each of several devices: cuda:0,cuda:1"
            );
        }
        Ok(Self(all))
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(DeviceChoice::to_string).collect();
        f.write_str(&names.join(","))
    }
}

as_text!(Devices);

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
    fn several_devices_are_named_each_and_shared_out_evenly() -> Result<()> {
        let four: Devices = "cuda:0,cuda:1,cuda:1,cpu".parse()?;
        assert_eq!(four.to_string(), "cuda:0,cuda:1,cuda:1,cpu");
        assert_eq!(four.of_process(1, 2)?.to_string(), "cuda:1,cpu");
        assert_eq!(four.of_process(2, 4)?.to_string(), "cuda:1");
        let told = four.of_process(0, 3).map_err(|error| error.to_string());
        assert!(told.is_err_and(|told| told.contains("names 4 devices, which 3 processes")));
        assert_eq!("cpu".parse::<Devices>()?.of_process(5, 6)?.to_string(), "cpu");
        for wrong in ["cpu,", ",", "auto,cpu", "cpu,gpu"] {
            assert!(wrong.parse::<Devices>().is_err(), "{wrong} is taken for devices");
        }
        assert_eq!("cpu,cpu".parse::<Devices>()?.resolve()?, [Device::Cpu; 2]);
        let one = "cpu,cpu".parse::<Devices>()?.one().map_err(|error| error.to_string());
        assert!(one.is_err_and(|told| told.contains("cpu,cpu, and this command computes on one")));
        Ok(())
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error() {
        assert!(DeviceChoice::Cuda(4_000).resolve().is_err());
    }
}
