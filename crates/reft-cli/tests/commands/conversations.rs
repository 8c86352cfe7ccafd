//! Conversations as rows: common shapes, the template's variables, which turns are learned.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::Result;
use crate::runs::{Run, args, oracle, run, succeed};

/// The tiny model with a tokenizer of single characters, whose vocabulary is smaller than the model's, and a chat template.
pub fn chat_model(dir: &Path, template: &str) -> Result<PathBuf> {
    let model = dir.join("model");
    fs::create_dir_all(&model)?;
    for file in ["config.json", "model.safetensors"] {
        fs::copy(oracle("tiny_llama").join(file), model.join(file))?;
    }
    let letters = (' '..='~').enumerate().map(|(id, letter)| (letter.to_string(), json!(id + 4)));
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"].into_iter().enumerate();
    let special = special.map(|(id, text)| (text.to_owned(), json!(id)));
    let vocab: serde_json::Map<String, Value> =
        special.chain(letters).chain([("\n".to_owned(), json!(100))]).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false},
    });
    fs::write(model.join("tokenizer.json"), tokenizer.to_string())?;
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<nowhere>", "chat_template": template,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]});
    fs::write(model.join("tokenizer_config.json"), config.to_string())?;
    Ok(model)
}

/// A template that frames each message.
pub const PLAIN: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
                     {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const ROWS: [&str; 6] = [
    r#"{"instruction": "a", "input": null, "output": "b"}"#,
    r#"{"instruction": "a", "input": "", "output": "b", "text": "full"}"#,
    r#"{"messages": [{"role": "user", "content": "hi", "tool_calls": null, "name": null}, {"role": "assistant", "content": "yo", "tool_calls": null}]}"#,
    r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], "parallel_tool_calls": false, "tools": []}"#,
    r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "yo"}]}"#,
    r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "1", "content": "3"}, {"role": "assistant", "content": "yo"}]}"#,
];

fn train(model: &Path, data: &Path, output: &Path, more: &[&str]) -> Result<Run> {
    let mut args = args![
        "train",
        "--model",
        model,
        "--data",
        data,
        "--output",
        output,
        "--max-steps",
        "1",
        "--json"
    ];
    args.extend(more.iter().map(Into::into));
    run(args)
}

fn eval(model: &Path, data: &Path, more: &[&str]) -> Result<Value> {
    let mut args = args!["eval", "--model", model, "--task", "lm", "--data", data, "--json"];
    args.extend(more.iter().map(Into::into));
    Ok(serde_json::from_str(&succeed(args)?.stdout)?)
}

#[test]
fn rows_of_common_shapes_are_learned_and_measured() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    for (i, (row, tokens)) in ROWS.into_iter().zip([2, 2, 3, 3, 3, 3]).enumerate() {
        let data = dir.path().join(format!("{i}.jsonl"));
        fs::write(&data, row)?;
        let trained = train(&model, &data, &dir.path().join(format!("run{i}")), &[])?;
        assert_eq!(trained.code, Some(0), "{row}\n{}", trained.stderr);
        let is_said = trained.stderr.contains("does not mention tool_calls");
        assert_eq!(is_said, i == 5, "{}", trained.stderr);
        assert_eq!(eval(&model, &data, &[])?["target_tokens"], tokens, "{row}");
    }
    let data = dir.path().join("more.jsonl");
    fs::write(&data, r#"{"instruction": "a", "weather": "c", "output": "b", "source": "here"}"#)?;
    let trained = train(&model, &data, &dir.path().join("more"), &[])?;
    assert!(trained.stderr.contains("more.jsonl: not used: weather\n"), "{}", trained.stderr);
    Ok(())
}

