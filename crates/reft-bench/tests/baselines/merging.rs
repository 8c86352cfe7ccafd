//! Merged weights compute what base model and adapter do.

use reft_bench::{
    Error, LoraAdapter, MethodOptions, export_model, load_adapter, merge_adapter, merge_lora,
    new_adapter,
};
use reft_models::{Adapter, Decoder, PaddingSide};
use tch::{Device, Kind, Tensor};

use crate::oracle::{
    Outcome, assert_close, base_logits, difference, disturb, logits, model, path, tiny_examples,
    tiny_llama,
};

#[test]
fn merged_equals_unmerged() -> Outcome {
    let cases =
        ["peft/lora_qv", "peft/lora_all", "peft_more/dora", "peft_more/rslora", "peft_more/ia3"];
    let biased = ["peft_more/dora_bias", "peft_more/ia3_bias"];
    for case in cases.into_iter().chain(biased) {
        let name = if biased.contains(&case) { "families/llama_biases" } else { "tiny_llama" };
        let decoder = model(name)?;
        let mut examples = tiny_examples()?;
        for example in &mut examples {
            example.row.input_ids.iter_mut().for_each(|id| *id %= decoder.config().vocab_size);
        }
        let adapter = load_adapter(&path(case), &decoder)?;
        let base = base_logits(&decoder, &examples)?;
        let unmerged = logits(&decoder, &*adapter, &examples, PaddingSide::Right)?;
        merge_adapter(&path(case), &decoder)?;
        let merged = base_logits(&decoder, &examples)?;
        for (merged, unmerged) in merged.iter().zip(&unmerged) {
            // W x + s B A x and (W + s B A) x in f32, |logits| up to 10: measured 8e-6
            assert_close(case, merged, unmerged, 5e-5);
        }
        assert!(difference(&merged, &base) > 0.1, "{case}: merging changes nothing");
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
    export_model(&decoder, &path("tiny_llama"), &output, &[])?;
    let again = Decoder::open(&output, Kind::Float, Device::Cpu)?;
    let merged = base_logits(&decoder, &examples)?;
    let found = base_logits(&again, &examples)?;
    assert_eq!(difference(&merged, &found), 0.0);
    assert!(output.join("generation_config.json").is_file());
    assert!(
        export_model(&decoder, &path("tiny_llama"), &output, &[]).is_err(),
        "overwrites a model"
    );
    Ok(())
}

#[test]
fn methods_that_are_no_change_of_weights_are_refused() -> Outcome {
    for method in ["prefix", "prompt", "red", "series-adapter", "loreft", "loreft+lora"] {
        let decoder = tiny_llama()?;
        let dir = tempfile::tempdir()?;
        new_adapter(method, &MethodOptions::default(), &decoder, "")?.save(dir.path())?;
        let refused = merge_adapter(dir.path(), &decoder);
        assert!(
            matches!(&refused, Err(Error::NotMergeable { what, .. }) if what == method),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn numbers_that_are_none_are_not_merged() -> Outcome {
    let decoder = tiny_llama()?;
    let mut adapter = LoraAdapter::load(&path("peft/lora_qv"), &decoder)?;
    let mut state = adapter.state();
    let name = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight";
    state.insert(name.into(), Tensor::full([4, 64], f64::INFINITY, (Kind::Float, Device::Cpu)));
    adapter.load_state(&state)?;
    let refused = merge_lora(&decoder, &adapter);
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
    let adapter = LoraAdapter::load(&path("peft/lora_qv"), &half)?;
    let before = weight(&half)?;
    let state = adapter.state();
    let tensor = |ab: &str| {
        &state[&format!("base_model.model.model.layers.1.self_attn.v_proj.lora_{ab}.weight")]
    };
    merge_lora(&half, &adapter)?;
    let expected = before + tensor("B").matmul(tensor("A")) * 2.0; // alpha 8, rank 4
    let expected = expected.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    assert_close("v_proj", &weight(&half)?, &expected, 0.0);
    Ok(())
}

#[test]
fn a_bf16_model_with_lora_computes_in_bf16_and_trains_in_f32() -> Outcome {
    let half = Decoder::open(&path("tiny_llama"), Kind::BFloat16, Device::Cpu)?;
    let examples = tiny_examples()?;
    for method in reft_bench::method_names().into_iter().filter(|method| *method != "full") {
        let adapter = new_adapter(method, &MethodOptions::default(), &half, "")?;
        disturb(&*adapter, 3);
        let found = crate::oracle::loss(&half, &*adapter, &examples)?;
        found.backward();
        for parameter in adapter.parameters() {
            assert_eq!(parameter.tensor.kind(), Kind::Float, "{method}: {}", parameter.name);
            let grad = parameter.tensor.grad();
            assert!(grad.defined() && grad.isfinite().all().int64_value(&[]) == 1, "{method}");
        }
    }
    Ok(())
}
