//! Training runs in several processes, on libtorch's process groups: `TCPStore` for messages that are sent once, Gloo for sums, and NCCL
//! for sums on GPUs.
//!
//! A launcher (`torchrun`, `srun`, `mpirun`) starts the processes and gives each its place in environment variables, which
//! [`ProcessPlace::from_environment`] reads. [`ProcessGroup::join`] waits for all processes, compares their options, and connects them.
//! The group is the trainer's [`reft_train::Reduce`]. [`Launch`] is a launcher for one machine.
//!
//! ```no_run
//! use reft_distributed::{ProcessPlace, ProcessGroup};
//! use tch::Tensor;
//!
//! fn main() -> reft_distributed::Result<()> {
//!     if let Some(place) = ProcessPlace::from_environment()? {
//!         let group = ProcessGroup::join(&place, &[("data", "sha256 of the examples".to_owned())])?;
//!         let mut counts = [Tensor::from_slice(&[1.0, 2.0])];
//!         group.sum(&mut counts)?; // the same on every process
//!     }
//!     Ok(())
//! }
//! ```
//!
//! If a process ends, is killed or stops, all other processes get an error that names it. Tensors on a CPU are sent by Gloo. Tensors on a GPU
//! are sent by NCCL if [`ProcessGroup::connect_gpus`] chooses it, else through the host.

mod engine;
mod error;

mod keeper;
mod launch;
mod launcher;
mod process_group;
mod process_place;
mod reduction;

pub use error::{Error, Result};
pub use launch::{Ended, Launch};
pub use process_group::ProcessGroup;
pub use process_place::{ERROR_FILE, ProcessPlace, StoreHost};
pub use reduction::Reduction;

pub(crate) use engine::{Group, Store, libtorch_version};
pub(crate) use keeper::{Keeper, Loss};
pub(crate) use launcher::{Found, find};
