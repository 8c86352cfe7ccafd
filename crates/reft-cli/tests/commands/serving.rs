//! `reft serve`: replies, against `reft generate` and `reft logits`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use reft_test_support::assert_values_close;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::Result;
use crate::conversations::chat_model;
use crate::logits::import;
use crate::runs::{args, oracle, succeed};
use crate::serve_client::{Served, talking_model};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// The reply of `reft generate` to a prompt.
fn generated(model: &Path, adapters: &[&Path], prompt: &str, more: &[&str]) -> Result<String> {
    let mut all =
        args!["generate", "--model", model, "--prompt", prompt, "--json", "--threads", "1"];
    for adapter in adapters {
        all.extend(args!["--adapter", adapter]);
    }
    all.extend(more.iter().map(OsString::from));
    let reply: Value = serde_json::from_str(&succeed(all)?.stdout)?;
    Ok(reply["rows"][0]["text"].as_str().ok_or("no text")?.to_owned())
}

#[test]
fn replies_of_base_and_adapters_in_one_batch_are_those_of_generate() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let (loreft, nodireft) = (import(dir.path(), "loreft")?, import(dir.path(), "nodireft")?);
    let named = |name: &str, path: &Path| OsString::from(format!("{name}={}", path.display()));
    let served = Served::start(
        &model,
        &args!["--adapter", named("one", &loreft), "--adapter", named("other", &nodireft)],
    )?;
    let (prompt, short) = ("The ocean is", ["--max-new-tokens", "24"]);
    let both = json!({"adapters": [{"name": "one"}, {"name": "other", "strength": 1.0}]});
    let cases = [
        (generated(&model, &[], prompt, &short)?, "tiny", Value::Null),
        (generated(&model, &[&loreft], prompt, &short)?, "one", Value::Null),
        (generated(&model, &[&nodireft], prompt, &short)?, "other", Value::Null),
        (generated(&model, &[&loreft, &nodireft], prompt, &short)?, "tiny", both),
    ];
    let texts: BTreeSet<&String> = cases.iter().map(|(text, ..)| text).collect();
    assert!(texts.len() >= 3, "the test has no power: {texts:?}");
    std::thread::scope(|scope| -> Result {
        let ask = |(_, name, reft): &(String, &str, Value)| {
            let body = json!({"model": name, "prompt": prompt, "max_tokens": 24, "temperature": 0, "reft": reft});
            served.text(&body).map_err(|error| error.to_string())
        };
        let asked: Vec<_> = cases.iter().map(|case| scope.spawn(move || ask(case))).collect();
        for (asked, (expected, name, _)) in asked.into_iter().zip(&cases) {
            assert_eq!(&asked.join().map_err(|_| "panicked")??, expected, "{name}");
        }
        Ok(())
    })?;
    // a chat is framed by the template
    let messages =
        json!([{"role": "system", "content": "be"}, {"role": "user", "content": "who?"}]);
    let expected = generated(
        &model,
        &[&loreft],
        "who?",
        &["--chat", "--system", "be", "--max-new-tokens", "9"],
    )?;
    let body =
        json!({"model": "one", "messages": messages, "max_completion_tokens": 9, "temperature": 0});
    let reply = served.reply(CHAT, &body)?;
    assert_eq!(reply["choices"][0]["message"]["content"], expected);
    assert_eq!(reply["choices"][0]["message"]["role"], "assistant");
    assert_eq!((&reply["object"], &reply["model"]), (&json!("chat.completion"), &json!("one")));
    assert_eq!(reply["usage"]["completion_tokens"], 9);
    // strength 0.5 differs from strengths 0 and 1
    let at = |strength: f64| {
        let reft = json!({"adapters": [{"name": "one", "strength": strength}]});
        served.reply(COMPLETIONS, &json!({"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5, "reft": reft}))
    };
    let top = |reply: &Value| reply["choices"][0]["logprobs"]["top_logprobs"][0].to_string();
    let (none, half, whole) = (top(&at(0.0)?), top(&at(0.5)?), top(&at(1.0)?));
    let base = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 5});
    assert_eq!(none, top(&served.reply(COMPLETIONS, &base)?));
    assert!(half != none && half != whole && none != whole, "{none} {half} {whole}");
    // a subspace of one coordinate is another edit
    let reft = json!({"adapters": [{"name": "one", "subspace": [0]}]});
    let mut part = base.clone();
    part["reft"] = reft;
    assert_ne!(top(&served.reply(COMPLETIONS, &part)?), whole);
    let models = served.get("/v1/models")?.json()?;
    let listed = |model: &Value| (model["id"].clone(), model["parent"].clone());
    let listed: Vec<_> = models["data"].as_array().ok_or("no list")?.iter().map(listed).collect();
    let expected = [("tiny", Value::Null), ("one", json!("tiny")), ("other", json!("tiny"))];
    assert_eq!(listed, expected.map(|(name, parent)| (json!(name), parent)));
    Ok(())
}

