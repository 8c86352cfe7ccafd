use reft_models::{Field, Fields};
use serde_json::{Map, Value};

use crate::ColumnNames;

/// A form that rows have, known by its columns.
#[derive(Debug)]
pub struct RowForm {
    /// The name of such a row in messages and documentation.
    pub name: &'static str,
    /// The use of its texts.
    pub becomes: &'static str,
    /// The form of [`Content`](crate::Content) that it becomes, by that form's first field.
    pub(crate) content: &'static str,
    /// Its columns.
    pub columns: &'static [RowColumn],
    /// Its other known columns: some are ignored without a message, others are refused.
    pub others: Fields,
}

/// A column of a form.
#[derive(Debug)]
pub struct RowColumn {
    /// The field of [`Content`](crate::Content) that it becomes, or `system`.
    pub(crate) field: &'static str,
    /// Its names; the first name that a row has counts.
    pub names: &'static [&'static str],
    /// Whether rows of the form have it.
    pub need: Need,
}

/// Whether rows of a form have a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All have it.
    Given,
    /// Rows to train or evaluate on have it; prompts alone do not.
    Learned,
    /// Some have it.
    Optional,
}

const fn given(field: &'static str, names: &'static [&'static str]) -> RowColumn {
    RowColumn { field, names, need: Need::Given }
}

const fn learned(field: &'static str, names: &'static [&'static str]) -> RowColumn {
    RowColumn { field, names, need: Need::Learned }
}

const fn optional(field: &'static str, names: &'static [&'static str]) -> RowColumn {
    RowColumn { field, names, need: Need::Optional }
}

/// The text before a conversation.
pub(crate) const SYSTEM: &str = "system";
const SYSTEM_COLUMN: RowColumn = optional(SYSTEM, &[SYSTEM, "system_prompt"]);

/// The forms of rows. A row takes the first form whose columns it has.
pub static ROW_FORMS: [RowForm; 6] = [
    RowForm {
        name: "tokens",
        becomes: "taken as they are",
        content: "input_ids",
        columns: &[
            given("input_ids", &["input_ids"]),
            learned("prompt_length", &["prompt_length"]),
            optional("labels", &["labels"]),
        ],
        others: Fields { file: "a row of tokens", groups: &[COMMON] },
    },
    RowForm {
        name: "a conversation",
        becomes: "framed by the model's chat template; the assistant's last turn is learned, or all of them",
        content: "messages",
        columns: &[
            given("messages", &["messages", "conversations", "conversation", "dialog"]),
            optional("tools", &["tools"]),
            SYSTEM_COLUMN,
        ],
        others: Fields {
            file: "a row with a conversation",
            groups: &[
                &[
                    Field::neutral(
                        &[
                            "parallel_tool_calls",
                            "prompt",
                            "prompt_id",
                            "chosen_rating",
                            "system_id",
                        ],
                        "requests to a service, and texts that the messages repeat",
                    ),
                    Field::refused(&["functions"], "give them as tools"),
                ],
                COMMON,
            ],
        },
    },
    RowForm {
        name: "an instruction",
        becomes: "framed by the model's chat template, or by Alpaca's frame if it has none; the output is learned",
        content: "instruction",
        columns: &[
            given("instruction", &["instruction"]),
            optional("input", &["input", "context"]),
            learned("output", &["output", "response"]),
            optional("answer", &["answer"]),
            SYSTEM_COLUMN,
        ],
        others: Fields {
            file: "a row with an instruction",
            groups: &[&[Field::neutral(&["text"], "the row as Alpaca frames it")], COMMON],
        },
    },
    RowForm {
        name: "prompt and completion",
        becomes: "taken as they stand; the completion and an end token are learned",
        content: "prompt",
        columns: &[
            given("prompt", &["prompt"]),
            learned("completion", &["completion", "response"]),
        ],
        others: Fields { file: "a row with a prompt", groups: &[COMMON] },
    },
    RowForm {
        name: "a question",
        becomes: "as an instruction; the answer is learned",
        content: "instruction",
        columns: &[
            given("instruction", &["question", "query", "problem"]),
            optional("input", &["context", "input"]),
            learned("output", &["answer", "response", "output", "completion", "solution"]),
            SYSTEM_COLUMN,
        ],
        others: Fields { file: "a row with a question", groups: &[COMMON] },
    },
    RowForm {
        name: "a text",
        becomes: "taken as it stands; all of it and an end token are learned, without a prompt",
        content: "prompt",
        columns: &[given("completion", &["text", "content"])],
        others: Fields { file: "a row with a text", groups: &[COMMON] },
    },
];

/// The form of rows for objectives of preferences.
pub static PREFERENCE_FORM: RowForm = RowForm {
    name: "a preference",
    becomes: "two replies to one prompt, which is framed as in the other forms; chosen should become likelier than rejected",
    content: "preference",
    columns: &[
        given("chosen", &["chosen"]),
        given("rejected", &["rejected"]),
        optional("prompt", &["prompt"]),
        optional("instruction", &["instruction", "question", "query"]),
        optional("input", &["input", "context"]),
        optional("tools", &["tools"]),
        SYSTEM_COLUMN,
    ],
    others: Fields {
        file: "a row with a preference",
        groups: &[
            &[
                Field::neutral(&["messages", "prompt_id"], "texts that both replies repeat"),
                Field::neutral(
                    &[
                        "score_chosen",
                        "score_rejected",
                        "chosen_score",
                        "rejected_score",
                        "chosen_rating",
                        "rejected_rating",
                        "chosen_model",
                        "rejected_model",
                    ],
                    "how the replies were made and judged",
                ),
                Field::refused(
                    &["margin"],
                    "no objective here takes a margin of each row; leave the column out",
                ),
            ],
            COMMON,
        ],
    },
};

/// The forms of rows for a head that learns their labels.
pub static LABELLED_FORMS: [RowForm; 2] = [
    RowForm {
        name: "labelled tokens",
        becomes: "taken as they are; a head learns the label",
        content: "labelled",
        columns: &[
            given("input_ids", &["input_ids"]),
            given("label", LABEL),
            optional("token_type_ids", &["token_type_ids"]),
        ],
        others: Fields { file: "a row of labelled tokens", groups: &[OF_LABELLED, COMMON] },
    },
    RowForm {
        name: "a labelled text",
        becomes: "a text, or two, with the special tokens of the tokenizer's file; a head learns the label",
        content: "labelled",
        columns: &[
            given("text", &["text", "sentence", "sentence1", "premise", "question1"]),
            given("label", LABEL),
            optional("text_pair", &["text_pair", "sentence2", "hypothesis", "question2"]),
        ],
        others: Fields { file: "a row with a labelled text", groups: &[OF_LABELLED, COMMON] },
    },
];

/// A class or a number.
const LABEL: &[&str] = &["label", "class", "score", "concept"];

const OF_LABELLED: &[Field] =
    &[Field::neutral(&["idx", "label_text"], "the row's number, and its label in words")];

/// Columns that any row may have.
pub(crate) const ID: &str = "id";
pub(crate) const SUBSPACE: &str = "subspace";

const COMMON: &[Field] = &[Field::neutral(
    &["source", "dataset", "category", "language", "license", "url", "metadata", "split"],
    "where the row comes from",
)];

/// The purpose of reading rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For training or evaluation.
    Learn,
    /// As prompts: the completion may be missing.
    Prompt,
    /// As preferences between two replies.
    Prefer,
    /// As labelled texts.
    Label,
}

impl Purpose {
    /// The forms that rows may have.
    pub(crate) fn forms(self) -> Vec<&'static RowForm> {
        match self {
            Self::Prefer => vec![&PREFERENCE_FORM],
            Self::Label => LABELLED_FORMS.iter().collect(),
            Self::Learn | Self::Prompt => ROW_FORMS.iter().collect(),
        }
    }
}

/// A row's form, and the row's own names of its columns.
pub(crate) struct FoundForm {
    pub(crate) form: &'static RowForm,
    /// Each column of the form that the row has, and its name there.
    pub(crate) columns: Vec<(&'static RowColumn, &'static str)>,
}

impl RowForm {
    /// The columns of the form in a row, if the row has all that the form needs.
    fn found(&'static self, row: &Map<String, Value>, purpose: Purpose) -> Option<FoundForm> {
        let is_needed =
            |need| need == Need::Given || (need == Need::Learned && purpose == Purpose::Learn);
        let name = |column: &RowColumn| column.names.iter().find(|name| row.contains_key(**name));
        let lacks = |column: &RowColumn| is_needed(column.need) && name(column).is_none();
        if self.columns.iter().any(lacks) {
            return None;
        }
        let columns = self.columns.iter().filter_map(|column| Some((column, *name(column)?)));
        Some(FoundForm { form: self, columns: columns.collect() })
    }

    /// Whether a name is one of its columns.
    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.names.contains(&name))
    }
}

