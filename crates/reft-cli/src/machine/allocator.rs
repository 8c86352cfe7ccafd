//! The program's allocator on Linux: mimalloc, for libtorch too.
//!
//! glibc before 2.38 does not reuse the parts that it cuts off aligned blocks, and libtorch asks for aligned blocks only: a training step
//! took half as much memory again as its tensors. mimalloc is linked in under the names of malloc and its kin, which libtorch then finds here.

use std::ffi::{c_int, c_long};

use libmimalloc_sys::{mi_collect, mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 3.
const PURGE_DELAY: mi_option_t = 15;

/// Milliseconds after which free memory is given back to the system. By default 10: then what one step frees is fetched anew by the next.
const DELAY: c_long = 60_000;

/// Makes memory that a step frees stay for the next one.
pub fn keep_memory_between_steps() {
    // SAFETY: the function stores a number, and may be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_option_set(PURGE_DELAY, DELAY);
    }
}

/// Gives all memory that is free back to the system, before its time.
pub fn give_memory_back() {
    // SAFETY: the function looks through the heap of the thread that calls it and what no thread owns, and may be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_collect(true);
    }
}

/// Hands memory over that this thread has freed and keeps: other threads find it, and [`give_memory_back`] gives it to the system.
pub fn hand_over_memory() {
    // SAFETY: the function looks through the heap of the thread that calls it, and may be called at any time.
    #[allow(unsafe_code)]
    unsafe {
        mi_collect(false);
    }
}

/// Lets MKL give the memory back that a product takes while it is computed. By default it keeps that memory for the next product: small pieces
/// that stay, each amid a stretch of larger ones that do not, of which as much stays then as was ever needed at once.
///
/// Returns whether libtorch's MKL has such a switch. It does nothing once MKL has computed a product.
pub fn keep_no_buffers() -> bool {
    use libloading::os::unix::Library;

    type Disable = unsafe extern "C" fn() -> c_int;
    // SAFETY: `int mkl_disable_fast_mm(void)` under the name that it has in libtorch: it sets a flag under a lock.
    #[allow(unsafe_code)]
    unsafe {
        let disable = Library::this().get::<Disable>(b"mkl_serv_disable_fast_mm\0");
        disable.map(|disable| disable()).is_ok()
    }
}

/// Puts new memory on small pages from now on. The system makes huge pages of memory of which little is used, so the memory of a process that
/// runs for long would grow. Memory that is there keeps its pages: the weights are read at the speed of huge ones.
pub fn use_small_pages() {
    // an error says that the system has no huge pages
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
