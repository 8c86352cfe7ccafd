//! The program for people who do not build it: a wheel for users with torch, an archive with libtorch for all others.

mod archive;
mod bare_system;
mod bill_of_materials;
mod contents;
mod licences;
mod program;
mod python_wheel;
mod wheel_check;

pub use archive::run as archive;
pub use bare_system::run as try_in_bare_system;
pub use program::CAN_BE_PACKED;
pub use python_wheel::run as wheel;
pub use wheel_check::{run as check_wheel, run_of_tests as check_wheel_of_tests};
