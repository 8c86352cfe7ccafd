//! `reft serve`: refusals, limits, clients that leave, and shutdown.

use std::fs;
use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::Result;
use crate::logits::import;
use crate::runs::{args, refuse};
use crate::serve_client::{Answer, Served, agent, talking_model};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// A reply that takes a while.
fn long(tokens: usize) -> Value {
    json!({"model": "tiny", "prompt": [5, 6], "max_tokens": tokens, "temperature": 1.0, "seed": 5, "ignore_eos": true})
}

#[test]
fn penalties_change_what_is_repeated() -> Result {
    let dir = tempfile::tempdir()?;
    let served = Served::start(&talking_model(dir.path())?, &[])?;
    let repeated = |penalty: &str, x: f64| -> Result<usize> {
        let mut body = json!({"model": "tiny", "prompt": [5, 6], "max_tokens": 60, "temperature": 0, "ignore_eos": true, "logprobs": 0});
        body[penalty] = json!(x);
        let reply = served.reply(COMPLETIONS, &body)?;
        let tokens = reply["choices"][0]["logprobs"]["tokens"].as_array().ok_or("no tokens")?;
        let distinct: std::collections::HashSet<&str> =
            tokens.iter().filter_map(Value::as_str).collect();
        Ok(tokens.len() - distinct.len())
    };
    for penalty in ["frequency_penalty", "presence_penalty"] {
        let (less, more) = (repeated(penalty, 2.0)?, repeated(penalty, -2.0)?);
        assert!(less < more, "{penalty}: {less} and {more} repetitions");
    }
    Ok(())
}

