//! Load on the engine: requests that are all there, prompts of 64 ± 32 random tokens, replies of 64, each request with an adapter of its own.
//!
//!     cargo bench -p reft-bench --profile dev --bench load -- MODEL [f32|bf16] [REQUESTS] [IN_FLIGHT] [ADAPTERS] [cpu|cuda]
//!
//! On a GPU LD_PRELOAD names its libtorch_cuda.so. A line for each kind of adapters, in turns: tokens a second of all replies together, and how long requests waited for their first token.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reft_methods::{MethodOptions, POSITIONS, RANK, TARGET_MODULES, load_adapters, resolve};
use reft_models::{
    Adapter, AdapterStack, Decoder, Engine, EngineOptions, Event, GenerationConfig, Model, Request,
    Row,
};
use tch::{Device, Kind};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const PROMPT: usize = 64;
const SPREAD: usize = 32;
const REPLY: usize = 64;
const TURNS: usize = 2;

/// Kinds of adapters, by what stands in a line; `None`: the base model.
const KINDS: [(&str, Option<&str>); 3] = [
    ("base model", None),
    ("LoReFT, r 4, f7+l7, every layer", Some("loreft")),
    ("LoRA, r 8, query and value", Some("lora")),
];

/// As many adapters as read from files, where an orthonormal map has no parameters any more.
fn adapters(model: &Decoder, method: &str, n: usize) -> Outcome<Vec<Box<dyn Adapter>>> {
    let options = match method {
        "loreft" => MethodOptions::default().with(&RANK, 4).with(&POSITIONS, "f7+l7"),
        _ => MethodOptions::default().with(&RANK, 8).with(&TARGET_MODULES, ["q_proj", "v_proj"]),
    };
    let directory = tempfile::tempdir()?;
    let resolved = resolve(method, &options, model.description())?;
    let mut adapters = Vec::new();
    for _ in 0..n {
        for adapter in resolved.build(model, "load")? {
            adapter.save(directory.path())?;
        }
        adapters.extend(load_adapters(directory.path(), model)?);
    }
    Ok(adapters)
}

/// Tokens a second, and the median and the longest wait for a first token.
fn serve(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    prompts: &[Vec<i64>],
    in_flight: usize,
) -> Outcome<[f64; 3]> {
    let options = EngineOptions { rows: in_flight, ..EngineOptions::default() };
    let mut engine = Engine::new(model, options)?;
    let config = GenerationConfig { max_new_tokens: REPLY, ..GenerationConfig::default() };
    for (i, prompt) in prompts.iter().enumerate() {
        let adapters = match adapters.is_empty() {
            true => AdapterStack::EMPTY,
            false => AdapterStack::one(&*adapters[i % adapters.len()]),
        };
        let (row, config) = (Row::prompt(prompt.clone()), config.clone());
        engine.submit(Request { row, adapters, config, stream: i as u64 })?;
    }
    let (started, mut tokens, mut first) = (Instant::now(), 0, HashMap::new());
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { id, .. } => {
                    tokens += 1;
                    first.entry(id).or_insert_with(|| started.elapsed().as_secs_f64());
                }
                Event::Failed { error, .. } => return Err(error.into()),
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let mut waits: Vec<f64> = first.into_values().collect();
    waits.sort_by(f64::total_cmp);
    Ok([f64::from(tokens) / seconds, waits[waits.len() / 2], waits[waits.len() - 1]])
}

fn main() -> Outcome {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = given.first() else {
        return Err("name a model: … --bench load -- models/SmolLM2-135M-Instruct".into());
    };
    let number = |at: usize, usual: usize| given.get(at).map_or(Ok(usual), |text| text.parse());
    let kind = match given.get(1).map(String::as_str) {
        Some("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    };
    let (requests, in_flight, distinct) = (number(2, 128)?, number(3, 64)?, number(4, 256)?);
    let device = match given.get(5).map(String::as_str) {
        Some("cuda") => Device::Cuda(0),
        _ => Device::Cpu,
    };
    let model = Decoder::open(Path::new(path), kind, device)?;
    let mut rng = StdRng::seed_from_u64(7);
    let vocabulary = model.description().vocab_size;
    let prompts: Vec<Vec<i64>> = (0..requests)
        .map(|_| {
            let length = rng.random_range(PROMPT - SPREAD..=PROMPT + SPREAD);
            (0..length).map(|_| rng.random_range(0..vocabulary)).collect()
        })
        .collect();
    let mut kinds = Vec::new();
    for (name, method) in KINDS {
        let adapters = match method {
            Some(method) => adapters(&model, method, distinct.min(requests))?,
            None => Vec::new(),
        };
        kinds.push((name, adapters));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{requests} requests, {in_flight} in flight, {kind:?}, {device:?}, {} threads",
        tch::get_num_threads()
    )?;
    for _ in 0..TURNS {
        for (name, adapters) in &kinds {
            let [rate, median, longest] = serve(&model, adapters, &prompts, in_flight)?;
            writeln!(
                out,
                "{name}: {rate:.1} tokens/s; first token after {median:.1} s (median), {longest:.1} s (longest)"
            )?;
        }
    }
    Ok(())
}
