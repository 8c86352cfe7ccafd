//! A long system prompt and many adapters that edit last tokens: how long each request waits for its first token, with and without a cache
//! of shared prompt prefixes.
//!
//!     cargo bench --workspace --profile dev --bench shared_prompt -- MODEL [ADAPTERS] [TOKENS]

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reft_methods::{MethodOptions, RANK, resolve};
use reft_models::{
    Adapter, AdapterStack, Decoder, Engine, EngineOptions, GenerationConfig, Model, Request, Row,
};
use tch::{Device, Kind};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Tokens of each prompt after the shared ones.
const OWN: usize = 20;

/// Seconds that each adapter's request waits for its first token, one after the other.
fn waits(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    prompts: &[Vec<i64>],
    prefix_tokens: usize,
) -> Outcome<Vec<f64>> {
    let mut engine =
        Engine::new(model, EngineOptions { prefix_tokens, ..EngineOptions::default() })?;
    let mut waits = Vec::new();
    for (adapter, prompt) in adapters.iter().zip(prompts) {
        let started = Instant::now();
        engine.submit(Request {
            row: Row::prompt(prompt.clone()),
            adapters: AdapterStack::one(&**adapter),
            config: GenerationConfig { max_new_tokens: 1, ..GenerationConfig::default() },
            stream: 0,
        })?;
        while !engine.is_idle() {
            engine.step()?;
        }
        waits.push(started.elapsed().as_secs_f64());
    }
    Ok(waits)
}

fn main() -> Outcome {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = given.first() else {
        return Err(
            "name a model: … --bench shared_prompt -- $PWD/models/SmolLM2-135M-Instruct".into()
        );
    };
    let number = |at: usize, usual: usize| given.get(at).map_or(Ok(usual), |text| text.parse());
    let (n, tokens) = (number(1, 50)?, number(2, 1000)?);
    let model = Decoder::open(Path::new(path), Kind::Float, Device::Cpu)?;
    let methods = resolve("loreft", &MethodOptions::default().with(&RANK, 8), model.description())?;
    let mut adapters = Vec::new();
    for _ in 0..n {
        adapters.extend(methods.build(&model, "shared")?);
    }
    let mut rng = StdRng::seed_from_u64(7);
    let mut random = |length: usize| -> Vec<i64> {
        (0..length).map(|_| rng.random_range(0..model.description().vocab_size)).collect()
    };
    let system = random(tokens);
    let prompts: Vec<Vec<i64>> = (0..n).map(|_| [system.clone(), random(OWN)].concat()).collect();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{n} adapters (l1), {tokens} tokens in common and {OWN} of their own, {} threads",
        tch::get_num_threads()
    )?;
    for kept in [2 * tokens, 0] {
        let waits = waits(&model, &adapters, &prompts, kept)?;
        let mut later = waits[1..].to_vec();
        later.sort_by(f64::total_cmp);
        writeln!(
            out,
            "at most {kept} tokens kept: first token of the first after {:.3} s, of the second {:.3} s, of the others {:.3} s (median), {:.3} s (longest)",
            waits[0],
            waits[1],
            later[later.len() / 2],
            later[later.len() - 1]
        )?;
    }
    Ok(())
}
