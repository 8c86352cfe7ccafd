use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reft_models::{ReftAdapter, ReftConfig};

use crate::combined::CombinedAdapter;
use crate::error::{Result, io_error};
use crate::full::FullAdapter;
use crate::method_config::method_option_names;
use crate::registry::AdapterKind;
use crate::{baseline_file, peft_file};

/// The files that adapters of all methods are made of.
const ALL_FILES: [&str; 8] = [
    ReftConfig::FILE_NAME,
    ReftAdapter::FILE_NAME,
    peft_file::CONFIG_FILE,
    peft_file::MODEL_FILE,
    baseline_file::CONFIG_FILE,
    baseline_file::MODEL_FILE,
    CombinedAdapter::FILE_NAME,
    FullAdapter::FILE_NAME,
];

/// The files of the adapter in a directory; of a combination, those of its parts too. The tensors' file stands first.
///
/// # Errors
/// If the directory holds no adapter.
pub fn adapter_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let names: &[&str] = match AdapterKind::of(dir)? {
        AdapterKind::Reft => &[ReftAdapter::FILE_NAME, ReftConfig::FILE_NAME],
        AdapterKind::Lora | AdapterKind::Prefix | AdapterKind::Prompt | AdapterKind::Ia3 => {
            &[peft_file::MODEL_FILE, peft_file::CONFIG_FILE]
        }
        AdapterKind::Red | AdapterKind::Bottleneck => {
            &[baseline_file::MODEL_FILE, baseline_file::CONFIG_FILE]
        }
        AdapterKind::Combined => &[CombinedAdapter::FILE_NAME],
        AdapterKind::Full => &[FullAdapter::FILE_NAME],
    };
    let mut files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    if AdapterKind::of(dir)? == AdapterKind::Combined {
        for part in CombinedAdapter::parts(dir)? {
            files.extend(adapter_files(&part)?);
        }
    }
    Ok(files)
}

/// Size of the adapter in a directory, in bytes.
///
/// # Errors
/// If the directory holds no adapter, or a file of it is missing.
pub fn adapter_bytes(dir: &Path) -> Result<u64> {
    let size = |file: &PathBuf| Ok(std::fs::metadata(file).map_err(io_error("read", file))?.len());
    adapter_files(dir)?.iter().map(size).sum()
}

/// Removes the files of adapters from a directory, whole or not, and nothing else.
///
/// # Errors
/// If a file cannot be removed.
pub fn remove_adapter(dir: &Path) -> Result<()> {
    for name in ALL_FILES {
        let file = dir.join(name);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(io_error("remove", &file)(error));
            }
            _ => {}
        }
    }
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(io_error("read", dir))?,
    };
    for entry in entries {
        let part = entry.map_err(io_error("read", dir))?.path();
        if part.is_dir() && is_part(&part) {
            remove_adapter(&part)?;
            let _ = std::fs::remove_dir(&part); // only if nothing else is in it
        }
    }
    Ok(())
}

/// Whether a directory is called as the part of a combination: `1-lora`.
fn is_part(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
    name.is_some_and(|(number, method)| {
        number.bytes().all(|digit| digit.is_ascii_digit()) && method_option_names(method).is_ok()
    })
}
