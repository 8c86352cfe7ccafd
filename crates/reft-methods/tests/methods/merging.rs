//! Merged weights compute the same as base model and adapter.

use reft_methods::{
    AdapterSummary, Error, METHODS, Merging, MethodOptions, declaration, export_model,
    merge_adapter,
};
use reft_models::{Decoder, Model, PaddingSide, weights_facts};
use tch::{Device, Kind, Tensor};

use crate::declarations::small;
use crate::files::{copy_of, edit_tensors};
use crate::oracle::{
    Outcome, assert_close, base_logits, difference, disturb, load_adapter, logits, loss, model,
    new_adapter, path, tiny_examples, tiny_llama,
};
use crate::peft::Case;

/// Merged and unmerged are sums in another order, f32 with |logits| up to 10: measured 8e-6.
pub const MERGED: f64 = 5e-5;

#[test]
fn merged_equals_unmerged() -> Outcome {
    for case in Case::all()? {
        let method = declaration(&AdapterSummary::read(&path(&case.name))?.method)?;
        if method.merging != Merging::IntoWeights {
            continue;
        }
        let (decoder, examples) = (model(case.model())?, case.examples()?);
        let adapter = load_adapter(&path(&case.name), &decoder)?;
        let base = base_logits(&decoder, &examples)?;
        let unmerged = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        merge_adapter(&path(&case.name), &decoder)?;
        let merged = base_logits(&decoder, &examples)?;
        for (merged, unmerged) in merged.iter().zip(&unmerged) {
            assert_close(&case.name, merged, unmerged, MERGED);
        }
        assert!(difference(&merged, &base) > 0.1, "{}: merging changes nothing", case.name);
    }
    Ok(())
}

#[test]
fn a_merged_model_is_a_model_directory() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    merge_adapter(&path("peft/lora_all"), &decoder)?;
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("merged");
    export_model(&decoder, &path("tiny_llama"), &output, &[], u64::MAX)?;
    let again = Decoder::open(&output, Kind::Float, Device::Cpu)?;
    let merged = base_logits(&decoder, &examples)?;
    let found = base_logits(&again, &examples)?;
    assert_eq!(difference(&merged, &found), 0.0);
    assert!(output.join("generation_config.json").is_file());
    let shards = dir.path().join("shards");
    export_model(&decoder, &path("tiny_llama"), &shards, &[("made", "here".into())], 100_000)?;
    let again = Decoder::open(&shards, Kind::Float, Device::Cpu)?;
    assert_eq!(difference(&merged, &base_logits(&again, &examples)?), 0.0);
    let sizes = std::fs::read_dir(&shards)?.flatten().map(|file| Ok(file.metadata()?.len()));
    let sizes: Vec<u64> = sizes.collect::<std::io::Result<_>>()?;
    assert!(sizes.len() > 7 && sizes.iter().all(|size| *size < 103_000), "{sizes:?}"); // and headers
    assert_eq!(weights_facts(&shards)?["made"], "here");
    assert!(
        export_model(&decoder, &path("tiny_llama"), &output, &[], u64::MAX).is_err(),
        "overwrites a model"
    );
    Ok(())
}

/// `declarations.rs` checks which single methods can be merged.
#[test]
fn several_adapters_are_not_merged_at_once() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    new_adapter("loreft+lora", &MethodOptions::default(), &decoder)?.save(dir.path())?;
    let refused = merge_adapter(dir.path(), &decoder);
    let Err(Error::NotMergeable { what, accepted, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(what, "loreft+lora");
    let named: Vec<&str> = accepted.split(", ").flat_map(|names| names.split(" and ")).collect();
    for method in METHODS {
        let can = method.merging == Merging::IntoWeights;
        assert_eq!(named.contains(&method.name), can, "{}: {accepted}", method.name);
    }
    merge_adapter(&dir.path().join("1-lora"), &decoder)?;
    Ok(())
}

#[test]
fn numbers_that_are_none_are_not_merged() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = copy_of("peft/lora_qv")?;
    edit_tensors(dir.path(), |tensors| {
        let name = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight";
        let infinite = Tensor::full([4, 64], f64::INFINITY, (Kind::Float, Device::Cpu));
        tensors.insert(name.into(), infinite);
    })?;
    let refused = merge_adapter(dir.path(), &decoder);
    assert!(
        matches!(&refused, Err(Error::NotFinite { name }) if name == "model.layers.2.self_attn.q_proj.weight"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn merging_in_half_precision_rounds_once() -> Outcome {
    let half = Decoder::open(&path("tiny_llama"), Kind::BFloat16, Device::Cpu)?;
    let weight = |decoder: &Decoder| {
        let mut weights = decoder.weights().into_iter();
        let found = weights.find(|(name, _)| name == "model.layers.1.self_attn.v_proj.weight");
        found.map(|(_, weight)| weight.dense().to_kind(Kind::Float).copy()).ok_or("no such weight")
    };
    let adapter = load_adapter(&path("peft/lora_qv"), &half)?;
    let before = weight(&half)?;
    let state = adapter.state();
    let tensor = |ab: &str| {
        &state[&format!("base_model.model.model.layers.1.self_attn.v_proj.lora_{ab}.weight")]
    };
    merge_adapter(&path("peft/lora_qv"), &half)?;
    let expected = before + tensor("B").matmul(tensor("A")) * 2.0; // alpha 8, rank 4
    let expected = expected.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    assert_close("v_proj", &weight(&half)?, &expected, 0.0);
    Ok(())
}

#[test]
fn a_bf16_model_with_lora_computes_in_bf16_and_trains_in_f32() -> Outcome {
    let half = Decoder::open(&path("tiny_llama"), Kind::BFloat16, Device::Cpu)?;
    let examples = tiny_examples()?;
    for declaration in METHODS.iter().filter(|declaration| declaration.name != "full") {
        let method = declaration.name;
        let adapter = new_adapter(method, &small(declaration), &half)?;
        disturb(&adapter, 3);
        loss(&half, &adapter, &examples)?.backward();
        for parameter in adapter.parameters() {
            assert_eq!(parameter.tensor.kind(), Kind::Float, "{method}: {}", parameter.name);
            let grad = parameter.tensor.grad();
            assert!(grad.defined() && grad.isfinite().all().int64_value(&[]) == 1, "{method}");
        }
    }
    Ok(())
}
