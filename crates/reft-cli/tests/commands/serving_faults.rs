//! `reft serve`: clients that do everything wrong, and a server that is killed, too small or too busy. Here few of each;
//! `cargo xtask serve-check --faults` takes as many as [`many`] says. Every client has a time limit, so that a hang is a failure.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::Result;
use crate::logits::import;
use crate::runs::args;
use crate::serve_client::{Served, agent, many, talking_model};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A reply that is the same each time.
fn short() -> Value {
    json!({"model": "tiny", "prompt": "The ocean is", "max_tokens": 8, "temperature": 0})
}

/// A reply that takes a while.
fn long(tokens: usize) -> Value {
    json!({"model": "tiny", "prompt": [5, 6], "max_tokens": tokens, "temperature": 1.0, "seed": 5, "ignore_eos": true})
}

/// The head and the body of a request by hand.
fn request(served: &Served, path: &str, body: &str) -> String {
    let (address, length) = (&served.address, body.len());
    format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A connection that gives up in time.
fn connect(served: &Served) -> Result<TcpStream> {
    let stream = TcpStream::connect(&served.address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Everything that comes until the server closes the connection. A connection that it resets has come to its end too.
fn read_to_end(stream: &mut TcpStream) -> Result<String> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
        _ => Ok(String::from_utf8_lossy(&all).into_owned()),
    }
}

/// The server is as it was: it has nothing to do, all its places are free, and it replies as before.
fn assert_unharmed(served: &mut Served, reply: &str) -> Result {
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    served.wait_for_number("reft_requests_waiting", 0.0)?;
    assert_eq!(served.text(&short())?, reply);
    assert!(served.process.try_wait()?.is_none(), "it has ended:\n{}", served.log());
    assert!(!served.log().contains("panicked"), "{}", served.log());
    Ok(())
}

/// A random body, which is usually invalid.
fn malformed_body(path: &str, random: &mut StdRng) -> Vec<u8> {
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(0.5),
        json!(true),
        json!(""),
        json!("\u{0}\u{fffd}"),
        json!([]),
        json!([[[]]]),
        json!({}),
        json!({"": {"": 0}}),
        json!(u64::MAX),
        json!(i64::MIN),
        json!([null, 1, "a"]),
    ];
    let fields = [
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "n",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "reft",
        "tools",
        "chat_template_kwargs",
        "ignore_eos",
        "echo",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "no_repeat_ngram_size",
        "something",
    ];
    let mut body = json!({"model": "tiny", "max_tokens": 1});
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": "a"}]),
        _ => body["prompt"] = json!("a"),
    }
    for _ in 0..random.random_range(0..3) {
        let (Some(field), Some(value)) = (fields.choose(random), values.choose(random)) else {
            continue;
        };
        body[*field] = value.clone();
    }
    let mut bytes = body.to_string().into_bytes();
    match random.random_range(0..5) {
        0 => bytes.truncate(random.random_range(0..bytes.len())),
        1 => {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        2 => bytes = (0..random.random_range(0..200)).map(|_| random.random()).collect(),
        3 => bytes = [b"[".repeat(random.random_range(1..5000)), bytes].concat(),
        _ => {}
    }
    bytes
}

/// Bytes that are no request.
fn malformed_protocol(served: &Served, random: &mut StdRng) -> Vec<u8> {
    let address = &served.address;
    let host = format!("host: {address}\r\n");
    let whole = request(served, COMPLETIONS, "{}");
    match random.random_range(0..9) {
        0 => (0..random.random_range(1..300)).map(|_| random.random()).collect(),
        1 => b"GET\r\n\r\n".to_vec(),
        2 => format!("POST {COMPLETIONS} HTTP/1.1\r\n{host}content-length: -5\r\n\r\n").into_bytes(),
        3 => format!("POST {COMPLETIONS} HTTP/1.1\r\n{host}content-length: 5\r\ncontent-length: 6\r\n\r\n{{}}").into_bytes(),
        4 => format!("POST {COMPLETIONS} HTTP/1.1\r\n{host}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n").into_bytes(),
        5 => format!("GET /health HTTP/1.1\r\n{host}x: {}\r\n\r\n", "y".repeat(random.random_range(1..600_000))).into_bytes(),
        6 => format!("GET /health HTTP/9.9\r\n{host}\r\n").into_bytes(),
        7 => whole.as_bytes()[..random.random_range(1..whole.len())].to_vec(),
        _ => {
            let mut bytes = whole.into_bytes();
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
            bytes
        }
    }
}

