use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use reft_models::TrainedText;

/// An adapter as it was found under a name at one time. It never changes: what replaces it is another one.
#[derive(Debug)]
pub(crate) struct Generation {
    /// No two have the same.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    /// How the texts were framed that it was trained on.
    pub(crate) trained: Option<TrainedText>,
}

impl Generation {
    pub(crate) fn new(name: &str, directory: PathBuf, trained: Option<TrainedText>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, name: name.to_owned(), directory, trained }
    }
}

/// An adapter of a request.
#[derive(Debug, Clone)]
pub(crate) struct Used {
    pub(crate) generation: std::sync::Arc<Generation>,
    /// `base + s · (edited − base)`.
    pub(crate) strength: f64,
    /// Coordinates of its subspace that it may change; `None`: all.
    pub(crate) subspace: Option<Vec<i64>>,
}
