//! `reft train`: an adapter learns from examples.

pub mod card;
pub mod command;
pub mod config_file;
pub mod defaults;
pub mod directory;
pub mod first_example;
pub mod head;
pub mod method;
pub mod processes;
pub mod replay;
pub mod run_options;
pub mod watch;
