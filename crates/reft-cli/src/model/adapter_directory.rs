use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use reft_methods::{AdapterFiles, adapters_in, is_adapter_file};
use reft_models::{Hub, is_hub_name};

/// The directory of an adapter that a command line names: an existing directory, or the cached files of the hub's `organisation/name`.
///
/// # Errors
/// If it is neither, or holds no adapter.
pub fn adapter_directory(named: &Path) -> Result<PathBuf> {
    let hub_name = named.to_str().filter(|name| !named.exists() && is_hub_name(name));
    let Some(name) = hub_name else {
        check_adapter_directory(named)?;
        return Ok(named.to_owned());
    };
    let fetched =
        Hub::from_env().map_err(Into::into).and_then(|hub| fetch_adapter(&hub, name, None));
    match fetched {
        Ok(snapshot) => {
            check_adapter_directory(&snapshot)?;
            Ok(snapshot)
        }
        Err(failed) => {
            let no_directory = check_adapter_directory(named).map_err(|error| error.to_string());
            bail!("{}; and as a name of the hub: {failed}", no_directory.err().unwrap_or_default())
        }
    }
}

/// Fetches the files of an adapter of the hub into its cache.
///
/// # Errors
/// If there is no such adapter, or a file of it cannot be fetched.
pub fn fetch_adapter(hub: &Hub, name: &str, revision: Option<&str>) -> Result<PathBuf> {
    let is_wanted = |file: &str| is_adapter_file(file) || file == CARD;
    Ok(hub.fetch(name, revision, &is_wanted)?)
}

/// The model card of an adapter.
const CARD: &str = "README.md";

/// Checks by its files that a directory holds an adapter; the error names its contents.
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

/// Whether pyreft has saved this directory.
pub fn is_saved_by_pyreft(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("intkey_"))
    })
}
