//! `reft train` in several processes, started as a launcher starts them.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;
use crate::files::{losses, many_rows};
use crate::interruption::{send, training, wait_for_step};
use crate::runs::{Run, args, command, oracle, overridden, run, succeed};

fn start(args: &[OsString], world: usize) -> Result<Vec<Child>> {
    start_each(&vec![args.to_vec(); world])
}

/// A port that nobody uses.
fn port() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string())
}

/// A process of a run as a launcher starts it.
fn of_run(args: &[OsString], rank: usize, world: usize, port: &str) -> Command {
    let mut command = command(args);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
    command.env("REFT_TIME_LIMIT", "20");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start_one(args: &[OsString], rank: usize, world: usize, port: &str) -> Result<Child> {
    Ok(of_run(args, rank, world, port).spawn()?)
}

/// The processes of a run, rank by rank, with the arguments of each.
fn start_each(args: &[Vec<OsString>]) -> Result<Vec<Child>> {
    let port = port()?;
    let start = |(rank, own): (usize, &Vec<OsString>)| start_one(own, rank, args.len(), &port);
    args.iter().enumerate().map(start).collect()
}

fn ended(processes: Vec<Child>) -> Result<Vec<Run>> {
    processes.into_iter().map(|process| Ok(process.wait_with_output()?.into())).collect()
}

/// The options of one process of a run whose step has two micro-batches.
fn halved(data: &Path, output: &Path) -> Vec<OsString> {
    let mut args = training(data, output, "7");
    let accum = args.iter().position(|arg| arg == "--grad-accum").map_or(0, |at| at + 1);
    args[accum] = "1".into();
    args
}

fn assert_close(found: &Path, whole: &Path) -> Result {
    let (found, whole) = (losses(found)?, losses(whole)?);
    assert_eq!(found.len(), whole.len());
    for ((step, found), (_, whole)) in found.iter().zip(&whole).take(50) {
        let (found, whole): (f64, f64) = (found.parse()?, whole.parse()?);
        // f32, whose sums are taken in another order; a difference grows with the steps
        let tolerance = if *step <= 5 { 1e-5 } else { 1e-3 };
        assert!(((found - whole) / whole).abs() < tolerance, "step {step}: {found} and {whole}");
    }
    Ok(())
}

#[test]
fn two_processes_train_as_one_and_the_first_alone_speaks() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let (whole, shared) = (dir.path().join("whole"), dir.path().join("shared"));
    succeed(training(&data, &whole, "7"))?;
    let runs = ended(start(&halved(&data, &shared), 2)?)?;
    assert!(runs.iter().all(|run| run.code == Some(0)), "{runs:?}");
    assert!(runs[0].stdout.contains("loss"), "{runs:?}");
    assert_eq!((runs[1].stdout.as_str(), runs[1].stderr.as_str()), ("", ""));
    assert_close(&shared, &whole)?;
    assert!(shared.join("reft_model.safetensors").is_file());
    Ok(())
}

#[test]
fn a_process_that_is_killed_ends_the_run_and_it_goes_on_with_as_many() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    ended(start(&halved(&data, &whole), 2)?)?;
    let mut processes = start(&halved(&data, &killed), 2)?;
    wait_for_step(&mut processes[0], &killed, 20)?;
    processes[1].kill()?;
    let runs = ended(processes)?;
    assert_eq!(runs[0].code, Some(1), "{runs:?}");
    assert!(runs[0].stderr.contains("rank 1 of 2 processes"), "{runs:?}");
    let resume: Vec<OsString> = ["train", "--resume", "--output"]
        .map(OsString::from)
        .into_iter()
        .chain([killed.clone().into()])
        .collect();
    let other = ended(start(&resume, 3)?)?;
    assert!(other.iter().all(|run| run.code == Some(1)), "{other:?}");
    let said = "world was 2 when the run was started, now it is 3";
    assert!(other.iter().all(|run| run.stderr.contains(said)), "{other:?}");
    let again = ended(start(&resume, 2)?)?;
    assert!(again.iter().all(|run| run.code == Some(0)), "{again:?}");
    assert_eq!(losses(&killed)?, losses(&whole)?, "bit for bit");
    Ok(())
}

#[test]
fn a_signal_to_one_process_stops_all_with_a_checkpoint() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let stopped = dir.path().join("stopped");
    let mut processes = start(&halved(&data, &stopped), 2)?;
    wait_for_step(&mut processes[0], &stopped, 11)?;
    send("-TERM", &processes[1])?;
    let runs = ended(processes)?;
    assert_eq!(runs[0].code, Some(130), "{runs:?}");
    assert!(runs[0].stderr.contains("a checkpoint is saved"), "{runs:?}");
    Ok(())
}

/// A short run's options, some replaced by others of the same names.
fn short(data: &Path, output: &Path, others: Vec<OsString>) -> Vec<OsString> {
    let mut args = halved(data, output);
    args.extend(args!["--max-steps", "2"]);
    args.extend(others);
    overridden(args)
}

