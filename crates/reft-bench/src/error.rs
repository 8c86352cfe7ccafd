use std::path::{Path, PathBuf};

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors when a model is measured and methods are compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The value found, and the value expected.
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
    /// A run was asked to stop. Finished work is kept.
    #[error("interrupted; finished runs are kept, and the same command goes on after them")]
    Interrupted,
    /// A method, its options or its adapter fails.
    #[error(transparent)]
    Method(#[from] reft_methods::Error),
    /// Data, training or evaluation fails.
    #[error(transparent)]
    Train(#[from] reft_train::Error),
    /// A model, an adapter or a file fails.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
}

impl Error {
    /// A line of a file that cannot be used.
    pub(crate) fn line(path: &Path, line: usize, reason: String) -> Self {
        reft_models::Error::Line { path: path.to_owned(), line, reason }.into()
    }
}

/// Line and reason of an error about a line.
#[cfg(test)]
pub(crate) fn line_refused<T: std::fmt::Debug>(result: Result<T>) -> (usize, String) {
    match result {
        Err(Error::Model(reft_models::Error::Line { line, reason, .. })) => (line, reason),
        other => panic!("{other:?}"),
    }
}
