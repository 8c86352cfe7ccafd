//! Tasks: questions from data files, and how a model's answers are scored.

mod answer;
mod likelihood;
mod question;
mod score;
mod table;
mod task_config;
mod text_template;

pub use question::{Choice, EncodedQuestion, Question, encode_questions, read_questions};
pub use score::{Score, Scorer};
pub use table::{Table, TableRow};
pub(crate) use task_config::{Key, line_of, toml_error, with_field};
pub use task_config::{Metric, Scoring, TaskConfig, TaskKind};
pub(crate) use text_template::Rendered;
pub use text_template::TextTemplate;
