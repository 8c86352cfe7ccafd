//! Rows as a real chat model sees them.

use reft_test_support::oracle_text;
use std::path::Path;

use reft_models::{ChatTemplate, Message, Tokenizer};
use reft_train::{Content, Encoding, IGNORE_INDEX, Record, Template, TextEncoder, Turns};

use crate::tiny_llama::TestResult;

/// Oracle: transformers' `apply_chat_template` on the whole conversation, tokenised as one text. Tokenised apart it is the same
/// here, since a turn begins after a line break.
#[test]
fn a_conversation_has_the_tokens_of_the_chat_template_and_ends_with_the_end_token() -> TestResult {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/SmolLM2-135M-Instruct");
    assert!(model.exists(), "the demo model is not there: run `cargo xtask model`");
    let (tokenizer, chat_template) = (Tokenizer::open(&model)?, ChatTemplate::open(&model)?);
    let encoder = TextEncoder {
        tokenizer: &tokenizer,
        chat_template: Some(&chat_template),
        template: Template::Auto,
        turns: Turns::Last,
    };
    let vocab_size = tokenizer.vocab_size();
    let encoding = Encoding { text: Some(encoder), vocab_size, max_length: 512 };
    let cases = serde_json::from_str::<serde_json::Value>(&oracle_text("smollm2/smollm2.json")?)?;
    let mut compared = 0;
    for case in cases["chat_template_cases"].as_array().ok_or("no cases")? {
        let messages: Vec<Message> = serde_json::from_value(case[0].clone())?;
        let ids: Vec<i64> = serde_json::from_value(case[3].clone())?;
        if messages.last().is_some_and(|message| message.role() == "assistant") {
            let content = Content::Chat { messages, tools: None };
            let record = Record::new("1", content);
            let examples = encoding.examples(&[record])?;
            let (example, end) = (&examples[0], tokenizer.eos_id().ok_or("no end token")?);
            // the template writes a line break after the end token, which nobody generates
            assert_eq!(example.row().input_ids, ids[..ids.len() - 1]);
            let targets: Vec<i64> =
                example.labels().iter().copied().filter(|label| *label != IGNORE_INDEX).collect();
            assert_eq!(targets, [&tokenizer.encode("Blue", false)?[..], &[end]].concat());
            assert_eq!(targets.len() + example.row().prompt_length, ids.len() - 1);
        } else {
            let [message] = &messages[..] else { continue };
            assert_eq!(encoder.encode_prompt(&message.text())?, ids);
        }
        compared += 1;
    }
    assert_eq!(compared, 2);
    Ok(())
}
