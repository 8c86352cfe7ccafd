use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{Row, read_text};
use reft_train::{
    ColumnNames, Content, Encoding, Example, Labels, Record, TextTemplate, column,
    read_labelled_rows, read_preferences, read_records,
};

use crate::tasks::task_row::{TaskRow, task_rows};
use crate::{Error, Result, Scoring, TaskConfig, TaskKind};

/// A row of a task: the question, the expected reply, and the choices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Prompt and completion, as training takes them. Its id is the place in the file.
    pub record: Record,
    /// The right answer.
    pub answer: String,
    /// The choices; empty where the task is no choice.
    pub choices: Vec<Choice>,
}

/// One of the answers to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The answer.
    pub answer: String,
    /// The completion that says it.
    pub completion: String,
}

/// The rows of a data file as questions; `columns` names columns anew.
///
/// # Errors
/// [`reft_models::Error::Line`] for a row with a missing column or an unknown label; errors of [`read_records`] and
/// [`reft_train::read_table`]; an error for a text to be memorised that is empty or not UTF-8.
pub fn read_questions(
    task: &TaskConfig,
    path: &Path,
    columns: Option<&ColumnNames>,
) -> Result<Vec<Question>> {
    if let (TaskKind::Memorise, Some(prompt)) = (task.kind, &task.prompt) {
        return Ok(vec![whole_text(prompt, path)?]);
    }
    if matches!(task.kind, TaskKind::Lm | TaskKind::Memorise) {
        let question = |mut record: Record| {
            record.id = format!("{} of {}", record.id, path.display());
            Question { record, answer: String::new(), choices: Vec::new() }
        };
        return Ok(read_records(path, columns)?.into_iter().map(question).collect());
    }
    if task.kind.told().is_some() || task.kind.has_pairs() {
        let rows = match task.kind.has_pairs() {
            true => read_preferences(path, columns)?,
            false => read_labelled_rows(path, task.columns.as_deref(), columns)?,
        };
        let question = |mut record: Record| {
            record.id = format!("{} of {}", record.id, path.display());
            let answer = match &record.content {
                Content::Labelled { label, .. } => label.clone(),
                _ => String::new(),
            };
            Question { record, answer, choices: Vec::new() }
        };
        return Ok(rows.into_iter().map(question).collect());
    }
    let rows = task_rows(path, task.columns.as_deref(), columns)?;
    let parse =
        |template: &Option<String>| template.as_deref().map(TextTemplate::parse).transpose();
    let in_file = |reason: String| Error::File { path: path.to_owned(), reason };
    let templates = Templates {
        prompt: parse(&task.prompt).map_err(in_file)?,
        completion: parse(&task.completion).map_err(in_file)?,
    };
    let question = |row: &TaskRow| {
        let question = templates.question(task, path, row);
        question.map_err(|reason| row.refused(path, reason))
    };
    rows.iter().map(question).collect()
}

/// A text file as the completion of a prompt.
fn whole_text(prompt: &str, path: &Path) -> Result<Question> {
    let completion = read_text(path)?;
    if completion.is_empty() {
        let reason = "the file is empty, expected a text to be memorised".to_owned();
        return Err(Error::File { path: path.to_owned(), reason });
    }
    let id = path.display().to_string();
    let content = Content::Completion { prompt: prompt.to_owned(), completion };
    let record = Record { id, content, subspace: None };
    Ok(Question { record, answer: String::new(), choices: Vec::new() })
}

struct Templates {
    prompt: Option<TextTemplate>,
    completion: Option<TextTemplate>,
}

impl Templates {
    fn question(&self, task: &TaskConfig, path: &Path, row: &TaskRow) -> Result<Question, String> {
        let fields = &row.fields;
        let found = column(fields, task.answer.as_deref().unwrap_or("answer"))?.trim();
        let (instruction, input) = match &self.prompt {
            Some(prompt) => (prompt.render(fields)?, String::new()),
            None => {
                let input = fields.get("input").cloned().unwrap_or_default();
                (column(fields, "instruction")?.to_owned(), input)
            }
        };
        let answer = match task.kind {
            TaskKind::Choice => task.labels.get(found).ok_or_else(|| {
                let known: Vec<&str> = task.labels.keys().map(String::as_str).collect();
                format!("label {found:?} has no word; labels has {}", known.join(", "))
            })?,
            _ => found,
        };
        let answers: Vec<String> = match task.kind {
            TaskKind::Choice => task.labels.values().cloned().collect(),
            TaskKind::Commonsense => choices_named(&instruction),
            _ => Vec::new(),
        };
        if task.kind == TaskKind::Commonsense {
            let needs_choices = task.scoring() != Scoring::ExactMatch;
            if answers.is_empty() && needs_choices {
                return Err("the instruction does not end with \"Answer format: a/b/…\"".to_owned());
            }
            if !answers.is_empty() && !answers.iter().any(|choice| choice == answer) {
                return Err(format!("answer {answer:?} is none of {}", answers.join("/")));
            }
        }
        let completion = self.completion(task, fields, answer)?;
        let choice = |word: String| {
            let completion = match task.kind {
                TaskKind::Commonsense => format!("{LEAD} {word}"),
                _ => self.completion(task, fields, &word)?,
            };
            Ok(Choice { answer: word, completion })
        };
        let choices = answers.into_iter().map(choice).collect::<Result<_, String>>()?;
        let id = format!("{}, {}", path.display(), row.place());
        let answer = answer.to_owned();
        let content = Content::Instruction {
            instruction,
            input,
            output: completion,
            answer: Some(answer.clone()),
        };
        Ok(Question { record: Record { id, content, subspace: None }, answer, choices })
    }

