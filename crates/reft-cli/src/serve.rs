//! `reft serve`: a model and its adapters behind an address.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use reft_models::{ChatOptions, EngineOptions, release_threads};
use reft_serve::{ApiKeys, LogEntry, ServeOptions, ServedText, Server};

use crate::machine::MachineOptions;
#[cfg(target_os = "linux")]
use crate::machine::allocator;
use crate::model::{ModelText, adapter_directory, model_name, open_config, open_decoder};
use crate::options::Flags;
use crate::terminal::{end_at_once, note, on_signal};

/// Serve a model and its adapters over HTTP, with OpenAI's API
///
/// The model of a request is the base model or an adapter. Replies with different adapters are generated in one batch. Chat, completions and
/// the list of models are under /v1. Metrics for Prometheus are under /metrics, and a page to try the server is at /. See docs/serving.md.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Server",
    after_long_help = "Examples:
  reft serve --model models/SmolLM2-135M-Instruct --adapter emoji=runs/emoji
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"emoji\", \"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}]}'"
)]
pub struct ServeArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    model: String,
    /// The model's name in requests [default: its directory's or its hub name]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    name: Option<String>,
    /// Adapter, with its name in requests: a directory or a hub name; give it several times for several
    #[arg(long, value_name = "NAME=DIR", help_heading = "Model")]
    adapter: Vec<String>,
    /// Directory of adapter directories; each adapter has its directory's name and is read at its first request
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    adapters_dir: Option<PathBuf>,
    /// Memory for adapters; beyond it, the least recently used adapters are dropped
    #[arg(long, value_name = "SIZE", default_value = "1GiB", help_heading = "Model")]
    adapters_memory: ByteSize,
    /// Let clients load adapters of --adapters-dir, and unload any
    #[arg(long)]
    allow_load: bool,
    /// Address to listen on; any address but a loopback address needs a key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 = any free port
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// File of accepted API keys, one per line [default: REFT_API_KEY, if it is set]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Form of the log on stderr: lines or json
    #[arg(long, value_name = "FORM", default_value = "lines")]
    log_format: LogFormat,
    /// Seconds that replies in flight have to finish when the server is asked to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
    /// Replies generated at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one, help_heading = "Limits")]
    rows: usize,
    /// Replies that may wait while --rows are generated; one more is refused with status 429
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Limits")]
    queue: usize,
    /// Most tokens of keys and values in memory, all rows together [default: no limit]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    cached_tokens: Option<usize>,
    /// Tokens whose keys and values are kept for later prompts that begin with them; 0 = none
    ///
    /// It is one limit for all adapters together.
    #[arg(long, value_name = "N", default_value_t = 8192, help_heading = "Limits")]
    prefix_tokens: usize,
    /// Compute each reply alone, so that it is the same to the last bit whatever else is requested
    ///
    /// Many replies then take as long as one after the other.
    #[arg(long, help_heading = "Limits")]
    deterministic: bool,
    /// Prompt tokens in one pass; longer prompts are computed in pieces, and replies go on between them
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = at_least_one, help_heading = "Limits")]
    prefill_tokens: usize,
    /// Most tokens of a prompt [default: as many as the model's context holds]
    #[arg(long, value_name = "N", value_parser = at_least_one, help_heading = "Limits")]
    prompt_tokens: Option<usize>,
    /// Most tokens of a chat reply whose request sets no limit
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one, help_heading = "Limits")]
    reply_tokens: usize,
    /// Most bytes of a request's body
    #[arg(long, value_name = "SIZE", default_value = "4MiB", help_heading = "Limits")]
    body: ByteSize,
    /// Most seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Limits")]
    time_limit: u64,
    /// Most seconds that a connection may take to send a request's header
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    idle_limit: u64,
    #[command(flatten)]
    chat: Flags<ChatOptions>,
    #[command(flatten)]
    machine: Flags<MachineOptions>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Lines,
    Json,
}

/// Stack size of the worker thread in bytes: the same as the system's default for a main thread.
const STACK: usize = 8 << 20;

