//! Text in and out: the demo model's tokenizer and chat template against transformers, and the limits of templates.

use reft_test_support::{Outcome, demo_model, oracle_text};
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use reft_models::{ChatTemplate, Error, Message, Tokenizer};
use serde::Deserialize;
use serde_json::json;

/// The recorded cases of `smollm2.json`.
#[derive(Deserialize)]
struct Cases {
    /// text, ids, decoded
    tokenizer_cases: Vec<(String, Vec<i64>, String)>,
    /// messages, add_generation_prompt, text, ids
    chat_template_cases: Vec<(Vec<Message>, bool, String, Vec<i64>)>,
}

fn cases() -> Result<Cases, Box<dyn std::error::Error>> {
    Ok(serde_json::from_str(&oracle_text("smollm2/smollm2.json")?)?)
}

#[test]
fn every_recorded_text_has_the_same_ids_and_back() -> Outcome {
    let mut tokenizer = Tokenizer::open(&demo_model())?;
    assert_eq!(tokenizer.vocab_size(), 49152);
    let cases = cases()?.tokenizer_cases;
    assert_eq!(cases.len(), 11);
    let agrees = |tokenizer: &Tokenizer| -> Outcome {
        for (text, ids, decoded) in &cases {
            assert_eq!(tokenizer.encode(text, true)?, *ids, "{text:?}");
            assert_eq!(tokenizer.decode(ids, false)?, *decoded, "{text:?}");
        }
        Ok(())
    };
    agrees(&tokenizer)?;
    tokenizer.keep_no_words();
    agrees(&tokenizer)
}

#[test]
fn every_recorded_chat_has_the_same_prompt_and_ids() -> Outcome {
    let tokenizer = Tokenizer::open(&demo_model())?;
    let template = ChatTemplate::open(&demo_model())?;
    let cases = cases()?.chat_template_cases;
    assert_eq!(cases.len(), 2);
    for (messages, add_generation_prompt, text, ids) in cases {
        let prompt = template.render(&messages, add_generation_prompt)?;
        assert_eq!(prompt, text);
        assert_eq!(tokenizer.encode(&prompt, false)?, ids);
    }
    Ok(())
}

#[test]
fn the_demo_models_special_tokens_are_known() -> Outcome {
    let tokenizer = Tokenizer::open(&demo_model())?;
    assert_eq!(tokenizer.bos_id(), Some(1));
    assert_eq!(tokenizer.eos_id(), Some(2));
    assert_eq!(tokenizer.eos_ids(), [2]);
    assert_eq!(tokenizer.pad_id(), Some(2));
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.decode(&[1, 28120, 2], true)?, tokenizer.decode(&[28120], false)?);
    assert!(matches!(tokenizer.decode(&[-1], true), Err(Error::Tokenizer { .. })));
    Ok(())
}

/// The pieces that a stream returns.
fn streamed(tokenizer: &Tokenizer, ids: &[i64], skip: bool) -> Result<Vec<String>, Error> {
    let mut stream = tokenizer.decode_stream(skip);
    let mut pieces = Vec::new();
    for &id in ids {
        pieces.extend(stream.push(id)?);
    }
    pieces.extend(stream.finish()?);
    Ok(pieces)
}

#[test]
fn a_stream_gives_out_whole_characters_as_soon_as_they_are_whole() -> Outcome {
    let tokenizer = Tokenizer::open(&demo_model())?;
    let text = "naïve 🦀🎉 日本語 done";
    let ids = tokenizer.encode(text, false)?;
    let pieces = streamed(&tokenizer, &ids, true)?;
    assert_eq!(pieces.concat(), text);
    assert!(pieces.len() > 5, "it comes in pieces: {pieces:?}");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    let crab = tokenizer.encode("🦀", false)?;
    assert!(crab.len() > 1, "the test has no power: one token is the whole character");
    let cut = streamed(&tokenizer, &crab[..crab.len() - 1], true)?.concat();
    assert_eq!(cut, tokenizer.decode(&crab[..crab.len() - 1], true)?); // `finish` returns the rest
    Ok(())
}

#[test]
fn any_stream_adds_up_to_decoding_all_at_once() {
    let tokenizer = Tokenizer::open(&demo_model()).expect("the demo model's tokenizer");
    let config =
        ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let ids = proptest::collection::vec(prop_oneof![0i64..20, 20i64..300, 0i64..49152], 0..20);
    proptest!(config, |(ids in ids, skip: bool)| {
        let pieces = streamed(&tokenizer, &ids, skip).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let whole = tokenizer.decode(&ids, skip).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(pieces.concat(), whole);
    });
}

#[test]
fn any_text_comes_back_from_its_ids() {
    let tokenizer = Tokenizer::open(&demo_model()).expect("the demo model's tokenizer");
    let config =
        ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(text in any::<String>())| {
        let ids = tokenizer.encode(&text, false).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let back = tokenizer.decode(&ids, false).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(back, text);
    });
}

