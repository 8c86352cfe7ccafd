//! The binary `reft` as its users run it: exit codes, files, numbers against the reference systems' own.

mod bad_input;
mod before_and_after;
mod bench;
mod compare;
mod context;
mod conversations;
mod das;
mod das_reports;
mod data_files;
mod demo_model;
mod devices;
mod directories;
mod encoders;
mod export;
mod families;
mod files;
mod generation;
mod hub_server;
mod identities;
mod interpret;
mod interruption;
mod logits;
mod memory;
mod merge_adapters;
mod methods;
mod not_finite;
mod objectives;
mod plan;
mod processes;
mod push_pull;
mod recipes;
mod runs;
mod serve_client;
mod serving;
mod serving_adapters;
mod serving_operation;
mod sharing;
mod soak;
mod templates;
mod terminal;
mod training;
mod watching;
mod written_by_0_1;

/// What a test returns: any failure with its own words.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
