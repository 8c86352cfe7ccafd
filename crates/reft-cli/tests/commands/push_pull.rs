//! `reft push` and `reft pull` against a server of the test's own.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Result;
use crate::files::listing;
use crate::hub_server::{Answer, HubServer, Request};
use crate::runs::{Run, args, command, oracle, overridden};

const TOKEN: &str = "hf_a-token-of-the-test";

/// Runs the program with this hub and a cache of its own.
fn with_hub(endpoint: &str, dir: &Path, words: Vec<OsString>) -> Result<Run> {
    let mut command = command(words);
    command.env("HF_ENDPOINT", endpoint).env("HF_HUB_OFFLINE", "0").env("HF_TOKEN", TOKEN);
    command.env("HF_HUB_CACHE", dir.join("hub")).env_remove("HF_HOME").env_remove("http_proxy");
    command.env("NO_PROXY", "127.0.0.1,localhost");
    let run: Run = command.output()?.into();
    assert!(!format!("{run:?}").contains(TOKEN), "the token is shown");
    Ok(run)
}

/// An adapter directory with the other files of a run.
fn adapter(dir: &Path) -> Result<PathBuf> {
    let adapter = dir.join("adapter");
    fs::create_dir_all(adapter.join("checkpoint"))?;
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(oracle("peft/lora_qv").join(file), adapter.join(file))?;
    }
    fs::write(adapter.join("README.md"), "---\ntags:\n- reft\n---\n\n# A\n")?;
    fs::write(adapter.join("metrics.jsonl"), "{\"loss\": 1}\n")?;
    fs::write(adapter.join("checkpoint/state.json"), "{}")?;
    fs::write(adapter.join("ignored.txt"), "x")?;
    Ok(adapter)
}

fn no_other(_: &Request) -> Option<Answer> {
    None
}

/// Decodes base64 without the program's own code, for an independent check.
fn decoded(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut out = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0, |bits, c| bits << 6 | value(*c)) << (6 * (4 - four.len()));
        out.extend(&bits.to_be_bytes()[1..four.len()]);
    }
    out
}

