//! Options that are declared in the libraries, as flags and as fields of files.

mod declared;
mod flags;
mod in_flags;
mod text;

pub use declared::Declared;
pub use flags::{FlagGroup, Flags, MethodFlags, method_name};
pub use in_flags::{flag, in_flags};
pub use text::{List, Text};
