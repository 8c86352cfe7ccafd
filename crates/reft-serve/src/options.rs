use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reft_models::EngineOptions;

use crate::http::api_keys::ApiKeys;
use crate::http::log_entry::LogEntry;

/// How a server serves.
#[derive(Clone)]
pub struct ServeOptions {
    /// The address that it listens on.
    pub host: IpAddr,
    /// Its port; 0: any free port.
    pub port: u16,
    /// Keys, one of which a client has to show; `None`: none.
    pub keys: Option<ApiKeys>,
    /// The base model's name.
    pub model_name: String,
    /// Adapters by their names.
    pub adapters: Vec<(String, PathBuf)>,
    /// A directory whose directories are adapters.
    pub adapters_dir: Option<PathBuf>,
    /// Most bytes of adapters in memory; adapters of requests in flight stay even beyond it.
    pub adapter_bytes: usize,
    /// Whether clients may load and unload adapters.
    pub allows_loading: bool,
    /// How much the engine does at once.
    pub engine: EngineOptions,
    /// Most replies that may wait.
    pub queue: usize,
    /// Most bytes of a body.
    pub body_bytes: usize,
    /// Most tokens of a prompt; `None`: the model's context length.
    pub prompt_tokens: Option<usize>,
    /// Most tokens of a chat's reply if the request gives no limit.
    pub reply_tokens: usize,
    /// Longest time that a request may take.
    pub time: Duration,
    /// Longest time that a connection may take to send a request's header, or stay open without one.
    pub idle: Duration,
    /// How long requests in flight may go on after the server is asked to end.
    pub grace: Duration,
    /// Called on the thread that owns all tensors when nothing has been in flight for a second, once until the next request: the place to give
    /// free memory back to the system.
    pub at_rest: fn(),
    /// Called on every other thread before it waits for work, ten times a second at most: the place to hand over memory that the thread has
    /// freed and would keep for itself.
    pub before_waiting: fn(),
    /// Takes the lines of the log.
    pub log: Arc<dyn Fn(&LogEntry) + Send + Sync>,
}

impl ServeOptions {
    /// A server of a model for this machine alone, which loads nothing and logs nothing.
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            host: IpAddr::from([127, 0, 0, 1]),
            port: 8000,
            keys: None,
            model_name: model_name.into(),
            adapters: Vec::new(),
            adapters_dir: None,
            adapter_bytes: 1 << 30,
            allows_loading: false,
            engine: EngineOptions::default(),
            queue: 256,
            body_bytes: 4 << 20,
            prompt_tokens: None,
            reply_tokens: 512,
            time: Duration::from_secs(600),
            idle: Duration::from_secs(30),
            grace: Duration::from_secs(30),
            at_rest: || {},
            before_waiting: || {},
            log: Arc::new(|_| {}),
        }
    }

    /// Replies that may be in flight or wait.
    pub(crate) fn room(&self) -> usize {
        self.engine.rows + self.queue
    }
}
