//! Joined adapters compute the same as a stack of them.

use std::path::{Path, PathBuf};

use reft_methods::{
    AdapterFiles, AdapterSummary, COMPONENT, Error, JoinOptions, JoinPart, Joined, Joining, LAYERS,
    METHODS, MethodDeclaration, MethodOptions, POSITIONS, RANK, SHARE_WEIGHTS, join_adapters,
};
use reft_models::{AdapterStack, Decoder, Model, PaddingSide, StackEntry};
use serde_json::json;
use tch::Tensor;

use crate::declarations::small;
use crate::oracle::{
    Outcome, assert_close, base_logits, difference, disturb, json, load_adapter, logits, model,
    new_adapter, path, tensors, tiny_examples, tiny_llama,
};

/// The same sums in another order, f32 with |logits| up to 10, relative to them.
const JOINED: f64 = 1e-5;

/// The adapters of a test, which are joined.
struct Joint {
    dir: tempfile::TempDir,
    model: Decoder,
    parts: Vec<JoinPart>,
}

impl Joint {
    fn on(model: Decoder) -> Outcome<Self> {
        Ok(Self { dir: tempfile::tempdir()?, model, parts: Vec::new() })
    }

    /// Adds a new adapter that is away from its start.
    fn add(&mut self, method: &str, options: &MethodOptions, strength: f64) -> Outcome {
        let seed = self.parts.len() as i64 + 7;
        tch::manual_seed(seed);
        let stack = new_adapter(method, options, &self.model)?;
        disturb(&stack, seed);
        let directory = self.dir.path().join(format!("{method}-{seed}"));
        std::fs::create_dir(&directory)?;
        stack.save(&directory)?;
        self.parts.push(JoinPart { directory, strength });
        Ok(())
    }

    fn join(&self, svd_rank: Option<i64>) -> Outcome<(Joined, PathBuf)> {
        let output = tempfile::tempdir_in(self.dir.path())?.keep();
        let options = JoinOptions { svd_rank, model: Some(&self.model) };
        Ok((join_adapters(&self.parts, options, &output)?, output))
    }

    fn logits(&self, stack: &AdapterStack) -> Outcome<Vec<Tensor>> {
        logits(&self.model, stack, &tiny_examples()?, PaddingSide::Right)
    }

    /// The logits of the stack of all parts; each part must change them.
    fn stacked(&self) -> Outcome<Vec<Tensor>> {
        let mut entries = Vec::new();
        for JoinPart { directory, strength } in &self.parts {
            let loaded = load_adapter(directory, &self.model)?;
            let own = loaded.entries().iter();
            entries.extend(own.map(|own| StackEntry { strength: *strength, ..own.clone() }));
        }
        let found = self.logits(&AdapterStack::new(entries.clone())?)?;
        for i in 0..entries.len() {
            let mut others = entries.clone();
            others.remove(i);
            let others = self.logits(&AdapterStack::new(others)?)?;
            assert!(difference(&found, &others) > 1e-2, "adapter {i} counts for nothing");
        }
        Ok(found)
    }

    /// Joins, and compares with the stack.
    #[track_caller]
    fn check(&self, what: &str) -> Outcome<(Joined, PathBuf)> {
        let (joined, output) = self.join(None)?;
        let found = self.logits(&load_adapter(&output, &self.model)?)?;
        for (i, (found, expected)) in found.iter().zip(self.stacked()?).enumerate() {
            let most = expected.abs().max().double_value(&[]);
            assert_close(&format!("{what}: row {i}"), found, &expected, JOINED * most);
        }
        let summary = AdapterSummary::read(&output)?;
        assert_eq!((&summary.method, summary.parameters), (&joined.method, joined.parameters));
        Ok((joined, output))
    }
}

/// A method's options on layers of its own, if it has layers.
fn on_layers(declaration: &MethodDeclaration, layers: &[usize]) -> MethodOptions {
    let has_layers = declaration.options.contains(&&LAYERS);
    let options = small(declaration);
    if has_layers { options.with(&LAYERS, layers.to_vec()) } else { options }
}

