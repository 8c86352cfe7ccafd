//! Commands that look inside a model: their numbers are those of `reft logits` and `reft generate`.

use reft_test_support::{assert_values_close, values};
use std::fs;

use serde_json::{Value, json};

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::runs::{args, run, succeed};

fn json_of(words: Vec<std::ffi::OsString>) -> Result<Value> {
    Ok(serde_json::from_str(&succeed([words, args!["--json"]].concat())?.stdout)?)
}

#[test]
fn tokens_are_shown_with_their_places() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let tokenize = args!["tokenize", "--model", model, "--text", "a b"];
    let found = json_of(tokenize.clone())?;
    assert_eq!(found[0]["tokens"], json!(["a", " ", "b"]));
    assert_eq!(found[0]["ids"], json!([69, 4, 70]));
    let text = succeed(tokenize.clone())?.stdout;
    let last: Vec<&str> = text.lines().last().ok_or("no line")?.split_whitespace().collect();
    assert_eq!(last, ["2", "−1", "70", "\"b\""]);
    let framed = json_of([tokenize, args!["--chat"]].concat())?;
    assert_eq!(framed[0]["tokens"][0], "<|im_start|>");
    Ok(())
}

#[test]
fn states_are_those_of_a_forward_with_the_adapter() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let (data, adapter) = (dir.path().join("data.jsonl"), dir.path().join("adapter"));
    fs::write(&data, "{\"prompt\": \"abc\", \"completion\": \"d\"}\n")?;
    let train = args!["train", "--model", model, "--data", data, "--output", adapter];
    let few = args!["--max-steps", "3", "--lr", "5e-2", "--rank", "2", "--threads", "1"];
    succeed([train, few].concat())?;
    let states = dir.path().join("states.safetensors");
    let words = args!["states", "--model", model, "--prompt", "abc", "--prompt", "zcax"];
    let choice = args!["--tokens", "last,c", "--layers", "1;3", "--sites", "block_output,head_2"];
    let output = args!["--output", states];
    let states_of = |more: Vec<std::ffi::OsString>| -> Result<_> {
        succeed([words.clone(), choice.clone(), output.clone(), more].concat())?;
        values(&states)
    };
    let plain = states_of(args![])?;
    let edited = states_of(args!["--adapter", adapter])?;
    assert_eq!(edited["head_2.3"].0, [3, 16]); // abc: its c is its last; zcax: c and x
    let input = dir.path().join("batch.json");
    fs::write(&input, json!({"input_ids": [[69, 70, 71], [94, 71, 69, 92]]}).to_string())?;
    let logits = dir.path().join("logits.safetensors");
    let forward = args!["logits", "--model", model, "--input", input, "--output", logits];
    succeed([forward, args!["--hidden-states", "--adapter", adapter]].concat())?;
    let (hidden, d) = (values(&logits)?, 64);
    for layer in [1, 3] {
        let whole = &hidden[&format!("hidden.{}", layer + 1)].1; // [2, 4, d]
        let row = |prompt: usize, token: usize| &whole[(prompt * 4 + token) * d..][..d];
        let expected = [row(0, 2), row(1, 1), row(1, 3)].concat();
        let name = format!("block_output.{layer}");
        assert_values_close(&name, &edited[&name].1, &expected, 1e-6);
        assert!(edited[&name] != plain[&name], "no power");
    }
    let none = run([words, args!["--tokens", "q"], output].concat())?;
    assert!(none.code == Some(1) && none.stderr.contains("has no token"), "{}", none.stderr);
    Ok(())
}

