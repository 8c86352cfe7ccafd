//! The program as it is packed, and its needs of a system.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};
use serde_json::Value;

use crate::workspace::Workspace;
use crate::{command, setup};

/// Where the program looks for libtorch: beside itself in an archive, or in torch's package beside its own package in Python.
const RUN_PATH: &str = "$ORIGIN/../lib:$ORIGIN/../../torch/lib";

/// The packed program.
#[derive(Debug)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Its needs of a system.
    pub needs: Needs,
}

/// The oldest system that a program runs on: the newest version of each of its libraries' symbols.
#[derive(Debug, PartialEq, Eq)]
pub struct Needs {
    /// `GLIBC_2.34` is (2, 34).
    pub glibc: (u32, u32),
    /// `GLIBCXX_3.4.29`, as libstdc++ names its versions; `None` if the program uses no such symbol.
    pub cxx: Option<String>,
    /// The libraries that it names.
    pub libraries: Vec<String>,
}

impl Program {
    /// Cargo's folder for builds.
    ///
    /// # Errors
    /// If the program does not lie in one.
    pub fn target(&self) -> Result<&Path> {
        self.path.ancestors().nth(2).context("invariant: the program is target/dist/reft")
    }
}

/// Whether programs are packed on this system.
pub const CAN_BE_PACKED: bool =
    cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"));

/// Builds the program with the profile `dist`: stripped, with no path of this machine in it.
///
/// # Errors
/// A failing build, another system than Linux on x86-64, or a program that cannot be read.
pub fn build(workspace: &Workspace) -> Result<Program> {
    if !CAN_BE_PACKED {
        bail!(
            "programs are packed on Linux x86-64 alone, and this is {} on {}: build from source (`cargo build --release`)",
            env::consts::OS,
            env::consts::ARCH
        );
    }
    setup::ready(workspace)?;
    eprintln!("building reft for packing (the first time takes some minutes)");
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set: set one to say where Cargo keeps crates")?;
    let (home, root) = (home.display(), workspace.root().display());
    let for_cxx = format!("-ffile-prefix-map={root}=reft -ffile-prefix-map={home}=cargo");
    let for_rust = [(home, "cargo"), (root, "reft")]
        .map(|(path, name)| format!("--remap-path-prefix={path}={name}"));
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--profile", "dist", "--bin", "reft"]);
    cargo.arg("--message-format=json-render-diagnostics");
    // Instead of libtorch/cargo.toml's flags, which name a folder of this machine as the run path.
    cargo.env_remove("RUSTFLAGS");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", for_rust.join("\x1f"));
    cargo.env("REFT_RUN_PATH", RUN_PATH).env("CXXFLAGS", &for_cxx).env("CFLAGS", &for_cxx);
    read(executable(&command::output(&mut cargo)?)?)
}

/// Builds the program as `cargo test` does: after the tests nothing has to be compiled.
///
/// # Errors
/// As [`build`].
pub fn build_for_tests(workspace: &Workspace) -> Result<Program> {
    let mut cargo = workspace.cargo();
    // for the whole workspace, as for the tests: for a single crate Cargo would choose other features
    cargo.args(["build", "--workspace", "--message-format=json-render-diagnostics"]);
    read(executable(&command::output(&mut cargo)?)?)
}

fn read(path: PathBuf) -> Result<Program> {
    let needs = needs(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?)
        .with_context(|| format!("cannot read the symbols of {}", path.display()))?;
    Ok(Program { path, needs })
}

/// The program in Cargo's messages, one JSON object a line.
fn executable(messages: &str) -> Result<PathBuf> {
    let of_reft = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_reft = message["target"]["name"] == "reft";
        Some(PathBuf::from(message["executable"].as_str().filter(|_| is_reft)?))
    };
    messages.lines().find_map(of_reft).context("Cargo built no program `reft`")
}

/// Reads the needs of an ELF file.
///
/// # Errors
/// If the file is no ELF file, or needs no glibc.
pub fn needs(elf: &[u8]) -> Result<Needs> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, elf)?;
    let mut names = Vec::new();
    if let Some((mut libraries, link)) = sections.gnu_verneed(endian, elf)? {
        let strings = sections.strings(endian, elf, link)?;
        while let Some((_, mut versions)) = libraries.next()? {
            while let Some(version) = versions.next()? {
                names.push(String::from_utf8_lossy(version.name(endian, strings)?).into_owned());
            }
        }
    }
    let mut libraries = Vec::new();
    for section in sections.iter() {
        let Some((entries, link)) = section.dynamic(endian, elf)? else { continue };
        let strings = sections.strings(endian, elf, link)?;
        for entry in entries.iter().filter(|entry| entry.d_tag.get(endian) == DT_NEEDED) {
            let name = strings.get(u32::try_from(entry.d_val.get(endian))?);
            libraries.push(String::from_utf8_lossy(name.ok().context("no name")?).into_owned());
        }
    }
    let newest = |prefix: &str| {
        let numbers = |name: &String| version(name.strip_prefix(prefix)?);
        names.iter().filter_map(numbers).max()
    };
    let glibc = match newest("GLIBC_").as_deref() {
        Some([major, minor, ..]) => (*major, *minor),
        _ => bail!("it needs no version of glibc"),
    };
    let cxx = newest("GLIBCXX_").map(|numbers| {
        let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
        format!("GLIBCXX_{}", numbers.join("."))
    });
    Ok(Needs { glibc, cxx, libraries })
}

const DT_NEEDED: u64 = object::elf::DT_NEEDED as u64;

/// `3.4.29` as numbers, which compare as versions do; `None` for `PRIVATE`.
fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(version("2.34") > version("2.4"));
        assert!(version("3.4.9") < version("3.4.29"));
        assert_eq!(version("PRIVATE"), None);
    }

    #[test]
    fn the_program_is_found_among_what_cargo_says() -> Result<()> {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"build-script-build"},"executable":"/t/build"}
{"reason":"compiler-artifact","target":{"name":"reft"},"executable":"/t/dist/reft"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages)?, Path::new("/t/dist/reft"));
        assert!(executable("{}").is_err());
        Ok(())
    }

    /// Oracle: `objdump -p`, of the same program.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_program_needs_is_what_objdump_says() -> Result<()> {
        use std::process::Command;

        let own = env::current_exe()?;
        let found = needs(&fs::read(&own)?)?;
        let said = command::output(Command::new("objdump").arg("-p").arg(&own))?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let newest = words.iter().filter_map(|word| version(word.strip_prefix("GLIBC_")?)).max();
        assert_eq!(newest.as_deref(), Some(&[found.glibc.0, found.glibc.1][..]));
        let named: Vec<&str> =
            words.windows(2).filter(|pair| pair[0] == "NEEDED").map(|pair| pair[1]).collect();
        assert_eq!(found.libraries, named);
        assert!(named.contains(&"libc.so.6"), "{named:?}");
        Ok(())
    }
}
