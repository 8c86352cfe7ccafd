//! NVIDIA's NCCL (nccl.h, of version 2), and the functions of the CUDA driver (cuda.h) around it. Both are loaded when the program runs, so
//! it builds and runs without CUDA.
//!
//! Conditions of every block: a function is called with the types of its header, which have not changed since NCCL 2.0 and CUDA 11; pointers
//! are to variables that live until the call returns, or to a GPU's memory that lives until [`Communicator::is_done`] says so.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use tch::{Device, Kind, Tensor};

/// NCCL's library, by the name that libtorch's GPU half is linked with.
const LIBRARY: &str = "libnccl.so.2";

/// NCCL's folder in the Python packages, relative to the folder of libtorch's libraries.
const BESIDE_TORCH: &str = "../../nvidia/nccl/lib";

/// The driver's library.
const DRIVER: &str = "libcuda.so.1";

/// libtorch's default stream, the only one in use here. The GPU does all work in its order.
const STREAM: *mut c_void = ptr::null_mut();

/// `ncclSum`
const SUM: c_int = 0;

/// `CUDA_ERROR_NOT_READY`
const NOT_READY: c_int = 600;

/// `ncclUniqueId`
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; 128]);

/// NCCL and the driver.
#[derive(Debug)]
pub(crate) struct Nccl {
    library: Library,
    driver: Library,
}

/// Calls a function of a library, which returns 0 or an error code.
macro_rules! call {
    ($library:expr, $name:ident($($value:expr => $type:ty),* $(,)?)) => {{
        type Function = unsafe extern "C" fn($($type),*) -> c_int;
        let name = concat!(stringify!($name), "\0");
        // SAFETY: see the module.
        unsafe {
            match $library.get::<Function>(name.as_bytes()) {
                Ok(function) => Ok(function($($value),*)),
                Err(error) => Err(format!("{} is not there: {error}", stringify!($name))),
            }
        }
    }};
}

