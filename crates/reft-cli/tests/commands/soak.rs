//! Faults by the hundred, run by `cargo xtask soak` for minutes. The other modules test each kind of fault once.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::Result;
use crate::compare::{bench, compare};
use crate::das;
use crate::files::{listing, losses, many_rows};
use crate::interruption::{send, start, training, wait_for_step};
use crate::runs::{Run, args, oracle, run, succeed};

/// How often each kind of process is killed.
fn times() -> Result<u32> {
    Ok(std::env::var("REFT_SOAK_TIMES").unwrap_or_else(|_| "70".to_owned()).parse()?)
}

/// Moment number `i` within `whole`. The moments are evenly spread, for any number of them.
fn moment(i: u32, whole: Duration) -> Duration {
    whole.mul_f64((f64::from(i) * 0.618_033_988_75).fract())
}

/// Kills a process at a moment, or lets it end by itself before that.
fn killed_at(mut child: Child, moment: Duration) -> Result<Run> {
    let started = Instant::now();
    while started.elapsed() < moment && child.try_wait()?.is_none() {
        sleep(Duration::from_millis(1));
    }
    drop(child.kill()); // SIGKILL; an error if it has ended
    Ok(child.wait_with_output()?.into())
}

/// Asserts that the files under their final names are complete.
fn assert_files_are_whole(dir: &Path) -> Result {
    for path in listing(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        if name.ends_with(".json") {
            let json: std::result::Result<Value, _> = serde_json::from_slice(&fs::read(&path)?);
            assert!(json.is_ok(), "{}: {json:?}", path.display());
        }
        if name.ends_with(".safetensors") {
            let bytes = fs::read(&path)?;
            let header = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
            let json: Value = serde_json::from_slice(&bytes[8..8 + header])?;
            let ends = json.as_object().into_iter().flatten();
            let last = ends.filter_map(|(_, tensor)| tensor["data_offsets"][1].as_u64()).max();
            assert_eq!(last.map(|last| last as usize + 8 + header), Some(bytes.len()), "{name}");
        }
    }
    Ok(())
}

/// The step after which a resumed run continues, from its messages.
fn goes_on_after(run: &Run) -> Option<u64> {
    let (_, rest) = run.stderr.split_once("going on after ")?;
    rest.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn training_is_killed_and_nothing_is_lost() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let started = Instant::now();
    succeed(training(&data, &whole, "7"))?;
    let takes = started.elapsed();
    let (mut starts, mut kills, mut ends, mut reached) = (0, 0, 0, 0);
    while kills < times()? {
        starts += 1;
        let words = if killed.join("train.toml").exists() {
            args!["train", "--resume", "--output", killed]
        } else {
            training(&data, &killed, "7")
        };
        let ended = killed_at(start(words)?, moment(starts, takes))?;
        assert_files_are_whole(dir.path())?;
        if let Some(step) = goes_on_after(&ended) {
            assert!(step >= reached, "step {reached} had been saved, it goes on after {step}");
            reached = step;
        }
        match ended.code {
            None => kills += 1,
            Some(0) => {
                assert_eq!(losses(&killed)?, losses(&whole)?);
                for file in ["reft_model.safetensors", "reft_config.json"] {
                    assert_eq!(fs::read(killed.join(file))?, fs::read(whole.join(file))?, "{file}");
                }
                fs::remove_dir_all(&killed)?;
                (ends, reached) = (ends + 1, 0);
            }
            code => panic!("{code:?}: {}", ended.stderr),
        }
    }
    eprintln!("train: {kills} kills, {ends} runs ended as if nothing had been");
    assert!(ends > 0);
    Ok(())
}

