//! Every command uses an adapter with the template of its training.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::conversations::{PLAIN, chat_model};
use crate::files::losses;
use crate::runs::{Run, args, command, run, succeed};

/// Rows of each form, with the template that they are trained with.
fn forms() -> [(&'static str, Vec<Value>, &'static str); 4] {
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let talk =
        |q: &str, a: &str| json!({"messages": [message("user", q), message("assistant", a)]});
    [
        (
            "prompts",
            vec![
                json!({"prompt": "a b", "completion": "c"}),
                json!({"prompt": "d", "completion": "ef"}),
            ],
            "plain",
        ),
        (
            "instructions",
            vec![
                json!({"instruction": "a", "input": "b", "output": "c"}),
                json!({"instruction": "d", "output": "ef"}),
            ],
            "chat",
        ),
        (
            "questions",
            vec![
                json!({"question": "a b", "answer": "c"}),
                json!({"question": "d", "answer": "ef"}),
            ],
            "chat",
        ),
        ("talks", vec![talk("a b", "c"), talk("d", "ef")], "chat"),
    ]
}

fn write(path: PathBuf, rows: &[Value]) -> Result<PathBuf> {
    let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(&path, lines.concat())?;
    Ok(path)
}

/// One step on all rows at a rate that changes nothing.
fn train(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Result<Run> {
    let mut args =
        args!["train", "--model", model, "--data", data, "--output", output, "--threads", "1"];
    args.extend(args!["--max-steps", "1", "--batch-size", "2", "--lr", "1e-9"]);
    args.extend(more.iter().map(Into::into));
    let trained = run(args)?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    Ok(trained)
}

fn eval(model: &Path, data: &Path, more: &[&str]) -> Result<(f64, String)> {
    let mut args =
        args!["eval", "--model", model, "--task", "lm", "--data", data, "--json", "--threads", "1"];
    args.extend(more.iter().map(Into::into));
    let Run { stdout, stderr, .. } = succeed(args)?;
    let found: Value = serde_json::from_str(&stdout)?;
    Ok((found["loss"].as_f64().ok_or("no loss")?, stderr))
}

fn prompt_tokens(model: &Path, more: &[&str]) -> Result<(Value, String)> {
    let mut args =
        args!["generate", "--model", model, "--prompt", "a b", "--max-new-tokens", "1", "--json"];
    args.extend(more.iter().map(Into::into));
    let Run { stdout, stderr, .. } = succeed(args)?;
    let found: Value = serde_json::from_str(&stdout)?;
    Ok((found["rows"][0]["prompt_tokens"].clone(), stderr))
}

#[test]
fn every_command_frames_rows_as_the_adapter_was_trained() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    for method in ["loreft", "lora", "full"] {
        let forms =
            forms().into_iter().filter(|(name, ..)| method == "loreft" || *name == "questions");
        for (name, rows, template) in forms {
            let data = write(dir.path().join(format!("{name}.jsonl")), &rows)?;
            let output = dir.path().join(format!("{name}-{method}"));
            let trained = train(&model, &data, &output, &["--method", method])?;
            let said = format!("template {template}: ");
            assert!(trained.stderr.contains(&said), "{said} not in {}", trained.stderr);
            let loss: f64 = losses(&output)?[0].1.parse()?;
            let adapter = output.to_string_lossy();
            let (own, stderr) = eval(&model, &data, &["--adapter", &adapter])?;
            let said = format!("template {template}, as the adapter was trained");
            assert!(stderr.contains(&said), "{stderr}");
            let (asked, _) = eval(&model, &data, &["--template", template])?;
            assert!(
                (own - loss).abs() < 1e-5 && (asked - loss).abs() < 1e-5,
                "{loss} {own} {asked}"
            );

            let (found, _) = prompt_tokens(&model, &["--adapter", &adapter])?;
            assert_eq!(found, prompt_tokens(&model, &["--template", template])?.0, "{name}");
            let inspected = succeed(args!["inspect", output, "--json"])?.stdout;
            let inspected: Value = serde_json::from_str(&inspected)?;
            assert_eq!(inspected["trained_text"]["template"], template, "{inspected}");
            let card = std::fs::read_to_string(output.join("README.md"))?;
            assert!(card.contains(&format!("| template | {template} |")), "{card}");
        }
    }
    Ok(())
}

