//! `reft plan`: a run takes the planned memory, and bad input is refused.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::runs::{args, oracle, refuse, run, succeed};

/// The shape of SmolLM2-135M, which has 30 blocks, with the given number of blocks.
fn demo_config(dir: &Path, num_hidden_layers: usize) -> Result<OsString> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": num_hidden_layers, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": true, "vocab_size": 49152
    });
    let path = dir.join("config.json");
    std::fs::write(&path, config.to_string())?;
    Ok(path.into())
}

fn json_of(arguments: Vec<OsString>) -> Result<Value> {
    Ok(serde_json::from_str(
        &succeed([arguments, args!["--threads", "1", "--json"]].concat())?.stdout,
    )?)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().ok_or_else(|| format!("no number: {value}").into())
}

/// The peak memory of training is as planned, for models of the demo model's shape.
#[test]
#[cfg(target_os = "linux")]
fn planned_memory_is_what_a_run_takes() -> Result {
    let dir = tempfile::tempdir()?;
    let batch =
        ["--batch-size", "4", "--prompt-length", "56", "--response-length", "8", "--no-reuse"];
    let mut peaks = Vec::new();
    for (method, layers, flags) in [
        ("loreft", 30, &[][..]),
        ("loreft", 30, &["--checkpoint-activations"]),
        ("lora", 30, &[]),
        ("loreft", 30, &["--weights", "int4"]),
        ("full", 2, &["--kind", "bf16"]), // the embeddings are four fifths of it
    ] {
        let shape = args!["--model-config", demo_config(dir.path(), layers)?];
        let flags: Vec<OsString> = batch.iter().chain(flags).map(OsString::from).collect();
        let planned = json_of(
            [args!["plan", "--tflops", "1", "--method", method], shape.clone(), flags.clone()]
                .concat(),
        )?;
        let once = args![
            "bench",
            "--random-weights",
            "--steps",
            "1",
            "--rounds",
            "1",
            "--methods",
            method
        ];
        let measured = json_of([once, shape, flags].concat())?;
        let planned = number(&planned["peak_bytes"])? / 1e6;
        let measured = number(&measured["rows"][0]["peak_memory_mb"])?;
        assert!(
            (planned / measured - 1.0).abs() < 0.15,
            "{method}: {planned} MB planned, {measured} MB taken"
        );
        peaks.push(planned);
    }
    // Power of the test: the cases differ by as much as the tolerance.
    assert!(peaks[1] < 0.82 * peaks[0] && peaks[2] > 1.12 * peaks[0], "{peaks:?}");
    // with packed weights the program itself is almost half of the plan, and it grows with its features
    assert!(peaks[3] < 0.65 * peaks[1], "{peaks:?}");
    Ok(())
}

/// Planning takes little memory itself, even for eight billion trained parameters, which are 112 GB.
#[test]
fn a_plan_of_full_fine_tuning_allocates_nothing_and_recommends_what_can_be_run() -> Result {
    let shape = oracle("../../recipes/sizes/llama-3-8b.json");
    let plan = args!["plan", "--model-config", &shape, "--method", "full", "--kind", "bf16"];
    let planned = json_of([plan.clone(), args!["--tflops", "1"]].concat())?;
    let trained = number(&planned["step"]["trainable_parameters"])?;
    assert!(trained > 8e9, "{planned}");
    // gradients in bf16; both moments and the master weights in f32
    let memory = &planned["step"]["memory"];
    assert_eq!(number(&memory["optimizer"])?, 14.0 * trained);
    assert_eq!(number(&memory["weights"])?, 2.0 * trained);
    assert!(number(&memory["program"])? < 1e9, "{memory}");
    let ways = planned["ways"].as_array().ok_or("no ways")?;
    assert!(!ways.is_empty());
    for way in ways {
        let flags = way["flags"].as_str().ok_or("no flags")?;
        assert!(!flags.contains("--weights"), "{flags}");
    }
    for weights in ["int8", "int4"] {
        let refused = run([plan.clone(), args!["--weights", weights]].concat())?;
        assert!(
            refused.code == Some(1) && refused.stderr.contains("--weights is "),
            "{}",
            refused.stderr
        );
    }
    Ok(())
}

#[test]
fn a_run_that_does_not_fit_is_told_what_makes_it_fit() -> Result {
    let dir = tempfile::tempdir()?;
    let config = demo_config(dir.path(), 30)?;
    let asked = |memory: &str| {
        let plan = args!["plan", "--model-config", &config, "--memory", memory, "--tflops", "1"];
        [plan, args!["--positions", "f7+l7"]].concat()
    };
    let text = succeed(asked("1300MB"))?.stdout;
    assert!(text.contains("does not fit into 1.3 GB"), "{text}");
    assert!(text.contains("to make it fit: --checkpoint-activations\n"), "{text}");
    let text = succeed(asked("100MB"))?.stdout;
    assert!(text.contains("none of these ways fits"), "{text}");
    assert!(!succeed(asked("24GB"))?.stdout.contains("to make it fit"));
    Ok(())
}