#[test]
fn what_is_not_supported_is_refused_by_name() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let adapter = import(dir.path(), "loreft")?;
    let named = std::ffi::OsString::from(format!("edit={}", adapter.display()));
    let served = Served::start(
        &model,
        &args!["--adapter", named, "--prompt-tokens", "300", "--body", "100KB"],
    )?;
    let chat =
        json!({"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]});
    let completion = json!({"model": "tiny", "prompt": "hi", "max_tokens": 2});
    let cases = [
        (CHAT, "model", Value::Null),
        (CHAT, "messages", json!([])),
        (CHAT, "messages", json!("hi")),
        (
            CHAT,
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ),
        (CHAT, "tools", json!([{"type": "function", "function": {"name": "f"}}])),
        (CHAT, "tool_choice", json!("required")),
        (CHAT, "functions", json!([{"name": "f"}])),
        (CHAT, "response_format", json!({"type": "json_object"})),
        (CHAT, "logit_bias", json!({"5": 1})),
        (CHAT, "frequency_penalty", json!(2.5)),
        (CHAT, "presence_penalty", json!("much")),
        (CHAT, "top_logprobs", json!(2)),
        (CHAT, "temperature", json!(-1)),
        (CHAT, "temperature", json!("hot")),
        (CHAT, "top_p", json!(0)),
        (CHAT, "n", json!(0)),
        (CHAT, "n", json!(1000)),
        (CHAT, "stop", json!([""])),
        (CHAT, "stop", json!(3)),
        (CHAT, "seed", json!(0.5)),
        (CHAT, "stream", json!("yes")),
        (CHAT, "stream_options", json!({"include_usage": true})),
        (CHAT, "max_tokens", json!(-3)),
        (CHAT, "skip_special_tokens", json!(false)),
        (CHAT, "tomorrow", json!(1)),
        (CHAT, "reft", json!({"adapters": [{"name": "edit", "power": 1}]})),
        (CHAT, "reft", json!({"adapter": []})),
        (COMPLETIONS, "prompt", Value::Null),
        (COMPLETIONS, "prompt", json!([1, "a"])),
        (COMPLETIONS, "prompt", json!("")),
        (COMPLETIONS, "logprobs", json!(21)),
        (COMPLETIONS, "echo", json!(true)),
        (COMPLETIONS, "suffix", json!("x")),
        (COMPLETIONS, "best_of", json!(2)),
    ];
    for (path, field, value) in cases {
        let mut body = if path == CHAT { chat.clone() } else { completion.clone() };
        body[field] = value;
        let answer = served.post(path, &body)?;
        let error = &answer.json()?["error"];
        assert_eq!(
            (answer.status, &error["param"]),
            (400, &json!(field)),
            "{body}: {}",
            answer.text
        );
        assert_eq!(error["type"], "invalid_request_error");
        assert!(answer.request_id.is_some_and(|id| id.len() == 32));
    }
    // fields that do not affect the reply are ignored
    let mut body = chat.clone();
    body["user"] = json!("someone");
    body["metadata"] = json!({"a": "b"});
    body["store"] = json!(true);
    body["presence_penalty"] = json!(0.0);
    body["response_format"] = json!({"type": "text"});
    served.reply(CHAT, &body)?;
    // without the opening of the reply's turn the prompt is shorter
    let prompt_tokens = |body: &Value| -> Result<Value> {
        Ok(served.reply(CHAT, body)?["usage"]["prompt_tokens"].clone())
    };
    let opened = prompt_tokens(&chat)?;
    body["add_generation_prompt"] = json!(false);
    assert!(prompt_tokens(&body)?.as_u64() < opened.as_u64());
    let coordinate = json!({"adapters": [{"name": "edit", "subspace": [99]}]});
    for (path, changed, status, code) in [
        (CHAT, json!({"model": "nobody"}), 404, json!("model_not_found")),
        (CHAT, json!({"reft": {"adapters": [{"name": "nobody"}]}}), 404, json!("model_not_found")),
        (
            CHAT,
            json!({"model": "edit", "reft": {"adapters": [{"name": "edit"}]}}),
            400,
            Value::Null,
        ),
        (CHAT, json!({"reft": coordinate}), 400, Value::Null),
        (CHAT, json!({"max_tokens": 20000}), 400, json!("context_length_exceeded")),
        (COMPLETIONS, json!({"prompt": "x".repeat(301)}), 400, json!("context_length_exceeded")),
        (COMPLETIONS, json!({"prompt": "x".repeat(100_001)}), 413, Value::Null),
        (COMPLETIONS, json!({"prompt": [128]}), 400, Value::Null),
    ] {
        let mut body = if path == CHAT { chat.clone() } else { completion.clone() };
        body.as_object_mut()
            .into_iter()
            .for_each(|own| own.extend(changed.as_object().cloned().unwrap_or_default()));
        let answer = served.post(path, &body)?;
        assert_eq!(
            (answer.status, &answer.json()?["error"]["code"]),
            (status, &code),
            "{}",
            answer.text
        );
    }
    // a stream that cannot begin is an answer with an error status
    let mut stream = chat.clone();
    stream["stream"] = json!(true);
    stream["max_tokens"] = json!(20000);
    let answer = served.post(CHAT, &stream)?;
    assert_eq!(
        (answer.status, &answer.json()?["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
    assert_eq!(served.get("/nowhere")?.status, 404);
    assert_eq!(served.get(CHAT)?.status, 405);
    let broken = agent().post(served.url(CHAT)).send("{\"model\"")?;
    assert_eq!(Answer::of(broken)?.status, 400);
    let own = agent().get(served.url("/health")).header("x-request-id", "mine").call()?;
    assert_eq!(Answer::of(own)?.request_id.as_deref(), Some("mine"));
    Ok(())
}

#[test]
fn nobody_uses_a_server_who_may_not() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let open = refuse(args!["serve", "--model", model, "--host", "0.0.0.0"]);
    assert_eq!(open.code, Some(1));
    assert!(open.stderr.contains("there is no key"), "{}", open.stderr);
    let keys = dir.path().join("keys");
    fs::write(&keys, "short\n")?;
    let short = refuse(args!["serve", "--model", model, "--api-key-file", keys]);
    assert!(short.stderr.contains("5 characters, expected at least 16"), "{}", short.stderr);
    fs::write(&keys, "first-key-0123456789\nother-key-0123456789\n")?;
    let served = Served::start(&model, &args!["--api-key-file", keys, "--log-format", "json"])?;
    let asked = |key: Option<&str>, path: &str| -> Result<u16> {
        let mut request = agent().get(served.url(path));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        Ok(request.call()?.status().as_u16())
    };
    for path in ["/v1/models", "/metrics", "/v1/adapters"] {
        assert_eq!(asked(None, path)?, 401, "{path}");
        assert_eq!(asked(Some("first-key-012345678"), path)?, 401, "{path}");
        assert_eq!(asked(Some("other-key-0123456789"), path)?, 200, "{path}");
    }
    assert_eq!(asked(None, "/health")?, 200);
    let page = || -> Result<(String, String)> {
        let mut answer = agent().get(served.url("/")).call()?;
        assert_eq!(answer.status(), 200);
        let policy = answer.headers().get("content-security-policy").ok_or("no policy")?;
        let policy = policy.to_str()?.to_owned();
        let nonce =
            policy.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next());
        let nonce = nonce.ok_or("no nonce")?.to_owned();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        Ok((nonce, answer.body_mut().read_to_string()?))
    };
    let (nonce, text) = page()?;
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert_ne!(page()?.0, nonce, "the number is another one each time");
    assert_eq!(served.post(COMPLETIONS, &long(1))?.status, 401);
    let get = |headers: &str| {
        served.raw_status(&format!("GET /health HTTP/1.1\r\n{headers}connection: close\r\n\r\n"))
    };
    let address = &served.address;
    assert_eq!(get(&format!("host: {address}\r\n"))?, 200);
    assert_eq!(get("host: localhost:1\r\n")?, 200);
    assert_eq!(get("host: rebound.example.org\r\n")?, 403);
    assert_eq!(get(&format!("host: {address}\r\norigin: http://{address}\r\n"))?, 200);
    assert_eq!(get(&format!("host: {address}\r\norigin: https://example.org\r\n"))?, 403);
    assert_eq!(get(&format!("host: {address}\r\norigin: null\r\n"))?, 403);
    served.wait_for("\"path\":\"/metrics\"")?;
    let log = served.log();
    let line = log.lines().find(|line| line.contains("/metrics")).ok_or("no line")?;
    assert_eq!(serde_json::from_str::<Value>(line)?["status"], 401);
    assert!(!log.contains("key-0123"), "the log has a key");
    Ok(())
}

#[test]
fn a_full_queue_is_told_and_who_goes_makes_room() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let served = Served::start(&model, &args!["--rows", "1", "--queue", "1"])?;
    let mut first = served.stream(COMPLETIONS, &long(15000))?;
    first.next()?;
    // a raw request, because its answer does not begin before its turn
    let body = long(15000).to_string();
    let length = body.len();
    let waiting = served.raw(&format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: {}\r\ncontent-length: {length}\r\n\r\n{body}",
        served.address
    ))?;
    served.wait_for_number("reft_requests_waiting", 1.0)?;
    let full = agent().post(served.url(COMPLETIONS)).send(body)?;
    assert_eq!(full.headers().get("retry-after").and_then(|after| after.to_str().ok()), Some("1"));
    let full = Answer::of(full)?;
    assert_eq!((full.status, &full.json()?["error"]["code"]), (429, &json!("queue_full")));
    let mut two = long(1);
    two["n"] = json!(3);
    assert_eq!(served.post(COMPLETIONS, &two)?.status, 400, "never room for three");
    // clients that vanish while they wait, and while they are answered
    drop(waiting);
    served.wait_for_number("reft_requests_waiting", 0.0)?;
    drop(first);
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    served.wait_for("the client has gone")?;
    assert_eq!(served.reply(COMPLETIONS, &long(3))?["usage"]["completion_tokens"], 3);
    let generated = served.number("reft_generated_tokens_total")?;
    assert!(generated < 15000.0, "it went on for nobody: {generated}");
    Ok(())
}