/// A word-level tokenizer with three words and two special tokens.
fn write_tokenizer(directory: &Path, files: &[(&str, &str)]) -> Outcome {
    let special = |id: i64, content: &str| {
        json!({
            "id": id,
            "content": content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        })
    };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding": {
            "strategy": { "Fixed": 9 },
            "direction": "Right",
            "pad_to_multiple_of": null,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<s>",
        },
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordLevel",
            "vocab": { "<s>": 0, "</s>": 1, "one": 2, "two": 3, "?": 4 },
            "unk_token": "?",
        },
    });
    fs::write(directory.join("tokenizer.json"), tokenizer.to_string())?;
    for (name, text) in files {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

#[test]
fn length_and_padding_baked_into_the_file_do_not_touch_the_text() -> Outcome {
    let directory = tempfile::tempdir()?;
    write_tokenizer(directory.path(), &[])?;
    let tokenizer = Tokenizer::open(directory.path())?;
    assert_eq!(tokenizer.encode("one two one two", true)?, [2, 3, 2, 3]);
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (None, None, None));
    Ok(())
}

#[test]
fn end_tokens_come_from_every_file_that_names_them() -> Outcome {
    let directory = tempfile::tempdir()?;
    let files = [
        (
            "tokenizer_config.json",
            r#"{"eos_token": {"content": "</s>", "lstrip": false}, "bos_token": "<s>"}"#,
        ),
        ("generation_config.json", r#"{"eos_token_id": [3, 1, 2], "pad_token_id": -1}"#),
        ("config.json", r#"{"eos_token_id": 4, "pad_token_id": 4}"#),
    ];
    write_tokenizer(directory.path(), &files)?;
    let tokenizer = Tokenizer::open(directory.path())?;
    assert_eq!(tokenizer.eos_ids(), [1, 3, 2]); // its own first; config.json counts only without generation_config.json
    assert_eq!(tokenizer.bos_id(), Some(0));
    assert_eq!(tokenizer.pad_id(), Some(4)); // −1 means none
    fs::remove_file(directory.path().join("generation_config.json"))?;
    assert_eq!(Tokenizer::open(directory.path())?.eos_ids(), [1, 4]);
    Ok(())
}

#[test]
fn broken_tokenizer_files_are_errors() -> Outcome {
    let directory = tempfile::tempdir()?;
    assert!(matches!(Tokenizer::open(directory.path()), Err(Error::Io { action: "read", .. })));
    for (config, part) in [
        (r#"{"eos_token": 3}"#, "eos_token is 3"),
        (r#"{"tomorrow": 1}"#, "tomorrow is 1"),
        (r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#, "added_tokens_decoder has x"),
        (r#"{"fix_mistral_regex": true}"#, "fix_mistral_regex is true"),
    ] {
        write_tokenizer(directory.path(), &[("tokenizer_config.json", config)])?;
        let refused = Tokenizer::open(directory.path());
        let refused = refused.map(|_| ()).map_err(|error| error.to_string());
        assert!(refused.as_ref().is_err_and(|said| said.contains(part)), "{part}: {refused:?}");
    }
    write_tokenizer(directory.path(), &[("tokenizer_config.json", "{}")])?;
    let generation = directory.path().join("generation_config.json");
    fs::write(&generation, r#"{"temperature": 0.6, "tomorrow": 1}"#)?;
    let refused = Tokenizer::open(directory.path()).map(|_| ()).map_err(|error| error.to_string());
    assert!(refused.is_err_and(|said| said.contains("tomorrow is 1")));
    fs::remove_file(&generation)?;
    write_tokenizer(directory.path(), &[("tokenizer_config.json", "{")])?;
    assert!(matches!(Tokenizer::open(directory.path()), Err(Error::Json { .. })));
    fs::write(directory.path().join("tokenizer.json"), "{}")?;
    fs::remove_file(directory.path().join("tokenizer_config.json"))?;
    assert!(matches!(Tokenizer::open(directory.path()), Err(Error::Tokenizer { .. })));
    Ok(())
}

fn chat() -> [Message; 3] {
    [
        Message::new("system", " Be <brief> & kind. "),
        Message::new("user", "Hi"),
        Message::new("assistant", "Yes"),
    ]
}

fn render(source: &str) -> Result<String, Error> {
    ChatTemplate::new(source, vec![("bos_token", "<s>".to_owned())])?.render(&chat(), true)
}

#[test]
fn templates_run_as_transformers_runs_them() -> Outcome {
    // (template, result of jinja2 3.1 with transformers' settings: trimmed blocks, loop controls, tojson without escapes)
    let cases = [
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m['content'] }}\n  {% endif %}\n{% endfor %}\nend\n",
            "Hi\nend",
        ),
        ("{{ bos_token }}{{ messages[0]['content'].strip().upper() }}", "<s>BE <BRIEF> & KIND."),
        ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "Hi"}"#),
        ("{{ messages[0].content | tojson }}", r#"" Be <brief> & kind. ""#),
        ("{{ [1, [], {'b': None, 'a': 'é'}] | tojson }}", r#"[1, [], {"b": null, "a": "é"}]"#),
        ("{{ {'a': [1, 2]} | tojson(indent=2) }}", "{\n  \"a\": [\n    1,\n    2\n  ]\n}"),
        (
            "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }};{% endfor %}",
            "system;user;",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }};{% endfor %}",
            "system;assistant;",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        (
            "{% if tools is not none %}tools{% elif not add_generation_prompt %}no{% else %}yes{% endif %}",
            "yes",
        ),
        ("{% for m in messages[1:] %}{{ m.content + '|' }}{% endfor %}", "Hi|Yes|"),
        ("{{ 'a-b'.split('-')[1] }}{{ ' x'.lstrip() }}{{ 'xy'.startswith('x') }}", "bxTrue"),
        ("{%- generation -%} {{ messages[2].content }} {%- endgeneration -%}", "Yes"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source)?, expected, "{source}");
    }
    let year = render("{{ strftime_now('%Y') }}")?;
    assert!(year.parse::<i32>()? >= 2025, "{year}");
    Ok(())
}

#[test]
fn a_template_that_refuses_or_is_broken_says_why() {
    let cases = [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "syntax error"),
        ("{{ strftime_now('%!') }}", "strftime_now"),
        ("{{ messages.content.foo }}", "undefined"),
        ("{{ [1].append(2) }}", "append"),
        ("{{ 1 % 0 }}", "1 % 0 has no value"),
        ("{{ messages | nonesuch }}", "nonesuch"),
    ];
    for (source, part) in cases {
        match render(source) {
            Err(Error::ChatTemplate(reason)) => {
                assert!(reason.contains(part), "{part:?} is not in {reason:?}")
            }
            other => panic!("{source} gave {other:?}"),
        }
    }
}

#[test]
fn the_template_is_taken_from_where_transformers_takes_it() -> Outcome {
    let directory = tempfile::tempdir()?;
    let from = || ChatTemplate::open(directory.path()).and_then(|t| t.render(&chat(), false));
    assert!(matches!(from(), Err(Error::NoChatTemplate(path)) if path == directory.path()));
    let config = directory.path().join("tokenizer_config.json");
    fs::write(
        &config,
        r#"{"chat_template": "{{ eos_token }}", "eos_token": {"content": "</s>"}}"#,
    )?;
    assert_eq!(from()?, "</s>");
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    fs::write(&config, named)?;
    assert_eq!(from()?, "d");
    let tools = [json!({"type": "function"})];
    let with_tools = || {
        let template = ChatTemplate::open(directory.path())?;
        template.render_with_tools(&chat(), Some(&tools), false)
    };
    assert_eq!(with_tools()?, "t");
    fs::write(&config, r#"{"chat_template": [{"name": "tool_use", "template": "t"}]}"#)?;
    assert!(matches!(from(), Err(Error::NoChatTemplate { .. })));
    fs::write(directory.path().join("chat_template.jinja"), "{{ messages[1].content }}\n")?;
    assert_eq!((from()?.as_str(), with_tools()?.as_str()), ("Hi", "Hi"));
    let further = directory.path().join("additional_chat_templates");
    fs::create_dir(&further)?;
    fs::write(further.join("tool_use.jinja"), "{{ tools | length }} tools")?;
    assert_eq!((from()?.as_str(), with_tools()?.as_str()), ("Hi", "1 tools"));
    Ok(())
}

#[test]
fn variables_are_given_to_the_template_and_come_before_special_tokens() -> Outcome {
    let source =
        "{{ enable_thinking is false }} {{ bos_token }} {{ documents }} {{ nope is defined }}";
    let template = ChatTemplate::new(source, vec![("bos_token", "<s>".to_owned())])?;
    assert_eq!(template.render(&chat(), false)?, "False <s> None False");
    let variables =
        json!({"enable_thinking": false, "bos_token": "<b>", "documents": [1], "nope": null});
    let with = template.clone().with_variables(&serde_json::from_value(variables)?)?;
    assert_eq!(with.render(&chat(), false)?, "True <b> [1] True");
    let refused = template.with_variables(&serde_json::from_value(json!({"messages": []}))?);
    assert!(refused.is_err_and(|error| error.to_string().contains("messages is no variable")));
    Ok(())
}

#[test]
fn a_message_with_a_mark_in_it_is_refused_where_replies_are_marked() -> Outcome {
    let marked =
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let template = ChatTemplate::new(marked, Vec::new())?;
    let (text, marks) = template.render_marked(&chat()[1..], None)?;
    assert_eq!((text.as_str(), marks), ("HiYes", Some(vec![0..2, 2..5])));
    let odd = [Message::new("user", "a\u{fdd0}b")];
    assert_eq!(template.render(&odd, false)?, "a\u{fdd0}b");
    let refused = template.render_marked(&odd, None);
    assert!(refused.is_err_and(|error| error.to_string().contains("U+FDD0")));
    Ok(())
}
