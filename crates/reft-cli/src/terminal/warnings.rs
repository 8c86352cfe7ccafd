//! Warnings of the libraries.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

use crate::terminal::note;

/// Prints warnings and remarks of this workspace's crates on stderr, each once, because an adapter may be read several times.
struct Warnings(Mutex<BTreeSet<String>>);

static WARNINGS: Warnings = Warnings(Mutex::new(BTreeSet::new()));

/// Turns on the printing of the libraries' warnings and remarks.
pub fn say_warnings() {
    if log::set_logger(&WARNINGS).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= LevelFilter::Info && metadata.target().starts_with("reft")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            let is_new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
            if is_new {
                let is_warning = record.level() <= LevelFilter::Warn;
                note(if is_warning { format!("warning: {text}") } else { text });
            }
        }
    }

    fn flush(&self) {}
}
