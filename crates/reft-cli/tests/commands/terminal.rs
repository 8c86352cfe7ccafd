//! Files, adapters and models cannot control the terminal that shows them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::runs::{Run, args, importing, oracle, run, succeed};

/// An adapter whose base model's name would set the terminal's title.
fn adapter(dir: &Path) -> Result<std::path::PathBuf> {
    let adapter = dir.join("adapter");
    succeed(importing("loreft", &adapter))?;
    let file = adapter.join("reft_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    config["base_model"]["name"] = "\u{1b}]0;owned\u{7}".into();
    fs::write(&file, config.to_string())?;
    Ok(adapter)
}

#[test]
fn errors_show_control_characters_as_what_they_are() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = adapter(dir.path())?;
    let input = dir.path().join("in.json");
    fs::write(&input, r#"{"input_ids": [[1, 2]], "\u001b[2J": 1}"#)?;
    let mut words = args!["logits", "--model", oracle("tiny_llama"), "--adapter", adapter];
    words.extend(args!["--input", input, "--output", dir.path().join("out.safetensors")]);
    let refused = run(words)?;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("\\u001b[2J"), "{}", refused.stderr);
    assert!(!refused.stderr.contains('\u{1b}'), "{}", refused.stderr);
    Ok(())
}

/// util-linux's `script` runs a program on a terminal of its own.
#[cfg(target_os = "linux")]
#[test]
fn results_on_a_terminal_show_control_characters_as_what_they_are() -> Result {
    let dir = tempfile::tempdir()?;
    let adapter = adapter(dir.path())?;
    let piped = succeed(args!["inspect", adapter])?;
    assert!(piped.stdout.contains("\u{1b}]0;owned"), "a file gets what is there: {}", piped.stdout);
    let line = format!("{} inspect {}", env!("CARGO_BIN_EXE_reft"), adapter.display());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]);
    let shown = Run::from(terminal.output()?);
    assert_eq!(shown.code, Some(0), "{} {}", shown.stdout, shown.stderr);
    assert!(shown.stdout.contains("\\u001b]0;owned\\u0007"), "{}", shown.stdout);
    assert!(!shown.stdout.contains('\u{1b}'), "{}", shown.stdout);
    Ok(())
}
