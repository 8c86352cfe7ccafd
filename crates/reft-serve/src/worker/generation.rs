use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use reft_methods::{only_steers, trained_text};
use reft_models::TrainedText;

/// An adapter as it was found under a name at one time. It never changes: a replacement is a new generation.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Unique in the process.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    /// How its training texts were framed.
    pub(crate) trained: Option<TrainedText>,
    /// Whether it only adds directions, or takes them out.
    pub(crate) only_steers: bool,
    /// Whether it has lost its name: then only earlier requests still use it.
    is_nameless: AtomicBool,
}

impl Generation {
    /// An adapter whose files have not been read.
    pub(crate) fn unread(name: &str, directory: PathBuf) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            id,
            name: name.to_owned(),
            directory,
            trained: None,
            only_steers: false,
            is_nameless: AtomicBool::new(false),
        }
    }

    /// The adapter in a directory; its tensors are read when a request needs them.
    ///
    /// # Errors
    /// If the directory holds no adapter, or a file is missing or broken.
    pub(crate) fn of(name: &str, directory: PathBuf) -> reft_methods::Result<Self> {
        let (trained, only_steers) = (trained_text(&directory)?, only_steers(&directory)?);
        Ok(Self { trained, only_steers, ..Self::unread(name, directory) })
    }

    /// Takes its name away, for ever.
    pub(crate) fn forget(&self) {
        self.is_nameless.store(true, Ordering::Relaxed);
    }

    /// Whether new requests can still use it.
    pub(crate) fn has_a_name(&self) -> bool {
        !self.is_nameless.load(Ordering::Relaxed)
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
