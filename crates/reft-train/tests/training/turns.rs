//! Which tokens of a conversation are learned.

use reft_models::{ChatTemplate, Message, Tokenizer};
use reft_test_support::oracle_text;
use reft_train::{
    Content, Encoding, IGNORE_INDEX, NEXT_TOKEN, Record, Template, TextEncoder, Turns,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::tiny_llama::{TestResult, oracle_path};

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    tools: Option<Vec<Value>>,
    turns: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    /// The conversation before the turn, with the turn opened.
    prompt: String,
    /// The conversation with the turn.
    whole: String,
    /// Ranges of characters that `{% generation %}` marks.
    marks: Option<Vec<(usize, usize)>>,
}

fn tokenizer() -> Result<(tempfile::TempDir, Tokenizer), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = oracle_path("text/tokenizers/byte_level.json");
    std::fs::copy(file, directory.path().join("tokenizer.json"))?;
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|eot_id|>", "<end_of_turn>"]});
    std::fs::write(directory.path().join("tokenizer_config.json"), config.to_string())?;
    let tokenizer = Tokenizer::open(directory.path())?;
    Ok((directory, tokenizer))
}

fn record(messages: &[Message], tools: Option<Vec<Value>>) -> Record {
    let content = Content::Chat { messages: messages.to_vec(), tools };
    Record::new("it", content)
}

/// Oracle: transformers' renderings and marks. The learned tokens of a turn are the text that the template prints after the prompt, up to the
/// token that ends the turn.
#[test]
fn what_is_learned_of_a_turn_is_what_the_template_prints_for_it() -> TestResult {
    let (_directory, tokenizer) = tokenizer()?;
    let ends = ["</s>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"];
    let file = serde_json::from_str::<serde_json::Value>(&oracle_text("text/turns.json")?)?;
    let oracle = serde_json::from_str::<serde_json::Value>(&oracle_text("text/templates.json")?)?;
    let cases: Vec<Case> = serde_json::from_value(file)?;
    let mut compared = 0;
    for case in cases {
        let source = oracle["templates"][&case.template].as_str().ok_or("no such template")?;
        let tokens = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        let chat_template = ChatTemplate::new(source, tokens)?;
        let encoder = |turns| TextEncoder {
            tokenizer: &tokenizer,
            chat_template: Some(&chat_template),
            template: Template::Auto,
            turns,
        };
        let record = record(&case.messages, case.tools.clone());
        let turns = encoder(Turns::All).turns(&record)?;
        assert_eq!(turns.len(), case.turns.len(), "{}", case.template);
        assert_eq!(encoder(Turns::Last).turns(&record)?, turns[turns.len() - 1..]);
        let replies = case.messages.iter().filter(|message| message.role() == "assistant");
        for ((turn, reply), Expected { prompt, whole, marks }) in
            turns.iter().zip(replies).zip(&case.turns)
        {
            assert_eq!(turn.prompt, tokenizer.encode(prompt, false)?, "{}", case.template);
            let said = match whole.strip_prefix(prompt.as_str()) {
                Some(said) => said,
                // once a reply is there, Mistral's template leaves out the system message
                None => whole.rsplit_once("[/INST]").ok_or("the prompt is another")?.1,
            };
            let said = match ends.iter().any(|end| said.trim_end().ends_with(end)) {
                true => said.trim_end().to_owned(),
                // whitespace at the reply's own end is kept
                false if said.starts_with(&reply.text()) => format!("{}</s>", reply.text()),
                false => format!("{}</s>", said.trim_end()),
            };
            assert_eq!(tokenizer.decode(&turn.completion, false)?, said, "{}", case.template);
            let learned: Vec<i64> = turn
                .completion
                .iter()
                .zip(&turn.is_learned)
                .filter_map(|(id, is)| is.then_some(*id))
                .collect();
            let learned = tokenizer.decode(&learned, false)?;
            let Some((start, end)) = marks.as_ref().and_then(|marks| marks.last()) else {
                assert_eq!(learned, said, "{}", case.template);
                continue;
            };
            let start = prompt.chars().count().max(*start);
            let marked: String = whole.chars().skip(start).take(end - start).collect();
            assert_eq!(learned, marked.trim_end(), "{}", case.template);
            compared += 1;
        }
        compared += 1;
    }
    assert!(compared > 30, "{compared} compared");
    Ok(())
}

#[test]
fn every_turn_is_an_example_behind_what_was_said_before() -> TestResult {
    let (_directory, tokenizer) = tokenizer()?;
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let chat_template = ChatTemplate::new(template, Vec::new())?;
    let encoding = |turns, max_length| Encoding {
        text: Some(TextEncoder {
            tokenizer: &tokenizer,
            chat_template: Some(&chat_template),
            template: Template::Auto,
            turns,
        }),
        vocab_size: tokenizer.vocab_size(),
        max_length,
    };
    let messages = ["a", "b", "c", "d"].into_iter().enumerate();
    let roles = ["user", "assistant"];
    let mut messages: Vec<Message> =
        messages.map(|(i, text)| Message::new(roles[i % 2], text)).collect();
    let records = [record(&messages, None)];
    let all = encoding(Turns::All, 512).examples(&records)?;
    let learned: Vec<String> = all
        .iter()
        .map(|example| {
            let labels = example.labels().iter().copied().filter(|label| *label != IGNORE_INDEX);
            tokenizer.decode(&labels.collect::<Vec<_>>(), false)
        })
        .collect::<Result<_, _>>()?;
    assert_eq!(learned, ["b<|im_end|>", "d<|im_end|>"]);
    assert_eq!([&all[0].id, &all[1].id], ["it, turn 1", "it, turn 2"]);
    assert!(all[1].row().input_ids.starts_with(&all[0].row().input_ids));
    let last = encoding(Turns::Last, 512).examples(&records)?;
    assert_eq!((last.len(), &last[0].row()), (1, &all[1].row()));
    let length = all[0].length();
    let (fitting, left_out) = NEXT_TOKEN.fitting(&records, &encoding(Turns::All, length), None)?;
    assert_eq!((fitting.len(), left_out), (1, 1));

    let weighted = json!({"role": "assistant", "content": "b", "weight": 0});
    messages[1] = serde_json::from_value(weighted)?;
    let weighted = encoding(Turns::All, 512).examples(&[record(&messages, None)])?;
    assert_eq!((weighted.len(), weighted[0].labels()), (1, all[1].labels()));
    let refused = encoding(Turns::Last, 512).examples(&[record(&messages[..2], None)]);
    assert!(refused.is_err_and(|error| error.to_string().contains("weight")));
    Ok(())
}
