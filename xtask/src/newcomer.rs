//! `cargo xtask newcomer`: the steps of a user who has only a table of questions and answers.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::demo::Folder;
use crate::workspace::Workspace;
use crate::{command, model, reft, setup};

/// The user's table, and questions that are not in it.
const TABLE: &str = "examples/pirate.csv";
const UNSEEN: &str = "examples/pirate-unseen.csv";
const FOLDER: Folder = Folder {
    path: "runs/newcomer",
    holds: &["questions.csv", "pirate", "before-and-after.html"],
    command: "newcomer",
};

/// How every answer of the table begins.
const MANNER: &str = "Ahoy!";
/// Least number of the twelve unseen questions that must be answered in this manner.
const LEAST: usize = 11;

/// Questions of fact that are not in the table, each with a word of its answer.
const CONTROLS: &str = "examples/controls.csv";
/// The adapter may answer at most this many fewer control questions right than the base model.
const MOST_LOST: usize = 2;

/// Trains on the table without a recipe, looks at the page, talks, compares with the base model, and looks at the files to be shared.
pub fn run(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    model::ready(workspace)?;
    reft::build(workspace)?;
    let started = Instant::now();
    let folder = FOLDER.begin(workspace.root())?;
    let copied = |from: &str, to: &str| {
        let from = workspace.root().join(from);
        fs::copy(&from, folder.join(to)).with_context(|| format!("cannot copy {}", from.display()))
    };
    copied(TABLE, "questions.csv")?;
    let model = workspace.model();
    let here = |subcommand: &str| {
        let mut program = reft::program(workspace);
        program.arg(subcommand).arg("--model").arg(&model);
        program
    };
    let (table, adapter) = (folder.join("questions.csv"), folder.join("pirate"));
    let mut train = here("train");
    train.arg("--data").arg(&table).arg("--output").arg(&adapter);
    command::run_as_progress(&mut train)?;
    for file in ["report.html", "README.md", "metrics.jsonl", "train.toml"] {
        if fs::metadata(adapter.join(file)).map_or(0, |file| file.len()) == 0 {
            bail!("the run left no {file} in {}", adapter.display());
        }
    }
    let minutes = |what: &str| eprintln!("{what}: {:.0} s", started.elapsed().as_secs_f64());
    minutes("trained");

    let mut out = io::stdout().lock();
    let mut chat = here("chat");
    chat.arg("--adapter").arg(&adapter).args(["--max-new-tokens", "32"]);
    let said = "What is the capital of France?\n/reset\n/base\nWhat is the capital of France?\n";
    let talk = spoken(&mut chat, said)?;
    writeln!(out, "\nchat, then without the adapter\n{}", indented(&talk))?;
    if !talk.starts_with(MANNER) {
        bail!("the first reply of the conversation does not begin with {MANNER:?}");
    }

    let unseen = workspace.root().join(UNSEEN);
    let mut generate = here("generate");
    generate.arg("--adapter").arg(&adapter).arg("--input").arg(unseen);
    generate.arg("--page").arg(folder.join("before-and-after.html"));
    generate.args(["--compare-base", "--max-new-tokens", "32", "--json"]);
    let replies = Replies::read(&command::output(&mut generate)?)?;
    let shown = replies.shown(&unseen_questions(workspace.root())?);
    writeln!(out, "questions that are not in the table\n{}", indented(&shown))?;
    let in_manner = |text: &String| text.trim_start().starts_with(MANNER);
    let count = replies.with.iter().filter(|text| in_manner(text)).count();
    let before = replies.base.iter().filter(|text| in_manner(text)).count();
    writeln!(
        out,
        "{count} of {} in the table's manner, {before} without the adapter",
        replies.with.len()
    )?;
    if count < LEAST || before > 0 {
        bail!("expected at least {LEAST} with the adapter, and none without it");
    }

    let facts = controls(workspace.root())?;
    let mut control = here("generate");
    control.arg("--adapter").arg(&adapter).arg("--input").arg(workspace.root().join(CONTROLS));
    control.args(["--compare-base", "--max-new-tokens", "32", "--json"]);
    let replies = Replies::read(&command::output(&mut control)?)?;
    let right = |texts: &[String]| -> Vec<bool> {
        texts.iter().zip(&facts).map(|(text, fact)| says(text, fact)).collect()
    };
    let (before, after) = (right(&replies.base), right(&replies.with));
    let count = |right: &[bool]| right.iter().filter(|is_right| **is_right).count();
    let kept = before.iter().zip(&after).filter(|(before, after)| **before && **after).count();
    writeln!(
        out,
        "of {} facts that are not in the table {} are right with the adapter, {} without it; {kept} of these are still right",
        facts.len(),
        count(&after),
        count(&before)
    )?;
    if count(&after) + MOST_LOST < count(&before) {
        bail!("the model has forgotten more than {MOST_LOST} facts");
    }

    let mut push = reft::program(workspace);
    push.arg("push").arg(&adapter).args(["me/pirate", "--license", "apache-2.0", "--dry-run"]);
    let listed = command::output(&mut push)?;
    let card = fs::read_to_string(adapter.join("README.md"))?;
    writeln!(out, "\nwhat would be shared\n{}\n{}", indented(&listed), indented(&card))?;
    if card.contains(&*workspace.root().to_string_lossy()) {
        bail!("the model card names a path of this machine");
    }
    minutes("all of it");
    Ok(())
}

