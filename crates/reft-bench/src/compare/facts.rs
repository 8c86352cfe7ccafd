use std::collections::HashSet;
use std::path::{Path, PathBuf};

use reft_models::Message;
use reft_train::{Content, Example, LabelledText, Sequence};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Question;

/// The data of a comparison, as facts that identify them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataFacts {
    /// Rows trained on.
    pub train: PartFacts,
    /// Rows that rates are chosen on.
    pub validation: PartFacts,
    /// Rows tested on, one part per file.
    pub test: Vec<PartFacts>,
    /// Training examples longer than the maximum length, which are cut.
    pub cut: usize,
    /// Rows that occur in more than one part.
    pub leakage: Leakage,
    /// Windows and digest of the neutral text.
    pub neutral: Option<PartFacts>,
    /// Rows that are replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<PartFacts>,
}

/// A part of the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartFacts {
    /// The file.
    pub file: PathBuf,
    /// Rows of the file.
    pub available: usize,
    /// Rows used.
    pub used: usize,
    /// Tokens of the rows used, prompt and completion.
    pub tokens: usize,
    /// SHA-256 of their tokens and answers.
    pub digest: String,
}

impl PartFacts {
    /// The facts of examples, each with its right answer, that were drawn from the `available` rows of a file.
    pub(crate) fn of(file: &Path, available: usize, used: &[(&Example, &str)]) -> Self {
        let mut hasher = Sha256::new();
        for (example, answer) in used {
            for Sequence { row, labels } in &example.sequences {
                hasher.update((row.prompt_length as u64).to_le_bytes());
                hasher.update((row.input_ids.len() as u64).to_le_bytes());
                row.input_ids.iter().chain(labels).for_each(|id| {
                    hasher.update(id.to_le_bytes());
                });
            }
            hasher.update((answer.len() as u64).to_le_bytes());
            hasher.update(answer);
        }
        Self {
            file: file.to_owned(),
            available,
            used: used.len(),
            tokens: used.iter().map(|(example, _)| example.row().input_ids.len()).sum(),
            digest: hex(&hasher.finalize()),
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Rows of one part of the data that also occur in another part: equal except for case, blanks and punctuation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leakage {
    /// Training rows that also occur in a test set.
    pub train_in_test: usize,
    /// Training rows that also occur in the validation set.
    pub train_in_validation: usize,
    /// Validation rows that also occur in a test set.
    pub validation_in_test: usize,
    /// Where the first few rows of `train_in_test` are.
    pub places: Vec<String>,
}

/// How many rows [`Leakage::places`] names at most.
const NAMED: usize = 5;

impl Leakage {
    /// Compares the prompts of three parts.
    pub fn between(train: &[Question], validation: &[Question], test: &[&[Question]]) -> Self {
        let keys = |questions: &[Question]| questions.iter().map(key).collect::<HashSet<_>>();
        let tested: HashSet<String> = test.iter().flat_map(|part| keys(part)).collect();
        let validated = keys(validation);
        let count = |questions: &[Question], set: &HashSet<String>| {
            questions.iter().filter(|question| set.contains(&key(question))).count()
        };
        let leaked = train.iter().filter(|question| tested.contains(&key(question)));
        Self {
            train_in_test: count(train, &tested),
            train_in_validation: count(train, &validated),
            validation_in_test: count(validation, &tested),
            places: leaked.take(NAMED).map(|question| question.record.id.clone()).collect(),
        }
    }
}

/// The key by which rows are equal: the words of the prompt, or of the reply if the prompt is empty.
fn key(question: &Question) -> String {
    match question.record.content.first() {
        Content::Completion { prompt, completion } if prompt.is_empty() => words(completion),
        Content::Completion { prompt, .. } => words(prompt),
        Content::Instruction { instruction, input, .. } => words(&format!("{instruction} {input}")),
        Content::Chat { messages, .. } => {
            let asked = messages.iter().filter(|message| message.role() != "assistant");
            words(&asked.map(Message::text).collect::<Vec<_>>().join(" "))
        }
        Content::Preference { .. } => String::new(),
        Content::Labelled { text: LabelledText::Text { text, text_pair }, .. } => {
            words(&format!("{text} {}", text_pair.as_deref().unwrap_or_default()))
        }
        Content::Labelled { text: LabelledText::Tokens { input_ids, .. }, .. } => {
            format!("{input_ids:?}")
        }
        Content::Tokens { input_ids, prompt_length, .. } => {
            let prompt = match *prompt_length {
                0 => input_ids.as_slice(),
                n => &input_ids[..n.min(input_ids.len())],
            };
            format!("{prompt:?}")
        }
    }
}

fn words(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use reft_train::Record;

    use super::*;

    fn questions(prompts: &[&str]) -> Vec<Question> {
        let question = |(i, prompt): (usize, &&str)| {
            let content =
                Content::Completion { prompt: (*prompt).to_owned(), completion: i.to_string() };
            let record = Record::new(format!("line {}", i + 1), content);
            Question { record, answer: String::new(), choices: Vec::new() }
        };
        prompts.iter().enumerate().map(question).collect()
    }

    #[test]
    fn rows_that_differ_in_case_and_punctuation_are_the_same() {
        let train = questions(&["What is it?", "Who?", "Why not"]);
        let validation = questions(&["why, not", "Where?"]);
        let tests = [questions(&["what  is it"]), questions(&["WHERE", "when"])];
        let leakage = Leakage::between(&train, &validation, &[&tests[0], &tests[1]]);
        let expected = Leakage {
            train_in_test: 1,
            train_in_validation: 1,
            validation_in_test: 1,
            places: vec!["line 1".to_owned()],
        };
        assert_eq!(leakage, expected);
    }
}
