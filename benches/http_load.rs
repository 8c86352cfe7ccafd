//! The load of `load.rs` through HTTP on loopback, beside the engine's own, in turns and in one process.
//!
//!     cargo bench --workspace --profile dev --bench http_load -- MODEL [f32|bf16] [REQUESTS] [ADAPTERS] [TURNS]
//!
//! There are two lines for each kind of adapters and 1, 16 and 64 requests in flight. Throughput: tokens a second of the engine and of the
//! server, the medians of alternating turns (2), with the same requests at the same random times, 16 a second on average. Latency: there is one
//! client for each request in flight, which asks again when its reply is done. The line has the time to the first token and the time between
//! two parts of a stream: p50, p95 and p99 of all turns.

mod engine_load;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reft_methods::load_adapters;
use reft_models::{ChatVars, Decoder, EngineOptions, Tokenizer};
use reft_serve::{ServeOptions, ServedText, Server};
use tch::{Device, Kind};

use engine_load::{KINDS, Outcome, REPLY, arrivals, engine_load, prompts, saved_adapters};

const IN_FLIGHT: [usize; 3] = [1, 16, 64];
const BASE: &str = "base";
/// Requests a second.
const RATE: f64 = 16.0;

/// When the parts of a stream came, in seconds after it was asked for.
type Arrivals = Vec<f64>;

/// Asks for one reply.
fn ask(agent: &ureq::Agent, url: &str, name: &str, prompt: &[i64]) -> Result<Arrivals, String> {
    let body = format!(
        "{{\"model\": \"{name}\", \"prompt\": {prompt:?}, \"max_tokens\": {REPLY}, \"temperature\": 0, \"ignore_eos\": true, \"stream\": true}}"
    );
    let asked = Instant::now();
    let answer = agent.post(url).send(body).map_err(|error| error.to_string())?;
    let mut arrivals = Vec::new();
    for line in BufReader::new(answer.into_body().into_reader()).lines() {
        match line.map_err(|error| error.to_string())?.strip_prefix("data: ") {
            Some("[DONE]") => return Ok(arrivals),
            Some(part) if part.contains("\"error\"") => return Err(part.to_owned()),
            Some(_) => arrivals.push(asked.elapsed().as_secs_f64()),
            None => {}
        }
    }
    Err("a stream ended before it was done".to_owned())
}

/// Sends requests to a server with `rows` rows from several clients at once, each request when it is due. Returns tokens a second, and when
/// the parts of all streams came.
fn http_load(
    model: &Decoder,
    path: &Path,
    adapters: &[PathBuf],
    (prompts, due): (&[Vec<i64>], &[f64]),
    rows: usize,
    clients: usize,
) -> Outcome<(f64, Vec<Arrivals>)> {
    let names: Vec<String> = (0..adapters.len()).map(|i| format!("adapter-{i}")).collect();
    let options = ServeOptions {
        port: 0,
        adapters: names.iter().cloned().zip(adapters.iter().cloned()).collect(),
        engine: EngineOptions { rows, ..EngineOptions::default() },
        ..ServeOptions::new(BASE)
    };
    let server = Server::bind(options)?;
    let (url, stopper) = (format!("http://{}/v1/completions", server.address()), server.stopper());
    let text = ServedText {
        tokenizer: Tokenizer::open(path)?,
        chat_template: None,
        chat_vars: ChatVars::default(),
    };
    let (is_ready, ready) = std::sync::mpsc::channel();
    let next = AtomicUsize::new(0);
    let client = |began: Instant| -> Result<Vec<Arrivals>, String> {
        let agent = ureq::Agent::new_with_defaults();
        let mut all = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(prompt) = prompts.get(i) else { return Ok(all) };
            std::thread::sleep(Duration::from_secs_f64(due[i]).saturating_sub(began.elapsed()));
            let name = names.get(i % names.len().max(1)).map_or(BASE, String::as_str);
            all.push(ask(&agent, &url, name, prompt)?);
        }
    };
    std::thread::scope(|scope| {
        let client = &client;
        let load = scope.spawn(move || -> Result<(f64, Vec<Arrivals>), String> {
            ready.recv().map_err(|_| "the server did not begin".to_owned())?;
            let started = Instant::now();
            let asked: Result<Vec<Vec<Arrivals>>, String> = std::thread::scope(|scope| {
                let clients: Vec<_> =
                    (0..clients).map(|_| scope.spawn(|| client(started))).collect();
                let joined = clients.into_iter().map(|client| client.join());
                joined.map(|all| all.map_err(|_| "a client panicked".to_owned())?).collect()
            });
            let seconds = started.elapsed().as_secs_f64();
            stopper.stop();
            Ok(((prompts.len() * REPLY) as f64 / seconds, asked?.concat()))
        });
        // the receiver is gone if the load has ended
        let is_ready = move || is_ready.send(()).unwrap_or_default();
        server.serve(model, text, is_ready)?;
        Ok(load.join().map_err(|_| "the load panicked")??)
    })
}