/// The events of a stream joined, by choice: text, logprobs and why it ends.
fn joined(events: &[Value]) -> BTreeMap<u64, (String, Vec<Value>, Value)> {
    let mut all: BTreeMap<u64, (String, Vec<Value>, Value)> = BTreeMap::new();
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let own = all.entry(choice["index"].as_u64().unwrap_or(99)).or_default();
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str());
        own.0 += text.unwrap_or_default();
        let tokens = choice["logprobs"]["content"]
            .as_array()
            .or(choice["logprobs"]["token_logprobs"].as_array());
        own.1.extend(tokens.into_iter().flatten().cloned());
        assert!(own.2.is_null(), "it goes on after its end");
        own.2 = choice["finish_reason"].clone();
    }
    all
}

/// Equal up to the rounding of scores, which depends on the rest of the batch: f32, measured 5e-6 for numbers up to 7.
fn assert_alike(found: &Value, expected: &Value) {
    let list = |value: &Value| value.as_array().cloned();
    let fields = |value: &Value| value.as_object().cloned();
    match (found.as_f64().zip(expected.as_f64()), list(found).zip(list(expected))) {
        (Some((found, expected)), _) => {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}")
        }
        (None, Some((found, expected))) => {
            assert_eq!(found.len(), expected.len());
            found.iter().zip(&expected).for_each(|(found, expected)| assert_alike(found, expected));
        }
        (None, None) => match fields(found).zip(fields(expected)) {
            Some((found, expected)) => {
                assert!(found.keys().eq(expected.keys()), "{found:?}");
                found.iter().for_each(|(name, found)| assert_alike(found, &expected[name]));
            }
            None => assert_eq!(found, expected),
        },
    }
}

