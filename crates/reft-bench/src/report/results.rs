use std::path::Path;

use reft_methods::MethodOptions;
use reft_models::{write_json_in_order, write_text};
use reft_report::{Spread, svg_file};
use reft_train::Metric;
use serde::{Deserialize, Serialize};

use crate::compare::plan::{ComparisonPlan, choose_rate};
use crate::report::html::{html, score_plot};
use crate::report::markdown::write_markdown;
use crate::{Cell, CellResult, Result, TestResult};

/// The results of a comparison: `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The comparison itself: command, configuration, task, data, machine.
    pub plan: ComparisonPlan,
    /// Whether every method is finished.
    pub complete: bool,
    /// The metric of the scores.
    pub metric: Metric,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The base model, untrained.
    pub base: Option<BaseReport>,
    /// The methods, in the order of the configuration.
    pub methods: Vec<MethodReport>,
}

/// The base model without any method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseReport {
    /// Score on the validation set.
    pub validation: Option<f64>,
    /// Mean of the scores on the test sets.
    pub score: f64,
    /// Score on each test set.
    pub tests: Vec<f64>,
    /// Loss on the neutral text.
    pub neutral_loss: Option<f64>,
    /// Tokens generated per second.
    pub generation_tokens_per_second: Option<f64>,
}

/// A method at the rate that was chosen for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodReport {
    /// Its label.
    pub label: String,
    /// The method's name.
    pub method: String,
    /// Its options as configured.
    pub options: MethodOptions,
    /// The rates tried.
    pub grid: Vec<RateReport>,
    /// The rate chosen; `None` until all are tried, or if every run diverged.
    pub lr: Option<f64>,
    /// Runs at the chosen rate that diverged; the means leave them out.
    pub diverged: usize,
    /// Trainable parameters.
    pub trainable_parameters: i64,
    /// Trainable parameters in percent of the base model's parameters.
    pub trainable_percent: f64,
    /// Size of the adapter's files.
    pub adapter_bytes: u64,
    /// Mean over the test sets, for every seed.
    pub score: Option<Spread>,
    /// Score on each test set.
    pub tests: Vec<Spread>,
    /// Loss on the neutral text, minus the base model's.
    pub forgetting: Option<Spread>,
    /// Seconds of a training run.
    pub train_seconds: Option<Spread>,
    /// Tokens trained on per second.
    pub tokens_per_second: Option<Spread>,
    /// The highest peak memory of a training run's process, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Tokens generated per second.
    pub generation_tokens_per_second: Option<Spread>,
    /// Training loss before each step, mean over the seeds.
    pub losses: Vec<f64>,
}

/// A rate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateReport {
    /// The rate.
    pub lr: f64,
    /// Score on the validation set.
    pub validation: Option<f64>,
    /// Loss on the validation set.
    pub validation_loss: Option<f64>,
    /// Why the run ended early, if it did.
    pub diverged: Option<String>,
}

impl Report {
    /// Gathers the cells of a comparison that are finished.
    ///
    /// # Errors
    /// If there is no comparison, or a file cannot be read.
    pub fn collect(output: &Path) -> Result<Self> {
        let plan = ComparisonPlan::read(output)?;
        let metric = plan.task.metric();
        let base = Cell::BASE.result(&plan, output)?.and_then(|result| {
            let test = result.test?;
            Some(BaseReport {
                validation: result.validation.map(|score| score.value),
                score: mean_score(&test),
                tests: test.scores.iter().map(|score| score.value).collect(),
                neutral_loss: test.neutral_loss,
                generation_tokens_per_second: test.generation_tokens_per_second,
            })
        });
        let neutral_loss = base.as_ref().and_then(|base| base.neutral_loss);
        let methods = 0..plan.config.method.len();
        let methods = methods
            .map(|method| MethodReport::collect(&plan, method, neutral_loss, output))
            .collect::<Result<Vec<_>>>()?;
        let is_finished = |method: &MethodReport| {
            let runs = method.score.as_ref().map_or(0, |score| score.values.len());
            let all_diverged = method.grid.iter().all(|rate| rate.diverged.is_some());
            runs + method.diverged == plan.config.seeds.len() || all_diverged
        };
        Ok(Self {
            complete: base.is_some() && methods.iter().all(is_finished),
            metric,
            higher_is_better: metric.higher_is_better(),
            base,
            methods,
            plan,
        })
    }