/// Kills and restarts a command that resumes its own work. Returns the values that `result` reads each time the command finishes.
fn kill_until_ended(
    command: &[OsString],
    output: &Path,
    result: impl Fn() -> Result<Value>,
) -> Result<Vec<Value>> {
    let started = Instant::now();
    succeed(command.iter().cloned())?;
    let takes = started.elapsed();
    let mut results = vec![result()?];
    fs::remove_dir_all(output)?;
    let (mut starts, mut kills) = (0, 0);
    while kills < times()? {
        starts += 1;
        let ended = killed_at(start(command.to_vec())?, moment(starts, takes))?;
        if output.exists() {
            assert_files_are_whole(output)?;
        }
        match ended.code {
            None => kills += 1,
            Some(0) => {
                results.push(result()?);
                fs::remove_dir_all(output)?;
            }
            code => panic!("{code:?}: {}", ended.stderr),
        }
    }
    succeed(command.iter().cloned())?;
    results.push(result()?);
    eprintln!("{}: {kills} kills, {} ends", command[0].to_string_lossy(), results.len() - 1);
    Ok(results)
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn comparisons_are_killed_and_their_scores_stay() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let scores = || -> Result<Value> {
        let report: Value = serde_json::from_slice(&fs::read(output.join("report.json"))?)?;
        let methods = report["methods"].as_array().ok_or("no methods")?;
        Ok(methods.iter().map(|m| [m["method"].clone(), m["losses"].clone()].to_vec()).collect())
    };
    let results = kill_until_ended(&compare(dir.path(), &output), &output, scores)?;
    assert!(results.len() > 1 && results.iter().all(|r| *r == results[0]), "{results:?}");
    Ok(())
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn searches_are_killed_and_find_the_same() -> Result {
    let dir = tempfile::tempdir()?;
    let model = das::model(dir.path())?;
    let search = das::arguments(dir.path(), &model, das::TASK, &[])?;
    let found = || -> Result<Value> {
        let report = das::report(dir.path())?;
        let rows = report["rows"].as_array().ok_or("no rows")?;
        Ok(rows.iter().map(|row| [row["site"].clone(), row["iia"].clone()].to_vec()).collect())
    };
    let results = kill_until_ended(&search, &dir.path().join("out"), found)?;
    assert!(results.len() > 1 && results.iter().all(|r| *r == results[0]), "{results:?}");
    Ok(())
}

#[test]
#[ignore = "minutes: cargo xtask soak"]
fn second_signals_crash_nothing() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let count = 3 * times()?;
    for i in 0..count {
        let output = dir.path().join(i.to_string());
        let mut words = args!["train", "--model", oracle("tiny_llama"), "--data", data];
        words.extend(args!["--output", output, "--max-steps", "100000", "--batch-size", "20"]);
        words.extend(args!["--method", "full", "--threads", "4", "--checkpoint-every", "0"]);
        let mut child = start(words)?;
        wait_for_step(&mut child, &output, 1 + i as usize % 5)?;
        while child.try_wait()?.is_none() {
            send("-INT", &child)?;
            sleep(moment(i, Duration::from_millis(3)));
        }
        let ended = Run::from(child.wait_with_output()?);
        assert_eq!(ended.code, Some(130), "{i}: {}", ended.stderr);
        fs::remove_dir_all(&output)?;
    }
    eprintln!("two signals: {count} runs, none crashed");
    Ok(())
}

/// A second run starts at moments between the first run's start and its first checkpoint.
#[test]
#[ignore = "minutes: cargo xtask soak"]
fn second_starts_do_no_harm() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let whole = dir.path().join("whole");
    succeed(training(&data, &whole, "7"))?;
    let (mut refused, mut count) = (0, 0);
    for i in 0..times()? {
        let output = dir.path().join(format!("run{i}"));
        let first = start(training(&data, &output, "7"))?;
        sleep(moment(i, Duration::from_millis(1500)));
        let second = run(training(&data, &output, "7"))?;
        let first = Run::from(first.wait_with_output()?);
        let (ended, other) = if first.code == Some(0) { (first, second) } else { (second, first) };
        assert_eq!(ended.code, Some(0), "{i}: {}\n{}", ended.stderr, other.stderr);
        assert_eq!(other.code, Some(1), "{i}: {}", other.stderr);
        assert_eq!(other.stderr.matches("error: ").count(), 1, "{}", other.stderr);
        refused += u32::from(other.stderr.contains("is in use by another run"));
        assert_eq!(losses(&output)?, losses(&whole)?, "{i}");
        fs::remove_dir_all(&output)?;
        count += 1;
    }
    eprintln!("second starts: {count}, {refused} of them beside the first");
    assert!(refused > 0);
    Ok(())
}

