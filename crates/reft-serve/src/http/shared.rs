use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::api::catalogue::Catalogue;
use crate::api::error::ApiError;
use crate::api::prompt::ServedText;
use crate::api::request::Defaults;
use crate::http::log_entry::LogEntry;
use crate::options::ServeOptions;
use crate::worker::counts::Counts;
use crate::worker::job::Command;

/// The state of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The model is being loaded.
    Starting,
    Ready,
    /// No new requests; requests in flight continue.
    Stopping,
    /// Requests in flight get an error.
    Ended,
}

/// State that all requests share.
pub(crate) struct Shared {
    pub(crate) options: ServeOptions,
    pub(crate) address: SocketAddr,
    pub(crate) catalogue: Catalogue,
    pub(crate) counts: Counts,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) text: OnceLock<Ready>,
    /// One adapter is loaded or unloaded at a time.
    pub(crate) changes: tokio::sync::Mutex<()>,
    permits: Arc<Semaphore>,
    commands: Mutex<Option<SyncSender<Command>>>,
}

/// Texts and defaults, known once the model is loaded.
pub(crate) struct Ready {
    pub(crate) text: ServedText,
    pub(crate) defaults: Defaults,
}

/// Time between two calls of [`ServeOptions::before_waiting`] on one thread.
const BETWEEN: Duration = Duration::from_millis(100);

/// Calls a function, unless it was called on this thread a moment ago.
pub(crate) fn now_and_then(call: fn()) {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    if LAST.get().is_none_or(|last| last.elapsed() >= BETWEEN) {
        call();
        LAST.set(Some(Instant::now()));
    }
}

impl Shared {
    pub(crate) fn new(
        options: ServeOptions,
        address: SocketAddr,
        catalogue: Catalogue,
        counts: Counts,
        commands: SyncSender<Command>,
    ) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(options.room())),
            options,
            address,
            catalogue,
            counts,
            phase: watch::Sender::new(Phase::Starting),
            text: OnceLock::new(),
            changes: tokio::sync::Mutex::new(()),
            commands: Mutex::new(Some(commands)),
        }
    }

    /// Does slow work on a separate thread, so that the threads for HTTP stay free.
    ///
    /// # Errors
    /// If it panics.
    pub(crate) async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let own = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&own);
            now_and_then(own.options.before_waiting);
            done
        });
        done.await.map_err(|_| ApiError::failed())
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a phase, never back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let is_new = *now < phase;
            *now = phase.max(*now);
            is_new
        });
    }

    /// Waits for a phase.
    pub(crate) async fn reach(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // cannot fail: `self` owns the sender
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    /// Texts and defaults for replies.
    ///
    /// # Errors
    /// If the server is not ready, or is about to end.
    pub(crate) fn ready(&self) -> Result<&Ready, ApiError> {
        match (self.phase(), self.text.get()) {
            (Phase::Ready, Some(ready)) => Ok(ready),
            (Phase::Starting, _) | (Phase::Ready, None) => {
                Err(ApiError::unavailable("loading", "the model is being loaded"))
            }
            (Phase::Stopping | Phase::Ended, _) => Err(ApiError::shutting_down()),
        }
    }

    /// Reserves room for `replies` replies.
    ///
    /// # Errors
    /// If there is no room.
    pub(crate) fn admit(&self, replies: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let room = self.options.room();
        if replies > room {
            let message =
                format!("{replies} replies are wanted at once, and there is room for {room}");
            return Err(ApiError::invalid(message).of_field("n"));
        }
        let permits = Arc::clone(&self.permits).try_acquire_many_owned(replies as u32);
        permits.map_err(|_| ApiError::full(room))
    }

    /// Hands a command to the worker.
    ///
    /// # Errors
    /// If its queue is full, or it has ended.
    pub(crate) fn send(&self, command: Command) -> Result<(), ApiError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = commands.as_ref().ok_or_else(ApiError::shutting_down)?;
        sender.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => ApiError::full(self.options.room()),
            TrySendError::Disconnected(_) => ApiError::shutting_down(),
        })
    }

    /// Lets the worker end.
    pub(crate) fn hang_up(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(crate) fn log(&self, entry: &LogEntry) {
        (self.options.log)(entry);
    }
}
