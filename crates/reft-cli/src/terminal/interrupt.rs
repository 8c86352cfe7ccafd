use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::low_level;

use crate::terminal::failure::INTERRUPTED;
use crate::terminal::output::note;

/// A flag for an orderly stop. The first signal sets it and prints `notice` on stderr; the second signal ends the program.
///
/// # Errors
/// If the system refuses to tell us of signals.
pub fn stop_flag(notice: &'static str) -> Result<&'static AtomicBool> {
    static STOP: AtomicBool = AtomicBool::new(false);
    static LISTENS: AtomicBool = AtomicBool::new(false);
    if LISTENS.swap(true, Ordering::SeqCst) {
        return Ok(&STOP);
    }
    on_signal(move || {
        if STOP.swap(true, Ordering::SeqCst) {
            end_at_once();
        }
        note(notice);
    })?;
    Ok(&STOP)
}

/// Calls a function at every signal to end the program.
///
/// # Errors
/// If the system refuses to tell us of signals.
pub fn on_signal(act: impl FnMut() + Send + 'static) -> Result<()> {
    ctrlc::set_handler(act).context("cannot listen for signals")
}

/// Ends the program at once, with the exit code of an interruption. No Rust or C++ destructor runs, because computing threads still use the
/// objects.
pub fn end_at_once() {
    exit_at_once(INTERRUPTED);
}

/// Ends the process with a code. No destructor runs.
pub fn exit_at_once(code: u8) -> ! {
    low_level::exit(code.into())
}
