//! `libtorch/cargo.toml` tells plain Cargo where libtorch is. The tracked `.cargo/config.toml` includes it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::libtorch::refuse_link;
use crate::workspace::Workspace;

/// First line of the file when the installation is the user's and not ours.
const GIVEN_MARK: &str = "# This installation was named by LIBTORCH or LIBTORCH_USE_PYTORCH. Remove this file to have one made instead.\n";

/// The contents of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The installation it points at.
    pub libtorch: PathBuf,
    /// Whether the user named that installation, or setup made it.
    pub given: bool,
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.libtorch().join("cargo.toml")
}

/// The configuration for libtorch in `libtorch`.
///
/// torch-sys links with `libtorch/lib` but leaves no run path in the programs; the flag does.
///
/// # Errors
/// A path that cannot be passed through the linker's `-Wl,-rpath,…`.
pub fn content(libtorch: &Path, given: bool) -> Result<String> {
    let Some(dir) = libtorch.to_str().filter(|dir| !dir.contains(',')) else {
        bail!(
            "{} has a comma or is not UTF-8, which the linker's run path cannot hold: move it to a plainer path",
            libtorch.display()
        );
    };
    let mark = if given { GIVEN_MARK } else { "" };
    // A JSON string is a TOML basic string too.
    let env = serde_json::to_string(dir)?;
    let flag = serde_json::to_string(&format!("link-arg=-Wl,-rpath,{dir}/lib"))?;
    Ok(format!(
        "{mark}[env]\nLIBTORCH = {env}\n\n[build]\nrustflags = [\"-C\", {flag}]\nrustdocflags = [\"-C\", {flag}]\n"
    ))
}

/// Reads the file of `workspace`; `None` if it is missing or not ours.
pub fn read(workspace: &Workspace) -> Option<Recorded> {
    let text = fs::read_to_string(path(workspace)).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("LIBTORCH = "))?;
    let libtorch: String = serde_json::from_str(value).ok()?;
    Some(Recorded { libtorch: libtorch.into(), given: text.starts_with(GIVEN_MARK) })
}

/// Points Cargo at `libtorch`. Returns whether the file had to change, in which case Cargo rebuilds the linked programs.
pub fn write(workspace: &Workspace, libtorch: &Path, given: bool) -> Result<bool> {
    let path = path(workspace);
    let content = content(libtorch, given)?;
    if fs::read_to_string(&path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    let dir = workspace.libtorch();
    refuse_link(&dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let temporary = dir.join("cargo.toml.new");
    fs::write(&temporary, content)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_gets_the_place_of_libtorch_and_a_run_path() -> Result<()> {
        let expected = r#"[env]
LIBTORCH = "/srv/reft/libtorch"

[build]
rustflags = ["-C", "link-arg=-Wl,-rpath,/srv/reft/libtorch/lib"]
rustdocflags = ["-C", "link-arg=-Wl,-rpath,/srv/reft/libtorch/lib"]
"#;
        assert_eq!(content(Path::new("/srv/reft/libtorch"), false)?, expected);
        Ok(())
    }

    #[test]
    fn what_is_written_is_read_back_with_its_origin() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let workspace = Workspace::at(dir.path());
        assert_eq!(read(&workspace), None);
        for (libtorch, given) in [("/opt/with space \"and\" quotes", true), ("/opt/own", false)] {
            assert!(write(&workspace, Path::new(libtorch), given)?, "new content");
            assert!(
                !write(&workspace, Path::new(libtorch), given)?,
                "the same content leaves the file alone"
            );
            assert_eq!(read(&workspace), Some(Recorded { libtorch: libtorch.into(), given }));
        }
        Ok(())
    }

    #[test]
    fn a_path_that_the_linker_would_cut_is_refused() {
        let message = content(Path::new("/opt/a,b"), true)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(message.starts_with("/opt/a,b has a comma"), "{message}");
    }
}