#[test]
fn an_adapter_is_published_in_one_commit() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = adapter(dir.path())?;
    let hub = HubServer::start(Vec::new(), no_other)?;
    let push = args![
        "push",
        adapter,
        "org/name",
        "--private",
        "--license",
        "mit",
        "--revision",
        "next",
        "--message",
        "a message",
        "--json"
    ];
    let run = with_hub(&hub.endpoint, dir.path(), push)?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let said: Value = serde_json::from_str(&run.stdout)?;
    assert_eq!((&said["sent"], &said["url"]), (&json!(true), &json!("the commit's address")));
    let names = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    for name in names {
        assert!(
            run.stderr.contains(&format!("  {name}  ")),
            "{name} is not listed: {}",
            run.stderr
        );
    }
    let card = fs::read_to_string(adapter.join("README.md"))?;
    assert_eq!(card, "---\ntags:\n- reft\nlicense: mit\n---\n\n# A\n");

    let requests = hub.requests();
    let asked: Vec<(&str, &str)> =
        requests.iter().map(|own| (own.method.as_str(), own.path.as_str())).collect();
    let tensors = fs::read(adapter.join("adapter_model.safetensors"))?;
    let oid: String = Sha256::digest(&tensors).iter().map(|byte| format!("{byte:02x}")).collect();
    let store = format!("/store/{oid}");
    assert_eq!(
        asked,
        [
            ("POST", "/api/repos/create"),
            ("POST", "/api/models/org/name/branch/next"),
            ("POST", "/api/models/org/name/preupload/next"),
            ("POST", "/org/name.git/info/lfs/objects/batch"),
            ("PUT", store.as_str()),
            ("POST", "/verify"),
            ("POST", "/api/models/org/name/commit/next"),
        ]
    );
    for request in &requests {
        // the token is for the hub alone, not for the store of large files
        let token = request.headers.get("authorization").map(String::as_str);
        let is_store = request.path == store;
        assert_eq!(
            token,
            (!is_store).then_some("Bearer hf_a-token-of-the-test"),
            "{}",
            request.path
        );
    }
    assert_eq!(
        requests[0].json()?,
        json!({"type": "model", "organization": "org", "name": "name", "private": true})
    );
    let announced = requests[2].json()?;
    let files = announced["files"].as_array().ok_or("no files")?;
    assert_eq!(files.iter().map(|own| &own["path"]).collect::<Vec<_>>(), names);
    assert_eq!(files[2]["size"], tensors.len());
    assert_eq!(decoded(files[2]["sample"].as_str().ok_or("no sample")?), &tensors[..512]);
    let batch = requests[3].json()?;
    assert_eq!(batch["objects"], json!([{"oid": oid, "size": tensors.len()}]));
    assert_eq!(requests[3].headers["content-type"], "application/vnd.git-lfs+json");
    assert!(requests[4].body == tensors && requests[4].headers["x-key"] == "k");
    assert_eq!(requests[5].json()?, json!({"oid": oid, "size": tensors.len()}));
    let commit = String::from_utf8(requests[6].body.clone())?;
    assert_eq!(requests[6].headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> =
        commit.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    assert_eq!(
        lines[0],
        json!({"key": "header", "value": {"summary": "a message", "description": ""}})
    );
    assert_eq!(lines.len(), 4);
    for line in &lines[1..] {
        let value = &line["value"];
        let path = value["path"].as_str().ok_or("no path")?;
        if line["key"] == "lfsFile" {
            let expected =
                json!({"path": names[2], "algo": "sha256", "oid": oid, "size": tensors.len()});
            assert_eq!(*value, expected);
        } else {
            assert_eq!((&line["key"], &value["encoding"]), (&json!("file"), &json!("base64")));
            let content = decoded(value["content"].as_str().ok_or("no content")?);
            assert!(content == fs::read(adapter.join(path))?, "{path}");
        }
    }

    // --all, on the main branch, which exists; the link out of the directory is left out
    #[cfg(unix)]
    std::os::unix::fs::symlink(oracle("tiny_io.json"), adapter.join("link.json"))?;
    let all = args!["push", adapter, "org/name", "--all"];
    let run = with_hub(&hub.endpoint, dir.path(), all)?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("own rules leave ignored.txt out"), "{}", run.stderr);
    let requests = hub.requests();
    assert!(!requests.iter().any(|own| own.path.contains("/branch/")));
    let commit = requests.last().ok_or("no request")?;
    assert!(commit.is("POST", "/api/models/org/name/commit/main"), "{}", commit.path);
    let commit = String::from_utf8(commit.body.clone())?;
    for (path, is_sent) in [
        ("metrics.jsonl", true),
        ("checkpoint/state.json", true),
        ("ignored.txt", false),
        ("link.json", false),
    ] {
        assert_eq!(commit.contains(&format!("\"{path}\"")), is_sent, "{path}");
    }
    Ok(())
}

#[test]
fn what_must_not_leave_is_refused_before_anything_is_sent() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = adapter(dir.path())?;
    let hub = HubServer::start(Vec::new(), no_other)?;
    let push = |more: Vec<OsString>| {
        with_hub(&hub.endpoint, dir.path(), [args!["push", adapter, "org/name"], more].concat())
    };
    let refused = |more: Vec<OsString>, reason: &str| -> Result {
        let run = push(more)?;
        assert_eq!(run.code, Some(1), "{reason}: {}", run.stderr);
        assert!(run.stderr.contains(reason), "{reason}: {}", run.stderr);
        assert!(hub.requests().is_empty(), "{reason}: something was sent");
        Ok(())
    };
    refused(args![], "README.md names no licence")?;
    let shown = push(args!["--license", "mit", "--dry-run"])?;
    assert!(shown.stdout.contains("nothing was sent"), "{}", shown.stdout);
    assert!(hub.requests().is_empty());
    fs::write(adapter.join("README.md"), "---\nlicense: mit\n---\n# A\n")?;
    refused(args!["--license", "apache-2.0"], "change one of the two")?;
    let here = fs::canonicalize(dir.path())?;
    fs::write(adapter.join("metrics.jsonl"), format!("{{\"data\": \"{}/x\"}}\n", here.display()))?;
    refused(args!["--all"], "metrics.jsonl names /")?;
    let config = fs::read_to_string(adapter.join("adapter_config.json"))?;
    let named = config.replace("\"tiny_llama\"", &format!("\"{}/model\"", here.display()));
    fs::write(adapter.join("adapter_config.json"), named)?;
    refused(args![], "adapter_config.json names /")?;
    fs::write(adapter.join("adapter_config.json"), config)?;
    refused(args!["--revision", "../main"], "is no name of a branch")?;
    fs::remove_file(adapter.join("README.md"))?;
    refused(args![], "has no README.md")?;
    let nothing = with_hub(&hub.endpoint, dir.path(), args!["push", dir.path(), "org/name"])?;
    assert!(nothing.stderr.contains("holds no adapter"), "{}", nothing.stderr);

    fs::write(adapter.join("README.md"), "---\nlicense: mit\n---\n# A\n")?;
    let mut without = command(args!["push", adapter, "org/name"]);
    without.env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_CACHE", dir.path().join("hub"));
    let without: Run = without.env_remove("HF_TOKEN").output()?.into();
    assert!(without.stderr.contains("there is no token"), "{}", without.stderr);
    Ok(())
}