#[test]
fn the_lens_ends_with_what_is_generated_and_patching_with_the_source() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let page = dir.path().join("lens.html");
    let lens = args!["lens", "--model", model, "--prompt", "hello", "--output", page];
    let lens = json_of(lens)?;
    let generate = args!["generate", "--model", model, "--prompt", "hello"];
    let reply = json_of([generate, args!["--max-new-tokens", "1"]].concat())?;
    let layers = lens["layers"].as_array().ok_or("no layers")?;
    assert_eq!(layers.len(), 4);
    let last = &layers[3]["tokens"][4][0];
    assert_eq!(last["id"], reply["rows"][0]["ids"][0]);
    let share = last["probability"].as_f64().ok_or("a share")?;
    assert!(share > 0.0 && share < 1.0, "{share}");
    let page = fs::read_to_string(page)?;
    assert!(page.contains("<svg") && page.contains("Logit lens") && !page.contains("http"));

    let page = dir.path().join("patch.html");
    let patch = args!["patch", "--model", model, "--base", "abcd", "--source", "axcd"];
    let sites = args!["--sites", "block_output,attention_output", "--output", page];
    let found = json_of([patch.clone(), args!["--metric", "logit(e)-prob(f)"], sites].concat())?;
    let map = &found["sites"][0]["patching"];
    let value = |layer: usize, token: usize| map[layer][token].as_f64().unwrap_or(f64::NAN);
    let near = |found: f64, expected: f64| (found - expected).abs() < 1e-3; // of f32 differences
    assert!(near(value(3, 3), 1.0) && near(value(3, 1), 0.0), "{map}");
    assert!(near(value(0, 0), 0.0), "the first token is the same in both: {map}");
    assert!(!near(value(0, 1), 0.0), "{map}");
    let page = fs::read_to_string(page)?;
    assert_eq!(page.matches("<figure>").count(), 4);
    for (more, says) in [
        (args!["--metric", "e"], "logit(TOKEN)"),
        (args!["--metric", "logit(ab)"], "one token"),
        (args!["--metric", "logit(e)", "--source", "abc"], "as many in both"),
        (args!["--metric", "logit(e)", "--source", "abcd"], "tells them apart"),
        (args!["--metric", "logit(e)", "--sites", "head_9"], "head_9"),
    ] {
        let words = crate::runs::overridden([patch.clone(), more].concat());
        let refused = run(words)?;
        assert!(refused.code == Some(1) && refused.stderr.contains(says), "{}", refused.stderr);
    }
    Ok(())
}

#[test]
fn attention_is_a_page_of_heads_and_a_file_of_weights() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let (page, weights) = (dir.path().join("attention.html"), dir.path().join("w.safetensors"));
    let attention = args!["attention", "--model", model, "--prompt", "hello", "--threads", "1"];
    let files = args!["--layers", "1;3", "--output", page, "--weights", weights];
    succeed([attention.clone(), files.clone()].concat())?;
    let plain = values(&weights)?;
    assert_eq!(plain.keys().collect::<Vec<_>>(), ["layer.1", "layer.3"]);
    let (shape, weight) = &plain["layer.3"];
    assert_eq!(*shape, [4, 5, 5]);
    for row in weight.chunks(5) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
    }
    let html = fs::read_to_string(&page)?;
    assert!(html.contains("data-queries=\"[&quot;h&quot;,&quot;e&quot;,&quot;l&quot;"), "{html}");
    assert_eq!(html.matches("<button").count(), 8);
    assert!(!html.contains("http"), "the page names something outside");
    // the last head of the last layer: the page has the file's weights, rounded to 1/4095
    let held = html.rsplit("data-weights=\"").next().and_then(|rest| rest.split('"').next());
    let held = held.ok_or("no weights on the page")?;
    let steps: Vec<f32> = (0..25)
        .map(|i| Ok(f32::from(u16::from_str_radix(&held[3 * i..3 * i + 3], 16)?) / 4095.0))
        .collect::<Result<_>>()?;
    assert_values_close("the page", &steps, &weight[75..], 0.5 / 4095.0 + 1e-6);

    // the heads also look at a prefix and at virtual tokens
    let (data, adapters) = (dir.path().join("data.jsonl"), dir.path().join("adapters"));
    fs::write(&data, "{\"prompt\": \"abc\", \"completion\": \"d\"}\n")?;
    for (method, queries, keys) in [("prefix", 5, 8), ("prompt", 8, 8)] {
        let adapter = adapters.join(method);
        let train = args!["train", "--model", model, "--data", data, "--output", adapter];
        let few = args![
            "--max-steps",
            "2",
            "--method",
            method,
            "--n-virtual-tokens",
            "3",
            "--threads",
            "1"
        ];
        succeed([train, few].concat())?;
        succeed([attention.clone(), files.clone(), args!["--adapter", adapter]].concat())?;
        let found = values(&weights)?;
        assert_eq!(found["layer.3"].0, [4, queries, keys], "{method}");
        let html = fs::read_to_string(&page)?;
        let label =
            if method == "prefix" { "&quot;prefix 0&quot;" } else { "&quot;virtual 0&quot;" };
        assert!(html.contains(label), "{method}");
    }
    let none = run(attention.clone())?;
    assert!(none.code == Some(2) && none.stderr.contains("--output"), "{}", none.stderr);
    let layer = run([attention, args!["--layers", "9", "--output", page]].concat())?;
    assert!(layer.code == Some(1) && layer.stderr.contains("layer 9"), "{}", layer.stderr);
    Ok(())
}
