use std::path::Path;

use reft_models::{Field, Fields, Message, io_error, plain_reason, says_nothing};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// One row of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its `id`, or "row 3" for the third row of the file.
    pub id: String,
    /// What is to be learned.
    pub content: Content,
    /// `subspace`: coordinates of the subspace that edits of this row may change; `None`: all of them.
    pub subspace: Option<Vec<i64>>,
}

/// The forms that a row may have, each known by its first field.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Content {
    /// `{"input_ids", "prompt_length"}` with optional `"labels"`: tokens that are used as they are.
    #[serde(rename = "input_ids")]
    Tokens {
        /// The prompt and what is to be learned.
        input_ids: Vec<i64>,
        /// How many of them are the prompt.
        prompt_length: usize,
        /// One per token, −100 where nothing is to be learned; without them everything after the prompt is.
        labels: Option<Vec<i64>>,
    },
    /// `{"messages": […]}`: a conversation, with optional `"tools"` that the assistant may call.
    #[serde(rename = "messages")]
    Chat {
        /// What is said, turn by turn.
        messages: Vec<Message>,
        /// The tools, each as a JSON schema; a list, or the text of one.
        #[serde(default, deserialize_with = "list_or_its_text")]
        tools: Option<Vec<Value>>,
    },
    /// `{"instruction", "input", "output"}`, as Alpaca has it, with an optional `"answer"` that is scored, not trained on.
    #[serde(rename = "instruction")]
    Instruction {
        /// The task.
        instruction: String,
        /// What the task is about; may be empty.
        #[serde(default)]
        input: String,
        /// The response to be learned.
        output: String,
        /// The right answer.
        #[serde(default, deserialize_with = "text_or_number")]
        answer: Option<String>,
    },
    /// `{"prompt", "completion"}`: texts that are used as they are.
    #[serde(rename = "prompt")]
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learned.
        completion: String,
    },
}

impl Record {
    /// Why no example can be made of it.
    pub(crate) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Refused { id: self.id.clone(), reason: reason.into() }
    }

    /// What the tokenizer or the chat template says to it.
    pub(crate) fn failed(&self, source: reft_models::Error) -> Error {
        Error::Example { id: self.id.clone(), source: Box::new(source) }
    }
}

/// The columns of each form of [`Content`]; the first names it. Of a row with the names of several, the first of these says its form.
pub const ROWS: [Fields; 4] = [
    Fields {
        file: "a row of tokens",
        groups: &[&[Field::applied(&["input_ids", "prompt_length", "labels"])], COMMON],
    },
    Fields {
        file: "a row with a conversation",
        groups: &[
            &[
                Field::applied(&["messages", "tools"]),
                Field::neutral(
                    &["parallel_tool_calls", "prompt", "prompt_id", "chosen_rating", "system_id"],
                    "what a service was asked, and what stands in the messages, too",
                ),
                Field::refused(&["functions"], "give them as tools"),
            ],
            COMMON,
        ],
    },
    Fields {
        file: "a row with an instruction",
        groups: &[
            &[
                Field::applied(&["instruction", "input", "output", "answer"]),
                Field::neutral(&["text"], "the row as Alpaca frames it"),
            ],
            COMMON,
        ],
    },
    Fields {
        file: "a row with a prompt",
        groups: &[&[Field::applied(&["prompt", "completion"])], COMMON],
    },
];

const COMMON: &[Field] = &[
    Field::applied(&["id", "subspace"]),
    Field::neutral(
        &["source", "dataset", "category", "language", "license", "url", "metadata", "split"],
        "where the row comes from",
    ),
];

/// A list, or a text that holds one as JSON, which files without nested columns have.
fn list_or_its_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Value>>, D::Error> {
    let list = match Value::deserialize(deserializer)? {
        Value::String(text) => serde_json::from_str(&text).map_err(D::Error::custom)?,
        other => other,
    };
    match list {
        Value::Null => Ok(None),
        Value::Array(tools) if tools.iter().all(Value::is_object) => Ok(Some(tools)),
        other => Err(D::Error::custom(format!("tools is {other}, expected a list of objects"))),
    }
}

/// Ids and answers are texts or numbers.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        _ => Err(D::Error::custom("expected a text or a number")),
    }
}