    fn completion(
        &self,
        task: &TaskConfig,
        fields: &BTreeMap<String, String>,
        answer: &str,
    ) -> Result<String, String> {
        match &self.completion {
            Some(completion) => {
                let mut fields = fields.clone();
                fields.insert("answer".to_owned(), answer.to_owned());
                completion.render(&fields)
            }
            None if task.kind == TaskKind::Choice => Ok(answer.to_owned()),
            None => Ok(column(fields, "output")?.to_owned()),
        }
    }
}

/// The words that precede the answer of a commonsense task.
pub(crate) const LEAD: &str = "the correct answer is";

/// The answers that an instruction of LLM-Adapters names at its end.
fn choices_named(instruction: &str) -> Vec<String> {
    let format = instruction.rsplit_once("Answer format:");
    let answers = format.map(|(_, answers)| answers.trim().split('/').map(|a| a.trim().to_owned()));
    answers.map(Iterator::collect).unwrap_or_default()
}

/// A [`Question`] in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedQuestion {
    /// The prompt and the expected reply, with the end token.
    pub example: Example,
    /// The right answer.
    pub answer: String,
    /// The completions to choose from, each with its answer and the end token.
    pub choices: Vec<(String, Vec<i64>)>,
}

impl EncodedQuestion {
    /// The prompt alone.
    pub fn prompt(&self) -> Row {
        self.with_completion(&[])
    }

    /// The tokens of the expected reply.
    pub fn completion(&self) -> &[i64] {
        let row = self.example.row();
        &row.input_ids[row.prompt_length..]
    }

    /// Number of tokens of the longest choice; 0 without choices.
    pub(crate) fn longest_choice(&self) -> usize {
        self.choices.iter().map(|(_, tokens)| tokens.len()).max().unwrap_or(0)
    }

    /// The prompt followed by another completion.
    pub fn with_completion(&self, completion: &[i64]) -> Row {
        let row = self.example.row();
        let input_ids = [&row.input_ids[..row.prompt_length], completion].concat();
        Row { input_ids, ..row.clone() }
    }
}

/// Cuts an example to its first `length` tokens.
pub(crate) fn cut(example: &mut Example, length: usize) {
    for sequence in &mut example.sequences {
        sequence.row.input_ids.truncate(length);
        sequence.row.prompt_length = sequence.row.prompt_length.min(length);
        sequence.labels.truncate(length);
    }
}

/// Questions in tokens, checked against the task's scoring. They are not cut, even if the encoding has a smaller `max_length`.
///
/// # Errors
/// If a question cannot be tokenised or is shorter than the task's `length`; if a choice has several tokens and the scoring takes one; if two
/// choices have the same tokens.
pub fn encode_questions(
    task: &TaskConfig,
    questions: &[Question],
    encoding: &Encoding,
) -> Result<Vec<EncodedQuestion>> {
    let records: Vec<Record> = questions.iter().map(|question| question.record.clone()).collect();
    let examples = Encoding { max_length: usize::MAX, ..*encoding }.examples(&records)?;
    let encode = |(question, mut example): (&Question, Example)| {
        match task.length {
            Some(length) if task.kind.has_pairs() => example.keep_labels(length),
            Some(length) => cut_completion(&mut example, length)?,
            None => {}
        }
        let choices = question.choices.iter().map(|choice| {
            let tokens = completion_tokens(question, choice, encoding)?;
            Ok((choice.answer.clone(), tokens))
        });
        let choices = choices.collect::<Result<_>>()?;
        let encoded = EncodedQuestion { example, answer: question.answer.clone(), choices };
        check(task, question, &encoded)?;
        Ok(encoded)
    };
    questions.iter().zip(examples).map(encode).collect()
}

/// Questions for a head, in tokens, cut to the encoding's `max_length`.
///
/// # Errors
/// As [`Labels::examples`].
pub(crate) fn encode_labelled(
    labels: &Labels,
    questions: &[Question],
    encoding: &Encoding,
) -> Result<Vec<EncodedQuestion>> {
    let records: Vec<Record> = questions.iter().map(|question| question.record.clone()).collect();
    let examples = labels.examples(&records, encoding)?;
    let encoded = |(question, example): (&Question, Example)| EncodedQuestion {
        example,
        answer: question.answer.clone(),
        choices: Vec::new(),
    };
    Ok(questions.iter().zip(examples).map(encoded).collect())
}

