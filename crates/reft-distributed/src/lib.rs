//! Training runs in several processes, on the process groups that libtorch brings: `TCPStore` for what is said once, Gloo for what is summed.
//!
//! A launcher (`torchrun`, `srun`, `mpirun`) starts the processes and tells each its place by variables of the environment, which
//! [`Place::from_environment`] reads. [`ProcessGroup::join`] waits for all of them, compares what they were started with, and connects them;
//! the group is the trainer's [`reft_train::Reduce`]. [`Launch`] is a launcher for one machine.
//!
//! ```no_run
//! use reft_distributed::{Place, ProcessGroup};
//! use tch::Tensor;
//!
//! fn main() -> reft_distributed::Result<()> {
//!     if let Some(place) = Place::from_environment()? {
//!         let group = ProcessGroup::join(&place, &[("data", "sha256 of the examples".to_owned())])?;
//!         let mut counts = [Tensor::from_slice(&[1.0, 2.0])];
//!         group.sum(&mut counts)?; // the same on every process
//!     }
//!     Ok(())
//! }
//! ```
//!
//! A process that ends, is killed or stops is an error on all others, which names it. Only Gloo is used: tensors of a GPU go through the
//! host. NCCL, whose library is loaded when a GPU is chosen, is not called yet.

mod engine;
mod error;

mod keeper;
mod launch;
mod launcher;
mod place;
mod process_group;

pub use error::{Error, Result};
pub use launch::{Ended, Launch};
pub use place::{ERROR_FILE, Place, StoreHost};
pub use process_group::ProcessGroup;

pub(crate) use engine::{Group, Store, libtorch_version};
pub(crate) use keeper::{Keeper, Loss};
pub(crate) use launcher::{Found, find};
