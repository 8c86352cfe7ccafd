//! `reft serve` for a long time under load: adapters that are swapped a thousand times, and memory. `cargo xtask serve-check --faults` swaps
//! as often, and `cargo xtask soak --minutes 20` watches memory.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::logits::import;
use crate::runs::args;
use crate::serve_client::{Served, agent, many, talking_model};
use crate::serving_adapters::copied;

const COMPLETIONS: &str = "/v1/completions";

/// A request whose whole reply depends on the adapter, and is the same each time.
fn body(model: &str) -> Value {
    json!({"model": model, "prompt": "The ocean is", "max_tokens": 40, "temperature": 0})
}

/// The text of a stream's events.
fn joined(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

fn load(served: &Served, name: &str, path: &str) -> Result {
    let body = json!({"lora_name": name, "lora_path": path, "load_inplace": true});
    let answer = served.post("/v1/adapters", &body)?;
    if answer.status != 200 {
        return Err(format!("{path}: {} {}", answer.status, answer.text).into());
    }
    Ok(())
}

#[test]
fn an_adapter_that_is_swapped_under_load_is_wholly_the_old_or_the_new_one() -> Result {
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    for (from, to) in [("loreft", "first"), ("nodireft", "second")] {
        copied(&import(dir.path(), from)?, &root.join(to))?;
    }
    let served = Served::start(&model, &args!["--adapters-dir", root, "--allow-load"])?;
    let expected = [served.text(&body("first"))?, served.text(&body("second"))?];
    assert_ne!(expected[0], expected[1]);
    load(&served, "both", "first")?;
    let is_over = AtomicBool::new(false);
    let swaps = many(20, 1000);
    let asked: Vec<Vec<String>> = std::thread::scope(|scope| -> Result<_> {
        let (served, is_over) = (&served, &is_over);
        let ask = move |i: u32| -> std::result::Result<Vec<String>, String> {
            let mut replies = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let reply = match i % 2 {
                    0 => served.text(&body("both")),
                    _ => served.events(COMPLETIONS, &body("both")).map(|events| joined(&events)),
                };
                replies.push(reply.map_err(|error| error.to_string())?);
            }
            Ok(replies)
        };
        let clients: Vec<_> = (0..4).map(|i| scope.spawn(move || ask(i))).collect();
        let swapped = (0..swaps).try_for_each(|i| {
            let now = (i as usize + 1) % 2;
            load(served, "both", ["first", "second"][now])?;
            // later requests get the new adapter
            assert_eq!(served.text(&body("both"))?, expected[now], "after swap {i}");
            Ok(())
        });
        is_over.store(true, Ordering::SeqCst);
        let asked =
            clients.into_iter().map(|client| Ok(client.join().map_err(|_| "panicked")??)).collect();
        swapped.and(asked)
    })?;
    let replies: Vec<&String> = asked.iter().flatten().collect();
    let mixed: BTreeSet<&&String> =
        replies.iter().filter(|reply| !expected.contains(reply)).collect();
    assert!(
        mixed.is_empty(),
        "neither the old one's nor the new one's: {mixed:?}, expected {expected:?}"
    );
    let of = |which: usize| replies.iter().filter(|reply| **reply == &expected[which]).count();
    eprintln!("{swaps} swaps, {} replies of one and {} of the other", of(0), of(1));
    assert!(of(0) > 0 && of(1) > 0, "the test has no power");
    // replaced adapters are dropped
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    served.wait_for_number("reft_adapters_loaded", 3.0)
}

/// Anonymous memory of the server, and memory of its mapped files, in kB. The memory of files varies: the system evicts and loads their pages
/// as it likes, and code that runs for the first time adds some.
fn memory(served: &Served) -> Result<[f64; 2]> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.process.id()))?;
    let number = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or(name)?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok([number("RssAnon:")?, number("RssFile:")?])
}

/// Client action number `i`: whole and streamed replies, of base and adapters, long and short; swaps of adapters; clients that leave; invalid
/// requests.
fn act(served: &Served, i: usize) -> Result {
    let adapter = ["tiny", "first", "second", "both"][i % 4];
    let mut body = json!({"model": adapter, "max_tokens": 8 + i % 90, "temperature": 1, "seed": i});
    body["prompt"] = json!(format!("{i} times the ocean is {}", "deep ".repeat(i % 40)));
    match i % 11 {
        0 => load(served, "both", ["first", "second"][i / 11 % 2]),
        1 | 2 => served.events(COMPLETIONS, &body).map(drop),
        3 => served.stream(COMPLETIONS, &body)?.next().map(drop), // the client leaves
        4 => {
            body["temperature"] = json!("hot");
            served.post(COMPLETIONS, &body).map(drop)
        }
        5 => agent().post(served.url(COMPLETIONS)).send("{\"model\"").map(drop).map_err(Into::into),
        6 => served.get("/metrics").map(drop),
        7 => served.get("/v1/models").map(drop),
        _ => served.text(&body).map(drop),
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak --minutes 20"]
fn memory_stays_what_it_was() -> Result {
    let minutes: f64 =
        std::env::var("REFT_SOAK_MINUTES").unwrap_or_else(|_| "20".to_owned()).parse()?;
    let whole = Duration::from_secs_f64(60.0 * minutes);
    let warm = whole.min(Duration::from_secs(1200)).div_f64(10.0); // 2 minutes of 20
    let dir = tempfile::tempdir()?;
    let (model, root) = (talking_model(dir.path())?, dir.path().join("adapters"));
    for (from, to) in [("loreft", "first"), ("nodireft", "second")] {
        copied(&import(dir.path(), from)?, &root.join(to))?;
    }
    let served =
        Served::start(&model, &args!["--adapters-dir", root, "--allow-load", "--rows", "8"])?;
    load(&served, "both", "first")?;
    let next = AtomicUsize::new(0);
    // measured with no request in flight, because a batch's memory is temporary
    let memory_after = |time: Duration| -> Result<[f64; 2]> {
        let since = Instant::now();
        let ask = || -> std::result::Result<(), String> {
            while since.elapsed() < time {
                let i = next.fetch_add(1, Ordering::Relaxed);
                act(&served, i).map_err(|error| format!("request {i}: {error}"))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| -> Result {
            let clients: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
            clients
                .into_iter()
                .try_for_each(|client| Ok(client.join().map_err(|_| "panicked")??))
        })?;
        served.wait_for_number("reft_requests_in_flight", 0.0)?;
        served.wait_for_number("reft_adapters_loaded", 3.0)?;
        std::thread::sleep(Duration::from_secs(2)); // the allocator returns free memory
        memory(&served)
    };
    let [before, files] = memory_after(warm)?;
    let (first, asked) = (warm.as_secs_f64() / 60.0, next.load(Ordering::Relaxed));
    eprintln!("after {first:.1} minutes and {asked} requests: {before} kB, of files {files}");
    let [after, files] = memory_after(whole - warm)?;
    let growth = 100.0 * (after / before - 1.0);
    eprintln!(
        "after {minutes} minutes and {} requests: {after} kB, {growth:+.2} %, of files {files}",
        next.load(Ordering::Relaxed)
    );
    served.wait_for_number("reft_requests_in_flight", 0.0)?;
    assert!(
        growth <= 2.0,
        "memory was {before} kB and is {after} kB, expected no more than 2 % above it"
    );
    Ok(())
}
