use std::collections::BTreeSet;
use std::path::Path;

use reft_models::{Message, plain_reason};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::data::files::hub_dataset::files_of;
use crate::data::files::table::empty_is_nothing;
use crate::data::rows::conversation::messages;
use crate::data::rows::form::{FoundForm, ID, Purpose, SUBSPACE, SYSTEM, labelled, unknown_name};
use crate::data::rows::preference::preference;
use crate::{ColumnNames, Error, Result, TableRow, read_table};

/// One row of a data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its `id`, or "row 3" for the third row of the file.
    pub id: String,
    /// The texts or tokens to learn.
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
        /// The prompt and the completion.
        input_ids: Vec<i64>,
        /// How many of them are the prompt.
        prompt_length: usize,
        /// One per token, −100 for a token that does not count in the loss; without them every token after the prompt counts.
        labels: Option<Vec<i64>>,
    },
    /// `{"messages": […]}`: a conversation, with optional `"tools"` that the assistant may call.
    #[serde(rename = "messages")]
    Chat {
        /// The turns.
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
        /// The subject of the task; may be empty.
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
        /// The prompt.
        prompt: String,
        /// The completion to be learned.
        completion: String,
    },
    /// `{"prompt", "chosen", "rejected"}`: two rows with one prompt; the chosen reply should become the likelier one.
    #[serde(skip)]
    Preference {
        /// The row with the preferred reply.
        chosen: Box<Content>,
        /// The row with the rejected reply.
        rejected: Box<Content>,
    },
    /// `{"text", "label"}`: a text, or tokens, with the label that a head learns.
    #[serde(skip)]
    Labelled {
        /// The labelled text.
        text: LabelledText,
        /// A class or a number, as the file has it.
        label: String,
    },
}

/// A text with a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelledText {
    /// A text, or two.
    Text {
        /// The text.
        text: String,
        /// The text after it, of a pair.
        text_pair: Option<String>,
    },
    /// Tokens that are used as they are.
    Tokens {
        /// The tokens.
        input_ids: Vec<i64>,
        /// Token types, for encoders that have them.
        token_types: Option<Vec<i64>>,
    },
}

impl Record {
    /// A row that is in no file. Messages name it by its id.
    pub fn new(id: impl Into<String>, content: Content) -> Self {
        Self { id: id.into(), content, subspace: None }
    }

    /// The same row with another content.
    pub(crate) fn with(&self, content: Content) -> Self {
        Self { content, ..self.clone() }
    }

    /// [`Error::Refused`] for this row, with the reason.
    pub(crate) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Refused { id: self.id.clone(), reason: reason.into() }
    }

    /// [`Error::Example`] for this row: tokenizer or chat template failed.
    pub(crate) fn failed(&self, source: reft_models::Error) -> Error {
        Error::Example { id: self.id.clone(), source: Box::new(source) }
    }
}

/// Reads a list, or a JSON text of one, as in files without nested columns.
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

/// Reads a data file: CSV, TSV, Parquet or JSON with a row of any of the [`ROW_FORMS`](crate::ROW_FORMS), packed or not. Rows of several
/// forms may be mixed. The log names unused columns, and the meaning of ambiguous ones.
///
/// # Errors
/// If the file cannot be read; [`Error::Json`] with line and column; [`Error::Row`] for a row that has none of the forms;
/// [`Error::DataFile`]; [`Error::NoExamples`].
pub fn read_records(path: &Path, columns: Option<&ColumnNames>) -> Result<Vec<Record>> {
    RowReader::of(columns, Purpose::Learn).read(path)
}

/// Reads a file of prompts: rows as for [`read_records`], whose completion may be missing.
///
/// # Errors
/// As [`read_records`].
pub fn read_prompts(path: &Path, columns: Option<&ColumnNames>) -> Result<Vec<Record>> {
    RowReader::of(columns, Purpose::Prompt).read(path)
}

/// Reads a data file of preferences: two replies to one prompt in each row ([`PREFERENCE_FORM`](crate::PREFERENCE_FORM)).
///
/// # Errors
/// As [`read_records`].
pub fn read_preferences(path: &Path, columns: Option<&ColumnNames>) -> Result<Vec<Record>> {
    RowReader::of(columns, Purpose::Prefer).read(path)
}

