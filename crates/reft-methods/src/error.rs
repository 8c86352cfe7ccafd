use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors when a method is chosen and its adapter is made, read or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method that does not exist.
    #[error("unknown method {found:?}; use one of {accepted}, or several joined with +")]
    UnknownMethod {
        /// The name found.
        found: String,
        /// The names accepted.
        accepted: String,
    },
    /// An option that the method does not have.
    #[error("method {method} has no option {option}; remove it, the method takes {accepted}")]
    UnknownOption {
        /// The method.
        method: String,
        /// The option given.
        option: String,
        /// The options that the method has.
        accepted: String,
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
    /// A directory that holds no adapter of a kind known here.
    #[error("{} holds no adapter; expected one of {expected}", path.display())]
    NotAnAdapter {
        /// The directory.
        path: PathBuf,
        /// The files that would make it one.
        expected: String,
    },
    /// A directory with an adapter of an unsupported type.
    #[error(
        "{} holds an adapter of {field} {found}, which is not computed here; expected one of {accepted}, or merge it into its model with the \
         program that made it",
        path.display()
    )]
    UnknownAdapterType {
        /// The directory.
        path: PathBuf,
        /// The field that says it.
        field: &'static str,
        /// The type found.
        found: String,
        /// The supported types.
        accepted: String,
    },
    /// An adapter that cannot become part of the weights.
    #[error(
        "{} holds {what}, which cannot be merged into the weights: {reason}; {accepted} can",
        path.display()
    )]
    NotMergeable {
        /// The adapter's directory.
        path: PathBuf,
        /// The reason.
        what: String,
        /// Why not.
        reason: &'static str,
        /// The methods that can.
        accepted: String,
    },
    /// An adapter that a control vector cannot express.
    #[error("{} holds {method}, which is no control vector: {reason}", path.display())]
    NotAControlVector {
        /// The adapter's directory.
        path: PathBuf,
        /// The reason.
        method: String,
        /// Why not.
        reason: String,
    },
    /// An adapter that cannot be joined with others.
    #[error(
        "{} holds {what}, which cannot become one adapter with the others: {reason}",
        path.display()
    )]
    NotJoinable {
        /// The adapter's directory.
        path: PathBuf,
        /// The reason.
        what: String,
        /// Why not.
        reason: String,
    },
    /// An adapter that the files of another program cannot express.
    #[error("{} holds {what}, which has no place in {form}: {reason}", path.display())]
    NotExportable {
        /// The adapter's directory.
        path: PathBuf,
        /// The reason.
        what: String,
        /// The form asked for.
        form: &'static str,
        /// The reason, and advice.
        reason: String,
    },
    /// A merged weight that is not a number.
    #[error(
        "merging makes {name} infinite or NaN; the adapter is broken, or the kind overflows: try f32"
    )]
    NotFinite {
        /// The weight, by its checkpoint name.
        name: String,
    },
    /// A model, an adapter or a file fails.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
}

impl From<reft_core::Error> for Error {
    fn from(error: reft_core::Error) -> Self {
        Self::Model(error.into())
    }
}
