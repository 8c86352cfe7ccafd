//! Projects outside of this workspace that use its crates: their link to `libtorch/`, and an example of one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use crate::workspace::Workspace;
use crate::{command, model, setup};

/// Where Cargo looks for a project's configuration, and the older name, which comes first.
const CONFIG: &str = ".cargo/config.toml";
const OLD_CONFIG: &str = ".cargo/config";

const EXAMPLE: &str = "examples/downstream";

/// Makes the project in `project` find the libtorch of `cargo xtask setup`.
///
/// # Errors
/// A folder that is no project; a configuration that this cannot add to.
pub fn prepare(workspace: &Workspace, project: &Path) -> Result<()> {
    if !project.join("Cargo.toml").is_file() {
        bail!(
            "{} has no Cargo.toml: name the folder of the project that uses these crates",
            project.display()
        );
    }
    let libtorch = workspace.libtorch().join("cargo.toml");
    let libtorch = libtorch
        .to_str()
        .with_context(|| format!("the path {} is not UTF-8", libtorch.display()))?;
    if project.join(OLD_CONFIG).is_file() {
        bail!(
            "{} has a {OLD_CONFIG}, which Cargo reads instead of {CONFIG}: rename it to config.toml, and run this again",
            project.display()
        );
    }
    let path = project.join(CONFIG);
    let present = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let added =
        with_libtorch(&present, libtorch).with_context(|| format!("in {}", path.display()))?;
    let Some(added) = added else {
        eprintln!("{} includes {libtorch}: nothing to do", path.display());
        return Ok(());
    };
    let folder = path.parent().context("invariant: the file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let arriving = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    fs::write(arriving.path(), added)
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(arriving.path(), fs::Permissions::from_mode(0o644))?;
    }
    arriving.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!(
        "{} includes {libtorch}: `cargo build` finds libtorch there, and so does what it builds",
        path.display()
    );
    Ok(())
}

/// A configuration with one more line at its beginning; `None` if it has the line already.
///
/// # Errors
/// If the configuration cannot be read, includes other files, or has flags that would hide libtorch's run path.
fn with_libtorch(present: &str, libtorch: &str) -> Result<Option<String>> {
    let line = format!("include = [{}]\n", Value::from(libtorch));
    let table: Table = present.parse().context("cannot read it as TOML: mend it first")?;
    let names = |value: &Value| match value {
        Value::Table(entry) => entry.get("path").and_then(Value::as_str).map(str::to_owned),
        other => other.as_str().map(str::to_owned),
    };
    let included: Vec<String> = match table.get("include") {
        Some(Value::Array(entries)) => entries.iter().filter_map(names).collect(),
        Some(other) => names(other).into_iter().collect(),
        None => Vec::new(),
    };
    if included.iter().any(|path| path == libtorch) {
        return Ok(None);
    }
    if table.contains_key("include") {
        bail!(
            "it includes other files, and how they go together is for you to say: add {libtorch:?} to its `include`"
        );
    }
    let of_targets = table.get("target").and_then(Value::as_table).into_iter().flatten();
    for (target, settings) in of_targets {
        if settings.get("rustflags").is_some() {
            bail!(
                "it has rustflags for the target {target}, and Cargo then passes over libtorch's run path: move them to [build], which adds to it"
            );
        }
    }
    let about = "# libtorch, as `cargo xtask setup` of reft has it: where it is, and the run path of what is linked against it.\n";
    Ok(Some(format!("{about}{line}{}{present}", if present.is_empty() { "" } else { "\n" })))
}

/// Prepares the example project, builds it and runs it on the demo model.
///
/// # Errors
/// Errors of setup, of Cargo or of the example.
pub fn example(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    let project = workspace.root().join(EXAMPLE);
    prepare(workspace, &project)?;
    // The versions that this workspace is tested with; Cargo drops packages that the example does not use.
    let lock = project.join("Cargo.lock");
    if !lock.exists() {
        fs::copy(workspace.root().join("Cargo.lock"), &lock)
            .with_context(|| format!("cannot write {}", lock.display()))?;
    }
    let mut cargo = workspace.cargo();
    // One folder for both builds: crates of the same version, features and profile are built once.
    cargo.current_dir(&project).arg("run").arg("--target-dir").arg(workspace.root().join("target"));
    cargo.arg("--").arg(workspace.model());
    command::run(&mut cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBTORCH: &str = "/srv/reft/libtorch/cargo.toml";

    fn refusal(present: &str) -> String {
        with_libtorch(present, LIBTORCH).err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[test]
    fn a_configuration_gets_one_line_more_and_keeps_the_rest() -> Result<()> {
        for present in ["", "# ours\n[build]\njobs = 2\n", "[alias]\nb = \"build\"\n"] {
            let added = with_libtorch(present, LIBTORCH)?.unwrap_or_default();
            let mut table: Table = added.parse()?;
            assert_eq!(table.remove("include"), Some(Value::Array(vec![LIBTORCH.into()])));
            assert_eq!(table, present.parse()?);
            assert!(added.ends_with(present), "{added}");
            assert_eq!(with_libtorch(&added, LIBTORCH)?, None, "the line is there already");
        }
        let other = format!("include = [{{ path = \"{LIBTORCH}\", optional = true }}]\n");
        assert_eq!(with_libtorch(&other, LIBTORCH)?, None);
        Ok(())
    }

    #[test]
    fn what_it_does_not_understand_is_left_alone() {
        assert!(
            refusal("include = \"mine.toml\"").contains("add \"/srv/reft/libtorch/cargo.toml\"")
        );
        assert!(refusal("[build").contains("cannot read it as TOML"));
        let flags = "[target.x86_64-unknown-linux-gnu]\nrustflags = [\"-C\", \"x\"]\n";
        assert!(refusal(flags).contains("rustflags for the target x86_64-unknown-linux-gnu"));
    }

    #[test]
    fn a_project_is_prepared_once() -> Result<()> {
        let (root, project) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let workspace = Workspace::at(root.path());
        assert!(prepare(&workspace, project.path()).is_err(), "no project");
        fs::write(project.path().join("Cargo.toml"), "")?;
        prepare(&workspace, project.path())?;
        let path = project.path().join(CONFIG);
        let written = fs::read_to_string(&path)?;
        let expected = root.path().join("libtorch/cargo.toml").display().to_string();
        assert!(written.contains(&format!("include = [\"{expected}\"]")), "{written}");
        prepare(&workspace, project.path())?;
        assert_eq!(fs::read_to_string(&path)?, written);
        fs::write(project.path().join(OLD_CONFIG), "")?;
        assert!(prepare(&workspace, project.path()).is_err(), "the older name");
        assert_eq!(fs::read_dir(project.path().join(".cargo"))?.count(), 2, "nothing is left");
        Ok(())
    }
}
