//! Runs that end early: killed, interrupted, resumed.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::{losses, many_rows};
use crate::runs::{Run, args, command, oracle, run, succeed};

/// A run of some seconds with everything that could differ after a resumption: order, dropout, accumulation, validation, epochs.
pub fn training(data: &Path, output: &Path, checkpoint_every: &str) -> Vec<OsString> {
    args![
        "train",
        "--model",
        oracle("tiny_llama"),
        "--data",
        data,
        "--output",
        output,
        "--rank",
        "3",
        "--layers",
        "1;2",
        "--positions",
        "f2+l2",
        "--dropout",
        "0.2",
        "--batch-size",
        "3",
        "--grad-accum",
        "2",
        "--lr",
        "3e-3",
        "--schedule",
        "cosine",
        "--warmup-ratio",
        "0.1",
        "--weight-decay",
        "0.01",
        "--validation",
        "3",
        "--max-steps",
        "160",
        "--eval-every",
        "40",
        "--checkpoint-every",
        checkpoint_every,
        "--seed",
        "5",
        "--threads",
        "1"
    ]
}

pub fn start(args: Vec<OsString>) -> Result<Child> {
    Ok(command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Waits until a run has taken some steps.
pub fn wait_for_step(run: &mut Child, output: &Path, step: usize) -> Result {
    let started = Instant::now();
    while losses(output).map_or(0, |losses| losses.len()) < step {
        if let Some(status) = run.try_wait()? {
            return Err(format!("the run ended before step {step}: {status}").into());
        }
        if started.elapsed() > Duration::from_secs(120) {
            run.kill()?;
            return Err(format!("step {step} was not reached in two minutes").into());
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub fn send(signal: &str, run: &Child) -> Result {
    let status = Command::new("kill").args([signal, &run.id().to_string()]).status()?;
    if status.success() { Ok(()) } else { Err(format!("kill {signal}: {status}").into()) }
}

#[test]
fn a_run_killed_anywhere_goes_on_as_if_nothing_had_been() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    succeed(training(&data, &whole, "7"))?;
    // Killed before the first checkpoint, and twice at arbitrary moments after these steps.
    let mut more: Vec<OsString> = Vec::new();
    for step in [2, 40, 90] {
        let mut run = start([training(&data, &killed, "7"), more].concat())?;
        wait_for_step(&mut run, &killed, step)?;
        run.kill()?; // SIGKILL
        run.wait()?;
        assert!(!killed.join("reft_config.json").exists(), "the run had ended already");
        more = args!["--resume"];
    }
    let resumed = succeed(args!["train", "--resume", "--output", killed])?;
    assert!(resumed.stderr.contains("going on after "));
    assert_eq!(losses(&killed)?, losses(&whole)?);
    for file in ["reft_model.safetensors", "reft_config.json"] {
        assert_eq!(std::fs::read(killed.join(file))?, std::fs::read(whole.join(file))?, "{file}");
    }
    Ok(())
}

#[test]
fn signals_save_a_checkpoint_and_say_how_to_go_on() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let whole = dir.path().join("whole");
    succeed(training(&data, &whole, "7"))?;
    for signal in ["-INT", "-TERM"] {
        let stopped = dir.path().join(format!("stopped{signal}"));
        let mut child = start(training(&data, &stopped, "0"))?;
        wait_for_step(&mut child, &stopped, 11)?;
        send(signal, &child)?;
        let ended = Run::from(child.wait_with_output()?);
        assert_eq!(ended.code, Some(130), "{}", ended.stderr);
        let advice = format!("reft train --resume --output {}", stopped.display());
        assert!(ended.stderr.contains(&advice), "{}", ended.stderr);
        assert!(ended.stderr.contains("interrupted after step"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("error"), "{}", ended.stderr);
        assert!(!stopped.join("reft_config.json").exists());
        let refused = run(args!["inspect", stopped])?;
        assert!(refused.stderr.contains("an unfinished training run"), "{}", refused.stderr);
        succeed(args!["train", "--resume", "--output", stopped])?;
        assert_eq!(losses(&stopped)?, losses(&whole)?);
    }
    Ok(())
}

/// The second signal ends the program at once, during any computation. No destructor frees objects that its threads use.
#[test]
fn a_second_signal_ends_the_program_and_crashes_nothing() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    for i in 0..12 {
        let output = dir.path().join(i.to_string());
        let mut words = args!["train", "--model", oracle("tiny_llama"), "--data", data];
        words.extend(args!["--output", output, "--max-steps", "100000", "--batch-size", "20"]);
        words.extend(args!["--method", "full", "--threads", "4", "--checkpoint-every", "0"]);
        let mut child = start(words)?;
        wait_for_step(&mut child, &output, 2 + i)?;
        // two signals merge into one while the first is not handled
        while child.try_wait()?.is_none() {
            send("-INT", &child)?;
            sleep(Duration::from_millis(1));
        }
        let ended = Run::from(child.wait_with_output()?);
        assert_eq!(ended.code, Some(130), "{i}: {}", ended.stderr);
    }
    Ok(())
}

#[test]
fn a_directory_removed_under_the_run_is_one_message() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    for step in [1, 30] {
        let output = dir.path().join(format!("run{step}"));
        let mut child = start(training(&data, &output, "7"))?;
        wait_for_step(&mut child, &output, step)?;
        fs::remove_dir_all(&output)?;
        let ended = Run::from(child.wait_with_output()?);
        assert_eq!(ended.code, Some(1), "{step}: {}", ended.stderr);
        assert_eq!(ended.stderr.matches("error: ").count(), 1, "{step}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{step}: {}", ended.stderr);
    }
    Ok(())
}

#[test]
fn a_run_goes_on_only_with_its_own_options() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 8)?, dir.path().join("run"));
    let train = |more: Vec<OsString>| {
        let options = args![
            "train",
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--max-steps",
            "4",
            "--rank",
            "2",
            "--threads",
            "1"
        ];
        run([options, more].concat())
    };
    assert_eq!(train(args![])?.code, Some(0));
    let cases = [
        (args!["--rank", "3"], "rank was 2 when the run was started, now it is 3"),
        (args!["--lr", "0.5"], "lr was 0.002 when the run was started, now it is 0.5"),
        (args!["--max-steps", "3"], "number of steps was 4 when the run was started, now it is 3"),
        (args!["--kind", "bf16"], "kind was \"f32\" when the run was started"),
    ];
    for (flags, says) in cases {
        let flags_alone = [args!["train", "--resume", "--output", output], flags].concat();
        let run = run(flags_alone)?;
        assert_eq!(run.code, Some(1), "{says}");
        assert!(run.stderr.contains(says), "{}", run.stderr);
    }
    succeed(args!["train", "--resume", "--output", output, "--threads", "2"])?;
    many_rows(dir.path(), 9)?;
    let other_data = run(args!["train", "--resume", "--output", output])?;
    assert!(other_data.stderr.contains("cannot resume: data"), "{}", other_data.stderr);
    Ok(())
}

