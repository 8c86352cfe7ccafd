use std::fs;

use serde::{Deserialize, Serialize};
use tch::Device;

/// The machine and the versions that a comparison ran with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this program.
    pub reft: String,
    /// Version of tch.
    pub tch: String,
    /// Version of libtorch.
    pub libtorch: String,
    /// Operating system and architecture.
    pub system: String,
    /// The processor's name, where the system tells it.
    pub cpu: Option<String>,
    /// Logical processors.
    pub cores: usize,
    /// Threads that libtorch computes with.
    pub threads: usize,
    /// Memory in bytes, where the system tells it.
    pub memory_bytes: Option<u64>,
    /// Where the model is computed.
    pub device: String,
}

impl Machine {
    /// This machine, computing on a device.
    pub fn here(device: Device) -> Self {
        let device = match device {
            Device::Cuda(index) => format!("cuda:{index}"),
            other => format!("{other:?}").to_lowercase(),
        };
        Self {
            reft: env!("CARGO_PKG_VERSION").to_owned(),
            tch: "0.24.0".to_owned(),
            libtorch: "2.11.0".to_owned(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: field_of("/proc/cpuinfo", "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads: tch::get_num_threads() as usize,
            memory_bytes: kilobytes("/proc/meminfo", "MemTotal"),
            device,
        }
    }
}

/// This process's peak memory in bytes: the high-water mark of the resident set, where the system reports it.
///
/// It never falls, so a measured process must do nothing else.
pub(crate) fn peak_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM")
}

fn field_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn kilobytes(path: &str, name: &str) -> Option<u64> {
    let value = field_of(path, name)?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn peak_memory_rises_with_what_is_held() {
        let before = peak_memory().expect("VmHWM");
        let held = vec![1u8; 64 << 20];
        let after = peak_memory().expect("VmHWM");
        assert!(after >= before.max(held.len() as u64), "{before} {after}");
    }
}
