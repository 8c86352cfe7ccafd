use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_models::{Finish, GenerationConfig, TokenLogprobs};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::api::error::ApiError;
use crate::worker::generation::{Generation, Used};

/// A command to the worker.
pub(crate) enum Command {
    /// The choices of a request, which begin together.
    Generate(Vec<Job>),
    /// Measures the changes that adapters make in a prompt.
    Measure(Measurement),
    /// Reads an adapter before it is given a name; the answer says whether it can be used.
    Load(Arc<Generation>, oneshot::Sender<Result<(), ApiError>>),
    /// Forgets an adapter. Requests in flight keep theirs.
    Forget(Arc<Generation>),
}

/// A prompt in which the adapters' changes are measured.
pub(crate) struct Measurement {
    pub(crate) prompt: Vec<i64>,
    pub(crate) adapters: Vec<Used>,
    pub(crate) answer: oneshot::Sender<Result<Edits, ApiError>>,
    /// Its place among the replies: it takes about as long as the prompt of a reply.
    pub(crate) _place: OwnedSemaphorePermit,
}

/// The tokens of a prompt that adapters edit.
#[derive(Debug)]
pub(crate) struct Edits {
    /// By token: the largest change of its hidden state, relative to it.
    pub(crate) sizes: Vec<f64>,
    /// By adapter: coordinates of the subspace that it edits in, if it edits in one.
    pub(crate) subspaces: Vec<Option<i64>>,
}

/// A reply to generate: one of the choices of a request.
pub(crate) struct Job {
    pub(crate) prompt: Vec<i64>,
    pub(crate) adapters: Vec<Used>,
    pub(crate) config: GenerationConfig,
    /// Whether it may have fewer tokens than `config` says, where the context ends.
    pub(crate) is_length_free: bool,
    /// Which of the request's choices it is; it draws other random numbers than the others.
    pub(crate) choice: usize,
    pub(crate) reply: mpsc::Sender<Piece>,
    /// Set when the reply needs no more tokens.
    pub(crate) is_over: Over,
    pub(crate) came: Instant,
    /// Its place among the waiting replies and the replies in flight.
    pub(crate) _place: OwnedSemaphorePermit,
}

/// A flag: no more tokens are needed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Over(Arc<AtomicBool>);

impl Over {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A piece of a job's answer: tokens, then an end.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) choice: usize,
    pub(crate) what: Result<NewToken, ApiError>,
}

/// A token of a reply.
#[derive(Debug)]
pub(crate) struct NewToken {
    pub(crate) id: i64,
    pub(crate) logprobs: Option<TokenLogprobs>,
    /// Why it is the last token, if it is.
    pub(crate) finish: Option<Finish>,
}
