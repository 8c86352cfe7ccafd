//! Heads on the command line: classes, numbers and rewards are learned, saved, trained further and refused.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::files::losses;
use crate::runs::{Run, args, oracle, overridden, run, succeed};

/// Texts with words of the tiny tokenizers' vocabularies, each with a class and a number.
const ROWS: [(&str, &str, &str); 8] = [
    ("the café is open", "shut", "1.5"),
    ("cafés, cafés", "open, at last", "-0.5"),
    ("the café", "open, at last", "-1.0"),
    ("is the café open", "shut", "1.0"),
    ("open", "shut", "2"),
    ("the cafés", "open, at last", "-2"),
    ("open the café", "shut", "1.25"),
    ("cafés is", "open, at last", "-1.5"),
];

/// The rows as JSON lines, and as CSV with other names of its columns.
fn labelled(dir: &Path) -> Result<[PathBuf; 3]> {
    let lines = ROWS.map(|(text, class, _)| {
        json!({"text": text, "text_pair": "is open", "label": class, "idx": 3}).to_string()
    });
    let table = ROWS.map(|(text, class, _)| format!("\"{text}\",is open,\"{class}\",film"));
    let numbers = ROWS.map(|(text, _, number)| format!("\"{text}\",{number}"));
    let files = ["rows.jsonl", "rows.csv", "numbers.csv"].map(|name| dir.join(name));
    fs::write(&files[0], lines.join("\n"))?;
    fs::write(&files[1], format!("phrase,more,mood,topic\n{}\n", table.join("\n")))?;
    fs::write(&files[2], format!("sentence,label\n{}\n", numbers.join("\n")))?;
    Ok(files)
}