/// Runs `reft` in a file system of its own of size `size`, and then the shell command `then`.
#[cfg(target_os = "linux")]
fn on_a_disk(place: &Path, size: &str, words: &[OsString], then: &str) -> Result<Run> {
    let script = format!(
        "mount -t tmpfs -o size={size} none \"$1\" || exit 77; shift; \"$0\" \"$@\"; code=$?; {then}; exit $code"
    );
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &script, env!("CARGO_BIN_EXE_reft")]).arg(place).args(words);
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    Ok(command.output()?.into())
}

/// Every size of the disk from one page to enough: the run ends with one message, and can be resumed with more room.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "minutes: cargo xtask soak"]
fn disks_run_full_at_every_write() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, disk) = (many_rows(dir.path(), 20)?, dir.path().join("disk"));
    fs::create_dir(&disk)?;
    let output = disk.join("run");
    let mut words = training(&data, &output, "7");
    let steps = words.iter().position(|word| word == "160").ok_or("no number of steps")?;
    words[steps] = "40".into();
    // with more room the run is resumed, if there is one to resume
    let then = format!(
        "mount -o remount,size=64m \"{0}\"; if [ $code != 0 ] && [ -e \"{0}/run/train.toml\" ]; then \"$0\" train --resume --output \"{0}/run\" >&2 || exit 78; fi; if [ $code != 0 ]; then find \"{0}\" -name '*.tmp*' >&2; fi",
        disk.display()
    );
    let (mut full, mut size) = (0, 1);
    loop {
        let run = on_a_disk(&disk, &format!("{}k", 4 * size), &words, &then)?;
        match run.code {
            Some(0) => break,
            Some(1) => {
                assert!(run.stderr.matches("error: ").count() == 1, "{size}: {}", run.stderr);
                assert!(run.stderr.contains("cannot write"), "{size}: {}", run.stderr);
                full += 1;
            }
            Some(77) => return Err("this machine lets nobody mount a file system".into()),
            code => panic!("{} KiB: {code:?}: {}", 4 * size, run.stderr),
        }
        size += 1;
        assert!(size < 400, "no size is enough: {}", run.stderr);
    }
    eprintln!("disk full: {full} sizes, one message each, and all gone on with");
    assert!(full > 5);
    Ok(())
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "minutes: cargo xtask soak"]
fn a_directory_that_cannot_be_written_to_is_one_message() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, disk) = (many_rows(dir.path(), 8)?, dir.path().join("disk"));
    fs::create_dir(&disk)?;
    let words = training(&data, &disk.join("run"), "7");
    let run = on_a_disk(&disk, "1m,ro", &words, "true")?;
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("Read-only file system"), "{}", run.stderr);
    Ok(())
}

/// A clock that went back leaves files with future times. Claims that nobody renews end all the same.
#[test]
#[ignore = "minutes: cargo xtask soak"]
fn a_clock_that_goes_back_stops_nothing() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let first = killed_at(start(compare(dir.path(), &output))?, Duration::from_millis(1500))?;
    assert_eq!(first.code, None, "the comparison had ended: {}", first.stdout);
    let future = SystemTime::now() + Duration::from_secs(3600);
    for path in listing(&output)?.into_iter().filter(|path| path.is_file()) {
        fs::File::options().write(true).open(&path)?.set_modified(future)?;
    }
    let started = Instant::now();
    let second = run(compare(dir.path(), &output))?;
    assert_eq!(second.code, Some(0), "{}", second.stderr);
    assert!(started.elapsed() < Duration::from_secs(120), "{:?}", started.elapsed());
    Ok(())
}