/// A run whose files lack later options resumes with the options' defaults.
#[test]
fn a_run_whose_files_are_older_than_some_options_goes_on() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, whole, old) =
        (many_rows(dir.path(), 8)?, dir.path().join("whole"), dir.path().join("old"));
    let mut losses_of = Vec::new();
    for output in [&whole, &old] {
        let mut run = args!["train", "--model", oracle("tiny_llama"), "--data", data];
        run.extend(args!["--output", output, "--max-steps", "60", "--rank", "2", "--threads", "1"]);
        run.extend(args!["--batch-size", "2", "--checkpoint-every", "3"]);
        let mut run = start(run)?;
        if *output == old {
            wait_for_step(&mut run, output, 7)?;
            run.kill()?;
        }
        run.wait()?;
        losses_of.push(losses(output)?);
    }
    assert!(losses_of[1].len() < losses_of[0].len(), "the run had ended already");
    let added = ["weights", "tf32", "int8_products", "rotation_lr_factor"];
    let options = old.join("train.toml");
    let text = std::fs::read_to_string(&options)?;
    let is_added = |line: &str| added.iter().any(|name| line.starts_with(&format!("{name} = ")));
    let older: Vec<&str> = text.lines().filter(|line| !is_added(line)).collect();
    assert_eq!(older.len() + added.len(), text.lines().count(), "{text}");
    std::fs::write(&options, older.join("\n") + "\n")?;
    for checkpoint in std::fs::read_dir(old.join("checkpoint"))? {
        let state = checkpoint?.path().join("trainer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&state)?)?;
        let identity = json["identity"].as_object_mut().ok_or("an identity")?;
        assert!(identity.remove("rotation_lr_factor").is_some());
        std::fs::write(&state, json.to_string())?;
    }
    let resume = args!["train", "--resume", "--output", old];
    let other = run([resume.clone(), args!["--weights", "int8"]].concat())?;
    let says = "weights was \"dense\" when the run was started, now it is \"int8\"";
    assert!(other.code == Some(1) && other.stderr.contains(says), "{}", other.stderr);
    succeed(resume)?;
    assert_eq!(losses(&old)?, losses(&whole)?);
    Ok(())
}
