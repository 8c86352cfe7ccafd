//! Generation by a model that is known by its shape alone, with random weights: seconds of a prompt and of each further token, one row.
//!
//!     cargo bench --workspace --profile dev --bench large_model -- CONFIG [f32|bf16] [dense|int8|int4] [PROMPT] [TOKENS] [TURNS]
//!
//! CONFIG is a file such as `$PWD/recipes/sizes/llama-3-8b.json`. Drawing 8 billion numbers takes some minutes; one turn more than TURNS (3)
//! is run, and the first does not count.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use reft_models::{
    AdapterStack, Decoder, DecoderConfig, GenerationConfig, Model, Row, WeightStorage, Weights,
    generate,
};
use tch::{Device, Kind};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let given: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(path) = given.first().map(Path::new) else {
        return Err(
            "name a shape: … --bench large_model -- $PWD/recipes/sizes/llama-3-8b.json".into()
        );
    };
    let kind = match given.get(1).map(String::as_str) {
        Some("f32") => Kind::Float,
        _ => Kind::BFloat16,
    };
    let storage: WeightStorage =
        given.get(2).map_or(Ok(WeightStorage::Dense), |name| name.parse())?;
    let number = |at: usize, usual: usize| given.get(at).map_or(Ok(usual), |text| text.parse());
    let (prompt, tokens, turns) = (number(3, 32)?, number(4, 8)?, number(5, 3)?);
    let config =
        DecoderConfig::from_json(serde_json::from_str(&std::fs::read_to_string(path)?)?, path)?;
    let description = config.describe();
    let weights = Weights::random(&description.tensors).held_as(storage);
    let model = Decoder::from_weights(config, &weights, kind, Device::Cpu)?;
    let ids = (0..prompt as i64).map(|i| i * 7_919 % description.vocab_size).collect();
    let rows = [Row::prompt(ids)];
    let config = GenerationConfig { max_new_tokens: tokens, ..GenerationConfig::default() };
    let mut out = std::io::stdout().lock();
    let bytes = model.weight_bytes();
    writeln!(
        out,
        "{kind:?}, {storage}, {bytes} bytes of weights, {} threads",
        tch::get_num_threads()
    )?;
    for turn in 0..=turns {
        let (started, mut times) = (Instant::now(), Vec::new());
        generate(&model, &AdapterStack::EMPTY, &rows, &config, &mut |_, _| {
            times.push(started.elapsed().as_secs_f64());
            ControlFlow::Continue(())
        })?;
        let (prefill, last) = (times[0], times[times.len() - 1]);
        let each = (last - prefill) / (times.len() - 1).max(1) as f64;
        if turn > 0 {
            writeln!(
                out,
                "prompt of {prompt}: {prefill:.3} s; each of {tokens} tokens: {each:.3} s"
            )?;
        }
    }
    Ok(())
}
