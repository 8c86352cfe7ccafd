//! `reft serve` as a process with a port of its own, and a client of it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::interruption::send;
use crate::runs::{args, command};

/// Time limit for actions that take a server about a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a fault is tried: `few` in every run of the tests, `all` by `cargo xtask serve-check --faults`.
pub fn many(few: u32, all: u32) -> u32 {
    if std::env::var_os("REFT_ALL_FAULTS").is_some() { all } else { few }
}

/// The tiny model with a tokenizer of single letters, a chat template, and a context that is long enough to wait for.
pub fn talking_model(dir: &Path) -> Result<PathBuf> {
    let model = chat_model(dir, PLAIN)?;
    let config = model.join("config.json");
    let text = fs::read_to_string(&config)?;
    let long =
        text.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 16384");
    assert_ne!(text, long);
    fs::write(config, long)?;
    Ok(model)
}

/// A running server, which ends with its test.
pub struct Served {
    pub process: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    log: Arc<Mutex<String>>,
    /// Reads the server's stderr to its end.
    reader: Option<JoinHandle<()>>,
}

impl Served {
    /// Starts a server of a model, called `tiny`, and waits until it is ready.
    pub fn start(model: &Path, more: &[OsString]) -> Result<Self> {
        let mut all =
            args!["serve", "--model", model, "--name", "tiny", "--port", "0", "--threads", "1"];
        all.extend(more.iter().cloned());
        Self::run(command(all))
    }

    /// Starts a server by a command line that says `--port 0`, and waits until it is ready.
    pub fn run(mut command: Command) -> Result<Self> {
        let mut process = command.env_remove("REFT_API_KEY").stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stderr.take().ok_or("no stderr")?).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line?;
            let found = line.strip_prefix("http://").and_then(|rest| rest.split_once(" is ready"));
            if let Some((found, _)) = found {
                address = Some(found.to_owned());
                break;
            }
            log.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
        }
        let own = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(std::result::Result::ok) {
                own.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
            }
        });
        let mut served = Self { process, address: String::new(), log, reader: Some(reader) };
        served.address = address.ok_or_else(|| format!("it ended: {}", served.log()))?;
        Ok(served)
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its whole output, when it has ended.
    pub fn last_words(&mut self) -> Result<String> {
        let reader = self.reader.take().ok_or("it has been heard to its end")?;
        reader.join().map_err(|_| "its words cannot be read")?;
        Ok(self.log())
    }

    /// Waits until it has said something.
    pub fn wait_for(&self, words: &str) -> Result {
        let since = Instant::now();
        while !self.log().contains(words) {
            if since.elapsed() > PATIENCE {
                return Err(format!("{words:?} is not in\n{}", self.log()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        Answer::of(agent().get(self.url(path)).call()?)
    }

    pub fn delete(&self, path: &str) -> Result<Answer> {
        Answer::of(agent().delete(self.url(path)).call()?)
    }

    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        Answer::of(agent().post(self.url(path)).send(body.to_string())?)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The reply to a request that is answered.
    pub fn reply(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.post(path, body)?;
        if answer.status != 200 {
            return Err(format!("{} {}\n{}", answer.status, answer.text, self.log()).into());
        }
        answer.json()
    }

    /// The text of the first choice of a completion.
    pub fn text(&self, body: &Value) -> Result<String> {
        let reply = self.reply("/v1/completions", body)?;
        Ok(reply["choices"][0]["text"].as_str().ok_or_else(|| reply.to_string())?.to_owned())
    }

    /// The events of a stream, without the last one, which says that it is done.
    pub fn events(&self, path: &str, body: &Value) -> Result<Vec<Value>> {
        let mut stream = self.stream(path, body)?;
        let mut events = Vec::new();
        while let Some(event) = stream.next()? {
            events.push(event);
        }
        Ok(events)
    }

    /// Begins a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Result<EventStream> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let answer = agent().post(self.url(path)).send(body.to_string())?;
        assert_eq!(
            answer.headers().get("content-type").and_then(|t| t.to_str().ok()),
            Some("text/event-stream")
        );
        Ok(EventStream { lines: BufReader::new(Box::new(answer.into_body().into_reader())) })
    }

    /// Sends a request by hand and returns the connection, without waiting for an answer.
    pub fn raw(&self, request: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.write_all(request.as_bytes())?;
        Ok(stream)
    }

    /// The status of a request by hand.
    pub fn raw_status(&self, request: &str) -> Result<u16> {
        let mut answer = String::new();
        self.raw(request)?.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).ok_or_else(|| format!("no status: {answer}"))?;
        Ok(status.parse()?)
    }

    /// A number of `/metrics`.
    pub fn number(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?.text;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.ok_or_else(|| format!("{name} is not in\n{text}"))?.parse()?)
    }

    /// Waits until a number of `/metrics` is as expected.
    pub fn wait_for_number(&self, name: &str, expected: f64) -> Result {
        let since = Instant::now();
        loop {
            let found = self.number(name)?;
            if found == expected {
                return Ok(());
            }
            if since.elapsed() > PATIENCE {
                return Err(format!("{name} is {found}, expected {expected}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end.
    pub fn terminate(&self) -> Result {
        send("-TERM", &self.process)
    }

    /// Waits for its end; its exit code.
    pub fn code(&mut self) -> Result<Option<i32>> {
        let since = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status.code());
            }
            if since.elapsed() > PATIENCE {
                return Err(format!("it does not end:\n{}", self.log()).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // an error means that it has ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client for which no HTTP status is an error.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into()
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub text: String,
    pub request_id: Option<String>,
}

impl Answer {
    pub fn of(mut answer: ureq::http::Response<ureq::Body>) -> Result<Self> {
        let request_id = answer.headers().get("x-request-id").and_then(|id| id.to_str().ok());
        Ok(Self {
            status: answer.status().as_u16(),
            request_id: request_id.map(str::to_owned),
            text: answer.body_mut().read_to_string()?,
        })
    }

    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.text)?)
    }
}

/// A stream of events.
pub struct EventStream {
    lines: BufReader<Box<dyn Read>>,
}

impl EventStream {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// If the connection ends before the stream says that it is done.
    pub fn next(&mut self) -> Result<Option<Value>> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err("the stream ends before it is done".into());
            }
            match line.trim_end().strip_prefix("data: ") {
                Some("[DONE]") => return Ok(None),
                Some(event) => return Ok(Some(serde_json::from_str(event)?)),
                None => {}
            }
        }
    }
}
