//! Models measured, methods compared: tasks and their scores, the comparison and its report, the time of training steps, and what a run
//! will take before it is run.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use reft_bench::{Scorer, TaskConfig, encode_questions, read_questions};
//! use reft_methods::load_adapters;
//! use reft_models::{AdapterStack, Decoder, Model, Tokenizer};
//! use reft_train::{Encoding, Learner, NextToken, TextEncoder};
//!
//! # fn main() -> reft_bench::Result<()> {
//! let directory = Path::new("models/SmolLM2-135M-Instruct");
//! let model = Decoder::open(directory, tch::Kind::Float, tch::Device::Cpu)?;
//! let tokenizer = Tokenizer::open(directory)?;
//! let adapters = load_adapters(Path::new("runs/sst2"), &model)?;
//! let task = TaskConfig::open(Path::new("recipes/tasks/sst2.toml"))?;
//! let text = TextEncoder { tokenizer: &tokenizer, chat_template: None, template: task.template };
//! let description = model.description();
//! let encoding = Encoding {
//!     text: Some(text),
//!     vocab_size: description.vocab_size,
//!     max_length: description.max_position_embeddings as usize,
//! };
//! let questions = read_questions(&task, Path::new("data/sst2/test.tsv"))?;
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

pub use compare::{
    Budget, Cell, CellResult, CompareConfig, Comparison, ComparisonPlan, ConfigFile, DataConfig,
    DataFacts, Leakage, LoadedComparison, LoadedSweep, MethodEntry, PartFacts, PointPlan,
    QuickConfig, SweepAxis, SweepConfig, SweepPlan, SweepPoint, TestResult, run_cell,
    run_comparison, run_sweep,
};
pub use error::{Error, Result};
pub use machine::{Machine, resident_memory};
pub use planner::{EFFICIENCY, MemoryPlan, StepPlan, Way, Work, plan_step, product_rate, ways};
pub use precision::Precision;
pub use report::{BaseReport, MethodReport, PointReport, RateReport, Report, SweepReport};
pub use tasks::{
    Choice, EncodedQuestion, Metric, Question, Score, Scorer, Scoring, TaskConfig, TaskKind,
    encode_questions, read_questions,
};
pub use timing::{
    FLOOR, FloorAdapter, GenerationSeconds, GenerationTiming, Measured, StepSeconds, TimingCase,
    TimingReport, TimingRow, TimingRun, measure, run_timing,
};
