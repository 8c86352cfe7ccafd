//! Bad input: an exit code, one clear message, nothing left behind, and no panic.

use reft_test_support::change_values;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::files::{listing, many_rows, model_copy, training_rows};
use crate::logits::import;
use crate::runs::{Run, args, importing, oracle, refuse, run, text};

/// A run that fails as it should: code, words, one error on stderr, nothing on stdout, no file made.
fn assert_fails(dir: &Path, args: Vec<OsString>, code: i32, says: &[&str]) -> Result {
    let before = listing(dir)?;
    let name = format!("{args:?}");
    assert_failed(&name, &refuse(args), code, says);
    assert_eq!(listing(dir)?, before, "{name} leaves something behind");
    Ok(())
}

fn assert_failed(name: &str, run: &Run, code: i32, says: &[&str]) {
    let Run { stdout, stderr, .. } = run;
    assert_eq!(run.code, Some(code), "{name}: {stderr}");
    for words in says {
        assert!(stderr.contains(words), "{name}: {words:?} is not in {stderr}");
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("internal"), "{name}: {stderr}");
    assert!(!stderr.contains("RUST_BACKTRACE") && !stderr.contains("frame #"), "{name}: {stderr}");
    let errors = stderr.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{name}: {stderr}");
    assert!(stdout.is_empty(), "{name}: {stdout}");
}

/// The arguments of a training run of the tiny model: the flags of a good run, then `more` with a bad option.
fn train(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Vec<OsString> {
    let mut options = args!["train", "--model", model, "--data", data, "--output", output];
    if !more.contains(&"--batch-size") {
        options.extend(args!["--batch-size", "2"]);
    }
    options.extend(args!["--threads", "1"]);
    [options, more.iter().map(OsString::from).collect()].concat()
}

#[test]
fn options_that_cannot_be_are_refused_by_name() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let model = oracle("tiny_llama");
    let cases: [(&[&str], i32, &[&str]); 37] = [
        (&["--positions", ""], 2, &["--positions", "f7+l7"]),
        (&["--positions", "abc"], 2, &["--positions", "\"abc\""]),
        (&["--positions", "f0+l0"], 2, &["--positions", "at least one token"]),
        (&["--positions", "f7l7"], 2, &["--positions"]),
        (&["--positions", "f-1+l2"], 2, &["--positions"]),
        (&["--positions", "f99999999999999999999"], 2, &["--positions"]),
        (&["--rank", "0"], 1, &["rank 0", "1..=64"]),
        (&["--rank", "65"], 1, &["rank 65", "1..=64"]),
        (&["--rank", "-3"], 1, &["rank -3", "1..=64"]),
        (&["--rank", "1.5"], 2, &["--rank"]),
        (&["--layers", "4"], 1, &["layer 4 is out of range", "4 layers"]),
        (&["--layers", "0;9"], 1, &["layer 9 is out of range"]),
        (&["--layers", "1;1"], 2, &["--layers", "\"1;1\"", "each once"]),
        (&["--layers", ""], 2, &["--layers", "such as 3;9;18"]),
        (&["--layers", "last"], 2, &["--layers", "\"last\""]),
        (&["--method", "lorra"], 2, &["--method", "loreft, direft", "prompt", "joined with +"]),
        (&["--component", "attention"], 2, &["--component", "block_output"]),
        (&["--component", "q_proj"], 2, &["component is \"q_proj\"", "block_output"]),
        (&["--learning-rate", "1"], 2, &["--learning-rate"]),
        (&["--lr", "NaN"], 1, &["--lr is NaN", "above 0"]),
        (&["--lr", "inf"], 1, &["--lr is inf"]),
        (&["--lr", "-1"], 1, &["--lr is -1"]),
        (&["--lr", "fast"], 2, &["--lr"]),
        (&["--weight-decay", "-0.1"], 1, &["--weight-decay is -0.1"]),
        (&["--max-grad-norm", "NaN"], 1, &["--max-grad-norm is NaN"]),
        (&["--warmup-ratio", "2"], 1, &["--warmup-ratio is 2"]),
        (&["--validation", "1.5"], 1, &["--validation is 1.5"]),
        (&["--validation", "6"], 1, &["0 examples are left to train on after 6"]),
        (&["--dropout", "1"], 1, &["dropout is 1"]),
        (&["--batch-size", "0"], 1, &["--batch-size is 0", "at least 1"]),
        (&["--grad-accum", "0"], 1, &["--grad-accum is 0", "at least 1"]),
        (&["--epochs", "0"], 1, &["--epochs is 0"]),
        (&["--epochs", "1", "--max-steps", "1"], 2, &["--epochs", "--max-steps"]),
        (&["--max-length", "1"], 1, &["--max-length is 1"]),
        (&["--kind", "int8"], 2, &["--kind", "f32, bf16, f16"]),
        (&["--device", "cuda:4000"], 1, &["cuda:4000 is not there"]),
        (&["--add-bias"], 1, &["--add-bias is true for loreft", "noreft's projection"]),
    ];
    for (flags, code, says) in cases {
        assert_fails(dir.path(), train(&model, &data, &output, flags), code, says)?;
    }
    let without_model = args!["train", "--data", data, "--output", output];
    assert_fails(dir.path(), without_model, 1, &["--model is missing"])?;
    assert_fails(
        dir.path(),
        train(&model, &data, &output, &["--init", "identity", "--method", "consreft"]),
        1,
        &["consreft", "reference"],
    )?;
    assert_fails(
        dir.path(),
        args!["train", "--resume", "--overwrite", "--output", output],
        2,
        &["--overwrite"],
    )?;
    assert_fails(dir.path(), args!["frobnicate"], 2, &["frobnicate"])?;
    assert_fails(
        dir.path(),
        args!["eval", "--model", model, "--data", data, "--task", "mmlu"],
        2,
        &["mmlu", "lm"],
    )
}

