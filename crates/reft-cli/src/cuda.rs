//! The GPU half of libtorch, which the linker leaves out of a program that names nothing in it.

/// Loads libtorch's CUDA library where it is, so that one binary serves machines with and without a GPU.
///
/// # Errors
/// The loader's reason: usually that the library is not there, as in the CPU layout of libtorch.
#[cfg(target_os = "linux")]
pub fn load() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};

    // SAFETY: loading runs the library's initialisers. It is a part of the libtorch that this program is linked to, found by the
    // program's own run path; they register kernels with the rest of it, and are made to run at any time before those are used.
    #[allow(unsafe_code)]
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_LAZY | RTLD_GLOBAL) };
    std::mem::forget(library.map_err(|error| error.to_string())?); // it stays to the end of the program
    Ok(())
}

/// Elsewhere libtorch has no such half.
///
/// # Errors
/// Always: there is nothing to load.
#[cfg(not(target_os = "linux"))]
pub fn load() -> Result<(), String> {
    Err("libtorch has no CUDA library on this system".to_owned())
}
