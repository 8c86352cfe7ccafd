//! Families other than Llama on the command line: inspected, planned, merged and exported.

use crate::Result;
use crate::runs::{args, oracle, run, succeed};
use reft_test_support::{assert_values_close, values};

#[test]
fn inspect_says_what_a_model_does_otherwise_than_llama() -> Result {
    for (family, parts) in [
        ("tiny_llama", &["unlike Llama  nothing"][..]),
        ("more_families/gemma2", &["norms with 1 + w", "scores capped at 4", "logits capped at 3"]),
        ("more_families/gemma3_images", &["gemma3_text", "a window of 5 tokens in 2 layers"]),
        ("more_families/smollm3", &["2 layers without RoPE"]),
        ("more_families/granite", &["branches times 0.6", "logits over 0.7"]),
        ("more_families/olmo2", &["norms behind the branches", "normalised as a whole"]),
        ("more_families/phi3_longrope", &["qkv_proj", "longrope on 18 of 24 coordinates"]),
        ("more_families/ministral3", &["queries that grow with their position", "yarn"]),
    ] {
        let said = succeed(args!["inspect", oracle(family)])?.stdout;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            let part = part.replace("  ", " ");
            assert!(said.contains(&part), "{family}: {part} is not in {said}");
        }
    }
    Ok(())
}

#[test]
fn steps_of_every_family_are_planned_and_timed() -> Result {
    for family in ["gemma2", "gemma3_images", "granite", "olmo3", "phi3_longrope", "ministral3"] {
        let config = oracle("more_families").join(family).join("config.json");
        let shape = args![
            "--model-config",
            config,
            "--batch-size",
            "2",
            "--prompt-length",
            "8",
            "--response-length",
            "4"
        ];
        let plan = args!["plan", "--tflops", "1", "--method", "loreft", "--json"];
        succeed([plan, shape.clone()].concat())?;
        let bench = args!["bench", "--random-weights", "--steps", "1", "--rounds", "1", "--json"];
        succeed([bench, args!["--methods", "floor,loreft,lora,ia3,full"], shape].concat())?;
    }
    Ok(())
}

/// A model with a LoRA merged into it gives the logits of the model with the LoRA beside it.
#[test]
fn a_merged_model_of_a_family_gives_the_same_logits() -> Result {
    let dir = tempfile::tempdir()?;
    let input = dir.path().join("input.json");
    std::fs::write(&input, r#"{"input_ids": [[5, 9, 31, 7, 40, 12, 3, 8, 50, 21], [4, 6, 8]]}"#)?;
    for family in ["phi3", "gemma3", "granite"] {
        let model = oracle("more_families").join(family);
        let (merged, adapter) = (dir.path().join(family), model.join("lora"));
        succeed(args![
            "export",
            "--merge",
            "--model",
            &model,
            "--adapter",
            &adapter,
            "--output",
            &merged
        ])?;
        let logits = |model: &std::path::Path, more: &[std::ffi::OsString]| -> Result<Vec<f32>> {
            let output = dir.path().join("logits.safetensors");
            let command = args!["logits", "--model", model, "--input", &input, "--output", &output];
            succeed([command, more.to_vec()].concat())?;
            Ok(values(&output)?["logits"].1.clone())
        };
        let adapted = logits(&model, &args!["--adapter", adapter])?;
        let base = logits(&model, &[])?;
        let off = adapted.iter().zip(&base).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off > 0.1, "{family}: the LoRA changes nothing");
        // W + s B A is rounded once
        assert_values_close(family, &logits(&merged, &[])?, &adapted, 1e-4);
    }
    Ok(())
}

#[test]
fn projections_that_a_family_lacks_are_told_with_those_it_has() -> Result {
    let dir = tempfile::tempdir()?;
    let data = crate::files::training_rows(dir.path())?;
    let output = run(args![
        "train",
        "--model",
        oracle("more_families/phi3"),
        "--data",
        data,
        "--output",
        dir.path().join("run"),
        "--method",
        "lora",
        "--target-modules",
        "q_proj"
    ])?;
    let said = output.stderr;
    assert!(said.contains("q_proj"), "{said}");
    assert!(said.contains("qkv_proj, o_proj, gate_up_proj, down_proj"), "{said}");
    Ok(())
}
