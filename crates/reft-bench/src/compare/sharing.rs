//! How the processes of one comparison divide its cells among them.

use std::path::Path;

use reft_models::{Claim, DirectoryLock};
use serde_json::Value;

use crate::compare::plan::{check_weights, choose_rate};
use crate::{Cell, CellResult, ComparisonPlan, Result};

/// A cell to run. The cells of a method's chosen rate are known only after all its rates are tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) cell: Cell,
    /// Whether the cell is run for the first time; false for the test of a rate whose cell was already trained.
    pub(super) is_new: bool,
    pub(super) is_done: bool,
}

impl Step {
    /// Whether it counts as finished work: each step counts once.
    pub(super) fn is_counted(&self) -> bool {
        self.is_new && self.is_done
    }
}

/// The steps in their order.
pub(super) fn steps(plan: &ComparisonPlan, output: &Path) -> Result<Vec<Step>> {
    let step = |cell: Cell, is_new: bool| -> Result<Step> {
        Ok(Step { cell, is_new, is_done: cell.is_done(plan, output)? })
    };
    let mut steps = vec![step(Cell::BASE, true)?];
    let higher_is_better = plan.task.metric().higher_is_better();
    for method in 0..plan.config.method.len() {
        let tuning = plan.tuning(method);
        for cell in &tuning {
            steps.push(step(*cell, true)?);
        }
        let results = tuning.iter().map(|cell| cell.result(plan, output));
        let results: Option<Vec<CellResult>> = results.collect::<Result<_>>()?;
        let lr = results.and_then(|results| choose_rate(&results, higher_is_better));
        for (i, cell) in lr.map(|lr| plan.chosen(method, lr)).into_iter().flatten().enumerate() {
            steps.push(step(cell, i > 0)?);
        }
    }
    Ok(steps)
}

/// Claims the first step that is not done and that no other process runs.
pub(super) fn take_free(
    steps: &[Step],
    plan: &ComparisonPlan,
    output: &Path,
) -> Result<Option<(Step, Claim)>> {
    for step in steps.iter().filter(|step| !step.is_done) {
        let claim = Claim::take(&step.cell.directory(plan, output))?;
        // another process may have finished the step since `steps` was read
        if let Some(claim) = claim.filter(|_| !step.cell.is_done(plan, output).unwrap_or(false)) {
            return Ok(Some((*step, claim)));
        }
    }
    Ok(None)
}

/// Writes the plan, unless other processes run cells of a different plan in `output`.
///
/// # Errors
/// [`reft_models::Error::InUse`].
pub(super) fn begin(plan: &ComparisonPlan, output: &Path) -> Result<()> {
    let _lock = DirectoryLock::wait(output)?;
    // an unreadable plan is overwritten
    if let Ok(known) = ComparisonPlan::read(output) {
        let all = |plan: &ComparisonPlan| plan.digest(&Value::Null);
        if known.config == plan.config && known.weights == plan.weights && all(&known) == all(plan)
        {
            return Ok(());
        }
        if plan.format_version < ComparisonPlan::FORMAT_VERSION {
            check_weights(output, &known, plan)?; // a cell's identity does not hold the weights
        }
        if Claim::is_any_held(&Cell::directory_of_all(output)) {
            let in_use = reft_models::Error::InUse { path: output.to_owned(), process: None };
            return Err(in_use.into());
        }
    }
    plan.write(output)
}
