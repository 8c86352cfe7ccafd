//! The tokens of a prompt that adapters edit.

use std::sync::Arc;

use axum::body::Bytes;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::api::error::ApiError;
use crate::api::request::Endpoint;
use crate::http::generate::{json as answer, read};
use crate::http::log_entry::Trace;
use crate::http::shared::{Phase, Shared};
use crate::worker::generation::Used;
use crate::worker::job::{Command, Measurement};

/// Answers a request for a reply with the changes that its adapters would make in the prompt: for each token, the largest relative change
/// of its hidden state.
///
/// # Errors
/// As for a reply; if there are several prompts, or the prompt is too long for one pass.
pub(crate) async fn edits(
    shared: Arc<Shared>,
    trace: Trace,
    body: Bytes,
) -> Result<Response, ApiError> {
    let (wanted, mut prompts) = read(&shared, Endpoint::of(&body)?, body).await?;
    let (Some(prompt), true) = (prompts.pop(), prompts.is_empty()) else {
        return Err(ApiError::invalid("edits are shown of one prompt; send one").of_field("prompt"));
    };
    let most = shared.options.engine.prefill_tokens;
    if prompt.len() > most {
        return Err(ApiError::long_prompt(prompt.len(), most));
    }
    let (sender, measured) = oneshot::channel();
    let _place = shared.admit(1)?;
    let adapters = wanted.adapters.clone();
    let measurement = Measurement { prompt: prompt.clone(), adapters, answer: sender, _place };
    shared.send(Command::Measure(measurement))?;
    let deadline = trace.since + shared.options.time;
    let measured = tokio::select! {
        biased;
        () = shared.reach(Phase::Ended) => return Err(ApiError::shutting_down()),
        measured = timeout_at(deadline.into(), measured) => measured,
    };
    let measured = measured.map_err(|_| ApiError::out_of_time(shared.options.time.as_secs()))?;
    let edits = measured.map_err(|_| ApiError::shutting_down())??;
    let tokenizer = &shared.ready()?.text.tokenizer;
    let token = |(id, size): (&i64, f64)| -> Value {
        json!({"id": id, "token": tokenizer.decode(&[*id], false).unwrap_or_default(), "edit": size})
    };
    let adapter = |(used, subspace): (&Used, Option<i64>)| json!({"name": used.generation.name, "subspace_size": subspace});
    let tokens: Vec<Value> = prompt.iter().zip(edits.sizes).map(token).collect();
    let adapters: Vec<Value> = wanted.adapters.iter().zip(edits.subspaces).map(adapter).collect();
    Ok(answer(
        &json!({"object": "edits", "model": wanted.model, "adapters": adapters, "tokens": tokens}),
    ))
}