#[test]
fn kept_work_makes_later_epochs_cheaper_and_takes_the_memory_that_is_said() -> Result {
    let dir = tempfile::tempdir()?;
    let shape = args![
        "plan",
        "--tflops",
        "1",
        "--positions",
        "l1",
        "--model-config",
        demo_config(dir.path(), 30)?
    ];
    let kept = json_of(shape.clone())?;
    let (first, later) =
        (&kept["first_epoch_seconds_per_step"], &kept["later_epochs_seconds_per_step"]);
    assert!(number(first)? > 4.0 * number(later)?, "{kept}");
    // of a row of 120 + 8: keys and values of 119 tokens at the 29 layers above the first edit, hidden states of 8 tokens; f32
    assert_eq!(kept["step"]["kept_row"].as_u64(), Some(4 * (29 * 2 * 192 * 119 + 8 * 576)));
    let plain = json_of([shape, args!["--no-reuse"]].concat())?;
    assert!(plain["rows_kept"].is_null());
    assert_eq!(plain["first_epoch_seconds_per_step"], plain["later_epochs_seconds_per_step"]);
    Ok(())
}

#[test]
fn what_cannot_be_planned_is_refused() -> Result {
    let model = oracle("tiny_llama");
    for (flags, expected) in [
        (args!["--rank", "65"], "rank 65 does not fit"),
        (args!["--examples", "0"], "--examples is 0"),
        (args!["--tflops", "-1"], "--tflops"),
        (args!["--memory", "much"], "--memory"),
        (args!["--batch-size", "0"], "batch-size"),
    ] {
        let run = refuse([args!["plan", "--model", &model], flags].concat());
        assert!(run.code != Some(0), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
        assert!(run.stdout.is_empty() && !run.stderr.contains("panicked"), "{}", run.stderr);
    }
    Ok(())
}

/// A plan of a shape over devices.
fn split(shape: &str, devices: &str, more: &[&str]) -> Result<Value> {
    let shape = concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/sizes/").to_owned() + shape;
    let words = "--method loreft --rank 4 --positions l1 --kind bf16 --tflops 80 --json";
    let words = words.split_whitespace().map(std::ffi::OsString::from).collect();
    let own = args!["plan", "--model-config", shape, "--devices", devices];
    let more = more.iter().map(std::ffi::OsString::from).collect();
    let told = succeed([own, words, more].concat())?.stdout;
    Ok(serde_json::from_str(&told)?)
}

#[test]
fn a_model_over_devices_is_planned_device_by_device() -> Result {
    let plan = split("llama-3-8b.json", "4x6GB", &["--processes", "8", "--batch-size", "2"])?;
    let (own, step) = (&plan["split"], &plan["step"]["memory"]);
    let devices = own["devices"].as_array().ok_or("no devices")?;
    assert_eq!(devices.len(), 4);
    let sum = |name: &str| devices.iter().filter_map(|own| own[name].as_u64()).sum::<u64>();
    assert_eq!(sum("blocks"), 32);
    assert_eq!(Some(sum("weights")), step["weights"].as_u64());
    assert_eq!(Some(sum("optimizer")), step["optimizer"].as_u64());
    let close = |found: u64, whole: &Value| whole.as_u64().is_some_and(|n| found.abs_diff(n) <= 4);
    assert!(close(sum("activations"), &step["activations"]), "{plan}");
    assert!(close(sum("frozen_batch"), &step["frozen_batch"]), "{plan}");
    assert_eq!((&own["fits"], &own["all_devices"]), (&Value::Bool(true), &32.into()));
    assert_eq!(own["rows_of_a_step"], 16);
    // 32 layers, r · (2 d + 1) numbers each, in f32
    assert_eq!(own["gradient_bytes"], 32 * 4 * (2 * 4096 + 1) * 4);
    let most = own["most_rows"].as_u64().ok_or("no rows")?;
    for (rows, fits) in [(most, true), (most + 1, false)] {
        let rows = rows.to_string();
        let plan = split("llama-3-8b.json", "4x6GB", &["--batch-size", &rows])?;
        assert_eq!(plan["split"]["fits"], fits, "{rows} rows: {}", plan["split"]);
    }
    Ok(())
}

#[test]
fn devices_that_are_too_small_are_told_with_what_would_fit() -> Result {
    let plan = split("llama-3-8b.json", "2x4GB", &[])?;
    let own = &plan["split"];
    assert_eq!(own["fits"], false);
    let obstacle = own["obstacle"].as_str().ok_or("no obstacle")?;
    assert!(obstacle.contains("of weights, of 16.1 GB in all, and has 4.0 GB free"), "{obstacle}");
    let n = own["fewest_devices"].as_u64().ok_or("no number")?;
    for (n, fits) in [(n, true), (n - 1, false)] {
        let plan = split("llama-3-8b.json", &format!("{n}x4GB"), &[])?;
        assert_eq!(plan["split"]["fits"], fits, "{n} devices: {}", plan["split"]);
    }
    let flags = own["fits_with"].as_str().ok_or("no flags")?;
    let more: Vec<&str> = flags.split_whitespace().filter(|word| *word != "--grad-accum").collect();
    let more: Vec<&str> = more.into_iter().filter(|word| *word != "8").collect();
    assert_eq!(split("llama-3-8b.json", "2x4GB", &more)?["split"]["fits"], true, "{flags}");
    Ok(())
}
