//! `reft train` in several processes, started as a launcher starts them.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use crate::Result;
use crate::files::{losses, many_rows};
use crate::interruption::{send, training, wait_for_step};
use crate::runs::{Run, command, overridden, succeed};

fn start(args: &[OsString], world: usize) -> Result<Vec<Child>> {
    start_each(&vec![args.to_vec(); world])
}

/// The processes of a run, rank by rank, with the arguments of each.
fn start_each(args: &[Vec<OsString>]) -> Result<Vec<Child>> {
    let world = args.len();
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let of_rank = |rank: usize| {
        let mut command = command(&args[rank]);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", world.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port);
        command.env("REFT_TIME_LIMIT", "20");
        Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    };
    (0..world).map(of_rank).collect()
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

#[test]
fn processes_that_were_started_otherwise_are_refused() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 20)?;
    let output = dir.path().join("run");
    let args = halved(&data, &output);
    let mut other = args.clone();
    other.extend(["--schedule".into(), "linear".into()]);
    let runs = ended(start_each(&[args, overridden(other)])?)?;
    for (run, own) in runs.iter().zip(["cosine", "linear"]) {
        assert_eq!(run.code, Some(1), "{runs:?}");
        assert!(run.stderr.contains("do not agree on schedule"), "{runs:?}");
        assert!(run.stderr.contains(&format!("has \"{own}\"")), "{runs:?}");
    }
    assert!(!output.join("metrics.jsonl").exists(), "nothing was begun");
    Ok(())
}
