//! Output directories of other runs and of other programs are not overwritten.

use std::ffi::OsString;
use std::fs;

use crate::Result;
use crate::files::{listing, losses, many_rows};
use crate::runs::{args, oracle, run};

#[test]
fn runs_are_overwritten_only_when_asked_and_foreign_directories_never() -> Result {
    let dir = tempfile::tempdir()?;
    let data = many_rows(dir.path(), 8)?;
    let (output, foreign) = (dir.path().join("run"), dir.path().join("foreign"));
    let train = |output: &std::path::Path, more: &[&str]| {
        let options = args![
            "train",
            "--model",
            oracle("tiny_llama"),
            "--data",
            data,
            "--output",
            output,
            "--rank",
            "2",
            "--threads",
            "1"
        ];
        run([options, more.iter().map(OsString::from).collect()].concat())
    };
    assert_eq!(train(&output, &["--max-steps", "3"])?.code, Some(0));
    fs::write(output.join("notes.txt"), "mine")?;
    let before = listing(&output)?;

    let refused = train(&output, &["--max-steps", "2"])?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("holds a training run already"), "{}", refused.stderr);
    assert_eq!(listing(&output)?, before);
    assert_eq!(train(&output, &["--max-steps", "2", "--overwrite"])?.code, Some(0));
    assert_eq!(losses(&output)?.len(), 2);
    assert_eq!(fs::read_to_string(output.join("notes.txt"))?, "mine", "other people's files stay");

    fs::create_dir(&foreign)?;
    fs::write(foreign.join("thesis.tex"), "precious")?;
    for flag in ["--overwrite", "--resume", "--json"] {
        let refused = train(&foreign, &["--max-steps", "1", flag])?;
        assert_eq!(refused.code, Some(1), "{flag}");
        assert!(refused.stderr.contains("thesis.tex"), "{flag}: {}", refused.stderr);
    }
    assert_eq!(listing(&foreign)?, [foreign.join("thesis.tex")]);

    let nested = dir.path().join("a/b/c");
    assert_eq!(
        train(&nested, &["--max-steps", "1", "--resume"])?.code,
        Some(0),
        "nothing to resume: anew"
    );
    assert!(nested.join("reft_config.json").exists());
    let file = train(&data, &["--max-steps", "1"])?;
    assert_eq!(file.code, Some(1));
    assert!(file.stderr.contains("cannot write into"), "{}", file.stderr);
    Ok(())
}
