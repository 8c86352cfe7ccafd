//! Other programs, with one clear error each.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs `command`, which shares this process's stdout and stderr.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if !status.success() {
        bail!("`{}` failed ({status}); its own messages are above", shown(command));
    }
    Ok(())
}

/// Runs `command` with its stdout sent to our stderr: for programs whose output is progress, not a result.
pub fn run_as_progress(command: &mut Command) -> Result<()> {
    run(command.stdout(io::stderr()))
}

/// Runs `command` and returns its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stderr(Stdio::inherit()).output().map_err(|error| cannot_start(command, &error))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", shown(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("the output of `{}` is not UTF-8", shown(command)))
}

/// Whether `command` can be run and succeeds; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Python 3 with pip.
pub fn python() -> Result<Command> {
    if !succeeds(Command::new("python3").arg("--version")) {
        bail!(
            "python3 is needed to fetch packages and was not found: install Python 3.8 or newer with pip (Debian: apt install python3 python3-pip)"
        );
    }
    if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        bail!(
            "python3 has no pip, which is needed to fetch packages: install it (Debian: apt install python3-pip; elsewhere: python3 -m ensurepip)"
        );
    }
    Ok(Command::new("python3"))
}

fn cannot_start(command: &Command, error: &io::Error) -> anyhow::Error {
    let program = Path::new(command.get_program()).display();
    match error.kind() {
        ErrorKind::NotFound => anyhow!("`{program}` was not found: install it, or put it on PATH"),
        _ => anyhow!("cannot start `{program}`: {error}"),
    }
}

/// Program and arguments, for messages.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    [name].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let error =
            run(&mut Command::new("no-such-program-anywhere")).err().map(|error| error.to_string());
        assert_eq!(
            error.as_deref(),
            Some("`no-such-program-anywhere` was not found: install it, or put it on PATH")
        );
    }

    #[test]
    fn a_failing_program_is_shown_with_its_arguments_and_status() {
        let error =
            output(Command::new("sh").args(["-c", "exit 3"])).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("`sh -c exit 3` failed (exit status: 3)"));
    }
}