#[test]
fn malformed_requests_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let mut served = Served::start(&talking_model(dir.path())?, &[])?;
    let reply = served.text(&short())?;
    let mut random = StdRng::seed_from_u64(3);
    let (mut answers, mut refused, mut closed) = (0, 0, 0);
    let agent = agent();
    for i in 0..many(600, 100_000) {
        if i % 10 > 0 {
            let path = if random.random() { CHAT } else { COMPLETIONS };
            let body = malformed_body(path, &mut random);
            let answer = agent.post(served.url(path)).send(&body[..])?;
            let status = answer.status().as_u16();
            assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&body));
            answers += 1;
            refused += usize::from(status >= 400);
            answer.into_body().read_to_vec()?;
            continue;
        }
        let bytes = malformed_protocol(&served, &mut random);
        let mut stream = connect(&served)?;
        // the server may close the connection at any time
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let answer = read_to_end(&mut stream)?;
        closed += usize::from(answer.is_empty());
        if let Some(status) = answer.strip_prefix("HTTP/1.1 ") {
            assert!(!status.starts_with('5'), "{answer}: {}", String::from_utf8_lossy(&bytes));
        }
    }
    eprintln!(
        "{answers} bodies, {refused} of them refused; {closed} connections closed without a word"
    );
    let is_mixed = refused > answers / 2 && refused < answers;
    assert!(is_mixed, "the test has no power: {refused} of {answers} are refused");
    assert_unharmed(&mut served, &reply)
}

#[test]
fn clients_that_vanish_make_room() -> Result {
    let dir = tempfile::tempdir()?;
    let more = args!["--rows", "4", "--queue", "4"];
    let mut served = Served::start(&talking_model(dir.path())?, &more)?;
    let reply = served.text(&short())?;
    let mut random = StdRng::seed_from_u64(4);
    for _ in 0..many(30, 1000) {
        let mut body = long(15000);
        body["stream"] = json!(random.random::<bool>());
        let text = request(&served, COMPLETIONS, &body.to_string());
        let mut stream = connect(&served)?;
        // some clients leave before their request is whole, some while they wait, some during the reply
        let sent =
            if random.random_ratio(1, 4) { random.random_range(1..text.len()) } else { text.len() };
        stream.write_all(&text.as_bytes()[..sent])?;
        if sent == text.len() && body["stream"] == true {
            let mut some = vec![0; random.random_range(1..2000)];
            let _ = stream.read(&mut some)?;
        }
    }
    assert_unharmed(&mut served, &reply)?;
    // all eight rows are free
    let mut all = long(5);
    all["n"] = json!(8);
    let whole = served.reply(COMPLETIONS, &all)?;
    assert_eq!(whole["choices"].as_array().map(Vec::len), Some(8));
    let generated = served.number("reft_generated_tokens_total")?;
    assert!(generated < 15000.0 * f64::from(many(30, 1000)), "it went on for nobody: {generated}");
    Ok(())
}

#[test]
fn slow_readers_hold_up_nobody_and_not_for_ever() -> Result {
    let dir = tempfile::tempdir()?;
    let more = args!["--rows", "8", "--time-limit", "3"];
    let mut served = Served::start(&talking_model(dir.path())?, &more)?;
    let reply = served.text(&short())?;
    // more bytes than the buffers hold
    let mut body = long(8000);
    body["stream"] = json!(true);
    body["logprobs"] = json!(20);
    let text = request(&served, COMPLETIONS, &body.to_string());
    let mut stuck = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&served)?;
        stream.write_all(text.as_bytes())?;
        stuck.push(stream);
    }
    served.wait_for_number("reft_requests_in_flight", 3.0)?;
    let since = Instant::now();
    for _ in 0..many(5, 50) {
        assert_eq!(served.text(&short())?, reply, "others are held up");
    }
    // a slow reader gets the whole reply
    let mut slow = served.stream(COMPLETIONS, &long(40))?;
    let mut events = 0;
    while slow.next()?.is_some() {
        events += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(events > 20, "{events} events");
    // a client that reads nothing is cut off before the end of its stream
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    let limit = Duration::from_secs(8).saturating_sub(since.elapsed());
    std::thread::sleep(limit); // the limit of the reply, then the limit of a stuck connection
    for stream in &mut stuck {
        let answer = read_to_end(stream)?;
        assert!(!answer.contains("[DONE]"), "all of it fitted into buffers: {}", answer.len());
    }
    assert_unharmed(&mut served, &reply)
}

