//! Files to watch during a run: sample replies, the page, event files.

pub mod options;
pub mod page;
pub mod samples;
pub mod tensorboard;
