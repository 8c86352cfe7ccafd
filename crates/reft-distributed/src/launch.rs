use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use sysinfo::{Pid, ProcessStatus, ProcessesToUpdate, Signal, System};
use tempfile::TempDir;

use crate::process_place::time_limit;
use crate::{ERROR_FILE, Error, Result, Store};

/// Where the processes of one machine meet.
const HERE: &str = "127.0.0.1";

/// How often the processes are checked.
const LOOK: Duration = Duration::from_millis(20);

/// How long the others may take to notice that one has failed, before they are asked to end.
const NOTICE: Duration = Duration::from_secs(10);

/// Starts the processes of a run on this machine, and ends them together, like `torchrun --standalone` and with the same variables.
///
/// This process serves the run's store and takes no part in the run, so the store outlives each of them.
#[derive(Debug)]
pub struct Launch {
    world: usize,
    port: u16,
    time_limit: Duration,
    /// The folder of the files in which processes report their errors.
    folder: TempDir,
    /// Served for as long as this lives.
    _store: Store,
}

/// How a process has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub rank: usize,
    /// Its exit code; `None` if a signal has ended it.
    pub code: Option<i32>,
    /// Its error report, or the end of its stderr; `None` if it writes to this process's stderr.
    pub said: Option<String>,
    /// How, in words: "ended with code 1", "was ended by signal 9".
    pub how: String,
}

impl Launch {
    /// Serves the store of a run of `world` processes.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a platform without process groups; [`Error::Environment`] for a time limit that is no number; errors
    /// of libtorch or the file system.
    pub fn new(world: usize) -> Result<Self> {
        if cfg!(not(process_groups)) {
            return Err(Error::Unsupported);
        }
        let time_limit = time_limit(&|name| std::env::var(name).ok())?;
        let (store, port) =
            Store::serve(HERE, time_limit).map_err(|reason| Error::Engine { reason })?;
        let folder = TempDir::new().map_err(Error::Start)?;
        Ok(Self { world, port, time_limit, folder, _store: store })
    }

    /// Starts the processes and waits until all have ended. `requests` counts requests to end; each is passed on to all of them. Once a
    /// process has failed, the others are asked to end, and are killed if they do not.
    ///
    /// The first one has this process's stdout and stderr.
    ///
    /// # Errors
    /// [`Error::Start`] if a process cannot be started; the processes started before are killed.
    pub fn run(
        &self,
        command: impl Fn(usize) -> Command,
        requests: &AtomicUsize,
    ) -> Result<Vec<Ended>> {
        let mut processes = Vec::new();
        for rank in 0..self.world {
            processes.push(self.start(command(rank), rank).map_err(Error::Start)?);
        }
        let (mut passed_on, mut last_end, mut was_asked) = (0, Instant::now(), false);
        loop {
            for process in processes.iter_mut().filter(|process| process.status.is_none()) {
                process.status = process.child.try_wait().map_err(Error::Start)?;
                if process.status.is_some() {
                    last_end = Instant::now();
                }
            }
            let has_failed =
                |process: &Process| process.status.is_some_and(|status| !status.success());
            let (failed, running): (bool, Vec<&Process>) = (
                processes.iter().any(has_failed),
                processes.iter().filter(|process| process.status.is_none()).collect(),
            );
            if running.is_empty() {
                break;
            }
            let asked = requests.load(Ordering::Relaxed);
            for _ in passed_on..asked {
                running.iter().for_each(|process| process.send(Signal::Term));
            }
            passed_on = asked;
            if failed && last_end.elapsed() > NOTICE {
                if !was_asked {
                    running.iter().for_each(|process| process.send(Signal::Term));
                }
                was_asked = true;
                let is_late = last_end.elapsed() > self.time_limit;
                for process in running.iter().filter(|process| is_late || process.is_stopped()) {
                    process.send(Signal::Kill);
                }
            }
            thread::sleep(LOOK);
        }
        Ok(processes.into_iter().map(|process| self.ended(process)).collect())
    }

    fn start(&self, mut command: Command, rank: usize) -> io::Result<Process> {
        let file = self.folder.path().join(rank.to_string());
        let variables = BTreeMap::from([
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", self.world.to_string()),
            ("LOCAL_RANK", rank.to_string()),
            ("LOCAL_WORLD_SIZE", self.world.to_string()),
            ("MASTER_ADDR", HERE.to_owned()),
            ("MASTER_PORT", self.port.to_string()),
            ("TORCHELASTIC_RUN_ID", std::process::id().to_string()),
            ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
            ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
        ]);
        command.envs(variables).env(ERROR_FILE, file).stdin(Stdio::null());
        if rank > 0 {
            command.stdout(Stdio::null()).stderr(Stdio::piped());
        }
        // A terminal sends its signals to a whole process group, so without its own group each process would get them twice.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().map(|mut stderr| {
            thread::spawn(move || {
                let mut said = Vec::new();
                let _ = stderr.read_to_end(&mut said); // after an error the output read so far is kept
                String::from_utf8_lossy(&said).trim_end().to_owned()
            })
        });
        Ok(Process { rank, child, stderr, status: None })
    }

    fn ended(&self, mut process: Process) -> Ended {
        let rank = process.rank;
        let reported = fs::read_to_string(self.folder.path().join(rank.to_string())).ok();
        let reported = reported.and_then(|text| {
            let report: Value = serde_json::from_str(&text).ok()?;
            Some(report["message"].as_str()?.to_owned())
        });
        let stderr = process.stderr.take().and_then(|stderr| stderr.join().ok());
        let said = reported.or(stderr).filter(|text| !text.is_empty());
        let status = process.status.unwrap_or_default();
        Ended { rank, code: status.code(), said, how: in_words(status) }
    }
}

/// "ended with code 1", "was ended by signal 9".
fn in_words(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("was ended by signal {signal}");
    }
    format!("ended with code {}", status.code().unwrap_or_default())
}

#[derive(Debug)]
struct Process {
    rank: usize,
    child: Child,
    stderr: Option<JoinHandle<String>>,
    status: Option<ExitStatus>,
}

impl Process {
    fn send(&self, signal: Signal) {
        // a process that has ended meanwhile needs no signal
        self.seen(|process| process.kill_with(signal));
    }

    /// Whether it stands still, as after SIGSTOP.
    fn is_stopped(&self) -> bool {
        self.seen(|process| process.status() == ProcessStatus::Stop).unwrap_or(false)
    }

    fn seen<T>(&self, look: impl FnOnce(&sysinfo::Process) -> T) -> Option<T> {
        let (pid, mut system) = (Pid::from_u32(self.child.id()), System::new());
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), false);
        system.process(pid).map(look)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill(); // only after a failed launch, whose error is reported
            let _ = self.child.wait();
        }
    }
}