#[test]
fn joined_adapters_compute_what_their_stack_does() -> Outcome {
    for declaration in METHODS {
        let Joining::Exactly { .. } = declaration.joining else { continue };
        let name = declaration.name;
        for (first, second, same_place) in
            [([0, 2], [1, 3], false), ([0, 2], [2, 3], true), ([1, 2], [1, 2], true)]
        {
            let mut joint = Joint::on(tiny_llama()?)?;
            joint.add(name, &on_layers(declaration, &first), 1.0)?;
            joint.add(name, &on_layers(declaration, &second), 0.6)?;
            if name == "series-adapter" && same_place {
                let refused = joint.join(None).map_err(|error| error.to_string());
                assert!(
                    refused.as_ref().is_err_and(|text| text
                        .contains("two series adapters stand behind layer 2")
                        || text.contains("two series adapters stand behind layer 1")),
                    "{refused:?}"
                );
                continue;
            }
            joint.check(&format!("{name} on {first:?} and {second:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn methods_of_one_kind_are_joined_with_each_other_at_any_strength() -> Outcome {
    for (methods, expected) in [
        (["lora", "rslora", "lora"], "lora"),
        (["dora", "lora", "dora"], "dora"),
        (["lora", "dora", "rslora"], "dora"),
        (["loreft", "direft", "lobireft"], "loreft"),
        (["direft", "direft", "direft"], "direft"),
        (["noreft", "consreft", "loreft"], "loreft"),
        (["direft-orth", "lobireft", "direft-orth"], "loreft"),
        (["parallel-adapter"; 3], "parallel-adapter"),
    ] {
        let mut joint = Joint::on(tiny_llama()?)?;
        for (i, (method, strength)) in methods.iter().zip([0.7, -0.4, 1.2]).enumerate() {
            let options = small(reft_methods::declaration(method)?);
            let has_rank = reft_methods::options_of(method)?.contains(&&RANK);
            let options = if has_rank { options.with(&RANK, 2 + i as i64) } else { options };
            joint.add(method, &options, strength)?;
        }
        let (joined, _) = joint.check(&methods.join("+"))?;
        assert_eq!(joined.method, expected, "{methods:?}");
    }
    Ok(())
}

#[test]
fn loras_of_other_ranks_and_modules_have_patterns() -> Outcome {
    let mut joint = Joint::on(tiny_llama()?)?;
    let on = |rank: i64, modules: &[&str]| {
        MethodOptions::default()
            .with(&RANK, rank)
            .with(&reft_methods::TARGET_MODULES, json!(modules))
    };
    joint.add("lora", &on(2, &["q_proj", "v_proj"]), 1.0)?;
    joint.add("rslora", &on(5, &["v_proj", "down_proj"]), 1.5)?;
    let (joined, output) = joint.check("patterns")?;
    let config = json(&output.join("adapter_config.json"))?;
    let layers = joint.model.description().num_hidden_layers;
    assert_eq!(config["target_modules"].as_array().map(Vec::len), Some(3 * layers));
    assert_eq!(
        (&config["use_rslora"], &config["r"], &config["lora_alpha"]),
        (&json!(false), &json!(7), &json!(7))
    );
    let pattern = &config["rank_pattern"];
    assert_eq!(pattern["model.layers.1.self_attn.q_proj"], 2);
    assert_eq!(pattern["model.layers.1.mlp.down_proj"], 5);
    assert_eq!(pattern, &config["alpha_pattern"]);
    assert_eq!(pattern.as_object().map(serde_json::Map::len), Some(2 * layers));
    assert!(joined.modules.iter().all(|own| own.kept == 1.0));
    Ok(())
}

/// Oracle: tools/oracle/make_merged_adapters.py.
#[test]
fn loras_become_what_peft_makes_of_them() -> Outcome {
    let cases = json(&path("merged_adapters/merged_adapters.json"))?;
    let expected = tensors("merged_adapters/merged_adapters.safetensors")?;
    for (name, case) in cases.as_object().ok_or("no cases")? {
        let decoder = tiny_llama()?;
        let adapters: Vec<String> = serde_json::from_value(case["adapters"].clone())?;
        let weights: Vec<f64> = serde_json::from_value(case["weights"].clone())?;
        let parts: Vec<JoinPart> = adapters
            .iter()
            .zip(weights)
            .map(|(adapter, strength)| JoinPart { directory: path(adapter), strength })
            .collect();
        let output = tempfile::tempdir()?;
        let options = JoinOptions { svd_rank: case["svd_rank"].as_i64(), model: None };
        join_adapters(&parts, options, output.path())?;
        let found = load_adapter(output.path(), &decoder)?;
        let found = logits(&decoder, &found, &tiny_examples()?, PaddingSide::Right)?;
        for (i, found) in found.iter().enumerate() {
            let expected = expected[name].select(0, i as i64).narrow(0, 0, found.size()[0]);
            let most = expected.abs().max().double_value(&[]);
            // PEFT finds singular vectors in f32: measured 1.03e-5
            let tolerance = if name == "svd" { 3.0 * JOINED } else { JOINED };
            assert_close(&format!("{name}: row {i}"), found, &expected, tolerance * most);
        }
    }
    Ok(())
}

#[test]
fn an_approximation_keeps_what_it_says() -> Outcome {
    let mut joint = Joint::on(tiny_llama()?)?;
    let lora = reft_methods::declaration("lora")?;
    joint.add("lora", &small(lora), 1.0)?;
    joint.add("lora", &small(lora), 0.8)?;
    let expected = joint.stacked()?;
    let mut last = f64::INFINITY;
    for rank in [1, 3, 6, 8, 20] {
        let (joined, output) = joint.join(Some(rank))?;
        let found = joint.logits(&load_adapter(&output, &joint.model)?)?;
        let distance = difference(&found, &expected);
        assert!(distance < last || rank > 8, "rank {rank}: {distance}, before {last}");
        last = distance;
        for own in &joined.modules {
            assert_eq!(own.rank, rank.min(8), "{}", own.module);
            assert_eq!(own.kept > 1.0 - 1e-12, rank >= 8, "{}: {}", own.module, own.kept);
        }
    }
    assert!(last < 1e-3, "{last}");
    Ok(())
}

#[test]
fn first_and_last_tokens_and_layers_go_together() -> Outcome {
    let reft = |layers: &[usize], positions: &str, tied: bool, rank: i64| {
        MethodOptions::default()
            .with(&LAYERS, layers.to_vec())
            .with(&POSITIONS, positions)
            .with(&SHARE_WEIGHTS, tied)
            .with(&RANK, rank)
    };
    for (first, second) in [
        (reft(&[0, 1], "f2", false, 2), reft(&[1, 3], "l1", false, 3)),
        (reft(&[0, 1], "f2+l1", true, 2), reft(&[1, 3], "l1", false, 4)),
        (reft(&[1], "f1+l1", true, 3), reft(&[1, 2], "f1+l1", true, 2)),
    ] {
        let mut joint = Joint::on(tiny_llama()?)?;
        joint.add("loreft", &first, 1.0)?;
        joint.add("loreft", &second, -0.5)?;
        let (joined, output) = joint.check("positions")?;
        let config = json(&output.join("reft_config.json"))?;
        let is_tied = config["share_weights"] == true;
        assert_eq!(is_tied, joined.notes.is_empty(), "{:?}", joined.notes);
    }
    // more coordinates than the hidden state has
    let mut joint = Joint::on(tiny_llama()?)?;
    for _ in 0..2 {
        joint.add("loreft", &reft(&[2], "l2", false, 40), 1.0)?;
    }
    let (_, output) = joint.check("all coordinates")?;
    assert_eq!(json(&output.join("reft_config.json"))?["low_rank_dimension"], 64);
    Ok(())
}

#[test]
fn what_cannot_become_one_is_refused_with_the_reason() -> Outcome {
    let reft = |name: &str| Ok::<_, Error>(small(reft_methods::declaration(name)?));
    let with = |name: &str,
                option: &'static reft_methods::MethodOption,
                value: serde_json::Value|
     -> Outcome<MethodOptions> {
        let mut options = reft(name)?;
        options.set(option, value)?;
        Ok(options)
    };
    let cases: Vec<(&str, MethodOptions, &str, MethodOptions, &str)> = vec![
        ("loreft", reft("loreft")?, "lora", reft("lora")?, "joined with loreft, direft"),
        (
            "loreft",
            with("loreft", &COMPONENT, json!("mlp_output"))?,
            "loreft",
            reft("loreft")?,
            "one component",
        ),
        (
            "loreft",
            with("loreft", &POSITIONS, json!("f2"))?,
            "loreft",
            with("loreft", &POSITIONS, json!("f3"))?,
            "2 and 3 first tokens",
        ),
        (
            "loreft",
            with("loreft", &reft_methods::POSITION_RULE, json!("pyreft"))?,
            "loreft",
            reft("loreft")?,
            "one rule",
        ),
        (
            "direft",
            with("direft", &reft_methods::ACT_FN, json!("relu"))?,
            "direft",
            reft("direft")?,
            "activation relu",
        ),
        (
            "loreft",
            with("loreft", &reft_methods::MAX_EDIT_NORM, json!(0.5))?,
            "loreft",
            reft("loreft")?,
            "edits are bounded",
        ),
        (
            "parallel-adapter",
            with("parallel-adapter", &reft_methods::ACT_FN, json!("gelu"))?,
            "parallel-adapter",
            reft("parallel-adapter")?,
            "activations gelu and relu",
        ),
        ("prefix", reft("prefix")?, "prefix", reft("prefix")?, "no order"),
        ("prompt", reft("prompt")?, "lora", reft("lora")?, "no order"),
        ("full", reft("full")?, "full", reft("full")?, "weights themselves"),
        (
            "loreft+lora",
            MethodOptions::default(),
            "lora",
            reft("lora")?,
            "joined with loreft, direft",
        ),
        ("red", reft("red")?, "ia3", reft("ia3")?, "joined with red only"),
    ];
    for (first, own, second, others, reason) in cases {
        let mut joint = Joint::on(tiny_llama()?)?;
        joint.add(first, &own, 1.0)?;
        joint.add(second, &others, 1.0)?;
        let refused = joint.join(None).map_err(|error| error.to_string());
        assert!(
            refused.as_ref().is_err_and(|text| text.contains(reason)),
            "{first}, {second}: {refused:?}"
        );
    }
    let mut joint = Joint::on(tiny_llama()?)?;
    joint.add("dora", &reft("dora")?, 1.0)?;
    let options = JoinOptions::default();
    let refused =
        join_adapters(&joint.parts, options, joint.dir.path()).map_err(|error| error.to_string());
    assert!(refused.as_ref().is_err_and(|text| text.contains("name the model")), "{refused:?}");
    let refused = joint.join(Some(2)).map_err(|error| error.to_string());
    assert!(
        refused.as_ref().is_err_and(|text| text.contains("is for lora and rslora")),
        "{refused:?}"
    );
    joint.parts[0].strength = f64::NAN;
    let refused = joint.join(None).map_err(|error| error.to_string());
    assert!(refused.as_ref().is_err_and(|text| text.contains("strength is NaN")), "{refused:?}");

    let other = JoinPart { directory: path("peft_more/dora_bias"), strength: 1.0 };
    let wide = model("families/llama_biases")?;
    joint.parts[0].strength = 1.0;
    let parts = [joint.parts[0].clone(), other];
    let options = JoinOptions { svd_rank: None, model: Some(&wide) };
    assert!(join_adapters(&parts, options, joint.dir.path()).is_err(), "of two models");
    Ok(())
}

/// Joining one adapter with a strength builds the strength into it.
#[test]
fn one_adapter_takes_its_strength_into_itself() -> Outcome {
    let mut joint = Joint::on(tiny_llama()?)?;
    joint.add("loreft", &small(reft_methods::declaration("loreft")?), 0.3)?;
    let (_, output) = joint.check("loreft at 0.3")?;
    let files = AdapterFiles::Reft.names();
    for file in files {
        assert!(Path::new(&output).join(file).is_file(), "{file}");
    }
    let base = base_logits(&joint.model, &tiny_examples()?)?;
    assert!(difference(&joint.stacked()?, &base) > 1e-2);
    Ok(())
}
