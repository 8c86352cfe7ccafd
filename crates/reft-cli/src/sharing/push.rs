use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_methods::{AdapterSummary, adapter_files};
use reft_models::{DirectoryLock, Hub, Push, PushFile, io_error, read_text, write_text};
use serde_json::json;

use crate::model::check_adapter_directory;
use crate::sharing::leaks::path_of_this_machine;
use crate::sharing::model_card::{CARD, license_of, with_license};
use crate::terminal::{bytes, counted, note, output};

/// Publish an adapter on the hub
///
/// The adapter's files and its README.md become one commit, so no file is visible before all are uploaded. A run's options, metrics,
/// checkpoints and samples are not sent unless --all is given. Files that name paths of this machine are refused. A token with write access is
/// taken from HF_TOKEN, or from the place where the hub's own program keeps it; it is never shown.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft push runs/emoji org/emoji --license apache-2.0 --dry-run
  reft push runs/emoji org/emoji --license apache-2.0 --private --message 'Trained on more examples'")]
pub struct PushArgs {
    /// Directory of the adapter, or of the run that made it
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Repository on the hub; created if it does not exist
    #[arg(value_name = "ORG/NAME")]
    name: String,
    /// If the repository is created, make it private
    #[arg(long)]
    private: bool,
    /// Branch; created if it does not exist
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    revision: String,
    /// Message of the commit [default: the method and reft's version]
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Licence to write into a README.md without one, by the hub's name for it, such as apache-2.0
    #[arg(long, value_name = "NAME")]
    license: Option<String>,
    /// Send every file of the directory, not only the adapter's
    #[arg(long)]
    all: bool,
    /// Show the files that would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &PushArgs) -> Result<()> {
    let directory = &args.directory;
    check_adapter_directory(directory)?;
    let summary = AdapterSummary::read(directory)?;
    check_card(args)?;
    let mut files = if args.all { everything(directory)? } else { adapter_files(directory)? };
    let card = directory.join(CARD);
    if !files.contains(&card) {
        files.push(card);
    }
    files.sort();
    let files =
        files.iter().map(|file| PushFile::of(directory, file)).collect::<Result<Vec<_>, _>>()?;
    for PushFile { path, file, .. } in &files {
        if let Some(found) = path_of_this_machine(file)? {
            bail!(
                "{path} names {found}, a path of this machine; take it out of the file, or leave the file out"
            );
        }
    }
    let total: u64 = files.iter().map(|file| file.size).sum();
    note(format!("{} to {}, branch {}:", directory.display(), args.name, args.revision));
    for PushFile { path, size, .. } in &files {
        note(format!("  {path}  {}", bytes(*size)));
    }
    note(format!("  {}, {}", counted(files.len(), "file"), bytes(total)));
    let listed: Vec<_> =
        files.iter().map(|file| json!({"path": file.path, "bytes": file.size})).collect();
    if args.dry_run {
        let json = json!({"name": args.name, "files": listed, "sent": false});
        return output::result(args.json, &json, || output::line("nothing was sent: --dry-run"));
    }
    let hub = Hub::from_env()?;
    let Some(token) = hub.token() else {
        bail!(
            "there is no token to write with; set HF_TOKEN, or log in with the hub's own program"
        );
    };
    let default = format!("{} adapter, by reft {}", summary.method, env!("CARGO_PKG_VERSION"));
    let push = Push {
        name: args.name.clone(),
        private: args.private,
        branch: args.revision.clone(),
        message: args.message.clone().unwrap_or(default),
        files,
    };
    let pushed = hub
        .push(&push, &token, &mut |text| note(text))
        .context("nothing was published: a commit is made whole or not at all")?;
    for path in &pushed.ignored {
        note(format!("note: the repository's own rules leave {path} out"));
    }
    let json = json!({"name": args.name, "files": listed, "sent": true, "url": pushed.url});
    output::result(args.json, &json, || {
        let at = pushed.url.as_deref().map(|url| format!(": {url}")).unwrap_or_default();
        output::line(format!("{} is published{at}", args.name))
    })
}

/// Checks that there is a card with a licence. Writes the licence of `--license` into a card without one.
fn check_card(args: &PushArgs) -> Result<()> {
    let path = args.directory.join(CARD);
    if !path.is_file() {
        bail!(
            "{} has no {CARD}, the model card; write one, with `license: NAME` between two lines of --- at its top",
            args.directory.display()
        );
    }
    let text = read_text(&path)?;
    match (license_of(&text), &args.license) {
        (Some(own), Some(license)) if own != license => {
            bail!("{CARD} says license: {own}, and --license {license}; change one of the two")
        }
        (Some(_), _) => Ok(()),
        (None, Some(license)) if args.dry_run => {
            note(format!("license: {license} would be written into {CARD}"));
            Ok(())
        }
        (None, Some(license)) => Ok(write_text(&path, &with_license(&text, license))?),
        (None, None) => {
            bail!("{CARD} names no licence; give one with --license, such as apache-2.0")
        }
    }
}

/// Every file below a directory, except links, the lock file and names that begin with a dot.
fn everything(directory: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let path = entry.map_err(io_error("read", &folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == DirectoryLock::FILE_NAME || name.starts_with('.') {
                continue;
            }
            if path.is_symlink() {
                note(format!("note: {} is a link to elsewhere and is left out", path.display()));
                continue;
            }
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}
