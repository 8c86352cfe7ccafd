//! Measures models and compares methods: tasks and their scores, the comparison and its report, the time of training steps, and plans of a
//! run's memory and time.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use reft_bench::{Scorer, TaskConfig, encode_questions, read_questions};
//! use reft_methods::load_adapters;
//! use reft_models::{AdapterStack, Decoder, Model, Tokenizer};
//! use reft_train::{Encoding, Learner, NextToken, TextEncoder, Turns};
//!
//! # fn main() -> reft_bench::Result<()> {
//! let directory = Path::new("models/SmolLM2-135M-Instruct");
//! let model = Decoder::open(directory, tch::Kind::Float, tch::Device::Cpu)?;
//! let tokenizer = Tokenizer::open(directory)?;
//! let adapters = load_adapters(Path::new("runs/sst2"), &model)?;
//! let task = TaskConfig::open(Path::new("recipes/tasks/sst2.toml"))?;
//! let (template, turns) = (task.template, Turns::Last);
//! let text = TextEncoder { tokenizer: &tokenizer, chat_template: None, template, turns };
//! let description = model.description();
//! let encoding = Encoding {
//!     text: Some(text),
//!     vocab_size: description.vocab_size,
//!     max_length: usize::MAX, // questions are not cut
//! };
//! let questions = read_questions(&task, Path::new("data/sst2/test.tsv"), None)?;
//! let questions = encode_questions(&task, &questions, &encoding)?;
//! let (tokenizer, stop) = (Some(&tokenizer), AtomicBool::new(false));
//! let scorer = Scorer { task: &task, tokenizer, batch_size: 16, stop: &stop };
//! let learner = Learner::new(&model, &AdapterStack::of_boxed(&adapters)?, &NextToken);
//! println!("{:.1} %", 100.0 * scorer.score(&learner, &questions)?.value);
//! # Ok(())
//! # }
//! ```

mod error;
mod fields;
mod machine;
mod precision;

mod tasks;

mod compare;
mod report;

mod timing;

mod planner;

pub use compare::budget::Budget;
pub use compare::cell::{Cell, CellResult, TestResult};
pub use compare::config::{CompareConfig, ConfigFile, DataConfig, MethodEntry, QuickConfig};
pub use compare::facts::{DataFacts, Leakage, PartFacts};
pub use compare::loaded_comparison::{Comparison, LoadedComparison};
pub use compare::plan::ComparisonPlan;
pub use compare::run::{run_cell, run_comparison};
pub use compare::sweep::{PointPlan, SweepAxis, SweepConfig, SweepPlan, SweepPoint};
pub use compare::sweep_run::{LoadedSweep, run_sweep};
pub use error::{Error, Result};
pub use machine::Machine;
pub use planner::memory::MemoryPlan;
pub use planner::split::{DevicePlan, Split};
pub use planner::step::{EFFICIENCY, StepPlan, Work, plan_step, product_rate};
pub use planner::ways::{Way, ways};
pub use precision::Precision;
pub use report::results::{BaseReport, MethodReport, RateReport, Report};
pub use report::run::{SampleReply, TrainingRun, runs_page};
pub use report::sweep::{PointReport, SweepReport};
pub use tasks::head_score::{HeadScore, HeadScorer, ToldOf};
pub use tasks::question::{Choice, EncodedQuestion, Question, encode_questions, read_questions};
pub use tasks::score::{Score, Scorer};
pub use tasks::task_config::{Scoring, TaskConfig, TaskKind};
pub use timing::case::{FLOOR, TimingCase};
pub use timing::floor::FloorAdapter;
pub use timing::measure::{GenerationSeconds, Measured, measure};
pub use timing::report::{GenerationTiming, StepSeconds, TimingReport, TimingRow, run_timing};
