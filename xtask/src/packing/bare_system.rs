//! `cargo xtask dist --try-in DIR`: the archive on a system that has nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::demo::{DATA, RECIPE};
use crate::packing::archive;
use crate::workspace::Workspace;
use crate::{command, model};

/// In the bare system: everything that is put there.
const PLACE: &str = "opt/reft";

/// Unpacks the archive in the system below `system`, copies the demo's model and data there, and trains with nothing but them.
///
/// # Errors
/// If the folder is no system, or has tools that the trial must do without; if something cannot be unpacked, copied or run.
pub fn run(workspace: &Workspace, system: &Path) -> Result<()> {
    for tool in ["usr/bin/python3", "usr/bin/cc", "usr/bin/cargo"] {
        if system.join(tool).exists() {
            bail!("{} has {tool}, so it is no bare system", system.display());
        }
    }
    if !system.join("usr/bin/env").exists() || !system.join("bin/tar").exists() {
        bail!(
            "{} holds no system: make one with `debootstrap --variant=minbase bookworm {0}`",
            system.display()
        );
    }
    let archive = archive::make(workspace)?;
    model::ready(workspace)?;
    let place = system.join(PLACE);
    if place.exists() {
        fs::remove_dir_all(&place)
            .with_context(|| format!("cannot remove the earlier {}", place.display()))?;
    }
    let started = Instant::now();
    let put = |from: &Path, to: &str| {
        let to = place.join(to);
        fs::create_dir_all(to.parent().context("invariant: below the place")?)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        anyhow::Ok(())
    };
    put(&archive, "reft.tar.gz")?;
    for file in [DATA, RECIPE] {
        put(&workspace.root().join(file), file)?;
    }
    let model = workspace.model();
    for file in fs::read_dir(&model).with_context(|| format!("cannot list {}", model.display()))? {
        let path = file?.path();
        put(&path, &format!("model/{}", path.file_name().unwrap_or_default().to_string_lossy()))?;
    }
    let inside = |script: &str| {
        // With its own /proc, which the system's loader needs to find a program's place.
        let mut apart = Command::new("unshare");
        apart.args(["--mount", "--pid", "--fork", "--mount-proc", "--root"]).arg(system);
        apart.args(["/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "HOME=/tmp"]);
        command::run(apart.args(["sh", "-ec", &format!("cd /{PLACE}\n{script}")]))
    };
    inside("tar -xzf reft.tar.gz --strip-components 1")?;
    eprintln!("unpacked after {:.0} s", started.elapsed().as_secs_f64());
    inside("bin/reft devices")?;
    inside(&format!(
        "bin/reft train --config {RECIPE} --model model --data {DATA} --output run\nbin/reft generate --model model --adapter run --chat --prompt 'Tell me about the ocean.' --max-new-tokens 20"
    ))?;
    eprintln!("trained and answered after {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
