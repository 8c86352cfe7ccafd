use std::collections::BTreeMap;
use std::path::Path;

use reft_models::{ChatVars, Key, line_of, read_text, toml_error};
use reft_train::{Metric, ObjectiveDeclaration, Template, TextTemplate, Told};
use serde::{Deserialize, Serialize};

use crate::fields::with_field;
use crate::{Error, Result};

/// A task: how it is measured and how its rows become prompts. A built-in name, or a small TOML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// The task's name in reports.
    #[serde(default)]
    pub name: String,
    /// How it is measured.
    #[serde(rename = "type")]
    pub kind: TaskKind,
    /// How a choice is made; `exact_match` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scoring: Option<Scoring>,
    /// The prompt, with `{column}` where a row's text goes; by default the row's `instruction` and `input`. `memorise`: a prompt without a
    /// frame before the text; the data file is then one text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The expected reply, with `{answer}` and columns; the answer alone for `choice`, the row's `output` for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
    /// The column with the right answer (of `choice`: with the label); by default `answer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// `choice`: the word that stands for each label.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Names of the columns of a TSV or CSV file without header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<Vec<String>>,
    /// The frame of the prompt: auto (the model's chat template if it has one, else Alpaca's frame), chat, alpaca or plain.
    #[serde(default)]
    pub template: Template,
    /// Values of the chat template's variables.
    #[serde(default, skip_serializing_if = "ChatVars::is_empty")]
    pub chat_vars: ChatVars,
    /// Most tokens of a generated answer; by default the tokens of the longest choice, 32 for `commonsense`, 512 for `arithmetic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Whether the tokens of the prompt are learned, too, when it is trained on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub learn_prompt: bool,
    /// `classification`, `regression`: the metric that methods are compared by; by default accuracy and `pearson`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// `memorise`, `preference`: tokens of the completion or of each reply, counted from the first; by default all, and the end token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

/// How a task is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Accuracy: one of a few label words after a prompt.
    Choice,
    /// Accuracy: rows of LLM-Adapters, the answer stands after "the correct answer is".
    Commonsense,
    /// Accuracy: rows of LLM-Adapters, the answer is the last number, or the first letter.
    Arithmetic,
    /// Loss and perplexity of completions.
    Lm,
    /// Share of a text's tokens that greedy generation reproduces before its first wrong token.
    Memorise,
    /// Accuracy, F1 and Matthews' correlation of a head that predicts classes.
    Classification,
    /// Pearson's and Spearman's correlation of a head that predicts numbers.
    Regression,
    /// Share of pairs in which a head gives the better reply the higher reward.
    Reward,
    /// Share of pairs in which the chosen reply is the likelier one.
    Preference,
}

/// How a choice is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scoring {
    /// An answer is generated and must be the right one to the letter.
    #[default]
    ExactMatch,
    /// The choice with the highest log-probability, its end token included, as training has it.
    LogProbability,
    /// The choice whose only token is the most probable next one: one forward per question.
    NextToken,
}

reft_core::names!(Scoring, "scoring", reft_models::Error, {
    ExactMatch => "exact_match", LogProbability => "log_probability", NextToken => "next_token",
});

reft_core::names!(TaskKind, "type of task", reft_models::Error, {
    Choice => "choice", Commonsense => "commonsense", Arithmetic => "arithmetic", Lm => "lm",
    Memorise => "memorise", Classification => "classification", Regression => "regression", Reward => "reward", Preference => "preference",
});

impl TaskKind {
    /// The tasks that need no file of their own.
    pub const BUILT_IN: [Self; 8] = [
        Self::Commonsense,
        Self::Arithmetic,
        Self::Lm,
        Self::Memorise,
        Self::Classification,
        Self::Regression,
        Self::Reward,
        Self::Preference,
    ];

    /// The labels that a head learns, if the task trains a head. Such a task has the name of the head's objective.
    pub fn told(self) -> Option<Told> {
        ObjectiveDeclaration::of(self.name()).ok().and_then(|objective| objective.told)
    }

    /// Whether its rows are pairs of replies, of which one was chosen.
    pub fn has_pairs(self) -> bool {
        matches!(self, Self::Reward | Self::Preference)
    }

