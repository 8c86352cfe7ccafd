//! What an adapter that trains nothing has to say of checkpoints and files.

use std::collections::BTreeMap;

use reft_models::{Error, Result};
use tch::Tensor;

/// Goes back to the state of a method that has none.
pub(crate) fn load_state(method: &str, state: &BTreeMap<String, Tensor>) -> Result<()> {
    match state.keys().next() {
        None => Ok(()),
        Some(name) => Err(refuse(method, &format!("no tensor {name}"))),
    }
}

/// Refuses to save a method that has nothing to save.
pub(crate) fn save(method: &str) -> Result<()> {
    Err(refuse(method, "nothing to save"))
}

fn refuse(method: &str, what: &str) -> Error {
    Error::Adapter { reason: format!("{method} trains nothing and has {what}") }
}
