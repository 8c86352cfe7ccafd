use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::worker::generation::Generation;

/// Why a request is refused, in OpenAI's form.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The kind of error.
    kind: &'static str,
    /// The field that is wrong.
    param: Option<String>,
    code: Option<&'static str>,
}

/// Seconds after which a client may ask a full server again.
const RETRY_AFTER: &str = "1";

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), kind, param: None, code: None }
    }

    /// An invalid request.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// An unknown name.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    /// An unknown model or adapter.
    pub(crate) fn no_model(name: &str) -> Self {
        let message = format!(
            "there is no model or adapter called {name:?}; /v1/models lists those that there are"
        );
        Self { code: Some("model_not_found"), ..Self::not_found(message).of_field("model") }
    }

    /// A name that is taken.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
    }

    /// A missing or wrong API key.
    pub(crate) fn no_key() -> Self {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        let error = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        Self { code: Some("invalid_api_key"), ..error }
    }

    /// A request that no client may make.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    /// A method that a path does not have.
    pub(crate) fn wrong_method() -> Self {
        let message = "this path takes another method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// A body that is longer than the limit.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is longer than {limit} bytes, the limit of this server");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// More requests than the queue holds.
    pub(crate) fn full(limit: usize) -> Self {
        let message =
            format!("{limit} replies are being generated or wait, and there is room for no more");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        Self { code: Some("queue_full"), ..error }
    }

    /// A server that is loading or shutting down.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", message);
        Self { code: Some(code), ..error }
    }

    /// A server that is about to end.
    pub(crate) fn shutting_down() -> Self {
        Self::unavailable("shutting_down", "the server is about to end")
    }

    /// A prompt that is longer than the server's limit.
    pub(crate) fn long_prompt(found: usize, most: usize) -> Self {
        let message = format!("a prompt has {found} tokens, and this server takes {most}");
        Self { code: Some("context_length_exceeded"), ..Self::invalid(message) }
    }

    /// A word for it, for the log.
    pub(crate) fn word(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }

    /// A reply that has run out of time.
    pub(crate) fn out_of_time(seconds: u64) -> Self {
        let message = format!(
            "the reply took longer than {seconds} seconds, the limit of this server; ask for fewer tokens"
        );
        Self::unavailable("timeout", message)
    }

    /// A computation that failed. Only the log has the message, since it may name files of the machine.
    pub(crate) fn failed() -> Self {
        let message = "the reply could not be generated; the server's log says why";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// A request that the model or its adapters cannot answer.
    pub(crate) fn refused(refused: &reft_models::Error) -> Self {
        let error = Self::invalid(refused.to_string());
        match refused {
            reft_models::Error::ContextFull { .. } => {
                Self { code: Some("context_length_exceeded"), ..error }
            }
            reft_models::Error::Core(reft_core::Error::OptionValue { option, .. }) => {
                error.of_field(*option)
            }
            reft_models::Error::NoSubspace { .. } | reft_models::Error::Core(_) => {
                error.of_field("reft.adapters")
            }
            _ => error,
        }
    }

    /// An adapter that cannot be read. Paths of the machine are left out.
    pub(crate) fn adapter(generation: &Generation, refused: &reft_methods::Error) -> Self {
        let name = &generation.name;
        let reason = chain(refused);
        log::error!("adapter {name} cannot be used: {reason}");
        let directory = generation.directory.to_string_lossy();
        let reason = reason.replace(&*directory, name);
        Self::invalid(format!("adapter {name} cannot be used: {reason}")).of_field("model")
    }

    /// The same error about a field.
    pub(crate) fn of_field(self, field: impl Into<String>) -> Self {
        Self { param: Some(field.into()), ..self }
    }

    /// The form that clients know.
    pub(crate) fn json(&self) -> Value {
        let Self { message, kind, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.json().to_string();
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = header::HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
