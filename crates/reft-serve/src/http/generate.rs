//! Replies over HTTP, whole or streamed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::http::header;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::api::error::ApiError;
use crate::api::reply::Replies;
use crate::api::request::{Endpoint, Wanted};
use crate::api::shapes::{Shape, Whole, usage};
use crate::http::log_entry::{IsLogged, LoggedReply, Trace};
use crate::http::shared::{Phase, Ready, Shared};
use crate::worker::job::{Command, Job, Over, Piece};

/// Most parts of a stream that wait for the client.
const BUFFER: usize = 16;

/// A request whose replies are being generated.
struct Begun {
    shared: Arc<Shared>,
    trace: Trace,
    wanted: Wanted,
    id: String,
    created: i64,
    prompt_tokens: usize,
    over: Vec<Over>,
}

/// Answers a request for replies.
///
/// # Errors
/// The fault in the request, or the reason why it cannot be answered now.
pub(crate) async fn generate(
    shared: Arc<Shared>,
    trace: Trace,
    endpoint: Endpoint,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (begun, pieces) = begin(shared, trace, endpoint, body).await?;
    if begun.wanted.is_stream {
        return streamed(begun, pieces).await;
    }
    let mut response = match begun.whole(pieces).await {
        Ok(whole) => json(&whole),
        Err(error) => error.into_response(),
    };
    response.extensions_mut().insert(IsLogged);
    Ok(response)
}

/// JSON as an answer.
pub(crate) fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Reads a request, and its prompts as tokens.
///
/// # Errors
/// The fault in the request.
pub(crate) async fn read(
    shared: &Arc<Shared>,
    endpoint: Endpoint,
    body: Bytes,
) -> Result<(Wanted, Vec<Vec<i64>>), ApiError> {
    shared.ready()?;
    // long texts take a while to read, and other requests go on meanwhile
    let read = shared.aside(move |shared| {
        let Ready { text, defaults } = shared.ready()?;
        let wanted = Wanted::read(endpoint, &body, &shared.catalogue, defaults)?;
        let prompts = text.tokens(&wanted)?;
        Ok((wanted, prompts))
    });
    let (wanted, prompts) = read.await??;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    match shared.options.prompt_tokens.filter(|most| longest > *most) {
        Some(most) => Err(ApiError::long_prompt(longest, most)),
        None => Ok((wanted, prompts)),
    }
}

/// Reads a request and hands it to the worker.
async fn begin(
    shared: Arc<Shared>,
    trace: Trace,
    endpoint: Endpoint,
    body: Bytes,
) -> Result<(Begun, mpsc::Receiver<Piece>), ApiError> {
    let (wanted, prompts) = read(&shared, endpoint, body).await?;
    let choices = wanted.choices();
    let mut permits = shared.admit(choices)?;
    // room for whole replies: the worker never waits for a client
    let (sender, pieces) = mpsc::channel(choices * (wanted.config.max_new_tokens.min(1 << 20) + 1));
    let over: Vec<Over> = (0..choices).map(|_| Over::default()).collect();
    let came = Instant::now();
    let job = |(choice, is_over): (usize, &Over)| -> Result<Job, ApiError> {
        Ok(Job {
            prompt: prompts[choice / wanted.n].clone(),
            adapters: wanted.adapters.clone(),
            config: wanted.config.clone(),
            is_length_free: wanted.is_length_free,
            choice,
            reply: sender.clone(),
            is_over: is_over.clone(),
            came,
            _place: permits.split(1).ok_or_else(ApiError::failed)?,
        })
    };
    let jobs = over.iter().enumerate().map(job).collect::<Result<_, _>>()?;
    shared.send(Command::Generate(jobs))?;
    let id = match endpoint {
        Endpoint::Chat => format!("chatcmpl-{:032x}", rand::random::<u128>()),
        Endpoint::Completion => format!("cmpl-{:032x}", rand::random::<u128>()),
    };
    let created = jiff::Timestamp::now().as_second();
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    Ok((Begun { shared, trace, wanted, id, created, prompt_tokens, over }, pieces))
}

impl Begun {
    fn replies<'a>(&'a self, ready: &'a Ready, pieces: mpsc::Receiver<Piece>) -> Replies<'a> {
        let Wanted { config, stop, .. } = &self.wanted;
        Replies::new(&ready.text.tokenizer, &config.stop_ids, stop, pieces, self.over.clone())
    }

    fn shape<'a>(&'a self, ready: &'a Ready) -> Shape<'a> {
        Shape {
            endpoint: self.wanted.endpoint,
            id: &self.id,
            created: self.created,
            model: &self.wanted.model,
            tokenizer: &ready.text.tokenizer,
            has_logprobs: self.wanted.config.logprobs.is_some(),
            has_usage: self.wanted.is_stream && self.wanted.has_usage,
        }
    }

    fn deadline(&self) -> tokio::time::Instant {
        (self.trace.since + self.shared.options.time).into()
    }

    /// The next piece, unless the time is over or the server ends.
    async fn next(
        &self,
        replies: &mut Replies<'_>,
    ) -> Result<Option<crate::api::reply::Delta>, ApiError> {
        tokio::select! {
            biased;
            () = self.shared.reach(Phase::Ended) => Err(ApiError::shutting_down()),
            next = timeout_at(self.deadline(), replies.next()) => {
                let seconds = self.shared.options.time.as_secs();
                next.unwrap_or_else(|_| Err(ApiError::out_of_time(seconds)))
            }
        }
    }

