//! Makes `libtorch/` from wheels, and detects an incomplete one.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::command;
use crate::libtorch_config;
use crate::platform::{LIBTORCH_VERSION, Platform};
use crate::wheel;
use crate::workspace::Workspace;

/// Every file with its size, as unpacked: `SIZE PATH` per line.
const MANIFEST: &str = "manifest.txt";
/// Siblings of `libtorch/` that are being made or thrown away.
const TEMPORARY: &str = ".libtorch-";

/// The defect of `libtorch` in words; `None` if it is complete.
pub fn defect(libtorch: &Path, platform: &Platform) -> Option<String> {
    if !libtorch.is_dir() {
        return Some("it is not there".to_owned());
    }
    match fs::read_to_string(libtorch.join("build-version")) {
        Ok(version) if version.trim() == LIBTORCH_VERSION => {}
        Ok(version) => return Some(format!("it has version {}", version.trim())),
        Err(_) => return Some("it has no build-version".to_owned()),
    }
    let Ok(manifest) = fs::read_to_string(libtorch.join(MANIFEST)) else {
        return Some(format!("it has no {MANIFEST}"));
    };
    let mut listed = Vec::new();
    for line in manifest.lines() {
        let entry =
            line.split_once(' ').and_then(|(size, path)| Some((size.parse::<u64>().ok()?, path)));
        let Some((size, path)) = entry else {
            return Some(format!("its {MANIFEST} has the line {line:?}"));
        };
        match fs::metadata(libtorch.join(path)) {
            Ok(metadata) if metadata.len() == size => listed.push(path),
            Ok(metadata) => {
                return Some(format!("{path} has {} bytes instead of {size}", metadata.len()));
            }
            Err(_) => return Some(format!("{path} is missing")),
        }
    }
    let unlisted = platform.essential.iter().find(|file| !listed.contains(file));
    unlisted.map(|file| format!("its {MANIFEST} does not list {file}"))
}

/// Makes `libtorch/` of `workspace`, or makes it again. The caller holds the lock on `cache`.
pub fn make(workspace: &Workspace, platform: &Platform, cache: &Path) -> Result<()> {
    let libtorch = workspace.libtorch();
    refuse_link(&libtorch)?;
    let compiler = compiler()?;
    command::python()?;
    remove_leftovers(workspace);
    let fresh = unpacked(workspace, platform, cache, &libtorch)?;
    if platform.shim {
        link_shim(&compiler, &fresh.path().join("lib"))?;
    }
    complete(&fresh, platform)?;
    // Written before the rename, so that the directory never exists without Cargo's configuration.
    let config = libtorch_config::content(&libtorch, false)?;
    fs::write(fresh.path().join("cargo.toml"), config)?;
    put_in_place(workspace, fresh, &libtorch)
}

/// Makes `libtorch/cuda/`, or makes it again. The caller holds the lock on `cache`.
pub fn make_cuda(workspace: &Workspace, platform: &Platform, cache: &Path) -> Result<()> {
    let cuda = workspace.libtorch().join("cuda");
    refuse_link(&workspace.libtorch())?;
    refuse_link(&cuda)?;
    command::python()?;
    remove_leftovers(workspace);
    let fresh = unpacked(workspace, platform, cache, &cuda)?;
    complete(&fresh, platform)?;
    put_in_place(workspace, fresh, &cuda)
}

/// Refuses a folder that is a link: its target belongs to another checkout or installation.
///
/// # Errors
/// If the folder is a link.
pub fn refuse_link(dir: &Path) -> Result<()> {
    if fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_symlink()) {
        let target = fs::read_link(dir).unwrap_or_default();
        bail!(
            "{} is a link to {}, and setup does not write through a link: remove it, or set LIBTORCH to the installation behind it",
            dir.display(),
            target.display()
        );
    }
    Ok(())
}

