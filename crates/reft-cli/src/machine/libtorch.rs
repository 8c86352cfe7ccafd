//! The libtorch that this process runs with, and whether the program can use it.
//!
//! Functions of libtorch change between releases under the same names, so another release may compute wrong results or crash at any later
//! moment. The program binds functions lazily (`build.rs`), so it also starts with another release and can report it.

use std::env;
use std::ffi::{CStr, OsStr};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::Serialize;

/// The releases of libtorch that tch is written for.
const NEEDED: &str = "2.11";

/// The mangled names of a libtorch function: with C++ strings from before C++11, and with C++11's. On Linux libtorch was once built with either.
const SHOW_CONFIG: [&CStr; 2] = [c"_ZN2at11show_configEv", c"_ZN2at11show_configB5cxx11Ev"];

/// The libtorch of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Libtorch {
    /// Its release, if known.
    pub version: Option<String>,
    /// Folder of its libraries, if known.
    pub directory: Option<PathBuf>,
}

impl Libtorch {
    /// The libtorch that this process has loaded.
    pub fn in_use() -> Self {
        Self { version: version(), directory: directory() }
    }
}

/// Refuses a libtorch that this program was not built for.
///
/// # Errors
/// The error names the libtorch found, the release needed, and the remedy.
pub fn check() -> Result<()> {
    let is_needed = version().is_some_and(|version| is_release(&version, NEEDED));
    if is_needed && !has_old_texts() {
        return Ok(());
    }
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    match obstacle(&Libtorch::in_use(), has_old_texts(), &named) {
        Some(obstacle) => bail!(obstacle),
        None => Ok(()),
    }
}

/// Why a libtorch cannot be used; `None` if it can, or if nothing is known of it.
fn obstacle(libtorch: &Libtorch, has_old_texts: bool, named: &OsStr) -> Option<String> {
    let found = match (&libtorch.version, &libtorch.directory) {
        (Some(version), _) if has_old_texts => {
            format!("libtorch {version}, built for C++ texts from before C++11,")
        }
        (Some(version), _) if is_release(version, NEEDED) => return None,
        (Some(version), _) => format!("libtorch {version}"),
        (None, Some(_)) => "a libtorch so old that it does not tell its release".to_owned(),
        (None, None) => return None, // linked statically, or unknown on this system
    };
    let place = libtorch.directory.as_deref();
    let shown = place.map_or(String::new(), |dir| format!(" in {}", dir.display()));
    let is_named = place.is_some_and(|dir| env::split_paths(named).any(|path| same(&path, dir)));
    let advice = if is_named {
        format!("LD_LIBRARY_PATH names that folder: take it out, or name one of libtorch {NEEDED}")
    } else {
        format!(
            "put libtorch {NEEDED} there (torch of a Python: pip install 'torch=={NEEDED}.*'), or let LD_LIBRARY_PATH name the folder of its libraries"
        )
    };
    let kind = if has_old_texts { ", built with the C++11 ABI" } else { "" };
    Some(format!("found {found}{shown}, expected libtorch {NEEDED}{kind}; {advice}"))
}

/// Whether `version` is `release` or a patch release of it.
fn is_release(version: &str, release: &str) -> bool {
    version.strip_prefix(release).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn same(path: &Path, dir: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| dir.canonicalize().is_ok_and(|dir| path == dir))
}

/// The folder from which the system has loaded `libtorch_cpu.so`.
fn directory() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    let path = Path::new(&line[line.find('/')?..]);
    path.parent().map(Path::to_owned)
}

/// The release that libtorch itself reports.
#[cfg(unix)]
fn version() -> Option<String> {
    use libloading::os::unix::Library;

    // SAFETY: `uint64_t aoti_torch_abi_version(void)` of libtorch's stable C interface: a constant, release numbers in the upper bytes.
    #[allow(unsafe_code)]
    let version = unsafe {
        type AbiVersion = unsafe extern "C" fn() -> u64;
        Library::this().get::<AbiVersion>(b"aoti_torch_abi_version\0").map(|get| get()).ok()?
    };
    let byte = |shift: u32| (version >> shift) & 0xff;
    Some(format!("{}.{}.{}", byte(56), byte(48), byte(40)))
}

#[cfg(not(unix))]
fn version() -> Option<String> {
    None
}

/// Whether libtorch was built with C++ strings from before C++11.
#[cfg(target_os = "linux")]
fn has_old_texts() -> bool {
    use std::ffi::c_void;

    use libloading::os::unix::Library;

    let program = Library::this();
    let [old, new] = SHOW_CONFIG.map(|name| {
        // SAFETY: the address is not used.
        #[allow(unsafe_code)]
        unsafe {
            program.get::<*const c_void>(name.to_bytes_with_nul()).is_ok()
        }
    });
    old && !new
}

#[cfg(not(target_os = "linux"))]
fn has_old_texts() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch(version: Option<&str>, directory: Option<&str>) -> Libtorch {
        Libtorch { version: version.map(str::to_owned), directory: directory.map(PathBuf::from) }
    }

    #[test]
    fn the_libtorch_in_use_tells_its_release_and_place_and_is_the_needed_one() -> Result<()> {
        // named here so that the linker keeps libtorch in this test program
        assert_eq!(tch::Tensor::from_slice(&[1i64]).size(), [1]);
        let libtorch = Libtorch::in_use();
        if cfg!(target_os = "linux") {
            assert_eq!(libtorch.version.as_deref(), Some("2.11.0"));
            assert!(libtorch.directory.is_some_and(|dir| dir.join("libtorch_cpu.so").is_file()));
        }
        check()
    }

    #[test]
    fn corrections_of_the_needed_release_will_do() {
        let told = |version| obstacle(&libtorch(Some(version), None), false, OsStr::new(""));
        assert_eq!(told("2.11.0"), None);
        assert_eq!(told("2.11.3"), None);
        for other in ["2.1.1", "2.110.0", "2.12.0", "3.11.0"] {
            assert!(told(other).is_some_and(|told| told.contains(other)), "{other}");
        }
    }

    #[test]
    fn another_libtorch_is_told_with_its_place_and_what_to_do() {
        let dir = env!("CARGO_MANIFEST_DIR");
        let other = libtorch(Some("2.12.0"), Some(dir));
        let told = obstacle(&other, false, OsStr::new("/nowhere")).unwrap_or_default();
        let words = ["libtorch 2.12.0 in", dir, "expected libtorch 2.11;", "torch==2.11.*"];
        assert!(words.iter().all(|word| told.contains(word)), "{told}");
        let named = format!("/nowhere:{dir}/src/..");
        let told = obstacle(&other, false, OsStr::new(&named)).unwrap_or_default();
        assert!(told.contains("LD_LIBRARY_PATH names that folder: take it out"), "{told}");
    }

    #[test]
    fn one_that_does_not_tell_its_release_is_old_if_it_was_loaded_at_all() {
        let told = obstacle(&libtorch(None, Some("/opt/lib")), false, OsStr::new(""));
        assert!(told.unwrap_or_default().contains("does not tell its release in /opt/lib"));
        assert_eq!(obstacle(&libtorch(None, None), false, OsStr::new("")), None);
    }

    #[test]
    fn texts_from_before_c_plus_plus_11_are_told() {
        let told = obstacle(&libtorch(Some("2.11.0"), None), true, OsStr::new(""));
        let told = told.unwrap_or_default();
        assert!(told.contains("before C++11"), "{told}");
        assert!(told.contains("expected libtorch 2.11, built with the C++11 ABI;"), "{told}");
    }
}