#[test]
fn streams_come_to_the_same_and_seeds_repeat() -> Result {
    let dir = tempfile::tempdir()?;
    let served = Served::start(&talking_model(dir.path())?, &[])?;
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "tell"}]}]);
    let mut body = json!({"model": "tiny", "messages": messages, "max_tokens": 30, "seed": 7, "n": 3,
        "temperature": 1.5, "top_p": 0.95, "logprobs": true, "top_logprobs": 2});
    let whole = served.reply(CHAT, &body)?;
    assert_alike(&whole["choices"], &served.reply(CHAT, &body)?["choices"]);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = served.events(CHAT, &body)?;
    let closing = events.pop().ok_or("no event")?;
    assert_eq!((&closing["choices"], &closing["usage"]), (&json!([]), &whole["usage"]));
    assert!(events.iter().all(|event| event.get("usage") == Some(&Value::Null)));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let parts = joined(&events);
    let choices = whole["choices"].as_array().ok_or("no choices")?;
    assert_eq!(parts.len(), 3);
    let mut texts = Vec::new();
    for (choice, (index, (text, tokens, finish))) in choices.iter().zip(parts) {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], text);
        assert_alike(&choice["logprobs"]["content"], &json!(tokens));
        let letters = tokens.iter().filter_map(|token| token["token"].as_str());
        let letters: String = letters.filter(|token| token.len() == 1).collect(); // no special ones
        assert_eq!(letters, text);
        assert_eq!(choice["finish_reason"], finish);
        texts.push(text);
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "choices draw alike: {texts:?}");
    let object = body.as_object_mut().ok_or("no object")?;
    object.remove("stream_options");
    object.insert("seed".to_owned(), json!(8));
    assert_ne!(served.reply(CHAT, &body)?["choices"], whole["choices"], "another seed");
    // prompts in every form are the same tokens
    let ask = |prompt: Value| {
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0});
        Ok::<_, Box<dyn std::error::Error>>(served.reply(COMPLETIONS, &body)?["choices"].clone())
    };
    let texts = |choices: Value| -> Vec<Value> {
        choices.as_array().into_iter().flatten().map(|choice| choice["text"].clone()).collect()
    };
    let ids: Vec<i64> = "ab".bytes().map(|byte| i64::from(byte) - 32 + 4).collect();
    let one = texts(ask(json!("ab"))?);
    assert_eq!(texts(ask(json!(ids))?), one);
    let several = texts(ask(json!(["cd", "ab"]))?);
    assert_eq!(several[1..], one);
    assert_ne!(several[0], several[1]);
    assert_eq!(texts(ask(json!([[1, 2, 3], ids]))?)[1..], one);
    Ok(())
}

#[test]
fn texts_that_end_a_reply_are_never_sent() -> Result {
    let dir = tempfile::tempdir()?;
    let served = Served::start(&talking_model(dir.path())?, &[])?;
    let body = json!({"model": "tiny", "prompt": "once", "max_tokens": 40, "temperature": 1.3, "seed": 3, "logprobs": 0});
    let text = served.text(&body)?;
    let letters: Vec<char> = text.chars().collect();
    assert!(letters.len() > 20, "the test has no power: {text:?}");
    // a token is a letter: a stop of four is in four tokens, and its beginning may come before
    let stop: String = letters[12..16].iter().collect();
    let expected = text.split(&stop).next().unwrap_or_default();
    let mut stopped = body.clone();
    stopped["stop"] = json!(["never there", stop]);
    let reply = served.reply(COMPLETIONS, &stopped)?;
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(expected), &json!("stop")));
    let tokens = |choice: &Value| -> String {
        let tokens = choice["logprobs"]["tokens"].as_array().into_iter().flatten();
        tokens.filter_map(Value::as_str).collect()
    };
    assert_eq!(tokens(choice), expected);
    let events = served.events(COMPLETIONS, &stopped)?;
    let (sent, _, finish) = joined(&events).remove(&0).ok_or("no choice")?;
    assert_eq!((sent.as_str(), finish), (expected, json!("stop")));
    let told: String = events.iter().map(|event| tokens(&event["choices"][0])).collect();
    assert_eq!(told, expected);
    assert!(
        reply["usage"]["completion_tokens"]
            .as_u64()
            .is_some_and(|n| n as usize >= expected.chars().count() + 4)
    );
    Ok(())
}