#[test]
fn numbers_that_no_run_has_are_refused_by_flag() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let model = oracle("tiny_llama");
    let huge = "1000000000000000000"; // 10^18
    for flag in
        ["--batch-size", "--grad-accum", "--epochs", "--max-steps", "--max-length", "--eval-every"]
    {
        let says = [&format!("{flag} is {huge}")[..], "1,000,000,000"];
        assert_fails(dir.path(), train(&model, &data, &output, &[flag, huge]), 1, &says)?;
    }
    for (flag, number) in [("--epochs", "9223372036854775808"), ("--seed", "18446744073709551615")]
    {
        let says = [flag, number, "expected at most 9223372036854775807"];
        assert_fails(dir.path(), train(&model, &data, &output, &[flag, number]), 2, &says)?;
    }
    let eval = args!["eval", "--model", model, "--task", "lm", "--data", data];
    for flag in ["--batch-size", "--max-length"] {
        let eval = [eval.clone(), args![flag, huge]].concat();
        assert_fails(dir.path(), eval, 1, &[&format!("{flag} is {huge}"), "1,000,000,000"])?;
    }
    for command in ["bench", "plan"] {
        for flag in ["--batch-size", "--prompt-length", "--response-length"] {
            let words = args![command, "--model", model, flag, huge, "--threads", "1"];
            assert_fails(dir.path(), words, 1, &[flag, huge])?;
        }
    }
    let search = args!["das", "--model", model, "--task", "absent.toml", "--output", output];
    let search = [search, args!["--seed", "18446744073709551615"]].concat();
    assert_fails(dir.path(), search, 2, &["--seed", "9223372036854775807"])
}