#[test]
fn what_the_hub_refuses_is_told_in_a_line() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = adapter(dir.path())?;
    let push = args!["push", adapter, "org/name", "--license", "mit"];
    for (path, status, reason) in [
        ("/api/repos/create", 401, "make the repository: the token is not accepted (401)"),
        ("/api/repos/create", 403, "may not write to org/name (403)"),
        ("/preupload/", 404, "announce the files: there is no such thing"),
        ("/commit/", 409, "commit: the branch was changed meanwhile (409)"),
        ("/store/", 413, "upload adapter_model.safetensors: it is too large for the hub (413)"),
        ("/commit/", 500, "commit: the hub answers 500: it is … broken"),
        ("/store/", 0, "upload adapter_model.safetensors: the connection was cut"),
        ("/commit/", 0, "commit: the connection was cut"),
    ] {
        let answer = move |request: &Request| {
            let body = format!("{{\"error\": \"it is {TOKEN} broken\"}}").into_bytes();
            let answer = if status == 0 { None } else { Some((status, body)) };
            request.path.contains(path).then_some(answer)
        };
        let hub = HubServer::start(Vec::new(), answer)?;
        let run = with_hub(&hub.endpoint, dir.path(), push.clone())?;
        assert_eq!(run.code, Some(1), "{reason}: {}", run.stderr);
        assert!(run.stderr.contains(reason), "{reason}: {}", run.stderr);
        assert!(run.stderr.contains("nothing was published"), "{}", run.stderr);
        let commits = hub.requests().into_iter().filter(|own| own.path.contains("/commit/"));
        assert_eq!(commits.count() > 0, path == "/commit/", "{reason}");
    }
    // an existing repository is no error
    let there = |request: &Request| {
        (request.path == "/api/repos/create").then(|| Some((409, b"{}".to_vec())))
    };
    let hub = HubServer::start(Vec::new(), there)?;
    assert_eq!(with_hub(&hub.endpoint, dir.path(), push.clone())?.code, Some(0));
    let nobody = with_hub("http://127.0.0.1:1", dir.path(), push)?;
    assert!(nobody.stderr.contains("nobody answers at http://127.0.0.1:1"), "{}", nobody.stderr);
    Ok(())
}

