//! Rows of preferences in TRL's formats: texts or messages, with the prompt apart or as the common beginning of both replies.

use serde_json::{Map, Value, json};

use crate::Content;
use crate::data::rows::conversation::messages;
use crate::data::rows::record::with_system;

/// The two rows of a preference, from the fields of its form and the text before a conversation.
///
/// # Errors
/// The fault of a row that is not two replies to one prompt.
pub(crate) fn preference(
    mut own: Map<String, Value>,
    system: Option<Value>,
) -> Result<Content, String> {
    let mut take = |name: &str| own.remove(name).map(in_list).unwrap_or_default();
    let (prompt, chosen, rejected) = (take("prompt"), take("chosen"), take("rejected"));
    let [chosen, rejected] = match (chosen, rejected) {
        (Value::Array(chosen), Value::Array(rejected)) => {
            let both = conversations(prompt, messages(chosen.into())?, messages(rejected.into())?)?;
            let tools = own.remove("tools");
            both.map(|messages| json!({ "messages": { "messages": messages, "tools": tools } }))
        }
        (Value::String(chosen), Value::String(rejected)) => {
            texts(prompt, &own, [&chosen, &rejected])?
        }
        (chosen, rejected) => {
            let found = [("chosen", chosen), ("rejected", rejected)];
            let found = found.map(|(name, value)| format!("{name} is {}", kind(&value)));
            return Err(format!(
                "{}; expected two texts or two lists of messages",
                found.join(" and ")
            ));
        }
    };
    let content = |value: Value| -> Result<Box<Content>, String> {
        let content: Content =
            serde_json::from_value(value).map_err(|error| reft_models::plain_reason(&error))?;
        Ok(Box::new(match &system {
            Some(system) => with_system(content, system.clone())?,
            None => content,
        }))
    };
    Ok(Content::Preference { chosen: content(chosen)?, rejected: content(rejected)? })
}

/// Reads a list of messages from a text, for files without nested columns.
fn in_list(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with("[{") => {
            serde_json::from_str(text).unwrap_or(value)
        }
        _ => value,
    }
}

/// Both conversations, each with the reply at its end.
fn conversations(
    prompt: Value,
    chosen: Vec<Value>,
    rejected: Vec<Value>,
) -> Result<[Vec<Value>; 2], String> {
    let is_reply_alone = chosen.len() == 1 && rejected.len() == 1;
    let (prompt, replies) = match prompt {
        Value::Array(_) => (messages(prompt)?, [chosen, rejected]),
        Value::String(text) if is_reply_alone => {
            (vec![json!({ "role": "user", "content": text })], [chosen, rejected])
        }
        // `prompt` beside whole conversations only repeats a part of them
        _ => {
            let pairs = chosen.iter().zip(&rejected);
            let alike = pairs.take_while(|(one, other)| one == other).count();
            let prompt = chosen[..alike].to_vec();
            (prompt, [chosen, rejected].map(|all| all.into_iter().skip(alike).collect()))
        }
    };
    for (name, reply) in ["chosen", "rejected"].into_iter().zip(&replies) {
        let is_one = reply.len() == 1 && reply[0]["role"] == "assistant";
        if prompt.is_empty() || !is_one {
            return Err(format!(
                "beside the {} of the prompt, {name} has {}; expected a prompt and one message of the assistant's",
                counted(prompt.len()),
                counted(reply.len())
            ));
        }
    }
    Ok(replies.map(|reply| [prompt.clone(), reply].concat()))
}

/// Both rows of replies that are texts.
fn texts(
    prompt: Value,
    own: &Map<String, Value>,
    replies: [&str; 2],
) -> Result<[Value; 2], String> {
    if let Value::Array(_) = prompt {
        let prompt = messages(prompt)?;
        return Ok(replies.map(|reply| {
            let reply = vec![json!({ "role": "assistant", "content": reply })];
            let all = [prompt.clone(), reply].concat();
            json!({ "messages": { "messages": all } })
        }));
    }
    if let (Value::Null, Some(instruction)) = (&prompt, own.get("instruction")) {
        let input = own.get("input").cloned().unwrap_or_else(|| json!(""));
        return Ok(replies.map(|output| {
            json!({ "instruction": { "instruction": instruction, "input": input, "output": output } })
        }));
    }
    let of = |prompt: &str, completion: &str| json!({ "prompt": { "prompt": prompt, "completion": completion } });
    match prompt {
        Value::String(prompt) => Ok(replies.map(|completion| of(&prompt, completion))),
        Value::Null => {
            let n = common_beginning(replies);
            if replies.iter().any(|reply| n == 0 || reply.len() == n) {
                return Err("there is no prompt, and chosen and rejected have no common beginning with a reply behind it; give the prompt as a column".to_owned());
            }
            Ok(replies.map(|reply| of(&reply[..n], &reply[n..])))
        }
        other => Err(format!("prompt is {}, expected a text or a list of messages", kind(&other))),
    }
}