fn arguments(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Vec<OsString> {
    let mut args = args!["train", "--model", model, "--data", data, "--output", output];
    args.extend(args!["--batch-size", "4", "--threads", "1", "--schedule", "constant"]);
    args.extend(more.iter().map(Into::into));
    overridden(args)
}

fn train(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Result<Run> {
    succeed(arguments(model, data, output, more))
}

fn loss(run: &Path, step: usize) -> Result<f64> {
    Ok(losses(run)?[step].1.parse()?)
}

const CLASSES: [&str; 2] = ["--objective", "classification"];

#[test]
fn classes_are_learned_from_every_shape_beside_every_kind_of_method() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, csv, _] = labelled(dir.path())?;
    let chat = chat_model(dir.path(), PLAIN)?;
    let models = [oracle("encoders/bert"), oracle("encoders/roberta"), chat];
    for (model, name) in models.iter().zip(["bert", "roberta", "llama"]) {
        for (method, options) in [
            (
                "loreft",
                &["--method", "loreft", "--rank", "2", "--positions", "f1+l1", "--share-weights"][..],
            ),
            ("lora", &["--method", "lora", "--rank", "2"]),
            ("head", &["--method", "head"]),
            ("full", &["--method", "full"]),
            ("bitfit", &["--method", "bitfit"]),
        ] {
            let output = dir.path().join(format!("{name}-{method}"));
            if (name, method) == ("llama", "bitfit") {
                let refused =
                    run(arguments(model, &jsonl, &output, &[&CLASSES[..], options].concat()))?;
                assert!(refused.stderr.contains("llama has no bias"), "{}", refused.stderr);
                continue;
            }
            let asked = [&CLASSES[..], options, &["--lr", "5e-3", "--max-steps", "32"]].concat();
            let trained = train(model, &jsonl, &output, &[&asked[..], &["--json"]].concat())?;
            let epoch = |step: usize| -> Result<f64> {
                Ok((loss(&output, step)? + loss(&output, step + 1)?) / 2.0)
            };
            let (first, last) = (epoch(0)?, epoch(30)?);
            assert!(last < 0.93 * first, "{name}, {method}: {first} {last}");
            // two classes, of hidden size 32 (bert, roberta) or 64
            let expected = match name {
                "bert" => 2 * 32 + 2,
                "roberta" => 32 * 32 + 32 + 2 * 32 + 2,
                _ => 2 * 64,
            };
            let said: Value = serde_json::from_str(&trained.stdout)?;
            assert_eq!(said["head_parameters"], expected, "{said}");
            assert_eq!(said["trainable_parameters"] == 0, method == "head", "{said}");
            let words = format!("and the {expected} of a head");
            assert!(
                trained.stderr.replace(',', "").contains(&words.replace(',', "")),
                "{}",
                trained.stderr
            );
            assert!(trained.stderr.contains("class \"shut\""), "{}", trained.stderr);
            let kept =
                if method == "lora" { "adapter_model.safetensors" } else { "head.safetensors" };
            let kept = fs::read(output.join(kept))?;
            let names = br#"[\"open, at last\",\"shut\"]"#;
            assert!(kept.windows(names.len()).any(|part| part == names), "{name}, {method}");
            let options = fs::read_to_string(output.join("train.toml"))?;
            assert!(options.contains("objective = \"classification\""), "{options}");
            let card = fs::read_to_string(output.join("README.md"))?;
            assert!(card.contains("--task classification"), "{card}");
            if method == "head" {
                let same = dir.path().join(format!("{name}-csv"));
                let columns = ["--columns", "text=phrase,text_pair=more,label=mood"];
                train(model, &csv, &same, &[&asked[..], &columns].concat())?;
                assert_eq!(losses(&same)?, losses(&output)?, "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn numbers_and_rewards_are_learned() -> Result {
    let dir = tempfile::tempdir()?;
    let [_, _, numbers] = labelled(dir.path())?;
    let output = dir.path().join("numbers");
    let asked = ["--objective", "regression", "--method", "lora", "--rank", "2", "--lr", "1e-2"];
    let asked = [&asked[..], &["--max-steps", "40"]].concat();
    train(&oracle("encoders/bert"), &numbers, &output, &asked)?;
    assert!(loss(&output, 39)? < 0.5 * loss(&output, 0)?, "{:?}", losses(&output)?);

    let model = chat_model(dir.path(), PLAIN)?;
    let pairs = dir.path().join("pairs.csv");
    fs::write(&pairs, "prompt,chosen,rejected\na b,c d e,f\nsay d,e,g h\ng,h i,j k l\n")?;
    let output = dir.path().join("reward");
    let asked = ["--objective", "reward", "--rank", "2", "--lr", "1e-2", "--max-steps", "16"];
    train(&model, &pairs, &output, &asked)?;
    let metrics = fs::read_to_string(output.join("metrics.jsonl"))?;
    let last: Value = serde_json::from_str(metrics.lines().last().ok_or("no row")?)?;
    assert_eq!(last["terms"]["accuracy"], 1.0, "{last}");
    assert!(last["loss"].as_f64().is_some_and(|loss| loss < 0.4), "{last}");
    Ok(())
}

/// The head goes with the adapter: in a resumed run, as the start of another run, and in the best adapter.
#[test]
fn heads_go_on_where_they_were() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, ..] = labelled(dir.path())?;
    let model = oracle("encoders/bert");
    let asked = [&CLASSES[..], &["--method", "lora", "--rank", "2", "--lr", "2e-2"]].concat();
    let steps = |n: &'static str| [&asked[..], &["--max-steps", n]].concat();
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    train(&model, &jsonl, &whole, &steps("12"))?;
    train(&model, &jsonl, &halves, &steps("5"))?;
    succeed(args!["train", "--resume", "--output", halves, "--max-steps", "12"])?;
    assert_eq!(losses(&halves)?, losses(&whole)?);
    let adapter = |run: &Path| fs::read(run.join("adapter_model.safetensors"));
    assert_eq!(adapter(&halves)?, adapter(&whole)?);

    let going_on = dir.path().join("going-on");
    let start = whole.to_string_lossy();
    let asked = [&CLASSES[..], &["--init-adapter", &start, "--lr", "1e-6", "--max-steps", "2"]];
    train(&model, &jsonl, &going_on, &asked.concat())?;
    assert!(loss(&going_on, 0)? < 0.7 * loss(&whole, 0)?, "{:?}", losses(&going_on)?);

    let held = dir.path().join("held");
    let more =
        ["--validation-data", &jsonl.to_string_lossy(), "--patience", "2", "--eval-every", "1"];
    let said = train(&model, &jsonl, &held, &[&steps("12")[..], &more].concat())?;
    assert!(said.stdout.contains("which is kept"), "{}", said.stdout);
    Ok(())
}

/// Two processes take the steps of one with twice the micro-batches.
#[test]
fn processes_train_one_head() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, ..] = labelled(dir.path())?;
    let asked = ["--method", "lora", "--rank", "2", "--lr", "5e-3", "--max-steps", "4"];
    let alike = ["--shuffle", "none", "--batch-size", "2"];
    let losses_of = |name: &str, more: [&str; 2]| -> Result<Vec<f64>> {
        let output = dir.path().join(name);
        let asked = [&CLASSES[..], &asked, &alike, &more].concat();
        train(&oracle("encoders/bert"), &jsonl, &output, &asked)?;
        (0..4).map(|step| loss(&output, step)).collect()
    };
    let two = losses_of("two", ["--processes", "2"])?;
    let one = losses_of("one", ["--grad-accum", "2"])?;
    for (two, one) in two.iter().zip(&one) {
        assert!((two - one).abs() < 1e-5, "{two} {one}"); // f32
    }
    assert!(one[3] < one[0], "{one:?}");
    Ok(())
}