/// The value below which a share `part` of all values lies.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    sorted.get((part * (sorted.len() as f64 - 1.0)).round() as usize).copied()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    quantile(&all, 0.5).unwrap_or(f64::NAN)
}

/// The p50, p95 and p99 of times, in milliseconds.
fn percentiles(mut seconds: Vec<f64>) -> String {
    seconds.sort_by(f64::total_cmp);
    let shown = [0.5, 0.95, 0.99].map(|part| {
        quantile(&seconds, part).map_or("–".to_owned(), |s| format!("{:.1}", 1e3 * s))
    });
    shown.join(" / ")
}

fn main() -> Outcome {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = given.first().map(Path::new) else {
        return Err("name a model: … --bench http_load -- $PWD/models/SmolLM2-135M-Instruct".into());
    };
    let number = |at: usize, usual: usize| given.get(at).map_or(Ok(usual), |text| text.parse());
    let kind = match given.get(1).map(String::as_str) {
        Some("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    };
    let (requests, distinct, turns) = (number(2, 64)?, number(3, 256)?, number(4, 2)?);
    let model = Decoder::open(path, kind, Device::Cpu)?;
    let prompts = prompts(&model, requests);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{requests} requests, {turns} turns, {kind:?}, {} threads; times in ms, p50 / p95 / p99",
        tch::get_num_threads()
    )?;
    for (name, method) in KINDS {
        let directory = tempfile::tempdir()?;
        let saved = saved_adapters(&model, method, distinct.min(requests), directory.path())?;
        let mut adapters = Vec::new();
        for directory in &saved {
            adapters.extend(load_adapters(directory, &model)?);
        }
        for in_flight in IN_FLIGHT {
            // with few requests in flight fewer requests are enough
            let prompts = &prompts[..requests.min(8 * in_flight)];
            let (at_random, at_once) = (arrivals(RATE, prompts.len()), vec![0.0; prompts.len()]);
            let (mut of_engine, mut of_server, mut streams) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..turns {
                let [engine, ..] = engine_load(&model, &adapters, prompts, &at_random, in_flight)?;
                let asked = (prompts, at_random.as_slice());
                let (server, _) = http_load(&model, path, &saved, asked, in_flight, prompts.len())?;
                of_engine.push(engine);
                of_server.push(server);
                let asked = (prompts, at_once.as_slice());
                streams.extend(http_load(&model, path, &saved, asked, in_flight, in_flight)?.1);
            }
            let (engine, server) = (median(of_engine), median(of_server));
            let first = streams.iter().filter_map(|all| all.first().copied()).collect();
            let gaps = streams.iter().flat_map(|all| all.windows(2).map(|two| two[1] - two[0]));
            writeln!(
                out,
                "{name}, {in_flight} in flight: {server:.1} tokens/s, the engine {engine:.1} ({:.0} %)\n{in_flight} clients: first token {}, between parts {}",
                100.0 * server / engine,
                percentiles(first),
                percentiles(gaps.collect()),
            )?;
        }
    }
    Ok(())
}
