use std::path::Path;

use anyhow::{Result, bail};
use reft_methods::{AdapterFiles, adapters_in};

/// Checks by its files that a directory holds an adapter, and says what it holds instead.
///
/// # Errors
/// If it does not.
pub fn check_adapter_directory(dir: &Path) -> Result<()> {
    let Err(refused) = adapters_in(dir) else { return Ok(()) };
    let name = dir.display();
    let [reft, peft] = [AdapterFiles::Reft, AdapterFiles::Peft("")].map(|files| files.names()[1]);
    if !dir.is_dir() {
        bail!("{name} is no directory; expected an adapter directory with {reft} or {peft}");
    }
    if is_saved_by_pyreft(dir) {
        bail!(
            "{name} holds no {reft}; it looks like one saved by pyreft: turn it into one of ours with `reft import --from pyreft`"
        );
    }
    if dir.join("checkpoint").exists() {
        bail!(
            "{name} holds no adapter, but an unfinished training run: finish it with `reft train --resume`"
        );
    }
    Err(refused.into())
}

/// Whether a directory is one that pyreft has saved.
pub fn is_saved_by_pyreft(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("intkey_"))
    })
}