#[test]
fn processes_that_were_started_otherwise_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let other_data = dir.path().join("other");
    fs::create_dir(&other_data)?;
    let other_data = many_rows(&other_data, 19)?;
    let other_model = dir.path().join("model");
    fs::create_dir(&other_model)?;
    for file in fs::read_dir(oracle("tiny_llama"))? {
        let file = file?;
        fs::copy(file.path(), other_model.join(file.file_name()))?;
    }
    let weights = other_model.join("model.safetensors");
    let mut bytes = fs::read(&weights)?;
    *bytes.last_mut().ok_or("no weights")? ^= 1; // the sign of one number
    fs::write(&weights, bytes)?;
    let schedule = args!["--schedule", "linear"];
    for (what, data_there, others) in [
        ("schedule: rank 0 has \"cosine\", rank 1 has \"linear\"", &data, schedule),
        ("the data: ", &other_data, Vec::new()),
        ("rank: rank 0 has 3, rank 1 has 2", &data, args!["--rank", "2"]),
        ("the model's weights: ", &data, args!["--model", other_model]),
    ] {
        let (here, there) = (short(&data, &output, Vec::new()), short(data_there, &output, others));
        let runs = ended(start_each(&[here, there])?)?;
        assert!(runs.iter().all(|run| run.code == Some(1)), "{runs:?}");
        let said = format!("do not agree on {what}");
        assert!(runs[0].stderr.contains(&said), "{what}: {runs:?}");
        assert!(runs[1].stderr.contains("do not agree on "), "{what}: {runs:?}");
        assert!(!output.join("metrics.jsonl").exists(), "nothing was begun");
    }
    Ok(())
}

/// All processes start from the first one's adapter, whatever their own `--init-adapter` is. An adapter of another rank is refused.
#[test]
fn an_adapter_to_begin_with_is_that_of_the_first_process() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let adapter = |name: &str, others: Vec<OsString>| -> Result<PathBuf> {
        let path = dir.path().join(name);
        succeed(short(&data, &path, others))?;
        Ok(path)
    };
    let first = adapter("first", Vec::new())?;
    let second = adapter("second", args!["--seed", "6"])?;
    let narrow = adapter("narrow", args!["--rank", "2"])?;
    let of_adapter = ["--rank", "--layers", "--positions", "--dropout"];
    let from = |adapter: &Path, output: &Path| -> Vec<OsString> {
        let args = short(&data, output, args!["--init-adapter", adapter]);
        let (mut kept, mut words) = (Vec::new(), args.into_iter());
        while let Some(word) = words.next() {
            match of_adapter.iter().any(|flag| word == *flag) {
                true => drop(words.next()),
                false => kept.push(word),
            }
        }
        kept
    };
    let outputs = ["equal", "unequal", "other"].map(|name| dir.path().join(name));
    let run = |second: &Path, output: &Path| -> Result<Vec<Run>> {
        ended(start_each(&[from(&first, output), from(second, output)])?)
    };
    for (second, output) in [(&first, &outputs[0]), (&second, &outputs[1])] {
        let runs = run(second, output)?;
        assert!(runs.iter().all(|run| run.code == Some(0)), "{runs:?}");
    }
    assert_eq!(losses(&outputs[0])?, losses(&outputs[1])?);
    let runs = run(&narrow, &outputs[2])?;
    assert!(runs.iter().all(|run| run.code == Some(1)), "{runs:?}");
    assert!(runs[0].stderr.contains("do not agree on "), "{runs:?}");
    assert!(!outputs[2].join("metrics.jsonl").exists(), "nothing was begun");
    Ok(())
}

/// The run waits for a late process.
#[test]
fn a_process_that_comes_late_takes_part() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let port = port()?;
    let args = short(&data, &output, Vec::new());
    let first = start_one(&args, 0, 2, &port)?;
    sleep(Duration::from_secs(3));
    let runs = ended(vec![first, start_one(&args, 1, 2, &port)?])?;
    assert!(runs.iter().all(|run| run.code == Some(0)), "{runs:?}");
    Ok(())
}

/// No process waits longer than the time limit for a missing one.
#[test]
fn a_process_that_never_comes_is_named_by_the_one_that_tells() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let port = port()?;
    let args = short(&data, &output, Vec::new());
    let mut processes = Vec::new();
    for rank in [0, 2] {
        let mut command = of_run(&args, rank, 3, &port);
        processes.push(command.env("REFT_TIME_LIMIT", "4").spawn()?);
    }
    let runs = ended(processes)?;
    assert!(runs.iter().all(|run| run.code == Some(1)), "{runs:?}");
    let said = "rank 1 of 3 processes (counted from 0) did not come within 4 s";
    assert!(runs[0].stderr.contains(said), "{runs:?}");
    assert_eq!(runs[1].stderr, "", "one tells it: {runs:?}");
    assert!(!output.join("metrics.jsonl").exists(), "nothing was begun");
    Ok(())
}

/// The options of a run that starts its own processes.
fn launched(data: &Path, output: &Path) -> Vec<OsString> {
    let mut args = halved(data, output);
    args.extend(["--processes".into(), "2".into()]);
    args
}

