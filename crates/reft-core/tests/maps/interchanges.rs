//! Properties of interchange interventions, their gates and the edits without a source, independent of a model.

use crate::seeded;
use reft_core::{
    AlignmentMethod, AlignmentSet, Annealing, ConstantEdit, Error, GateKind, Interchange,
    Intervention, MapKind, PrincipalComponents, Subspace, SubspaceInterchange, VanillaInterchange,
    boundary_gate, orthonormality_error, random_columns, sigmoid_gate,
};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn randn(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, F32)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double)).abs().max().double_value(&[])
}

fn subspace(d: i64, r: i64) -> SubspaceInterchange {
    SubspaceInterchange::new(&random_columns(1, d, r, Device::Cpu).select(0, 0)).unwrap()
}

#[test]
fn coordinates_inside_are_the_source_s_and_all_else_is_the_base_s() {
    let _turn = seeded(1);
    let (base, source) = (randn(&[3, 5, 40]), randn(&[3, 5, 40]));
    let interchange = subspace(40, 7);
    let columns = interchange.columns();
    let edited = interchange.intervene(&base, &source).unwrap();
    let outside = |h: &Tensor| h - h.matmul(columns).matmul(&columns.tr());
    // f32 products of length 40 of numbers up to 4; measured 2e-6
    assert!(largest_difference(&edited.matmul(columns), &source.matmul(columns)) < 1e-5);
    assert!(largest_difference(&outside(&edited), &outside(&base)) < 1e-5);
    assert!(largest_difference(&edited, &base) > 0.5, "the test has no power");
}

#[test]
fn a_source_that_is_the_base_gives_the_base_to_the_last_bit() {
    let _turn = seeded(2);
    for kind in [Kind::Float, Kind::BFloat16] {
        let base = randn(&[4, 24]).to_kind(kind);
        let gated = subspace(24, 24).with_gate(randn(&[24]).sigmoid()).unwrap();
        let interchanges: [&dyn Interchange; 3] =
            [&VanillaInterchange::new(24), &subspace(24, 5), &gated];
        for interchange in interchanges {
            let edited = interchange.intervene(&base, &base).unwrap();
            assert_eq!(edited.kind(), kind);
            assert_eq!(edited, base, "{interchange:?}");
        }
    }
}

#[test]
fn all_coordinates_are_a_vanilla_interchange() {
    let _turn = seeded(3);
    let (base, source) = (randn(&[6, 32]), randn(&[6, 32]));
    let vanilla = VanillaInterchange::new(32).intervene(&base, &source).unwrap();
    assert_eq!(vanilla, source);
    let edited = subspace(32, 32).intervene(&base, &source).unwrap();
    // a rotation there and back in f32; measured 1e-6
    assert!(largest_difference(&edited, &vanilla) < 1e-5);
    let neurons = SubspaceInterchange::neurons(32, 0..32, Device::Cpu).unwrap();
    let edited = neurons.intervene(&base, &source).unwrap();
    assert!(largest_difference(&edited, &vanilla) < 1e-6); // b + (s − b): one rounding
}

#[test]
fn the_first_coordinates_of_a_rotation_are_a_gate_that_is_open_on_them() {
    let _turn = seeded(4);
    let (base, source) = (randn(&[6, 16]), randn(&[6, 16]));
    let whole = subspace(16, 16);
    let first = whole.coordinates(0..5).unwrap();
    let gate = Tensor::arange(16, F32).lt(5.0).to_kind(Kind::Float);
    let gated = SubspaceInterchange::new(whole.columns()).unwrap().with_gate(gate).unwrap();
    let [first, gated] = [first, gated].map(|i| i.intervene(&base, &source).unwrap());
    assert!(largest_difference(&first, &gated) < 1e-5); // the same f32 sums and zeros
    let last = whole.coordinates(5..16).unwrap().intervene(&base, &source).unwrap();
    // the rest of the change after the first five coordinates: f32 sums
    assert!(largest_difference(&(&last - &base), &(&source - &first)) < 1e-5);
    // a half open gate goes half of the way
    let half = SubspaceInterchange::new(whole.columns()).unwrap();
    let half = half.with_gate(Tensor::ones([16], F32) * 0.5).unwrap();
    let half = half.intervene(&base, &source).unwrap();
    assert!(largest_difference(&half, &((base + source) / 2.0)) < 1e-5);
}

#[test]
fn neurons_are_swapped_and_their_neighbours_are_not() {
    let _turn = seeded(5);
    let (base, source) = (randn(&[2, 9]), randn(&[2, 9]));
    let neurons = SubspaceInterchange::neurons(9, 2..5, Device::Cpu).unwrap();
    let edited = neurons.intervene(&base, &source).unwrap();
    assert_eq!(edited.narrow(1, 0, 2), base.narrow(1, 0, 2));
    assert_eq!(edited.narrow(1, 5, 4), base.narrow(1, 5, 4));
    let swapped = edited.narrow(1, 2, 3);
    assert!(largest_difference(&swapped, &source.narrow(1, 2, 3)) < 1e-6); // b + (s − b)
}