    /// The metrics: the default metric for comparing methods first, then the alternatives.
    pub fn metrics(self) -> &'static [Metric] {
        match (self, self.told()) {
            (_, Some(told)) => told.metrics(),
            (Self::Lm, _) => &[Metric::Loss],
            (Self::Memorise, _) => &[Metric::Recall],
            _ => &[Metric::Accuracy],
        }
    }

    /// The task's default metric.
    pub fn metric(self) -> Metric {
        self.metrics()[0]
    }
}

impl TaskConfig {
    /// A built-in task by name.
    pub fn built_in(name: &str) -> Option<Self> {
        TaskKind::BUILT_IN.iter().find(|known| known.name() == name)?;
        let task = format!("name = \"{name}\"\ntype = \"{name}\"");
        Some(toml::from_str(&task).expect("invariant: a task's type is its name"))
    }

    /// A task by name, or from a TOML file.
    ///
    /// # Errors
    /// If the name is neither a built-in task nor a readable file; errors of [`Self::parse`].
    pub fn open(name_or_file: &Path) -> Result<Self> {
        if let Some(task) = name_or_file.to_str().and_then(Self::built_in) {
            return Ok(task);
        }
        if name_or_file.extension().is_none_or(|ending| ending != "toml") {
            let names = TaskKind::BUILT_IN.map(TaskKind::name).join(", ");
            let reason = format!("unknown task; use {names}, or a TOML file that describes one");
            return Err(Error::File { path: name_or_file.to_owned(), reason });
        }
        Self::parse(&read_text(name_or_file)?, name_or_file)
    }

    /// A task from the text of a TOML file.
    ///
    /// # Errors
    /// [`reft_models::Error::Line`] for a field that is unknown, missing, of another type, or not one of the task's.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut task: Self =
            toml::from_str(text).map_err(|error| toml_error(text, path, &error))?;
        if task.name.is_empty() {
            task.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        task.check().map_err(|(field, reason)| {
            Error::line(path, line_of(text, &[Key::Name(field)]), reason)
        })?;
        Ok(task)
    }

    /// The task with one field set to another value, or the reason why the value is refused.
    pub(crate) fn with(&self, field: &str, value: &serde_json::Value) -> Result<Self, String> {
        let task: Self = with_field(self, field, value)?;
        task.check().map_err(|(_, reason)| reason)?;
        Ok(task)
    }

    /// The metric that methods are compared by.
    pub fn metric(&self) -> Metric {
        self.metric.unwrap_or_else(|| self.kind.metric())
    }

    /// How choices are made.
    pub fn scoring(&self) -> Scoring {
        self.scoring.unwrap_or_default()
    }

