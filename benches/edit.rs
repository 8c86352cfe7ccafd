//! LoReFT's edit of one layer, and the total cost of 32 edited layers in a step: their maps, edits and gradients.
//!
//! `cargo bench --workspace --profile dev --bench edit`

mod timing;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reft_core::{Intervention, InterventionConfig, InterventionSet, Method, Subspace};
use tch::{Device, Kind, Tensor};
use timing::timed;

const LAYERS: i64 = 32;
const BATCH: i64 = 8;
const POSITIONS: i64 = 14; // f7+l7

fn edit(criterion: &mut Criterion) {
    tch::manual_seed(0);
    let device = Device::cuda_if_available();
    for d in [576, 2048, 4096] {
        for r in [4, 8, 32] {
            let config = InterventionConfig::new(Method::Loreft, r);
            let set = InterventionSet::new(config, LAYERS, d, device)
                .expect("invariant: every rank fits in every hidden size here");
            let h = Tensor::randn([BATCH, POSITIONS, d], (Kind::Float, device));
            let edited = |layer: usize, edits: &[reft_core::Edit], h: &Tensor| {
                edits[layer].intervene(h, &Subspace::Whole).expect("invariant: h is [b, p, d]")
            };
            let shape = format!("b{BATCH}_p{POSITIONS}_d{d}_r{r}");
            let mut group = timing::group(criterion, "loreft");

            group.throughput(Throughput::Elements((BATCH * POSITIONS) as u64)); // edited hidden states per second
            group.bench_function(format!("forward/{device:?}/f32/{shape}"), |b| {
                let edits = tch::no_grad(|| set.edits(false));
                b.iter_custom(|n| tch::no_grad(|| timed(device, n, || edited(0, &edits, &h))));
            });

            group.throughput(Throughput::Elements((LAYERS * BATCH * POSITIONS) as u64)); // as above
            let parameters: Vec<Tensor> = set.parameters().into_iter().map(|p| p.tensor).collect();
            group.bench_function(
                format!("forward_backward/{device:?}/f32/l{LAYERS}_{shape}"),
                |b| {
                    b.iter_custom(|n| {
                        timed(device, n, || {
                            let edits = set.edits(true);
                            let h = (0..LAYERS as usize)
                                .fold(h.shallow_clone(), |h, layer| edited(layer, &edits, &h));
                            let loss = h.square().sum(Kind::Float);
                            Tensor::run_backward(&[loss], &parameters, false, false).remove(0)
                        })
                    });
                },
            );
            group.finish();
        }
    }
}

criterion_group!(benches, edit);
criterion_main!(benches);
