//! Where a command computes, and with which kinds of numbers.

#[cfg(target_os = "linux")]
pub mod allocator;
mod cuda;
mod cuda_driver;
mod device_choice;
pub mod devices;
mod kind_choice;
pub mod libtorch;
mod machine_options;

pub use cuda_driver::memory_in_use;
pub use device_choice::{DeviceChoice, Devices};
pub use kind_choice::KindChoice;
pub use machine_options::{DeviceAndThreads, MachineOptions, place_flags};