#[test]
fn a_server_that_is_to_end_finishes_what_it_has_begun() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    let mut served = Served::start(&model, &args!["--grace", "60"])?;
    let mut kept = served.raw("")?;
    let mut stream = served.stream(COMPLETIONS, &long(1500))?;
    stream.next()?;
    let head = format!("GET /health HTTP/1.1\r\nhost: {}\r\n", served.address);
    kept.write_all(head.as_bytes())?; // half of a request, before the shutdown begins
    served.terminate()?;
    served.wait_for("no new requests")?;
    kept.write_all(b"\r\n")?;
    let mut answer = String::new();
    kept.read_to_string(&mut answer)?;
    assert!(answer.is_empty() || answer.contains("503"), "{answer}");
    let mut last = None;
    while let Some(event) = stream.next()? {
        last = Some(event);
    }
    assert_eq!(last.ok_or("no event")?["choices"][0]["finish_reason"], "length");
    assert_eq!(served.code()?, Some(0));

    // with --grace 0 the client gets an error event
    let mut served = Served::start(&model, &args!["--grace", "0"])?;
    let mut stream = served.stream(COMPLETIONS, &long(15000))?;
    stream.next()?;
    served.terminate()?;
    let told = loop {
        match stream.next()? {
            Some(event) if event["error"].is_object() => break event,
            Some(_) => {}
            None => return Err("it is done".into()),
        }
    };
    assert_eq!(told["error"]["code"], "shutting_down");
    assert_eq!(served.code()?, Some(0));
    // a request past --time-limit gets an error
    let served = Served::start(&model, &args!["--time-limit", "1"])?;
    let answer = served.post(COMPLETIONS, &long(16000))?;
    assert_eq!((answer.status, &answer.json()?["error"]["code"]), (503, &json!("timeout")));
    served.wait_for_number("reft_requests_in_flight", 0.0)
}
