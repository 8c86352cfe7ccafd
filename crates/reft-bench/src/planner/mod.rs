//! What a training run will take, before it is run: memory from shapes, time from a measured rate.

mod memory;
mod rate;
mod step;
mod ways;

pub use memory::MemoryPlan;
pub use rate::{EFFICIENCY, product_rate};
pub use step::{StepPlan, Work, plan_step};
pub use ways::{Way, ways};
