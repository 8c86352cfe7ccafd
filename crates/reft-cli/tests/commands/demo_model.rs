//! The demo model, SmolLM2-135M-Instruct, against transformers: text in, text and numbers out.

use reft_test_support::{assert_values_close, values};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::Result;
use crate::files::integers;
use crate::runs::{Run, args, command, oracle, succeed};

fn model() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct");
    if !path.join("model.safetensors").exists() {
        return Err("the demo model is not there; run cargo xtask model".into());
    }
    Ok(path)
}

fn reference() -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(oracle("smollm2/smollm2.json"))?)?)
}

#[test]
fn logits_of_the_demo_model_equal_those_of_transformers() -> Result {
    let dir = tempfile::tempdir()?;
    let (input, output) = (dir.path().join("in.json"), dir.path().join("out.safetensors"));
    let file = oracle("smollm2/logits.safetensors");
    let expected = values(&file)?;
    let ids: Vec<Vec<i64>> = (0..2)
        .map(|i| integers(&file, &format!("seq{i}.input_ids")).map(|rows| rows.concat()))
        .collect::<Result<_>>()?;
    fs::write(&input, json!({"input_ids": ids, "labels": ids}).to_string())?;
    succeed(args![
        "logits",
        "--model",
        model()?,
        "--input",
        input,
        "--output",
        output,
        "--left-pad"
    ])?;
    let found = values(&output)?;
    let (shape, logits) = &found["logits"];
    let (t, v) = (shape[1], shape[2]);
    let (mut sum, mut count) = (0.0, 0.0);
    for (row, ids) in ids.iter().enumerate() {
        let token = |i: usize| &logits[(row * t + i) * v..(row * t + i + 1) * v];
        let last = token(ids.len() - 1);
        let top_ids = integers(&file, &format!("seq{row}.top50_ids"))?.concat();
        let top: Vec<f32> = top_ids.iter().map(|&id| last[id as usize]).collect();
        // 30 layers in f32, logits up to 16, sums in another order: measured below 1e-3.
        assert_values_close("top 50", &top, &expected[&format!("seq{row}.top50_logits")].1, 5e-3);
        let log_probability = |i: usize| {
            let largest = token(i).iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = token(i).iter().map(|x| f64::from(x - largest).exp()).sum();
            f64::from(token(i)[ids[i + 1] as usize] - largest) - sum.ln()
        };
        let found: Vec<f32> = (0..ids.len() - 1).map(|i| log_probability(i) as f32).collect();
        assert_values_close(
            "log p",
            &found,
            &expected[&format!("seq{row}.token_logprobs")].1,
            1e-3,
        );
        sum -= found.iter().map(|x| f64::from(*x)).sum::<f64>();
        count += found.len() as f64;
    }
    // the mean over the tokens of both rows, as the labels ask; f32 in another order
    assert!((f64::from(found["loss"].1[0]) - sum / count).abs() < 1e-4);
    Ok(())
}

#[test]
fn greedy_replies_of_the_demo_model_equal_those_of_transformers() -> Result {
    let dir = tempfile::tempdir()?;
    let model = model()?;
    let cases = reference()?["greedy"].as_array().cloned().unwrap_or_default();
    let prompts: Vec<&str> = cases.iter().filter_map(|case| case["prompt"].as_str()).collect();
    assert_eq!(prompts.len(), 3);
    let input = dir.path().join("prompts.txt");
    fs::write(&input, prompts.join("\n"))?;
    let batched = succeed(args![
        "generate",
        "--model",
        model,
        "--input",
        input,
        "--chat",
        "--max-new-tokens",
        "40",
        "--json"
    ])?;
    let batched: Value = serde_json::from_str(&batched.stdout)?;
    for (case, reply) in cases.iter().zip(batched["rows"].as_array().ok_or("no rows")?) {
        assert_eq!(case["new_ids"], reply["ids"], "{}", case["prompt"]);
    }
    let streamed = succeed(args![
        "generate",
        "--model",
        model,
        "--prompt",
        prompts[0],
        "--chat",
        "--max-new-tokens",
        "40"
    ])?;
    assert_eq!(streamed.stdout, "The capital of France is Paris.\n");
    let stopped = succeed(args![
        "generate",
        "--model",
        model,
        "--prompt",
        prompts[0],
        "--chat",
        "--stop",
        " France",
        "--max-new-tokens",
        "40"
    ])?;
    assert_eq!(stopped.stdout, "The capital of\n");
    Ok(())
}

/// The findings of docs/interpretability.md about the gender of a noun: at the noun up to layer 20, at the last token from layer 26 on.
#[test]
fn patching_finds_the_gender_of_a_noun_where_alignment_search_does() -> Result {
    let texts = args!["--base", "The king walked because", "--source", "The queen walked because"];
    let patch = [args!["patch", "--model", model()?, "--metric", "logit( he)-logit( she)"], texts];
    let found = succeed([patch.concat(), args!["--json"]].concat())?;
    let found: Value = serde_json::from_str(&found.stdout)?;
    let map = found["sites"][0]["patching"].as_array().ok_or("no map")?;
    assert_eq!(map.len(), 30);
    for (layer, tokens) in map.iter().enumerate() {
        let share = |token: usize| tokens[token].as_f64().unwrap_or(f64::NAN);
        let [noun, last] = [share(1), share(3)];
        let holds = match layer {
            0..=20 => noun > 0.9 && last < 0.3,
            26.. => last > 0.9 && noun < 0.3,
            _ => noun + last > 0.6, // between the two tokens
        };
        assert!(holds, "layer {layer}: noun {noun}, last token {last}");
    }
    Ok(())
}

#[test]
fn a_conversation_keeps_its_history_until_it_is_reset() -> Result {
    let lines =
        "What is the capital of France?\nAnd of Italy?\n/reset\nAnd of Italy?\n/quit\nnever read\n";
    let chat = args!["chat", "--model", model()?, "--max-new-tokens", "24"];
    let mut run = command(chat)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    run.stdin.take().ok_or("no stdin")?.write_all(lines.as_bytes())?;
    let ended = Run::from(run.wait_with_output()?);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let replies: Vec<&str> = ended.stdout.lines().filter(|line| !line.is_empty()).collect();
    assert!(ended.stderr.contains("begins anew"), "{}", ended.stderr);
    let expected = ["The capital of France is Paris.", "The capital of Italy is Rome."];
    assert_eq!(replies[..2], expected, "{}", ended.stdout);
    assert!(!replies[2..].concat().contains("Rome"), "{}", ended.stdout);
    assert_eq!(replies.len(), 3, "{}", ended.stdout);
    Ok(())
}