#[test]
fn log_probabilities_are_those_of_logits() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let adapter = import(dir.path(), "loreft")?;
    let named = OsString::from(format!("edit={}", adapter.display()));
    let served = Served::start(&model, &args!["--adapter", named])?;
    let prompt = [5, 17, 99, 3, 64, 30, 8];
    let (input, output) = (dir.path().join("in.json"), dir.path().join("out.safetensors"));
    fs::write(&input, json!({"input_ids": [prompt]}).to_string())?;
    for (name, more) in [("tiny", args![]), ("edit", args!["--adapter", adapter])] {
        let logits = args![
            "logits",
            "--model",
            model,
            "--input",
            input,
            "--output",
            output,
            "--threads",
            "1"
        ];
        succeed([logits, more].concat())?;
        let bytes = fs::read(&output)?;
        let logits = SafeTensors::deserialize(&bytes)?;
        let data: Vec<f32> = logits
            .tensor("logits")?
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let last = &data[data.len() - 128..];
        let sum = last.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let expected: Vec<f32> = last.iter().map(|x| (f64::from(*x) - sum) as f32).collect();
        // penalties and temperature change the sampled token, not the reported log-probabilities
        let body = json!({"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0.7, "seed": 1,
            "repetition_penalty": 1.2, "logprobs": 9});
        let reply = served.reply(COMPLETIONS, &body)?;
        let told = reply["choices"][0]["logprobs"]["top_logprobs"][0].as_object().ok_or("none")?;
        let of_letter = |(text, told): (&String, &Value)| {
            let letter = text.chars().next().filter(|letter| (' '..='~').contains(letter))?;
            if text.len() > 1 {
                return None; // a special token
            }
            Some((told.as_f64()? as f32, expected[letter as usize - 32 + 4]))
        };
        let (told, found): (Vec<f32>, Vec<f32>) = told.iter().filter_map(of_letter).unzip();
        assert!(told.len() >= 4, "{reply}");
        assert_values_close(name, &told, &found, 1e-5); // f32 logits, computed by the same code
        let best = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert!(told.iter().all(|told| *told < best + 1e-5), "above the best: {told:?}");
    }
    Ok(())
}

/// A template that prints tools and a variable.
const WITH_TOOLS: &str = "{{ '<|im_start|>' }}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}\
                          {% if loud %}LOUD{% endif %}{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}";

#[test]
fn templates_have_tools_and_the_variables_that_an_adapter_was_trained_with() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), WITH_TOOLS)?;
    let (data, adapter) = (dir.path().join("rows.jsonl"), dir.path().join("adapter"));
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    fs::write(&data, format!("{row}\n"))?;
    succeed(args![
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output",
        adapter,
        "--max-steps",
        "1",
        "--threads",
        "1",
        "--chat-var",
        "loud=true"
    ])?;
    let named = OsString::from(format!("loud={}", adapter.display()));
    let served = Served::start(&model, &args!["--adapter", named])?;
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 1});
    let prompt_tokens = |changed: Value| -> Result<u64> {
        let mut body = body.clone();
        body.as_object_mut()
            .into_iter()
            .for_each(|own| own.extend(changed.as_object().cloned().unwrap_or_default()));
        Ok(served.reply(CHAT, &body)?["usage"]["prompt_tokens"].as_u64().ok_or("no number")?)
    };
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let by_reft = json!({"adapters": [{"name": "loud", "strength": 0.5}]});
    assert_eq!(prompt_tokens(json!({}))?, 4);
    assert_eq!(prompt_tokens(json!({"tools": tools}))?, 4 + 7);
    assert_eq!(prompt_tokens(json!({"tools": tools, "tool_choice": "none"}))?, 4);
    assert_eq!(prompt_tokens(json!({"chat_template_kwargs": {"loud": true}}))?, 4 + 4);
    assert_eq!(prompt_tokens(json!({"model": "loud"}))?, 4 + 4);
    assert_eq!(prompt_tokens(json!({"reft": by_reft}))?, 4 + 4);
    assert_eq!(
        prompt_tokens(json!({"model": "loud", "chat_template_kwargs": {"loud": false}}))?,
        4
    );
    // a request without max_tokens ends at the end of the context
    let mut endless = body.clone();
    endless.as_object_mut().into_iter().for_each(|own| drop(own.remove("max_tokens")));
    endless["ignore_eos"] = json!(true);
    let reply = served.reply(CHAT, &endless)?;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["total_tokens"], 256);
    Ok(())
}

