//! Baselines beside ReFT: LoRA and its kin, prefix and prompt tuning, (IA)³, RED, bottleneck adapters and full fine-tuning.
//!
//! Every method is a [`reft_models::Adapter`] on the public hooks alone, so the one trainer, generator and evaluator serve all of them.
//! LoRA, DoRA, prefix, prompt and (IA)³ adapters are read and written as PEFT's.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use reft_bench::{MethodOptions, load_adapter, merge_adapter, new_adapter, trainable_parameters};
//! use reft_models::Decoder;
//!
//! # fn main() -> reft_bench::Result<()> {
//! let model = Path::new("models/SmolLM2-135M-Instruct");
//! let decoder = Decoder::open(model, tch::Kind::Float, tch::Device::Cpu)?;
//! let options = MethodOptions { rank: Some(4), ..MethodOptions::default() };
//! let lora = new_adapter("lora", &options, &decoder, "SmolLM2-135M-Instruct")?;
//! assert!(trainable_parameters(&*lora) < decoder.config().parameters() / 100);
//! // … train it, and:
//! lora.save(Path::new("runs/lora/adapter"))?; // PEFT reads it
//! let again = load_adapter(Path::new("runs/lora/adapter"), &decoder)?;
//! merge_adapter(Path::new("runs/lora/adapter"), &decoder)?; // the decoder computes what decoder and adapter did
//! # Ok(())
//! # }
//! ```

mod error;

mod baseline_file;
mod leaves;
mod nothing_trained;
mod peft_config;
mod peft_file;
mod projection;
mod target_modules;

mod bottleneck;
mod combined;
mod full;
mod ia3;
mod lora;
mod prefix;
mod prompt;
mod red;

mod adapter_files;
mod adapter_summary;
mod merge;
mod method_config;
mod method_description;
mod registry;

mod compare;
mod das;
mod planner;
mod report;
mod steering;
mod tasks;
mod timing;

pub use adapter_files::{adapter_bytes, adapter_files, remove_adapter};
pub use adapter_summary::{AdapterSummary, check_adapter};
pub use bottleneck::{BottleneckAdapter, BottleneckConfig, BottleneckKind};
pub use combined::CombinedAdapter;
pub use compare::{
    Budget, Cell, CellResult, ChosenRate, CompareConfig, ConfigFile, DataConfig, DataFacts,
    Leakage, Machine, MethodEntry, PartFacts, Plan, PointPlan, Precision, Prepared, PreparedSweep,
    QuickConfig, SweepAxis, SweepConfig, SweepPlan, SweepPoint, TestResult, choose_rate,
    resident_memory, run_cell, run_comparison, run_sweep,
};
pub use das::{
    DasAlignment, DasCell, DasOptions, DasRecipe, DasReport, DasRow, DasSearch, DasTask,
    EqualityNetwork, EqualityTask, EqualityVariable, MeasuredShare, Mechanism, NetworkConfig,
    Numbers, Part, PositionName, SearchDefaults, Searched, Slot, Start, Words,
};
pub use error::{Error, Result};
pub use full::FullAdapter;
pub use ia3::Ia3Adapter;
pub use lora::LoraAdapter;
pub use merge::{
    MERGED_ADAPTER, MERGED_BASE_MODEL, check_mergeable, export_model, merge_adapter, merge_ia3,
    merge_lora,
};
pub use method_config::{
    MethodConfig, MethodOptions, method_names, method_option_names, new_adapter,
};
pub use method_description::adapter_options;
pub use peft_config::{Ia3Config, LoraConfig, OtherFields, PrefixConfig, PromptConfig};
pub use planner::{EFFICIENCY, MemoryPlan, StepPlan, Way, Work, plan_step, product_rate, ways};
pub use prefix::PrefixAdapter;
pub use projection::Projection;
pub use prompt::{PromptAdapter, PromptInit};
pub use red::{RedAdapter, RedConfig, RedMethod};
pub use registry::{AdapterKind, load_adapter, load_trainable_adapter, trainable_parameters};
pub use report::{
    BaseReport, MethodReport, PointReport, RateReport, Report, Spread, SweepReport, grouped,
};
pub use steering::{Direction, DirectionKind, SteeringAdapter, last_hidden_states};
pub use target_modules::TargetModules;
pub use tasks::{
    Choice, EncodedQuestion, Metric, Question, Score, Scorer, Scoring, Table, TableRow, TaskConfig,
    TaskKind, TextTemplate, encode_questions, read_questions,
};
pub use timing::{
    FLOOR, FirstEpoch, FloorAdapter, GenerationSeconds, GenerationTiming, Measured, TimingCase,
    TimingReport, TimingRow, TimingRun, measure, run_timing,
};
