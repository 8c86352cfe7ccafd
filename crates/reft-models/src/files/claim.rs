//! Claims of work that several processes share.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crate::{DirectoryLock, Result, io_error};

/// This process's claim on the work of a directory: no other process gets it until this one drops the claim or ends.
///
/// The claim is a file `.claim` (`.process-N` if several processes share the directory's work). Only one process can create it, and renews its
/// modification time every few seconds. Another process may take a claim that is no longer renewed, because its process was killed or its
/// machine is gone. The process also holds a lock on the file, so its end is noticed sooner on the same machine.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    owner: String,
    /// The thread that renews the claim; it ends when the sender is dropped.
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Time between two renewals.
const BEAT: Duration = Duration::from_secs(3);

/// Age after the last renewal at which a claim counts as abandoned.
const GIVEN_UP: Duration = Duration::from_secs(20);

impl Claim {
    const FILE_NAME: &'static str = ".claim";

    /// Claims the work of a directory, which is created if missing; `None` if another process has claimed it.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn take(directory: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        Self::take_file(directory, directory.join(Self::FILE_NAME))
    }

    /// Joins the processes that share the work of a directory, until the claim is dropped.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn join(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let mut number = 0;
        loop {
            if let Some(claim) = Self::take_file(directory, seat(directory, number))? {
                return Ok(claim);
            }
            number += 1;
        }
    }

    /// Number of processes that have joined ([`Self::join`]) and are still running.
    pub fn joined(directory: &Path) -> usize {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let seats =
            entries.map(|entry| entry.path()).filter(|path| Self::is_of_one_of_several(path));
        seats.filter(|path| is_kept_up(path)).count()
    }

    /// Whether a path is the claim file of a process that has joined ([`Self::join`]), running or not.
    pub fn is_of_one_of_several(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SEAT))
    }

    fn take_file(directory: &Path, path: PathBuf) -> Result<Option<Self>> {
        let owner = format!("{} {}-{:016x}", system(), process::id(), rand::random::<u64>());
        let mut made = create(&path, &owner)?;
        if made.is_none() {
            if is_kept_up(&path) {
                return Ok(None);
            }
            // only one of the processes that find the claim abandoned may take it
            let _lock = DirectoryLock::wait(directory)?;
            if is_kept_up(&path) {
                return Ok(None);
            }
            remove(&path)?;
            made = create(&path, &owner)?;
        }
        let Some(file) = made else { return Ok(None) };
        let (sender, ended) = mpsc::channel();
        let heart = thread::spawn(move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                // a failed renewal counts as a missing one
                let _ = file.set_modified(SystemTime::now());
            }
        });
        Ok(Some(Self { path, owner, heart: Some((sender, heart)) }))
    }

    /// Whether a process has claimed the work of a directory or of one below it.
    pub fn is_any_held(directory: &Path) -> bool {
        let below = fs::read_dir(directory).into_iter().flatten().flatten();
        let is_held_below = |entry: fs::DirEntry| {
            entry.file_type().is_ok_and(|kind| kind.is_dir()) && Self::is_any_held(&entry.path())
        };
        is_kept_up(&directory.join(Self::FILE_NAME)) || below.into_iter().any(is_held_below)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some((sender, heart)) = self.heart.take() {
            drop(sender);
            let _ = heart.join();
        }
        // a claim that another process has taken meanwhile stays; a claim that cannot be removed expires
        if fs::read_to_string(&self.path).is_ok_and(|owner| owner == self.owner) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Prefix of the claim files of processes that have joined.
const SEAT: &str = ".process-";

fn seat(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{SEAT}{number}"))
}

/// Makes the file, unless it is there.
fn create(path: &Path, owner: &str) -> Result<Option<File>> {
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(io_error("create", path)(error)),
        Ok(mut file) => {
            file.write_all(owner.as_bytes()).map_err(io_error("write", path))?;
            // without file locks, only the renewals show that the claim is held
            let _ = file.try_lock();
            Ok(Some(file))
        }
    }
}

/// The boot id of the operating system, which changes with each start of the machine; empty if unavailable.
fn system() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the file exists, was renewed recently, and its process is not known to have ended.
fn is_kept_up(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(changed) = file.metadata().and_then(|metadata| metadata.modified()) else {
        return false;
    };
    // a time in the future comes from a clock that is ahead of ours
    let age = changed.elapsed().unwrap_or_else(|early| early.duration());
    age <= GIVEN_UP && !(age > BEAT && is_left_behind(&file))
}

