use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use crate::{Error, Result, io_error};

/// An HTTP client of the hub for one repository.
pub(crate) struct Client<'a> {
    agent: Agent,
    endpoint: &'a str,
    token: &'a str,
    /// `organisation/name`
    name: &'a str,
}

/// The body of a request.
pub(crate) enum Content<'a> {
    /// A text with its content type.
    Text(&'static str, String),
    /// A file as it is.
    File(&'a Path),
}

pub(crate) const JSON: &str = "application/json";

/// How long the hub may take to be reached, and to answer.
const CONNECT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(300);

impl<'a> Client<'a> {
    pub(crate) fn new(endpoint: &'a str, token: &'a str, name: &'a str) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .build();
        Self { agent: config.new_agent(), endpoint: endpoint.trim_end_matches('/'), token, name }
    }

    /// Posts to a path of the hub, with the token. Returns the answer, or `None` if its status is one of `fine`.
    pub(crate) fn post(
        &self,
        doing: &str,
        path: &str,
        (content_type, text): (&'static str, String),
        fine: &[u16],
    ) -> Result<Option<Value>> {
        let url = format!("{}/{path}", self.endpoint);
        self.answer(
            doing,
            self.with_token(self.agent.post(url)),
            Content::Text(content_type, text),
            fine,
        )
    }

    /// [`Self::post`] to an address that the hub returned: with the token if it is on the hub, else with the headers that the hub returned with it.
    pub(crate) fn send_to(
        &self,
        doing: &str,
        action: &Value,
        content: Content,
    ) -> Result<Option<Value>> {
        let Some(href) = action["href"].as_str() else {
            return Err(self.refuse(doing, "the hub names no address to send to"));
        };
        let mut request = match &content {
            Content::File(_) => self.agent.put(href),
            Content::Text(..) => self.agent.post(href),
        };
        if href.starts_with(&format!("{}/", self.endpoint)) {
            request = self.with_token(request);
        }
        for (name, value) in action["header"].as_object().into_iter().flatten() {
            if let Some(value) =
                value.as_str().filter(|_| !name.eq_ignore_ascii_case("authorization"))
            {
                request = request.header(name, value);
            }
        }
        self.answer(doing, request, content, &[])
    }

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        request.header("authorization", format!("Bearer {}", self.token))
    }

    fn answer(
        &self,
        doing: &str,
        request: RequestBuilder<ureq::typestate::WithBody>,
        content: Content,
        fine: &[u16],
    ) -> Result<Option<Value>> {
        let sent = match content {
            Content::Text(content_type, text) => {
                let request = request.header("accept", accepted(content_type));
                request.content_type(content_type).send(text)
            }
            Content::File(path) => {
                let file = File::open(path).map_err(io_error("read", path))?;
                request.content_type("application/octet-stream").send(file)
            }
        };
        let mut response: Response<Body> = sent.map_err(|error| self.broken(doing, &error))?;
        let status = response.status().as_u16();
        let text =
            response.body_mut().read_to_string().map_err(|error| self.broken(doing, &error))?;
        match status {
            200..=299 => Ok(Some(serde_json::from_str(&text).unwrap_or(Value::Null))),
            _ if fine.contains(&status) => Ok(None),
            _ => Err(self.refused(doing, status, &text)),
        }
    }

    /// The error for a request that the hub refuses, in one line.
    fn refused(&self, doing: &str, status: u16, body: &str) -> Error {
        let Self { name, endpoint, .. } = self;
        let reason = match status {
            401 => "the token is not accepted (401); log in again, or give a token that may write in HF_TOKEN".to_owned(),
            403 => format!("the token may not write to {name} (403); give it the right to write, or choose another name"),
            404 => format!("there is no such thing at {endpoint} (404); check the name and the branch"),
            409 => "the branch was changed meanwhile (409); run the same command again".to_owned(),
            413 => "it is too large for the hub (413); leave large files out".to_owned(),
            status => {
                let said = serde_json::from_str::<Value>(body).ok();
                let said = said.and_then(|said| Some(said["error"].as_str()?.to_owned()));
                let said = said.unwrap_or_else(|| body.to_owned()).replace(self.token, "…");
                let line: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
                format!("the hub answers {status}: {line}")
            }
        };
        self.refuse(doing, &reason)
    }

    /// The error for a connection that fails or ends too early.
    fn broken(&self, doing: &str, error: &ureq::Error) -> Error {
        use ErrorKind::{ConnectionRefused, NotFound};
        let endpoint = self.endpoint;
        let reason = match error {
            ureq::Error::HostNotFound => format!("the host of {endpoint} is not found"),
            ureq::Error::ConnectionFailed => format!("nobody answers at {endpoint}"),
            ureq::Error::Io(error) if [ConnectionRefused, NotFound].contains(&error.kind()) => {
                format!("nobody answers at {endpoint}")
            }
            ureq::Error::Io(_) | ureq::Error::BodyStalled | ureq::Error::Protocol(_) => {
                "the connection was cut; run the same command again".to_owned()
            }
            ureq::Error::Timeout(_) => {
                "the hub takes too long; run the same command again".to_owned()
            }
            other => other.to_string().replace(self.token, "…"),
        };
        self.refuse(doing, &reason)
    }

    /// An error of this repository.
    pub(crate) fn refuse(&self, doing: &str, reason: &str) -> Error {
        Error::Hub { name: self.name.to_owned(), reason: format!("{doing}: {reason}") }
    }
}

/// The content type to accept in the answer to a content type.
fn accepted(content_type: &'static str) -> &'static str {
    if content_type.contains("json") && !content_type.contains("ndjson") {
        content_type
    } else {
        JSON
    }
}
