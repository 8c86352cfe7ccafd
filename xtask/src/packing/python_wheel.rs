//! `cargo xtask wheel`: the program and the module `reft_rs` as a Python wheel, for people who have torch.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zip::write::FileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::packing::contents::{self, Contents};
use crate::packing::program::{self, Needs, Program};
use crate::packing::{bill_of_materials, licences};
use crate::platform::LIBTORCH_VERSION;
use crate::workspace::Workspace;

/// The package's name. `reft` is the name of another project on the package index.
const DISTRIBUTION: &str = "reft-rs";
/// The package's name in names of files and modules.
const MODULE: &str = "reft_rs";

/// One file of the wheel.
#[derive(Debug)]
struct Entry {
    name: String,
    content: Vec<u8>,
    /// Whether it is a program.
    runs: bool,
}

/// The wheel's metadata.
#[derive(Debug)]
struct About<'a> {
    version: &'a str,
    needs: &'a Needs,
    licence: String,
    readme: &'a str,
}

/// Writes the wheel and says where it is.
///
/// # Errors
/// A failing build, or a file that cannot be read or written.
pub fn run(workspace: &Workspace) -> Result<()> {
    let program = program::build(workspace)?;
    let wheel = make(workspace, &program, &program.target()?.join("wheels"))?;
    let megabytes = fs::metadata(&wheel)?.len() as f64 / 1e6;
    eprintln!(
        "{} ({megabytes:.1} MB) is ready: pip install {0}",
        workspace.relative(&wheel).display()
    );
    Ok(())
}

/// Makes the wheel of a program, in a folder.
///
/// # Errors
/// A file that cannot be read or written.
pub fn make(workspace: &Workspace, program: &Program, folder: &Path) -> Result<PathBuf> {
    let contents = contents::read(workspace)?;
    let own = contents.own()?;
    let version = own.version.clone();
    let (major, minor) = program.needs.glibc;
    let cxx = program.needs.cxx.as_deref().unwrap_or("no symbol of libstdc++");
    eprintln!("it needs glibc {major}.{minor} and {cxx}");
    let mut entries = sources(&workspace.root().join("python").join(MODULE))?;
    entries.push(Entry {
        name: format!("{MODULE}/bin/reft"),
        content: fs::read(&program.path)
            .with_context(|| format!("cannot read {}", program.path.display()))?,
        runs: true,
    });
    let readme = workspace.root().join("python/README.md");
    let readme =
        fs::read_to_string(&readme).with_context(|| format!("cannot read {}", readme.display()))?;
    let licence = licences::expression(&own.licence, &contents);
    let about = About { version: &version, needs: &program.needs, licence, readme: &readme };
    entries.extend(described(workspace, &about, &contents)?);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{MODULE}-{version}-{}.whl", tag(&program.needs)));
    let mut packed = Cursor::new(Vec::new());
    pack(&mut packed, entries, &format!("{MODULE}-{version}.dist-info/RECORD"))?;
    File::create(&path)
        .and_then(|mut file| file.write_all(packed.get_ref()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Any Python 3, on Linux with a glibc at least as new as the program's symbols.
fn tag(needs: &Needs) -> String {
    let (major, minor) = needs.glibc;
    format!("py3-none-manylinux_{major}_{minor}_x86_64")
}

/// The module's files.
fn sources(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".py") {
            let content =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            entries.push(Entry { name: format!("{MODULE}/{name}"), content, runs: false });
        }
    }
    Ok(entries)
}

/// The folder `dist-info`, without its list of files.
fn described(workspace: &Workspace, about: &About<'_>, contents: &Contents) -> Result<Vec<Entry>> {
    let folder = format!("{MODULE}-{}.dist-info", about.version);
    let mut files = vec![
        (
            "entry_points.txt".to_owned(),
            format!("[console_scripts]\nreft = {MODULE}.launch:main\n"),
        ),
        (
            "WHEEL".to_owned(),
            format!(
                "Wheel-Version: 1.0\nGenerator: reft xtask {}\nRoot-Is-Purelib: false\nTag: {}\n",
                about.version,
                tag(about.needs)
            ),
        ),
        (
            format!("sboms/{DISTRIBUTION}.cdx.json"),
            bill_of_materials::document(about.version, contents, &[])?,
        ),
        ("licenses/THIRD-PARTY.txt".to_owned(), licences::text(contents)?),
    ];
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        let text = fs::read_to_string(workspace.root().join(name))
            .with_context(|| format!("cannot read {name}"))?;
        files.push((format!("licenses/{name}"), text));
    }
    let licence_files = files.iter().filter_map(|(name, _)| name.strip_prefix("licenses/"));
    let metadata = metadata(about, licence_files);
    files.push(("METADATA".to_owned(), metadata));
    let entry = |(name, content): (String, String)| Entry {
        name: format!("{folder}/{name}"),
        content: content.into_bytes(),
        runs: false,
    };
    Ok(files.into_iter().map(entry).collect())
}