/// Whether a claim was made on this machine since its start, by a process that no longer holds its lock.
fn is_left_behind(mut file: &File) -> bool {
    let (mut owner, system) = (String::new(), system());
    let is_of_here = file.read_to_string(&mut owner).is_ok() && owner.starts_with(&system);
    !system.is_empty() && is_of_here && file.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// Makes a claim look abandoned.
    fn give_up(directory: &Path) -> std::io::Result<()> {
        set_time(directory, SystemTime::now() - 2 * GIVEN_UP)
    }

    fn set_time(directory: &Path, time: SystemTime) -> std::io::Result<()> {
        File::options().write(true).open(directory.join(Claim::FILE_NAME))?.set_modified(time)
    }

    #[test]
    fn times_to_come_are_of_a_clock_that_went_back() -> TestResult {
        let directory = tempfile::tempdir()?;
        let _held = Claim::take(directory.path())?.ok_or("it is free")?;
        set_time(directory.path(), SystemTime::now() + BEAT)?;
        assert!(Claim::take(directory.path())?.is_none());
        set_time(directory.path(), SystemTime::now() + 2 * GIVEN_UP)?;
        assert!(Claim::take(directory.path())?.is_some());
        Ok(())
    }

    /// Simulates a killed process: its lock ends, its file stays.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_claim_of_a_process_that_has_ended_is_free_after_a_missing_beat() -> TestResult {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join(Claim::FILE_NAME);
        for (system, is_free) in [(system(), true), ("another".to_owned(), false)] {
            fs::write(&path, format!("{system} 7-0"))?;
            assert!(Claim::take(directory.path())?.is_none());
            set_time(directory.path(), SystemTime::now() - BEAT - Duration::from_secs(1))?;
            assert_eq!(Claim::take(directory.path())?.is_some(), is_free);
        }
        Ok(())
    }

    #[test]
    fn work_is_one_process_s_until_it_is_done_or_given_up() -> TestResult {
        let directory = tempfile::tempdir()?;
        let work = directory.path().join("cells/7");
        let claim = Claim::take(&work)?.ok_or("it is free")?;
        assert!(Claim::is_any_held(directory.path()) && Claim::take(&work)?.is_none());
        drop(claim);
        assert!(!Claim::is_any_held(directory.path()) && fs::read_dir(&work)?.next().is_none());

        let lost = Claim::take(&work)?.ok_or("it is free")?;
        give_up(&work)?;
        let taken = Claim::take(&work)?.ok_or("it is given up")?;
        drop(lost); // does not remove the new owner's claim
        assert!(Claim::is_any_held(&work) && Claim::take(&work)?.is_none());
        drop(taken);
        assert!(Claim::take(&work)?.is_some());
        Ok(())
    }

    #[test]
    fn processes_that_have_joined_are_counted() -> TestResult {
        let directory = tempfile::tempdir()?;
        let work = directory.path().join("search");
        assert_eq!(Claim::joined(&work), 0);
        let (first, second) = (Claim::join(&work)?, Claim::join(&work)?);
        let _other_work = Claim::take(&work.join("cells/7"))?;
        assert_eq!(Claim::joined(&work), 2);
        drop(first);
        assert_eq!(Claim::joined(&work), 1);
        let _third = Claim::join(&work)?; // takes the first one's number
        assert_eq!(Claim::joined(&work), 2);
        let lost = File::options().write(true).open(seat(&work, 1))?;
        lost.set_modified(SystemTime::now() - 2 * GIVEN_UP)?;
        assert_eq!(Claim::joined(&work), 1);
        drop(second);
        assert!(!seat(&work, 1).exists());
        Ok(())
    }

    #[test]
    fn of_many_that_find_a_claim_given_up_one_gets_it() -> TestResult {
        let directory = tempfile::tempdir()?;
        std::mem::forget(Claim::take(directory.path())?);
        give_up(directory.path())?;
        let n = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    if let Some(claim) = Claim::take(directory.path()).expect("a claim") {
                        n.fetch_add(1, Ordering::SeqCst);
                        std::mem::forget(claim);
                    }
                });
            }
        });
        assert_eq!(n.load(Ordering::SeqCst), 1);
        Ok(())
    }
}
