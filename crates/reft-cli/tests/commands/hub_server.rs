//! A server with the part of the hub's API that pull and push need. It records its requests.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::Result;

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// By name in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    fn read(stream: &TcpStream) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut words = line.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        Ok(Self { method, path, headers, body })
    }

    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path == path
    }
}

/// An answer: a status and a body. `None` cuts the connection.
pub type Answer = Option<(u16, Vec<u8>)>;

/// The server.
pub struct HubServer {
    /// Its address.
    pub endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

const COMMIT: &str = "0123abcd0123abcd0123abcd0123abcd0123abcd";

impl HubServer {
    /// Answers as the hub does, but for requests that `otherwise` answers; `files` are the files of the repository `org/name`.
    pub fn start(
        files: Vec<(String, Vec<u8>)>,
        otherwise: impl Fn(&Request) -> Option<Answer> + Send + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(request) = Request::read(&stream) else { continue };
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                let answer =
                    otherwise(&request).unwrap_or_else(|| as_the_hub(&request, &files, port));
                if let Some((status, body)) = answer {
                    // an error means that the client has closed the connection
                    let _ = write_answer(stream, &request, status, &body);
                }
            }
        });
        Ok(Self { endpoint: format!("http://127.0.0.1:{port}"), requests })
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn write_answer(
    mut stream: TcpStream,
    request: &Request,
    status: u16,
    body: &[u8],
) -> std::io::Result<()> {
    let all = body.len();
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
    let (from, to) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let from = from.parse().unwrap_or(0).min(all);
    let to = to.parse().map_or(all, |to: usize| to + 1).clamp(from, all);
    let status = if range.is_some() && status == 200 { 206 } else { status };
    write!(
        stream,
        "HTTP/1.1 {status} OK\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{all}\r\netag: \"{}\"\r\n\
         x-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n",
        to - from,
        to.saturating_sub(1),
        request.path.replace('/', "-"),
    )?;
    stream.write_all(&body[from..to])
}

fn as_the_hub(request: &Request, files: &[(String, Vec<u8>)], port: u16) -> Answer {
    let ok = |body: Value| Some((200, body.to_string().into_bytes()));
    let path = request.path.as_str();
    if path == "/api/repos/create" || path.contains("/branch/") || path == "/verify" {
        return ok(json!({}));
    }
    if path.contains("/preupload/") {
        let asked = request.json().unwrap_or_default();
        let mode = |file: &Value| {
            let path = file["path"].as_str().unwrap_or_default();
            let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
            json!({"path": path, "uploadMode": mode, "shouldIgnore": path == "ignored.txt"})
        };
        let files: Vec<Value> = asked["files"].as_array().into_iter().flatten().map(mode).collect();
        return ok(json!({ "files": files }));
    }
    if path.ends_with(".git/info/lfs/objects/batch") {
        let asked = request.json().unwrap_or_default();
        // the store is another host than the hub
        let store = format!("http://localhost:{port}");
        let action = |object: &Value| {
            let upload = json!({"href": format!("{store}/store/{}", object["oid"].as_str().unwrap_or_default()), "header": {"x-key": "k"}});
            let verify = json!({"href": format!("http://127.0.0.1:{port}/verify"), "header": {}});
            json!({"oid": object["oid"], "size": object["size"], "actions": {"upload": upload, "verify": verify}})
        };
        let objects: Vec<Value> =
            asked["objects"].as_array().into_iter().flatten().map(action).collect();
        return ok(json!({ "transfer": "basic", "objects": objects }));
    }
    if path.starts_with("/store/") {
        return Some((200, Vec::new()));
    }
    if path.contains("/commit/") {
        return ok(json!({"commitUrl": "the commit's address", "commitOid": COMMIT}));
    }
    if path.starts_with("/api/models/org/name/revision/") {
        let names: Vec<Value> = files.iter().map(|(name, _)| json!({"rfilename": name})).collect();
        return ok(json!({"siblings": names, "sha": COMMIT}));
    }
    let file =
        path.strip_prefix("/org/name/resolve/").and_then(|rest| Some(rest.split_once('/')?.1));
    match files.iter().find(|(name, _)| Some(name.as_str()) == file) {
        Some((_, content)) => Some((200, content.clone())),
        None => Some((404, b"{\"error\": \"not found\"}".to_vec())),
    }
}