#[test]
fn a_flag_given_twice_is_refused_unless_it_makes_a_list() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let model = oracle("tiny_llama");
    let twice = ["--lr", "1e-3", "--lr", "1e-2"];
    assert_fails(
        dir.path(),
        train(&model, &data, &output, &twice),
        2,
        &["--lr", "cannot be used multiple times"],
    )?;
    let export = args!["export", "--merge", "--model", model, "--adapter", "a", "--adapter", "b"];
    let export = [export, args!["--output", output]].concat();
    assert_fails(dir.path(), export, 2, &["--adapter", "cannot be used multiple times"])?;
    let adapter = import(dir.path(), "loreft")?;
    let input = dir.path().join("in.json");
    fs::write(&input, r#"{"input_ids": [[1, 2, 3]]}"#)?;
    let logits = args!["logits", "--model", model, "--adapter", adapter, "--adapter", adapter];
    let file = dir.path().join("out.safetensors");
    let both = run([logits, args!["--input", input, "--output", file]].concat())?;
    assert_eq!(both.code, Some(0), "{}", both.stderr);
    Ok(())
}

#[test]
fn subspaces_of_rows_are_refused_by_row_where_there_is_none() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (dir.path().join("data.jsonl"), dir.path().join("run"));
    let model = oracle("tiny_llama");
    let row = |subspace: &str| {
        format!("{{\"input_ids\": [1, 2, 3, 4], \"prompt_length\": 2{subspace}}}\n")
    };
    fs::write(&data, row("") + &row(", \"subspace\": [0, 9]"))?;
    for (flags, says) in [
        (&["--method", "lora"][..], &["row 2", "lora edits in none"][..]),
        (&["--rank", "4"], &["row 2", "9"]),
        (&["--method", "loreft+lora", "--rank", "4"], &["row 2", "9"]),
    ] {
        assert_fails(dir.path(), train(&model, &data, &output, flags), 1, says)?;
    }
    fs::write(&data, row("") + &row(", \"subspace\": [0, 3]"))?;
    let fine = train(&model, &data, &output, &["--rank", "4", "--max-steps", "1"]);
    assert_eq!(run(fine)?.code, Some(0));
    let other = dir.path().join("lora");
    let lora = train(&model, &data, &other, &["--method", "lora", "--max-steps", "1"]);
    assert_eq!(run(lora)?.code, Some(1));
    fs::write(&data, row(", \"subspace\": [0, 7]"))?;
    let eval = args!["eval", "--model", model, "--adapter", output, "--task", "lm", "--data", data];
    assert_failed("eval", &run(eval)?, 1, &["row 1", "7"]);
    let generate = args!["generate", "--model", model, "--adapter", output, "--input", data];
    assert_failed("generate", &run(generate)?, 1, &["row 1", "7"]);
    Ok(())
}

#[test]
fn options_that_a_method_does_not_have_are_refused_by_flag_and_method() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let model = oracle("tiny_llama");
    let cases: [(&[&str], &[&str]); 17] = [
        (
            &["--method", "lora", "--positions", "l1"],
            &["--positions is no option of method lora", "--target-modules", "leave it out"],
        ),
        (&["--method", "full", "--rank", "4"], &["--rank is no option of method full", "none"]),
        (&["--alpha", "4"], &["--alpha is no option of method loreft", "--share-weights"]),
        (&["--method", "ia3", "--share-weights"], &["--share-weights is no option of method ia3"]),
        (&["--method", "ia3", "--layers", "all"], &["--layers is no option of method ia3"]),
        (&["--method", "loreft+lora", "--bottleneck-size", "4"], &["method loreft+lora"]),
        (&["--method", "lora", "--init-text", "hi"], &["--init-text is for prefix and prompt"]),
        (&["--method", "prompt", "--init-text", "hi"], &["--init-text", "tokenizer"]),
        (&["--method", "prompt", "--init", "identity"], &["--init is \"identity\"", "vocabulary"]),
        (&["--method", "prefix", "--n-virtual-tokens", "0"], &["--n-virtual-tokens is 0"]),
        (&["--method", "prompt", "--init-tokens", "128"], &["128", "vocabulary"]),
        (&["--method", "lora", "--target-modules", "x_proj"], &["\"x_proj\"", "q_proj"]),
        (&["--method", "lora", "--rank", "0"], &["is 0, expected a positive number"]),
        (&["--method", "red", "--components", "q_proj"], &["component is q_proj", "mlp_output"]),
        (
            &["--method", "brep", "--components", "mlp_output"],
            &["component is mlp_output", "up_proj"],
        ),
        (
            &["--method", "brep", "--max-bias-norm", "0"],
            &["max-bias-norm is 0", "a number above 0"],
        ),
        (&["--method", "prompt+prompt"], &["both bring virtual tokens"]),
    ];
    for (flags, says) in cases {
        assert_fails(dir.path(), train(&model, &data, &output, flags), 1, says)?;
    }
    Ok(())
}

