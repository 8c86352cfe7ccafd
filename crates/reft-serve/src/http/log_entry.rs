use std::time::Instant;

use serde::Serialize;

/// A line of the server's log: an answer.
#[derive(Debug, Clone, Serialize)]
pub struct LogEntry {
    /// When it was finished.
    pub time: String,
    /// `x-request-id`: the client's, or one that was made for it.
    pub request: String,
    /// The method.
    pub method: String,
    /// The path, without a query.
    pub path: String,
    /// The status.
    pub status: u16,
    /// How long it took.
    pub milliseconds: u64,
    /// The facts about a reply; `None` for other answers.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub reply: Option<LoggedReply>,
}

/// The log's entry for a reply. It holds no texts.
#[derive(Debug, Clone, Serialize)]
pub struct LoggedReply {
    /// The model or adapter that was asked.
    pub model: String,
    /// Its adapters with their strengths.
    pub adapters: Vec<(String, f64)>,
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens that were generated.
    pub generated_tokens: usize,
    /// How it ended: done, the client went, or the code of an error.
    pub end: String,
}

impl std::fmt::Display for LogEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { time, request, method, path, status, milliseconds, reply } = self;
        write!(f, "{time} {method} {path} {status} {milliseconds} ms, request {request}")?;
        let Some(LoggedReply { model, adapters, prompt_tokens, generated_tokens, end }) = reply
        else {
            return Ok(());
        };
        write!(f, ", {model}")?;
        for (i, (name, strength)) in adapters.iter().enumerate() {
            let before = if i == 0 { " with " } else { " + " };
            write!(f, "{before}{name} at {strength}")?;
        }
        write!(f, ", {prompt_tokens} + {generated_tokens} tokens, {end}")
    }
}

/// The facts of a request for its log line.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) request: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) since: Instant,
}

impl Trace {
    /// Its log line.
    pub(crate) fn entry(&self, status: u16, reply: Option<LoggedReply>) -> LogEntry {
        let Self { request, method, path, since } = self.clone();
        let time = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let milliseconds = since.elapsed().as_millis() as u64;
        LogEntry { time, request, method, path, status, milliseconds, reply }
    }
}

/// Marks an answer that writes its own log line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IsLogged;
