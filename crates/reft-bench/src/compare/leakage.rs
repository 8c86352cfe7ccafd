use std::collections::HashSet;

use reft_train::Content;
use serde::{Deserialize, Serialize};

use crate::tasks::question::Question;

/// Rows of one part of the data that stand in another: equal but for case, blanks and punctuation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leakage {
    /// Rows trained on that stand in a test set.
    pub train_in_test: usize,
    /// Rows trained on that stand in the validation set.
    pub train_in_validation: usize,
    /// Validation rows that stand in a test set.
    pub validation_in_test: usize,
    /// Where the first of the rows in `train_in_test` stand.
    pub places: Vec<String>,
}

/// Places that are named.
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

/// What makes two questions the same: the words of their prompts. Rows without a prompt are the same if they say the same.
fn key(question: &Question) -> String {
    match &question.record.content {
        Content::Completion { prompt, completion } if prompt.is_empty() => words(completion),
        Content::Completion { prompt, .. } => words(prompt),
        Content::Instruction { instruction, input, .. } => words(&format!("{instruction} {input}")),
        Content::Chat { messages } => {
            let asked = messages.iter().filter(|message| message.role != "assistant");
            words(&asked.map(|message| message.content.as_str()).collect::<Vec<_>>().join(" "))
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
            let record = Record { id: format!("line {}", i + 1), content, subspace: None };
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