    /// The first invalid field, and the reason.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let is_choice = self.kind == TaskKind::Choice;
        let is_told = self.kind.told().is_some();
        let has_pairs = self.kind.has_pairs();
        let has_rows =
            !is_told && !has_pairs && !matches!(self.kind, TaskKind::Lm | TaskKind::Memorise);
        let is_text = self.kind == TaskKind::Memorise;
        let has_choices = matches!(self.kind, TaskKind::Choice | TaskKind::Commonsense);
        let given = [
            ("scoring", self.scoring.is_some(), has_choices),
            ("labels", !self.labels.is_empty(), is_choice),
            ("prompt", self.prompt.is_some(), has_rows || is_text),
            ("completion", self.completion.is_some(), has_rows),
            ("answer", self.answer.is_some(), has_rows),
            ("columns", self.columns.is_some(), has_rows || is_told),
            ("max_new_tokens", self.max_new_tokens.is_some(), has_rows),
            ("length", self.length.is_some(), is_text || self.kind == TaskKind::Preference),
            ("learn_prompt", self.learn_prompt, !is_told && !has_pairs),
        ];
        if let Some((field, ..)) = given.iter().find(|(_, given, belongs)| *given && !belongs) {
            return Err((field, format!("a task of this type has no {field}; remove it")));
        }
        if let Some(metric) = self.metric.filter(|metric| !self.kind.metrics().contains(metric)) {
            let known = self.kind.metrics().iter().map(|metric| metric.name()).collect::<Vec<_>>();
            let reason = format!("{metric} is not measured of the task, use {}", known.join(", "));
            return Err(("metric", reason));
        }
        if is_choice && self.labels.len() < 2 {
            let found = self.labels.len();
            return Err((
                "labels",
                format!("{found} labels, expected a word for each of at least two"),
            ));
        }
        for (i, (label, word)) in self.labels.iter().enumerate() {
            if word.trim().is_empty() {
                return Err(("labels", format!("the word for label {label:?} is empty")));
            }
            if self.labels.values().take(i).any(|other| other.trim() == word.trim()) {
                return Err(("labels", format!("two labels have the word {word:?}")));
            }
        }
        if is_choice && self.prompt.is_none() {
            return Err(("prompt", "a choice task needs a prompt, such as \"{text}\"".to_owned()));
        }
        if self.max_new_tokens == Some(0) {
            return Err(("max_new_tokens", "max_new_tokens is 0, expected at least 1".to_owned()));
        }
        if self.length == Some(0) {
            return Err(("length", "length is 0, expected at least 1 token".to_owned()));
        }
        for (field, template) in [("prompt", &self.prompt), ("completion", &self.completion)] {
            if let Some(template) = template.as_ref().filter(|_| has_rows) {
                let parsed = TextTemplate::parse(template).map_err(|reason| (field, reason))?;
                let names_answer = parsed.columns().any(|column| column == "answer");
                if field == "completion" && is_choice && !names_answer {
                    return Err((field, "completion does not say {answer}".to_owned()));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::line_refused;

    const SST2: &str = "type = \"choice\"\ncolumns = [\"text\", \"label\"]\nprompt = \"{text}\"\nanswer = \"label\"\n\n[labels]\n0 = \"negative\"\n1 = \"positive\"\n";

    fn refused(text: &str) -> (usize, String) {
        line_refused(TaskConfig::parse(text, Path::new("t.toml")))
    }

    #[test]
    fn a_small_file_makes_a_task() -> Result<()> {
        let task = TaskConfig::parse(SST2, Path::new("tasks/sst2.toml"))?;
        assert_eq!((task.name.as_str(), task.kind), ("sst2", TaskKind::Choice));
        assert_eq!(task.labels["1"], "positive");
        assert_eq!(task.scoring(), Scoring::ExactMatch);
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        assert_eq!(refused(&SST2.replace("answer =", "anwser =")).0, 4);
        assert_eq!(refused(&SST2.replace("\"positive\"", "\"negative\"")).0, 6);
        assert_eq!(refused(&SST2.replace("\"{text}\"", "\"{text\"")).0, 3);
        assert_eq!(refused(&SST2.replace("\"choice\"", "\"arithmetic\"")).0, 6);
        assert_eq!(refused(&SST2.replace("\"choice\"", "\"lm\"")).0, 6);
        assert_eq!(refused("type = \"lm\"\nlength = 8").0, 2);
        assert_eq!(refused("type = \"memorise\"\n\nlength = 0").0, 3);
        assert!(refused(&SST2.replace("1 = \"positive\"", "")).1.contains("1 labels"));
        assert!(refused(&SST2.replace("prompt = \"{text}\"", "")).1.contains("needs a prompt"));
        assert!(refused(&SST2.replace("answer", "completion")).1.contains("{answer}"));
    }

    #[test]
    fn a_text_has_a_prompt_as_it_is_and_a_length() -> Result<()> {
        let text = "type = \"memorise\"\nprompt = \"{ ID ->\"\nlength = 8";
        let task = TaskConfig::parse(text, Path::new("t.toml"))?;
        assert_eq!((task.prompt.as_deref(), task.length), (Some("{ ID ->"), Some(8)));
        let with = |field: &str, value: serde_json::Value| task.with(field, &value);
        assert_eq!(with("length", 16.into()).map(|task| task.length), Ok(Some(16)));
        assert!(with("length", 0.into()).is_err_and(|reason| reason.contains("at least 1")));
        assert!(with("lenght", 16.into()).is_err_and(|reason| reason.contains("lenght")));
        Ok(())
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let unknown = TaskConfig::open(Path::new("glue")).map_err(|error| error.to_string());
        assert!(unknown.is_err_and(|text| text.contains("commonsense, arithmetic, lm, memorise")));
    }
}
