use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use reft_bench::Precision;
use reft_core::as_text;
use tch::Device;

use crate::machine::cuda;
use crate::terminal::note;

/// The requested kind of the frozen model's numbers, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindChoice {
    /// bf16 where the hardware has instructions for it, else f32.
    Auto,
    /// The given kind.
    Is(Precision),
}

impl KindChoice {
    /// The kind on these devices. For `auto` it prints a note with the kind.
    pub fn resolve(self, devices: &[Device]) -> Precision {
        let Self::Is(kind) = self else {
            let hardware = Hardware::of_all(devices);
            let kind = hardware.kind();
            note(format!("--kind auto: {}, as {}", kind.name(), hardware.reason()));
            return kind;
        };
        kind
    }
}

impl Default for KindChoice {
    fn default() -> Self {
        Self::Is(Precision::default())
    }
}

impl FromStr for KindChoice {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        match (s, s.parse()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(kind)) => Ok(Self::Is(kind)),
            _ => bail!("unknown kind {s:?}; use f32, bf16, f16 or auto"),
        }
    }
}

impl fmt::Display for KindChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Is(kind) => f.write_str(kind.name()),
        }
    }
}

as_text!(KindChoice);

/// The fact about a device that decides whether it computes bf16 natively.
#[derive(Debug, Clone, Copy)]
enum Hardware {
    /// A GPU, by the first number of its compute capability.
    Gpu { compute_major: i32 },
    /// The processor, by whether it multiplies bf16.
    Processor { multiplies_bf16: bool },
}

/// The first generation of NVIDIA's GPUs with units for bf16.
const AMPERE: i32 = 8;

impl Hardware {
    fn of(device: Device) -> Self {
        let Device::Cuda(index) = device else {
            return Self::Processor { multiplies_bf16: multiplies_bf16() };
        };
        let gpus = cuda::load().driver.as_ref().map(|driver| driver.gpus.as_slice());
        let gpu = gpus.unwrap_or_default().iter().find(|gpu| gpu.index == index);
        Self::Gpu { compute_major: gpu.map_or(0, |gpu| gpu.compute_major) }
    }

    /// The device that decides the kind: the first without native bf16, else the first.
    fn of_all(devices: &[Device]) -> Self {
        let all = || devices.iter().map(|device| Self::of(*device));
        let slowest = all().find(|own| own.kind() == Precision::F32).or_else(|| all().next());
        slowest.unwrap_or_else(|| Self::of(Device::Cpu))
    }

    fn kind(self) -> Precision {
        match self {
            Self::Gpu { compute_major: AMPERE.. } | Self::Processor { multiplies_bf16: true } => {
                Precision::Bf16
            }
            Self::Gpu { .. } | Self::Processor { .. } => Precision::F32,
        }
    }

    fn reason(self) -> &'static str {
        match (self, self.kind()) {
            (Self::Gpu { .. }, Precision::Bf16) => "the GPU has units for it",
            (Self::Gpu { .. }, _) => "the GPU has no units for bf16",
            (Self::Processor { .. }, Precision::Bf16) => "the processor has instructions for it",
            (Self::Processor { .. }, _) => "the processor has no instructions for bf16",
        }
    }
}

/// Whether the processor has instructions that multiply bf16. A processor with AMX for bf16 has AVX-512's too.
#[cfg(target_arch = "x86_64")]
fn multiplies_bf16() -> bool {
    std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(target_arch = "aarch64")]
fn multiplies_bf16() -> bool {
    std::arch::is_aarch64_feature_detected!("bf16")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn multiplies_bf16() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_taken_where_it_is_computed() {
        use Precision::{Bf16, F32};

        for (hardware, kind, reason) in [
            (Hardware::Gpu { compute_major: 0 }, F32, "no units"), // the driver does not tell
            (Hardware::Gpu { compute_major: 7 }, F32, "no units"),
            (Hardware::Gpu { compute_major: 8 }, Bf16, "the GPU has units"),
            (Hardware::Gpu { compute_major: 12 }, Bf16, "the GPU has units"),
            (Hardware::Processor { multiplies_bf16: false }, F32, "no instructions"),
            (Hardware::Processor { multiplies_bf16: true }, Bf16, "the processor has instructions"),
        ] {
            assert_eq!(hardware.kind(), kind, "{hardware:?}");
            assert!(hardware.reason().contains(reason), "{hardware:?}: {}", hardware.reason());
        }
    }

    #[test]
    fn kinds_are_read_as_they_are_written() -> Result<()> {
        for kind in ["auto", "f32", "bf16", "f16"] {
            assert_eq!(kind.parse::<KindChoice>()?.to_string(), kind);
        }
        assert!("f64".parse::<KindChoice>().is_err_and(|e| e.to_string().contains("f16 or auto")));
        assert_eq!(KindChoice::default(), KindChoice::Is(Precision::F32));
        Ok(())
    }
}
