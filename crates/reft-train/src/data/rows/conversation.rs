//! Reads conversations in common formats as messages with `role` and `content`.

use serde_json::{Map, Value, json};

/// Roles, and ShareGPT's names for them.
const SPEAKERS: [(&str, &[&str]); 4] = [
    ("user", &["human", "user", "prompter"]),
    ("assistant", &["gpt", "assistant", "model", "bot", "chatgpt", "bing", "bard"]),
    ("system", &["system"]),
    ("tool", &["tool", "observation"]),
];

/// Messages of a list of turns (`role` and `content`, or ShareGPT's `from` and `value`), or of a JSON text of such a list.
///
/// # Errors
/// The first turn that cannot be read, and the reason.
pub(crate) fn messages(value: Value) -> Result<Vec<Value>, String> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|_| {
            format!(
                "the conversation is the text {:?}, expected a list of messages",
                beginning(&text)
            )
        })?,
        other => other,
    };
    match value {
        Value::Array(turns) => turns.into_iter().zip(1..).map(message).collect(),
        other => Err(format!("the conversation is {other}, expected a list of messages")),
    }
}

fn beginning(text: &str) -> String {
    text.chars().take(40).collect()
}

fn message((turn, number): (Value, usize)) -> Result<Value, String> {
    let Value::Object(mut turn) = turn else {
        return Err(format!("turn {number} is {turn}, expected a message with role and content"));
    };
    if !turn.contains_key("role")
        && let Some(from) = turn.remove("from")
    {
        let speaker = from.as_str().map(str::to_ascii_lowercase).unwrap_or_default();
        let known = SPEAKERS.iter().find(|(_, names)| names.contains(&speaker.as_str()));
        let Some((role, _)) = known else {
            let names: Vec<&str> = SPEAKERS.iter().map(|(_, names)| names[0]).collect();
            return Err(format!(
                "turn {number} is from {from}, expected one of {}; leave such turns out, or give messages with role and content",
                names.join(", ")
            ));
        };
        let content = turn.remove("value").or_else(|| turn.remove("content"));
        let mut message = Map::from_iter([("role".to_owned(), json!(role))]);
        message.extend(content.map(|content| ("content".to_owned(), content)));
        message.extend(turn);
        return Ok(Value::Object(message));
    }
    Ok(Value::Object(turn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_sharegpt_are_messages() {
        let turns = json!([
            {"from": "system", "value": "be"},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "yo", "weight": 0},
        ]);
        let expected = json!([
            {"role": "system", "content": "be"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yo", "weight": 0},
        ]);
        assert_eq!(messages(turns.clone()).map(Value::Array), Ok(expected.clone()));
        assert_eq!(messages(turns.to_string().into()).map(Value::Array), Ok(expected.clone()));
        assert_eq!(messages(expected.clone()).map(Value::Array), Ok(expected));
    }

    #[test]
    fn other_speakers_and_what_is_no_list_are_refused() {
        for (wrong, word) in [
            (json!([{"from": "function_call", "value": "f"}]), "turn 1 is from \"function_call\""),
            (json!([{"role": "user", "content": "a"}, "b"]), "turn 2"),
            (json!("hello"), "\"hello\""),
            (json!({"role": "user"}), "a list of messages"),
        ] {
            assert!(messages(wrong.clone()).is_err_and(|reason| reason.contains(word)), "{wrong}");
        }
    }
}