/// Heads trained by PEFT have no class names, so labels are whole numbers.
#[test]
fn a_head_of_peft_is_trained_on() -> Result {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("tokens.jsonl");
    let row = |label: u32| json!({"input_ids": [5, 6, 7, 8 + label], "label": label}).to_string();
    fs::write(&data, [0, 1, 2, 1].map(row).join("\n"))?;
    let model = oracle("classification/models/bert");
    let start = oracle("classification/bert_lora").to_string_lossy().into_owned();
    let asked = [&CLASSES[..], &["--init-adapter", &start, "--max-steps", "2"]].concat();
    train(&model, &data, &dir.path().join("run"), &asked)?;
    fs::write(&data, [0, 1, 3].map(row).join("\n"))?;
    let refused = run(arguments(&model, &data, &dir.path().join("never"), &asked))?;
    let words = "its label \"3\" is none of the classes that the head tells, 0, 1, 2";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    Ok(())
}

/// The JSON of `reft eval`, and the lines of its predictions.
fn eval(task: &str, model: &Path, adapter: &Path, data: &Path) -> Result<(Value, Vec<Value>)> {
    let file = adapter.join("predictions.jsonl");
    let args =
        args!["eval", "--task", task, "--model", model, "--adapter", adapter, "--data", data];
    let said = succeed([args, args!["--predictions", file, "--json"]].concat())?;
    let lines = fs::read_to_string(&file)?;
    let lines = lines.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    Ok((serde_json::from_str(&said.stdout)?, lines))
}

