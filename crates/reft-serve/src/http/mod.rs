//! HTTP: routes, access, answers, and the log.

pub(crate) mod adapters;
pub(crate) mod api_keys;
pub(crate) mod connections;
pub(crate) mod edits;
pub(crate) mod generate;
pub(crate) mod guard;
pub(crate) mod log_entry;
pub(crate) mod page;
pub(crate) mod routes;
pub(crate) mod server;
pub(crate) mod shared;
