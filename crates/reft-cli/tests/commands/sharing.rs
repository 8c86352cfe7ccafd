//! Several processes at one output directory: a training run has it alone, comparisons and searches share out their cells.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::Result;
use crate::compare::{bench, compare};
use crate::das;
use crate::files::{listing, losses, many_rows};
use crate::interruption::{start, wait_for_step};
use crate::runs::{Run, args, oracle, run, succeed};

#[test]
fn a_training_run_has_its_directory_alone() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 8)?, dir.path().join("run"));
    let train = |output: &Path, steps: &str, more: &[&str]| -> Vec<OsString> {
        let mut words = args!["train", "--model", oracle("tiny_llama"), "--data", data];
        words.extend(args!["--output", output, "--max-steps", steps, "--rank", "2"]);
        words.extend(args!["--batch-size", "2", "--threads", "1"]);
        words.extend(more.iter().map(OsString::from));
        words
    };
    let mut first = start(train(&output, "400", &["--checkpoint-every", "0"]))?;
    wait_for_step(&mut first, &output, 3)?;
    let options = fs::read(output.join("train.toml"))?;
    for more in [&[][..], &["--overwrite"], &["--resume"]] {
        let second = run(train(&output, "2", more))?;
        assert_eq!(second.code, Some(1), "{more:?}: {}", second.stderr);
        let by = format!("is in use by another run (process {})", first.id());
        assert!(second.stderr.contains(&by), "{more:?}: {}", second.stderr);
    }
    assert!(first.try_wait()?.is_none(), "the first run had ended: the test has no power");
    assert_eq!(fs::read(output.join("train.toml"))?, options);
    let ended = Run::from(first.wait_with_output()?);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(losses(&output)?.len(), 400);
    assert!(!output.join(".lock").exists());

    // a killed run leaves no lock, and its files stay even if the next run fails
    let killed = dir.path().join("killed");
    let mut first = start(train(&killed, "400", &["--checkpoint-every", "0"]))?;
    wait_for_step(&mut first, &killed, 3)?;
    first.kill()?;
    first.wait()?;
    let before = listing(&killed)?;
    fs::rename(&data, dir.path().join("away"))?;
    let failed = run(args!["train", "--resume", "--output", killed])?;
    assert!(failed.code == Some(1) && failed.stderr.contains("many.jsonl"), "{}", failed.stderr);
    let without_lock = |paths: Vec<std::path::PathBuf>| -> Vec<_> {
        paths.into_iter().filter(|path| !path.ends_with(".lock")).collect()
    };
    assert_eq!(without_lock(listing(&killed)?), without_lock(before));
    fs::rename(dir.path().join("away"), &data)?;
    let resumed = succeed(args!["train", "--resume", "--output", killed])?;
    assert!(resumed.stdout.contains("400 steps"), "{}", resumed.stdout);
    assert_eq!(losses(&killed)?, losses(&output)?);
    Ok(())
}

/// Number of cells that a run has computed, from its messages.
fn cells_run(run: &Run) -> usize {
    let lines = run.stderr.lines().filter(|line| line.starts_with('['));
    lines.filter(|line| !line.contains("finished before")).count()
}

#[test]
fn comparisons_share_out_their_cells() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let both = [start(compare(dir.path(), &output))?, start(compare(dir.path(), &output))?];
    let mut all = 0;
    for process in both {
        let ended = Run::from(process.wait_with_output()?);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stdout.contains("| lora |"), "{}", ended.stdout);
        all += cells_run(&ended);
    }
    // the base model; for each of two methods, the trial of its rate and its test
    assert_eq!(all, 1 + 2 * 2);
    let report: Value = serde_json::from_slice(&fs::read(output.join("report.json"))?)?;
    assert_eq!(report["complete"], true);
    let left = listing(&output)?.into_iter().filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    });
    assert_eq!(left.count(), 0);
    Ok(())
}

#[test]
fn another_comparison_does_not_get_between() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    succeed(compare(dir.path(), &output))?;
    // as if a process computed this cell
    fs::write(output.join("cells/base/.claim"), "another")?;
    let config = dir.path().join("compare.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("max_steps = 3", "max_steps = 4"))?;
    let plan = fs::read(output.join("plan.json"))?;
    let refused = run(compare(dir.path(), &output))?;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("is in use by another run"),
        "{}",
        refused.stderr
    );
    assert_eq!(fs::read(output.join("plan.json"))?, plan);
    fs::remove_file(output.join("cells/base/.claim"))?;
    assert_eq!(cells_run(&succeed(compare(dir.path(), &output))?), 1 + 2 * 2);
    Ok(())
}

/// The processes that run a cell in a directory.
#[cfg(target_os = "linux")]
fn children(output: &Path) -> Result<usize> {
    let name = output.as_os_str().as_encoded_bytes();
    let is_child = |entry: fs::DirEntry| {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.nth(1) == Some(b"compare-cell") && words.any(|word| word == name)
    };
    Ok(fs::read_dir("/proc")?.flatten().map(is_child).filter(|is_child| *is_child).count())
}

#[cfg(target_os = "linux")]
#[test]
fn cells_of_a_killed_comparison_end_and_are_another_s() -> Result {
    let dir = bench()?;
    let output = dir.path().join("out");
    let config = dir.path().join("compare.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("max_steps = 3", "max_steps = 300"))?;
    let mut first = start(compare(dir.path(), &output))?;
    let started = Instant::now();
    let wait_until = |what: &dyn Fn() -> Result<bool>| -> Result {
        while !what()? {
            if started.elapsed() > Duration::from_secs(120) {
                return Err("nothing happened in two minutes".into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    let claim = output.join("cells/loreft/lr-0.01/seed-0/.claim");
    wait_until(&|| Ok(claim.exists() && children(&output)? == 1))?;
    let pid = first.id().to_string();
    assert!(Command::new("kill").args(["-KILL", &pid]).status()?.success());
    first.wait()?;
    wait_until(&|| Ok(children(&output)? == 0))?;
    assert!(claim.exists());
    let file = fs::OpenOptions::new().write(true).open(&claim)?;
    file.set_modified(SystemTime::now() - Duration::from_secs(60))?; // a claim that is a minute old
    let second = succeed(compare(dir.path(), &output))?;
    assert_eq!((second.stderr.matches("finished before").count(), cells_run(&second)), (1, 4));
    Ok(())
}

#[test]
fn searches_share_out_their_cells() -> Result {
    let dir = tempfile::tempdir()?;
    let model = das::model(dir.path())?;
    let search = das::arguments(dir.path(), &model, das::TASK, &[])?;
    let both = [start(search.clone())?, start(search)?];
    let mut all = 0;
    for process in both {
        let ended = Run::from(process.wait_with_output()?);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        all += ended.stderr.matches(": IIA ").count();
    }
    // two layers, two tokens, with the control
    assert_eq!(all, 2 * 2 * 2);
    let rows = das::report(dir.path())?["rows"].as_array().map(Vec::len);
    assert_eq!(rows, Some(4));
    Ok(())
}
