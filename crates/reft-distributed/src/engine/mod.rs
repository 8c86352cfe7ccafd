//! libtorch's store and process group. Where they cannot be had, the same functions give the reason.

#[cfg(process_groups)]
mod c10d;
#[cfg(not(process_groups))]
mod elsewhere;

#[cfg(process_groups)]
pub(crate) use c10d::{Group, Store, libtorch_version};
#[cfg(not(process_groups))]
pub(crate) use elsewhere::{Group, Store, libtorch_version};
