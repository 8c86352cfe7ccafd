//! One step's orthonormal map of 32 layers: the compact map, the QR map, and libtorch's product of reflections as PyTorch's
//! parametrisation uses it: one matrix at a time, each with a d×d base, so it is timed on one of the 32. Compare matrices per second.
//!
//! `cargo bench --workspace --profile dev --bench orthonormal`

mod timing;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use reft_core::{Householder, OrthonormalMap, Qr, random_columns};
use tch::{Device, Kind, Tensor};
use timing::timed;

const LAYERS: i64 = 32;

/// `base · (H₁ … H_r)[:, :r] · diag(sign)` of one matrix, from `X` `[d, r]` whose diagonal holds the signs.
fn parametrization(x: &Tensor, base: &Tensor) -> Tensor {
    let a = x.tril(-1);
    let tau = 2.0 / (a.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Float) + 1.0);
    let signs = x.diagonal(0, 0, 1).to_kind(Kind::Int).unsqueeze(0);
    base.matmul(&(a.linalg_householder_product(&tau) * signs))
}

/// Gradients of `Σ columns·weight` with respect to the raw matrices.
fn backward(columns: &Tensor, weight: &Tensor, raw: &[Tensor]) -> Tensor {
    let loss = (columns * weight).sum(Kind::Float);
    Tensor::run_backward(&[loss], raw, false, false).remove(0)
}

fn orthonormal(criterion: &mut Criterion) {
    tch::manual_seed(0);
    let device = Device::cuda_if_available();
    for d in [576, 2048, 4096] {
        let base = random_columns(1, d, d, device).get(0);
        for r in [4, 8, 32] {
            let start = random_columns(LAYERS, d, r, device);
            let weight = Tensor::randn([LAYERS, d, r], (Kind::Float, device));
            let maps: [(&str, Box<dyn OrthonormalMap>); 2] = [
                ("compact", Box::new(Householder::starting_at(&start))),
                ("qr", Box::new(Qr::starting_at(&start))),
            ];
            let shape = format!("{device:?}/f32/n{LAYERS}_d{d}_r{r}");
            let mut group = timing::group(criterion, "orthonormal");
            group.throughput(Throughput::Elements(LAYERS as u64)); // matrices per second
            for (name, map) in &maps {
                let raw = map.raw();
                let moved = tch::no_grad(|| raw + raw.randn_like() * 1e-2);
                tch::no_grad(|| raw.shallow_clone().copy_(&moved));
                group.bench_function(format!("{name}/forward/{shape}"), |b| {
                    b.iter_custom(|n| timed(device, n, || map.columns()));
                });
                group.bench_function(format!("{name}/forward_backward/{shape}"), |b| {
                    let raw = [raw.shallow_clone()];
                    b.iter_custom(|n| timed(device, n, || backward(&map.columns(), &weight, &raw)));
                });
            }
            let shape = format!("{device:?}/f32/n1_d{d}_r{r}");
            group.throughput(Throughput::Elements(1)); // as above
            let x = Tensor::randn([d, r], (Kind::Float, device)) * 1e-2;
            let x = x.tril(-1) - Tensor::eye_m(d, r, (Kind::Float, device));
            let x = [x.set_requires_grad(true)];
            group.bench_function(format!("householder_product/forward/{shape}"), |b| {
                b.iter_custom(|n| timed(device, n, || parametrization(&x[0], &base)));
            });
            let weight = weight.get(0);
            group.bench_function(format!("householder_product/forward_backward/{shape}"), |b| {
                b.iter_custom(|n| {
                    timed(device, n, || backward(&parametrization(&x[0], &base), &weight, &x))
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, orthonormal);
criterion_main!(benches);
