//! NVIDIA's driver: its version, its GPUs and their memory, without libtorch.

use serde::Serialize;

/// The driver of this machine.
#[derive(Debug)]
pub struct Driver {
    /// The newest version of CUDA that it supports, 1000 times the major one and 10 times the minor one.
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
}

const ABSENT: &str = "there is no NVIDIA driver: libcuda.so.1 cannot be loaded";

/// Looks for a driver and what it drives.
///
/// # Errors
/// Why there is none, or what it answers.
#[cfg(target_os = "linux")]
pub fn probe() -> Result<Driver, String> {
    let driver = calls::Calls::open().ok_or(ABSENT)?;
    let supports = driver.version().ok_or("the NVIDIA driver does not tell its version")?;
    // it fails if there is no GPU, and if this process may use none
    let gpus = if driver.init() { driver.gpus() } else { Vec::new() };
    Ok(Driver { supports, gpus })
}

/// Memory of the GPU that is in use at this moment, by this process and others. None where there is no GPU in use.
#[cfg(target_os = "linux")]
pub fn memory_in_use() -> Option<u64> {
    calls::Calls::open()?.memory_in_use()
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
    use std::ffi::{CStr, c_char, c_int, c_uint};

    use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL, Symbol};

    use super::Gpu;

    const NAME_BYTES: usize = 128;

    pub struct Calls(Library);

    impl Calls {
        pub fn open() -> Option<Self> {
            // SAFETY: the driver's own library, under the name that every CUDA program loads it by; its initialisers are made for that.
            #[allow(unsafe_code)]
            let library = unsafe { Library::open(Some("libcuda.so.1"), RTLD_LAZY | RTLD_LOCAL) };
            library.ok().map(Self)
        }

        /// `CUresult cuDriverGetVersion(int *)`; it needs no initialisation.
        pub fn version(&self) -> Option<i32> {
            let mut version = 0;
            let get: Symbol<unsafe extern "C" fn(*mut c_int) -> c_int> =
                self.symbol(b"cuDriverGetVersion\0")?;
            // SAFETY: the function's type is that of cuda.h; it writes one int.
            #[allow(unsafe_code)]
            let status = unsafe { get(&mut version) };
            (status == 0).then_some(version)
        }

        /// `CUresult cuInit(unsigned)`
        pub fn init(&self) -> bool {
            let init: Option<Symbol<unsafe extern "C" fn(c_uint) -> c_int>> =
                self.symbol(b"cuInit\0");
            // SAFETY: the function's type is that of cuda.h; 0 is the only flag. libtorch may call it too, before or after.
            #[allow(unsafe_code)]
            init.is_some_and(|init| unsafe { init(0) } == 0)
        }

        /// `cuDeviceGetCount`, `cuDeviceGet`, `cuDeviceGetName` and `cuDeviceTotalMem_v2`, after [`Self::init`].
        pub fn gpus(&self) -> Vec<Gpu> {
            let mut count = 0;
            let get_count: Option<Symbol<unsafe extern "C" fn(*mut c_int) -> c_int>> =
                self.symbol(b"cuDeviceGetCount\0");
            // SAFETY: the function's type is that of cuda.h; it writes one int.
            #[allow(unsafe_code)]
            let status = get_count.map(|get_count| unsafe { get_count(&mut count) });
            if status != Some(0) {
                return Vec::new();
            }
            (0..count).filter_map(|index| self.gpu(index)).collect()
        }

        fn gpu(&self, index: c_int) -> Option<Gpu> {
            type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
            type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
            type TotalMem = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
            let get: Symbol<Get> = self.symbol(b"cuDeviceGet\0")?;
            let get_name: Symbol<GetName> = self.symbol(b"cuDeviceGetName\0")?;
            let total_mem: Symbol<TotalMem> = self.symbol(b"cuDeviceTotalMem_v2\0")?;
            let (mut device, mut bytes) = (0, 0);
            let mut name: [c_char; NAME_BYTES] = [0; NAME_BYTES];
            // SAFETY: the functions' types are those of cuda.h. They write one int, at most NAME_BYTES characters with a zero at the
            // end, and one size.
            #[allow(unsafe_code)]
            let (done, name) = unsafe {
                let done = get(&mut device, index) == 0
                    && get_name(name.as_mut_ptr(), NAME_BYTES as c_int, device) == 0
                    && total_mem(&mut bytes, device) == 0;
                name[NAME_BYTES - 1] = 0;
                (done, CStr::from_ptr(name.as_ptr()))
            };
            let name = name.to_string_lossy().into_owned();
            done.then_some(Gpu { index: index as usize, name, memory_bytes: bytes as u64 })
        }

        /// `CUresult cuMemGetInfo_v2(size_t *free, size_t *total)`, of the GPU whose context is the thread's.
        pub fn memory_in_use(&self) -> Option<u64> {
            type GetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
            let get: Symbol<GetInfo> = self.symbol(b"cuMemGetInfo_v2\0")?;
            let (mut free, mut total) = (0usize, 0usize);
            // SAFETY: the function's type is that of cuda.h; it writes two sizes, or fails where there is no context.
            #[allow(unsafe_code)]
            let status = unsafe { get(&mut free, &mut total) };
            (status == 0).then_some(total.saturating_sub(free) as u64)
        }

        fn symbol<T>(&self, name: &[u8]) -> Option<Symbol<T>> {
            // SAFETY: every caller names the function's own type, from cuda.h.
            #[allow(unsafe_code)]
            unsafe {
                self.0.get(name).ok()
            }
        }
    }
}
