//! Files to look at while a run goes on: sample replies, the page, event files.

pub mod options;
pub mod page;
pub mod samples;
pub mod tensorboard;
