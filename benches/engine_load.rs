//! The load of `load.rs` and `http_load.rs`: prompts of 64 ± 32 random tokens, replies of 64 tokens, and a separate adapter for each request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reft_methods::{MethodOptions, POSITIONS, RANK, TARGET_MODULES, resolve};
use reft_models::{
    Adapter, AdapterStack, Decoder, Engine, EngineOptions, Event, GenerationConfig, Model, Request,
    Row,
};

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PROMPT: usize = 64;
const SPREAD: usize = 32;
pub const REPLY: usize = 64;

/// Kinds of adapters, by their name in a line; `None`: the base model.
pub const KINDS: [(&str, Option<&str>); 3] = [
    ("base model", None),
    ("LoReFT, r 4, f7+l7, every layer", Some("loreft")),
    ("LoRA, r 8, query and value", Some("lora")),
];

/// Directories of `n` saved adapters of a kind. They are saved because a loaded adapter is cheaper: its orthonormal map has no parameters.
pub fn saved_adapters(
    model: &Decoder,
    method: Option<&str>,
    n: usize,
    root: &Path,
) -> Outcome<Vec<PathBuf>> {
    let Some(method) = method else { return Ok(Vec::new()) };
    let options = match method {
        "loreft" => MethodOptions::default().with(&RANK, 4).with(&POSITIONS, "f7+l7"),
        _ => MethodOptions::default().with(&RANK, 8).with(&TARGET_MODULES, ["q_proj", "v_proj"]),
    };
    let resolved = resolve(method, &options, model.description())?;
    let mut saved = Vec::new();
    for i in 0..n {
        let directory = root.join(format!("{method}-{i}"));
        std::fs::create_dir(&directory)?;
        for adapter in resolved.build(model, "load")? {
            adapter.save(&directory)?;
        }
        saved.push(directory);
    }
    Ok(saved)
}

/// The prompts, the same each time.
pub fn prompts(model: &Decoder, n: usize) -> Vec<Vec<i64>> {
    let mut rng = StdRng::seed_from_u64(7);
    let vocabulary = model.description().vocab_size;
    let prompt = |_| {
        let length = rng.random_range(PROMPT - SPREAD..=PROMPT + SPREAD);
        (0..length).map(|_| rng.random_range(0..vocabulary)).collect()
    };
    (0..n).map(prompt).collect()
}

/// When each request arrives, in seconds: an open loop, which waits for no reply. Arrivals are random (Poisson) with `rate` requests a
/// second on average; at a rate of 0 all arrive at once.
pub fn arrivals(rate: f64, n: usize) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(11);
    let mut clock = 0.0;
    let mut next = |_| {
        if rate > 0.0 {
            clock -= (1.0 - rng.random::<f64>()).ln() / rate;
        }
        clock
    };
    (0..n).map(&mut next).collect()
}

/// Times the engine with requests that come at `arrivals`: tokens a second from the first request to the last token, and the median and
/// the longest wait for a first token.
pub fn engine_load(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    prompts: &[Vec<i64>],
    arrivals: &[f64],
    in_flight: usize,
) -> Outcome<[f64; 3]> {
    let options = EngineOptions { rows: in_flight, ..EngineOptions::default() };
    let mut engine = Engine::new(model, options)?;
    let config = GenerationConfig { max_new_tokens: REPLY, ..GenerationConfig::default() };
    let (started, mut tokens, mut waits) = (Instant::now(), 0, Vec::new());
    let (mut asked, mut waiting) = (0, HashMap::new());
    while asked < prompts.len() || !engine.is_idle() {
        let now = started.elapsed().as_secs_f64();
        while asked < prompts.len() && arrivals[asked] <= now {
            let adapters = match adapters.is_empty() {
                true => AdapterStack::EMPTY,
                false => AdapterStack::one(&*adapters[asked % adapters.len()]),
            };
            let (row, config) = (Row::prompt(prompts[asked].clone()), config.clone());
            let id = engine.submit(Request { row, adapters, config, stream: asked as u64 })?;
            waiting.insert(id, arrivals[asked]);
            asked += 1;
        }
        if engine.is_idle() {
            std::thread::sleep(Duration::from_secs_f64(arrivals[asked] - now));
            continue;
        }
        for event in engine.step()? {
            match event {
                Event::Token { id, .. } => {
                    tokens += 1;
                    if let Some(since) = waiting.remove(&id) {
                        waits.push(started.elapsed().as_secs_f64() - since);
                    }
                }
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    waits.sort_by(f64::total_cmp);
    Ok([f64::from(tokens) / seconds, waits[waits.len() / 2], waits[waits.len() - 1]])
}
