//! Directories that one program at a time writes into.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process;

use crate::{Error, Result, io_error};

/// A lock for writing into a directory, until it is dropped or the process ends in any way.
///
/// It is an operating system lock on a file `.lock` in the directory, which is removed at the end. A missing directory is created, and
/// removed again if nothing was written into it.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
    path: PathBuf,
    /// Directories that this lock has created, the innermost first.
    made: Vec<PathBuf>,
}

/// How often a directory may vanish while it is locked.
const ATTEMPTS: usize = 1000;

impl DirectoryLock {
    /// Name of the file that is locked.
    pub const FILE_NAME: &'static str = ".lock";

    /// Locks a directory.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process, or another part of this one, has locked it; [`Error::Io`].
    pub fn take(directory: &Path) -> Result<Self> {
        Self::lock(directory, |file| match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(true),
        })
    }

    /// Locks a directory; waits while another process has it locked.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wait(directory: &Path) -> Result<Self> {
        Self::lock(directory, |file| file.lock().map(|()| true))
    }

    fn lock(directory: &Path, lock: fn(&File) -> std::io::Result<bool>) -> Result<Self> {
        let in_directory = || io_error("write into", directory);
        let path = directory.join(Self::FILE_NAME);
        for attempt in 0.. {
            let missing = directory.ancestors();
            let missing = missing.take_while(|dir| !dir.exists() && *dir != Path::new(""));
            let made = missing.map(Path::to_owned).collect();
            let open = || {
                fs::create_dir_all(directory)?;
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)
            };
            let file = match open() {
                Err(error) if has_vanished(&error) && attempt < ATTEMPTS => continue,
                file => file.map_err(in_directory())?,
            };
            let mut locked = Self { file, path: path.clone(), made };
            match lock(&locked.file) {
                Ok(true) if locked.is_there() => {
                    locked.sign().map_err(in_directory())?;
                    return Ok(locked);
                }
                Ok(true) => locked.forget(), // the previous holder has removed the file
                Ok(false) => {
                    let process = locked.holder();
                    locked.forget();
                    return Err(Error::InUse { path: directory.to_owned(), process });
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    log::warn!(
                        "the file system of {} has no locks; do not start a second run there",
                        directory.display()
                    );
                    return Ok(locked);
                }
                Err(error) => return Err(in_directory()(error)),
            }
        }
        unreachable!("invariant: the loop has no end")
    }

    /// Whether the locked file is still the one at its path.
    fn is_there(&self) -> bool {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let id =
                |found: std::io::Result<fs::Metadata>| found.map(|file| (file.dev(), file.ino()));
            let (own, there) = (id(self.file.metadata()), id(fs::metadata(&self.path)));
            own.is_ok_and(|own| there.is_ok_and(|there| own == there))
        }
        #[cfg(not(unix))]
        self.path.exists()
    }

    /// Writes this process's id into the file.
    fn sign(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(process::id().to_string().as_bytes())
    }

    /// The process that has signed the file.
    fn holder(&mut self) -> Option<u32> {
        let mut text = String::new();
        self.file.read_to_string(&mut text).ok()?;
        text.parse().ok()
    }

    /// Drops the lock without removing the file and directories, which belong to another process by now.
    fn forget(mut self) {
        self.path.clear();
        self.made.clear();
    }
}

/// Whether an error may mean that the process which had created the directory has removed it meanwhile: no file can be created in it then
/// ([`ErrorKind::NotFound`]), or [`fs::create_dir_all`] found something at its path, and a moment later no directory ([`ErrorKind::AlreadyExists`]).
fn has_vanished(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists)
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // a file that cannot be removed stays and does no harm
        let _ = fs::remove_file(&self.path);
        for directory in &self.made {
            let _ = fs::remove_dir(directory); // only if it is empty
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn a_directory_has_one_writer_and_nothing_is_left_of_a_lock() -> TestResult {
        let directory = tempfile::tempdir()?;
        let output = directory.path().join("a/b");
        let lock = DirectoryLock::take(&output)?;
        let second = DirectoryLock::take(&output);
        let own = Some(process::id());
        assert!(
            matches!(&second, Err(Error::InUse { process, .. }) if *process == own),
            "{second:?}"
        );
        drop(lock);
        assert!(!directory.path().join("a").exists());

        let lock = DirectoryLock::take(&output)?;
        fs::write(output.join("result"), "7")?;
        drop(lock);
        let left: Vec<_> = fs::read_dir(&output)?.collect::<std::io::Result<_>>()?;
        assert_eq!(left.len(), 1);

        // the file of a killed program does not lock the directory
        fs::write(output.join(DirectoryLock::FILE_NAME), "123")?;
        DirectoryLock::take(&output).map(drop)?;
        let file = directory.path().join("file");
        fs::write(&file, "")?;
        assert!(matches!(DirectoryLock::take(&file), Err(Error::Io { action: "write into", .. })));
        Ok(())
    }

    #[test]
    fn those_that_wait_have_it_one_after_the_other() -> TestResult {
        let directory = tempfile::tempdir()?;
        let output = directory.path().join("out");
        let inside = AtomicUsize::new(0);
        thread::scope(|scope| {
            let once = || -> Result<()> {
                for _ in 0..50 {
                    let _lock = DirectoryLock::wait(&output)?;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
                Ok(())
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(once)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        Ok(())
    }
}