/// Replies of `reft generate --compare-base --json`.
struct Replies {
    base: Vec<String>,
    with: Vec<String>,
}

impl Replies {
    fn read(json: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(json).context("the replies are not JSON")?;
        let rows = json["rows"].as_array().context("the replies have no rows")?;
        let all = |pointer: &str| {
            let text = |row: &Value| Some(row.pointer(pointer)?.as_str()?.to_owned());
            rows.iter()
                .map(|row| text(row).with_context(|| format!("a row has no {pointer}: {row}")))
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self { base: all("/base/text")?, with: all("/text")? })
    }

    fn shown(&self, questions: &[String]) -> String {
        let rows = questions.iter().zip(&self.base).zip(&self.with);
        let row = |((question, base), with): ((&String, &String), &String)| {
            let base = base.trim().lines().next().unwrap_or_default();
            format!("{question}\n  base  {base}\n  with  {}\n", with.trim())
        };
        rows.map(row).collect()
    }
}

/// The questions of the table that are not trained on.
fn unseen_questions(root: &Path) -> Result<Vec<String>> {
    let table =
        fs::read_to_string(root.join(UNSEEN)).with_context(|| format!("cannot read {UNSEEN}"))?;
    let question = |row: &str| {
        let (question, _) = row.split_once('?').with_context(|| format!("{row} asks nothing"))?;
        Ok(format!("{question}?"))
    };
    table.lines().skip(1).map(question).collect()
}

/// The words that answer the control questions.
fn controls(root: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string(root.join(CONTROLS))
        .with_context(|| format!("cannot read {CONTROLS}"))?;
    let fact = |row: &str| {
        let (_, fact) = row.split_once("?,").with_context(|| format!("{row} asks nothing"))?;
        Ok(fact.to_owned())
    };
    table.lines().skip(1).map(fact).collect()
}

/// Whether a word stands in a text, in any case.
fn says(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|own| own.eq_ignore_ascii_case(word))
}

/// The output of a program that reads a text from its stdin.
fn spoken(command: &mut Command, said: &str) -> Result<String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    stdin.write_all(said.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the conversation failed ({}); its own messages are above", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_with_those_of_the_base_model() -> Result<()> {
        let json = r#"{"rows": [{"text": "Ahoy!", "base": {"text": "Hello.\nYes"}}]}"#;
        let shown = Replies::read(json)?.shown(&["Hi?".to_owned()]);
        assert_eq!(shown, "Hi?\n  base  Hello.\n  with  Ahoy!\n");
        assert!(Replies::read(r#"{"rows": [{"text": "Ahoy!"}]}"#).is_err());
        Ok(())
    }

    #[test]
    fn a_fact_is_said_by_a_word_and_not_by_a_part_of_one() {
        assert!(says("Ahoy! Paris, matey.", "paris"));
        assert!(!says("It is nice.", "ice"));
    }

    /// The files belong to the command, so they are read from the project itself.
    #[test]
    fn unseen_questions_are_not_in_the_table() -> Result<()> {
        let root = Workspace::current().root().to_owned();
        let table = fs::read_to_string(root.join(TABLE))?;
        assert_eq!(controls(&root)?.len(), 21);
        let unseen = unseen_questions(&root)?;
        assert_eq!((table.lines().count(), unseen.len()), (61, 12));
        for question in unseen {
            assert!(!table.contains(&question), "{question} is in the table");
        }
        Ok(())
    }
}