impl FoundForm {
    /// The form of a row. Forms with more of the columns that `columns` names come first.
    ///
    /// # Errors
    /// The columns that the row has, and the missing ones.
    pub(crate) fn of(
        row: &Map<String, Value>,
        columns: Option<&ColumnNames>,
        purpose: Purpose,
    ) -> Result<Self, String> {
        let mut forms = purpose.forms();
        if let Some(columns) = columns {
            let unnamed = |form: &&RowForm| columns.iter().filter(|(n, _)| !form.has(n)).count();
            forms.sort_by_key(unnamed); // stable
        }
        let found = forms.iter().find_map(|form| form.found(row, purpose));
        found.ok_or_else(|| lacking(row, &forms))
    }

    /// How the row's columns are understood; `None` if their names say it.
    pub(crate) fn said(&self) -> Option<String> {
        let is_plain = |(column, name): &(&RowColumn, &str)| column.field == *name;
        if self.columns.iter().all(is_plain) {
            return None;
        }
        let names: Vec<&str> = self.columns.iter().map(|(_, name)| *name).collect();
        Some(format!("{} ({}): {}", self.form.name, names.join(", "), self.form.becomes))
    }

    /// Whether a column of the row is one of the form's.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|(_, own)| *own == name)
    }

    /// The names of a row's columns that are not empty and not used.
    pub(crate) fn unused<'a>(
        &'a self,
        row: &'a Map<String, Value>,
    ) -> impl Iterator<Item = &'a str> {
        let is_known = |name: &str| {
            [ID, SUBSPACE].contains(&name)
                || self.has(name)
                || self.form.others.find(name).is_some()
        };
        let unused = row
            .iter()
            .filter(move |(name, value)| !is_known(name) && !reft_models::says_nothing(value));
        unused.map(|(name, _)| name.as_str())
    }
}

