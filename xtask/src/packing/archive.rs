//! `cargo xtask dist`: the program with a libtorch for the CPU, to be unpacked and run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::packing::bill_of_materials::{self, Library};
use crate::packing::contents;
use crate::packing::licences;
use crate::packing::program::{self, Program};
use crate::platform::{self, LIBTORCH_VERSION, Piece, Platform};
use crate::workspace::{self, Workspace};
use crate::{command, libtorch, wheel};

/// The licences of the files taken from each wheel.
const LICENCES: [(&str, Piece); 3] = [
    ("torch", Piece { from: "torch-2.11.0.dist-info/licenses/", to: "torch/" }),
    (
        "nvidia-cuda-runtime",
        Piece { from: "nvidia_cuda_runtime-13.0.96.dist-info/licenses/", to: "cudart/" },
    ),
    (
        "nvidia-cuda-cupti",
        Piece { from: "nvidia_cuda_cupti-13.0.85.dist-info/licenses/", to: "cupti/" },
    ),
];

/// Libraries whose licence allows changes; NVIDIA's libraries stay unchanged.
const MAY_BE_STRIPPED: [&str; 2] = ["libtorch_cpu.so", "libc10.so"];

/// Files by their places in the archive, and whether they are programs.
type Files = BTreeMap<String, (Vec<u8>, bool)>;

/// Writes the archive and says where it is.
///
/// # Errors
/// A failing build, a libtorch that setup did not make, or a file that cannot be read or written.
pub fn run(workspace: &Workspace) -> Result<()> {
    let archive = make(workspace)?;
    let megabytes = fs::metadata(&archive)?.len() as f64 / 1e6;
    eprintln!(
        "{} ({megabytes:.0} MB) is ready: unpack it with tar, and run bin/reft",
        workspace.relative(&archive).display()
    );
    Ok(())
}

/// Makes the archive in `target/archives`.
pub fn make(workspace: &Workspace) -> Result<PathBuf> {
    let program = program::build(workspace)?;
    let platform = platform::current()?;
    if let Some(defect) = libtorch::defect(&workspace.libtorch(), platform) {
        bail!(
            "libtorch/ is not one that setup made ({defect}), and only such a one may be packed: unset LIBTORCH, remove libtorch/cargo.toml and run `cargo xtask setup`"
        );
    }
    let contents = contents::read(workspace)?;
    let version = contents.own()?.version.clone();
    let libraries = libraries(&workspace.libtorch().join("lib"), &program)?;
    let origins = libraries.iter().map(|(name, content)| {
        Ok(Library {
            file: name.clone(),
            sha256: hex(&Sha256::digest(content)),
            requirement: origin(platform, name)?.to_owned(),
        })
    });
    let origins = origins.collect::<Result<Vec<_>>>()?;

    let mut files = licence_texts(platform)?;
    let text = |text: String| (text.into_bytes(), false);
    files.insert("licenses/THIRD-PARTY.txt".into(), text(licences::text(&contents)?));
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        files.insert(format!("licenses/{name}"), (read(&workspace.root().join(name))?, false));
    }
    let bill = bill_of_materials::document(&version, &contents, &origins)?;
    files.insert("reft.cdx.json".into(), text(bill));
    files.insert("README.md".into(), text(readme(&version, &program)));
    files.insert("bin/reft".into(), (read(&program.path)?, true));
    for (name, content) in libraries {
        files.insert(format!("lib/{name}"), (content, true));
    }

    let folder = program.target()?.join("archives");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = format!("reft-{version}-linux-x86_64");
    let path = folder.join(format!("{name}.tar.gz"));
    eprintln!("packing {}", workspace.relative(&path).display());
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    pack(file, &name, &files).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The libraries of a folder that the program needs, directly or not, stripped where they may be.
fn libraries(folder: &Path, program: &Program) -> Result<BTreeMap<String, Vec<u8>>> {
    let scratch = tempfile::tempdir().context("cannot make a folder for stripped libraries")?;
    let mut found = BTreeMap::new();
    let mut waiting = program.needs.libraries.clone();
    while let Some(name) = waiting.pop() {
        let mut path = folder.join(&name);
        if found.contains_key(&name) || !path.is_file() {
            continue; // a library of the system
        }
        if MAY_BE_STRIPPED.contains(&name.as_str()) {
            let stripped = scratch.path().join(&name);
            let mut strip = Command::new("strip");
            strip.args(["--strip-unneeded", "-o"]).arg(&stripped).arg(&path);
            command::run_as_progress(&mut strip)?;
            path = stripped;
        }
        let content = read(&path)?;
        let needs = program::needs(&content)
            .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
        waiting.extend(needs.libraries);
        found.insert(name, content);
    }
    Ok(found)
}

