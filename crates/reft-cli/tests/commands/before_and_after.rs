//! The model with its adapters beside the model without them.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::runs::{Run, args, command, run, succeed};

#[test]
fn both_sides_are_what_each_is_alone() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let (data, adapter) = (dir.path().join("data.jsonl"), dir.path().join("adapter"));
    fs::write(
        &data,
        "{\"prompt\": \"a b\", \"completion\": \"cd\"}\n{\"prompt\": \"e <i>\", \"completion\": \"f\"}\n",
    )?;
    let train =
        args!["train", "--model", model, "--data", data, "--output", adapter, "--threads", "1"];
    succeed([train, args!["--max-steps", "5", "--lr", "5e-2", "--positions", "l1"]].concat())?;

    let json = |words| -> Result<Value> { Ok(serde_json::from_str(&succeed(words)?.stdout)?) };
    let eval = args![
        "eval",
        "--model",
        model,
        "--task",
        "lm",
        "--data",
        data,
        "--json",
        "--template",
        "plain"
    ];
    let with = args!["--adapter", adapter];
    let (alone, own) = (json(eval.clone())?, json([eval.clone(), with.clone()].concat())?);
    let both = json([eval.clone(), with.clone(), args!["--compare-base"]].concat())?;
    assert_eq!((&both["loss"], &both["base"]["loss"]), (&own["loss"], &alone["loss"]));
    assert_ne!(own["loss"], alone["loss"]);

    let page = dir.path().join("page.html");
    let generate =
        args!["generate", "--model", model, "--input", data, "--max-new-tokens", "6", "--json"];
    let (alone, own) = (json(generate.clone())?, json([generate.clone(), with.clone()].concat())?);
    let both = args!["--compare-base", "--page", page];
    let both = json([generate, with.clone(), both].concat())?;
    for i in 0..2 {
        let (row, own, alone) = (&both["rows"][i], &own["rows"][i], &alone["rows"][i]);
        assert_eq!((&row["ids"], &row["base"]["ids"]), (&own["ids"], &alone["ids"]));
        assert_ne!(own["ids"], alone["ids"]);
    }
    let page = fs::read_to_string(page)?;
    assert!(page.contains("<th>base model</th><th>with the adapter</th>"), "{page}");
    assert!(page.contains("<td>e &lt;i&gt;</td>") && !page.contains("http"), "{page}");

    let one = args![
        "generate",
        "--model",
        model,
        "--prompt",
        "a b",
        "--max-new-tokens",
        "6",
        "--compare-base"
    ];
    let said = succeed([one.clone(), with].concat())?.stdout;
    assert!(
        said.starts_with("[base model]\n") && said.contains("\n[with the adapter]\n"),
        "{said}"
    );
    let refused = run(one)?;
    assert!(refused.stderr.contains("none is given; give --adapter"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn a_conversation_changes_sides_and_strengths() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let (data, adapter) = (dir.path().join("data.jsonl"), dir.path().join("mine"));
    fs::write(&data, "{\"question\": \"a b\", \"answer\": \"cd\"}\n")?;
    let train =
        args!["train", "--model", model, "--data", data, "--output", adapter, "--threads", "1"];
    succeed([train, args!["--max-steps", "5", "--lr", "5e-2"]].concat())?;
    let talk = |adapters: Vec<std::ffi::OsString>, lines: &str| -> Result<Run> {
        let words = args!["chat", "--model", model, "--max-new-tokens", "6", "--threads", "1"];
        let mut child = command([words, adapters].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().ok_or("no stdin")?.write_all(lines.as_bytes())?;
        Ok(child.wait_with_output()?.into())
    };
    let mine = || args!["--adapter", adapter];
    let (plain, own) = (talk(args![], "a b\n")?.stdout, talk(mine(), "a b\n")?.stdout);
    assert_ne!(plain, own);
    let both = talk(mine(), "/base\na b\n/reset\n/adapter mine\na b\n/reset\n/strength 0\na b\n")?;
    assert_eq!(both.stdout, format!("{plain}{own}{plain}"), "{}", both.stderr);
    let said = ["without adapters", "with mine at strength 1", "with mine at strength 0"];
    assert!(said.iter().all(|said| both.stderr.contains(said)), "{}", both.stderr);

    let lines = "/help\n/adapter other\n/strength strong\n/nothing\na b\n";
    let odd = talk(mine(), lines)?;
    assert_eq!(odd.stdout, own, "{}", odd.stderr);
    for said in
        ["/strength X", "use one of mine", "the strength is \"strong\"", "no command /nothing"]
    {
        assert!(odd.stderr.contains(said), "{said} not in {}", odd.stderr);
    }
    Ok(())
}