/// Methods other than ReFT share a batch: LoRA, which also acts on replies, and tokens before the prompt.
#[test]
fn lora_and_prefixes_share_a_batch_and_a_prefix_has_no_strength() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let adapters = ["lora_qv", "prefix", "prompt"].map(|name| (name, oracle("peft").join(name)));
    let flags = adapters.iter().flat_map(|(name, path)| {
        args!["--adapter", OsString::from(format!("{name}={}", path.display()))]
    });
    let served = Served::start(&model, &flags.collect::<Vec<_>>())?;
    let ask = |name: &str| {
        let body =
            json!({"model": name, "prompt": "The ocean is", "max_tokens": 12, "temperature": 0});
        served.text(&body).map_err(|error| error.to_string())
    };
    std::thread::scope(|scope| -> Result {
        let asked: Vec<_> =
            adapters.iter().map(|(name, _)| scope.spawn(move || ask(name))).collect();
        for (asked, (name, path)) in asked.into_iter().zip(&adapters) {
            let expected = generated(&model, &[path], "The ocean is", &["--max-new-tokens", "12"])?;
            assert_eq!(asked.join().map_err(|_| "panicked")??, expected, "{name}");
            assert_ne!(expected, ask("tiny")?, "{name} changes nothing");
        }
        Ok(())
    })?;
    for (entries, says) in [
        (json!([{"name": "prefix", "strength": 0.5}]), "it takes 1 only"),
        (json!([{"name": "prefix"}, {"name": "prefix"}]), "both bring a prefix"),
        (json!([{"name": "lora_qv", "subspace": [0]}]), "subspace"),
    ] {
        let body = json!({"model": "tiny", "prompt": "a", "reft": {"adapters": entries}});
        let answer = served.post(COMPLETIONS, &body)?;
        let error = &answer.json()?["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!("reft.adapters")),
            "{}",
            answer.text
        );
        assert!(
            error["message"].as_str().is_some_and(|said| said.contains(says)),
            "{}",
            answer.text
        );
    }
    Ok(())
}

