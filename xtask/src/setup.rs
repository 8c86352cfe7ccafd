//! `cargo xtask setup`: which libtorch this checkout builds against.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::libtorch;
use crate::libtorch_config::{self, Recorded};
use crate::platform::{self, LIBTORCH_VERSION};
use crate::workspace::{self, Workspace};

/// Where libtorch comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// Made in `libtorch/` from pinned wheels.
    Own,
    /// An installation that the user named.
    Given(PathBuf),
}

/// Makes libtorch ready, with `with_cuda` its GPU half too, or says that it is ready already.
pub fn run(workspace: &Workspace, with_cuda: bool) -> Result<()> {
    if ready(workspace)? {
        eprintln!("libtorch {LIBTORCH_VERSION} is ready: nothing to do");
    } else {
        eprintln!(
            "libtorch {LIBTORCH_VERSION} is ready: plain `cargo build`, `cargo test` and `cargo run` work now"
        );
    }
    if with_cuda {
        cuda(workspace)?;
    }
    if env::var_os("RUSTFLAGS").is_some() {
        eprintln!(
            "note: RUSTFLAGS is set; Cargo then ignores the run path in libtorch/cargo.toml, and what it links does not find libtorch. Unset it"
        );
    }
    Ok(())
}

/// Makes libtorch ready if it is not, quietly if it is. Returns whether it was already.
pub fn ready(workspace: &Workspace) -> Result<bool> {
    match source(workspace)? {
        Source::Given(libtorch) => {
            check(&libtorch)?;
            let changed = libtorch_config::write(workspace, &libtorch, true)?;
            if changed {
                eprintln!("recorded in libtorch/cargo.toml: {}", libtorch.display());
            }
            Ok(!changed)
        }
        Source::Own => own(workspace),
    }
}

/// Makes the GPU half of libtorch ready.
fn cuda(workspace: &Workspace) -> Result<()> {
    if let Source::Given(libtorch) = source(workspace)? {
        bail!(
            "LIBTORCH is {}, an installation of yours: its own CUDA libraries are used, if it has them; unset it to have them fetched",
            libtorch.display()
        );
    }
    let platform = platform::cuda()?;
    let dir = workspace.libtorch().join("cuda");
    let cache = workspace::cache_dir()?;
    let _lock = workspace::exclusive(&cache)?;
    match libtorch::defect(&dir, platform) {
        Some(defect) => {
            eprintln!("making {}: {defect}", dir.display());
            libtorch::make_cuda(workspace, platform, &cache)?;
            eprintln!(
                "libtorch's GPU half is ready; `reft devices` says whether it can be used here"
            );
        }
        None => eprintln!("libtorch's GPU half is ready: nothing to do"),
    }
    Ok(())
}

fn own(workspace: &Workspace) -> Result<bool> {
    let platform = platform::current()?;
    let dir = workspace.libtorch();
    if libtorch::defect(&dir, platform).is_some() {
        let cache = workspace::cache_dir()?;
        let _lock = workspace::exclusive(&cache)?;
        // Another setup may have made it while this one waited for the lock.
        if let Some(defect) = libtorch::defect(&dir, platform) {
            eprintln!("making {}: {defect}", dir.display());
            libtorch::make(workspace, platform, &cache)?;
            return Ok(false);
        }
    }
    let changed = libtorch_config::write(workspace, &dir, false)?;
    if changed {
        eprintln!("libtorch/cargo.toml pointed elsewhere; written for {}", dir.display());
    }
    Ok(!changed)
}

fn source(workspace: &Workspace) -> Result<Source> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return pytorch().map(Source::Given);
    }
    let named = env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from);
    let named =
        named.map(std::path::absolute).transpose().context("cannot read the current folder")?;
    Ok(choose(named, libtorch_config::read(workspace), &workspace.libtorch()))
}

/// Decides whether `LIBTORCH` was set by the user, or by Cargo from libtorch/cargo.toml.
fn choose(named: Option<PathBuf>, recorded: Option<Recorded>, own: &Path) -> Source {
    match (named, recorded) {
        (Some(named), _) if named == own => Source::Own,
        // The checkout was moved or copied: its configuration still names the old place.
        (Some(named), Some(recorded)) if named == recorded.libtorch && !recorded.given => {
            Source::Own
        }
        (Some(named), _) => Source::Given(named),
        (None, Some(recorded)) if recorded.given => Source::Given(recorded.libtorch),
        (None, _) => Source::Own,
    }
}