#[test]
fn configuration_files_are_refused_with_their_line() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let config = dir.path().join("run.toml");
    let model = oracle("tiny_llama");
    let cases = [
        ("lr = 1e-3\nlearning_rate = 1", "run.toml, line 2: unknown field `learning_rate`"),
        ("\nlr = \"high\"", "run.toml, line 2: lr is \"high\", expected a number"),
        ("rank = 4\npositions = \"x\"", "run.toml, line 2: positions \"x\""),
        ("method = \"lorra\"", "run.toml, line 1: unknown method \"lorra\""),
        ("method = \"lora\"\npositions = \"l1\"", "--positions is no option of method lora"),
        ("method = \"ia3\"\ntarget_modules = 3", "run.toml, line 2"),
        ("layers = [1, 1]", "run.toml, line 1: layers is [1,1], expected all"),
        ("seed = -1", "run.toml, line 1"),
        ("lr = 1e-3\n\nlr = 2", "run.toml, line 3"),
        ("[train]\nlr = 1", "run.toml, line 1: unknown field `train`"),
        ("lr = nan", "--lr is NaN"),
        ("epochs = 1\nmax_steps = 2", "both epochs and max_steps"),
    ];
    let flags = text(&config);
    for (file, says) in cases {
        fs::write(&config, file)?;
        assert_fails(dir.path(), train(&model, &data, &output, &["--config", &flags]), 1, &[says])?;
    }
    assert_fails(
        dir.path(),
        train(&model, &data, &output, &["--config", "absent.toml"]),
        1,
        &["absent.toml"],
    )
}

#[test]
fn data_is_refused_with_its_line_or_example() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (dir.path().join("data.jsonl"), dir.path().join("run"));
    let model = oracle("tiny_llama");
    let good = r#"{"input_ids": [1, 2, 3, 4], "prompt_length": 2}"#;
    let cases: [(String, &[&str], &[&str]); 13] = [
        (String::new(), &[], &["data.jsonl holds no example"]),
        ("[]".into(), &[], &["data.jsonl holds no example"]),
        (format!("{good}\n{{\"input_ids\": [1,"), &[], &["broken JSON at line 2"]),
        (format!("[{good},\n{good}\n{good}]"), &[], &["broken JSON at line 3"]),
        (
            format!("{good}\n{{}}"),
            &[],
            &["line 2", "the row has no column; expected input_ids and prompt_length, or messages"],
        ),
        (format!("{good}\n[1]"), &[], &["line 2", "no JSON object"]),
        (good.replace("input_ids", "input_idz"), &[], &["line 1"]),
        (
            good.replace("prompt_length", "length"),
            &[],
            &["line 1", "--columns prompt_length=COLUMN"],
        ),
        (
            good.replace("4]", "128]"),
            &[],
            &["row 1", "token id 128 is not in the vocabulary of 128"],
        ),
        (good.replace("4]", "-5]"), &[], &["row 1", "token id -5"]),
        (good.replace(": 2", ": 9"), &[], &["row 1", "prompt_length 9 is past its 4 tokens"]),
        (
            good.into(),
            &["--max-length", "2"],
            &["row 1", "no label left", "max_length", "--drop-too-long"],
        ),
        (
            r#"{"id": "greeting", "prompt": "hi", "completion": "ho"}"#.into(),
            &[],
            &["greeting", "no tokenizer"],
        ),
    ];
    for (text, flags, says) in cases {
        fs::write(&data, text)?;
        assert_fails(dir.path(), train(&model, &data, &output, flags), 1, says)?;
    }
    let absent = dir.path().join("absent.jsonl");
    assert_fails(
        dir.path(),
        train(&model, &absent, &output, &[]),
        1,
        &["cannot read", "absent.jsonl"],
    )?;
    fs::write(&data, [0xff, 0xfe, 0x00])?;
    assert_fails(dir.path(), train(&model, &data, &output, &[]), 1, &["data.jsonl"])
}

