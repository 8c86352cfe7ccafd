//! `reft train`: the reference's numbers, options, and files written.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::files::{losses, many_rows, training_rows};
use crate::logits::import;
use crate::runs::{args, oracle, run, succeed};

fn numbers(run: &Path) -> Result<Vec<f64>> {
    let parse = |(_, loss): (u64, String)| Ok(loss.parse()?);
    losses(run)?.into_iter().map(parse).collect()
}

/// pyreft 0.1.0 with torch's AdamW, 20 steps; f32 sums in another order drift apart by 1e-5 or less.
#[test]
fn runs_from_an_imported_adapter_repeat_pyrefts_losses() -> Result {
    let dir = tempfile::tempdir()?;
    let data = training_rows(dir.path())?;
    let reference: Value = serde_json::from_str(&fs::read_to_string(oracle("reft/reft.json"))?)?;
    for name in ["noreft", "nodireft"] {
        let (adapter, output) = (import(dir.path(), name)?, dir.path().join("run").join(name));
        succeed(args![
            "train",
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--init-adapter",
            adapter,
            "--no-shuffle",
            "--schedule",
            "constant",
            "--max-grad-norm",
            "0",
            "--weight-decay",
            "0",
            "--lr",
            "5e-3",
            "--batch-size",
            "3",
            "--max-steps",
            "20",
            "--threads",
            "1"
        ])?;
        let expected = reference[name]["trajectory"].as_array().ok_or("no trajectory")?;
        let found = numbers(&output)?;
        assert_eq!(found.len(), 20);
        for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = expected.as_f64().ok_or("no number")?;
            assert!((found - expected).abs() < 1e-4, "{name}, step {step}: {found} for {expected}");
        }
        assert!(output.join("reft_model.safetensors").exists());
    }
    Ok(())
}

#[test]
fn a_run_is_repeated_by_the_options_that_it_wrote() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 12)?;
    let config = dir.path().join("given.toml");
    fs::write(
        &config,
        "rank = 3\nlayers = [3, 1]\npositions = \"f1+l2\"\ndropout = 0.1\nlr = 0.5\nbatch_size = 4\n",
    )?;
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let run = succeed(args![
        "train",
        "--config",
        config,
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        first,
        "--lr",
        "1e-2",
        "--epochs",
        "2",
        "--validation",
        "2",
        "--share-weights",
        "--seed",
        "3",
        "--threads",
        "1",
        "--json"
    ])?;
    let written = first.join("train.toml");
    let options: toml::Table = fs::read_to_string(&written)?.parse()?;
    assert_eq!(options["lr"].as_float(), Some(1e-2), "a flag wins");
    assert_eq!(options["layers"].as_str(), Some("1;3"));
    assert_eq!(options["share_weights"].as_bool(), Some(true));
    assert_eq!(options["schedule"].as_str(), Some("linear"), "defaults are written too");
    let result: Value = serde_json::from_str(&run.stdout)?;
    assert_eq!(result["steps"], 6, "10 examples in batches of 4, twice");
    // 2 layers × (R 64·3 + W 3·64 + b 3)
    assert_eq!(result["trainable_parameters"], 774);
    assert!(run.stderr.contains("trainable 774 of 164,416 (0.47 %)"), "{}", run.stderr);
    assert!(run.stderr.contains("frozen model and hidden states in f32"), "{}", run.stderr);

    succeed(args!["train", "--config", written, "--output", second])?;
    assert_eq!(losses(&first)?, losses(&second)?);
    let adapter = "reft_model.safetensors";
    assert_eq!(fs::read(first.join(adapter))?, fs::read(second.join(adapter))?);
    Ok(())
}

#[test]
fn a_start_from_an_adapter_takes_over_what_it_is() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, adapter) = (training_rows(dir.path())?, import(dir.path(), "loreft")?);
    let output = dir.path().join("run");
    let train = |more: &[&str]| {
        let mut all = args![
            "train",
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--init-adapter",
            adapter,
            "--max-steps",
            "1",
            "--threads",
            "1"
        ];
        all.extend(more.iter().map(std::ffi::OsString::from));
        run(all)
    };
    for (flags, says) in [
        (["--rank", "8"], "--rank is 8, but the adapter to start from"),
        (["--layers", "all"], "--layers is [0,1,2,3], but"),
        (["--method", "direft"], "has loreft"),
        (["--position-rule", "paper"], "has pyreft"),
    ] {
        let run = train(&flags)?;
        assert_eq!(run.code, Some(1));
        assert!(run.stderr.contains(says), "{}", run.stderr);
        assert!(!output.exists());
    }
    assert_eq!(train(&["--rank", "4", "--layers", "1;3"])?.code, Some(0));
    let options: toml::Table = fs::read_to_string(output.join("train.toml"))?.parse()?;
    assert_eq!(options["position_rule"].as_str(), Some("pyreft"));
    assert_eq!(options["rank"].as_integer(), Some(4));
    Ok(())
}

