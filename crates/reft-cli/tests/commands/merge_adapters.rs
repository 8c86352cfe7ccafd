//! `reft merge-adapters`: one adapter that computes the same as a stack.

use reft_test_support::{assert_values_close, values};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::files::many_rows;
use crate::runs::{args, oracle, run, succeed};

fn trained(dir: &Path, name: &str, method: &[&str]) -> Result<PathBuf> {
    let (data, adapter) = (many_rows(dir, 8)?, dir.join(name));
    let mut all = args![
        "train",
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        adapter,
        "--lr",
        "2e-2",
        "--max-steps",
        "6",
        "--threads",
        "1"
    ];
    all.extend(method.iter().map(Into::into));
    succeed(all)?;
    Ok(adapter)
}

fn logits(dir: &Path, adapters: &[&Path]) -> Result<Vec<f32>> {
    let (input, output) = (dir.join("in.json"), dir.join("out.safetensors"));
    let rows = r#"{"input_ids": [[5, 9, 14, 77, 3, 21], [1, 2, 3], [99, 4, 17, 60]], "prompt_lengths": [4, 3, 2]}"#;
    fs::write(&input, rows)?;
    let mut all =
        args!["logits", "--model", oracle("tiny_llama"), "--input", input, "--output", output];
    for adapter in adapters {
        all.extend(args!["--adapter", adapter]);
    }
    succeed(all)?;
    Ok(values(&output)?.remove("logits").ok_or("no logits")?.1)
}

#[test]
fn two_runs_become_one_adapter_with_a_card() -> Result {
    let dir = tempfile::tempdir()?;
    for (method, other) in [
        (["--method", "lora", "--rank", "2"], ["--method", "rslora", "--rank", "3"]),
        (["--method", "dora", "--rank", "2"], ["--method", "lora", "--rank", "3"]),
        (["--method", "loreft", "--layers", "1"], ["--method", "loreft", "--layers", "1;3"]),
    ] {
        let name = method[1];
        let first = trained(dir.path(), &format!("{name}-a"), &method)?;
        let second = trained(dir.path(), &format!("{name}-b"), &other)?;
        let output = dir.path().join(format!("{name}-both"));
        let merge = args![
            "merge-adapters",
            first,
            second,
            "--model",
            oracle("tiny_llama"),
            "--output",
            output,
            "--license",
            "mit",
            "--json"
        ];
        let json: Value = serde_json::from_str(&succeed(merge)?.stdout)?;
        assert_eq!(json["method"], name);
        let expected = logits(dir.path(), &[&first, &second])?;
        assert_values_close(name, &logits(dir.path(), &[&output])?, &expected, 1e-4);
        let alone = logits(dir.path(), &[&first])?;
        let moved = alone.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 0.1, "{name}: the second adapter moves logits by {moved}");
        let card = fs::read_to_string(output.join("README.md"))?;
        for part in [
            "license: mit",
            &format!("- {name}\n"),
            &format!("| {name}-a | 1 |"),
            "The sum is exact.",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
        assert!(!card.contains(&*dir.path().to_string_lossy()), "{card}");
        succeed(args!["inspect", output])?;
    }
    Ok(())
}

#[test]
fn ranks_and_strengths_are_asked_for_and_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("one");
    let qv = format!("{}@0.5", oracle("peft/lora_qv").display());
    let all = oracle("peft/lora_all");
    let svd =
        args!["merge-adapters", qv, all, "--output", output, "--method", "svd", "--rank", "3"];
    let said = succeed(svd)?.stdout;
    assert!(said.contains("kept of the sum's squared norm: "), "{said}");
    let config: Value = serde_json::from_slice(&fs::read(output.join("adapter_config.json"))?)?;
    assert_eq!((&config["r"], &config["lora_alpha"]), (&3.into(), &3.into()));
    let card = fs::read_to_string(output.join("README.md"))?;
    assert!(
        card.contains("| lora_qv | 0.5 |") && card.contains("approximated with rank 3"),
        "{card}"
    );

    let new = dir.path().join("new");
    for (arguments, reason) in [
        (args![qv, all, "--rank", "3"], "--rank belongs to --method svd"),
        (args![qv, all, "--method", "svd"], "--rank is missing"),
        (args![format!("{}@much", all.display())], "expected a number behind the @"),
        (args![all, oracle("peft/prefix")], "two adapters there have no order"),
        (args![all, dir.path().join("none")], "is no directory"),
        (args![oracle("peft_more/dora"), all], "name the model"),
        (args![all, "--model", oracle("families/llama_biases")], "cannot merge the adapters"),
    ] {
        let refused = run([args!["merge-adapters", "--output", new], arguments].concat())?;
        assert_eq!(refused.code, Some(1), "{reason}: {}", refused.stderr);
        assert!(refused.stderr.contains(reason), "{reason}: {}", refused.stderr);
        assert!(!new.exists(), "{reason}");
    }
    let again = run(args!["merge-adapters", qv, "--output", output])?;
    assert!(again.stderr.contains("exists already"), "{}", again.stderr);
    Ok(())
}
