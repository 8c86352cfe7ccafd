use std::path::Path;

use reft_models::{write_json_in_order, write_text};
use serde::{Deserialize, Serialize};

use crate::compare::{PointPlan, SweepPlan};
use crate::error::Result;
use crate::report::results::Report;
use crate::report::sweep_markdown::sweep_markdown;
use crate::report::sweep_page::sweep_page;
use crate::tasks::Metric;

/// What a sweep has come to: its `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepReport {
    /// The sweep itself: command, configuration, axes.
    pub plan: SweepPlan,
    /// Whether every method is finished at every point.
    pub complete: bool,
    /// What scores are.
    pub metric: Metric,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The points, row by row.
    pub points: Vec<PointReport>,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointReport {
    /// Where it is.
    #[serde(flatten)]
    pub plan: PointPlan,
    /// What its comparison has come to.
    pub report: Report,
}

impl SweepReport {
    /// Gathers what is finished of a sweep.
    ///
    /// # Errors
    /// If there is no sweep, or a file cannot be read.
    pub fn collect(output: &Path) -> Result<Self> {
        let plan = SweepPlan::read(output)?;
        let point = |plan: &PointPlan| {
            let report = Report::collect(&output.join(&plan.directory))?;
            Ok(PointReport { plan: plan.clone(), report })
        };
        let points = plan.points.iter().map(point).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            complete: points.iter().all(|point| point.report.complete),
            metric: plan.metric,
            higher_is_better: plan.metric.higher_is_better(),
            points,
            plan,
        })
    }

    /// Writes `report.json`, `report.md` and `report.html`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, output: &Path) -> Result<()> {
        write_json_in_order(&output.join("report.json"), self)?;
        write_text(&output.join("report.md"), &sweep_markdown(self))?;
        Ok(write_text(&output.join("report.html"), &sweep_page(self))?)
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        sweep_markdown(self)
    }

    /// What has a score at every point: the methods, and the base model at the end.
    pub(super) fn grids(&self) -> Vec<Grid<'_>> {
        let labels = self.plan.config.method.iter().map(|method| method.label());
        let mut grids: Vec<Grid> =
            labels.enumerate().map(|(i, label)| Grid { label, method: Some(i) }).collect();
        grids.push(Grid { label: "base model", method: None });
        grids
    }

    /// The point in a column and a row.
    pub(super) fn at(&self, x: usize, y: usize) -> Option<&PointReport> {
        self.points.iter().find(|point| (point.plan.x, point.plan.y) == (x, y))
    }
}

/// A method over the whole sweep, or the base model.
pub(super) struct Grid<'a> {
    pub(super) label: &'a str,
    /// Index of the method; `None`: the base model.
    method: Option<usize>,
}

impl Grid<'_> {
    /// The mean score at a point, and its standard deviation over seeds.
    pub(super) fn score(&self, point: &PointReport) -> Option<(f64, Option<f64>)> {
        match self.method {
            Some(i) => {
                point.report.methods.get(i)?.score.as_ref().map(|score| (score.mean, score.sd))
            }
            None => point.report.base.as_ref().map(|base| (base.score, None)),
        }
    }
}
