//! Processes that a test starts: this test program, with something else to do.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use reft_test_support::Outcome;

/// The task of a process that a test has started.
pub const ACT: &str = "REFT_TEST_ACT";

/// Seconds to wait for a stopped process, or for a process that never connects.
pub const LIMIT: u64 = 2;

/// A process of a run, and the lines that it says.
pub struct Process {
    pub child: Child,
    lines: Receiver<String>,
}

impl Process {
    pub fn start(act: &str, rank: usize, world: usize, port: u16) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["a_process_of_a_run", "--exact", "--nocapture", "--test-threads=1"])
            .env(ACT, act)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", world.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("REFT_TIME_LIMIT", LIMIT.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (said, lines) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once("says: ") {
                    let _ = said.send(line.to_owned());
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// The next line that it says.
    pub fn says(&self) -> Outcome<String> {
        self.lines.recv_timeout(Duration::from_secs(30)).map_err(|error: RecvTimeoutError| {
            format!("process {}: {error}", self.child.id()).into()
        })
    }

    pub fn signal(&self, name: &str) -> Outcome {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status()?;
        assert!(status.success());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free port.
pub fn port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// All processes of a run.
pub fn run(act: &str, world: usize) -> Outcome<Vec<Process>> {
    let port = port()?;
    (0..world).map(|rank| Process::start(act, rank, world, port)).collect()
}

/// A message of a process to the test that started it.
pub fn say(what: impl Display) {
    let mut stdout = std::io::stdout();
    // the test notices a process that says nothing
    let _ = writeln!(stdout, "says: {what}").and_then(|()| stdout.flush());
}