/// A change that damages a model's files.
type Damage = fn(&Path) -> Result;

#[test]
fn damaged_models_are_refused_by_tensor_and_file() -> Result {
    const NAME: &str = "model.layers.2.mlp.up_proj.weight";
    let cases: [(&str, Damage, &[&str]); 8] = [
        (
            "truncated",
            |model| {
                let file = model.join("model.safetensors");
                let bytes = fs::read(&file)?;
                Ok(fs::write(&file, &bytes[..bytes.len() / 2])?)
            },
            &["cannot load model", "model.safetensors", "cut short"],
        ),
        (
            "empty",
            |model| Ok(fs::write(model.join("model.safetensors"), "")?),
            &["cannot load model", "model.safetensors"],
        ),
        (
            "missing tensor",
            |model| {
                change_values(&model.join("model.safetensors"), |tensors| {
                    tensors.remove(NAME);
                })
            },
            &[concat!("missing: ", "model.layers.2.mlp.up_proj.weight")],
        ),
        (
            "misshapen tensor",
            |model| {
                change_values(&model.join("model.safetensors"), |tensors| {
                    let shape = tensors.get_mut(NAME).map(|(shape, _)| shape);
                    *shape.expect("invariant: the model has this tensor") = vec![64, 128];
                })
            },
            &[NAME, "has shape [64, 128], expected [128, 64]"],
        ),
        (
            "a configuration that contradicts the weights",
            |model| {
                let file = model.join("config.json");
                let config = fs::read_to_string(&file)?;
                let changed = config.replace("\"hidden_size\": 64", "\"hidden_size\": 32");
                assert_ne!(config, changed);
                Ok(fs::write(&file, changed)?)
            },
            &["cannot load model", "expected ["],
        ),
        (
            "more layers than weights",
            |model| {
                let file = model.join("config.json");
                let config = fs::read_to_string(&file)?;
                let changed =
                    config.replace("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 5");
                assert_ne!(config, changed);
                Ok(fs::write(&file, changed)?)
            },
            &["missing: model.layers.4."],
        ),
        (
            "broken configuration",
            |model| Ok(fs::write(model.join("config.json"), "{\n\"model_type\": ")?),
            &["config.json", "line 2"],
        ),
        (
            "no weights",
            |model| Ok(fs::remove_file(model.join("model.safetensors"))?),
            &["model.safetensors"],
        ),
    ];
    for (name, damage, says) in cases {
        let dir = tempfile::tempdir()?;
        let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
        let model = model_copy(dir.path())?;
        damage(&model).map_err(|error| format!("{name}: {error}"))?;
        assert_fails(dir.path(), train(&model, &data, &output, &[]), 1, says)?;
    }
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let absent = dir.path().join("absent");
    assert_fails(dir.path(), train(&absent, &data, &output, &[]), 1, &["absent"])?;
    let gguf = dir.path().join("model.gguf");
    fs::write(&gguf, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff")?;
    assert_fails(dir.path(), train(&gguf, &data, &output, &[]), 1, &["model.gguf"])?;
    assert_fails(
        dir.path(),
        args!["import", "--from", "gguf", gguf, "--output", output],
        1,
        &["cannot import", "model.gguf"],
    )
}

#[test]
fn damaged_or_foreign_adapters_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let input = dir.path().join("in.json");
    fs::write(&input, r#"{"input_ids": [[1, 2, 3]]}"#)?;
    let output = dir.path().join("out.safetensors");
    let good = import(dir.path(), "loreft")?;
    let damaged = |name: &str, change: &dyn Fn(&Path) -> Result| -> Result<PathBuf> {
        let copy = dir.path().join(name);
        fs::create_dir(&copy)?;
        for file in ["reft_config.json", "reft_model.safetensors"] {
            fs::copy(good.join(file), copy.join(file))?;
        }
        change(&copy)?;
        Ok(copy)
    };
    let config = |from: &'static str, to: &'static str| {
        move |adapter: &Path| -> Result {
            let file = adapter.join("reft_config.json");
            let text = fs::read_to_string(&file)?;
            let changed = text.replace(from, to);
            assert_ne!(text, changed, "{from} is not in {text}");
            Ok(fs::write(file, changed)?)
        }
    };
    const ROTATION: &str = "layers.1.block_output.tied.rotation";
    let cases: [(PathBuf, &[&str]); 9] = [
        (
            damaged(
                "other-rank",
                &config("\"low_rank_dimension\": 4", "\"low_rank_dimension\": 5"),
            )?,
            &["layers.*.block_output.tied.rotation has shape [64, 4], expected [64, 5]"],
        ),
        (
            damaged("other-method", &config("\"loreft\"", "\"direft\""))?,
            &["missing: layers.*.block_output.tied.proj_layer.weight"],
        ),
        (
            damaged("unknown-field", &config("\"dropout\"", "\"drop\""))?,
            &["reft_config.json", "unknown field `drop`", "line"],
        ),
        (
            damaged(
                "other-model",
                &config("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 6"),
            )?,
            &["6 layers", "4 layers"],
        ),
        (
            damaged("other-size", &config("\"hidden_size\": 64", "\"hidden_size\": 128"))?,
            &["hidden size 128", "hidden size 64"],
        ),
        (
            damaged("no-rotation", &|adapter| {
                change_values(&adapter.join("reft_model.safetensors"), |tensors| {
                    tensors.remove(ROTATION);
                })
            })?,
            &["missing: layers.1.block_output.tied.rotation"],
        ),
        (
            damaged("not-orthonormal", &|adapter| {
                change_values(&adapter.join("reft_model.safetensors"), |tensors| {
                    let values = tensors.get_mut(ROTATION).map(|(_, values)| values);
                    values.into_iter().flatten().for_each(|x| *x *= 2.0);
                })
            })?,
            &["are not orthonormal"],
        ),
        (
            damaged("truncated", &|adapter| {
                let file = adapter.join("reft_model.safetensors");
                let bytes = fs::read(&file)?;
                Ok(fs::write(&file, &bytes[..bytes.len() - 9])?)
            })?,
            &["reft_model.safetensors", "cut short"],
        ),
        (dir.path().join("absent"), &["is no directory", "reft_config.json"]),
    ];
    for (adapter, says) in cases {
        let logits = args![
            "logits",
            "--model",
            oracle("tiny_llama"),
            "--adapter",
            adapter,
            "--input",
            input,
            "--output",
            output
        ];
        assert_fails(dir.path(), logits, 1, &[&["cannot run adapter"], says].concat())?;
    }
    Ok(())
}

#[test]
fn imports_of_something_else_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let (saved, output) = (oracle("reft_saved/noreft"), dir.path().join("adapter"));
    let import = |saved: &Path, more: &[&str]| {
        let options = args!["import", "--from", "pyreft", saved, "--output", output];
        [options, more.iter().map(OsString::from).collect()].concat()
    };
    assert_fails(dir.path(), import(&saved, &[]), 1, &["--positions is missing"])?;
    assert_fails(dir.path(), import(&saved, &["--positions", "f2+l2"]), 1, &["--share-weights"])?;
    assert_fails(dir.path(), import(&saved, &["--positions", "x"]), 2, &["--positions"])?;
    assert_fails(
        dir.path(),
        import(&oracle("tiny_llama"), &["--positions", "l1"]),
        1,
        &["config.json"],
    )?;
    assert_fails(dir.path(), import(dir.path(), &["--positions", "l1"]), 1, &["config.json"])?;
    let broken = dir.path().join("broken");
    fs::create_dir(&broken)?;
    for entry in fs::read_dir(&saved)? {
        let path = entry?.path();
        fs::copy(&path, broken.join(path.file_name().unwrap_or_default()))?;
    }
    let config = broken.join("config.json");
    let known = fs::read_to_string(&config)?;
    let flags = ["--positions", "f2+l2", "--share-weights"];
    for (from, to, says) in [
        ("\"parallel\"", "\"serial\"", "mode is \"serial\", expected \"parallel\""),
        ("\"mode\"", "\"mood\"", "mood is \"parallel\", a field that this program does not know"),
    ] {
        fs::write(&config, known.replace(from, to))?;
        assert_fails(dir.path(), import(&broken, &flags), 1, &[says])?;
    }
    fs::write(&config, known)?;
    let pickle = broken.join("intkey_layer_3_comp_block_output_unit_pos_nunit_1#0.bin");
    let bytes = fs::read(&pickle)?;
    fs::write(&pickle, &bytes[..bytes.len() / 2])?;
    assert_fails(dir.path(), import(&broken, &flags), 1, &["layer_3_comp_block_output"])?;
    fs::create_dir(&output)?;
    fs::write(output.join("precious"), "")?;
    assert_fails(
        dir.path(),
        import(&saved, &flags),
        1,
        &["exists already and is not an empty directory"],
    )
}