#[test]
fn another_template_is_warned_of() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [(_, prompts, _), (_, instructions, _), ..] = forms();
    let data = write(dir.path().join("data.jsonl"), &instructions)?;
    let (chat, plain) = (dir.path().join("chat"), dir.path().join("plain"));
    train(&model, &data, &chat, &[])?;
    let adapter = chat.to_string_lossy();
    let warning = "warning: the adapter was trained with template chat, and this is template plain";
    let with = ["--adapter", &adapter, "--template", "plain"];
    assert!(eval(&model, &data, &with)?.1.contains(warning));
    let (tokens, said) = prompt_tokens(&model, &with)?;
    assert!(said.contains(warning), "{said}");
    assert_eq!(tokens, prompt_tokens(&model, &["--template", "plain"])?.0);

    let data = write(dir.path().join("prompts.jsonl"), &prompts)?;
    train(&model, &data, &plain, &[])?;
    let mut talk = command(args!["chat", "--model", model, "--adapter", plain]);
    let talked = talk.stdin(std::process::Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&talked.stderr);
    assert!(said.contains("trained with template plain, and this is template chat"), "{said}");
    let both = ["--adapter", &adapter, "--adapter", &plain.to_string_lossy()];
    let said = prompt_tokens(&model, &both)?.1;
    assert!(said.contains("trained with templates chat and plain"), "{said}");

    // an adapter that is trained on keeps its template
    let on = dir.path().join("on");
    let trained = train(&model, &data, &on, &["--init-adapter", &adapter])?;
    assert!(trained.stderr.contains("template chat: framed by"), "{}", trained.stderr);
    Ok(())
}

#[test]
fn variables_of_the_template_are_kept_with_it() -> Result {
    let dir = tempfile::tempdir()?;
    let marked = PLAIN.replace("assistant\n' }}", "assistant\n' ~ (level or '') }}");
    assert_ne!(marked, PLAIN);
    let model = chat_model(dir.path(), &marked)?;
    let [_, (_, rows, _), ..] = forms();
    let data = write(dir.path().join("data.jsonl"), &rows)?;
    let output = dir.path().join("run");
    train(&model, &data, &output, &["--chat-var", "level=high"])?;
    let adapter = output.to_string_lossy();
    let (own, said) = prompt_tokens(&model, &["--adapter", &adapter])?;
    assert_eq!(own, prompt_tokens(&model, &["--chat", "--chat-var", "level=high"])?.0);
    assert_ne!(own, prompt_tokens(&model, &["--chat"])?.0);
    assert!(!said.contains("warning"), "{said}");
    let other = ["--adapter", &adapter, "--chat-var", "level=x"];
    let (_, said) = prompt_tokens(&model, &other)?;
    assert!(said.contains("trained with other variables"), "{said}");
    Ok(())
}

#[test]
fn the_first_example_is_shown_as_it_is_trained() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let [(_, prompts, _), (_, instructions, _), ..] = forms();
    let data = write(dir.path().join("prompts.jsonl"), &prompts)?;
    let more = ["--positions", "f1+l1", "--no-shuffle"];
    let trained = train(&model, &data, &dir.path().join("run"), &more)?;
    let said = "the first example, row 1, «learned», ‹edited›:\n‹a› ‹b›«c</s>»\n";
    assert!(trained.stderr.contains(said), "{}", trained.stderr);
    let data = write(dir.path().join("instructions.jsonl"), &instructions)?;
    let trained = train(&model, &data, &dir.path().join("lora"), &["--method", "lora"])?;
    // the tests' tokenizer prints the token of a newline as <nowhere>
    let said = "the first example, row 1, «learned»:\n<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\n«c<|im_end|>»\n";
    let shown = trained.stderr.replace("<nowhere>", "\n");
    assert!(shown.contains(said), "{}", trained.stderr);
    Ok(())
}