/// The environment variable with the key, if there is no file of keys.
const KEY_VARIABLE: &str = "REFT_API_KEY";

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number from 1".to_owned())
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<()> {
    let (path, config) = open_config(&args.model)?;
    config.check_predicts("reft serve")?;
    let text = ModelText::open(&path, &args.chat.0)?;
    let Some(mut tokenizer) = text.tokenizer else {
        bail!("model {} has no tokenizer for text; a server needs one", path.display());
    };
    tokenizer.keep_no_words(); // each of the server's many threads would keep its own words
    let options = options(args, &path)?;
    let room = options.engine.rows + options.queue;
    let server = Server::bind(options)?;
    let stopper = server.stopper();
    let mut is_asked = false;
    on_signal(move || {
        if std::mem::replace(&mut is_asked, true) {
            end_at_once();
        }
        note("no new requests are taken; requests in flight finish; a second signal ends them");
        stopper.stop();
    })?;
    note(format!("http://{} (loading {})", server.address(), args.model));
    args.machine.0.set_up()?;
    #[cfg(target_os = "linux")]
    let _ = allocator::keep_no_buffers(); // without MKL there are no such buffers
    let (_, model) = open_decoder(&args.model, &args.machine.0)?;
    let chat_vars = args.chat.0.chat_vars.clone();
    let text = ServedText { tokenizer, chat_template: text.chat_template, chat_vars };
    let ready = format!("http://{} is ready; room for {room} replies", server.address());
    let is_ready = || {
        #[cfg(target_os = "linux")]
        allocator::use_small_pages();
        note(ready);
    };
    release_threads(); // the worker shares its work with threads of its own
    // The worker has its own thread, and so its own heap. The main thread's heap has gaps between weights and tables: requests' temporary
    // memory would fill these gaps, and could not be returned to the system.
    let worker = std::thread::Builder::new().name("reft-worker".to_owned()).stack_size(STACK);
    std::thread::scope(|scope| {
        let worker = worker.spawn_scoped(scope, move || server.serve(&model, text, is_ready))?;
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Error::from)
    })
}

fn options(args: &ServeArgs, path: &std::path::Path) -> Result<ServeOptions> {
    let adapter = |given: &String| -> Result<(String, PathBuf)> {
        let Some((name, directory)) = given.split_once('=').filter(|(name, _)| !name.is_empty())
        else {
            bail!("--adapter is {given:?}, expected NAME=DIR, such as emoji=runs/emoji");
        };
        let directory = adapter_directory(directory.as_ref())
            .with_context(|| format!("cannot serve adapter {name}"))?;
        Ok((name.to_owned(), directory))
    };
    let keys = match (&args.api_key_file, std::env::var(KEY_VARIABLE)) {
        (Some(file), _) => Some(
            ApiKeys::read(file)
                .with_context(|| format!("cannot use --api-key-file {}", file.display()))?,
        ),
        (None, Ok(key)) => {
            Some(ApiKeys::new(&key).with_context(|| format!("cannot use {KEY_VARIABLE}"))?)
        }
        (None, Err(_)) => None,
    };
    let log = match args.log_format {
        LogFormat::Lines => |entry: &LogEntry| note(entry.to_string()),
        LogFormat::Json => |entry: &LogEntry| match serde_json::to_string(entry) {
            Ok(line) => note(line),
            Err(error) => note(format!("a line of the log has no JSON: {error}")),
        },
    };
    let engine = EngineOptions {
        rows: args.rows,
        prefill_tokens: args.prefill_tokens,
        cached_tokens: args.cached_tokens,
        prefix_tokens: args.prefix_tokens,
        deterministic: args.deterministic,
    };
    let name = args.name.clone().unwrap_or_else(|| model_name(&args.model, path));
    Ok(ServeOptions {
        host: args.host,
        port: args.port,
        keys,
        adapters: args.adapter.iter().map(adapter).collect::<Result<_>>()?,
        adapters_dir: args.adapters_dir.clone(),
        adapter_bytes: size(args.adapters_memory),
        allows_loading: args.allow_load,
        engine,
        queue: args.queue,
        body_bytes: size(args.body),
        prompt_tokens: args.prompt_tokens,
        reply_tokens: args.reply_tokens,
        time: Duration::from_secs(args.time_limit),
        idle: Duration::from_secs(args.idle_limit),
        grace: Duration::from_secs(args.grace),
        #[cfg(target_os = "linux")]
        at_rest: allocator::give_memory_back,
        #[cfg(target_os = "linux")]
        before_waiting: allocator::hand_over_memory,
        log: Arc::new(log),
        ..ServeOptions::new(name)
    })
}

/// A size in bytes as `usize`, at most `usize::MAX`.
fn size(bytes: ByteSize) -> usize {
    usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX)
}