#[test]
fn directions_steer_beside_any_adapter() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let (edit, direction) = (import(dir.path(), "loreft")?, dir.path().join("direction"));
    for (name, text) in [("towards", "the ocean"), ("away", "a mountain")] {
        std::fs::write(dir.path().join(name), text)?;
    }
    let (towards, away) = (dir.path().join("towards"), dir.path().join("away"));
    let texts = args!["--positive", towards, "--negative", away, "--strength", "3"];
    let to = args!["steer", "--model", model, "--layer", "1", "--output", direction];
    succeed([to, texts].concat())?;
    let named = |name: &str, path: &Path| OsString::from(format!("{name}={}", path.display()));
    let served = Served::start(
        &model,
        &args!["--adapter", named("edit", &edit), "--adapter", named("ocean", &direction)],
    )?;
    let prompt = "The ocean is";
    let steered = |model: &str, entry: Value| {
        let reft = json!({"steer": [entry]});
        served.text(
            &json!({"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "reft": reft}),
        )
    };
    let mut texts = BTreeSet::new();
    for (name, adapters) in
        [("tiny", vec![&*direction]), ("edit", vec![&*edit, &*direction]), ("ocean", vec![])]
    {
        let (doubled, entry) = (name == "ocean", json!({"direction": "ocean"}));
        let text = steered(name, entry)?;
        if doubled {
            let twice = steered("tiny", json!({"direction": "ocean", "strength": 2}))?;
            assert_eq!(text, twice);
        } else {
            assert_eq!(text, generated(&model, &adapters, prompt, &["--max-new-tokens", "12"])?);
        }
        texts.insert(text);
    }
    texts.insert(steered("tiny", json!({"direction": "ocean", "strength": -1}))?);
    texts.insert(steered("tiny", json!({"direction": "ocean", "strength": 0}))?);
    assert!(texts.len() >= 4, "the test has no power: {texts:?}");
    for (steer, status, says) in [
        (json!([{"direction": "edit"}]), 400, "does more than add directions"),
        (json!([{"direction": "nobody"}]), 404, "nobody"),
        (json!([{"name": "ocean"}]), 400, "direction"),
        (json!({"direction": "ocean"}), 400, "direction"),
    ] {
        let body = json!({"model": "tiny", "prompt": "a", "reft": {"steer": steer}});
        let answer = served.post(COMPLETIONS, &body)?;
        assert_eq!(answer.status, status, "{}", answer.text);
        let message = answer.json()?["error"]["message"].to_string();
        assert!(message.contains(says), "{}", answer.text);
    }
    Ok(())
}

#[test]
fn edits_are_told_by_token() -> Result {
    const EDITS: &str = "/v1/edits";
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let adapter = import(dir.path(), "loreft")?;
    let named = OsString::from(format!("edit={}", adapter.display()));
    let served = Served::start(&model, &args!["--adapter", named, "--prefill-tokens", "50"])?;
    let ask = |strength: f64| {
        let reft = json!({"adapters": [{"name": "edit", "strength": strength}]});
        let prompt = "a prompt of some letters";
        served.reply(EDITS, &json!({"model": "tiny", "prompt": prompt, "reft": reft}))
    };
    let sizes = |told: &Value| -> Vec<f64> {
        let tokens = told["tokens"].as_array().into_iter().flatten();
        tokens.filter_map(|token| token["edit"].as_f64()).collect()
    };
    let whole = ask(1.0)?;
    let letters: String = whole["tokens"]
        .as_array()
        .ok_or("no tokens")?
        .iter()
        .filter_map(|token| token["token"].as_str().filter(|token| token.len() == 1))
        .collect();
    assert_eq!(letters, "a prompt of some letters");
    assert_eq!(whole["adapters"], json!([{"name": "edit", "subspace_size": 4}]));
    let (all, double) = (sizes(&whole), sizes(&ask(2.0)?));
    // the adapter edits some of the first and of the last tokens of a prompt
    let edited: Vec<bool> = all.iter().map(|size| *size > 0.0).collect();
    let first = edited.iter().take_while(|is| **is).count();
    let last = edited.iter().rev().take_while(|is| **is).count();
    assert!(first > 0 && last > 0 && first + last < edited.len(), "{all:?}");
    assert_eq!(first + last, edited.iter().filter(|is| **is).count(), "{all:?}");
    assert!(double[0] > all[0], "a larger strength is a larger edit: {all:?} {double:?}");
    assert_eq!(sizes(&ask(0.0)?), vec![0.0; all.len()]);
    // a chat includes its template's tokens, with an adapter's name and with the base model's
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat =
        served.reply(EDITS, &json!({"model": "edit", "messages": messages, "stream": true}))?;
    assert!(sizes(&chat).iter().any(|size| *size > 0.0), "{chat}");
    assert_eq!(
        sizes(&served.reply(EDITS, &json!({"model": "tiny", "messages": messages}))?).len(),
        sizes(&chat).len()
    );
    for (body, status, param) in [
        (json!({"model": "tiny", "prompt": ["a", "b"]}), 400, json!("prompt")),
        (json!({"model": "tiny", "prompt": "x".repeat(51)}), 400, Value::Null),
        (json!({"model": "none", "prompt": "x"}), 404, json!("model")),
        (
            json!({"model": "tiny", "prompt": "x", "reft": {"adapters": [{"name": "edit", "subspace": [9]}]}}),
            400,
            json!("reft.adapters"),
        ),
        (json!([1]), 400, Value::Null),
    ] {
        let answer = served.post(EDITS, &body)?;
        assert_eq!((answer.status, &answer.json()?["error"]["param"]), (status, &param), "{body}");
    }
    Ok(())
}
