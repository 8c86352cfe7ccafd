//! Ctrl-C and termination: asked once, the program ends in good order; asked again, at once.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::failure::INTERRUPTED;
use crate::output::note;

/// A flag that the first signal sets, saying `notice` on stderr; the second one ends the program.
///
/// # Errors
/// If the system refuses to tell us of signals.
pub fn stop_flag(notice: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::SeqCst) {
            process::exit(INTERRUPTED.into());
        }
        note(notice);
    })
    .context("cannot listen for signals")?;
    Ok(stop)
}
