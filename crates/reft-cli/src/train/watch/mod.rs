//! What is written while a run goes on, for people to look at: sample replies, the page, event files.

pub mod options;
pub mod page;
pub mod samples;
pub mod tensorboard;
