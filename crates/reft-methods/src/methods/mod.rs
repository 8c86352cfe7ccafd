//! The methods beside ReFT, a file each.

pub(crate) mod bottleneck;
pub(crate) mod full;
pub(crate) mod ia3;
pub(crate) mod lora;
pub(crate) mod prefix;
pub(crate) mod prompt;
pub(crate) mod red;
pub(crate) mod steering;
