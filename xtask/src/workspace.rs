//! Where things are in this checkout and on this machine.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// A checkout of this project.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The checkout that Cargo runs xtask from; for the bare executable the one it was built in.
    pub fn current() -> Self {
        let manifest_dir =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let mut root = PathBuf::from(manifest_dir);
        root.pop(); // xtask/
        Self { root }
    }

    /// A checkout at `root`.
    #[cfg(test)]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The top folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// libtorch as `cargo xtask setup` makes it: git-ignored.
    pub fn libtorch(&self) -> PathBuf {
        self.root.join("libtorch")
    }

    /// The demo model as a Hugging Face directory: git-ignored.
    pub fn model(&self) -> PathBuf {
        self.root.join("models/SmolLM2-135M-Instruct")
    }

    /// `path` as a person in the top folder would type it.
    pub fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }

    /// Cargo in the top folder.
    ///
    /// Cargo passes the `[env]` table of libtorch/cargo.toml on to xtask. After setup has written a new file, the old values must not
    /// override it in the Cargo called from here, so they are dropped and Cargo reads the file again.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root).env_remove("LIBTORCH");
        cargo
    }
}

/// This user's cache folder: downloads, and the Python environment of the oracle.
pub fn cache_dir() -> Result<PathBuf> {
    // The XDG specification: a relative path in XDG_CACHE_HOME is ignored.
    let xdg = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = match xdg {
        Some(path) => path,
        None => PathBuf::from(env::var_os("HOME").context(
            "neither XDG_CACHE_HOME nor HOME is set: set one to say where downloads are kept",
        )?)
        .join(".cache"),
    };
    let dir = base.join("reft");
    fs::create_dir_all(&dir)
        .with_context(|| format!("cannot create the cache folder {}", dir.display()))?;
    Ok(dir)
}

/// Waits until no other xtask of this user downloads or unpacks; lasts until the value is dropped.
pub fn exclusive(cache: &Path) -> Result<File> {
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another `cargo xtask` to finish");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