/// The message about a row without a form: its columns, the missing ones, and how to name them.
fn lacking(row: &Map<String, Value>, forms: &[&'static RowForm]) -> String {
    let found: Vec<&str> = row.keys().map(String::as_str).collect();
    let found = match &found[..] {
        [] => "the row has no column".to_owned(),
        found => format!("the row has {}", found.join(", ")),
    };
    let needed = |form: &RowForm| {
        let needed = form.columns.iter().filter(|column| column.need != Need::Optional);
        needed.map(|column| column.names[0]).collect::<Vec<_>>()
    };
    if PREFERENCE_FORM.columns[..2].iter().all(|column| row.contains_key(column.names[0])) {
        return format!(
            "{found}; that is a preference, which --objective dpo, ipo, orpo, simpo or reward learns; leave rejected out and call chosen completion to learn it alone"
        );
    }
    if forms.iter().any(|form| form.content == "labelled") {
        return format!(
            "{found}; a head learns from text (or two: text, text_pair) and label; say which columns these are with --columns, such as --columns text=COLUMN,label=COLUMN"
        );
    }
    let begun = forms.iter().filter(|form| form.content != "preference").find(|form| {
        let given = form.columns.iter().find(|column| column.need == Need::Given);
        given.is_some_and(|column| column.names.iter().any(|name| row.contains_key(*name)))
    });
    if let Some(form) = begun {
        let lacks = form.columns.iter().find(|column| {
            column.need == Need::Learned && !column.names.iter().any(|name| row.contains_key(*name))
        });
        let lacks = lacks.map_or("it", |column| column.names[0]);
        return format!(
            "{found}, and for {} it lacks {lacks}; say which column that is with --columns {lacks}=COLUMN",
            form.name
        );
    }
    let accepted: Vec<String> = forms.iter().map(|form| needed(form).join(" and ")).collect();
    format!(
        "{found}; expected {}; say which columns these are with --columns, such as --columns prompt=COLUMN,completion=COLUMN",
        accepted.join(", or ")
    )
}

/// Refuses a row of text and label: only a head learns it.
pub(crate) fn labelled(found: &FoundForm, row: &Map<String, Value>) -> Result<(), String> {
    let is_text = found.columns.iter().any(|(_, name)| *name == "text");
    if !is_text || !row.contains_key(LABEL[0]) {
        return Ok(());
    }
    Err("the row has text and label; that is a labelled text, which --objective classification or regression learns; leave label out to learn the text itself".to_owned())
}

/// The first name of `columns` that none of these forms has.
pub(crate) fn unknown_name<'c>(columns: &'c ColumnNames, forms: &[&RowForm]) -> Option<&'c str> {
    let is_known =
        |name: &str| [ID, SUBSPACE].contains(&name) || forms.iter().any(|form| form.has(name));
    columns.iter().map(|(name, _)| name).find(|name| !is_known(name))
}