fn begin(args: Vec<OsString>) -> Result<Child> {
    let mut command = command(args);
    command.env("REFT_TIME_LIMIT", "20");
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// The processes that a process has started, in their order.
fn children(process: &Child) -> Result<Vec<String>> {
    let id = process.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
    Ok(children.split_whitespace().map(str::to_owned).collect())
}

fn kill(signal: &str, pid: &str) -> Result {
    assert!(Command::new("kill").args([signal, pid]).status()?.success());
    Ok(())
}

#[test]
fn a_run_starts_its_own_processes_and_goes_on_with_as_many() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let (whole, shared, killed) =
        (dir.path().join("whole"), dir.path().join("shared"), dir.path().join("killed"));
    succeed(training(&data, &whole, "7"))?;
    let run: Run = begin(launched(&data, &shared))?.wait_with_output()?.into();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.stdout.matches("loss").count(), 1, "one of them speaks: {run:?}");
    assert_close(&shared, &whole)?;

    let mut process = begin(launched(&data, &killed))?;
    wait_for_step(&mut process, &killed, 20)?;
    let second = children(&process)?.pop().ok_or("there are no processes")?;
    kill("-KILL", &second)?;
    let run: Run = process.wait_with_output()?.into();
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.stderr.matches("rank 1 of 2 processes").count(), 1, "told once: {run:?}");
    assert!(run.stderr.contains("rank 1: error: it was ended by signal 9"), "{run:?}");
    // the number of processes is one of the saved options
    let resumed: Vec<OsString> = args!["train", "--resume", "--output", killed];
    let run: Run = begin(resumed)?.wait_with_output()?.into();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(losses(&killed)?, losses(&shared)?, "bit for bit");
    Ok(())
}

/// The first process writes the files. Without it there is no checkpoint of the last step, but the earlier ones are there.
#[test]
fn when_the_first_process_is_killed_another_one_tells_it() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let mut process = begin(launched(&data, &output))?;
    wait_for_step(&mut process, &output, 20)?;
    let first = children(&process)?.swap_remove(0);
    kill("-KILL", &first)?;
    let run: Run = process.wait_with_output()?.into();
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("rank 1: error: "), "{run:?}");
    assert!(run.stderr.contains("rank 0 of 2 processes"), "{run:?}");
    assert!(run.stderr.contains("rank 0: error: it was ended by signal 9"), "{run:?}");
    Ok(())
}

#[test]
fn a_signal_to_the_one_that_started_them_stops_all_once() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let mut process = begin(launched(&data, &output))?;
    wait_for_step(&mut process, &output, 11)?;
    send("-INT", &process)?;
    let run: Run = process.wait_with_output()?.into();
    assert_eq!(run.code, Some(130), "{run:?}");
    assert_eq!(run.stderr.matches("a checkpoint is saved").count(), 1, "{run:?}");
    Ok(())
}

/// Processes end after their launcher, because nothing else would end them.
#[test]
fn when_the_one_that_started_them_is_killed_all_end_with_a_checkpoint() -> Result {
    let dir = tempfile::tempdir()?;
    let (data, output) = (many_rows(dir.path(), 20)?, dir.path().join("run"));
    let mut process = begin(launched(&data, &output))?;
    wait_for_step(&mut process, &output, 11)?;
    let children = children(&process)?;
    process.kill()?;
    let run: Run = process.wait_with_output()?.into(); // until the first one has closed the pipes
    assert!(run.stderr.contains("the launcher of the run's 2 processes"), "{run:?}");
    let started = Instant::now();
    while children.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        assert!(started.elapsed().as_secs() < 10, "they go on");
        sleep(Duration::from_millis(20));
    }
    assert!(losses(&output)?.len() < 160, "it was not the end of the run");
    Ok(())
}

#[test]
fn what_no_process_can_do_is_said_once() -> Result {
    let dir = tempfile::tempdir()?;
    let output = dir.path().join("run");
    let run: Run =
        begin(launched(&dir.path().join("none.jsonl"), &output))?.wait_with_output()?.into();
    assert_eq!(run.code, Some(1), "{run:?}");
    assert_eq!(run.stderr.matches("error: cannot read").count(), 1, "{run:?}");
    assert!(!output.exists(), "nothing was begun");
    let data = many_rows(dir.path(), 20)?;
    let mut three = launched(&data, &output);
    three.extend(["--processes".into(), "3".into()]);
    for run in ended(start(&overridden(three), 2)?)? {
        assert_eq!(run.code, Some(1), "{run:?}");
        let said = "--processes is 3, and a launcher has started 2";
        assert!(run.stderr.contains(said), "{run:?}");
    }
    Ok(())
}

#[test]
fn nccl_is_refused_where_it_cannot_sum() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 6)?;
    let words = args!["--device", "cpu", "--processes", "1", "--reduce", "nccl"];
    let run = run([training(&data, &dir.path().join("run"), "7"), words].concat())?;
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let told = "--reduce nccl: rank 0: it computes on a CPU, where Gloo sums; leave out --reduce";
    assert!(run.stderr.contains(told), "{}", run.stderr);
    Ok(())
}
