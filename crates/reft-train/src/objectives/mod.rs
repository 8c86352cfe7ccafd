//! Objectives, one file each, and the list of all objectives. A new objective is a file here and a line in the list.

pub(crate) mod declaration;
pub(crate) mod metrics;
pub(crate) mod options;

pub(crate) mod head_objective;
pub(crate) mod keeping_close;
pub(crate) mod next_token;
pub(crate) mod reft_r1;

pub(crate) mod preference;

pub(crate) mod dpo;
pub(crate) mod ipo;
pub(crate) mod orpo;
pub(crate) mod reps;
pub(crate) mod simpo;

use crate::ObjectiveDeclaration;

/// Every objective that a run can have, in the order of the documentation.
pub static OBJECTIVES: &[&ObjectiveDeclaration] = &[
    &next_token::NEXT_TOKEN,
    &dpo::DPO,
    &ipo::IPO,
    &orpo::ORPO,
    &simpo::SIMPO,
    &reps::REPS,
    &reft_r1::REFT_R1,
    &head_objective::CLASSIFICATION,
    &head_objective::REGRESSION,
    &head_objective::REWARD,
];
