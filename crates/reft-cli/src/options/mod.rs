//! Options that are declared in the libraries, as flags and as fields of files.

mod declared;
mod flags;
mod list;

pub use declared::Declared;
pub use flags::{FlagGroup, Flags, MethodFlags, at_least_one, flag, in_flags, method_name};
pub use list::List;
