//! Pieces of work that several processes share out among themselves.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crate::{DirectoryLock, Result, io_error};

/// A directory whose work is this process's: no other that asks gets it until this one has dropped it, or has ended.
///
/// It is a file `.claim` that is made for one process only, and whose time of change is set anew every few seconds. A claim that is not kept
/// up, because its process was killed or its machine is gone, is another's to take.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    owner: String,
    /// The thread that keeps the claim up; it ends when the sender is dropped.
    heart: Option<(Sender<()>, JoinHandle<()>)>,
}

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(3);

/// Age of a claim that is given up.
const GIVEN_UP: Duration = Duration::from_secs(20);

impl Claim {
    const FILE_NAME: &'static str = ".claim";

    /// Claims the work of a directory, which is made if it is not there; `None` if another process is at it.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn take(directory: &Path) -> Result<Option<Self>> {
        fs::create_dir_all(directory).map_err(io_error("create", directory))?;
        let path = directory.join(Self::FILE_NAME);
        let owner = format!("{}-{:016x}", process::id(), rand::random::<u64>());
        if !create(&path, &owner)? {
            if is_kept_up(&path) {
                return Ok(None);
            }
            // of those that find it given up, one
            let _lock = DirectoryLock::wait(directory)?;
            if is_kept_up(&path) {
                return Ok(None);
            }
            remove(&path)?;
            if !create(&path, &owner)? {
                return Ok(None);
            }
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(io_error("open", &path))?;
        let (sender, ended) = mpsc::channel();
        let heart = thread::spawn(move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                // a beat that fails is one that is missing
                let _ = file.set_modified(SystemTime::now());
            }
        });
        Ok(Some(Self { path, owner, heart: Some((sender, heart)) }))
    }

    /// Whether a process is at the work of a directory, or of one below it.
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
        // what another has taken meanwhile is its own, and what cannot be removed is given up
        if fs::read_to_string(&self.path).is_ok_and(|owner| owner == self.owner) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the file, unless it is there.
fn create(path: &Path, owner: &str) -> Result<bool> {
    match File::create_new(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("create", path)(error)),
        Ok(mut file) => {
            file.write_all(owner.as_bytes()).map_err(io_error("write", path))?;
            Ok(true)
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the file is there and was changed not long ago.
fn is_kept_up(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|file| file.modified());
    // a time to come is that of a clock which goes before ours
    changed.is_ok_and(|changed| changed.elapsed().map_or(true, |age| age <= GIVEN_UP))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// Makes a claim look as if nobody had kept it up.
    fn give_up(directory: &Path) -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(directory.join(Claim::FILE_NAME))?;
        file.set_modified(SystemTime::now() - 2 * GIVEN_UP)
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
        drop(lost); // takes nothing away from who has it now
        assert!(Claim::is_any_held(&work) && Claim::take(&work)?.is_none());
        drop(taken);
        assert!(Claim::take(&work)?.is_some());
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
