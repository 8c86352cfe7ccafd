//! Tasks: questions from data files, and how a model's answers are scored.

mod answer;
mod likelihood;
mod question;
mod score;
mod table;
mod task_config;

pub(crate) use question::cut;
pub use question::{Choice, EncodedQuestion, Question, encode_questions, read_questions};
pub(crate) use score::examples;
pub use score::{Score, Scorer};
pub use task_config::{Metric, Scoring, TaskConfig, TaskKind};