/// Reads a data file: a JSON list of rows, or JSONL with a row per line. Rows of several forms may be mixed.
///
/// # Errors
/// If the file cannot be read; [`Error::Json`] with line and column; [`Error::Row`] for a row that has none of the forms or an unknown
/// field; [`Error::NoExamples`].
pub fn read_records(path: &Path) -> Result<Vec<Record>> {
    read_rows(path, |_| ())
}

/// Reads a file of prompts: rows as [`read_records`] takes them, in which what would be learned may be missing.
///
/// # Errors
/// As [`read_records`].
pub fn read_prompts(path: &Path) -> Result<Vec<Record>> {
    read_rows(path, add_empty_response)
}

fn read_rows(path: &Path, prepare: fn(&mut Map<String, Value>)) -> Result<Vec<Record>> {
    let text = std::fs::read(path).map_err(io_error("read", path))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text); // a byte order mark is no part of the text
    let records = parse_records(text, path, prepare)?;
    if records.is_empty() {
        return Err(Error::NoExamples { path: path.to_owned() });
    }
    Ok(records)
}

/// Gives a row that is a prompt alone the empty response that makes it a training row.
fn add_empty_response(fields: &mut Map<String, Value>) {
    let nothing = || Value::String(String::new());
    if let Some(input_ids) = fields.get("input_ids").and_then(Value::as_array) {
        let prompt_length = input_ids.len();
        fields.entry("prompt_length").or_insert_with(|| prompt_length.into());
    } else if let Some(Value::Array(messages)) = fields.get_mut("messages") {
        let is_reply = |message: &Value| message["role"] == "assistant";
        if !messages.last().is_some_and(is_reply) {
            messages.push(json!({ "role": "assistant", "content": "" }));
        }
    } else if fields.contains_key("instruction") {
        fields.entry("output").or_insert_with(nothing);
    } else if fields.contains_key("prompt") {
        fields.entry("completion").or_insert_with(nothing);
    }
}

fn parse_records(
    text: &[u8],
    path: &Path,
    prepare: fn(&mut Map<String, Value>),
) -> Result<Vec<Record>> {
    let broken = |first_line: usize| {
        move |error: serde_json::Error| {
            let text = plain_reason(&error);
            // the parser's words without its own line and column, which are relative to the line parsed
            let reason = text.rsplit_once(" at line ").map_or(&*text, |(reason, _)| reason);
            let (path, reason) = (path.to_owned(), reason.to_owned());
            let line = first_line + error.line().saturating_sub(1);
            Error::Json { path, line, column: error.column(), reason }
        }
    };
    let is_list = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let rows: Box<dyn Iterator<Item = Result<(String, Value)>>> = if is_list {
        let rows: Vec<Value> = serde_json::from_slice(text).map_err(broken(1))?;
        Box::new(rows.into_iter().zip(1..).map(|(row, i)| Ok((format!("row {i}"), row))))
    } else {
        let lines = text.split(|&byte| byte == b'\n').zip(1..);
        let lines = lines.filter(|(line, _)| !line.iter().all(u8::is_ascii_whitespace));
        Box::new(lines.map(move |(line, i)| {
            Ok((format!("line {i}"), serde_json::from_slice(line).map_err(broken(i))?))
        }))
    };
    let record = |(row, i): (Result<(String, Value)>, usize)| {
        let (place, row) = row?;
        let row = record(row, format!("row {i}"), prepare);
        row.map_err(|reason| Error::Row { path: path.to_owned(), place, reason })
    };
    rows.zip(1..).map(record).collect()
}

