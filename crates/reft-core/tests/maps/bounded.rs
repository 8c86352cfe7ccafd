//! The bound of an edit against torch in float64: tests/oracle/bounded, tools/oracle/make_bounded.py.

use std::collections::BTreeMap;

use reft_core::{Error, Intervention, InterventionConfig, InterventionSet, Method, Subspace};
use serde_json::{Value, from_value};
use tch::{Device, Kind, Tensor};

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn tensor(rows: &Value) -> Result<Tensor, Box<dyn std::error::Error>> {
    if rows[0].is_number() {
        return Ok(Tensor::from_slice(&from_value::<Vec<f32>>(rows.clone())?));
    }
    Ok(Tensor::from_slice2(&from_value::<Vec<Vec<f32>>>(rows.clone())?))
}

fn off(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]);
    (found - expected).abs().max().double_value(&[]) / largest
}

#[test]
fn edits_are_no_longer_than_their_bound_and_gradients_know_it() -> TestResult {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/bounded/bounded.json");
    let oracle: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let (h, rotation) = (tensor(&oracle["h"])?, tensor(&oracle["rotation"])?);
    let tensors = BTreeMap::from([
        ("rotation".to_owned(), rotation.shallow_clone()),
        ("learned_source.weight".to_owned(), tensor(&oracle["source"])?),
        ("learned_source.bias".to_owned(), tensor(&oracle["bias"])?),
    ]);
    let mut counts = Vec::new();
    for case in oracle["cases"].as_array().ok_or("cases")? {
        let bound = case["max_edit_norm"].as_f64();
        let config = InterventionConfig {
            max_edit_norm: bound,
            ..InterventionConfig::new(Method::Loreft, 2)
        };
        let own = std::slice::from_ref(&tensors);
        let set = InterventionSet::from_tensors(config, 6, own, Device::Cpu)?.into_trainable()?;
        let h = h.copy().set_requires_grad(true);
        let directions = rotation.unsqueeze(0).copy().set_requires_grad(true);
        let edit = set.edits_along(&directions, false).remove(0);
        let edited = edit.intervene(&h, &Subspace::Whole)?;
        assert!(off(&edited, &tensor(&case["edited"])?) < 1e-6, "{bound:?}"); // f32
        (&edited * tensor(&oracle["weights"])?).sum(Kind::Float).backward();
        let parameters = set.parameters();
        let grad_of = |name: &str| {
            let found = parameters.iter().find(|p| p.name == name).ok_or("no such parameter")?;
            Ok::<_, Box<dyn std::error::Error>>(found.tensor.grad())
        };
        for (name, found) in [
            ("h", h.grad()),
            ("rotation", directions.grad().squeeze_dim(0)),
            ("source", grad_of("learned_source.weight")?.squeeze_dim(0)),
            ("bias", grad_of("learned_source.bias")?.squeeze_dim(0)),
        ] {
            let expected = tensor(&case["gradients"][name])?;
            let off = off(&found, &expected);
            assert!(off < 2e-6, "{bound:?}, gradient of {name}: {off:e}"); // f32
        }
        let norm = |x: &Tensor| x.norm_scalaropt_dim(2.0, [-1i64], false);
        let dose = norm(&(&edited - &h)) / norm(&h);
        let at_the_bound = (dose / bound.unwrap_or(1.0)).gt(1.0 - 1e-5);
        counts.push((at_the_bound.sum(Kind::Int64).int64_value(&[]), case["bounded"].as_i64()));
    }
    assert_eq!(counts, [(5, Some(5)), (4, Some(4)), (3, Some(3)), (0, Some(0))]);
    Ok(())
}

/// An edit at its identity start is 0, where its norm is not differentiable.
#[test]
fn an_edit_that_starts_at_0_has_finite_gradients() -> TestResult {
    let _seeded = crate::seeded(3);
    let config = InterventionConfig {
        max_edit_norm: Some(0.1),
        ..InterventionConfig::new(Method::Loreft, 2)
    };
    let set = InterventionSet::new(config, 1, 6, Device::Cpu)?;
    let h = Tensor::randn([4, 6], (Kind::Float, Device::Cpu));
    let edited = set.edits(true).remove(0).intervene(&h, &Subspace::Whole)?;
    assert!(off(&edited, &h) < 1e-6);
    edited.square().sum(Kind::Float).backward();
    for parameter in set.parameters() {
        let gradient = parameter.tensor.grad();
        assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{}", parameter.name);
        let largest = gradient.abs().max().double_value(&[]);
        assert!(largest > 1e-3 || parameter.name.contains("raw"), "{}: {largest}", parameter.name);
    }
    Ok(())
}

#[test]
fn a_bound_is_a_number_above_0() {
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = InterventionConfig {
            max_edit_norm: Some(bad),
            ..InterventionConfig::new(Method::Loreft, 2)
        };
        assert!(matches!(config.check(6), Err(Error::EditNorm(_))), "{bad}");
    }
}
