use std::path::{Path, PathBuf};

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when a method is chosen and its adapter is made, read or merged.
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
    /// An option with a value that cannot be.
    #[error("{option} is {found}, expected {expected}")]
    OptionValue {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Methods that cannot be used at once.
    #[error("{first} and {second} cannot be combined: {reason}")]
    NotCombinable {
        /// One method.
        first: String,
        /// Another.
        second: String,
        /// Why not.
        reason: &'static str,
    },
    /// A directory that holds no adapter of a kind known here.
    #[error("{} holds no adapter; expected one of {expected} in it", path.display())]
    NotAnAdapter {
        /// The directory.
        path: PathBuf,
        /// The files that would make it one.
        expected: String,
    },
    /// An adapter that cannot become part of the weights.
    #[error(
        "{} holds {what}, which cannot be merged into the weights: {reason}; lora, rslora, dora, ia3 and full can",
        path.display()
    )]
    NotMergeable {
        /// The adapter's directory.
        path: PathBuf,
        /// What it is.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// A merged weight that is not a number.
    #[error(
        "merging makes {name} infinite or NaN; the adapter is broken, or the kind overflows: try f32"
    )]
    NotFinite {
        /// The weight, by its checkpoint name.
        name: String,
    },
    /// A line of a file that cannot be used.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What was found and what was expected.
        reason: String,
    },
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A method whose steps cannot be timed.
    #[error("{method} cannot be timed: {reason}")]
    Timing {
        /// The method.
        method: String,
        /// Why not.
        reason: String,
    },
    /// A task for alignment search that does not fit the model, or itself.
    #[error("task {task}: {reason}")]
    DasTask {
        /// The task.
        task: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A run was asked to stop. What is finished is kept.
    #[error("interrupted; what is finished is kept, the same command goes on after it")]
    Interrupted,
    /// Data, training or evaluation fails.
    #[error(transparent)]
    Train(#[from] reft_train::Error),
    /// A model, an adapter or a file fails.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
}

/// Turns the system's error into ours, with what was tried and where.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| reft_models::Error::Io { action, path, source }.into()
}

/// The text of a file, without a byte order mark.
///
/// # Errors
/// If it cannot be read, or the line that is no UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(io_error("read", path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.iter().filter(|&&byte| byte == b'\n').count();
        let reason = "the text is no UTF-8; expected UTF-8".to_owned();
        Error::Line { path: path.to_owned(), line, reason }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

impl From<reft_core::Error> for Error {
    fn from(error: reft_core::Error) -> Self {
        Self::Model(error.into())
    }
}