/// Reads a data file of labelled texts, of one or of two, or of labelled tokens ([`LABELLED_FORMS`](crate::LABELLED_FORMS)).
///
/// # Errors
/// As [`read_records`].
pub fn read_labelled(path: &Path, columns: Option<&ColumnNames>) -> Result<Vec<Record>> {
    read_labelled_rows(path, None, columns)
}

/// [`read_labelled`], with the column names of a CSV or TSV file in `header`.
///
/// # Errors
/// As [`read_records`].
pub fn read_labelled_rows(
    path: &Path,
    header: Option<&[String]>,
    columns: Option<&ColumnNames>,
) -> Result<Vec<Record>> {
    RowReader { header, ..RowReader::of(columns, Purpose::Label) }.read(path)
}

/// How rows are read.
#[derive(Clone, Copy)]
struct RowReader<'a> {
    columns: Option<&'a ColumnNames>,
    purpose: Purpose,
    /// Column names of a CSV or TSV file without a header line.
    header: Option<&'a [String]>,
}

/// Notes about a file, each said once.
#[derive(Debug, Default)]
struct Remarks {
    taken_for: BTreeSet<String>,
    unused: BTreeSet<String>,
}

impl<'a> RowReader<'a> {
    const fn of(columns: Option<&'a ColumnNames>, purpose: Purpose) -> Self {
        Self { columns, purpose, header: None }
    }

    fn read(&self, path: &Path) -> Result<Vec<Record>> {
        let mut remarks = Remarks::default();
        let mut records = Vec::new();
        for path in files_of(path)? {
            let mut rows = read_table(&path, self.header)?;
            if empty_is_nothing(&path) {
                rows.iter_mut().for_each(|row| row.fields.retain(|_, value| value != ""));
            }
            self.check_columns(&rows)
                .map_err(|reason| Error::DataFile { path: path.clone(), reason })?;
            for row in rows {
                let id = format!("row {}", records.len() + 1);
                let record = self.record(row.fields, id, &mut remarks);
                records.push(record.map_err(|reason| Error::Row {
                    path: path.clone(),
                    place: row.place.to_string(),
                    reason,
                })?);
            }
        }
        remarks.say(path);
        Ok(records)
    }

    /// Checks that the named columns exist.
    fn check_columns(&self, rows: &[TableRow]) -> Result<(), String> {
        let Some(columns) = self.columns else { return Ok(()) };
        let forms = self.purpose.forms();
        if let Some(unknown) = unknown_name(columns, &forms) {
            let mut known: Vec<&str> =
                forms.iter().flat_map(|form| form.columns).map(|column| column.names[0]).collect();
            known.sort_unstable();
            known.dedup();
            return Err(format!(
                "--columns gives a column the name {unknown}, which rows do not have; use {}",
                known.join(", ")
            ));
        }
        columns.check(rows)
    }

    fn record(
        &self,
        mut fields: Map<String, Value>,
        default_id: String,
        remarks: &mut Remarks,
    ) -> Result<Record, String> {
        fields.retain(|_, value| !value.is_null()); // null is a missing value
        if let Some(columns) = self.columns {
            columns.rename(&mut fields);
        }
        let id = fields.remove(ID).unwrap_or_default();
        let id = text_or_number(id).map_err(|_| "id is neither a text nor a number")?;
        let subspace = in_json(fields.remove(SUBSPACE).unwrap_or_default());
        let subspace = serde_json::from_value(subspace)
            .map_err(|error| format!("subspace: {}", plain_reason(&error)))?;
        let found = FoundForm::of(&fields, self.columns, self.purpose)?;
        if self.purpose == Purpose::Learn {
            labelled(&found, &fields)?;
        }
        let others = fields.iter().filter(|(name, _)| found.form.others.find(name).is_some());
        found.form.others.check(others.filter(|(name, _)| !found.has(name)))?;
        remarks.unused.extend(found.unused(&fields).map(str::to_owned));
        remarks.taken_for.extend(found.said());
        let content = self.content(&found, fields)?;
        Ok(Record { id: id.unwrap_or(default_id), content, subspace })
    }

