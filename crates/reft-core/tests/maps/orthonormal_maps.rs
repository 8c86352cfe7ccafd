//! The orthonormal maps against libtorch's `linalg_householder_product` and finite differences, and their properties.

use std::collections::BTreeMap;

use crate::seeded;
use reft_core::{
    Error, Householder, MapKind, OrthonormalMap, Qr, Result, orthonormality_error, random_columns,
};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, F32)
}

fn set_raw(map: &dyn OrthonormalMap, value: &Tensor) {
    tch::no_grad(|| map.raw().shallow_clone().copy_(value));
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

/// `−Q₀ (H₁ … H_r)[:, :r]` in f64 with libtorch's product of reflections, one matrix at a time, differentiable in `raw`.
fn explicit(base: &Tensor, raw: &Tensor) -> Tensor {
    let one = |i| {
        let raw = raw.select(0, i); // [d, r]
        let (d, r) = raw.size2().unwrap();
        let v = raw.tril(-1) + Tensor::eye_m(d, r, (Kind::Double, Device::Cpu));
        let tau =
            v.square().sum_dim_intlist([0i64].as_slice(), false, Kind::Double).reciprocal() * 2.0;
        -base.select(0, i).matmul(&v.linalg_householder_product(&tau))
    };
    Tensor::stack(&(0..raw.size()[0]).map(one).collect::<Vec<_>>(), 0)
}

/// The d×d matrix `Q₀ = H₁ … H_k·diag(signs)` that a map keeps as reflections, in f64.
fn whole_base(map: &Householder) -> Tensor {
    let constants: BTreeMap<_, _> = map.constants().into_iter().collect();
    let v = constants["base_reflections"].to_kind(Kind::Double);
    let signs = constants["base_signs"].to_kind(Kind::Double);
    let (n, d, k) = v.size3().unwrap();
    let identity = Tensor::eye(d, (Kind::Double, Device::Cpu));
    let one = |i| {
        let mut q = identity.shallow_clone();
        for j in 0..k {
            let v = v.select(0, i).narrow(1, j, 1); // [d, 1]
            let square = v.square().sum(Kind::Double);
            q = q.matmul(&(&identity - v.matmul(&v.tr()) * 2.0 / square));
        }
        let ones = Tensor::ones([d - k], (Kind::Double, Device::Cpu));
        q * Tensor::cat(&[signs.select(0, i), ones], 0)
    };
    Tensor::stack(&(0..n).map(one).collect::<Vec<_>>(), 0)
}

#[test]
fn householder_and_its_gradient_equal_the_explicit_product_of_reflections() {
    let _alone = seeded(1);
    for (d, r, k) in
        [(24, 1, 24), (24, 3, 24), (24, 8, 24), (24, 8, 8), (24, 3, 5), (6, 6, 6), (200, 8, 8)]
    {
        let base = random_columns(3, d, k, Device::Cpu);
        let map = Householder::on_base(&base, r);
        let q0 = whole_base(&map);
        // the kept base equals the given base: f32 rounding of unit vectors
        assert!(largest_difference(&q0.narrow(2, 0, k), &base) < 1e-6);
        for scale in [0.0, 0.05, 1.0, 30.0] {
            let raw = randn(&[3, d, r]) * scale;
            set_raw(&map, &raw);
            let exact_raw = raw.to_kind(Kind::Double).set_requires_grad(true);
            let (found, expected) = (map.columns(), explicit(&q0, &exact_raw));
            // entries are at most 1; f32, measured 6e-7
            let difference = largest_difference(&found, &expected);
            assert!(difference < 2e-6, "d {d} r {r} k {k} scale {scale}: {difference:e}");

            let weight = randn(&[3, d, r]);
            let gradient = |columns: &Tensor, weight: &Tensor, raw: &Tensor| {
                let loss = (columns * weight).sum(columns.kind());
                Tensor::run_backward(&[loss], &[raw], false, false).remove(0)
            };
            let found = gradient(&found, &weight, map.raw());
            let expected = gradient(&expected, &weight.to_kind(Kind::Double), &exact_raw);
            let size = expected.abs().max().double_value(&[]);
            let difference = largest_difference(&found, &expected);
            // relative to the largest entry; f32, measured 7e-7
            assert!(
                difference <= 5e-6 * size,
                "d {d} r {r} k {k} scale {scale}: {difference:e} of {size:e}"
            );
            assert!(size > 0.0, "test has no power: no gradient");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() -> Result<()> {
    let _alone = seeded(2);
    for kind in [MapKind::Householder, MapKind::Qr] {
        let map = kind.starting_at(&random_columns(2, 7, 3, Device::Cpu))?;
        let raw = map.raw().detach() + randn(&[2, 7, 3]) * 0.3;
        set_raw(&*map, &raw);
        let weight = randn(&[2, 7, 3]);
        let loss = |raw: &Tensor| {
            set_raw(&*map, raw);
            (map.columns() * &weight).sum(Kind::Double)
        };
        let gradient = Tensor::run_backward(&[loss(&raw)], &[map.raw()], false, false).remove(0);
        let step = 5e-3;
        for i in 0..raw.numel() as i64 {
            let direction = Tensor::zeros([2 * 7 * 3], F32);
            let _ = direction.get(i).fill_(step);
            let direction = direction.view_as(&raw);
            let (up, down) = (loss(&(&raw + &direction)), loss(&(&raw - &direction)));
            let expected = (up - down).double_value(&[]) / (2.0 * step);
            let found = gradient.flatten(0, -1).double_value(&[i]);
            // steps of 5e-3: third derivatives, rounding of sums of 42 f32 gives 1e-4
            assert!(
                (found - expected).abs() < 1e-3,
                "{kind} entry {i}: {found}, expected {expected}"
            );
        }
        assert!(gradient.abs().max().double_value(&[]) > 0.1, "test has no power");
    }
    Ok(())
}

/// With a d×d matrix anywhere, in the map, its start or its gradient, this would need 360 GB.
#[test]
fn no_square_matrix_is_needed() -> Result<()> {
    let _alone = seeded(12);
    let (d, r) = (300_000, 2);
    let map = Householder::starting_at(&random_columns(1, d, r, Device::Cpu));
    set_raw(&map, &(randn(&[1, d, r]) * 1e-3));
    let columns = map.columns();
    let error = orthonormality_error(&columns);
    assert!(error < 5e-5, "{error:e}"); // sums of 300,000 f32: measured 6e-6
    columns.narrow(1, 7, 2).sum(Kind::Float).backward();
    assert!(map.raw().grad().abs().max().double_value(&[]) > 0.0);
    let kept: usize = map.constants().iter().map(|(_, constant)| constant.numel()).sum();
    assert_eq!(kept as i64, d * r + r);
    Ok(())
}

#[test]
fn maps_start_at_the_columns_given() -> Result<()> {
    let _alone = seeded(3);
    let identity = |d, r| Tensor::eye_m(d, r, F32).unsqueeze(0);
    let mut starts: Vec<Tensor> = [(1, 1), (2, 2), (5, 5), (5, 4), (64, 4), (576, 8)]
        .map(|(d, r)| random_columns(3, d, r, Device::Cpu))
        .into();
    starts.push(identity(6, 3));
    starts.push(-identity(6, 3));
    starts.push(identity(4, 4).flip([2])); // a permutation
    starts.push(-identity(1, 1));
    for kind in [MapKind::Householder, MapKind::Qr] {
        for start in &starts {
            let map = kind.starting_at(start)?;
            assert_eq!(map.raw().size(), start.size());
            // entries are at most 1, and the reflections are rounded to f32: measured 2e-7
            let difference = largest_difference(&map.columns(), start);
            assert!(difference < 1e-6, "{kind} {:?}: {difference:e}", start.size());
        }
    }
    Ok(())
}

#[test]
fn further_columns_of_the_base_change_the_way_and_not_the_start() {
    let _alone = seeded(4);
    let base = random_columns(1, 12, 12, Device::Cpu);
    let flipped = Tensor::cat(&[base.narrow(2, 0, 3), -base.narrow(2, 3, 9)], 2);
    let maps = [&base, &flipped].map(|base| Householder::on_base(base, 3));
    assert!(largest_difference(&maps[0].columns(), &maps[1].columns()) < 1e-6);
    let raw = randn(&[1, 12, 3]) * 0.2;
    maps.iter().for_each(|map| set_raw(map, &raw));
    assert!(largest_difference(&maps[0].columns(), &maps[1].columns()) > 0.05);
}

#[test]
fn columns_stay_orthonormal_wherever_the_raw_matrix_goes() -> Result<()> {
    let _alone = seeded(5);
    for kind in [MapKind::Householder, MapKind::Qr] {
        for (d, r) in [(5, 5), (64, 4), (576, 8), (300, 32)] {
            let map = kind.starting_at(&random_columns(4, d, r, Device::Cpu))?;
            for scale in [1e-3, 1.0, 1e4] {
                set_raw(&*map, &(map.raw().detach() + randn(&[4, d, r]) * scale));
                let error = orthonormality_error(&map.columns());
                // f32 products of unit vectors, r up to 32: measured 3e-6
                assert!(error < 1e-5, "{kind} d {d} r {r} scale {scale}: {error:e}");
            }
        }
    }
    Ok(())
}

#[test]
fn columns_stay_orthonormal_over_a_thousand_steps_and_new_starts() -> Result<()> {
    let _alone = seeded(6);
    for kind in [MapKind::Householder, MapKind::Qr] {
        let mut map = kind.starting_at(&random_columns(2, 48, 4, Device::Cpu))?;
        let start = map.columns().detach();
        for step in 1..=1000 {
            set_raw(&*map, &(map.raw().detach() + randn(&[2, 48, 4]) * 1e-2));
            if step % 100 == 0 {
                map = kind.starting_at(&map.columns())?;
            }
        }
        let error = orthonormality_error(&map.columns());
        assert!(error < 1e-5, "{kind}: {error:e}"); // as above; errors do not add up over the steps
        assert!(
            largest_difference(&map.columns(), &start) > 0.1,
            "test has no power: {kind} did not move"
        );
    }
    Ok(())
}

#[test]
fn a_new_start_keeps_the_columns_and_has_a_new_leaf() -> Result<()> {
    let _alone = seeded(7);
    for kind in [MapKind::Householder, MapKind::Qr] {
        let moved = kind.starting_at(&random_columns(3, 20, 4, Device::Cpu))?;
        set_raw(&*moved, &(moved.raw().detach() + randn(&[3, 20, 4])));
        let before = moved.columns().detach();
        let map = kind.starting_at(&before)?;
        // f32: measured 3e-7
        assert!(largest_difference(&map.columns(), &before) < 2e-6, "{kind}");
        assert!(map.raw().requires_grad() && map.raw().is_leaf());
    }
    Ok(())
}

#[test]
fn a_batch_of_matrices_is_mapped_as_one_by_one() -> Result<()> {
    let _alone = seeded(8);
    for kind in [MapKind::Householder, MapKind::Qr] {
        let start = random_columns(5, 30, 4, Device::Cpu);
        let raw = randn(&[5, 30, 4]);
        let mapped = |i: i64, n: i64| -> Result<Tensor> {
            let map = kind.starting_at(&start.narrow(0, i, n))?;
            set_raw(&*map, &(map.raw().detach() + raw.narrow(0, i, n)));
            Ok(map.columns())
        };
        let batch = mapped(0, 5)?;
        for i in 0..5 {
            // the same f32 sums, perhaps in another order
            assert!(
                largest_difference(&mapped(i, 1)?, &batch.narrow(0, i, 1)) < 1e-6,
                "{kind} {i}"
            );
        }
    }
    Ok(())
}

#[test]
fn qr_has_the_signs_that_make_the_triangle_positive() {
    let _alone = seeded(9);
    let map = Qr::starting_at(&random_columns(6, 10, 4, Device::Cpu));
    let raw = randn(&[6, 10, 4]);
    set_raw(&map, &raw);
    let upper = map.columns().transpose(1, 2).matmul(&raw); // U of X = Q U
    assert!(upper.diagonal(0, 1, 2).min().double_value(&[]) > 0.0);
    // below the diagonal only rounding: f32, |X| up to 3
    assert!(upper.tril(-1).abs().max().double_value(&[]) < 5e-6);
}

#[test]
fn restored_maps_are_bit_equal() -> Result<()> {
    let _alone = seeded(10);
    let start = random_columns(3, 40, 4, Device::Cpu);
    let wide = random_columns(3, 40, 40, Device::Cpu);
    let maps: [(MapKind, Box<dyn OrthonormalMap>); 3] = [
        (MapKind::Householder, MapKind::Householder.starting_at(&start)?),
        (MapKind::Householder, Box::new(Householder::on_base(&wide, 4))),
        (MapKind::Qr, MapKind::Qr.starting_at(&start)?),
    ];
    for (kind, map) in maps {
        set_raw(&*map, &(map.raw().detach() + randn(&[3, 40, 4]) * 0.3));
        let constants: BTreeMap<_, _> = map.constants().into_iter().collect();
        let leaf = map.raw().detach().copy().set_requires_grad(true);
        let restored = kind.restore(leaf, &|name| constants.get(name).map(Tensor::copy))?;
        assert!(restored.columns().equal(&map.columns()), "{kind}");
        assert!(restored.raw().requires_grad() && restored.raw().is_leaf());
    }
    let lost = MapKind::Householder.restore(randn(&[1, 4, 2]), &|_| None);
    assert!(matches!(lost, Err(Error::MissingTensor { name, .. }) if name == "base_reflections"));
    Ok(())
}

#[test]
fn columns_that_are_not_orthonormal_are_refused() {
    for columns in [
        Tensor::ones([1, 6, 2], F32),
        Tensor::zeros([1, 6, 2], F32),
        Tensor::full([1, 6, 2], f64::NAN, F32),
        Tensor::eye_m(6, 2, F32).unsqueeze(0) * 1.1,
    ] {
        for kind in [MapKind::Householder, MapKind::Qr] {
            let refused = kind.starting_at(&columns);
            assert!(
                matches!(&refused, Err(Error::NotOrthonormal { name, .. }) if name == "rotation"),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn columns_rounded_to_bf16_are_made_orthonormal_again() -> Result<()> {
    let _alone = seeded(11);
    let exact = random_columns(2, 64, 4, Device::Cpu);
    let rounded = exact.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    assert!(orthonormality_error(&rounded) > 1e-4, "test has no power");
    for kind in [MapKind::Householder, MapKind::Qr] {
        let columns = kind.starting_at(&rounded)?.columns();
        assert!(orthonormality_error(&columns) < 1e-5);
        assert!(largest_difference(&columns, &exact) < 1e-2); // 2⁻⁹ of entries up to 0.5, and the correction
    }
    Ok(())
}

#[test]
fn random_columns_are_orthonormal_and_follow_from_the_seed() {
    let draw = |seed| {
        let _alone = seeded(seed);
        random_columns(4, 50, 6, Device::Cpu)
    };
    assert!(orthonormality_error(&draw(1)) < 1e-6);
    assert!(draw(1).equal(&draw(1)));
    assert!(!draw(1).equal(&draw(2)));
    let signs = draw(1).narrow(1, 0, 1).sign();
    assert!(signs.min().double_value(&[]) < 0.0 && signs.max().double_value(&[]) > 0.0);
}
