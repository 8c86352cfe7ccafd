//! `reft export`: a model that computes the same as model and adapter, and adapters in the files of other programs.

use reft_test_support::{assert_values_close, values};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::files::{listing, many_rows, model_copy};
use crate::runs::{args, oracle, run, succeed};

fn logits(dir: &Path, model: &Path, adapter: Option<&Path>) -> Result<Vec<f32>> {
    let (input, output) = (dir.join("in.json"), dir.join("out.safetensors"));
    let rows = r#"{"input_ids": [[5, 9, 14, 77, 3, 21], [1, 2, 3], [99, 4, 17, 60]], "prompt_lengths": [4, 3, 2]}"#;
    fs::write(&input, rows)?;
    let mut all = args!["logits", "--model", model, "--input", input, "--output", output];
    all.extend(adapter.map(|adapter| args!["--adapter", adapter]).unwrap_or_default());
    succeed(all)?;
    Ok(values(&output)?.remove("logits").ok_or("no logits")?.1)
}

fn replies(dir: &Path, model: &Path, adapter: Option<&Path>) -> Result<Value> {
    let input = many_rows(dir, 4)?;
    let mut all = args![
        "generate",
        "--model",
        model,
        "--input",
        input,
        "--max-new-tokens",
        "6",
        "--json",
        "--threads",
        "1"
    ];
    all.extend(adapter.map(|adapter| args!["--adapter", adapter]).unwrap_or_default());
    let json: Value = serde_json::from_str(&succeed(all)?.stdout)?;
    Ok(json["rows"].clone())
}

/// A model directory with more than weights, and an adapter of a method trained on it.
fn trained(dir: &Path, model: &Path, method: &str) -> Result<PathBuf> {
    let (data, adapter) = (many_rows(dir, 8)?, dir.join("adapters").join(method));
    succeed(args![
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output",
        adapter,
        "--method",
        method,
        "--lr",
        "2e-2",
        "--max-steps",
        "12",
        "--threads",
        "1"
    ])?;
    Ok(adapter)
}

#[test]
fn a_merged_model_computes_what_model_and_adapter_do() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model_copy(dir.path())?;
    fs::write(model.join("tokenizer_config.json"), "{\"pad_token\": null}")?;
    fs::write(model.join("chat_template.jinja"), "{{ messages[0].content }}")?;
    let further = "additional_chat_templates/tool_use.jinja";
    fs::create_dir(model.join("additional_chat_templates"))?;
    fs::write(model.join(further), "{{ tools }}")?;
    let base = logits(dir.path(), &model, None)?;
    for method in ["lora", "rslora", "dora", "ia3", "full"] {
        let adapter = trained(dir.path(), &model, method)?;
        let merged = dir.path().join("merged").join(method);
        let mut export =
            args!["export", "--merge", "--model", model, "--adapter", adapter, "--output", merged];
        if method == "lora" {
            export.extend(args!["--shard-size", "200kB"]);
        }
        succeed(export)?;
        let is_whole = merged.join("model.safetensors").is_file();
        assert_eq!(is_whole, method != "lora", "{method}");
        let expected = logits(dir.path(), &model, Some(&adapter))?;
        let found = logits(dir.path(), &merged, None)?;
        // W x + s B A x and (W + s B A) x: the same f32 sums in another order
        assert_values_close(method, &found, &expected, 1e-4);
        let moved = base.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            moved > 0.1,
            "{method}: the adapter changes logits by {moved}, the test has no power"
        );
        assert_eq!(
            replies(dir.path(), &merged, None)?,
            replies(dir.path(), &model, Some(&adapter))?,
            "{method}"
        );
        for file in ["config.json", "tokenizer_config.json", "chat_template.jinja", further] {
            assert_eq!(fs::read(merged.join(file))?, fs::read(model.join(file))?, "{file}");
        }
        let inspected: Value =
            serde_json::from_str(&succeed(args!["inspect", merged, "--json"])?.stdout)?;
        assert_eq!(inspected["type"], "model");
        assert_eq!(inspected["merged"]["adapter"], method);
        assert_eq!(inspected["parameters"], 164_416);
    }
    Ok(())
}

#[test]
fn adapters_that_are_no_change_of_weights_are_refused_with_the_reason() -> Result {
    let dir = tempfile::tempdir()?;
    let model = oracle("tiny_llama");
    let output = dir.path().join("merged");
    for (method, reason) in [
        ("loreft", "it edits hidden states of the prompt"),
        ("prefix", "its keys and values stand before"),
        ("prompt", "its embeddings stand before"),
        ("red", "it scales and shifts hidden states"),
        ("parallel-adapter", "it is an MLP of its own"),
        ("loreft+lora", "it is several adapters"),
    ] {
        let adapter = trained(dir.path(), &model, method)?;
        let refused = run(args![
            "export",
            "--merge",
            "--model",
            model,
            "--adapter",
            adapter,
            "--output",
            output
        ])?;
        assert_eq!(refused.code, Some(1), "{method}");
        let says = format!("holds {method}, which cannot be merged into the weights: {reason}");
        assert!(refused.stderr.contains(&says), "{}", refused.stderr);
        assert!(!output.exists());
    }
    let lora = oracle("peft/lora_qv");
    let into = |model: &Path, output: &Path| {
        run(args!["export", "--merge", "--model", model, "--adapter", lora, "--output", output])
    };
    let other = into(&oracle("families/llama_biases"), &output)?;
    assert_eq!(other.code, Some(1), "another model: {}", other.stdout);
    let not_a_merge =
        run(args!["export", "--model", model, "--adapter", lora, "--output", output])?;
    assert_eq!(not_a_merge.code, Some(2));
    assert!(not_a_merge.stderr.contains("--merge"), "{}", not_a_merge.stderr);
    fs::create_dir(&output)?;
    fs::write(output.join("precious"), "")?;
    let existing = into(&model, &output)?;
    assert!(existing.stderr.contains("exists already"), "{}", existing.stderr);
    assert_eq!(listing(&output)?, [output.join("precious")]);
    Ok(())
}

