//! Load on the engine: requests at random times that do not depend on replies (an open loop). Prompts have 64 ± 32 random tokens and replies
//! 64; each request has its own adapter.
//!
//!     cargo bench --workspace --profile dev --bench load -- MODEL [f32|bf16] [REQUESTS] [IN_FLIGHT] [ADAPTERS] [cpu|cuda] [A_SECOND]
//!
//! A_SECOND is the number of requests in a second. The default is 16, more than two cores can answer, so that the engine is soon full; 0: all at
//! once. On a GPU LD_PRELOAD names its libtorch_cuda.so. The output has a line for each kind of adapters, in turns: tokens a second of all
//! replies together, and how long requests waited for their first token.

mod engine_load;

use std::io::Write;
use std::path::Path;

use reft_methods::load_adapters;
use reft_models::Decoder;
use tch::{Device, Kind};

use engine_load::{KINDS, Outcome, arrivals, engine_load, prompts, saved_adapters};

const TURNS: usize = 2;

fn main() -> Outcome {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = given.first() else {
        return Err("name a model: … --bench load -- $PWD/models/SmolLM2-135M-Instruct".into());
    };
    let number = |at: usize, usual: usize| given.get(at).map_or(Ok(usual), |text| text.parse());
    let kind = match given.get(1).map(String::as_str) {
        Some("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    };
    let (requests, in_flight, distinct) = (number(2, 256)?, number(3, 64)?, number(4, 256)?);
    let rate = number(6, 16)? as f64;
    let device = match given.get(5).map(String::as_str) {
        Some("cuda") => Device::Cuda(0),
        _ => Device::Cpu,
    };
    let model = Decoder::open(Path::new(path), kind, device)?;
    let (prompts, arrivals) = (prompts(&model, requests), arrivals(rate, requests));
    let mut kinds = Vec::new();
    for (name, method) in KINDS {
        let directory = tempfile::tempdir()?;
        let saved = saved_adapters(&model, method, distinct.min(requests), directory.path())?;
        let mut adapters = Vec::new();
        for directory in saved {
            adapters.extend(load_adapters(&directory, &model)?);
        }
        kinds.push((name, adapters));
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{requests} requests, {rate} a second, {in_flight} in flight, {kind:?}, {device:?}, {} threads",
        tch::get_num_threads()
    )?;
    for _ in 0..TURNS {
        for (name, adapters) in &kinds {
            let [rate, median, longest] =
                engine_load(&model, adapters, &prompts, &arrivals, in_flight)?;
            writeln!(
                out,
                "{name}: {rate:.1} tokens/s; first token after {median:.1} s (median), {longest:.1} s (longest)"
            )?;
        }
    }
    Ok(())
}
