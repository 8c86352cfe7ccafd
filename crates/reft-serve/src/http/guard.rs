//! Access checks of all requests; headers, counts and log lines of all answers.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::http::log_entry::{IsLogged, Trace};
use crate::http::shared::Shared;

/// The header with a request's id, the client's or ours.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 128;

/// Paths that need no key: the page and the health probe reveal nothing of the model.
const OPEN: [&str; 2] = ["/", "/health"];

/// Gives each request an id, checks its access, and counts and logs its answer.
pub(crate) async fn guard(
    State(shared): State<Arc<Shared>>,
    mut request: Request,
    next: Next,
) -> Response {
    let trace = Trace {
        request: request_id(request.headers()),
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        since: Instant::now(),
    };
    request.extensions_mut().insert(trace.clone());
    let is_local = shared.address.ip().is_loopback();
    let allowed = check(&shared, is_local, request.method(), request.uri(), request.headers());
    let mut response = match allowed {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    let status = response.status().as_u16();
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&trace.request) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    shared.counts.answer(label(&trace.path), status);
    if response.extensions().get::<IsLogged>().is_none() {
        shared.log(&trace.entry(status, None));
    }
    response
}

/// The client's id for its request if it is fit for the log, else a new id.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_plain = |id: &&str| {
        !id.is_empty() && id.len() <= LONGEST_ID && id.chars().all(|c| c.is_ascii_graphic())
    };
    own.filter(is_plain).map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned)
}

/// # Errors
/// If the request comes by a name that is not this server's, from another site's page, or without a key.
fn check(
    shared: &Shared,
    is_local: bool,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let host = text(header::HOST).or_else(|| uri.authority().map(|authority| authority.as_str()));
    if is_local && !host.is_some_and(is_local_host) {
        return Err(ApiError::forbidden(
            "the server is for this machine: the Host header has to be localhost, 127.0.0.1 or [::1]",
        ));
    }
    // a browser sends the origin of the page that asks; pages of other sites are refused
    if let Some(origin) = text(header::ORIGIN) {
        let of_origin = origin.split_once("://").map(|(_, host)| host);
        if of_origin.is_none() || of_origin != host {
            return Err(ApiError::forbidden("pages of other sites may not use the server"));
        }
    }
    let Some(keys) = &shared.options.keys else { return Ok(()) };
    if method == Method::GET && OPEN.contains(&uri.path()) {
        return Ok(());
    }
    let shown = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    match shown {
        Some(key) if keys.have(key) => Ok(()),
        _ => Err(ApiError::no_key()),
    }
}

/// Whether a host, with or without a port, is this machine under its own name.
fn is_local_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// A path as a label of the metrics: only known paths, so that clients cannot create labels.
fn label(path: &str) -> &'static str {
    const PATHS: [&str; 10] = [
        "/",
        "/health",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/edits",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/adapters",
    ];
    let of_a_model = ["/v1/models", "/v1/adapters"]
        .into_iter()
        .find(|own| path.strip_prefix(own).is_some_and(|rest| rest.starts_with('/')));
    PATHS.into_iter().find(|own| *own == path).or(of_a_model).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_local() {
        for own in ["localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "[::1]"] {
            assert!(is_local_host(own), "{own}");
        }
        for other in ["", "example.org", "localhost.example.org:80", "127.0.0.1.nip.io", "::1x"] {
            assert!(!is_local_host(other), "{other}");
        }
    }

    #[test]
    fn labels_are_ours() {
        assert_eq!(label("/v1/models/emoji"), "/v1/models");
        assert_eq!(label("/v1/modelsemoji"), "other");
        assert_eq!(label("/health"), "/health");
    }
}