    /// The replies as a whole.
    async fn whole(&self, pieces: mpsc::Receiver<Piece>) -> Result<Value, ApiError> {
        let ready = self.shared.text.get().ok_or_else(ApiError::failed)?;
        let mut logged = LogAtEnd::of(self);
        let mut replies = self.replies(ready, pieces);
        let mut choices: Vec<Whole> = self.over.iter().map(|_| Whole::default()).collect();
        loop {
            let next = self.next(&mut replies).await;
            logged.generated = replies.generated;
            match next {
                Ok(Some(delta)) => choices[delta.choice].add(delta),
                Ok(None) => break,
                Err(error) => {
                    logged.end_with(&error);
                    return Err(error);
                }
            }
        }
        logged.is_done = true;
        Ok(self.shape(ready).whole(choices, usage(self.prompt_tokens, replies.generated)))
    }

    /// Streams the replies. An error before the first part becomes the answer. A later error becomes the last event, as OpenAI's clients
    /// expect.
    async fn send(
        self,
        pieces: mpsc::Receiver<Piece>,
        events: mpsc::Sender<Event>,
        begins: oneshot::Sender<Result<(), ApiError>>,
    ) {
        let Some(ready) = self.shared.text.get() else { return };
        let mut logged = LogAtEnd::of(&self);
        let shape = self.shape(ready);
        let mut replies = self.replies(ready, pieces);
        let mut offsets = vec![0; self.over.len()];
        let mut begins = Some(begins);
        loop {
            let next = tokio::select! {
                biased;
                () = events.closed() => return, // the client has gone: the replies are dropped
                next = self.next(&mut replies) => next,
            };
            logged.generated = replies.generated;
            if let Some(begins) = begins.take() {
                let begun = next.as_ref().map(drop).map_err(ApiError::clone);
                if let Err(error) = &begun {
                    logged.end_with(error);
                }
                // the client may have gone
                if begins.send(begun).is_err() || next.is_err() {
                    return;
                }
                for opening in (0..self.over.len()).filter_map(|choice| shape.opening(choice)) {
                    if events.send(event(&opening)).await.is_err() {
                        return;
                    }
                }
            }
            let part = match next {
                Ok(Some(delta)) => {
                    let part = shape.delta(&delta, offsets[delta.choice]);
                    offsets[delta.choice] += shape.characters(&delta.tokens);
                    part
                }
                Ok(None) => break,
                Err(error) => {
                    logged.end_with(&error);
                    let _ = events.send(event(&error.json())).await; // the client may have gone
                    return;
                }
            };
            // a client that does not read delays only its own replies, and only until the deadline
            match timeout_at(self.deadline(), events.send(event(&part))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
        logged.is_done = true;
        if shape.has_usage {
            let closing = shape.closing(usage(self.prompt_tokens, replies.generated));
            let _ = events.send(event(&closing)).await; // as above
        }
        let _ = events.send(Event::default().data("[DONE]")).await; // as above
    }
}

fn event(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// The stream once it has begun, or the error's answer if it cannot begin.
///
/// # Errors
/// If the server ends meanwhile.
async fn streamed(begun: Begun, pieces: mpsc::Receiver<Piece>) -> Result<Response, ApiError> {
    let (sender, events) = mpsc::channel(BUFFER);
    let (begins, has_begun) = oneshot::channel();
    tokio::spawn(begun.send(pieces, sender, begins));
    let mut response = match has_begun.await.map_err(|_| ApiError::shutting_down())? {
        Ok(()) => Sse::new(stream_of(events)).keep_alive(KeepAlive::default()).into_response(),
        Err(refused) => refused.into_response(),
    };
    response.extensions_mut().insert(IsLogged);
    Ok(response)
}

fn stream_of(events: mpsc::Receiver<Event>) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(events, |mut events| async {
        let event = events.recv().await?;
        Some((Ok(event), events))
    })
}

/// Writes the log line of a reply when it is dropped: the function that serves a client is dropped when the client goes.
struct LogAtEnd<'a> {
    begun: &'a Begun,
    generated: usize,
    is_done: bool,
    error: Option<(u16, String)>,
}

/// The log's status for an answer that the client did not take.
const CLIENT_GONE: u16 = 499;

impl<'a> LogAtEnd<'a> {
    fn of(begun: &'a Begun) -> Self {
        Self { begun, generated: 0, is_done: false, error: None }
    }

    fn end_with(&mut self, error: &ApiError) {
        self.error = Some((error.status.as_u16(), error.word().to_owned()));
    }
}

impl Drop for LogAtEnd<'_> {
    fn drop(&mut self) {
        let Begun { shared, trace, wanted, prompt_tokens, .. } = self.begun;
        let (status, end) = match self.error.take() {
            _ if self.is_done => (200, "done".to_owned()),
            Some(error) => error,
            None => (CLIENT_GONE, "the client has gone".to_owned()),
        };
        let adapter =
            |used: &crate::worker::generation::Used| (used.generation.name.clone(), used.strength);
        let reply = LoggedReply {
            model: wanted.model.clone(),
            adapters: wanted.adapters.iter().map(adapter).collect(),
            prompt_tokens: *prompt_tokens,
            generated_tokens: self.generated,
            end,
        };
        shared.log(&trace.entry(status, Some(reply)));
    }
}
