//! `reft serve`: adapters that come, go and are replaced while requests use them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::Result;
use crate::logits::import;
use crate::runs::{args, run, succeed};
use crate::serve_client::{Answer, Served, talking_model};

const COMPLETIONS: &str = "/v1/completions";

/// Copies the files of a directory.
pub fn copied(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn body(model: &str) -> Value {
    json!({"model": model, "prompt": "The ocean is", "max_tokens": 20, "temperature": 0})
}

fn error(answer: &Answer) -> Result<(u16, String, Value)> {
    let error = answer.json()?["error"].clone();
    let message = error["message"].as_str().ok_or_else(|| answer.text.clone())?.to_owned();
    Ok((answer.status, message, error["param"].clone()))
}

#[test]
fn adapters_are_loaded_replaced_and_unloaded_while_requests_use_them() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    let (loreft, nodireft) = (import(dir.path(), "loreft")?, import(dir.path(), "nodireft")?);
    copied(&loreft, &root.join("first"))?;
    copied(&nodireft, &root.join("versions/second"))?;
    copied(&loreft, &dir.path().join("outside"))?;
    fs::create_dir_all(root.join("empty"))?;
    std::os::unix::fs::symlink(dir.path().join("outside"), root.join("leak"))?;
    fs::create_dir_all(root.join("broken"))?;
    for entry in fs::read_dir(&loreft)? {
        let path = entry?.path();
        let name = path.file_name().ok_or("no name")?.to_owned();
        let bytes = fs::read(&path)?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let bytes = if is_json { &bytes[..] } else { &bytes[..bytes.len() / 2] };
        fs::write(root.join("broken").join(name), bytes)?;
    }
    let served = Served::start(&model, &args!["--adapters-dir", root, "--allow-load"])?;
    let ids = |served: &Served| -> Result<Vec<String>> {
        let list =
            served.get("/v1/models")?.json()?["data"].as_array().cloned().ok_or("no list")?;
        Ok(list.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(ids(&served)?, ["tiny", "broken", "first"], "no links that lead out");
    assert_eq!(served.number("reft_adapters_loaded")?, 0.0, "read before they are asked for");
    let (base, first) = (served.text(&body("tiny"))?, served.text(&body("first"))?);
    assert_ne!(base, first);
    assert_eq!(served.number("reft_adapters_loaded")?, 1.0);

    // adapters that cannot be loaded, and the words of the answer, which names no path of the machine
    let outside = dir.path().join("outside").to_string_lossy().into_owned();
    let load = |name: &str, path: &str| {
        served.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}))
    };
    for (name, path, status, says) in [
        ("new", "../outside", 400, "no adapter below"),
        ("new", outside.as_str(), 400, "no adapter below"),
        ("new", "leak", 400, "no adapter below"),
        ("new", "empty", 400, "no adapter below"),
        ("new", "absent", 400, "no adapter below"),
        ("new", ".", 400, "no adapter below"),
        ("../new", "first", 400, "is no name"),
        ("new", "broken", 400, "adapter new cannot be used"),
        ("tiny", "first", 409, "base model"),
        ("first", "versions/second", 409, "load_inplace"),
        ("", "first", 400, "lora_name is missing"),
    ] {
        let answer = load(name, path)?;
        let (found, message, _) = error(&answer)?;
        assert_eq!(found, status, "{path}: {message}");
        assert!(message.contains(says), "{path}: {message}");
        let temporary = dir.path().to_string_lossy().into_owned();
        assert!(!answer.text.contains(&temporary) || path == outside, "{}", answer.text);
    }
    let (status, message, _) = error(&served.post(COMPLETIONS, &body("broken"))?)?;
    assert_eq!(status, 400);
    assert!(
        message.contains("broken cannot be used") && !message.contains("/adapters/"),
        "{message}"
    );
    assert_eq!(served.text(&body("first"))?, first, "what failed changed nothing");

    // replaced during requests: each reply is wholly of the old or of the new adapter
    assert_eq!(load("second", "versions/second")?.status, 200);
    let second = served.text(&body("second"))?;
    assert!(second != first && second != base);
    let swapped = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result {
        let asking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| -> std::result::Result<Vec<String>, String> {
                    let mut replies = Vec::new();
                    while !swapped.load(Ordering::SeqCst) || replies.len() < 3 {
                        replies
                            .push(served.text(&body("first")).map_err(|error| error.to_string())?);
                    }
                    Ok(replies)
                })
            })
            .collect();
        for path in ["versions/second", "first", "versions/second"] {
            let answer = served.post(
                "/v1/adapters",
                &json!({"lora_name": "first", "lora_path": path, "load_inplace": true}),
            )?;
            assert_eq!(answer.status, 200, "{}", answer.text);
            let expected = if path == "first" { &first } else { &second };
            assert_eq!(&served.text(&body("first"))?, expected);
        }
        swapped.store(true, Ordering::SeqCst);
        for asking in asking {
            let replies = asking.join().map_err(|_| "panicked")??;
            assert!(replies.iter().all(|reply| [&first, &second].contains(&reply)), "{replies:?}");
        }
        Ok(())
    })?;

    // unloaded during a long reply: the reply goes on, new requests are refused, and memory is free after the reply
    let long = json!({"model": "second", "prompt": "The ocean is", "max_tokens": 1500, "temperature": 1, "seed": 1, "ignore_eos": true});
    let mut stream = served.stream(COMPLETIONS, &long)?;
    stream.next()?;
    assert_eq!(served.delete("/v1/adapters/second")?.status, 200);
    assert_eq!(served.post(COMPLETIONS, &body("second"))?.status, 404);
    while stream.next()?.is_some() {}
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    assert_eq!(served.post("/v1/unload_lora_adapter", &json!({"lora_name": "first"}))?.status, 200);
    served.wait_for_number("reft_adapters_loaded", 0.0)?;
    assert_eq!(ids(&served)?, ["tiny", "broken"], "unloaded, though its files are there");
    assert_eq!(served.post("/v1/unload_lora_adapter", &json!({"lora_name": "first"}))?.status, 404);
    assert_eq!(load("first", "first")?.status, 200);
    assert_eq!(served.text(&body("first"))?, first);
    assert!(served.get("/metrics")?.text.contains("reft_adapter_tokens_total{adapter=\"second\"}"));
    Ok(())
}