#[test]
fn evaluation_sees_what_training_has_done() -> Result {
    let dir = tempfile::tempdir()?;
    let data = training_rows(dir.path())?;
    let output = dir.path().join("run");
    let model = oracle("tiny_llama");
    succeed(args![
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output",
        output,
        "--lr",
        "1e-2",
        "--batch-size",
        "3",
        "--max-steps",
        "30",
        "--rank",
        "4",
        "--threads",
        "1"
    ])?;
    let loss = |more: &[std::ffi::OsString]| -> Result<f64> {
        let mut all = args!["eval", "--model", model, "--task", "lm", "--data", data, "--json"];
        all.extend_from_slice(more);
        let result: Value = serde_json::from_str(&succeed(all)?.stdout)?;
        let (loss, perplexity) = (result["loss"].as_f64(), result["perplexity"].as_f64());
        let loss = loss.ok_or("no loss")?;
        assert!((perplexity.ok_or("no perplexity")? - loss.exp()).abs() < 1e-9 * loss.exp());
        Ok(loss)
    };
    let (base, adapted) = (loss(&[])?, loss(&args!["--adapter", output])?);
    // The base loss of the reference, a mean over the targets of all rows; f32.
    assert!((base - 5.573_400_5).abs() < 2e-5, "{base}");
    let last = numbers(&output)?.last().copied().ok_or("no step")?;
    assert!(adapted < last && last < 0.9 * base, "{adapted} after {last} after {base}");
    let inspected: Value =
        serde_json::from_str(&succeed(args!["inspect", output, "--json"])?.stdout)?;
    assert_eq!(inspected["config"]["method"], "loreft");
    assert_eq!(inspected["parameters"], 4 * (4 * 64 + 4 * 64 + 4), "4 layers, the last token");
    assert!(inspected["orthonormality_error"].as_f64().ok_or("no error")? < 1e-5);
    assert_eq!(inspected["base_parameters"], 164_416);
    Ok(())
}

#[test]
fn examples_without_a_label_in_reach_are_left_out_when_asked() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 10)?, dir.path().join("run"));
    // Prompts have 3 and 4 tokens in turn: cut to 4, every second example has a label left.
    let run = succeed(args![
        "train",
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        output,
        "--max-length",
        "4",
        "--drop-too-long",
        "--max-steps",
        "1",
        "--rank",
        "2",
        "--threads",
        "1"
    ])?;
    let says = "5 of 10 examples have no label within 4 tokens and are left out";
    assert!(run.stderr.contains(says) && run.stderr.contains("\n5 examples; "), "{}", run.stderr);
    Ok(())
}

#[test]
fn the_kind_that_auto_means_is_said_and_kept() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 6)?;
    let train = |output: &Path, further: &[&str]| {
        let mut all = args!["train", "--model", oracle("tiny_llama"), "--data", data];
        all.extend(args!["--output", output, "--threads", "1", "--device", "cpu"]);
        all.extend(further.iter().map(Into::into));
        run(all)
    };
    let output = dir.path().join("auto");
    let told = train(&output, &["--kind", "auto", "--max-steps", "1"])?.stderr;
    let said = told.lines().find(|line| line.contains("--kind auto: ")).ok_or(told.clone())?;
    let kept = fs::read_to_string(output.join("train.toml"))?;
    let kind = if said.contains("auto: bf16, as") { "bf16" } else { "f32" };
    assert!(said.contains("the processor has") && said.contains(kind), "{said}");
    assert!(kept.contains(&format!("kind = \"{kind}\"")), "{kept}");
    // a resumed run keeps its kind, whatever `auto` means on this machine
    let output = dir.path().join("bf16");
    for further in [["--kind", "bf16", "--max-steps", "1"], ["--kind", "auto", "--max-steps", "2"]]
    {
        let resume = if further[1] == "auto" { &["--resume"][..] } else { &[] };
        let ran = train(&output, &[&further[..], resume].concat())?;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(fs::read_to_string(output.join("train.toml"))?.contains("kind = \"bf16\""));
    }
    let wrong = train(&dir.path().join("x"), &["--kind", "f64"])?;
    assert!(wrong.stderr.contains("use f32, bf16, f16 or auto"), "{}", wrong.stderr);
    Ok(())
}
