use std::env;
use std::error::Error as StdError;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use reft_distributed::ERROR_FILE;
use reft_train::is_out_of_memory;
use serde_json::json;

use crate::terminal::interrupt::exit_at_once;
use crate::terminal::output::say;

const SUCCEEDED: u8 = 0;

/// Exit code of a failure. clap ends with 2 for an invalid command line.
const FAILED: u8 = 1;

/// Exit code of a run that a signal ended early, as in shells after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Prints a panic as one line of an error message.
///
/// tch panics if an operation inside a formula fails in libtorch, for instance because memory runs out.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let said = info.to_string();
        if !is_out_of_memory(&said) {
            say(format!("error: internal: {}", panic_line(&said))); // `ending` reports that memory ran out
        }
    }));
}

/// Runs the program, prints its error, if any, and ends the process.
///
/// No C++ destructor runs: libtorch would remove every operator from its tables, which takes half as long as a start.
pub fn run_and_exit(run: impl FnOnce() -> Result<()>) -> ! {
    let (code, said) = ending(run);
    said.iter().for_each(say);
    if let (FAILED, Some(message), Some(file)) = (code, &said, env::var_os(ERROR_FILE)) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let report = json!({ "message": message, "timestamp": since.to_string() });
        let _ = fs::write(file, report.to_string()); // the message is on stderr too
    }
    // An error is ignored: the writer has reported it, or it is no failure.
    let _ = io::stdout().flush();
    exit_at_once(code);
}

/// Runs the program; returns its exit code and its error message, if any.
pub fn ending(run: impl FnOnce() -> Result<()>) -> (u8, Option<String>) {
    // The hook has reported the panic. Unwinding removes temporary files.
    let ended = panic::catch_unwind(AssertUnwindSafe(run));
    if let Ok(Err(failed)) = &ended
        && let Some(Told(code)) = failed.downcast_ref()
    {
        return (*code, None);
    }
    match ended {
        Ok(Ok(())) => (SUCCEEDED, None),
        Ok(Err(failed)) if is_closed_stdout(&failed) => (SUCCEEDED, None),
        Ok(Err(failed)) if is_told_elsewhere(&failed) => (FAILED, None),
        Ok(Err(failed)) if is_interruption(&failed) => (INTERRUPTED, Some(failed.to_string())),
        Ok(Err(failed)) => (FAILED, Some(message(&failed))),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map_or("", String::as_str);
            let line = panic_line(&format!("\n{said}"));
            let out_of_memory = format!("error: memory ran out: {line}\n{MEMORY_ADVICE}");
            (FAILED, Some(out_of_memory).filter(|_| is_out_of_memory(said)))
        }
    }
}

/// The error of child processes that have printed their own messages. This process ends with the exit code given here.
#[derive(Debug)]
pub struct Told(pub u8);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the processes of the run have failed")
    }
}

impl StdError for Told {}

/// Remedies where memory runs out, cheapest first.
const MEMORY_ADVICE: &str = "  try: --checkpoint-activations (a run can be resumed with it), a smaller --batch-size or --max-length, --kind bf16, --weights int8 or int4, --reuse-memory, another --device";

/// `error: …`, and a line `  caused by: …` for each cause.
fn message(failed: &anyhow::Error) -> String {
    let line = |(depth, cause): (usize, &(dyn StdError + 'static))| {
        let label = if depth == 0 { "error" } else { "  caused by" };
        format!("{label}: {}", without_trace(&cause.to_string()))
    };
    let mut lines: Vec<String> = failed.chain().enumerate().map(line).collect();
    if failed.chain().any(|cause| is_out_of_memory(&cause.to_string())) {
        lines.push(MEMORY_ADVICE.to_owned());
    }
    lines.join("\n")
}

/// Cuts off the C++ stack trace at the end of libtorch's messages.
fn without_trace(message: &str) -> &str {
    let end = message.find("\nException raised from").unwrap_or(message.len());
    message[..end].trim_end()
}

/// The first line of a panic's message, without its place in the source and without `unwrap`'s wrapping.
fn panic_line(panic: &str) -> String {
    let (_place, said) = panic.split_once('\n').unwrap_or(("", panic));
    let said = said.split_once("Err` value: ").map_or(said, |(_, error)| error);
    let said = said.trim_start_matches("Torch(\"");
    let line = said.lines().next().unwrap_or_default(); // `Debug` writes the end of a line as \n
    line.split("\\n").next().unwrap_or_default().to_owned()
}

/// Whether a signal has stopped a command early and in order. The error then names the kept files and the command that continues.
fn is_interruption(failed: &anyhow::Error) -> bool {
    use {reft_bench::Error as OfBench, reft_causal::Error as OfCausal};

    failed.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(OfBench::Interrupted))
            || matches!(cause.downcast_ref(), Some(OfCausal::Interrupted))
    })
}

/// Whether another process of the run reports this error.
fn is_told_elsewhere(failed: &anyhow::Error) -> bool {
    use {reft_distributed::Error as OfGroup, reft_train::Error as OfTraining};

    failed.chain().any(|cause| {
        let of_training = match cause.downcast_ref() {
            Some(OfTraining::Reduction { reason }) => reason.downcast_ref(),
            _ => None,
        };
        let of_group: Option<&OfGroup> = of_training.or_else(|| cause.downcast_ref());
        of_group.is_some_and(OfGroup::is_told_elsewhere)
    })
}

/// Whether the reader of stdout has closed it, as `head` does. This is no failure.
fn is_closed_stdout(failed: &anyhow::Error) -> bool {
    let closed = |cause: &(dyn StdError + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    };
    failed.chain().any(closed)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_stand_below_the_error_without_frames_of_libtorch() {
        let failed =
            anyhow!("shape [2] is wrong\nException raised from add at add.cpp:3\nframe #0")
                .context("cannot run adapter");
        let expected = "error: cannot run adapter\n  caused by: shape [2] is wrong";
        assert_eq!(message(&failed), expected);
    }

    #[test]
    fn panics_of_unwrap_show_what_libtorch_said() {
        let panic = "panicked at tensor.rs:1:2:\ncalled `Result::unwrap()` on an `Err` value: Torch(\"out of memory\\nException raised from x\")";
        assert_eq!(panic_line(panic), "out of memory");
        assert_eq!(panic_line("panicked at main.rs:1:2:\ninvariant: x\nmore"), "invariant: x");
    }

    #[test]
    fn where_memory_runs_out_there_is_advice() {
        let failed =
            anyhow!("CUDA out of memory. Tried to allocate 2.00 GiB").context("training stopped");
        let told = message(&failed);
        assert!(
            told.contains("2.00 GiB") && told.contains("try: --checkpoint-activations"),
            "{told}"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed =
            anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("stdout");
        assert!(is_closed_stdout(&closed));
        assert!(!is_closed_stdout(&anyhow::Error::new(io::Error::from(io::ErrorKind::NotFound))));
    }
}