    /// The contents of a row.
    fn content(
        &self,
        found: &FoundForm,
        mut fields: Map<String, Value>,
    ) -> Result<Content, String> {
        let mut own: Map<String, Value> = Map::new();
        for (column, name) in &found.columns {
            let value = fields.remove(*name).unwrap_or_default();
            own.insert(column.field.to_owned(), value_of(column.field, name, value)?);
        }
        let system = own.remove(SYSTEM);
        if self.purpose == Purpose::Prefer {
            return preference(own, system);
        }
        if self.purpose == Purpose::Label {
            return labelled_content(own);
        }
        if self.purpose == Purpose::Prompt {
            add_empty_response(found.form.content, &mut own);
        } else if found.form.content == "prompt" {
            own.entry("prompt").or_insert_with(|| json!("")); // without a prompt, the whole text is learned
        }
        let mut form = found.form.content;
        if let Some(messages) = messages_of_lists(&mut own)? {
            own.insert("messages".to_owned(), messages);
            form = "messages";
        }
        let content =
            serde_json::from_value(json!({ form: own })).map_err(|error| plain_reason(&error))?;
        match system {
            Some(system) => with_system(content, system),
            None => Ok(content),
        }
    }
}

impl Remarks {
    fn say(&self, path: &Path) {
        let path = path.display();
        for taken in &self.taken_for {
            log::info!("{path}: rows are {taken} (--columns NAME=COLUMN says otherwise)");
        }
        if !self.unused.is_empty() {
            let unused: Vec<&str> = self.unused.iter().map(String::as_str).collect();
            log::info!("{path}: not used: {}", unused.join(", "));
        }
    }
}

/// A labelled text or labelled tokens, of the fields of their form.
fn labelled_content(mut own: Map<String, Value>) -> Result<Content, String> {
    let label = match own.remove("label").unwrap_or_default() {
        Value::String(label) => label.trim().to_owned(),
        Value::Number(label) => label.to_string(),
        Value::Bool(label) => label.to_string(),
        other => return Err(format!("label is {other}, expected a name or a number")),
    };
    if label.is_empty() {
        return Err("label is empty, expected a name or a number".to_owned());
    }
    let mut text_of = |name: &str| match own.remove(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{name} is {other}, expected a text")),
    };
    let text = match (text_of("text")?, text_of("text_pair")?) {
        (Some(text), text_pair) => LabelledText::Text { text, text_pair },
        (None, _) => {
            let mut ids_of = |name: &str| {
                let ids = own.remove(name).map(serde_json::from_value).transpose();
                ids.map_err(|error| format!("{name}: {}", plain_reason(&error)))
            };
            let input_ids = ids_of("input_ids")?.unwrap_or_default();
            LabelledText::Tokens { input_ids, token_types: ids_of("token_type_ids")? }
        }
    };
    Ok(Content::Labelled { text, label })
}

/// A column's value in the type of its field: files without nested columns hold lists as texts.
fn value_of(field: &str, name: &str, value: Value) -> Result<Value, String> {
    match field {
        "messages" => Ok(Value::Array(messages(value)?)),
        "input_ids" | "prompt_length" | "labels" | "token_type_ids" => Ok(in_json(value)),
        // answers are often numbers
        "output" if name != field => match value {
            Value::Number(number) => Ok(json!(number.to_string())),
            other => Ok(other),
        },
        _ => Ok(value),
    }
}

/// Parses a text of JSON; any other value stays as it is.
fn in_json(value: Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
        other => other,
    }
}

/// The conversation of a row with a list of messages as prompt, and messages or a text as completion; `None` for other prompts.
fn messages_of_lists(fields: &mut Map<String, Value>) -> Result<Option<Value>, String> {
    if !fields.get("prompt").is_some_and(Value::is_array) {
        return Ok(None);
    }
    let mut all = messages(fields.remove("prompt").unwrap_or_default())?;
    match fields.remove("completion") {
        Some(Value::String(text)) => all.push(json!({ "role": "assistant", "content": text })),
        Some(completion) => all.extend(messages(completion)?),
        None => {}
    }
    Ok(Some(Value::Array(all)))
}