/// Collects the pieces of a platform's wheels in a new folder that is to become `target`.
fn unpacked(
    workspace: &Workspace,
    platform: &Platform,
    cache: &Path,
    target: &Path,
) -> Result<TempDir> {
    let mut wheels = Vec::new();
    for (wheel, pieces) in platform.wheels {
        wheels.push((wheel::fetch(wheel, cache)?, *pieces));
    }
    eprintln!("unpacking to {}", target.display());
    let fresh = temporary_sibling(workspace)?;
    for (wheel, pieces) in wheels {
        wheel::unpack(&wheel, pieces, fresh.path())?;
    }
    Ok(fresh)
}

/// Writes version and manifest, and checks that no needed file is missing.
fn complete(fresh: &TempDir, platform: &Platform) -> Result<()> {
    fs::write(fresh.path().join("build-version"), format!("{LIBTORCH_VERSION}\n"))?;
    write_manifest(fresh.path())?;
    if let Some(defect) = defect(fresh.path(), platform) {
        bail!(
            "libtorch was unpacked, but {defect}: the pinned wheels and the list of needed files disagree"
        );
    }
    Ok(())
}

/// A new folder beside `libtorch/`, on the same disk, so that a rename puts it in place.
fn temporary_sibling(workspace: &Workspace) -> Result<TempDir> {
    let root = workspace.root();
    let dir = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempdir_in(root)
        .with_context(|| format!("cannot create a folder in {}", root.display()))?;
    // Other users cannot read a tempdir; libtorch/ is an ordinary folder.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    }
    Ok(dir)
}

/// Removes files of an interrupted setup; no other setup runs while the lock is held.
fn remove_leftovers(workspace: &Workspace) {
    for entry in fs::read_dir(workspace.root()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            eprintln!("left behind: {} ({error})", entry.path().display());
        }
    }
}

fn put_in_place(workspace: &Workspace, fresh: TempDir, target: &Path) -> Result<()> {
    let old = temporary_sibling(workspace)?; // removed when dropped
    if target.exists() {
        fs::rename(target, old.path().join("old"))
            .with_context(|| format!("cannot move the old {} away", target.display()))?;
    }
    fs::rename(fresh.keep(), target)
        .with_context(|| format!("cannot put {} in place", target.display()))
}

