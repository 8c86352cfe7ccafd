//! The CUDA library of libtorch: where it is, and why it is or is not used.
//!
//! The program refers to none of its symbols, so the linker leaves it out. It is loaded when a command may use a GPU, so that one binary
//! serves machines with and without a GPU.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::machine::cuda_driver::{self, Driver};
use crate::machine::libtorch::Libtorch;

/// The library's name.
const LIBRARY: &str = "libtorch_cuda.so";

/// The state of CUDA on this machine.
#[derive(Debug)]
pub struct Cuda {
    /// Release and folder of the libtorch in use.
    pub libtorch: Libtorch,
    /// Its CUDA library, or why it was not loaded.
    pub library: Result<Loaded, NotLoaded>,
    /// The system's driver and GPUs.
    pub driver: Result<Driver, String>,
}

/// The CUDA library of libtorch.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    /// CUDA version that it was built for: 1000 · major + 10 · minor.
    pub built_for: Option<i32>,
}

/// Why libtorch's CUDA library is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub enum NotLoaded {
    /// It was not found.
    Absent,
    /// It was found, and the system's loader refused it.
    Refused { path: PathBuf, reason: String },
}

/// Loads libtorch's CUDA library, if there is one. Later calls return the result of the first.
pub fn load() -> &'static Cuda {
    static FOUND: OnceLock<Cuda> = OnceLock::new();
    FOUND.get_or_init(|| {
        let libtorch = Libtorch::in_use();
        let library = find(libtorch.directory.as_deref());
        silence_warnings();
        Cuda { libtorch, library, driver: cuda_driver::probe() }
    })
}

impl Cuda {
    /// Why no GPU can be used; `None` if one can.
    pub fn obstacle(&self) -> Option<String> {
        let version = self.libtorch.version.as_deref().unwrap_or("2.11.0");
        Some(match (&self.library, &self.driver) {
            (Err(NotLoaded::Absent), _) => {
                let place = self.libtorch.directory.as_ref();
                let beside = place.map_or(String::new(), |dir| format!(" in {}", dir.display()));
                format!(
                    "this libtorch is the CPU half: there is no {LIBRARY} beside it{beside}, nor on LD_LIBRARY_PATH; `cargo xtask setup --cuda` fetches it, or let LD_LIBRARY_PATH name torch/lib of a Python with torch {version}"
                )
            }
            (Err(NotLoaded::Refused { path, reason }), _) => refusal(path, reason, version),
            (_, Err(reason)) => reason.clone(),
            (Ok(Loaded { built_for: Some(needed), .. }), Ok(Driver { supports, .. }))
                if supports < needed =>
            {
                let (found, needed) = (release(*supports), release(*needed));
                format!(
                    "the NVIDIA driver supports CUDA {found}, and this libtorch needs {needed}; install a newer driver"
                )
            }
            (_, Ok(driver)) if driver.gpus.is_empty() => {
                let visible = std::env::var("CUDA_VISIBLE_DEVICES");
                let why = visible.map(|gpus| format!(": CUDA_VISIBLE_DEVICES is {gpus:?}"));
                format!("the NVIDIA driver shows no GPU{}", why.unwrap_or_default())
            }
            _ => return None,
        })
    }

    /// Whether `--device auto` should say why it takes the CPU: there is a GPU, or a CUDA library that could not be loaded.
    pub fn is_worth_a_note(&self) -> bool {
        let has_gpu = self.driver.as_ref().is_ok_and(|driver| !driver.gpus.is_empty());
        has_gpu || matches!(self.library, Err(NotLoaded::Refused { .. }))
    }
}

/// The loader's error with advice.
fn refusal(path: &Path, reason: &str, version: &str) -> String {
    let path = path.display();
    let other_release = ["undefined symbol", "symbol lookup", "version `"];
    if other_release.iter().any(|words| reason.contains(words)) {
        return format!(
            "{path} is of another release than libtorch {version}, which this program runs with ({reason}); use the libraries of torch {version}"
        );
    }
    format!(
        "{path} cannot be loaded ({reason}); the nvidia packages that torch {version} asks for must be complete, as `cargo xtask setup --cuda` fetches them"
    )
}

/// A CUDA version as text, such as 12.8.
pub fn release(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The existing files of the library, best first.
fn candidates(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let beside =
        libtorch.iter().flat_map(|dir| [dir.join(LIBRARY), dir.join("../cuda").join(LIBRARY)]);
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let named: Vec<PathBuf> = std::env::split_paths(&named).map(|dir| dir.join(LIBRARY)).collect();
    beside.chain(named).filter(|path| path.is_file()).collect()
}

#[cfg(target_os = "linux")]
fn find(libtorch: Option<&Path>) -> Result<Loaded, NotLoaded> {
    let found = candidates(libtorch).into_iter().next();
    let path = found.clone().unwrap_or_else(|| LIBRARY.into());
    match open(&path) {
        Ok(built_for) => Ok(Loaded { path, built_for }),
        Err(_) if found.is_none() => Err(NotLoaded::Absent),
        Err(reason) => Err(NotLoaded::Refused { path, reason }),
    }
}

/// The program uses CUDA on Linux only.
#[cfg(not(target_os = "linux"))]
fn find(_libtorch: Option<&Path>) -> Result<Loaded, NotLoaded> {
    Err(NotLoaded::Absent)
}

/// Loads the library until the program ends, and resolves all its symbols. Returns the CUDA version that it was built for.
#[cfg(target_os = "linux")]
fn open(path: &Path) -> Result<Option<i32>, String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    // SAFETY: loading runs the library's initialisers. The library is part of the libtorch that this program is linked to. Its initialisers
    // register kernels with the rest of libtorch, and may run at any time before those kernels are used. A library of another release lacks
    // symbols, so RTLD_NOW refuses it before its initialisers run.
    #[allow(unsafe_code)]
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| error.to_string())?;
    let mut version = 0;
    // SAFETY: `cudaError_t cudaRuntimeGetVersion(int *)` of the CUDA runtime, which the library brings along; it writes one int.
    #[allow(unsafe_code)]
    let status = unsafe {
        type GetVersion = unsafe extern "C" fn(*mut i32) -> i32;
        library.get::<GetVersion>(b"cudaRuntimeGetVersion\0").map(|get| get(&mut version))
    };
    std::mem::forget(library); // stays loaded until the program ends
    Ok(status.is_ok_and(|status| status == 0).then_some(version))
}