/// The release that a library was taken from.
fn origin(platform: &Platform, library: &str) -> Result<&'static str> {
    let place = format!("lib/{library}");
    let mut wheels = platform.wheels.iter();
    let found = wheels.find(|(_, pieces)| pieces.iter().any(|piece| piece.to == place));
    found
        .map(|(wheel, _)| wheel.requirement)
        .with_context(|| format!("invariant: {library} comes from a wheel"))
}

/// The wheels' licence texts, by their places in the archive.
fn licence_texts(platform: &Platform) -> Result<Files> {
    let cache = workspace::cache_dir()?;
    let _lock = workspace::exclusive(&cache)?;
    let scratch = tempfile::tempdir().context("cannot make a folder for licences")?;
    for (wheel, _) in platform.wheels {
        let file = wheel::fetch(wheel, &cache)?;
        wheel::unpack(&file, &[licence_piece(wheel.requirement)?], scratch.path())?;
    }
    let mut files = Files::new();
    for entry in ignore::WalkBuilder::new(scratch.path()).standard_filters(false).build() {
        let entry = entry.context("cannot list the licences")?;
        if entry.path().is_file() {
            let name = entry.path().strip_prefix(scratch.path())?.display();
            files.insert(format!("licenses/{name}"), (read(entry.path())?, false));
        }
    }
    Ok(files)
}

fn licence_piece(requirement: &str) -> Result<Piece> {
    let package = requirement.split("==").next().unwrap_or_default();
    let mut known = LICENCES.into_iter();
    let (_, piece) = known
        .find(|(name, _)| *name == package)
        .with_context(|| format!("invariant: the licences of {package} are known"))?;
    Ok(piece)
}

fn readme(version: &str, program: &Program) -> String {
    let (major, minor) = program.needs.glibc;
    include_str!("archive.md")
        .replace("VERSION", version)
        .replace("LIBTORCH", LIBTORCH_VERSION)
        .replace("GLIBC", &format!("{major}.{minor}"))
        .replace("CXX", program.needs.cxx.as_deref().unwrap_or("any"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the files below one folder, sorted, all with the same time and without an owner.
fn pack(into: impl Write, folder: &str, files: &Files) -> Result<()> {
    let compressed = GzBuilder::new().mtime(0).write(into, Compression::default());
    let mut archive = Builder::new(compressed);
    for (name, (content, runs)) in files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(if *runs { 0o755 } else { 0o644 });
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, format!("{folder}/{name}"), content.as_slice())?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn files_are_sorted_of_one_time_and_programs_can_be_run() -> Result<()> {
        let files = Files::from([
            ("lib/a.so".to_owned(), (b"library".to_vec(), true)),
            ("README.md".to_owned(), (b"text".to_vec(), false)),
        ]);
        let packed = || -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            pack(&mut bytes, "reft-1", &files)?;
            Ok(bytes)
        };
        let bytes = packed()?;
        assert_eq!(bytes, packed()?);
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()));
        let mut seen = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut content = String::new();
            entry.read_to_string(&mut content)?;
            let header = entry.header();
            assert_eq!((header.mtime()?, header.uid()?), (0, 0));
            seen.push((entry.path()?.display().to_string(), entry.header().mode()?, content));
        }
        let expected = [("reft-1/README.md", 0o644, "text"), ("reft-1/lib/a.so", 0o755, "library")];
        assert_eq!(seen, expected.map(|(name, mode, text)| (name.into(), mode, text.into())));
        Ok(())
    }

    #[test]
    fn every_wheel_that_is_packed_brings_its_licences() -> Result<()> {
        for (wheel, pieces) in platform::current()?.wheels {
            let Ok(piece) = licence_piece(wheel.requirement) else {
                panic!("nothing is known of {}", wheel.requirement)
            };
            let stem = wheel.requirement.replace('-', "_").replace("==", "-");
            assert_eq!(piece.from, format!("{stem}.dist-info/licenses/"));
            for piece in pieces.iter().filter_map(|piece| piece.to.strip_prefix("lib/")) {
                assert_eq!(origin(platform::current()?, piece)?, wheel.requirement);
            }
        }
        Ok(())
    }
}
