//! libtorch's store and process group, and NCCL. On platforms without them the same functions return the reason.

#[cfg(process_groups)]
mod c10d;
#[cfg(not(process_groups))]
mod elsewhere;
#[cfg(process_groups)]
mod nccl;

#[cfg(process_groups)]
pub(crate) use c10d::{Group, Store, libtorch_version};
#[cfg(not(process_groups))]
pub(crate) use elsewhere::{Communicator, Group, Nccl, Store, libtorch_version};
#[cfg(process_groups)]
pub(crate) use nccl::{Communicator, Nccl};
