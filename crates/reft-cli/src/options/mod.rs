//! Options that are declared in the libraries, as flags and as fields of files.

mod declared;
mod flags;

pub use declared::Declared;
pub use flags::{FlagGroup, Flags, List, MethodFlags, check_counts, flag, in_flags, method_name};
