use crate::Fields;
use crate::transformer::config_file::CONFIG;

/// The fields of every file that belongs to a model and is read here.
pub const MODEL_FILES: [&Fields; 1] = [&CONFIG];
