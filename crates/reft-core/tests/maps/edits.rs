//! Every method's edit against its equation in f64, one vector at a time, and the properties of the edits.

use std::collections::BTreeMap;

use crate::seeded;
use reft_core::{
    Activation, Error, Init, Intervention, InterventionConfig, InterventionSet, MapKind, Method,
    Result, Subspace,
};
use tch::{Device, Kind, Tensor};

const D: i64 = 24;
const R: i64 = 4;

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

fn config(method: Method, act_fn: Activation, add_bias: bool) -> InterventionConfig {
    let init = Some(Init::Reference);
    InterventionConfig { act_fn, add_bias, init, ..InterventionConfig::new(method, R) }
}

/// Two interventions that are not the identity, biases included.
fn set(config: InterventionConfig) -> Result<InterventionSet> {
    InterventionSet::new(config, 2, D, Device::Cpu)
}

fn every_config() -> Vec<InterventionConfig> {
    let mut configs = Vec::new();
    for &method in Method::ALL {
        for &act_fn in Activation::ALL {
            configs.push(config(method, act_fn, false));
        }
    }
    configs.push(config(Method::Noreft, Activation::Tanh, true));
    configs
}

/// Rows of a matrix in f64.
fn rows(x: &Tensor) -> Vec<Vec<f64>> {
    let n = x.size()[0];
    (0..n).map(|i| Vec::try_from(x.get(i).to_kind(Kind::Double)).unwrap()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `σ(x)` from its definition.
fn sigma(act_fn: Activation, x: f64) -> f64 {
    match act_fn {
        Activation::Linear => x,
        Activation::Relu => f64::max(x, 0.0),
        Activation::Gelu => x * normal_cdf(x),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
    }
}

/// `½ + φ(x) (x + x³/3 + x⁵/(3·5) + …)`
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for k in 1..100 {
        term *= x * x / f64::from(2 * k + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The equation of [`Method`] for one hidden state, computed with scalars only.
fn formula(config: &InterventionConfig, tensors: &BTreeMap<String, Tensor>, h: &[f64]) -> Vec<f64> {
    let directions = match tensors.get("rotation") {
        Some(r_t) => rows(&r_t.tr()), // R [r, d]
        None => rows(&tensors["proj_layer.weight"]),
    };
    let b = rows(&tensors["learned_source.bias"].unsqueeze(0)).remove(0);
    let w = tensors.get("learned_source.weight").map(rows);
    let c = tensors.get("proj_layer.bias").map(|c| rows(&c.unsqueeze(0)).remove(0));
    let mut edited = h.to_vec();
    for k in 0..directions.len() {
        let source = match &w {
            Some(w) => sigma(config.act_fn, dot(&w[k], h) + b[k]),
            None => b[k],
        };
        let present = dot(&directions[k], h);
        let change = match config.method {
            Method::Loreft | Method::Consreft => source - present,
            Method::Noreft => source - present - c.as_ref().map_or(0.0, |c| c[k]),
            Method::Direft | Method::DireftOrth | Method::Lobireft => source,
        };
        for (x, direction) in edited.iter_mut().zip(&directions[k]) {
            *x += direction * change;
        }
    }
    edited
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

#[test]
fn every_method_is_its_equation() -> Result<()> {
    let _alone = seeded(1);
    for config in every_config() {
        let set = set(config.clone())?;
        let h = randn(&[2, 3, D]) * 3.0;
        for (edit, tensors) in set.edits(false).iter().zip(set.tensors()) {
            let edited = edit.intervene(&h, &Subspace::Whole)?;
            assert_eq!((edited.size(), edited.kind()), (h.size(), Kind::Float));
            assert!(largest_difference(&edited, &h) > 0.02, "test has no power: {config:?}");
            let expected: Vec<f64> =
                rows(&h.view([-1, D])).iter().flat_map(|h| formula(&config, &tensors, h)).collect();
            let difference =
                largest_difference(&edited.flatten(0, -1), &Tensor::from_slice(&expected));
            // f32 against f64, |h| up to 10, sums of 24: measured 1.5e-6
            assert!(difference < 5e-6, "{config:?}: off by {difference:e}");
        }
    }
    Ok(())
}

/// Central differences of the f64 equation in every entry of the adapter and of the hidden state.
#[test]
fn every_gradient_is_that_of_the_equation() -> Result<()> {
    let _alone = seeded(2);
    for config in every_config() {
        let set = set(config.clone())?;
        let base = (randn(&[2, D]) * 2.0).set_requires_grad(true);
        let weight = randn(&[2, D]);
        let tensors = set.tensors().remove(1);
        // free directions, so that each entry can be moved separately
        let rotated = config.method.has_rotation();
        let directions = match tensors.get("rotation") {
            Some(r_t) => r_t.shallow_clone(),
            None => tensors["proj_layer.weight"].tr(),
        };
        let stacked =
            Tensor::stack(&[directions.zeros_like(), directions], 0).set_requires_grad(true);
        let edited = set.edits_along(&stacked, false)[1].intervene(&base, &Subspace::Whole)?;
        let mut leaves = vec![("h".to_owned(), base.shallow_clone())];
        let name = if rotated { "rotation" } else { "proj_layer.weight" };
        leaves.push((name.to_owned(), stacked.shallow_clone()));
        let others = set.parameters().into_iter().skip(1);
        leaves.extend(others.map(|parameter| (parameter.name, parameter.tensor)));
        let loss = (edited * &weight).sum(Kind::Float);
        let inputs: Vec<_> = leaves.iter().map(|(_, leaf)| leaf.shallow_clone()).collect();
        let gradients = Tensor::run_backward(&[loss], &inputs, false, false);

        let double = |x: &Tensor| x.detach().to_kind(Kind::Double).copy();
        let exact: BTreeMap<String, Tensor> =
            tensors.iter().map(|(name, tensor)| (name.clone(), double(tensor))).collect();
        let (exact_base, exact_weight) = (rows(&base), rows(&weight));
        let loss = |tensors: &BTreeMap<String, Tensor>, base: &[Vec<f64>]| -> f64 {
            let edited = base.iter().map(|h| formula(&config, tensors, h));
            edited.zip(&exact_weight).map(|(edited, weight)| dot(&edited, weight)).sum()
        };
        for ((name, _), gradient) in leaves.iter().zip(&gradients) {
            let gradient = match name.as_str() {
                "h" => gradient.shallow_clone(),
                "proj_layer.weight" => gradient.get(1).tr(),
                _ => gradient.get(1),
            };
            let found: Vec<f64> =
                gradient.contiguous().flatten(0, -1).to_kind(Kind::Double).try_into().unwrap();
            let step = 1e-6;
            for (i, found) in found.into_iter().enumerate() {
                let moved = |by: f64| {
                    let (mut tensors, mut base) = (BTreeMap::new(), exact_base.clone());
                    for (name, tensor) in &exact {
                        tensors.insert(name.clone(), tensor.copy());
                    }
                    if name == "h" {
                        base[i / D as usize][i % D as usize] += by;
                    } else {
                        let flat = tensors[name].flatten(0, -1);
                        let _ = flat.get(i as i64).g_add_scalar_(by);
                    }
                    loss(&tensors, &base)
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                // f32 sums of 48 against f64, gradients up to 40: measured 2e-5; no step crosses the kink of relu
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{config:?}: gradient of {name}[{i}] is {found}, expected {expected}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn an_edit_stays_in_its_subspace_and_loreft_sets_the_coordinates() -> Result<()> {
    let _alone = seeded(3);
    for &map in MapKind::ALL {
        for &method in Method::ALL.iter().filter(|method| method.has_rotation()) {
            let config = InterventionConfig {
                orthonormal_map: map,
                ..config(method, Activation::Linear, false)
            };
            let set = set(config)?;
            let h = randn(&[2, 5, D]);
            for (edit, tensors) in set.edits(false).iter().zip(set.tensors()) {
                let edited = edit.intervene(&h, &Subspace::Whole)?;
                let r_t = &tensors["rotation"];
                let change = &edited - &h;
                let outside = &change - change.matmul(r_t).matmul(&r_t.tr()); // (I − RᵀR) edit
                // f32, |edit| up to 4: measured 7e-7
                assert!(outside.abs().max().double_value(&[]) < 5e-6, "{method} {map}");
                assert!(change.abs().max().double_value(&[]) > 0.1, "test has no power");
                if method == Method::Loreft {
                    let source = h.matmul(&tensors["learned_source.weight"].tr())
                        + &tensors["learned_source.bias"];
                    assert!(largest_difference(&edited.matmul(r_t), &source) < 5e-6); // R Φ(h) = W h + b
                }
            }
        }
    }
    Ok(())
}

#[test]
fn interventions_start_as_the_identity_where_the_method_can() -> Result<()> {
    let _alone = seeded(4);
    let h = randn(&[3, D]);
    let changes = |config: InterventionConfig| -> Result<f64> {
        let set = InterventionSet::new(config, 2, D, Device::Cpu)?;
        let edits = set.edits(false);
        let change = |edit: &reft_core::Edit| edit.intervene(&h, &Subspace::Whole);
        Ok(f64::max(
            largest_difference(&change(&edits[0])?, &h),
            largest_difference(&change(&edits[1])?, &h),
        ))
    };
    for &method in Method::ALL {
        for &act_fn in Activation::ALL {
            let base =
                InterventionConfig { act_fn, add_bias: true, ..InterventionConfig::new(method, R) };
            let identity = InterventionConfig { init: Some(Init::Identity), ..base.clone() };
            let reference = InterventionConfig { init: Some(Init::Reference), ..base.clone() };
            assert!(
                changes(reference)? > 0.05,
                "{method} {act_fn}: the reference start changes nothing"
            );
            let linear = act_fn == Activation::Linear;
            let possible = match method {
                Method::Loreft | Method::Noreft => linear,
                Method::DireftOrth => act_fn != Activation::Sigmoid,
                Method::Direft | Method::Lobireft => true,
                Method::Consreft => false,
            };
            if possible {
                assert_eq!(base.resolved_init(), Init::Identity);
                assert!(changes(identity)? < 1e-6, "{method} {act_fn}"); // R h twice in f32
                assert!(changes(base)? < 1e-6, "the default start is the identity");
            } else {
                assert_eq!(base.resolved_init(), Init::Reference);
                assert!(matches!(
                    changes(identity),
                    Err(Error::NoIdentityStart { method: m, act_fn: a }) if m == method.name() && a == act_fn.name()
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn an_identity_start_still_learns() -> Result<()> {
    let _alone = seeded(5);
    let h = randn(&[6, D]);
    let wanted = randn(&[6, D]);
    for method in
        [Method::Loreft, Method::Direft, Method::DireftOrth, Method::Noreft, Method::Lobireft]
    {
        let set = InterventionSet::new(InterventionConfig::new(method, R), 1, D, Device::Cpu)?;
        let edited = set.edits(true)[0].intervene(&h, &Subspace::Whole)?;
        (edited - &wanted).square().sum(Kind::Float).backward();
        let sizes =
            set.parameters().into_iter().map(|p| p.tensor.grad().abs().max().double_value(&[]));
        assert!(sizes.fold(0.0, f64::max) > 0.1, "{method} has no gradient at its start");
    }
    Ok(())
}

#[test]
fn a_masked_edit_changes_only_its_coordinates() -> Result<()> {
    let _alone = seeded(6);
    let set = set(config(Method::Loreft, Activation::Linear, false))?;
    let edit = &set.edits(false)[0];
    let r_t = edit.directions();
    let h = randn(&[5, D]);
    let whole = edit.intervene(&h, &Subspace::Whole)? - &h;
    let coordinates = |edit: &Tensor| edit.matmul(r_t); // [5, r]
    let masked = |kept: &[i64]| -> Result<Tensor> {
        let mask = Subspace::mask_of(kept, R)?;
        Ok(edit.intervene(&h, &Subspace::Masked(mask))? - &h)
    };
    let some = masked(&[2, 0])?;
    let expected = coordinates(&whole) * Tensor::from_slice(&[1f32, 0.0, 1.0, 0.0]);
    assert!(largest_difference(&coordinates(&some), &expected) < 2e-6); // f32, |edit| up to 4
    assert!(expected.abs().max().double_value(&[]) > 0.1, "test has no power");
    // the changes of disjoint subspaces add up to the whole change
    assert!(largest_difference(&(some + masked(&[1, 3])?), &whole) < 2e-6);
    assert!(largest_difference(&masked(&[0, 1, 2, 3])?, &whole) == 0.0);
    assert!(masked(&[])?.abs().max().double_value(&[]) == 0.0);

    // one mask per row
    let lists: [&[i64]; 5] = [&[0], &[1, 2], &[], &[3], &[0, 1, 2, 3]];
    let masks: Vec<Tensor> =
        lists.iter().map(|list| Subspace::mask_of(list, R)).collect::<Result<_>>()?;
    let mixed = edit.intervene(&h, &Subspace::Masked(Tensor::stack(&masks, 0)))? - &h;
    for (i, list) in lists.iter().enumerate() {
        let alone = masked(list)?;
        assert!(largest_difference(&mixed.get(i as i64), &alone.get(i as i64)) < 1e-6); // f32, as above
    }
    Ok(())
}

#[test]
fn dropout_drops_coordinates_of_the_edit_and_nothing_of_the_hidden_state() -> Result<()> {
    let _alone = seeded(7);
    for &method in Method::ALL {
        let dropout = 0.25;
        let set = set(InterventionConfig { dropout, ..config(method, Activation::Linear, false) })?;
        let h = randn(&[400, D]) * 100.0;
        let plain = set.edits(false)[0].intervene(&h, &Subspace::Whole)? - &h;
        let dropped = set.edits(true)[0].intervene(&h, &Subspace::Whole)? - &h;
        let (plain, dropped) = (plain.flatten(0, -1), dropped.flatten(0, -1));
        let scaled = &plain / (1.0 - dropout);
        // f32 around |h| of 100 and edits of as much: rounding of 3e-5
        let is_off = dropped.abs().le(2e-4);
        let is_scaled = (&dropped - &scaled).abs().le(2e-4);
        assert!(
            bool::try_from(is_off.logical_or(&is_scaled).all()).unwrap(),
            "{method}: something else happened"
        );
        let seen = plain.abs().gt(1e-2); // coordinates at which dropped and scaled values differ clearly
        let n = seen.sum(Kind::Double).double_value(&[]);
        let off = is_off.logical_and(&seen).sum(Kind::Double).double_value(&[]);
        assert!(n > 5000.0, "test has no power: {method}");
        // five standard deviations of a share of more than 5,000 draws
        assert!((off / n - dropout).abs() < 0.031, "{method}: {} dropped", off / n);
    }
    Ok(())
}

#[test]
fn edits_of_half_precision_states_are_computed_in_f32() -> Result<()> {
    let _alone = seeded(8);
    for config in every_config() {
        let set = set(config)?;
        for kind in [Kind::BFloat16, Kind::Half] {
            let h = randn(&[2, 3, D]).to_kind(kind);
            let edit = &set.edits(false)[0];
            let found = edit.intervene(&h, &Subspace::Whole)?;
            let expected = edit.intervene(&h.to_kind(Kind::Float), &Subspace::Whole)?.to_kind(kind);
            assert_eq!(found.kind(), kind);
            assert!(found.equal(&expected));
            let change = edit.change(&h, &Subspace::Whole)?;
            let expected = edit.change(&h.to_kind(Kind::Float), &Subspace::Whole)?.to_kind(kind);
            assert_eq!((change.kind(), change.size()), (kind, h.size()));
            assert!(change.equal(&expected));
        }
    }
    Ok(())
}

#[test]
fn what_is_added_is_what_an_edit_changes() -> Result<()> {
    let _alone = seeded(8);
    for config in every_config() {
        let set = set(config)?;
        let h = randn(&[2, 3, D]);
        for edit in set.edits(false) {
            let change = edit.change(&h, &Subspace::Whole)?;
            assert!((&h + change).equal(&edit.intervene(&h, &Subspace::Whole)?));
        }
    }
    Ok(())
}

#[test]
fn tensors_saved_and_read_give_the_same_edits() -> Result<()> {
    let _alone = seeded(9);
    for &map in MapKind::ALL {
        for config in every_config() {
            let config = InterventionConfig { orthonormal_map: map, ..config };
            let set = set(config.clone())?;
            let h = randn(&[3, D]);
            let read =
                InterventionSet::from_tensors(config.clone(), D, &set.tensors(), Device::Cpu)?;
            for (own, theirs) in set.edits(false).iter().zip(read.edits(false)) {
                let own = own.intervene(&h, &Subspace::Whole)?;
                // the rotation's reflections are recomputed in f32
                assert!(largest_difference(&theirs.intervene(&h, &Subspace::Whole)?, &own) < 2e-6);
            }
            let other = InterventionSet::new(config, 2, D, Device::Cpu)?;
            other.load_state(&set.state())?;
            for (own, theirs) in set.edits(false).iter().zip(other.edits(false)) {
                let own = own.intervene(&h, &Subspace::Whole)?;
                assert!(
                    theirs.intervene(&h, &Subspace::Whole)?.equal(&own),
                    "a state comes back bit for bit"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn parameters_are_counted_and_only_rotations_are_spared_weight_decay() -> Result<()> {
    for config in every_config() {
        let set = set(config.clone())?;
        let counted: usize = set.parameters().iter().map(|p| p.tensor.numel()).sum();
        assert_eq!(counted as i64, 2 * config.trainable_parameters(D), "{config:?}");
        for parameter in set.parameters() {
            assert_eq!(parameter.weight_decay, parameter.name != "rotation.raw");
            assert!(parameter.tensor.requires_grad() && parameter.tensor.is_leaf());
        }
        assert_eq!(set.orthonormality_error().is_some(), config.method.has_rotation());
    }
    // Wu et al. 2024: 32 layers, rank 8, hidden size 4096
    let config = InterventionConfig::new(Method::Loreft, 8);
    assert_eq!(32 * config.trainable_parameters(4096), 2_097_408);
    Ok(())
}

#[test]
fn impossible_interventions_are_refused() {
    let new = |config| InterventionSet::new(config, 1, D, Device::Cpu);
    for rank in [0, -1, D + 1] {
        let refused = new(InterventionConfig::new(Method::Loreft, rank));
        assert!(matches!(refused, Err(Error::Rank { rank: r, hidden_size: D }) if r == rank));
    }
    let whole_space = new(InterventionConfig::new(Method::Loreft, D));
    let error = whole_space.ok().and_then(|set| set.orthonormality_error());
    assert!(error.is_some_and(|error| error < 1e-5), "{error:?}");
    for dropout in [1.0, -0.1, f64::NAN, f64::INFINITY] {
        let refused =
            new(InterventionConfig { dropout, ..InterventionConfig::new(Method::Loreft, R) });
        assert!(matches!(refused, Err(Error::Dropout(p)) if p.to_bits() == dropout.to_bits()));
    }
    for (refused, what, accepted) in [
        ("lorefd".parse::<Method>().err(), "method", "loreft"),
        ("selu".parse::<Activation>().err(), "act_fn", "linear"),
        ("zero".parse::<Init>().err(), "init", "identity"),
        ("cayley".parse::<MapKind>().err(), "orthonormal map", "householder"),
    ] {
        assert!(
            matches!(&refused, Some(Error::UnknownName { what: w, accepted: a, .. }) if *w == what && a.contains(accepted)),
            "{refused:?}"
        );
    }
}

#[test]
fn hidden_states_of_another_size_are_refused() -> Result<()> {
    let set = set(config(Method::Loreft, Activation::Linear, false))?;
    for shape in [vec![2, D + 1], vec![D, 2], vec![]] {
        let got = shape.last().copied().unwrap_or(0);
        let refused = set.edits(false)[0].intervene(&randn(&shape), &Subspace::Whole);
        assert!(matches!(refused, Err(Error::HiddenSize { expected: D, got: g }) if g == got));
    }
    for index in [R, -1] {
        let refused = Subspace::mask_of(&[0, index], R);
        assert!(matches!(refused, Err(Error::Subspace { index: i, rank: R }) if i == index));
    }
    Ok(())
}

#[test]
fn tensors_that_do_not_belong_to_the_method_are_refused_by_name() -> Result<()> {
    let _alone = seeded(10);
    let config = config(Method::Loreft, Activation::Linear, false);
    let whole = set(config.clone())?.tensors();
    let read = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut tensors: Vec<BTreeMap<String, Tensor>> = whole
            .iter()
            .map(|one| one.iter().map(|(name, t)| (name.clone(), t.copy())).collect())
            .collect();
        change(&mut tensors[1]);
        InterventionSet::from_tensors(config.clone(), D, &tensors, Device::Cpu).err()
    };
    let missing = read(&|t| drop(t.remove("rotation")));
    assert!(
        matches!(missing, Some(Error::MissingTensor { name, method: "loreft" }) if name == "1.rotation")
    );
    let surplus = read(&|t| drop(t.insert("proj_layer.bias".into(), randn(&[R]))));
    assert!(
        matches!(surplus, Some(Error::UnexpectedTensor { name, method: "loreft" }) if name == "1.proj_layer.bias")
    );
    let turned = read(&|t| drop(t.insert("rotation".into(), randn(&[R, D]))));
    assert!(matches!(
        turned,
        Some(Error::Shape { name, expected, got }) if name == "1.rotation" && expected == [D, R] && got == [R, D]
    ));
    let skew = read(&|t| drop(t.insert("rotation".into(), randn(&[D, R]))));
    assert!(matches!(skew, Some(Error::NotOrthonormal { error, .. }) if error > 1.0));
    Ok(())
}

#[test]
fn states_that_do_not_fit_are_refused_and_change_nothing() -> Result<()> {
    let _alone = seeded(11);
    let set = set(config(Method::Loreft, Activation::Linear, false))?;
    let before = set.state();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
        let mut state: BTreeMap<String, Tensor> =
            before.iter().map(|(name, t)| (name.clone(), t + 1.0)).collect();
        change(&mut state);
        let refused = set.load_state(&state).err();
        assert!(
            set.state().iter().all(|(name, t)| t.equal(&before[name])),
            "half of a state was taken over"
        );
        refused
    };
    let missing = refused(&|s| drop(s.remove("learned_source.bias")));
    assert!(
        matches!(missing, Some(Error::MissingTensor { name, .. }) if name == "learned_source.bias")
    );
    let surplus = refused(&|s| drop(s.insert("step".into(), randn(&[1]))));
    assert!(matches!(surplus, Some(Error::UnexpectedTensor { name, .. }) if name == "step"));
    let misshapen =
        refused(&|s| drop(s.insert("learned_source.weight".into(), randn(&[2, R, D + 1]))));
    assert!(
        matches!(misshapen, Some(Error::Shape { name, .. }) if name == "learned_source.weight")
    );
    for (constant, shape) in [
        ("base_reflections", vec![2, D + 1, R]),
        ("base_reflections", vec![3, D, R]),
        ("base_reflections", vec![2, D]),
        ("base_signs", vec![2, R + 1]),
        ("base_signs", vec![R]),
    ] {
        let broken = refused(&|s| drop(s.insert(format!("rotation.{constant}"), randn(&shape))));
        assert!(matches!(&broken, Some(Error::Shape { .. })), "{constant} {shape:?}: {broken:?}");
    }
    Ok(())
}