#[test]
fn a_loss_that_becomes_nan_stops_the_run_and_keeps_the_last_checkpoint() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (training_rows(dir.path())?, dir.path().join("run"));
    let wild =
        ["--method", "noreft", "--lr", "1e30", "--max-grad-norm", "0", "--schedule", "constant"];
    let model = oracle("tiny_llama");
    let says = ["nothing was written", "at step 2", "row ", "lower lr"];
    assert_fails(dir.path(), train(&model, &data, &output, &wild), 1, &says)?;

    let every_step = [&wild[..], &["--checkpoint-every", "1"]].concat();
    let kept = run(train(&model, &data, &output, &every_step))?;
    assert_failed("with a checkpoint", &kept, 1, &["its newest checkpoint is in", "at step 2"]);
    assert!(output.join("checkpoint/step-00000001").exists());
    assert!(!output.join("reft_config.json").exists());

    let poisoned = model_copy(dir.path())?;
    change_values(&poisoned.join("model.safetensors"), |tensors| {
        let norm = tensors.get_mut("model.norm.weight").map(|(_, values)| values);
        norm.into_iter().flatten().for_each(|x| *x = f32::NAN);
    })?;
    let other = dir.path().join("other");
    assert_fails(
        dir.path(),
        train(&poisoned, &data, &other, &[]),
        1,
        &["loss is NaN at step 1", "row "],
    )
}

