//! Model names: directories, names in the hub's cache, and downloads if allowed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use reft_models::{Error, Hub, resolve_model};
use serde_json::json;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const COMMIT: &str = "0123abcd";

/// A model in a hub cache, laid out as huggingface_hub does.
fn cache_model(cache: &Path, name: &str, files: &[(&str, &str)]) -> std::io::Result<PathBuf> {
    let root = cache.join(format!("models--{}", name.replace('/', "--")));
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot)?;
    fs::create_dir_all(root.join("refs"))?;
    fs::write(root.join("refs/main"), COMMIT)?;
    for (file, text) in files {
        fs::write(snapshot.join(file), text)?;
    }
    Ok(snapshot)
}

/// An address without a server.
const NOBODY: &str = "http://127.0.0.1:1";

fn hub(cache: &Path, endpoint: &str, offline: bool) -> Hub {
    Hub { cache: cache.to_owned(), endpoint: endpoint.to_owned(), offline }
}

fn reason(result: Result<PathBuf, Error>) -> String {
    match result {
        Err(Error::UnknownModel { reason, .. }) => reason,
        other => format!("not refused: {other:?}"),
    }
}

#[test]
fn directories_and_gguf_files_are_taken_as_they_are() -> Outcome {
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_str().ok_or("a path that is not UTF-8")?;
    assert_eq!(resolve_model(path)?, directory.path());
    let gguf = directory.path().join("model.GGUF");
    fs::write(&gguf, "")?;
    assert_eq!(resolve_model(&gguf.to_string_lossy())?, gguf);
    let other = directory.path().join("model.bin");
    fs::write(&other, "")?;
    assert!(reason(resolve_model(&other.to_string_lossy())).contains("it is a file"));
    Ok(())
}

#[test]
fn a_whole_model_in_the_cache_needs_no_network() -> Outcome {
    let cache = tempfile::tempdir()?;
    let hub = hub(cache.path(), NOBODY, false);
    let needed = [("config.json", "{}"), ("tokenizer.json", "{}")];
    let single = [needed.as_slice(), &[("model.safetensors", "")]].concat();
    let snapshot = cache_model(cache.path(), "org/single", &single)?;
    assert_eq!(hub.resolve("org/single")?, snapshot);
    let index = r#"{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}"#;
    let shards =
        [("model.safetensors.index.json", index), ("a.safetensors", ""), ("b.safetensors", "")];
    let snapshot =
        cache_model(cache.path(), "org/sharded", &[needed.as_slice(), &shards].concat())?;
    assert_eq!(Hub { offline: true, ..hub }.resolve("org/sharded")?, snapshot);
    Ok(())
}

#[test]
fn what_the_cache_lacks_is_named() -> Outcome {
    let cache = tempfile::tempdir()?;
    let index = r#"{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}"#;
    let files =
        [("config.json", "{}"), ("model.safetensors.index.json", index), ("a.safetensors", "")];
    cache_model(cache.path(), "org/part", &files)?;
    let offline = hub(cache.path(), NOBODY, true);
    let found = reason(offline.resolve("org/part"));
    assert!(
        found.contains("tokenizer.json, b.safetensors") && found.contains("HF_HUB_OFFLINE"),
        "{found}"
    );
    let found = reason(offline.resolve("org/absent"));
    assert!(found.contains("lacks all of it"), "{found}");
    let online = Hub { offline: false, ..offline };
    let found = reason(online.resolve("org/part"));
    assert!(
        found.contains("no such directory") && found.contains("http://127.0.0.1:1 gives"),
        "{found}"
    );
    Ok(())
}

#[test]
fn what_is_no_hub_name_is_never_looked_up() {
    let hub = hub(Path::new("no such cache"), NOBODY, false);
    for name in [
        "",
        "models",
        "../up",
        "a/b/c",
        "/no/such/dir",
        "org/",
        "or g/name",
        "org/.hidden",
        "org/na?me",
    ] {
        let found = reason(hub.resolve(name));
        assert!(found.contains("organisation/name"), "{name:?}: {found}");
    }
}