#[test]
fn adapters_go_to_pyreft_and_to_peft() -> Result {
    let (dir, model) = (tempfile::tempdir()?, oracle("tiny_llama"));
    let adapter = trained(dir.path(), &model, "loreft")?;
    let expected = logits(dir.path(), &model, Some(&adapter))?;
    let [exported, again] = ["exported", "again"].map(|name| dir.path().join(name));
    let told = succeed(args![
        "export",
        "--to",
        "pyreft",
        "--adapter",
        adapter,
        "--output",
        exported,
        "--json"
    ])?;
    let json: Value = serde_json::from_str(&told.stdout)?;
    assert_eq!((&json["form"], &json["method"]), (&"pyreft".into(), &"loreft".into()));
    assert!(told.stderr.contains("do not hold the positions (l1)"), "{}", told.stderr);
    // README.md has the command that imports it again
    let readme = fs::read_to_string(exported.join("README.md"))?;
    let back = "--from pyreft DIR --positions l1 --share-weights --model MODEL";
    assert!(readme.contains(back), "{readme}");
    succeed(args![
        "import",
        "--from",
        "pyreft",
        exported,
        "--positions",
        "l1",
        "--share-weights",
        "--model",
        model,
        "--output",
        again
    ])?;
    assert_values_close("loreft", &logits(dir.path(), &model, Some(&again))?, &expected, 0.0);

    let (lora, exported) = (oracle("peft/lora_qv"), dir.path().join("lora"));
    succeed(args!["export", "--to", "peft", "--adapter", lora, "--output", exported])?;
    assert_eq!(
        logits(dir.path(), &model, Some(&exported))?,
        logits(dir.path(), &model, Some(&lora))?
    );
    for (form, adapter, complaint) in [
        ("pyreft", &lora, "holds lora, which has no place in pyreft's files"),
        ("peft", &adapter, "holds loreft, which has no place in PEFT's files"),
    ] {
        let output = dir.path().join("refused");
        let refused = run(args!["export", "--to", form, "--adapter", adapter, "--output", output])?;
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains(complaint), "{}", refused.stderr);
        assert!(!output.exists());
    }
    let both =
        args!["export", "--to", "peft", "--model", model, "--adapter", lora, "--output", "x"];
    let both = run(both)?;
    assert!(both.stderr.contains("--model belongs to a model"), "{}", both.stderr);
    Ok(())
}

#[test]
fn a_gguf_file_computes_what_model_and_adapter_do() -> Result {
    let (dir, model) = (tempfile::tempdir()?, oracle("tiny_llama"));
    let lora = oracle("peft/lora_qv");
    let [plain, merged, packed] =
        ["plain.gguf", "merged.gguf", "packed.gguf"].map(|n| dir.path().join(n));
    let gguf = |output: &Path, further: &[&str]| {
        let mut all = args!["export", "--to", "gguf", "--model", model, "--output", output];
        all.extend(further.iter().map(Into::into));
        run(all)
    };
    let told = gguf(&plain, &["--json"])?;
    let json: Value = serde_json::from_str(&told.stdout)?;
    assert_eq!((&json["form"], &json["kind"]), (&"gguf".into(), &"f32".into()));
    assert!(told.stderr.contains("no tokenizer.json"), "{}", told.stderr);
    let base = logits(dir.path(), &model, None)?;
    assert_eq!(logits(dir.path(), &plain, None)?, base);
    let adapter = lora.to_str().ok_or("no text")?;
    let expected = logits(dir.path(), &model, Some(&lora))?;
    assert_eq!(gguf(&merged, &["--merge", "--adapter", adapter])?.code, Some(0));
    assert_values_close("merged", &logits(dir.path(), &merged, None)?, &expected, 1e-4);
    assert_eq!(gguf(&packed, &["--merge", "--adapter", adapter, "--kind", "q8_0"])?.code, Some(0));
    assert_values_close("packed", &logits(dir.path(), &packed, None)?, &expected, 0.5);
    let inspected = succeed(args!["inspect", packed, "--json"])?.stdout;
    let inspected: Value = serde_json::from_str(&inspected)?;
    assert_eq!(inspected["tensors"], serde_json::json!({"F32": 9, "Q8_0": 30}));
    for (further, complaint) in [
        (&["--adapter", adapter][..], "--merge is missing"),
        (&["--merge"], "--adapter is missing"),
        (&["--shard-size", "1GB"], "--shard-size belongs to a directory"),
    ] {
        let refused = gguf(&dir.path().join("x.gguf"), further)?;
        assert_eq!(refused.code, Some(1), "{}", refused.stdout);
        assert!(refused.stderr.contains(complaint), "{}", refused.stderr);
    }
    let other = gguf(&dir.path().join("x"), &[])?;
    assert!(other.stderr.contains("a name that ends in .gguf"), "{}", other.stderr);
    let kind = run(args![
        "export",
        "--merge",
        "--model",
        model,
        "--adapter",
        lora,
        "--kind",
        "q8_0",
        "--output",
        "x"
    ])?;
    assert!(kind.stderr.contains("--kind q8_0 belongs to --to gguf"), "{}", kind.stderr);
    Ok(())
}
