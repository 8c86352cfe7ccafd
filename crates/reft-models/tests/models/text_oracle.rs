//! Chat templates and tokenizers against transformers: tests/oracle/text, which tools/oracle/make_text.py writes.

use reft_test_support::{Outcome, oracle, oracle_text};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use reft_models::{ChatTemplate, ChatVars, Message, Tokenizer};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Templates {
    templates: BTreeMap<String, String>,
    cases: Vec<TemplateCase>,
}

#[derive(Deserialize)]
struct TemplateCase {
    name: String,
    template: Option<String>,
    source: Option<String>,
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    variables: ChatVars,
    opened: bool,
    /// `None` if the template refuses.
    text: Option<String>,
    /// Ranges of characters.
    marks: Option<Vec<(usize, usize)>>,
}

#[test]
fn every_template_prints_what_it_prints_in_transformers() -> Outcome {
    let Templates { templates, cases } =
        serde_json::from_str(&oracle_text("text/templates.json")?)?;
    let tokens =
        [("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "?")];
    let tokens = || tokens.map(|(name, text)| (name, text.to_owned())).into();
    let mut wrong = Vec::new();
    for case in &cases {
        let source = case.template.as_ref().map(|name| &templates[name]);
        let source = source.or(case.source.as_ref()).ok_or("a case without a template")?;
        let found = ChatTemplate::new(source, tokens())
            .and_then(|template| template.with_variables(&case.variables))
            .and_then(|template| {
                template.render_with_tools(&case.messages, case.tools.as_deref(), case.opened)
            });
        // for a template that supports only text contents, messages are converted to texts here; transformers refuses them
        let is_spared = case.text.is_none()
            && case
                .messages
                .iter()
                .any(|message| !message.fields().get("content").is_some_and(Value::is_string));
        if found.as_ref().ok() != case.text.as_ref() && !is_spared {
            wrong.push(format!("{}\n  expected {:?}\n  found    {found:?}", case.name, case.text));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(cases.len() > 200, "{} cases", cases.len());
    Ok(())
}

#[test]
fn replies_are_marked_where_transformers_marks_them() -> Outcome {
    let Templates { templates, cases } =
        serde_json::from_str(&oracle_text("text/templates.json")?)?;
    let mut compared = 0;
    for case in &cases {
        let (Some(marks), Some(name)) = (&case.marks, &case.template) else { continue };
        let template = ChatTemplate::new(&templates[name], Vec::new())?;
        let (text, found) = template.render_marked(&case.messages, case.tools.as_deref())?;
        let place = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(at, _)| at);
        let expected: Vec<Range<usize>> =
            marks.iter().map(|(start, end)| place(*start)..place(*end)).collect();
        assert_eq!(found, Some(expected), "{}", case.name);
        compared += marks.len();
    }
    assert!(compared > 20, "{compared} marks");
    Ok(())
}

/// text, ids, ids without special tokens around it, decoded text, and decoded text without special tokens
type TextCase = (String, Vec<i64>, Vec<i64>, String, String);

#[derive(Deserialize)]
struct TokenizerCase {
    name: String,
    file: String,
    beside: BTreeMap<String, Value>,
    texts: Vec<TextCase>,
    length: i64,
    bos: Option<i64>,
    eos: Option<i64>,
    pad: Option<i64>,
}

#[test]
fn every_tokenizer_has_the_ids_that_it_has_in_transformers() -> Outcome {
    let cases: Vec<TokenizerCase> = serde_json::from_str(&oracle_text("text/tokenizers.json")?)?;
    let mut wrong = Vec::new();
    for case in &cases {
        let directory = tempfile::tempdir()?;
        let file = oracle(&format!("text/tokenizers/{}.json", case.file));
        fs::copy(file, directory.path().join("tokenizer.json"))?;
        for (name, content) in &case.beside {
            fs::write(directory.path().join(name), content.to_string())?;
        }
        wrong.extend(
            differences(directory.path(), case)?
                .into_iter()
                .map(|what| format!("{}: {what}", case.name)),
        );
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases.len() > 30, "{} cases", cases.len());
    Ok(())
}

fn differences(
    directory: &Path,
    case: &TokenizerCase,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let tokenizer = Tokenizer::open(directory)?;
    let mut wrong = Vec::new();
    let mut same = |what: &str, found: String, expected: String| {
        if found != expected {
            wrong.push(format!("{what} is {found}, expected {expected}"));
        }
    };
    let named = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id());
    same("bos, eos, pad", format!("{named:?}"), format!("{:?}", (case.bos, case.eos, case.pad)));
    same("length", tokenizer.vocab_size().to_string(), case.length.to_string());
    for (text, ids, without, decoded, skipped) in &case.texts {
        let at = |what: &str| format!("{what} of {text:?}");
        same(&at("ids"), format!("{:?}", tokenizer.encode(text, true)?), format!("{ids:?}"));
        same(
            &at("bare ids"),
            format!("{:?}", tokenizer.encode(text, false)?),
            format!("{without:?}"),
        );
        same(&at("text"), tokenizer.decode(ids, false)?, decoded.clone());
        same(&at("bare text"), tokenizer.decode(ids, true)?, skipped.clone());
    }
    Ok(wrong)
}