/// Connections of this process's GPU with the GPUs of the others. All processes call the same functions in the same order.
#[derive(Debug)]
pub(crate) struct Communicator {
    nccl: Arc<Nccl>,
    handle: *mut c_void,
    context: *mut c_void,
    index: usize,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time, and the driver's contexts belong to no thread.
unsafe impl Send for Communicator {}

impl Nccl {
    /// Loads NCCL: the library that libtorch's GPU half has loaded, or the one in the Python packages beside it.
    ///
    /// # Errors
    /// The missing library, the places searched, and advice.
    pub(crate) fn open() -> Result<Self, String> {
        let mut places = vec![PathBuf::from(LIBRARY)];
        if let Some(torch) = folder_of("libtorch_cuda.so") {
            places.extend([torch.join(LIBRARY), torch.join(BESIDE_TORCH).join(LIBRARY)]);
        }
        let mut refusals = Vec::new();
        for place in &places {
            match load(place) {
                Ok(library) => {
                    let driver = load(Path::new(DRIVER));
                    let driver =
                        driver.map_err(|error| format!("there is no NVIDIA driver: {error}"))?;
                    return Ok(Self { library, driver });
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        Err(format!(
            "{LIBRARY} cannot be loaded ({}); it comes with the CUDA build of Python's torch, in nvidia/nccl/lib: let LD_LIBRARY_PATH name that folder, or leave NCCL out with --reduce gloo",
            refusals.join("; ")
        ))
    }

    /// The identity of a GPU, the same in every process: 32 digits.
    pub(crate) fn identity(&self, index: usize) -> Result<String, String> {
        let (mut device, mut uuid) = (0, [0u8; 16]);
        self.told(call!(self.driver, cuInit(0 => c_uint)))?;
        self.told(
            call!(self.driver, cuDeviceGet(&mut device => *mut c_int, index as c_int => c_int)),
        )?;
        let start = uuid.as_mut_ptr();
        self.told(call!(self.driver, cuDeviceGetUuid_v2(start => *mut u8, device => c_int)))?;
        Ok(hexadecimal(&uuid))
    }

    /// The id by which the processes of a run find each other. One process makes it.
    pub(crate) fn unique_id(&self) -> Result<String, String> {
        let mut id = UniqueId([0; 128]);
        self.checked(call!(self.library, ncclGetUniqueId(&mut id => *mut UniqueId)))?;
        Ok(hexadecimal(&id.0))
    }

    /// Connects a GPU with the GPUs of the other processes. It waits for them without a time limit, so it is called in a thread of its own.
    pub(crate) fn connect(
        self: &Arc<Self>,
        id: &str,
        (rank, world): (usize, usize),
        index: usize,
    ) -> Result<Communicator, String> {
        let id = UniqueId(bytes_of(id).ok_or("another process's message is no id of NCCL's")?);
        let (mut device, mut context) = (0, ptr::null_mut::<c_void>());
        self.told(call!(self.driver, cuInit(0 => c_uint)))?;
        self.told(
            call!(self.driver, cuDeviceGet(&mut device => *mut c_int, index as c_int => c_int)),
        )?;
        let retained = call!(self.driver, cuDevicePrimaryCtxRetain(&mut context => *mut *mut c_void, device => c_int));
        self.told(retained)?; // libtorch's own context, which lives until the program ends
        let mut made = Communicator { nccl: self.clone(), handle: ptr::null_mut(), context, index };
        let (handle, world, rank) = (&raw mut made.handle, world as c_int, rank as c_int);
        made.in_context(|nccl| {
            let begun = call!(nccl.library, ncclCommInitRank(handle => *mut *mut c_void, world => c_int, id => UniqueId, rank => c_int));
            nccl.checked(begun)
        })?;
        Ok(made)
    }

    /// Turns an error code of NCCL into an error.
    fn checked(&self, answer: Result<c_int, String>) -> Result<(), String> {
        let code = answer?;
        if code == 0 {
            return Ok(());
        }
        type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
        // SAFETY: see the module; the text is a constant of the library's.
        let text = unsafe {
            let function = self.library.get::<ErrorString>(b"ncclGetErrorString\0");
            function
                .ok()
                .map(|function| CStr::from_ptr(function(code)).to_string_lossy().into_owned())
        };
        Err(format!("NCCL: {} (code {code})", text.unwrap_or_else(|| "it failed".to_owned())))
    }

    /// Turns an error code of the driver into an error.
    fn told(&self, answer: Result<c_int, String>) -> Result<(), String> {
        match answer? {
            0 => Ok(()),
            code => Err(format!("the NVIDIA driver answers with code {code}")),
        }
    }
}

impl Communicator {
    /// The GPU that tensors are to be on.
    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.index)
    }

    /// Enqueues the sum of a tensor over all processes, in place, on the GPU's stream.
    pub(crate) fn sum(&self, tensor: &mut Tensor) -> Result<(), String> {
        let (start, n, kind) = self.memory_of(tensor)?;
        self.in_context(|nccl| {
            nccl.checked(call!(nccl.library, ncclAllReduce(
                start => *const c_void, start => *mut c_void, n => usize, kind => c_int, SUM => c_int,
                self.handle => *mut c_void, STREAM => *mut c_void,
            )))
        })
    }

    /// Enqueues the broadcast of the first process's tensor, in place, on the GPU's stream.
    pub(crate) fn broadcast(&self, tensor: &mut Tensor) -> Result<(), String> {
        let (start, n, kind) = self.memory_of(tensor)?;
        self.in_context(|nccl| {
            nccl.checked(call!(nccl.library, ncclBroadcast(
                start => *const c_void, start => *mut c_void, n => usize, kind => c_int, 0 => c_int,
                self.handle => *mut c_void, STREAM => *mut c_void,
            )))
        })
    }

    /// Whether the GPU has done all that it was given.
    pub(crate) fn is_done(&self) -> Result<bool, String> {
        self.in_context(|nccl| match call!(nccl.driver, cuStreamQuery(STREAM => *mut c_void))? {
            0 => Ok(true),
            NOT_READY => Ok(false),
            code => Err(format!("the NVIDIA driver answers with code {code}")),
        })
    }

    /// Aborts the operations that the GPU waits for.
    pub(crate) fn abort(mut self) {
        let handle = std::mem::replace(&mut self.handle, ptr::null_mut());
        // a failure is ignored: the run ends anyway
        let _ = self.in_context(|nccl| {
            nccl.checked(call!(nccl.library, ncclCommAbort(handle => *mut c_void)))
        });
    }

    /// Where a tensor is, how many numbers it has, and NCCL's name for their kind.
    fn memory_of(&self, tensor: &Tensor) -> Result<(*mut c_void, usize, c_int), String> {
        let kind = match tensor.kind() {
            Kind::Int64 => 4,
            Kind::Float => 7,
            Kind::Double => 8,
            other => return Err(format!("a message of kind {other:?}")),
        };
        if tensor.device() != self.device() || !tensor.is_contiguous() {
            return Err(format!("a message that is not in one piece on cuda:{}", self.index));
        }
        Ok((tensor.data_ptr(), tensor.numel(), kind))
    }

    /// Calls `act` while the GPU's context is current on this thread.
    fn in_context<T>(&self, act: impl FnOnce(&Nccl) -> Result<T, String>) -> Result<T, String> {
        let (nccl, mut context) = (&*self.nccl, self.context);
        nccl.told(call!(nccl.driver, cuCtxPushCurrent_v2(context => *mut c_void)))?;
        let done = act(nccl);
        nccl.told(call!(nccl.driver, cuCtxPopCurrent_v2(&mut context => *mut *mut c_void)))?;
        done
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            let handle = self.handle;
            // a failure is ignored
            let _ = self.in_context(|nccl| {
                nccl.checked(call!(nccl.library, ncclCommDestroy(handle => *mut c_void)))
            });
        }
    }
}

fn load(path: &Path) -> Result<Library, String> {
    // SAFETY: NVIDIA's own libraries, under the names that every program with CUDA loads them by; their initialisers are made for that.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) };
    library.map_err(|error| error.to_string())
}

/// The folder that a library of this process was loaded from.
fn folder_of(library: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(&format!("/{library}")))?;
    Some(Path::new(&line[line.find('/')?..]).parent()?.to_owned())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of [`hexadecimal`].
fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let pairs = text.as_bytes().chunks_exact(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.map(byte).collect::<Option<_>>()?;
    bytes.try_into().ok().filter(|_| text.len() == 2 * N)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id: [u8; 128] = std::array::from_fn(|i| (i * 37 % 256) as u8);
        let text = hexadecimal(&id);
        assert_eq!((text.len(), bytes_of(&text)), (256, Some(id)));
        assert_eq!(bytes_of::<128>(&text[2..]), None);
        assert_eq!(bytes_of::<128>(&text.replace('1', "x")), None);
        assert_eq!(bytes_of::<1>("0a1"), None);
    }

    /// With NCCL, the oracle is a run on a GPU (tools/gpu-check.sh).
    #[test]
    fn a_library_that_is_not_there_is_named_with_what_to_do() {
        let Err(told) = Nccl::open() else { return };
        let is_driver = told.contains("there is no NVIDIA driver") && told.contains(DRIVER);
        let is_library =
            [LIBRARY, "nvidia/nccl/lib", "--reduce gloo"].iter().all(|w| told.contains(w));
        assert!(is_driver || is_library, "{told}");
    }
}