/// Expected values computed in f64 from the formulas.
#[test]
fn gates_are_those_of_the_formulas() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let (boundary, temperature) = (0.3, 1.7);
    let found =
        boundary_gate(&Tensor::from(boundary as f32), &Tensor::from(temperature as f32), 11);
    for i in 0..11 {
        let x = i as f64;
        let expected = sigmoid(x / temperature) * sigmoid((boundary * 11.0 - x) / temperature);
        assert!((found.double_value(&[i]) - expected).abs() < 1e-6, "{i}"); // f32 of numbers up to 1
    }
    let masks = [-2.0f32, 0.0, 0.7];
    let found = sigmoid_gate(&Tensor::from_slice(&masks), &Tensor::from(temperature as f32));
    for (i, mask) in masks.into_iter().enumerate() {
        let expected = sigmoid(f64::from(mask) / temperature);
        assert!((found.double_value(&[i as i64]) - expected).abs() < 1e-6);
    }
    let annealing = Annealing::default();
    assert_eq!([annealing.at(0.0), annealing.at(1.0)], [50.0, 0.1]);
    assert!((annealing.at(0.5) - 25.05).abs() < 1e-12);
}

#[test]
fn principal_components_find_the_directions_that_data_was_made_along() {
    let _turn = seeded(6);
    let directions = random_columns(1, 12, 3, Device::Cpu).select(0, 0); // [12, 3]
    let scales = Tensor::from_slice(&[5f32, 2.0, 0.5]);
    let mean = randn(&[12]) * 10.0;
    let data = (randn(&[4000, 3]) * &scales).matmul(&directions.tr()) + &mean;
    let components = PrincipalComponents::of(&data).unwrap();
    let found = components.first(3).unwrap();
    assert!(orthonormality_error(&found) < 1e-5);
    let cosines = found.tr().matmul(&directions).abs();
    for i in 0..3 {
        // 4000 draws: sampling mixes directions by about 1/√4000 times a ratio of scales under 1
        assert!(cosines.double_value(&[i, i]) > 0.998, "{cosines}");
        let deviation = components.variance().double_value(&[i]).sqrt();
        let expected = scales.double_value(&[i]);
        assert!((deviation / expected - 1.0).abs() < 0.05, "{deviation} is not {expected}"); // ± 1/√8000, four times over
    }
    assert!(
        largest_difference(
            components.mean(),
            &data.mean_dim([0i64].as_slice(), false, Kind::Float)
        ) < 1e-4
    ); // f32 sums of 4000 numbers up to 30
    assert!(matches!(components.first(13), Err(Error::Rank { rank: 13, hidden_size: 12 })));
    assert!(PrincipalComponents::of(&randn(&[1, 12])).is_err());
    // three points determine only two components
    assert!(PrincipalComponents::of(&randn(&[3, 12])).unwrap().first(3).is_err());
}

#[test]
fn edits_without_a_source_zero_replace_and_add() {
    let _turn = seeded(7);
    let (base, vector) = (randn(&[3, 8]), randn(&[8]));
    let mask = Subspace::Masked(Subspace::mask_of(&[1, 4], 8).unwrap());
    let zero = ConstantEdit::zero(8, Device::Cpu);
    assert_eq!(zero.intervene(&base, &Subspace::Whole).unwrap(), base.zeros_like());
    let replaced = ConstantEdit::replacing_with(&vector).unwrap();
    assert_eq!(replaced.intervene(&base, &Subspace::Whole).unwrap(), vector.expand_as(&base));
    let part = replaced.intervene(&base, &mask).unwrap();
    for i in 0..8 {
        let expected = if i == 1 || i == 4 {
            vector.narrow(0, i, 1).expand([3], false)
        } else {
            base.select(1, i)
        };
        assert!(largest_difference(&part.select(1, i), &expected) < 1e-6); // h + (v − h)
    }
    let added = ConstantEdit::adding(&vector).unwrap();
    assert_eq!(added.intervene(&base, &Subspace::Whole).unwrap(), &base + &vector);
    assert!(matches!(
        added.intervene(&randn(&[3, 7]), &Subspace::Whole),
        Err(Error::HiddenSize { expected: 8, got: 7 })
    ));
}