/// The folder of python3's torch: it has the layout of a libtorch.
fn pytorch() -> Result<PathBuf> {
    // The interpreter that torch-sys asks.
    let python = if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let program =
        "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')";
    let package = command::output(Command::new(python).args(["-c", program]))?;
    match Path::new(package.trim_end()).parent() {
        Some(folder) => Ok(folder.to_owned()),
        None => bail!(
            "LIBTORCH_USE_PYTORCH is set, but {python} has no torch: install torch {LIBTORCH_VERSION} there, or unset LIBTORCH_USE_PYTORCH"
        ),
    }
}

/// Refuses a folder that is not an installation of the right libtorch.
fn check(libtorch: &Path) -> Result<()> {
    let advice = format!(
        "set LIBTORCH to an installation of libtorch {LIBTORCH_VERSION}, or unset it and remove libtorch/cargo.toml to have one made"
    );
    let header = "include/torch/csrc/api/include/torch/torch.h";
    if !libtorch.join(header).is_file() {
        bail!("LIBTORCH is {}, which has no {header}: {advice}", libtorch.display());
    }
    let library = format!("lib/{}torch{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    if !libtorch.join(&library).is_file() {
        bail!("LIBTORCH is {}, which has no {library}: {advice}", libtorch.display());
    }
    match version(libtorch) {
        Some(version) if version != LIBTORCH_VERSION => bail!(
            "LIBTORCH is {}, which has version {version}, expected {LIBTORCH_VERSION}: {advice}",
            libtorch.display()
        ),
        Some(_) => {}
        None => eprintln!(
            "{} does not say its version: taken for {LIBTORCH_VERSION}",
            libtorch.display()
        ),
    }
    Ok(())
}

/// The release without its build (`2.11.0`, not `2.11.0+cu130`), from the version file of a libtorch or of a Python package.
fn version(libtorch: &Path) -> Option<String> {
    let full = fs::read_to_string(libtorch.join("build-version")).ok().or_else(|| {
        let python = fs::read_to_string(libtorch.join("version.py")).ok()?;
        let value = python.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(value.trim_matches(['\'', '"']).to_owned())
    })?;
    full.trim().split('+').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(libtorch: &str, given: bool) -> Option<Recorded> {
        Some(Recorded { libtorch: libtorch.into(), given })
    }

    #[test]
    fn only_an_installation_that_the_user_named_is_taken_for_given() {
        let own = Path::new("/new/libtorch");
        let given = |path: &str| Source::Given(path.into());
        let choose =
            |named: Option<&str>, recorded| choose(named.map(PathBuf::from), recorded, own);
        // A fresh checkout; one that is set up; one that was moved.
        assert_eq!(choose(None, None), Source::Own);
        assert_eq!(choose(Some("/new/libtorch"), recorded("/new/libtorch", false)), Source::Own);
        assert_eq!(choose(Some("/old/libtorch"), recorded("/old/libtorch", false)), Source::Own);
        assert_eq!(choose(None, recorded("/old/libtorch", false)), Source::Own);
        // The user's, named now; named before; changed since.
        assert_eq!(choose(Some("/opt/a"), None), given("/opt/a"));
        assert_eq!(choose(Some("/opt/a"), recorded("/new/libtorch", false)), given("/opt/a"));
        assert_eq!(choose(Some("/opt/a"), recorded("/opt/a", true)), given("/opt/a"));
        assert_eq!(choose(None, recorded("/opt/a", true)), given("/opt/a"));
        assert_eq!(choose(Some("/opt/b"), recorded("/opt/a", true)), given("/opt/b"));
    }

    #[test]
    fn a_given_installation_is_checked_for_headers_library_and_version() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let message =
            |dir: &Path| check(dir).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(
            message(dir.path()).contains("has no include/torch/csrc/api/include/torch/torch.h")
        );
        let include = dir.path().join("include/torch/csrc/api/include/torch");
        fs::create_dir_all(&include)?;
        fs::write(include.join("torch.h"), "")?;
        assert!(message(dir.path()).contains("has no lib/libtorch."));
        fs::create_dir(dir.path().join("lib"))?;
        let library = format!("{}torch{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
        fs::write(dir.path().join("lib").join(library), "")?;
        check(dir.path())?; // no version to read: taken as it is
        fs::write(dir.path().join("build-version"), "2.9.1+cpu\n")?;
        assert!(message(dir.path()).contains("which has version 2.9.1, expected 2.11.0"));
        fs::write(dir.path().join("build-version"), "2.11.0+cu130\n")?;
        check(dir.path())
    }

    #[test]
    fn the_version_of_a_python_package_is_read() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(
            dir.path().join("version.py"),
            "from typing import Optional\n\n__version__ = '2.11.0+cu130'\ndebug = False\n",
        )?;
        assert_eq!(version(dir.path()).as_deref(), Some("2.11.0"));
        Ok(())
    }
}