    /// Writes `report.json`, `report.md`, `report.html`, and `report.svg` with the plot of scores against trainable parameters.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, output: &Path) -> Result<()> {
        write_json_in_order(&output.join("report.json"), self)?;
        write_text(&output.join("report.md"), &self.markdown())?;
        if let Some(plot) = score_plot(self) {
            write_text(&output.join("report.svg"), &svg_file(&plot))?;
        }
        Ok(write_text(&output.join("report.html"), &html(self))?)
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        write_markdown(&mut text, self).expect("invariant: writing to a string cannot fail");
        text
    }
}

impl MethodReport {
    fn collect(
        plan: &ComparisonPlan,
        method: usize,
        neutral_loss: Option<f64>,
        output: &Path,
    ) -> Result<Self> {
        let entry = &plan.config.method[method];
        let tried = plan.tuning(method).into_iter().map(|cell| cell.result(plan, output));
        let tried: Vec<Option<CellResult>> = tried.collect::<Result<_>>()?;
        let rate = |(&lr, result): (&f64, &Option<CellResult>)| RateReport {
            lr,
            validation: result.as_ref().and_then(|r| Some(r.validation.as_ref()?.value)),
            validation_loss: result.as_ref().and_then(|result| result.validation_loss),
            diverged: result.as_ref().and_then(|result| result.diverged.clone()),
        };
        let grid = entry.lr.iter().zip(&tried).map(rate).collect();
        let all_tried: Option<Vec<CellResult>> = tried.iter().cloned().collect();
        let lr = all_tried
            .as_deref()
            .and_then(|results| choose_rate(results, plan.task.metric().higher_is_better()));
        let mut runs = Vec::new();
        for cell in lr.map(|lr| plan.chosen(method, lr)).unwrap_or_default() {
            runs.extend(cell.result(plan, output)?);
        }
        let diverged = runs.iter().filter(|run| run.diverged.is_some()).count();
        runs.retain(|run| run.diverged.is_none());
        let known = runs.first().or(tried.iter().flatten().next());
        let trainable_parameters = known.map_or(0, |run| run.trainable_parameters);
        let tested: Vec<&TestResult> = runs.iter().filter_map(|run| run.test.as_ref()).collect();
        let of_test = |i: usize| Spread::of(tested.iter().map(|test| test.scores[i].value));
        let rise = |test: &&TestResult| Some(test.neutral_loss? - neutral_loss?);
        let speeds = tested.iter().filter_map(|test| test.generation_tokens_per_second);
        Ok(Self {
            label: entry.label().to_owned(),
            method: entry.method.clone(),
            options: entry.options.clone(),
            grid,
            lr,
            diverged,
            trainable_parameters,
            trainable_percent: 100.0 * trainable_parameters as f64 / plan.base_parameters as f64,
            adapter_bytes: known.map_or(0, |run| run.adapter_bytes),
            score: Spread::of(tested.iter().map(|test| mean_score(test))),
            tests: (0..plan.config.data.test.len()).filter_map(of_test).collect(),
            forgetting: Spread::of(tested.iter().filter_map(rise)),
            train_seconds: Spread::of(runs.iter().map(|run| run.train_seconds)),
            tokens_per_second: Spread::of(runs.iter().map(CellResult::tokens_per_second)),
            peak_memory_bytes: runs.iter().filter_map(|run| run.peak_memory_bytes).max(),
            generation_tokens_per_second: Spread::of(speeds),
            losses: mean_curve(&runs),
        })
    }
}

fn mean_score(test: &TestResult) -> f64 {
    test.scores.iter().map(|score| score.value).sum::<f64>() / test.scores.len() as f64
}

fn mean_curve(runs: &[CellResult]) -> Vec<f64> {
    let steps = runs.iter().map(|run| run.losses.len()).min().unwrap_or(0);
    let mean =
        |step: usize| runs.iter().map(|run| run.losses[step]).sum::<f64>() / runs.len() as f64;
    (0..steps).map(mean).collect()
}
