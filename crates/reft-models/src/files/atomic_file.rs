//! Files and directories that appear under their name complete or not at all.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file so that a crash, a full disk or an error in `write` leaves the old file.
///
/// `write` fills a temporary sibling of `path`, which is then flushed to disk and renamed. The file gets the mode that a
/// plainly created one would have.
///
/// # Errors
/// The error of `write`, or [`Error::Io`] if the file cannot be created, flushed or renamed.
pub fn atomic_write<E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let directory = parent(path);
    let temporary = builder(0o666).tempfile_in(&directory).map_err(io_error("create", path))?;
    write(temporary.path())?;
    sync(temporary.path()).map_err(io_error("write", path))?;
    temporary.persist(path).map_err(|failed| io_error("write", path)(failed.error))?;
    sync(&directory).map_err(io_error("write", &directory))?;
    Ok(())
}

/// Makes a directory so that a crash, a full disk or an error in `fill` leaves nothing under its name.
///
/// `fill` fills a temporary sibling of `path`, which is then flushed to disk and renamed. Missing parents are created.
///
/// # Errors
/// [`Error::OutputExists`] if `path` is there and not an empty directory, the error of `fill`, or [`Error::Io`].
pub fn atomic_directory<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if fs::symlink_metadata(path).is_ok() {
        let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if !is_empty {
            return Err(Error::OutputExists(path.to_owned()).into());
        }
    }
    let directory = parent(path);
    fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
    let temporary = builder(0o777).tempdir_in(&directory).map_err(io_error("create", path))?;
    fill(temporary.path())?;
    sync_tree(temporary.path()).map_err(io_error("write", path))?;
    fs::rename(temporary.path(), path).map_err(io_error("write", path))?;
    let _renamed = temporary.keep(); // nothing is left to remove under the old name
    sync(&directory).map_err(io_error("write", &directory))?;
    Ok(())
}

/// Turns the system's error into ours, with the action and the path.
pub fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { action, path, source }
}

/// Prefix of the name of a file or directory that is being written.
const PARTIAL: &str = ".partial-";

/// Whether a path is of a file or directory that is being written, or was left behind by a killed program.
pub fn is_partial(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL))
}

/// The directory that holds `path`.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes temporary siblings; `mode` is cut by the process's umask, as for any new file.
#[cfg_attr(not(unix), allow(unused_variables))]
fn builder(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PARTIAL);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    builder
}

/// Flushes one file, or one directory's entries, to disk.
fn sync(path: &Path) -> io::Result<()> {
    if cfg!(unix) || path.is_file() { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Flushes a directory and everything below it to disk.
fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { sync(&path)? }
    }
    sync(directory)
}
