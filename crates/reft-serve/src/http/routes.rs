use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, FromRequest, Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::request::Endpoint;
use crate::http::adapters::{load, name_in, unload};
use crate::http::edits::edits;
use crate::http::generate::{generate, json as answer};
use crate::http::guard::guard;
use crate::http::log_entry::Trace;
use crate::http::page::page;
use crate::http::shared::{Phase, Shared};

type App = State<Arc<Shared>>;
type Answer = Result<Response, ApiError>;

/// All paths.
pub(crate) fn routes(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/edits", post(measure))
        .route("/v1/load_lora_adapter", post(load_adapter))
        .route("/v1/unload_lora_adapter", post(unload_adapter))
        .route("/v1/adapters", get(adapters).post(load_adapter))
        .route("/v1/adapters/{name}", delete(delete_adapter))
        .fallback(async || ApiError::not_found("there is no such path; docs/serving.md lists them"))
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(DefaultBodyLimit::max(shared.options.body_bytes))
        .layer(from_fn_with_state(Arc::clone(shared), guard))
        .with_state(Arc::clone(shared))
}

/// Ready only when requests would be answered.
async fn health(State(shared): App) -> Response {
    let (status, word) = match shared.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
        Phase::Ready => (StatusCode::OK, "ready"),
        Phase::Stopping | Phase::Ended => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    (status, answer(&json!({"status": word}))).into_response()
}

async fn metrics(State(shared): App) -> Response {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, TEXT)], Body::from(shared.counts.text())).into_response()
}

/// A model or an adapter in OpenAI's form, with vLLM's `parent`.
fn described(shared: &Shared, name: &str) -> Value {
    let parent = (name != shared.catalogue.base()).then(|| shared.catalogue.base());
    let root = shared.catalogue.base();
    json!({"id": name, "object": "model", "created": 0, "owned_by": "reft", "root": root, "parent": parent})
}

fn listed(shared: &Shared, names: &[String]) -> Response {
    let all: Vec<Value> = names.iter().map(|name| described(shared, name)).collect();
    answer(&json!({"object": "list", "data": all}))
}

async fn models(State(shared): App) -> Answer {
    let base = shared.catalogue.base().to_owned();
    Ok(listed(&shared, &[vec![base], names(&shared).await?].concat()))
}

async fn adapters(State(shared): App) -> Answer {
    Ok(listed(&shared, &names(&shared).await?))
}

/// The names of all adapters. A directory of thousands takes a while to read, and other requests go on meanwhile.
async fn names(shared: &Arc<Shared>) -> Result<Vec<String>, ApiError> {
    shared.aside(|shared| shared.catalogue.names()).await
}

async fn model(State(shared): App, Path(name): Path<String>) -> Answer {
    if name != shared.catalogue.base() && !shared.catalogue.has(&name) {
        return Err(ApiError::no_model(&name));
    }
    Ok(answer(&described(&shared, &name)))
}

async fn chat(State(shared): App, Extension(trace): Extension<Trace>, request: Request) -> Answer {
    let body = read(&shared, request).await?;
    generate(shared, trace, Endpoint::Chat, body).await
}

async fn completion(
    State(shared): App,
    Extension(trace): Extension<Trace>,
    request: Request,
) -> Answer {
    let body = read(&shared, request).await?;
    generate(shared, trace, Endpoint::Completion, body).await
}

async fn measure(
    State(shared): App,
    Extension(trace): Extension<Trace>,
    request: Request,
) -> Answer {
    let body = read(&shared, request).await?;
    edits(shared, trace, body).await
}

async fn load_adapter(State(shared): App, request: Request) -> Answer {
    let body = read(&shared, request).await?;
    load(shared, &body).await
}

async fn unload_adapter(State(shared): App, request: Request) -> Answer {
    let name = name_in(&read(&shared, request).await?)?;
    unload(shared, &name).await
}

async fn delete_adapter(State(shared): App, Path(name): Path<String>) -> Answer {
    unload(shared, &name).await
}

/// The body of a request.
///
/// # Errors
/// If it is too long, or does not arrive.
async fn read(shared: &Shared, request: Request) -> Result<Bytes, ApiError> {
    // a body whose declared length is too long is refused before it is read
    if request.body().size_hint().lower() > shared.options.body_bytes as u64 {
        return Err(ApiError::too_large(shared.options.body_bytes));
    }
    let read = timeout(shared.options.time, Bytes::from_request(request, &())).await;
    let read = read.map_err(|_| ApiError::out_of_time(shared.options.time.as_secs()))?;
    read.map_err(|refused: BytesRejection| match refused.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::too_large(shared.options.body_bytes),
        _ => ApiError::invalid("the body did not come whole"),
    })
}