#[test]
fn heads_are_measured_and_their_predictions_written() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, _, numbers] = labelled(dir.path())?;
    let bert = oracle("encoders/bert");
    let lora = ["--method", "lora", "--rank", "2", "--lr", "2e-2"];
    let asked = |objective: &'static str, more: &[&'static str]| {
        [&["--objective", objective][..], &lora, more].concat()
    };
    let classes = dir.path().join("classes");
    train(&bert, &jsonl, &classes, &asked("classification", &["--max-steps", "6"]))?;
    let (said, lines) = eval("classification", &bert, &classes, &jsonl)?;
    assert_eq!(said["classes"], json!(["open, at last", "shut"]));
    assert_eq!((said["examples"].as_u64(), lines.len()), (Some(8), 8));
    let right = lines.iter().filter(|line| line["label"] == line["expected"]).count();
    assert_eq!(said["accuracy"], right as f64 / 8.0);
    for (line, (_, class, _)) in lines.iter().zip(ROWS) {
        assert_eq!(line["expected"], class);
        assert!(line["score"].as_f64().is_some_and(|score| (0.5..1.0).contains(&score)), "{line}");
    }
    assert!(said["f1"].is_number() && said["matthews"].is_number(), "{said}");

    let trained = dir.path().join("numbers");
    train(&bert, &numbers, &trained, &asked("regression", &["--max-steps", "12"]))?;
    let (said, lines) = eval("regression", &bert, &trained, &numbers)?;
    let number = |line: &Value, name: &str| line[name].as_f64().unwrap_or(f64::NAN);
    let errors = lines.iter().map(|line| number(line, "score") - number(line, "expected"));
    let mean = errors.map(|error| error * error).sum::<f64>() / 8.0;
    assert!((number(&said, "mean_squared_error") - mean).abs() < 1e-12, "{said} {mean}");
    assert!(number(&said, "pearson") > 0.5 && number(&said, "spearman") > 0.5, "{said}");
    // the first loss of a run that starts from this adapter
    let (going_on, start) = (dir.path().join("going-on"), trained.to_string_lossy());
    let more = ["--objective", "regression", "--init-adapter", &start, "--max-steps", "1"];
    train(&bert, &numbers, &going_on, &[&more[..], &["--batch-size", "8"]].concat())?;
    assert!((loss(&going_on, 0)? - mean).abs() < 1e-5 * mean, "{:?} {mean}", losses(&going_on)?); // f32

    let chat = chat_model(dir.path(), PLAIN)?;
    let pairs = dir.path().join("pairs.csv");
    fs::write(&pairs, "prompt,chosen,rejected\na b,c d e,f\nsay d,e,g h\n")?;
    let reward = dir.path().join("reward");
    train(&chat, &pairs, &reward, &asked("reward", &["--max-steps", "12"]))?;
    let (said, lines) = eval("reward", &chat, &reward, &pairs)?;
    assert_eq!(said["accuracy"], 1.0, "{lines:?}");
    let generated = args!["generate", "--model", chat, "--adapter", reward, "--prompt", "a"];
    let generated = succeed([generated, args!["--max-new-tokens", "3"]].concat())?;
    assert!(generated.stderr.contains("has a head, which reft generate"), "{}", generated.stderr);
    Ok(())
}

#[test]
fn inspect_says_what_head_an_adapter_has() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, _, numbers] = labelled(dir.path())?;
    let bert = oracle("encoders/bert");
    let inspected = |name: &str, data: &Path, more: &[&str]| -> Result<(Value, String)> {
        let output = dir.path().join(name);
        train(&bert, data, &output, &[more, &["--rank", "2", "--max-steps", "1"]].concat())?;
        let said = succeed(args!["inspect", output, "--json"])?;
        let (said, text) =
            (serde_json::from_str(&said.stdout)?, succeed(args!["inspect", output])?);
        Ok((said, text.stdout))
    };
    let lora = ["--method", "lora", "--target-modules", "query,value"];
    let classes = [&CLASSES[..], &lora].concat();
    let (said, text) = inspected("classes", &jsonl, &classes)?;
    let d = 32; // of the model: two classes, each with d weights and a bias
    let expected =
        json!({"outputs": 2, "classes": ["open, at last", "shut"], "parameters": 2 * (d + 1)});
    assert_eq!(said["head"], expected);
    assert!(text.contains("classes open, at last, shut; 66 parameters beside these"), "{text}");
    // PEFT's file also has the head's tensors, which do not count as the adapter's parameters
    let (plain, _) =
        inspected("numbers", &numbers, &[&["--objective", "regression"][..], &lora].concat())?;
    assert_eq!(said["parameters"], plain["parameters"]);
    let (reft, text) = inspected("reft", &numbers, &["--objective", "regression"])?;
    assert_eq!(reft["head"], json!({"outputs": 1, "classes": [], "parameters": d + 1}));
    assert!(text.contains("a number or a reward; 33 parameters"), "{text}");
    let none = succeed(args!["inspect", oracle("encoders/bert/lora"), "--json"])?;
    assert!(serde_json::from_str::<Value>(&none.stdout)?["head"].is_null());
    Ok(())
}