fn metadata<'a>(about: &About<'_>, licence_files: impl Iterator<Item = &'a str>) -> String {
    let release: Vec<&str> = LIBTORCH_VERSION.split('.').take(2).collect();
    let mut text = format!(
        "Metadata-Version: 2.4\nName: {DISTRIBUTION}\nVersion: {}\nSummary: Representation fine-tuning (ReFT) of language models: the program reft, and its adapters on models of transformers\nKeywords: reft,fine-tuning,peft,interpretability\nLicense-Expression: {}\n",
        about.version, about.licence
    );
    for file in licence_files {
        text += &format!("License-File: {file}\n");
    }
    for classifier in [
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Rust",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ] {
        text += &format!("Classifier: {classifier}\n");
    }
    text += &format!(
        "Requires-Python: >=3.10\nRequires-Dist: torch=={}.*\nProvides-Extra: transformers\nRequires-Dist: transformers>=5; extra == \"transformers\"\nDescription-Content-Type: text/markdown\n\n{}",
        release.join("."),
        about.readme
    );
    if let Some(cxx) = &about.needs.cxx {
        let (major, minor) = about.needs.glibc;
        text +=
            &format!("\nThe program needs glibc {major}.{minor} and a libstdc++ with `{cxx}`.\n");
    }
    text
}

/// Writes the entries, sorted, all with the same time, and after them the list of entries with digests and sizes.
fn pack(into: impl Write + std::io::Seek, mut entries: Vec<Entry>, list: &str) -> Result<()> {
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut record = String::new();
    for Entry { name, content, .. } in &entries {
        let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(content));
        writeln!(record, "{name},sha256={digest},{}", content.len())?;
    }
    writeln!(record, "{list},,")?;
    entries.push(Entry { name: list.to_owned(), content: record.into_bytes(), runs: false });
    let mut writer = ZipWriter::new(into);
    for Entry { name, content, runs } in entries {
        // The default time is 1980, the first that a zip file can hold; the writer adds the mode of a regular file.
        let options = FileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(9))
            .last_modified_time(zip::DateTime::default())
            .unix_permissions(if runs { 0o755 } else { 0o644 });
        writer.start_file(name, options)?;
        writer.write_all(&content)?;
    }
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use zip::ZipArchive;

    use super::*;

    fn needs() -> Needs {
        Needs { glibc: (2, 34), cxx: Some("GLIBCXX_3.4.29".into()), libraries: Vec::new() }
    }

    fn packed() -> Result<Vec<u8>> {
        let entry = |name: &str, content: &[u8], runs| Entry {
            name: name.into(),
            content: content.into(),
            runs,
        };
        let entries =
            vec![entry("reft_rs/bin/reft", b"program", true), entry("reft_rs/a.py", b"abc", false)];
        let mut packed = Cursor::new(Vec::new());
        pack(&mut packed, entries, "x.dist-info/RECORD")?;
        Ok(packed.into_inner())
    }

    #[test]
    fn entries_are_sorted_listed_and_have_the_modes_of_regular_files() -> Result<()> {
        let mut archive = ZipArchive::new(Cursor::new(packed()?))?;
        let mut seen = Vec::new();
        for index in 0..archive.len() {
            let entry = archive.by_index(index)?;
            assert_eq!(entry.last_modified().year(), 1980);
            seen.push((entry.name().to_owned(), entry.unix_mode()));
        }
        let expected = [
            ("reft_rs/a.py", 0o100_644),
            ("reft_rs/bin/reft", 0o100_755),
            ("x.dist-info/RECORD", 0o100_644),
        ];
        assert_eq!(seen, expected.map(|(name, mode)| (name.to_owned(), Some(mode))));
        let mut record = String::new();
        archive.by_name("x.dist-info/RECORD")?.read_to_string(&mut record)?;
        // Digest: coreutils' sha256sum of "abc", in base64 as PEP 376 has it.
        let first = "reft_rs/a.py,sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3\n";
        assert!(record.starts_with(first), "{record}");
        assert!(record.ends_with("\nx.dist-info/RECORD,,\n"), "{record}");
        Ok(())
    }

    #[test]
    fn the_same_contents_are_packed_into_the_same_bytes() -> Result<()> {
        assert_eq!(packed()?, packed()?);
        Ok(())
    }

    #[test]
    fn the_metadata_say_what_is_needed() {
        let about = About {
            version: "0.1.0",
            needs: &needs(),
            licence: "MIT AND Zlib".into(),
            readme: "# reft-rs\n",
        };
        let text = metadata(&about, ["LICENSE-MIT"].into_iter());
        for line in [
            "Name: reft-rs",
            "Version: 0.1.0",
            "License-Expression: MIT AND Zlib",
            "License-File: LICENSE-MIT",
            "Requires-Dist: torch==2.11.*",
            "The program needs glibc 2.34 and a libstdc++ with `GLIBCXX_3.4.29`.",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} is not in {text}");
        }
        assert!(
            text.contains("text/markdown\n\n# reft-rs\n"),
            "a blank line begins the description"
        );
        assert_eq!(tag(&needs()), "py3-none-manylinux_2_34_x86_64");
    }
}