#[test]
fn what_does_not_fit_is_refused() {
    let interchange = subspace(8, 3);
    let (base, source) = (randn(&[2, 8]), randn(&[3, 8]));
    let refused = interchange.intervene(&base, &source);
    assert!(
        matches!(refused, Err(Error::Shape { expected, got, .. }) if expected == [2, 8] && got == [3, 8])
    );
    let refused = VanillaInterchange::new(8).intervene(&randn(&[2, 9]), &randn(&[2, 9]));
    assert!(matches!(refused, Err(Error::HiddenSize { expected: 8, got: 9 })));
    assert!(matches!(SubspaceInterchange::new(&randn(&[8, 3])), Err(Error::NotOrthonormal { .. })));
    assert!(matches!(
        SubspaceInterchange::new(&randn(&[3, 8])),
        Err(Error::Rank { rank: 8, hidden_size: 3 })
    ));
    assert!(matches!(interchange.coordinates(1..4), Err(Error::Subspace { index: 3, rank: 3 })));
    assert!(matches!(interchange.coordinates(2..2), Err(Error::Rank { rank: 0, .. })));
    assert!(matches!(interchange.with_gate(randn(&[4])), Err(Error::Shape { .. })));
    assert!(matches!(
        SubspaceInterchange::neurons(8, 6..9, Device::Cpu),
        Err(Error::Subspace { index: 8, rank: 8 })
    ));
    for (method, rank) in [
        (AlignmentMethod::Das, 9),
        (AlignmentMethod::Boundless, 7),
        (AlignmentMethod::SigmoidMask, 7),
    ] {
        let refused = AlignmentSet::new(method, MapKind::default(), (1, 8, rank), Device::Cpu);
        assert!(matches!(refused, Err(Error::Rank { hidden_size: 8, .. })));
    }
}

#[test]
fn learned_gates_harden_as_they_cool_and_cost_what_they_open() {
    let _turn = seeded(8);
    let new = |method, rank| {
        AlignmentSet::new(method, MapKind::default(), (2, 20, rank), Device::Cpu).unwrap()
    };
    let boundless = new(AlignmentMethod::Boundless, 20);
    boundless.set_temperature(0.05);
    let soft = boundless.interchanges(GateKind::Soft).remove(0);
    let hard = boundless.interchanges(GateKind::Hard).remove(0);
    // the boundary starts at ½: coordinates 1 … 9 are open, and the formula leaves the first half open at any temperature
    let expected: Vec<f32> =
        (0..20).map(|i| if (1..10).contains(&i) { 1.0 } else { 0.0 }).collect();
    let soft = soft.gate().unwrap();
    assert!(largest_difference(&soft.narrow(0, 1, 9), &Tensor::ones([9], F32)) < 1e-6);
    assert!((soft.double_value(&[0]) - 0.5).abs() < 1e-6 && soft.double_value(&[11]) < 1e-6);
    let hard = hard.gate().unwrap();
    assert_eq!(hard.narrow(0, 1, 9), Tensor::from_slice(&expected).narrow(0, 1, 9));
    assert_eq!(hard.narrow(0, 11, 9), Tensor::zeros([9], F32));
    let penalty = boundless.penalty().unwrap();
    assert!((penalty.double_value(&[]) - 1.0).abs() < 1e-6); // two boundaries at ½
    penalty.backward();
    let gate = boundless.parameters().into_iter().find(|p| p.name == "gate").unwrap();
    assert_eq!(gate.tensor.grad(), Tensor::ones([2], F32));

    let masked = new(AlignmentMethod::SigmoidMask, 20);
    assert!((masked.penalty().unwrap().double_value(&[]) - 1.0).abs() < 1e-6); // σ(0) = ½, twice
    assert_eq!(masked.swapped(), [20, 20]);
    let das = new(AlignmentMethod::Das, 6);
    assert!(das.penalty().is_none() && das.parameters().len() == 1);
    assert_eq!(das.swapped(), [6, 6]);
    assert!(boundless.parameters().iter().chain(&das.parameters()).all(|p| !p.weight_decay));
}

#[test]
fn an_alignment_goes_back_to_a_state_bit_for_bit() {
    let _turn = seeded(9);
    let shape = (3, 10, 10);
    let new = || {
        AlignmentSet::new(AlignmentMethod::SigmoidMask, MapKind::Householder, shape, Device::Cpu)
            .unwrap()
    };
    let (first, second) = (new(), new());
    for parameter in first.parameters() {
        tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&randn(&parameter.tensor.size())));
    }
    let (base, source) = (randn(&[4, 10]), randn(&[4, 10]));
    let edited = |set: &AlignmentSet| {
        let edit = |i: SubspaceInterchange| i.intervene(&base, &source).unwrap();
        Tensor::stack(
            &set.interchanges(GateKind::Soft).into_iter().map(edit).collect::<Vec<_>>(),
            0,
        )
    };
    assert!(largest_difference(&edited(&first), &edited(&second)) > 0.1);
    let mut state = first.state();
    second.load_state(&state).unwrap();
    assert_eq!(edited(&first), edited(&second));
    state.insert("bias".into(), randn(&[1]));
    assert!(
        matches!(second.load_state(&state), Err(Error::UnexpectedTensor { name, .. }) if name == "bias")
    );
    state.remove("bias");
    state.insert("gate".into(), randn(&[3, 9]));
    assert!(matches!(second.load_state(&state), Err(Error::Shape { name, .. }) if name == "gate"));
    state.remove("gate");
    assert!(
        matches!(second.load_state(&state), Err(Error::MissingTensor { name, .. }) if name == "gate")
    );
}
