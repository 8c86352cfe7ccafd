//! NVIDIA's driver: its version, its GPUs and their memory, without libtorch.

use serde::Serialize;

/// The driver of this machine.
#[derive(Debug)]
pub struct Driver {
    /// The newest CUDA version that it supports: 1000 · major + 10 · minor.
    pub supports: i32,
    /// The GPUs that this process may use.
    pub gpus: Vec<Gpu>,
}

/// One GPU.
#[derive(Debug, Clone, Serialize)]
pub struct Gpu {
    /// Its number, as in `cuda:0`.
    pub index: usize,
    pub name: String,
    pub memory_bytes: u64,
    /// The major number of its compute capability; 0 if the driver does not tell.
    pub compute_major: i32,
}

const ABSENT: &str = "there is no NVIDIA driver: libcuda.so.1 cannot be loaded";

/// Looks for a driver and its GPUs.
///
/// # Errors
/// If there is no driver, or it does not tell its version.
#[cfg(target_os = "linux")]
pub fn probe() -> Result<Driver, String> {
    let driver = calls::Calls::open().ok_or(ABSENT)?;
    let supports = driver.version().ok_or("the NVIDIA driver does not tell its version")?;
    Ok(Driver { supports, gpus: driver.gpus() })
}

/// Used memory of this thread's current GPU in bytes, by all processes. `None` if the thread uses no GPU.
#[cfg(target_os = "linux")]
pub fn memory_in_use() -> Option<u64> {
    calls::Calls::open()?.memory_in_use()
}

/// Free memory of a GPU in bytes. `None` if there is no such GPU.
#[cfg(target_os = "linux")]
pub fn free_memory(index: usize) -> Option<u64> {
    calls::Calls::open()?.free_memory(index)
}

#[cfg(not(target_os = "linux"))]
pub fn free_memory(_index: usize) -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
pub fn probe() -> Result<Driver, String> {
    Err(ABSENT.to_owned())
}

#[cfg(not(target_os = "linux"))]
pub fn memory_in_use() -> Option<u64> {
    None
}

/// The few functions of the driver's C interface (cuda.h) that are called here. All return 0 for success.
#[cfg(target_os = "linux")]
mod calls {
    use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
    use std::ptr;

    use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};

    use super::Gpu;

    const NAME_BYTES: usize = 128;

    /// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`
    const COMPUTE_MAJOR: c_int = 75;

    pub struct Calls(Library);

    /// Calls a function of the driver; whether the function exists and succeeds.
    macro_rules! succeeds {
        ($calls:ident.$name:ident($($value:expr => $type:ty),+)) => {{
            type Function = unsafe extern "C" fn($($type),+) -> c_int;
            // SAFETY: every call here has the types of cuda.h. The functions write only through their pointer arguments, at most the given number
            // of characters. Each may be called at any time, before and after libtorch calls it.
            #[allow(unsafe_code)]
            unsafe {
                $calls.0.get::<Function>(stringify!($name).as_bytes()).is_ok_and(|call| call($($value),+) == 0)
            }
        }};
    }

    impl Calls {
        pub fn open() -> Option<Self> {
            // SAFETY: the driver's own library under its usual name; its initialisers may run at any time.
            #[allow(unsafe_code)]
            let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_LAZY | RTLD_LOCAL) };
            library.ok().map(Self)
        }

        /// The newest CUDA version that the driver supports. The call needs no `cuInit`.
        pub fn version(&self) -> Option<i32> {
            let mut version = 0;
            succeeds!(self.cuDriverGetVersion(&mut version => *mut c_int)).then_some(version)
        }

        /// Initialises the driver and lists the GPUs. The list is empty if the driver finds no GPU that this process may use.
        pub fn gpus(&self) -> Vec<Gpu> {
            let mut count = 0;
            let is_ready = succeeds!(self.cuInit(0 => c_uint))
                && succeeds!(self.cuDeviceGetCount(&mut count => *mut c_int));
            (0..count).filter(|_| is_ready).filter_map(|index| self.gpu(index)).collect()
        }

        fn gpu(&self, index: c_int) -> Option<Gpu> {
            let (mut device, mut bytes, mut name) = (0, 0usize, [0u8; NAME_BYTES]);
            let start = name.as_mut_ptr().cast::<c_char>();
            let is_told = succeeds!(self.cuDeviceGet(&mut device => *mut c_int, index => c_int))
                && succeeds!(self.cuDeviceGetName(start => *mut c_char, NAME_BYTES as c_int => c_int, device => c_int))
                && succeeds!(self.cuDeviceTotalMem_v2(&mut bytes => *mut usize, device => c_int));
            let mut major = 0;
            let has_major = succeeds!(self.cuDeviceGetAttribute(&mut major => *mut c_int, COMPUTE_MAJOR => c_int, device => c_int));
            let compute_major = if has_major { major } else { 0 };
            let name = CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned();
            is_told.then_some(Gpu {
                index: index as usize,
                name,
                memory_bytes: bytes as u64,
                compute_major,
            })
        }

        /// Used bytes of the GPU whose context is current on this thread.
        pub fn memory_in_use(&self) -> Option<u64> {
            self.memory().map(|(free, total)| total.saturating_sub(free))
        }

        /// Free and total bytes of the GPU whose context is current on this thread.
        fn memory(&self) -> Option<(u64, u64)> {
            let (mut free, mut total) = (0usize, 0usize);
            let is_told =
                succeeds!(self.cuMemGetInfo_v2(&mut free => *mut usize, &mut total => *mut usize));
            is_told.then_some((free as u64, total as u64))
        }

        /// Free bytes of any GPU. Its primary context, which libtorch uses too, is current on this thread during the call.
        pub fn free_memory(&self, index: usize) -> Option<u64> {
            let (mut device, mut context) = (0, ptr::null_mut::<c_void>());
            let is_held = succeeds!(self.cuInit(0 => c_uint))
                && succeeds!(self.cuDeviceGet(&mut device => *mut c_int, index as c_int => c_int))
                && succeeds!(self.cuDevicePrimaryCtxRetain(&mut context => *mut *mut c_void, device => c_int));
            if !is_held {
                return None;
            }
            let mut found = None;
            let mut is_let_go = true;
            if succeeds!(self.cuCtxPushCurrent_v2(context => *mut c_void)) {
                found = self.memory();
                is_let_go = succeeds!(self.cuCtxPopCurrent_v2(&mut context => *mut *mut c_void));
            }
            is_let_go &= succeeds!(self.cuDevicePrimaryCtxRelease_v2(device => c_int));
            found.filter(|_| is_let_go).map(|(free, _)| free)
        }
    }
}