/// The files of one model on a test server with the part of the hub's protocol that a download needs.
const SERVED: [(&str, &str); 6] = [
    ("config.json", r#"{"model_type": "llama"}"#),
    ("tokenizer.json", "{}"),
    ("generation_config.json", r#"{"eos_token_id": 2}"#),
    ("model.safetensors", "weights"),
    ("pytorch_model.bin", "never asked for"),
    ("../outside.txt", "leads out of the directory"),
];

/// Answers one request; returns the requested path.
fn answer(stream: TcpStream) -> std::io::Result<String> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    for line in lines {
        let line = line?.to_lowercase();
        if line.is_empty() {
            break;
        }
        range = line.strip_prefix("range: bytes=").map(str::to_owned).or(range);
    }
    let siblings: Vec<_> = SERVED.iter().map(|(name, _)| json!({ "rfilename": name })).collect();
    let info = json!({ "siblings": siblings, "sha": COMMIT }).to_string();
    let (status, body) = if path == "/api/models/org/served/revision/main" {
        ("200 OK", info.as_str())
    } else {
        let file = path.strip_prefix("/org/served/resolve/main/").unwrap_or_default();
        match SERVED.iter().find(|(name, _)| *name == file) {
            Some((_, text)) => ("206 Partial Content", *text),
            None => ("404 Not Found", ""),
        }
    };
    let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap_or(0);
    let to = to.parse().map_or(body.len(), |to: usize| to + 1).min(body.len());
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\netag: \"{}\"\r\n\
         x-repo-commit: {COMMIT}\r\nconnection: close\r\n\r\n{}",
        to - from,
        to.saturating_sub(1),
        body.len(),
        path.replace('/', "-"),
        &body[from..to],
    )?;
    Ok(path)
}

/// A server of [`SERVED`], and the requested paths.
fn server() -> std::io::Result<(String, Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let (sender, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Ok(path) = answer(stream)
                && sender.send(path).is_err()
            {
                break;
            }
        }
    });
    Ok((endpoint, asked))
}

#[test]
fn files_that_are_wanted_are_fetched_and_none_that_leads_elsewhere() -> Outcome {
    let (endpoint, asked) = server()?;
    let cache = tempfile::tempdir()?;
    let hub = hub(cache.path(), &endpoint, false);
    let snapshot = hub.fetch("org/served", None, &|file| file != "pytorch_model.bin")?;
    for (file, text) in &SERVED[..4] {
        assert_eq!(fs::read_to_string(snapshot.join(file))?, *text);
    }
    let requests: Vec<String> = asked.try_iter().collect();
    for never in ["outside", "pytorch_model.bin"] {
        assert!(!requests.iter().any(|path| path.contains(never)), "{requests:?}");
    }
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.fetch("org/served", Some("main"), &|_| true)?, snapshot);
    for (revision, reason) in [("other", "HF_HUB_OFFLINE"), ("../main", "no name of a revision")] {
        let refused = offline.fetch("org/served", Some(revision), &|_| true);
        assert!(
            matches!(&refused, Err(Error::Hub { reason: own, .. }) if own.contains(reason)),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn a_model_is_downloaded_once_and_without_what_is_not_needed() -> Outcome {
    let (endpoint, asked) = server()?;
    let cache = tempfile::tempdir()?;
    let hub = hub(cache.path(), &endpoint, false);
    let snapshot = hub.resolve("org/served")?;
    for (file, text) in &SERVED[..4] {
        assert_eq!(fs::read_to_string(snapshot.join(file))?, *text);
    }
    let requests: Vec<String> = asked.try_iter().collect();
    assert!(requests.iter().any(|path| path.ends_with("model.safetensors")));
    assert!(!requests.iter().any(|path| path.ends_with("pytorch_model.bin")), "{requests:?}");
    assert_eq!(Hub { offline: true, ..hub }.resolve("org/served")?, snapshot);
    assert_eq!(asked.try_iter().count(), 0, "the second time needs no network");
    Ok(())
}
