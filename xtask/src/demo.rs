//! `cargo xtask demo`: a chat model before and after.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;
use crate::{model, reft, setup};

/// How the demo trains.
pub const RECIPE: &str = "recipes/emoji.toml";
/// The training rows.
pub const DATA: &str = "examples/emoji.jsonl";
const FOLDER: Folder = Folder { path: "runs/demo", holds: &["emoji"], command: "demo" };
const RUN: &str = "runs/demo/emoji";

/// Prompts that are not among the training examples, as a test checks.
const HELD_OUT: [&str; 2] = ["What should I eat for dinner?", "Tell me about the ocean."];

/// Enough to tell prose from emoji.
const REPLY_TOKENS: u32 = 40;

/// Trains the demo's adapter and shows its effect.
pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    reft::build(workspace)?;
    // Relative to the top folder, where `reft` is run, so that recorded paths hold on any machine.
    let model = workspace.model();
    let model = workspace.relative(&model);
    let adapter = Path::new(RUN);
    FOLDER.begin(workspace.root())?;
    eprintln!("training on {DATA} with {RECIPE}");
    let started = Instant::now();
    reft::train(workspace, Path::new(RECIPE), model, Path::new(DATA), adapter)?;
    let seconds = started.elapsed().as_secs_f64();

    let mut out = io::stdout().lock();
    let title = format!("LoReFT on {}", model.file_name().unwrap_or_default().to_string_lossy());
    writeln!(out, "\n{title}\n{}", "=".repeat(title.len()))?;
    let metrics = fs::read_to_string(workspace.root().join(RUN).join("metrics.jsonl"))
        .with_context(|| format!("the training wrote no metrics.jsonl to {RUN}"))?;
    let (first, last) = losses(&metrics)?;
    writeln!(
        out,
        "trained in {seconds:.0} s: loss {first:.3} → {last:.3}; the adapter is in {RUN}\n"
    )?;
    writeln!(out, "{}\n", reft::inspect(workspace, adapter)?.trim_end())?;
    writeln!(
        out,
        "Greedy replies to prompts that were not trained on, the first {REPLY_TOKENS} tokens\n"
    )?;
    for prompt in HELD_OUT {
        let base = reft::reply(workspace, model, None, prompt, REPLY_TOKENS)?;
        let adapted = reft::reply(workspace, model, Some(adapter), prompt, REPLY_TOKENS)?;
        write!(out, "{}", comparison(prompt, &base, &adapted))?;
        out.flush()?;
    }
    Ok(())
}

/// The first and the last loss in the rows that a training writes, one per step.
fn losses(metrics: &str) -> Result<(f64, f64)> {
    let mut losses = Vec::new();
    for (number, line) in metrics.lines().enumerate() {
        let row: Value = serde_json::from_str(line)
            .with_context(|| format!("metrics.jsonl, line {}", number + 1))?;
        losses.extend(row["loss"].as_f64());
    }
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else {
        bail!("metrics.jsonl has no row with a loss");
    };
    Ok((*first, *last))
}

/// One prompt with both replies, lines of a reply aligned.
fn comparison(prompt: &str, base: &str, adapted: &str) -> String {
    let aligned = |reply: &str| {
        let lines = reply.lines().filter(|line| !line.trim().is_empty());
        lines.collect::<Vec<_>>().join("\n              ")
    };
    format!(
        "  prompt      {prompt}\n  base model  {}\n  with LoReFT {}\n\n",
        aligned(base),
        aligned(adapted)
    )
}

/// A folder whose files a command of xtask writes anew each time.
pub struct Folder {
    /// Relative to the top folder.
    pub path: &'static str,
    /// The files that the command writes into it.
    pub holds: &'static [&'static str],
    /// The command: `cargo xtask …`.
    pub command: &'static str,
}

impl Folder {
    /// Removes only the command's earlier files; returns the folder.
    pub fn begin(&self, root: &Path) -> Result<PathBuf> {
        let (path, command) = (self.path, self.command);
        let folder = root.join(path);
        let mark = folder.join(format!("made-by-xtask-{command}"));
        for name in self.holds {
            let own = folder.join(name);
            if !own.exists() {
                continue;
            }
            if !mark.exists() {
                bail!(
                    "{path}/{name} is there, but `cargo xtask {command}` did not make it: move it away and run this again"
                );
            }
            let remove = if own.is_dir() { fs::remove_dir_all } else { fs::remove_file };
            remove(&own).with_context(|| format!("cannot remove the earlier {path}/{name}"))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {path}"))?;
        let written = self.holds.join(", ");
        let text = format!("Every `cargo xtask {command}` writes anew: {written}.\n");
        fs::write(&mark, text).with_context(|| format!("cannot write to {path}"))?;
        Ok(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_command_made_is_removed() -> Result<()> {
        let root = tempfile::tempdir()?;
        let file = root.path().join(RUN).join("reft_config.json");
        fs::create_dir_all(root.path().join(RUN))?;
        fs::write(&file, "somebody's")?;
        assert!(FOLDER.begin(root.path()).is_err());
        assert_eq!(fs::read_to_string(&file)?, "somebody's");
        fs::remove_dir_all(root.path().join(RUN))?;
        FOLDER.begin(root.path())?;
        let beside = root.path().join(FOLDER.path).join("somebody's");
        for folder in [&root.path().join(RUN), &beside] {
            fs::create_dir(folder)?;
        }
        FOLDER.begin(root.path())?;
        assert!(!root.path().join(RUN).exists() && beside.exists());
        Ok(())
    }

    #[test]
    fn first_and_last_loss_are_read_from_the_rows() -> Result<()> {
        let rows = "{\"step\":1,\"loss\":5.5}\n{\"step\":2,\"loss\":3.25}\n{\"step\":2,\"validation_loss\":9.0}\n";
        assert_eq!(losses(rows)?, (5.5, 3.25));
        assert!(losses("").is_err());
        Ok(())
    }

    #[test]
    fn the_lines_of_a_long_reply_stay_under_each_other() {
        let text = comparison("Hi?", "one\n\ntwo", "👋");
        let expected =
            "  prompt      Hi?\n  base model  one\n              two\n  with LoReFT 👋\n\n";
        assert_eq!(text, expected);
    }

    /// The examples belong to the demo, so they are read from the project itself.
    #[test]
    fn held_out_prompts_are_not_in_the_data_of_the_demo() -> Result<()> {
        let data = fs::read_to_string(crate::workspace::Workspace::current().root().join(DATA))?;
        for prompt in HELD_OUT {
            assert!(!data.contains(prompt), "{prompt:?} is trained on");
        }
        assert!(data.lines().count() >= 12, "the demo has {} examples", data.lines().count());
        Ok(())
    }
}
