//! The two halves of generation, without an adapter and with LoReFT on all layers: the prefill of a prompt, which has edits, and a decode
//! step, which has none.
//!
//! `cargo bench --workspace --profile dev --bench generation`

mod model_shape;
mod timing;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reft_methods::{MethodOptions, RANK, SHARE_WEIGHTS, resolve};
use reft_models::{AdapterStack, Hooks, KvCache, Layout, Mode, Model, PaddingSide, Row, Span};
use tch::{Device, Tensor};
use timing::timed;

const LAYERS: usize = 4;
const PROMPT: usize = 120;
/// Tokens after a prompt, before the next one begins with an empty cache.
const NEW_TOKENS: u64 = 64;

/// A pass over some columns, to the logits of the last one.
fn pass(
    model: &dyn Model,
    input_ids: &Tensor,
    span: &Span,
    cache: &mut KvCache,
    hooks: &mut dyn Hooks,
) -> Tensor {
    let h = model
        .hidden_states(input_ids, span, Some(cache), hooks)
        .expect("invariant: the cache has room and hooks fit the model");
    model.logits(&h.select(1, -1))
}

fn generation(criterion: &mut Criterion) {
    let device = Device::cuda_if_available();
    let decoder = model_shape::decoder(LAYERS, device);
    let options = MethodOptions::default().with(&RANK, 8).with(&SHARE_WEIGHTS, true);
    let loreft = resolve("loreft", &options, decoder.description());
    let loreft = loreft.and_then(|methods| methods.build(&decoder, ""));
    let loreft = loreft.expect("invariant: rank 8 fits");
    let loreft = AdapterStack::of_boxed(&loreft).expect("invariant: there is only one");
    let _guard = tch::no_grad_guard();
    for b in [1, 8] {
        let row = |row: usize| Row {
            input_ids: model_shape::tokens(row as i64, PROMPT, &decoder),
            prompt_length: PROMPT,
            ..Row::default()
        };
        let layout = Layout::new((0..b).map(row).collect(), PaddingSide::Left)
            .expect("invariant: rows are not empty");
        let prompt = layout.whole();
        let prompt_ids = layout.input_ids(device);
        let next_ids = prompt_ids.narrow(1, 0, 1);
        let capacity = PROMPT as i64 + NEW_TOKENS as i64;
        let mut group = timing::group(criterion, "generation");
        for (name, stack) in [("base", &AdapterStack::EMPTY), ("loreft", &loreft)] {
            let hooks = || stack.hooks(&layout, Mode::Eval).expect("invariant: any row");
            let shape = format!("{device:?}/f32/b{b}_p{PROMPT}_n{NEW_TOKENS}_d576_l{LAYERS}_r8");
            group.throughput(Throughput::Elements((b * PROMPT) as u64)); // prompt tokens per second
            group.bench_function(format!("{name}/prefill/{shape}"), |bencher| {
                bencher.iter_custom(|n| {
                    timed(device, n, || {
                        let mut cache = decoder.kv_cache(b as i64, capacity);
                        pass(&decoder, &prompt_ids, &prompt, &mut cache, &mut hooks())
                    })
                });
            });
            group.throughput(Throughput::Elements(b as u64)); // new tokens per second
            group.bench_function(format!("{name}/decode/{shape}"), |bencher| {
                bencher.iter_custom(|n| {
                    let mut elapsed = Duration::ZERO;
                    let mut left = n;
                    while left > 0 {
                        let steps = left.min(NEW_TOKENS);
                        let mut cache = decoder.kv_cache(b as i64, capacity);
                        let mut hooks = hooks();
                        drop(pass(&decoder, &prompt_ids, &prompt, &mut cache, &mut hooks));
                        let mut columns = (PROMPT..).map(|column| column..column + 1);
                        elapsed += timed(device, steps, || {
                            let columns = columns.next().expect("invariant: there is no end");
                            let span = Span { layout: &layout, columns };
                            pass(&decoder, &next_ids, &span, &mut cache, &mut hooks)
                        });
                        left -= steps;
                    }
                    elapsed
                })
            });
        }
        group.finish();
    }
}

criterion_group!(benches, generation);
criterion_main!(benches);