/// Allows TF32 in matrix products of f32 tensors: 10 bits of each factor's fraction instead of 23. Returns whether libtorch has the switch.
///
/// tch has no call for it. These are the functions of ATen/Context.h behind `torch.backends.cuda.matmul.allow_tf32`, under their mangled
/// names on Linux.
#[cfg(target_os = "linux")]
pub fn allow_tf32() -> bool {
    use std::ffi::c_void;

    use libloading::os::unix::Library;

    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    type SetAllow = unsafe extern "C" fn(*mut c_void, bool);
    let program = Library::this();
    // SAFETY: `at::Context & at::globalContext()` and `void at::Context::setAllowTF32CuBLAS(bool)`; a reference is passed as a pointer,
    // and `this` as the first argument. The context lives to the end of the program.
    #[allow(unsafe_code)]
    unsafe {
        let context = program.get::<GlobalContext>(b"_ZN2at13globalContextEv\0");
        let set_allow = program.get::<SetAllow>(b"_ZN2at7Context18setAllowTF32CuBLASEb\0");
        match (context, set_allow) {
            (Ok(context), Ok(set_allow)) => {
                set_allow(context(), true);
                true
            }
            _ => false,
        }
    }
}

/// Lets libtorch write errors only, unless TORCH_CPP_LOG_LEVEL sets the level.
///
/// libtorch reads that variable in Python only. At its default level it prints a warning each time that tch switches autocast.
#[cfg(target_os = "linux")]
fn silence_warnings() {
    use libloading::os::unix::Library;

    const ERROR: i32 = 2; // c10/util/Logging.h
    if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_some() {
        return;
    }
    // SAFETY: `int FLAGS_caffe2_log_level` of libc10, a variable that lives to the end of the program. It is set before any thread has
    // called libtorch, except for its version.
    #[allow(unsafe_code)]
    unsafe {
        if let Ok(level) = Library::this().get::<*mut i32>(b"FLAGS_caffe2_log_level\0") {
            **level = ERROR;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn silence_warnings() {}

#[cfg(not(target_os = "linux"))]
pub fn allow_tf32() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::cuda_driver::Gpu;

    fn cuda(library: Result<i32, NotLoaded>, driver: Result<(i32, usize), &str>) -> Cuda {
        let gpu = Gpu { index: 0, name: "GPU".into(), memory_bytes: 24 << 30, compute_major: 8 };
        Cuda {
            libtorch: Libtorch {
                version: Some("2.11.0".into()),
                directory: Some("/opt/lib".into()),
            },
            library: library
                .map(|version| Loaded { path: "/opt/lib/x.so".into(), built_for: Some(version) }),
            driver: driver
                .map(|(supports, n)| Driver { supports, gpus: vec![gpu; n] })
                .map_err(str::to_owned),
        }
    }

    #[test]
    fn every_obstacle_says_what_is_there_and_what_to_do() {
        let refused = |reason: &str| NotLoaded::Refused {
            path: "/x/libtorch_cuda.so".into(),
            reason: reason.into(),
        };
        let cases: [(Cuda, &[&str]); 6] = [
            (
                cuda(Err(NotLoaded::Absent), Ok((13000, 1))),
                &["CPU half", "/opt/lib", "setup --cuda"],
            ),
            (
                cuda(Err(refused("undefined symbol: _ZN2at3fooEv")), Ok((13000, 1))),
                &["/x/libtorch_cuda.so", "another release than libtorch 2.11.0", "_ZN2at3fooEv"],
            ),
            (
                cuda(Err(refused("libcudnn.so.9: cannot open shared object file")), Ok((13000, 1))),
                &["cannot be loaded", "libcudnn.so.9", "nvidia packages"],
            ),
            (cuda(Ok(13000), Err("there is no NVIDIA driver")), &["no NVIDIA driver"]),
            (
                cuda(Ok(13000), Ok((12080, 1))),
                &["supports CUDA 12.8", "needs 13.0", "newer driver"],
            ),
            (cuda(Ok(13000), Ok((13010, 0))), &["shows no GPU"]),
        ];
        for (cuda, words) in cases {
            let obstacle = cuda.obstacle().unwrap_or_default();
            for word in words {
                assert!(obstacle.contains(word), "{word:?} is not in {obstacle:?}");
            }
        }
        assert_eq!(cuda(Ok(13000), Ok((13000, 1))).obstacle(), None);
    }

    #[test]
    fn only_who_has_a_gpu_or_a_library_for_one_is_told_of_the_cpu() {
        assert!(!cuda(Err(NotLoaded::Absent), Err("no driver")).is_worth_a_note());
        assert!(!cuda(Ok(13000), Err("no driver")).is_worth_a_note());
        assert!(cuda(Err(NotLoaded::Absent), Ok((13000, 1))).is_worth_a_note());
    }
}