/// Cuts the completion of an example to its first `length` tokens.
fn cut_completion(example: &mut Example, length: usize) -> Result<()> {
    let row = example.row();
    let (prompt_length, found) = (row.prompt_length, row.input_ids.len() - row.prompt_length);
    if found < length {
        let reason = format!(
            "the completion has {found} tokens with its end token, length is {length}; lower length"
        );
        return Err(reft_train::Error::Refused { id: example.id.clone(), reason }.into());
    }
    cut(example, prompt_length + length);
    Ok(())
}

/// The tokens of a choice's completion. Only tasks with text rows have choices, so there is a text encoder.
fn completion_tokens(
    question: &Question,
    choice: &Choice,
    encoding: &Encoding,
) -> Result<Vec<i64>> {
    let mut record = question.record.clone();
    if let Content::Instruction { output, .. } = &mut record.content {
        output.clone_from(&choice.completion);
    }
    let Some(encoder) = encoding.text else { return Ok(Vec::new()) };
    Ok(encoder.encode(&record)?.1)
}

fn check(task: &TaskConfig, question: &Question, encoded: &EncodedQuestion) -> Result<()> {
    let refuse = |reason: String| {
        Err(reft_train::Error::Refused { id: encoded.example.id.clone(), reason }.into())
    };
    let prompt_length = encoded.example.row().prompt_length;
    if prompt_length == 0 && task.kind != TaskKind::Lm {
        return refuse("the prompt has no tokens; expected at least one".to_owned());
    }
    if task.scoring() == Scoring::NextToken {
        for ((answer, tokens), choice) in encoded.choices.iter().zip(&question.choices) {
            let found = tokens.len() - 1; // without the end token
            if found != 1 {
                return refuse(format!(
                    "{:?}, which says {answer:?}, is {found} tokens; scoring next_token takes one token: use log_probability, or other words",
                    choice.completion
                ));
            }
        }
    }
    for (i, (answer, tokens)) in encoded.choices.iter().enumerate() {
        if let Some((other, _)) = encoded.choices[..i].iter().find(|(_, other)| other == tokens) {
            return refuse(format!("{answer:?} and {other:?} have the same tokens"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::line_refused;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn questions(task: &TaskConfig, name: &str, text: &str) -> Result<Vec<Question>> {
        let directory =
            tempfile::tempdir().map_err(reft_models::io_error("create", Path::new(name)))?;
        let path = directory.path().join(name);
        std::fs::write(&path, text).map_err(reft_models::io_error("write", &path))?;
        read_questions(task, &path, None)
    }

    fn sentiment() -> Result<TaskConfig> {
        let text = "type = \"choice\"\nprompt = \"Review: {text}\"\ncompletion = \"It is {answer}\"\nanswer = \"label\"\n\
                    columns = [\"text\", \"label\"]\nlabels = { 0 = \"bad\", 1 = \"good\" }";
        TaskConfig::parse(text, Path::new("t.toml"))
    }

    fn texts(question: &Question) -> (String, String) {
        match &question.record.content {
            Content::Instruction { instruction, output, .. } => {
                (instruction.clone(), output.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn label_words_stand_for_labels() -> TestResult {
        let questions = questions(&sentiment()?, "a.tsv", "fine , really\t1\nawful\t0\n")?;
        assert_eq!(texts(&questions[0]), ("Review: fine , really".into(), "It is good".into()));
        assert_eq!(questions[1].answer, "bad");
        let choices: Vec<&str> =
            questions[1].choices.iter().map(|choice| choice.completion.as_str()).collect();
        assert_eq!(choices, ["It is bad", "It is good"]);
        assert!(questions[1].record.id.ends_with("a.tsv, line 2"));
        Ok(())
    }

    #[test]
    fn unknown_labels_and_missing_columns_are_named_with_their_line() -> TestResult {
        let refused = |task: &TaskConfig, name, text| line_refused(questions(task, name, text));
        let task = sentiment()?;
        let (line, reason) = refused(&task, "a.tsv", "x\t1\ny\t2\n");
        assert_eq!((line, reason.as_str()), (2, "label \"2\" has no word; labels has 0, 1"));
        let named = TaskConfig { columns: None, ..task };
        let (line, reason) = refused(&named, "a.csv", "sentence,label\nx,1\n");
        assert_eq!(
            (line, reason.as_str()),
            (2, "the row has no column \"text\"; it has label, sentence")
        );
        Ok(())
    }

    #[test]
    fn commonsense_rows_name_their_choices() -> TestResult {
        let task = TaskConfig::built_in("commonsense").ok_or("no such task")?;
        let row = r#"{"instruction": "Q?\n\nAnswer format: solution1/solution2", "input": "", "output": "the correct answer is solution2", "answer": "solution2"}"#;
        let question = questions(&task, "a.jsonl", row)?.remove(0);
        let choices: Vec<&str> =
            question.choices.iter().map(|choice| choice.completion.as_str()).collect();
        assert_eq!(choices, ["the correct answer is solution1", "the correct answer is solution2"]);
        assert_eq!(texts(&question).1, choices[1]);
        let wrong = row.replace("\"answer\": \"solution2\"", "\"answer\": \"c\"");
        assert_eq!(line_refused(questions(&task, "a.jsonl", &wrong)).0, 1);
        Ok(())
    }
}