#[test]
fn all_turns_of_a_conversation_are_learned_if_that_is_asked_for() -> Result {
    let dir = tempfile::tempdir()?;
    let model = chat_model(dir.path(), PLAIN)?;
    let data = dir.path().join("data.jsonl");
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages =
        [turn("user", "a"), turn("assistant", "bcd"), turn("user", "e"), turn("assistant", "fg")];
    fs::write(&data, json!({"messages": messages}).to_string())?;
    let found = |more: &[&str]| -> Result<(Value, Value)> {
        let found = eval(&model, &data, more)?;
        Ok((found["target_tokens"].clone(), found["examples"].clone()))
    };
    assert_eq!(found(&[])?, (json!(3), json!(1)));
    assert_eq!(found(&["--turns", "all"])?, (json!(7), json!(2)));
    let output = dir.path().join("run");
    let trained = train(&model, &data, &output, &["--turns", "all", "--batch-size", "2"])?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let options = fs::read_to_string(output.join("train.toml"))?;
    assert!(options.contains("turns = \"all\""), "{options}");
    let resumed = train(&model, &data, &output, &["--resume", "--turns", "last"])?;
    assert!(resumed.stderr.contains("turns was \"all\""), "{}", resumed.stderr);
    Ok(())
}

#[test]
fn variables_of_the_template_are_given_by_flags_and_files() -> Result {
    let dir = tempfile::tempdir()?;
    let template = PLAIN.replace(
        "{{ '<|im_start|>assistant\n' }}",
        "{{ '<|im_start|>assistant\n' ~ ('' if enable_thinking is false else 'think ' ~ level) }}",
    );
    assert_ne!(template, PLAIN);
    let model = chat_model(dir.path(), &template)?;
    let prompt_tokens = |more: &[&str]| -> Result<Value> {
        let mut args = args![
            "generate",
            "--model",
            model,
            "--chat",
            "--prompt",
            "hi",
            "--max-new-tokens",
            "1",
            "--json"
        ];
        args.extend(more.iter().map(Into::into));
        let found: Value = serde_json::from_str(&succeed(args)?.stdout)?;
        Ok(found["rows"][0]["prompt_tokens"].clone())
    };
    let without = prompt_tokens(&["--chat-var", "enable_thinking=false"])?;
    let without = without.as_i64().ok_or("no number")?;
    let with = prompt_tokens(&["--chat-var", "level=[1, \"a\"]"])?;
    assert_eq!(with, without + "think [1, 'a']".len() as i64);
    assert_eq!(prompt_tokens(&["--chat-var", "level=low", "--chat-var", "x=1"])?, without + 9);
    let refused = run(args![
        "generate",
        "--model",
        model,
        "--chat",
        "--prompt",
        "hi",
        "--chat-var",
        "tools=[]"
    ])?;
    assert!(refused.stderr.contains("tools is no variable"), "{}", refused.stderr);
    let refused = run(args![
        "generate",
        "--model",
        model,
        "--chat",
        "--prompt",
        "hi",
        "--chat-var",
        "thinking"
    ])?;
    assert!(refused.stderr.contains("NAME=VALUE"), "{}", refused.stderr);

    let (data, options) = (dir.path().join("data.jsonl"), dir.path().join("run.toml"));
    fs::write(&data, ROWS[3])?;
    fs::write(&options, "chat_vars = { enable_thinking = false, level = 3 }\n")?;
    let output = dir.path().join("run");
    let options = options.to_string_lossy();
    let trained = train(&model, &data, &output, &["--config", &options])?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let saved = fs::read_to_string(output.join("train.toml"))?;
    assert!(saved.contains("chat_vars = { enable_thinking = false, level = 3 }"), "{saved}");
    let again = dir.path().join("again");
    let saved = output.join("train.toml");
    let trained = train(&model, &data, &again, &["--config", &saved.to_string_lossy()])?;
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let warned = train(&model, &data, &dir.path().join("warned"), &["--chat-var", "level=1"])?;
    assert!(warned.stderr.contains("opens a reply with \"think 1\""), "{}", warned.stderr);
    Ok(())
}