#[test]
fn slow_headers_are_cut_off() -> Result {
    let dir = tempfile::tempdir()?;
    let mut served = Served::start(&talking_model(dir.path())?, &args!["--idle-limit", "1"])?;
    let reply = served.text(&short())?;
    let mut slow = Vec::new();
    for _ in 0..many(20, 500) {
        let mut stream = connect(&served)?;
        stream.write_all(
            format!("GET /health HTTP/1.1\r\nhost: {}\r\nx-slow: ", served.address).as_bytes(),
        )?;
        slow.push(stream);
    }
    let idle = connect(&served)?;
    let since = Instant::now();
    // a byte now and then does not help
    for stream in slow.iter_mut().take(5) {
        std::thread::sleep(Duration::from_millis(100));
        let _ = stream.write_all(b"z");
    }
    for mut stream in slow.into_iter().chain([idle]) {
        let answer = read_to_end(&mut stream)?;
        assert!(!answer.contains("200 OK"), "{answer}");
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(20), "they are cut off after {took:?}");
    assert_unharmed(&mut served, &reply)
}

#[test]
fn oversized_bodies_are_refused_before_they_are_read() -> Result {
    let dir = tempfile::tempdir()?;
    let mut served = Served::start(&talking_model(dir.path())?, &args!["--body", "64KB"])?;
    let reply = served.text(&short())?;
    let address = served.address.clone();
    for _ in 0..many(3, 300) {
        for length in ["65537", "9999999999", "4611686018427387904"] {
            let mut stream = connect(&served)?;
            let head = format!(
                "POST {CHAT} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes())?;
            let answer = read_to_end(&mut stream)?;
            assert!(answer.starts_with("HTTP/1.1 413"), "{length}: {answer}");
        }
        // a chunked body has no content-length
        let mut stream = connect(&served)?;
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
        let sent = (0..64).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count();
        assert!(sent > 15, "{sent}");
        let answer = read_to_end(&mut stream)?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    assert_unharmed(&mut served, &reply)
}

#[test]
fn many_connections_are_answered() -> Result {
    let dir = tempfile::tempdir()?;
    let mut served = Served::start(&talking_model(dir.path())?, &[])?;
    let reply = served.text(&short())?;
    let mut all = Vec::new();
    for _ in 0..many(200, 1000) {
        all.push(connect(&served)?);
    }
    assert_eq!(served.text(&short())?, reply, "beside open connections");
    let ask = request(&served, COMPLETIONS, &short().to_string())
        .replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    for stream in &mut all {
        stream.write_all(ask.as_bytes())?;
    }
    let (mut whole, mut full) = (0, 0);
    for stream in &mut all {
        let answer = read_to_end(stream)?;
        whole +=
            usize::from(answer.starts_with("HTTP/1.1 200") && answer.contains("\"finish_reason\""));
        full += usize::from(answer.starts_with("HTTP/1.1 429"));
    }
    eprintln!("{whole} replies, {full} told that the queue is full");
    assert_eq!(whole + full, all.len(), "each is answered");
    assert!(whole >= 64, "{whole} replies");
    drop(all);
    assert_unharmed(&mut served, &reply)
}

/// A client of a busy server: whether its reply came, or it was refused for lack of room.
fn ask_of_busy(served: &Served, tokens: usize) -> Result<bool> {
    let answer = served.post(COMPLETIONS, &long(tokens))?;
    match (answer.status, answer.json()?) {
        (200, reply) => {
            assert_eq!(reply["usage"]["completion_tokens"], tokens);
            Ok(true)
        }
        (429, refused) => {
            assert_eq!(refused["error"]["code"], "queue_full");
            Ok(false)
        }
        (status, other) => Err(format!("{status}: {other}").into()),
    }
}

/// Clients at the same time: the number of replies, and the number of refusals for lack of room.
fn busy(served: &Served, clients: u32, each: u32, tokens: usize) -> Result<(usize, usize)> {
    let asked = std::thread::scope(|scope| {
        let ask = move || {
            (0..each)
                .map(|_| ask_of_busy(served, tokens).map_err(|error| error.to_string()))
                .collect::<Vec<_>>()
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    assert_eq!(asked.len(), (clients * each) as usize, "a client panicked");
    let asked = asked.into_iter().collect::<std::result::Result<Vec<bool>, _>>()?;
    let whole = asked.iter().filter(|is_whole| **is_whole).count();
    Ok((whole, asked.len() - whole))
}

#[test]
fn a_full_queue_is_told_and_the_rest_is_whole() -> Result {
    let dir = tempfile::tempdir()?;
    let mut served =
        Served::start(&talking_model(dir.path())?, &args!["--rows", "2", "--queue", "2"])?;
    let reply = served.text(&short())?;
    let (whole, full) = busy(&served, 16, many(4, 100), 60)?;
    eprintln!("{whole} replies, {full} told that the queue is full");
    assert!(whole >= 4 && full > 0, "the test has no power: {whole} replies, {full} refused");
    assert_unharmed(&mut served, &reply)
}

#[test]
fn replies_wait_where_keys_and_values_have_no_room() -> Result {
    let dir = tempfile::tempdir()?;
    let more = args!["--cached-tokens", "100", "--rows", "16", "--prefix-tokens", "0"];
    let mut served = Served::start(&talking_model(dir.path())?, &more)?;
    let reply = served.text(&short())?;
    let never = served.post(COMPLETIONS, &long(200))?;
    assert_eq!(never.status, 400, "{}", never.text);
    let (whole, full) = busy(&served, 16, many(2, 40), 60)?;
    assert_eq!((whole, full), (16 * many(2, 40) as usize, 0));
    assert_unharmed(&mut served, &reply)
}

/// The outcome for a client of a server that shuts down.
enum Saw {
    /// A whole reply, or that the server ends.
    AnAnswer,
    /// No byte of an answer.
    Nothing,
}

/// Asks a server that may end at any time.
fn ask_of_ending(served: &Served, id: &str, is_stream: bool) -> Result<Saw> {
    let mut body = long(150);
    body["stream"] = json!(is_stream);
    let asked =
        agent().post(served.url(COMPLETIONS)).header("x-request-id", id).send(body.to_string());
    let Ok(mut answer) = asked else { return Ok(Saw::Nothing) };
    let status = answer.status().as_u16();
    let text = answer.body_mut().read_to_string()?; // an answer that has begun is complete
    let is_told = |text: &str| text.contains("shutting_down");
    let is_whole =
        if is_stream { text.ends_with("data: [DONE]\n\n") } else { text.contains("\"usage\"") };
    match status {
        200 if is_whole || is_told(&text) => Ok(Saw::AnAnswer),
        503 if is_told(&text) => Ok(Saw::AnAnswer),
        _ => Err(format!("{id}: {status} {text}").into()),
    }
}

#[test]
fn nobody_is_cut_in_silence_when_a_busy_server_ends() -> Result {
    let dir = tempfile::tempdir()?;
    let model = talking_model(dir.path())?;
    for round in 0..many(2, 30) {
        // every second server gives requests in flight no time
        let grace = if round.is_multiple_of(2) { "60" } else { "0" };
        let mut served =
            Served::start(&model, &args!["--rows", "4", "--queue", "64", "--grace", grace])?;
        let unanswered = std::thread::scope(|scope| -> Result<Vec<String>> {
            let served = &served;
            let ask = move |client: u32| -> std::result::Result<Vec<String>, String> {
                for i in 0.. {
                    let id = format!("client-{client}-request-{i}-");
                    match ask_of_ending(served, &id, client.is_multiple_of(2)) {
                        Ok(Saw::AnAnswer) => {}
                        Ok(Saw::Nothing) => return Ok(vec![id]),
                        Err(error) => return Err(error.to_string()),
                    }
                }
                Ok(Vec::new())
            };
            let clients: Vec<_> = (0..12).map(|client| scope.spawn(move || ask(client))).collect();
            std::thread::sleep(Duration::from_millis(200 + 37 * u64::from(round)));
            served.terminate()?;
            let mut unanswered = Vec::new();
            for client in clients {
                unanswered.extend(client.join().map_err(|_| "a client panicked")??);
            }
            Ok(unanswered)
        })?;
        assert_eq!(served.code()?, Some(0), "{}", served.log());
        let log = served.last_words()?;
        // a request without an answer was not accepted, so it is not in the log
        let cut: Vec<&String> = unanswered.iter().filter(|id| log.contains(*id)).collect();
        assert!(cut.is_empty(), "cut without a word: {cut:?}\n{log}");
        assert!(log.contains("client-"), "the test has no power:\n{log}");
    }
    Ok(())
}

#[test]
fn adapters_whose_files_go_or_are_half_written_harm_nobody_else() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    let whole = import(dir.path(), "loreft")?;
    std::fs::create_dir_all(&root)?;
    let mut served = Served::start(&model, &args!["--adapters-dir", root, "--allow-load"])?;
    let reply = served.text(&short())?;
    let with = |name: &str| {
        let mut body = short();
        body["model"] = json!(name);
        served.post(COMPLETIONS, &body)
    };
    // another client's reply goes on all the time
    let mut other = served.stream(COMPLETIONS, &long(4000))?;
    other.next()?;
    let files =
        std::fs::read_dir(&whole)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut refused = 0;
    for i in 0..many(24, 500) {
        // one file of the adapter is truncated or missing
        let name = format!("half-{i}");
        let half = root.join(&name);
        std::fs::create_dir(&half)?;
        let cut = i as usize % files.len();
        for (at, file) in files.iter().enumerate() {
            let bytes = std::fs::read(file)?;
            let kept = bytes.len() * (i as usize * 7 % 100) / 100;
            let bytes = if at == cut { &bytes[..kept] } else { &bytes[..] };
            if at != cut || i % 3 > 0 {
                std::fs::write(half.join(file.file_name().ok_or("no name")?), bytes)?;
            }
        }
        let answer = with(&name)?;
        assert!(
            [200, 400, 404].contains(&answer.status),
            "{name}: {} {}",
            answer.status,
            answer.text
        );
        refused += usize::from(answer.status != 200);
        let load = json!({"lora_name": name, "lora_path": name, "load_inplace": true});
        assert_eq!(
            served.post("/v1/adapters", &load)?.status == 200,
            answer.status == 200,
            "{name}"
        );
        // with complete files the adapter can be used
        for file in &files {
            std::fs::copy(file, half.join(file.file_name().ok_or("no name")?))?;
        }
        assert_eq!(served.post("/v1/adapters", &load)?.status, 200, "{name}");
        let now = with(&name)?;
        assert_eq!(now.status, 200, "{name}: {}", now.text);
        // without its files a loaded adapter stays; to load it again is refused
        std::fs::remove_dir_all(&half)?;
        assert_eq!(with(&name)?.status, 200, "{name}");
        assert_eq!(served.delete(&format!("/v1/adapters/{name}"))?.status, 200);
        assert_eq!(with(&name)?.status, 404, "{name}");
    }
    assert!(refused as u32 > many(24, 500) / 2, "the test has no power: {refused} were refused");
    // no adapter of a removed directory is listed
    std::fs::remove_dir_all(&root)?;
    assert_eq!(served.get("/v1/models")?.json()?["data"].as_array().map(Vec::len), Some(1));
    assert_eq!(with("half-0")?.status, 404);
    drop(other);
    assert_unharmed(&mut served, &reply)
}