fn write_manifest(libtorch: &Path) -> Result<()> {
    let mut files = Vec::new();
    list_files(libtorch, &mut files)?;
    files.sort();
    let mut manifest = String::new();
    for file in files {
        let path = file
            .strip_prefix(libtorch)?
            .to_str()
            .context("invariant: wheels name their files in UTF-8")?;
        writeln!(manifest, "{} {path}", fs::metadata(&file)?.len())?;
    }
    fs::write(libtorch.join(MANIFEST), manifest).context("cannot write the manifest of libtorch")
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() { list_files(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// The C++ compiler that torch-sys will call: asked for before anything large is downloaded.
fn compiler() -> Result<PathBuf> {
    let chosen = env::var_os("CXX").filter(|value| !value.is_empty());
    let compiler = PathBuf::from(chosen.unwrap_or_else(|| "c++".into()));
    if !command::succeeds(Command::new(&compiler).arg("--version")) {
        bail!(
            "the C++ compiler `{}` cannot be run, and tch is built with it: install one (Debian: apt install g++; macOS: xcode-select --install), or set CXX to yours",
            compiler.display()
        );
    }
    Ok(compiler)
}

/// Links the empty `libtorch.so` that stands for `-ltorch`: it brings in the CPU libraries only.
fn link_shim(compiler: &Path, lib: &Path) -> Result<()> {
    let mut link = Command::new(compiler);
    link.current_dir(lib)
        .args(["-shared", "-o", "libtorch.so", "-Wl,-soname,libtorch.so"])
        .args(["-Wl,--no-as-needed", "libtorch_cpu.so", "libc10.so", "-Wl,--as-needed"])
        .arg("-Wl,-rpath,$ORIGIN");
    command::run_as_progress(&mut link).context("cannot link the empty library libtorch.so")
}

#[cfg(test)]
mod tests {
    use super::*;

    static TINY: Platform = Platform { wheels: &[], shim: false, essential: &["lib/libtorch.so"] };

    fn tiny_libtorch() -> Result<TempDir> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("include/c10"))?;
        fs::create_dir(dir.path().join("lib"))?;
        fs::write(dir.path().join("include/c10/x.h"), "header")?;
        fs::write(dir.path().join("lib/libtorch.so"), "library")?;
        fs::write(dir.path().join("build-version"), "2.11.0\n")?;
        write_manifest(dir.path())?;
        Ok(dir)
    }

    #[test]
    fn a_whole_directory_has_no_defect() -> Result<()> {
        assert_eq!(defect(tiny_libtorch()?.path(), &TINY), None);
        Ok(())
    }

    #[test]
    fn every_way_of_being_half_made_is_named() -> Result<()> {
        type Damage = fn(&Path) -> std::io::Result<()>;
        let damages: [(Damage, &str); 7] = [
            (|dir| fs::remove_dir_all(dir), "it is not there"),
            (|dir| fs::remove_file(dir.join("build-version")), "it has no build-version"),
            (|dir| fs::write(dir.join("build-version"), "2.10.0\n"), "it has version 2.10.0"),
            (|dir| fs::remove_file(dir.join(MANIFEST)), "it has no manifest.txt"),
            (|dir| fs::remove_file(dir.join("include/c10/x.h")), "include/c10/x.h is missing"),
            (
                |dir| fs::write(dir.join("lib/libtorch.so"), "lib"),
                "lib/libtorch.so has 3 bytes instead of 7",
            ),
            (
                |dir| fs::write(dir.join(MANIFEST), ""),
                "its manifest.txt does not list lib/libtorch.so",
            ),
        ];
        for (damage, expected) in damages {
            let libtorch = tiny_libtorch()?.keep();
            damage(&libtorch)?;
            assert_eq!(defect(&libtorch, &TINY).as_deref(), Some(expected));
            if libtorch.exists() {
                fs::remove_dir_all(libtorch)?;
            }
        }
        Ok(())
    }

    #[test]
    fn a_damaged_directory_is_replaced_and_nothing_is_left_beside_it() -> Result<()> {
        let root = tempfile::tempdir()?;
        let workspace = Workspace::at(root.path());
        fs::create_dir(workspace.libtorch())?;
        fs::write(workspace.libtorch().join("old"), "old")?;
        let fresh = temporary_sibling(&workspace)?;
        fs::write(fresh.path().join("new"), "new")?;
        put_in_place(&workspace, fresh, &workspace.libtorch())?;
        assert_eq!(fs::read_to_string(workspace.libtorch().join("new"))?, "new");
        assert!(!workspace.libtorch().join("old").exists());
        assert_eq!(fs::read_dir(root.path())?.count(), 1);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_made_behind_a_link() -> Result<()> {
        let (root, elsewhere) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fs::write(elsewhere.path().join("cargo.toml"), "theirs")?;
        let workspace = Workspace::at(root.path());
        std::os::unix::fs::symlink(elsewhere.path(), workspace.libtorch())?;
        let refusals = [
            make(&workspace, &TINY, root.path()),
            make_cuda(&workspace, &TINY, root.path()),
            libtorch_config::write(&workspace, Path::new("/opt/libtorch"), true).map(drop),
        ];
        for refused in refusals {
            let message = refused.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(message.contains("is a link to") && message.contains("remove it"), "{message}");
        }
        assert_eq!(fs::read_to_string(elsewhere.path().join("cargo.toml"))?, "theirs");
        assert_eq!(fs::read_dir(elsewhere.path())?.count(), 1);
        Ok(())
    }

    #[test]
    fn leftovers_of_an_interrupted_setup_go_and_other_files_stay() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join(".libtorch-a1b2/lib"))?;
        fs::create_dir(root.path().join("libtorch"))?;
        remove_leftovers(&Workspace::at(root.path()));
        assert!(!root.path().join(".libtorch-a1b2").exists());
        assert!(root.path().join("libtorch").exists());
        Ok(())
    }
}