/// Length in bytes of the common beginning; a space at its end belongs to the replies.
fn common_beginning([one, other]: [&str; 2]) -> usize {
    let pairs = one.char_indices().zip(other.chars());
    let n = pairs.take_while(|((_, a), b)| a == b).last().map_or(0, |((i, c), _)| i + c.len_utf8());
    n - usize::from(one[..n].ends_with(' '))
}

fn counted(messages: usize) -> String {
    format!("{messages} message{}", if messages == 1 { "" } else { "s" })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "missing",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
        Value::Bool(_) | Value::Number(_) => "a number or a truth value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::Message;

    fn of(row: &str) -> Result<[Content; 2], String> {
        let mut row: Map<String, Value> = serde_json::from_str(row).unwrap_or_default();
        let system = row.remove("system");
        match preference(row, system)? {
            Content::Preference { chosen, rejected } => Ok([*chosen, *rejected]),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn a_prompt_is_a_text_or_what_both_begin_with() -> Result<(), String> {
        let completion = |prompt: &str, completion: &str| Content::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        let expected = [completion("Sky:", " blue"), completion("Sky:", " black")];
        assert_eq!(of(r#"{"prompt":"Sky:","chosen":" blue","rejected":" black"}"#)?, expected);
        let implicit = of(r#"{"chosen":"Sky: blue","rejected":"Sky: red"}"#)?;
        assert_eq!(implicit, [completion("Sky:", " blue"), completion("Sky:", " red")]);
        let wide = of(r#"{"chosen":"né à","rejected":"né é"}"#)?;
        assert_eq!(wide, [completion("né", " à"), completion("né", " é")]);
        Ok(())
    }

    #[test]
    fn messages_are_taken_as_trl_takes_them() -> Result<(), String> {
        let chat = |reply: &str| Content::Chat {
            messages: vec![
                Message::new("system", "be"),
                Message::new("user", "hi"),
                Message::new("assistant", reply),
            ],
            tools: None,
        };
        let expected = [chat("yo"), chat("no")];
        let (start, user) =
            (r#"{"role":"system","content":"be"}"#, r#"{"role":"user","content":"hi"}"#);
        let reply = |text: &str| format!(r#"{{"role":"assistant","content":"{text}"}}"#);
        let (yo, no) = (reply("yo"), reply("no"));
        for row in [
            format!(r#"{{"prompt":[{start},{user}],"chosen":[{yo}],"rejected":[{no}]}}"#),
            format!(r#"{{"chosen":[{start},{user},{yo}],"rejected":[{start},{user},{no}]}}"#),
            format!(r#"{{"prompt":"hi","chosen":[{start},{user},{yo}],"rejected":[{start},{user},{no}]}}"#),
            format!(r#"{{"prompt":"hi","chosen":[{yo}],"rejected":[{no}],"system":"be"}}"#),
            format!(r#"{{"prompt":[{user}],"chosen":"yo","rejected":"no","system":"be"}}"#),
            json!({"system": "be", "chosen": format!("[{user},{yo}]"), "rejected": format!("[{user},{no}]")}).to_string(),
        ] {
            assert_eq!(of(&row)?, expected, "{row}");
        }
        let asked = of(r#"{"instruction":"hi","chosen":"yo","rejected":"no","system":"be"}"#)?;
        assert_eq!(asked, expected);
        Ok(())
    }

    #[test]
    fn what_are_no_two_replies_to_one_prompt_is_refused() {
        let user = r#"{"role":"user","content":"hi"}"#;
        let reply = r#"{"role":"assistant","content":"yo"}"#;
        for (row, words) in [
            (
                r#"{"chosen":"a","rejected":[]}"#.to_owned(),
                "chosen is a text and rejected is a list",
            ),
            (r#"{"chosen":"ab","rejected":"cd"}"#.to_owned(), "no common beginning"),
            (r#"{"chosen":"ab","rejected":"abc"}"#.to_owned(), "no common beginning"),
            (r#"{"prompt":3,"chosen":"ab","rejected":"abc"}"#.to_owned(), "prompt is a number"),
            (
                format!(r#"{{"chosen":[{user},{reply}],"rejected":[{user},{reply}]}}"#),
                "chosen has 0 messages",
            ),
            (
                format!(r#"{{"chosen":[{reply}],"rejected":[{user}]}}"#),
                "the 0 messages of the prompt",
            ),
            (
                format!(
                    r#"{{"prompt":[{user}],"chosen":[{reply},{user},{reply}],"rejected":[{reply}]}}"#
                ),
                "chosen has 3 messages",
            ),
        ] {
            let refused = of(&row);
            assert!(
                refused.as_ref().is_err_and(|reason| reason.contains(words)),
                "{row}: {refused:?}"
            );
        }
    }
}