fn record(
    value: Value,
    default_id: String,
    prepare: fn(&mut Map<String, Value>),
) -> Result<Record, String> {
    let Value::Object(mut fields) = value else {
        return Err("the row is no JSON object".to_owned());
    };
    fields.retain(|_, value| !value.is_null()); // as if it were not there
    prepare(&mut fields);
    let id = fields.remove("id").unwrap_or_default();
    let id = text_or_number(id).map_err(|_| "id is neither a text nor a number")?;
    let subspace = fields.remove("subspace").unwrap_or_default();
    let subspace = serde_json::from_value(subspace)
        .map_err(|error| format!("subspace: {}", plain_reason(&error)))?;
    let name = |form: &Fields| form.groups[0][0].names[0];
    let form = ROWS.iter().find(|form| fields.contains_key(name(form)));
    let form =
        form.ok_or("the row has none of prompt, instruction, messages and input_ids; give one")?;
    let is_unknown =
        |(name, value): &(&String, &Value)| form.find(name).is_none() && !says_nothing(value);
    if let Some((unknown, _)) = fields.iter().find(is_unknown) {
        let (row, known) = (form.file, form.groups[0][0].names.join(", "));
        return Err(format!(
            "unknown field `{unknown}`; {row} has {known}, id and subspace; remove what changes nothing"
        ));
    }
    form.check(&fields)?;
    fields.retain(|column, _| form.groups[0][0].names.contains(&column.as_str()));
    let content = serde_json::from_value(json!({ name(form): fields }))
        .map_err(|error| plain_reason(&error))?;
    Ok(Record { id: id.unwrap_or(default_id), content, subspace })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_text(text: &str) -> Result<Vec<Record>> {
        parse_records(text.as_bytes(), Path::new("data.jsonl"), |_| ())
    }

    #[test]
    fn a_prompt_alone_is_a_row_with_an_empty_response() -> Result<()> {
        let prompts = [
            (r#"{"prompt":"a"}"#, r#"{"prompt":"a","completion":""}"#),
            (r#"{"prompt":"a","completion":"b"}"#, r#"{"prompt":"a","completion":"b"}"#),
            (r#"{"instruction":"do"}"#, r#"{"instruction":"do","output":""}"#),
            (
                r#"{"messages":[{"role":"user","content":"hi"}]}"#,
                r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":""}]}"#,
            ),
            (ROWS[3], ROWS[3]),
            (r#"{"input_ids":[5,6]}"#, r#"{"input_ids":[5,6],"prompt_length":2}"#),
        ];
        for (prompt, row) in prompts {
            let path = Path::new("prompts.jsonl");
            let read = parse_records(prompt.as_bytes(), path, add_empty_response)?;
            assert_eq!(read, parse_text(row)?, "{prompt}");
        }
        Ok(())
    }

    const ROWS: [&str; 5] = [
        r#"{"prompt":"a","completion":"b","id":7}"#,
        r#"{"instruction":"do","input":"x","output":"y","answer":1.5}"#,
        r#"{"instruction":"do","output":"y","id":"named"}"#,
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}"#,
        r#"{"input_ids":[5,6,7],"prompt_length":2,"labels":[-100,-100,7],"subspace":[0,2]}"#,
    ];

    #[test]
    fn lines_and_lists_of_mixed_rows_are_read_alike() -> Result<()> {
        let lines = parse_text(&format!("\n{}\r\n  \n", ROWS.join("\n")))?;
        let list = parse_text(&format!(" [\n{}\n]", ROWS.join(",\n")))?;
        assert_eq!(lines, list);
        let ids: Vec<&str> = lines.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids, ["7", "row 2", "named", "row 4", "row 5"]);
        let text = |s: &str| s.to_owned();
        let instruction = |input: &str, answer: Option<&str>| Content::Instruction {
            instruction: text("do"),
            input: text(input),
            output: text("y"),
            answer: answer.map(text),
        };
        let expected = [
            Content::Completion { prompt: text("a"), completion: text("b") },
            instruction("x", Some("1.5")),
            instruction("", None),
            Content::Chat {
                messages: vec![Message::new("user", "hi"), Message::new("assistant", "yo")],
                tools: None,
            },
            Content::Tokens {
                input_ids: vec![5, 6, 7],
                prompt_length: 2,
                labels: Some(vec![-100, -100, 7]),
            },
        ];
        for (record, expected) in lines.iter().zip(expected) {
            assert_eq!(record.content, expected);
        }
        assert_eq!(lines[4].subspace, Some(vec![0, 2]));
        assert_eq!(lines[3].subspace, None);
        Ok(())
    }

    #[test]
    fn null_is_nothing_and_columns_that_change_nothing_are_passed_over() -> Result<()> {
        for (row, same) in [
            (
                r#"{"instruction":"a","input":null,"output":"b"}"#,
                r#"{"instruction":"a","output":"b"}"#,
            ),
            (
                r#"{"instruction":"a","input":"","output":"b","text":"full"}"#,
                r#"{"instruction":"a","output":"b"}"#,
            ),
            (
                r#"{"messages":[{"role":"user","content":"hi","tool_calls":null,"name":null}],"tools":null}"#,
                r#"{"messages":[{"role":"user","content":"hi"}]}"#,
            ),
            (
                r#"{"messages":[],"tools":"[{\"a\":1}]","parallel_tool_calls":false,"source":"here"}"#,
                r#"{"messages":[],"tools":[{"a":1}]}"#,
            ),
            (
                r#"{"prompt":"a","completion":"b","labels":null}"#,
                r#"{"prompt":"a","completion":"b"}"#,
            ),
        ] {
            assert_eq!(parse_text(row)?, parse_text(same)?, "{row}");
        }
        Ok(())
    }

    #[test]
    fn broken_json_is_reported_with_its_line_and_column() {
        let place = |text: &str| match parse_text(text) {
            Err(Error::Json { line, column, .. }) => (line, column),
            other => panic!("{text:?} gave {other:?}"),
        };
        assert_eq!(place("{\"prompt\":\"a\",\"completion\":\"b\"}\n\n{\"prompt\":}"), (3, 11));
        assert_eq!(place("[{\"prompt\":\"a\",\"completion\":\"b\"},\n {\"prompt\" 3}]"), (2, 12));
        assert_eq!(place("{\"prompt\":\"a\",\"completion\":"), (1, 27));
        assert_eq!(place("[1,"), (1, 3));
    }

    #[test]
    fn rows_of_no_form_are_refused_with_their_place() {
        let good = ROWS[0];
        for (bad, word) in [
            (r#"{"promt":"a","completion":"b"}"#, "none of"),
            (r#"{"prompt":"a"}"#, "completion"),
            (r#"{"prompt":"a","completion":"b","extra":1}"#, "extra"),
            (r#"{"prompt":"a","completion":"b","instruction":"c"}"#, "prompt"),
            (r#"{"prompt":1,"completion":"b"}"#, "string"),
            (r#"{"messages":[{"content":"a"}]}"#, "no role"),
            (r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, "image_url"),
            (r#"{"messages":[],"tools":[1]}"#, "tools"),
            (r#"{"messages":[],"functions":[{}]}"#, "tools"),
            (r#"{"prompt":"a","completion":null}"#, "completion"),
            (r#"{"prompt":"a","completion":"b","text":"c"}"#, "text"),
            (r#"{"input_ids":[1.5],"prompt_length":0}"#, "1.5"),
            (r#"{"input_ids":[1],"prompt_length":-1}"#, "-1"),
            (r#"{"input_ids":[1]}"#, "prompt_length"),
            (r#"{"prompt":"a","completion":"b","subspace":"all"}"#, "subspace"),
            (r#"{"prompt":"a","completion":"b","id":[1]}"#, "id"),
            ("3", "object"),
        ] {
            let refused = parse_text(&format!("{good}\n{bad}"));
            assert!(
                matches!(&refused, Err(Error::Row { place, reason, .. }) if place == "line 2" && reason.contains(word)),
                "{bad} gave {refused:?}"
            );
            let refused = parse_text(&format!("[{good},{bad}]"));
            assert!(
                matches!(&refused, Err(Error::Row { place, .. }) if place == "row 2"),
                "{bad} gave {refused:?}"
            );
        }
    }

    #[test]
    fn files_without_a_row_are_refused() -> std::io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("empty.jsonl");
        for text in ["", "\n \n", "[]", "\u{feff}"] {
            std::fs::write(&path, text)?;
            assert!(matches!(read_records(&path), Err(Error::NoExamples { .. })), "{text:?}");
        }
        let missing = directory.path().join("missing.jsonl");
        assert!(
            matches!(read_records(&missing), Err(Error::Model(reft_models::Error::Io { action: "read", path, .. })) if path == missing)
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = parse_records(&bytes, Path::new("data.jsonl"), add_empty_response);
        }

        #[test]
        fn rows_with_a_byte_changed_are_read_or_refused(row in 0usize..5, at: prop::sample::Index, byte: u8) {
            let mut bytes = ROWS[row].as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _outcome = parse_records(&bytes, Path::new("data.jsonl"), add_empty_response);
        }
    }
}
