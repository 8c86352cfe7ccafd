//! Adapters in the files of other programs: which adapters have such files, and why others do not.

use std::path::{Path, PathBuf};

use reft_models::io_error;

use crate::{
    ActsOn, AdapterFiles, AdapterSummary, Error, MethodDeclaration, Result, TOKENS, adapters_in,
};

/// The files of another program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Pyreft,
    Peft,
}

impl Form {
    /// The name of its files in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pyreft => "pyreft's files",
            Self::Peft => "PEFT's files",
        }
    }

    fn of(files: AdapterFiles) -> Option<Self> {
        match files {
            AdapterFiles::Reft => Some(Self::Pyreft),
            AdapterFiles::Peft(_) => Some(Self::Peft),
            AdapterFiles::Own | AdapterFiles::Weights => None,
        }
    }
}

/// The adapter of a directory, if it is the only one there and of a method that has the form.
///
/// # Errors
/// [`Error::NotExportable`] with an alternative.
pub(crate) fn adapter_of_form(
    dir: &Path,
    form: Form,
) -> Result<(PathBuf, &'static MethodDeclaration)> {
    let adapters = adapters_in(dir)?;
    let names: Vec<&str> = adapters.iter().map(|(_, method)| method.name).collect();
    let reason = match &adapters[..] {
        [(own, method)] => match (Form::of(method.files), method.files) {
            (Some(found), _) if found == form && acts_on(own, method)? == ActsOn::All => {
                return Ok((own.clone(), method));
            }
            (Some(found), _) if found == form => {
                "it acts on the prompt's tokens alone, and PEFT would apply it to every token"
            }
            (Some(Form::Pyreft), _) => "PEFT has no edits of hidden states; use --to pyreft",
            (Some(Form::Peft), _) => "pyreft has the edits of ReFT alone; use --to peft",
            (None, AdapterFiles::Weights) => "it is all weights of a model; use --merge",
            (None, _) => {
                "neither PEFT nor pyreft has the method; its own files are read by reft alone"
            }
        },
        _ => "it is several adapters; export each of its folders alone",
    };
    let (path, what, reason) = (dir.to_owned(), names.join("+"), reason.to_owned());
    Err(Error::NotExportable { path, what, form: form.name(), reason })
}

/// The tokens that an adapter acts on.
fn acts_on(dir: &Path, method: &MethodDeclaration) -> Result<ActsOn> {
    Ok((method.read)(dir)?.options().get(&TOKENS).unwrap_or_default())
}

/// Writes the adapter of a directory for PEFT: its two files, which are PEFT's already, and its model card, without a run's other files.
///
/// # Errors
/// [`Error::NotExportable`] with an alternative; a file that is broken, or cannot be written.
pub fn export_peft(dir: &Path, output: &Path) -> Result<()> {
    let (dir, method) = adapter_of_form(dir, Form::Peft)?;
    AdapterSummary::read(&dir)?; // refuses unknown fields and truncated files
    let card = ["README.md"].into_iter().filter(|card| dir.join(card).is_file());
    for name in method.files.names().iter().copied().chain(card) {
        let (file, copy) = (dir.join(name), output.join(name));
        std::fs::copy(&file, &copy).map_err(io_error("copy", &file))?;
    }
    Ok(())
}
