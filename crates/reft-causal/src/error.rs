use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors when causal models are run and looked for in networks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A causal model is run on more or fewer inputs than it has.
    #[error("{found} inputs are given, the causal model has {expected}")]
    InputCount {
        /// Inputs of the causal model.
        expected: usize,
        /// Inputs given.
        found: usize,
    },
    /// A causal model does not have the variable, or no variable is named.
    #[error(
        "there is no variable {index}, the causal model has {variables}; name variables of the same model"
    )]
    UnknownVariable {
        /// The variable.
        index: usize,
        /// Number of variables.
        variables: usize,
    },
    /// Counterfactuals with equal ids, or that do not fit their swaps or alignments.
    #[error("{reason}")]
    Counterfactuals {
        /// The value found, and the value expected.
        reason: String,
    },
    /// An option with an invalid value.
    #[error("{option} is {found}, expected {expected}")]
    OptionValue {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// The allowed values.
        expected: String,
    },
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The value found, and the value expected.
        reason: String,
    },
    /// A task that does not fit the model, or contradicts itself.
    #[error("task {task}: {reason}")]
    DasTask {
        /// The task.
        task: String,
        /// The value found, and the value expected.
        reason: String,
    },
    /// A search was asked to stop. Finished work is kept.
    #[error("interrupted; finished searches are kept, and the same command goes on after them")]
    Interrupted,
    /// A method is refused.
    #[error(transparent)]
    Method(#[from] reft_methods::Error),
    /// Training or evaluation fails.
    #[error(transparent)]
    Train(#[from] reft_train::Error),
    /// A model, an adapter or a file fails.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
}

impl From<reft_core::Error> for Error {
    fn from(error: reft_core::Error) -> Self {
        match error {
            reft_core::Error::UnknownName { what: option, found, accepted: expected } => {
                Self::OptionValue { option, found, expected }
            }
            other => Self::Model(other.into()),
        }
    }
}

/// Refuses the value of an option.
pub(crate) fn refuse<T>(
    option: &'static str,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> Result<T> {
    Err(Error::OptionValue { option, found: found.into(), expected: expected.into() })
}
