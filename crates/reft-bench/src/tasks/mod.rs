//! Tasks: questions from data files, and how a model's answers are scored.

pub(crate) mod answer;
pub(crate) mod head_score;
pub(crate) mod likelihood;
pub(crate) mod question;
pub(crate) mod score;
pub(crate) mod task_config;
pub(crate) mod task_row;
