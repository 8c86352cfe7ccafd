//! The program's allocator on Linux: mimalloc, for libtorch too.
//!
//! glibc before 2.38 does not reuse the remainders of aligned blocks, and libtorch asks for aligned blocks only: a training step took 1.5
//! times the memory of its tensors. The program exports mimalloc under the names of malloc and related functions, so libtorch calls it too.

use std::ffi::{c_int, c_long};

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 3.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds until free memory returns to the system. With mimalloc's default of 10, each step would ask for its memory again.
const DELAY: c_long = 60_000;

/// Keeps the memory that a step frees for the next step.
pub fn keep_memory_between_steps() {
    // SAFETY: the function stores a number, and may be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set(PURGE_DELAY, DELAY);
    }
}

/// Returns all free memory to the system at once, before the delay ends.
pub fn give_memory_back() {
    // SAFETY: the function may be called at any time. It collects the heap of the calling thread and abandoned memory.
    #[allow(unsafe_code)]
    unsafe {
        mi_collect(true);
    }
}

/// Releases the freed memory in this thread's heap: other threads can use it, and [`give_memory_back`] can return it to the system.
pub fn hand_over_memory() {
    // SAFETY: the function may be called at any time. It collects the heap of the calling thread.
    #[allow(unsafe_code)]
    unsafe {
        mi_collect(false);
    }
}

/// Makes MKL free its work buffers after each matrix product. By default MKL keeps them for the next product. The buffers are small, but each
/// prevents a stretch of larger freed blocks from being returned to the system, so the process keeps its peak memory.
///
/// Returns whether libtorch's MKL has such a switch. The switch has no effect after MKL's first product.
pub fn keep_no_buffers() -> bool {
    use libloading::os::unix::Library;

    type Disable = unsafe extern "C" fn() -> c_int;
    // SAFETY: `int mkl_disable_fast_mm(void)` under its name in libtorch; it sets a flag under a lock.
    #[allow(unsafe_code)]
    unsafe {
        let disable = Library::this().get::<Disable>(b"mkl_serv_disable_fast_mm\0");
        disable.map(|disable| disable()).is_ok()
    }
}

/// Puts new memory on small pages from now on. With huge pages the system also backs memory that is hardly used, so a long-running process
/// would grow. Existing memory keeps its huge pages, so reading the weights stays fast.
pub fn use_small_pages() {
    // an error means that the system has no huge pages
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(test)]
mod tests {
    /// libtorch has MKL on these processors only.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn mkl_has_a_switch_for_its_buffers() {
        assert!(super::keep_no_buffers());
    }
}