/// Puts a system message before a content that has none.
pub(crate) fn with_system(content: Content, system: Value) -> Result<Content, String> {
    let Value::String(system) = system else {
        return Err(format!("system is {system}, expected a text"));
    };
    let tools = match &content {
        Content::Chat { tools, .. } => tools.clone(),
        _ => None,
    };
    let said = content.messages().unwrap_or_default();
    let has_own = said.first().is_some_and(|message| message.role() == "system");
    if system.is_empty() || has_own {
        return Ok(content);
    }
    let messages = [vec![Message::new("system", system)], said].concat();
    Ok(Content::Chat { messages, tools })
}

/// Gives a row without a response an empty one.
fn add_empty_response(form: &str, fields: &mut Map<String, Value>) {
    let nothing = || Value::String(String::new());
    match form {
        "input_ids" => {
            let input_ids = fields.get("input_ids").and_then(Value::as_array);
            let prompt_length = input_ids.map_or(0, Vec::len);
            fields.entry("prompt_length").or_insert_with(|| prompt_length.into());
        }
        "messages" => {
            let is_reply = |message: &Value| message["role"] == "assistant";
            if let Some(Value::Array(messages)) = fields.get_mut("messages")
                && !messages.last().is_some_and(is_reply)
            {
                messages.push(json!({ "role": "assistant", "content": "" }));
            }
        }
        "instruction" => _ = fields.entry("output").or_insert_with(nothing),
        _ => {
            if !fields.contains_key("prompt") {
                let text = fields.remove("completion").unwrap_or_default(); // a text is the prompt
                fields.insert("prompt".to_owned(), text);
            }
            fields.entry("completion").or_insert_with(nothing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rows of a text, read as a file of this name.
    fn read(name: &str, text: impl AsRef<[u8]>, reader: RowReader) -> Result<Vec<Record>> {
        let failed = reft_models::io_error("write", Path::new(name));
        let directory = tempfile::tempdir().map_err(failed)?;
        let path = directory.path().join(name);
        std::fs::write(&path, text).map_err(reft_models::io_error("write", &path))?;
        reader.read(&path)
    }

    const TRAINING: RowReader = RowReader::of(None, Purpose::Learn);
    const PROMPTS: RowReader = RowReader::of(None, Purpose::Prompt);

    fn parse_text(text: &str) -> Result<Vec<Record>> {
        read("data.jsonl", text, TRAINING)
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
            (r#"{"question":"q"}"#, r#"{"instruction":"q","output":""}"#),
            (r#"{"text":"a"}"#, r#"{"prompt":"a","completion":""}"#),
            (
                r#"{"prompt":[{"role":"user","content":"hi"}]}"#,
                r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":""}]}"#,
            ),
        ];
        for (prompt, row) in prompts {
            assert_eq!(read("prompts.jsonl", prompt, PROMPTS)?, parse_text(row)?, "{prompt}");
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
    fn columns_that_are_not_used_are_kept_apart_from_those_that_change_nothing() -> Result<()> {
        let rows = [
            r#"{"prompt":"a","completion":"b","score":1,"category":"c","empty":""}"#,
            r#"{"prompt":"a","completion":"b","text":"c","instruction":"d"}"#,
        ];
        let mut remarks = Remarks::default();
        for row in rows {
            let fields = serde_json::from_str(row).unwrap_or_default();
            let record = TRAINING.record(fields, "it".to_owned(), &mut remarks);
            let expected = Content::Completion { prompt: "a".into(), completion: "b".into() };
            assert_eq!(record.map(|record| record.content), Ok(expected), "{row}");
        }
        assert_eq!(Vec::from_iter(remarks.unused), ["instruction", "score", "text"]);
        assert!(remarks.taken_for.is_empty());
        Ok(())
    }

    #[test]
    fn rows_that_people_have_are_known_by_their_columns() -> Result<()> {
        let same = |row: &str, as_row: &str| -> Result<()> {
            assert_eq!(parse_text(row)?, parse_text(as_row)?, "{row}");
            Ok(())
        };
        let asked = r#"{"instruction":"q","output":"a"}"#;
        same(r#"{"question":"q","answer":"a"}"#, asked)?;
        same(r#"{"query":"q","response":"a","original_question":"o"}"#, asked)?;
        same(r#"{"question":"q","answer":7}"#, r#"{"instruction":"q","output":"7"}"#)?;
        let about = r#"{"instruction":"q","input":"c","output":"a"}"#;
        same(r#"{"instruction":"q","context":"c","response":"a","category":"x"}"#, about)?;
        same(r#"{"prompt":"q","response":"a"}"#, r#"{"prompt":"q","completion":"a"}"#)?;
        same(r#"{"text":"a"}"#, r#"{"prompt":"","completion":"a"}"#)?;
        let talk = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#;
        same(
            r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"a"}],"system":"s"}"#,
            talk,
        )?;
        same(r#"{"system_prompt":"s","question":"q","response":"a"}"#, talk)?;
        same(
            r#"{"prompt":[{"role":"system","content":"s"},{"role":"user","content":"q"}],"completion":[{"role":"assistant","content":"a"}]}"#,
            talk,
        )
    }

    #[test]
    fn named_columns_decide_the_form() -> Result<()> {
        let columns = |text: &str| -> Result<ColumnNames> { Ok(text.parse()?) };
        let read_with = |names: &str, text: &str| {
            let columns = columns(names)?;
            read("data.jsonl", text, RowReader::of(Some(&columns), Purpose::Learn))
        };
        let row = r#"{"messages":[],"question":"q","answer":"a","prompt":"p"}"#;
        let as_it_stands = parse_text(r#"{"prompt":"q","completion":"a"}"#)?;
        assert_eq!(read_with("prompt=question,completion=answer", row)?, as_it_stands);
        for (names, words) in [
            (
                "prompt=qestion",
                "names the column qestion, which no row has; the columns are answer, messages, prompt, question",
            ),
            ("promt=question", "the name promt, which rows do not have; use"),
        ] {
            let refused = read_with(names, row);
            assert!(
                matches!(&refused, Err(Error::DataFile { reason, .. }) if reason.contains(words)),
                "{refused:?}"
            );
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
            (r#"{"promt":"a","completion":"b"}"#, "the row has promt, completion; expected"),
            (r#"{"prompt":"a"}"#, "completion"),
            (
                r#"{"question":"a","reply":"b"}"#,
                "it lacks answer; say which column that is with --columns answer=COLUMN",
            ),
            (r#"{"prompt":1,"completion":"b"}"#, "string"),
            (r#"{"messages":[{"content":"a"}]}"#, "no role"),
            (r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, "image_url"),
            (r#"{"messages":[],"tools":[1]}"#, "tools"),
            (r#"{"messages":[],"functions":[{}]}"#, "tools"),
            (r#"{"prompt":"a","completion":null}"#, "completion"),
            (r#"{"input_ids":[1.5],"prompt_length":0}"#, "1.5"),
            (r#"{"input_ids":[1],"prompt_length":-1}"#, "-1"),
            (r#"{"input_ids":[1]}"#, "prompt_length"),
            (r#"{"conversations":[{"from":"alien","value":"a"}]}"#, "turn 1 is from \"alien\""),
            (r#"{"question":"a","answer":"b","system":[1]}"#, "system is [1]"),
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
            assert!(matches!(read_records(&path, None), Err(Error::NoExamples { .. })), "{text:?}");
        }
        let missing = directory.path().join("missing.jsonl");
        assert!(
            matches!(read_records(&missing, None), Err(Error::Model(reft_models::Error::Io { action: "read", path, .. })) if path == missing)
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _outcome = read("data.jsonl", &bytes, PROMPTS);
        }

        #[test]
        fn rows_with_a_byte_changed_are_read_or_refused(row in 0usize..5, at: prop::sample::Index, byte: u8) {
            let mut bytes = ROWS[row].as_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _outcome = read("data.jsonl", &bytes, PROMPTS);
        }
    }
}