/// With `--best`, the best validation has the values that `reft eval` measures for the kept adapter.
#[test]
fn the_best_adapter_is_chosen_by_the_metric_that_is_asked_for() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, _, numbers] = labelled(dir.path())?;
    let bert = oracle("encoders/bert");
    for (task, data, metric) in
        [("classification", &jsonl, "matthews"), ("regression", &numbers, "spearman")]
    {
        let (output, held_out) = (dir.path().join(task), data.to_string_lossy());
        let asked = ["--objective", task, "--method", "lora", "--rank", "2", "--lr", "2e-2"];
        let more = ["--validation-data", &held_out, "--best", metric, "--max-steps", "8"];
        let trained = train(&bert, data, &output, &[&asked[..], &more, &["--json"]].concat())?;
        let best = &serde_json::from_str::<Value>(&trained.stdout)?["best"];
        assert_eq!(best["chosen_by"][0], metric, "{best}");
        let text = fs::read_to_string(output.join("metrics.jsonl"))?;
        let rows: Vec<Value> =
            text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
        let validations: Vec<&Value> =
            rows.iter().filter(|row| row.get("validation_loss").is_some()).collect();
        let of = |row: &Value| row["measured"][metric].as_f64().unwrap_or(f64::NAN);
        let highest = validations[1..].iter().map(|row| of(row)).fold(f64::MIN, f64::max);
        assert_eq!(best["chosen_by"][1], highest);
        let kept = validations.iter().rfind(|row| row["is_best"] == true).ok_or("none is kept")?;
        assert_eq!((of(kept), &kept["step"]), (highest, &best["step"]));
        let (said, _) = eval(task, &bert, &output, data)?;
        for (name, value) in kept["measured"].as_object().ok_or("nothing was measured")? {
            let found = said[name].as_f64().unwrap_or_else(|| value.as_f64().unwrap_or(0.0)); // the loss
            let value = value.as_f64().ok_or("no number")?;
            assert!((found - value).abs() < 1e-6, "{task} {name}: {found} {value}"); // f32
        }
        let page = fs::read_to_string(output.join("report.html"))?;
        let step = &best["step"];
        assert!(page.contains(&format!("{highest:.4} after step {step}")), "{step} {highest}");
    }
    for (more, words) in [
        (["--best", "pearson", "--validation", "2"], "pearson beside objective classification"),
        (["--best", "f1", "--validation", "0"], "--best is f1, and no examples are held out"),
        (["--best", "bleu", "--validation", "2"], "unknown metric"),
    ] {
        let asked = [&CLASSES[..], &more].concat();
        let refused = run(arguments(&bert, &jsonl, &dir.path().join("never"), &asked))?;
        assert!(refused.code != Some(0) && refused.stderr.contains(words), "{}", refused.stderr);
    }
    Ok(())
}