#[test]
fn the_least_recently_used_adapter_makes_room() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    let loreft = import(dir.path(), "loreft")?;
    for name in ["a", "b", "c"] {
        copied(&loreft, &root.join(name))?;
    }
    let served = Served::start(&model, &args!["--adapters-dir", root])?;
    served.text(&body("a"))?;
    let bytes = served.number("reft_adapter_bytes")?;
    assert!(bytes > 0.0);
    drop(served);
    let room = OsString::from(format!("{}B", bytes * 2.0));
    let served = Served::start(&model, &args!["--adapters-dir", root, "--adapters-memory", room])?;
    let expected = served.text(&body("a"))?;
    for name in ["b", "a", "c", "b", "a"] {
        assert_eq!(served.text(&body(name))?, expected, "{name}");
        assert!(served.number("reft_adapters_loaded")? <= 2.0);
    }
    assert_eq!(served.number("reft_adapter_bytes")?, bytes * 2.0);
    let refused =
        served.post("/v1/load_lora_adapter", &json!({"lora_name": "d", "lora_path": "a"}))?;
    let (status, message, _) = error(&refused)?;
    assert_eq!(status, 403);
    assert!(message.contains("--allow-load"), "{message}");
    assert_eq!(served.delete("/v1/adapters/a")?.status, 403);
    Ok(())
}

#[test]
fn weights_are_no_adapter() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    let (data, full) = (dir.path().join("rows.jsonl"), root.join("full"));
    fs::write(&data, r#"{"instruction": "a", "output": "b"}"#)?;
    fs::create_dir(&root)?;
    let method = ["--method", "full", "--max-steps", "1", "--lr", "0.3", "--threads", "1"];
    let train = args!["train", "--model", model, "--data", data, "--output", full];
    succeed([train, method.map(OsString::from).to_vec()].concat())?;
    let expected = "adapter full of method full is the model's weights, which all requests share; merge it with `reft export` and serve the merged model";
    // a request for it is refused, and others are served
    let served = Served::start(&model, &args!["--adapters-dir", root, "--allow-load"])?;
    let base = served.text(&body("tiny"))?;
    let (status, message, param) = error(&served.post(COMPLETIONS, &body("full"))?)?;
    assert_eq!((status, message.as_str(), param), (400, expected, json!("model")));
    let load = json!({"lora_name": "other", "lora_path": "full"});
    let (status, message, _) = error(&served.post("/v1/adapters", &load)?)?;
    assert_eq!((status, message), (400, expected.replacen("full", "other", 1)));
    assert_eq!(served.text(&body("tiny"))?, base);
    // with it in --adapter, the server does not start
    let named = OsString::from(format!("full={}", full.display()));
    let refused = run(args!["serve", "--model", model, "--port", "0", "--adapter", named])?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
    Ok(())
}

/// The adapter's edits are used, its head is not, and the log says so.
#[test]
fn an_adapter_with_a_head_is_served_without_it_and_with_a_warning() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let (data, judge) = (dir.path().join("rows.csv"), dir.path().join("judge"));
    fs::write(&data, "prompt,chosen,rejected\na,b,c\nb,c,a\n")?;
    let method = ["--objective", "reward", "--max-steps", "3", "--lr", "0.3", "--threads", "1"];
    let train = args!["train", "--model", model, "--data", data, "--output", judge];
    succeed([train, method.map(OsString::from).to_vec()].concat())?;
    let without = dir.path().join("without");
    fs::create_dir(&without)?;
    for file in ["reft_config.json", "reft_model.safetensors"] {
        fs::copy(judge.join(file), without.join(file))?;
    }
    let named = |name: &str, path: &Path| OsString::from(format!("{name}={}", path.display()));
    let adapters =
        args!["--adapter", named("judge", &judge), "--adapter", named("without", &without)];
    let served = Served::start(&model, &adapters)?;
    let warning = |name: &str| {
        format!(
            "adapter {name} has a head, which is not served; `reft eval --task classification`, `regression` or `reward` uses it"
        )
    };
    let reply = served.text(&body("judge"))?;
    assert_eq!(reply, served.text(&body("without"))?);
    assert_ne!(reply, served.text(&body("tiny"))?);
    served.wait_for(&warning("judge"))?;
    assert!(!served.log().contains(&warning("without")), "{}", served.log());
    Ok(())
}
