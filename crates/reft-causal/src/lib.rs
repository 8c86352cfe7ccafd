//! Where a network keeps a variable: interchange interventions, causal models, alignment search, and directions.
//!
//! A [`CausalModel`] computes the answer of a task from variables. A counterfactual is a base, a source, and the answer to the base with a
//! variable's value taken from the source. A network keeps the variable where the source's hidden states, put into the base's run, give
//! the expected answer ([`InterchangeRuns`]). An [`Alignment`] is a subspace of these hidden states; it is trained with the
//! [`InterchangeObjective`], and [`DasSearch`] tries many sites and tokens. A [`Direction`] is a subspace of one dimension.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//!
//! use reft_causal::{
//!     Alignment, BaseRuns, FeedForward, HierarchicalEquality, InterchangeObjective, InterchangeRuns, VariableSwap,
//! };
//! use reft_core::{AlignmentMethod, AlignmentSet, MapKind};
//! use reft_models::{AdapterStack, Component, Model, Place, Site};
//! use reft_train::{Dataset, Learner, Silent, TrainConfig, Trainer};
//!
//! # fn main() -> reft_causal::Result<()> {
//! // Counterfactuals of (w = x) = (y = z) in which w = x is swapped, and a network to look for it in.
//! let mut task = HierarchicalEquality::new(2, 0)?;
//! let left = task.left;
//! let drawn = task.counterfactuals(32, &[&[left]], 1)?;
//! let bases: Vec<_> = drawn.iter().enumerate().map(|(i, c)| task.base(i, c)).collect();
//! let sources = drawn.iter().map(|c| Some((0, task.source(c, left)?))).collect();
//! let network = FeedForward::random(&task.inputs(), 2, 16, HierarchicalEquality::CLASSES);
//!
//! // Is it in four dimensions of the first layer's output?
//! let place = Place::whole(Site { layer: 0, component: Component::BlockOutput });
//! let swap = VariableSwap::collect(&network, place, (0, 0..4), sources, 32)?;
//! let set = AlignmentSet::new(AlignmentMethod::Das, MapKind::default(), (1, 16, 4), network.device())?;
//! let alignment = Alignment::Rotated(set);
//! let base_runs = BaseRuns::uncached(&network);
//! let runs = InterchangeRuns::new(&base_runs, &alignment, &bases, vec![vec![swap]])?;
//! let objective = InterchangeObjective::new(runs);
//! let stack = AdapterStack::one(&alignment);
//! let dataset = Dataset { train: bases.clone(), validation: Vec::new() };
//! let learner = Learner::new(&network, &stack, &objective);
//! let config = TrainConfig { max_steps: Some(3), reuse: false, ..TrainConfig::default() };
//! Trainer::new(&learner, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;
//! let accuracy = objective.runs().accuracies(&bases, 64, &[])?[0];
//! assert_eq!(accuracy.total, 32);
//! # Ok(())
//! # }
//! ```

mod error;

mod causal_model;
mod interchange;

mod alignment;
mod direction;
mod linear_probe;
mod network;
mod patching;

mod search;

mod steering;

pub use alignment::adapter::Alignment;
pub use alignment::objective::InterchangeObjective;
pub use alignment::runs::InterchangeRuns;
pub use alignment::variable_swap::VariableSwap;
pub use causal_model::{CausalModel, Counterfactual, Setting, Variable};
pub use direction::{Direction, DirectionKind, last_hidden_states};
pub(crate) use error::refuse;
pub use error::{Error, Result};
pub use interchange::accuracy::Accuracy;
pub use interchange::base_runs::BaseRuns;
pub use interchange::hooks::{InterchangeHooks, Swap};
pub use interchange::source_states::{SourceToken, source_states};
pub use linear_probe::LinearProbe;
pub use network::feed_forward::FeedForward;
pub use network::hierarchical_equality::HierarchicalEquality;
pub use patching::metric::Metric;
pub use patching::patch::PromptPair;
pub(crate) use search::cell::CellFile;
pub use search::cell::{DasCell, MeasuredShare};
pub use search::das_search::DasSearch;
pub use search::options::{DasAlignment, DasOptions, SearchDefaults, Start};
pub use search::report::das_report::{
    DasReport, DasRow, PlaceFailures, TemplateShares, WrongAnswer,
};
pub use search::report::searches::searches_page;
pub use search::searched::{ComponentOrHead, Searched};
pub use search::tasks::das_task::{DasTask, Mechanism, Numbers, Slot, Words};
pub use search::tasks::equality::{EqualityNetwork, EqualityTask, EqualityVariable, NetworkConfig};
pub(crate) use search::tasks::pairs::Pairs;
pub use search::tasks::position::PositionName;
pub use search::tasks::recipe::DasRecipe;
pub use steering::calibration::{KlPerToken, factor_reaching};
pub use steering::page::{SweepPoint, sweep_page};
pub use steering::readings::{area_under_curve, latents, median_norm};
pub use steering::replies::{Judge, ReplyScores, SteeredReplies, reply_perplexity};