/// A limit on the size of files stands in for a full disk: writing fails in the middle.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 6)?, dir.path().join("run"));
    let limited = |blocks: u32, args: Vec<OsString>| -> Result<Run> {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_reft")]).args(args);
        Ok(shell.output()?.into())
    };
    let before = listing(dir.path())?;
    let model = oracle("tiny_llama");
    // Options and metrics fit into 8 blocks, the checkpoint of 8 interventions of rank 8 does not; into 1, not even the options.
    for blocks in [1, 8] {
        let run = limited(blocks, train(&model, &data, &output, &["--max-steps", "2"]))?;
        assert_failed(&format!("training, {blocks} blocks"), &run, 1, &["cannot write"]);
        assert_eq!(listing(dir.path())?, before, "training leaves something behind");
    }
    let input = dir.path().join("data.json");
    fs::write(
        &input,
        r#"{"input_ids": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]}"#,
    )?;
    let before = listing(dir.path())?;
    let file = dir.path().join("out.safetensors");
    let logits =
        args!["logits", "--model", model, "--input", input, "--output", file, "--hidden-states"];
    assert_failed("logits", &limited(8, logits)?, 1, &["cannot write"]);
    let import = importing("loreft", &output);
    assert_failed("import", &limited(4, import)?, 1, &["cannot write"]);
    assert_eq!(listing(dir.path())?, before, "logits or import leave something behind");
    Ok(())
}
