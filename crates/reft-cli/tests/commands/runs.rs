//! Running the binary.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output};

pub use reft_test_support::oracle;

use crate::Result;

/// The binary with arguments, one thread of libtorch unless the arguments say otherwise.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reft"));
    command.args(args).env("OMP_NUM_THREADS", "1").env("HF_HUB_OFFLINE", "1");
    // keeps digests of test models out of the user's cache
    command.env("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

/// The results of a run.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Self { code: output.status.code(), stdout, stderr }
    }
}

/// Runs the binary to its end.
pub fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Run> {
    Ok(command(args).output()?.into())
}

/// Runs a command line in this process, for one that is refused before any work.
pub fn refuse<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
    let (code, said) = reft_cli::ending(args);
    let stderr = said.map(|said| said + "\n").unwrap_or_default();
    Run { code: Some(code.into()), stdout: String::new(), stderr }
}

/// Runs the binary, which must succeed.
pub fn succeed<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Run> {
    let run = run(args)?;
    if run.code != Some(0) {
        return Err(format!("exit code {:?}\n{}\n{}", run.code, run.stdout, run.stderr).into());
    }
    Ok(run)
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Arguments from words, of which some are paths.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        Vec::<::std::ffi::OsString>::from([$(::std::ffi::OsString::from(&$arg)),*])
    };
}
pub(crate) use args;

/// Removes flags that the command line gives again later, so that a test can override the flags of a good run.
pub fn overridden(words: Vec<OsString>) -> Vec<OsString> {
    let is_flag = |word: &OsString| word.to_string_lossy().starts_with("--");
    let mut kept: Vec<Vec<OsString>> = Vec::new(); // a flag and its value
    for word in words {
        if is_flag(&word) {
            kept.retain(|own| own[0] != word);
            kept.push(vec![word]);
        } else if let Some(own) = kept.last_mut().filter(|own| is_flag(&own[0])) {
            own.push(word);
        } else {
            kept.push(vec![word]);
        }
    }
    kept.concat()
}

/// `reft import` of an adapter that pyreft saved beside its oracle: edits of the first two and the last two tokens, tied.
pub fn importing(name: &str, output: &Path) -> Vec<OsString> {
    let saved = oracle("reft_saved").join(name);
    let tokens = args!["--positions", "f2+l2", "--share-weights"];
    [args!["import", "--from", "pyreft", saved, "--output", output], tokens].concat()
}