#[test]
fn an_adapter_is_pulled_and_named_where_directories_are() -> Result {
    let dir = tempfile::tempdir()?;
    let read = |file: &str| fs::read(oracle("peft/lora_qv").join(file));
    let (config, tensors) = (read("adapter_config.json")?, read("adapter_model.safetensors")?);
    let files = [
        ("adapter_config.json", config.clone()),
        ("adapter_model.safetensors", tensors.clone()),
        ("README.md", b"# A\n".to_vec()),
        ("adapter_model.bin", b"a pickle".to_vec()),
        ("../../outside/adapter_config.json", b"{}".to_vec()),
        ("checkpoint/state.json", b"{}".to_vec()),
        ("model.safetensors", b"all weights".to_vec()),
    ];
    let files = files.map(|(name, content)| (name.to_owned(), content)).to_vec();
    let hub = HubServer::start(files, no_other)?;
    let output = dir.path().join("pulled");
    let pull = args!["pull", "org/name", "--output", output];
    let run = with_hub(&hub.endpoint, dir.path(), pull.clone())?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains("the adapter (lora, ") && run.stdout.contains("tiny_llama"),
        "{}",
        run.stdout
    );
    let names = ["README.md", "adapter_config.json", "adapter_model.safetensors"];
    assert_eq!(listing(&output)?, names.map(|name| output.join(name)));
    assert!(
        fs::read(output.join(names[1]))? == config && fs::read(output.join(names[2]))? == tensors
    );
    let asked: Vec<String> = hub.requests().into_iter().map(|own| own.path).collect();
    for path in ["pickle", ".bin", "outside", "checkpoint", "main/model.safetensors"] {
        assert!(!asked.iter().any(|own| own.contains(path)), "{path}: {asked:?}");
    }

    // a hub name works like a directory, with the hub and from its cache
    let model = oracle("tiny_llama");
    let input = dir.path().join("in.json");
    fs::write(&input, r#"{"input_ids": [[5, 9, 14, 77]]}"#)?;
    let logits = |adapter: &str, endpoint: &str, output: &str| -> Result<(Run, PathBuf)> {
        let output = dir.path().join(output);
        let words = args![
            "logits",
            "--model",
            model,
            "--adapter",
            adapter,
            "--input",
            input,
            "--output",
            output
        ];
        Ok((with_hub(endpoint, dir.path(), words)?, output))
    };
    let (run, named) = logits("org/name", &hub.endpoint, "named.safetensors")?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let (run, direct) = logits(&output.to_string_lossy(), &hub.endpoint, "direct.safetensors")?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(fs::read(named)? == fs::read(direct)?);
    let mut offline = command(args!["pull", "org/name", "--output", dir.path().join("offline")]);
    let offline: Run = offline.env("HF_HUB_CACHE", dir.path().join("hub")).output()?.into();
    assert_eq!(offline.code, Some(0), "{}", offline.stderr);

    for (name, reason) in [("org/absent", "404"), ("no name", "organisation/name")] {
        let words = overridden(args!["pull", "--output", dir.path().join("other"), name]);
        let run = with_hub(&hub.endpoint, dir.path(), words)?;
        assert!(run.code == Some(1) && run.stderr.contains(reason), "{name}: {}", run.stderr);
    }
    let (run, _) = logits("org/absent", &hub.endpoint, "none.safetensors")?;
    assert!(
        run.stderr.contains("is no directory") && run.stderr.contains("as a name of the hub"),
        "{}",
        run.stderr
    );
    let again = with_hub(&hub.endpoint, dir.path(), pull)?;
    assert!(again.stderr.contains("exists already"), "{}", again.stderr);
    Ok(())
}

#[test]
fn a_repository_without_an_adapter_is_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let files =
        vec![("model.safetensors".to_owned(), vec![1]), ("config.json".to_owned(), vec![2])];
    let hub = HubServer::start(files, no_other)?;
    let output = dir.path().join("pulled");
    let run = with_hub(&hub.endpoint, dir.path(), args!["pull", "org/name", "--output", output])?;
    assert!(run.stderr.contains("it holds model.safetensors, config.json"), "{}", run.stderr);
    assert!(!output.exists());
    Ok(())
}

#[test]
fn several_adapters_of_one_directory_go_both_ways() -> Result {
    let dir = tempfile::tempdir()?;
    let own = dir.path().join("both");
    let mut files = vec![(
        "combined.json".to_owned(),
        json!({"format_version": 1, "adapters": ["0-lora", "1-ia3"]}).to_string().into_bytes(),
    )];
    for (part, case) in [("0-lora", "peft/lora_qv"), ("1-ia3", "peft_more/ia3")] {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            files.push((format!("{part}/{name}"), fs::read(oracle(case).join(name))?));
        }
    }
    files.push(("README.md".to_owned(), b"---\nlicense: mit\n---\n# Two\n".to_vec()));
    for (name, content) in &files {
        let path = own.join(name);
        fs::create_dir_all(path.parent().ok_or("no folder")?)?;
        fs::write(path, content)?;
    }
    let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    files.push(("2-notes/adapter_config.json".to_owned(), b"{}".to_vec())); // no method's name
    let hub = HubServer::start(files, no_other)?;
    let run = with_hub(&hub.endpoint, dir.path(), args!["push", own, "org/name", "--dry-run"])?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    for name in &names {
        assert!(run.stderr.contains(&format!("  {name}  ")), "{name}: {}", run.stderr);
    }
    let pulled = dir.path().join("pulled");
    let pull = args!["pull", "org/name", "--output", pulled, "--json"];
    let run = with_hub(&hub.endpoint, dir.path(), pull)?;
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(serde_json::from_str::<Value>(&run.stdout)?["method"], "lora+ia3");
    for name in &names {
        assert!(fs::read(pulled.join(name))? == fs::read(own.join(name))?, "{name}");
    }
    assert!(!pulled.join("2-notes").exists());
    Ok(())
}
