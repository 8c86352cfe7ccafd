//! The terminal: results on stdout, progress and messages on stderr, exit codes.

mod failure;
mod interrupt;
pub mod output;
mod progress;
mod warnings;

pub use failure::{INTERRUPTED, Told, ending, report_panics, run_and_exit};
pub use interrupt::{end_at_once, on_signal, stop_flag};
pub use output::{
    Rows, bytes, command, counted, grouped, holds, is_silent, note, percent, say_nothing, share,
    show, visible,
};
pub use progress::{TrainProgress, duration};
pub use warnings::say_warnings;