#[test]
fn what_no_head_can_tell_is_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, _, numbers] = labelled(dir.path())?;
    let bert = oracle("encoders/bert");
    let alone = dir.path().join("alone");
    let asked = [&CLASSES[..], &["--method", "head", "--max-steps", "2"]].concat();
    train(&bert, &jsonl, &alone, &asked)?;
    let plain = oracle("encoders/bert/lora");
    for (task, adapter, data, more, words) in [
        ("classification", None, &jsonl, &[][..], "--objective classification"),
        ("classification", Some(&plain), &jsonl, &[], "none of the adapters has one"),
        ("classification", Some(&alone), &numbers, &[], "is no class"),
        ("regression", Some(&alone), &numbers, &[], "2 outputs, regression expects 1"),
        ("classification", Some(&alone), &jsonl, &["--compare-base"], "--compare-base"),
        ("classification", Some(&alone), &jsonl, &["--template", "chat"], "--template"),
        ("lm", Some(&alone), &jsonl, &["--predictions", "x"], "--predictions"),
    ] {
        let mut args = args!["eval", "--task", task, "--model", bert, "--data", data];
        args.extend(adapter.into_iter().flat_map(|adapter| args!["--adapter", adapter]));
        args.extend(more.iter().map(Into::into));
        let refused = run(args)?;
        assert_eq!(refused.code, Some(1), "{task}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    Ok(())
}

#[test]
fn what_no_head_can_learn_is_refused_with_what_to_do() -> Result {
    let dir = tempfile::tempdir()?;
    let [jsonl, _, numbers] = labelled(dir.path())?;
    let file = |name: &str, text: &str| -> Result<PathBuf> {
        fs::write(dir.path().join(name), text)?;
        Ok(dir.path().join(name))
    };
    let one = file("one.csv", "text,label\nthe,a\nopen,a\n")?;
    let other = file("other.csv", "text,label\nthe,open\nopen,elsewhere\n")?;
    let questions = file("questions.csv", "question,answer\na,b\n")?;
    let empty = file("empty.jsonl", "{\"text\": \"the\", \"label\": \" \"}\n")?;
    let pairs = file("pairs.csv", "prompt,chosen,rejected\na b,c d e,f\n")?;
    let other = other.to_string_lossy();
    let chat = chat_model(dir.path(), PLAIN)?;
    let [bert, modernbert] = ["bert", "modernbert"].map(|name| oracle("encoders").join(name));
    let regression = ["--objective", "regression"];
    for (model, data, more, words) in [
        (&chat, &jsonl, &[][..], "--objective classification or regression learns"),
        (
            &bert,
            &questions,
            &[],
            "train --objective classification` or `regression` trains a head on it",
        ),
        (&chat, &questions, &CLASSES, "--columns text=COLUMN,label=COLUMN"),
        (&bert, &one, &CLASSES, "all rows have the label \"a\""),
        (&bert, &empty, &CLASSES, "label is empty"),
        (&bert, &jsonl, &regression, "is no number; --objective classification"),
        (&bert, &numbers, &CLASSES, "--objective regression learns numbers"),
        (
            &bert,
            &jsonl,
            &[&CLASSES[..], &["--validation-data", &other]].concat(),
            "none of the classes",
        ),
        (&modernbert, &jsonl, &CLASSES, "the head of modernbert is not computed"),
        (
            &bert,
            &pairs,
            &["--objective", "reward"],
            "bert is an encoder, whose head reads the first token",
        ),
        (&bert, &jsonl, &[&CLASSES[..], &["--kl-weight", "1"]].concat(), "--replay"),
        (&bert, &jsonl, &[&CLASSES[..], &["--template", "plain"]].concat(), "--template is plain"),
        (&bert, &jsonl, &[&CLASSES[..], &["--sample-prompt", "a"]].concat(), "--sample-prompt"),
        (&bert, &jsonl, &[&CLASSES[..], &["--beta", "1"]].concat(), "--beta"),
        (&bert, &jsonl, &[&CLASSES[..], &["--response-tokens", "1"]].concat(), "--response-tokens"),
        (&chat, &questions, &["--method", "head"], "has no parameter to train"),
    ] {
        let output = dir.path().join("never");
        let refused = run(arguments(model, data, &output, more))?;
        assert_eq!(refused.code, Some(1), "{more:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
        assert!(!output.exists(), "{more:?}");
    }
    Ok(())
}
