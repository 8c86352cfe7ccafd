//! Work on libtorch's own threads. These keep spinning for a while after their work, so another thread pool would have to wait for their
//! cores.

use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

type Region = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, u32, u32);

/// The OpenMP call that runs a function on its threads, if this process has loaded GNU OpenMP.
fn region() -> Option<Region> {
    static REGION: OnceLock<Option<Region>> = OnceLock::new();
    *REGION.get_or_init(|| {
        let program = libloading::os::unix::Library::this();
        // SAFETY: this is the symbol's signature in GNU OpenMP, whose binary interface is stable.
        #[allow(unsafe_code)]
        let symbol = unsafe { program.get::<Region>(b"GOMP_parallel\0") };
        symbol.ok().map(|symbol| *symbol)
    })
}

/// Ends the idle threads that shared this thread's work, libtorch's too. The next work starts them again.
///
/// GNU OpenMP counts the threads of every thread that shares its work. Where they are more than the cores, a thread sleeps as soon as it waits,
/// and waking it takes longer than a small product. So a thread that hands a model on to another one ends its own.
pub fn release_threads() {
    type Pause = unsafe extern "C" fn(u32) -> i32;
    const SOFT: u32 = 1;
    let program = libloading::os::unix::Library::this();
    // SAFETY: this is the function's signature in OpenMP 5.0. It is called outside of parallel regions, and ends threads that wait.
    #[allow(unsafe_code)]
    unsafe {
        if let Ok(pause) = program.get::<Pause>(b"omp_pause_resource_all\0") {
            pause(SOFT);
        }
    }
}

/// Does each piece of work once, on several threads. A thread takes the next piece when it has finished one, and has its own scratch.
pub(crate) fn share_out<W: Iterator + Send, S>(
    threads: usize,
    work: &Mutex<W>,
    scratch: impl Fn() -> S + Sync,
    act: impl Fn(&mut S, W::Item) + Sync,
) {
    in_parallel(threads, &|| {
        let mut scratch = scratch();
        let next = || work.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(piece) = next() {
            act(&mut scratch, piece);
        }
    });
}

/// Runs `work` on several threads at once and waits for all of them.
fn in_parallel<F: Fn() + Sync>(threads: usize, work: &F) {
    extern "C" fn call<F: Fn() + Sync>(work: *mut c_void) {
        // SAFETY: it is the reference that `in_parallel` passes, which outlives the region.
        #[allow(unsafe_code)]
        unsafe {
            (*work.cast::<F>())();
        }
    }
    match region() {
        _ if threads < 2 => work(),
        Some(region) => {
            // SAFETY: `call::<F>` gets a pointer to an `F` and only reads it; the region ends before this returns. A panic of `work` ends the
            // process, as it cannot pass through C.
            #[allow(unsafe_code)]
            unsafe {
                region(call::<F>, std::ptr::from_ref(work).cast_mut().cast(), threads as u32, 0);
            }
        }
        None => {
            rayon::scope(|scope| {
                for _ in 1..threads {
                    scope.spawn(|_| work());
                }
                work();
            });
        }
    }
}
