use reft_report::{COLOURS, Spread, bytes, grouped, percent, seconds, spread};

use crate::report::table::{Cell, Row, Table, nothing, score, score_spread};
use crate::{MethodReport, RateReport, Report};

const HEADS: [&str; 11] = [
    "method",
    "score",
    "parameters",
    "%",
    "file",
    "lr",
    "training",
    "tokens/s",
    "peak memory",
    "generated/s",
    "forgetting",
];

impl Report {
    /// Everything that was measured, method by method.
    pub(super) fn results(&self) -> Table {
        let metric = self.metric;
        let mut heads = HEADS.map(str::to_owned);
        heads[1] = metric.name().to_owned();
        let means = self.methods.iter().filter_map(|method| Some(method.score.as_ref()?.mean));
        let best = means.reduce(|a, b| if (a > b) == self.higher_is_better { a } else { b });
        let base = self.base.iter().map(|base| {
            let mut cells = vec![nothing(); HEADS.len()];
            cells[0].0 = "base model".to_owned();
            cells[1] = (score(metric, base.score), Some(base.score));
            (cells[2], cells[3]) = (("0".to_owned(), Some(0.0)), ("0 %".to_owned(), Some(0.0)));
            cells[9] = base.generation_tokens_per_second.map_or_else(nothing, whole);
            Row { cells, ..Row::default() }
        });
        let methods = self.methods.iter().enumerate().map(|(i, method)| Row {
            cells: self.cells(method),
            colour: Some(i % COLOURS),
            is_best: best.is_some() && best == method.score.as_ref().map(|score| score.mean),
        });
        Table { heads: heads.into(), rows: base.chain(methods).collect() }
    }

    fn cells(&self, method: &MethodReport) -> Vec<Cell> {
        let mean = |of: &Option<Spread>, text: &dyn Fn(&Spread) -> String| {
            of.as_ref().map_or_else(nothing, |of| (text(of), Some(of.mean)))
        };
        let speed = |of: &Option<Spread>| of.as_ref().map_or_else(nothing, |of| whole(of.mean));
        let positive = |value: f64, text: String| {
            if value > 0.0 { (text, Some(value)) } else { nothing() }
        };
        let mut score = mean(&method.score, &|score| {
            let diverged = format!(" ({} diverged)", method.diverged);
            let note = if method.diverged > 0 { diverged } else { String::new() };
            score_spread(self.metric, score) + &note
        });
        if method.score.is_none() && method.grid.iter().all(|rate| rate.diverged.is_some()) {
            score.0 = "diverged".to_owned();
        }
        let (parameters, share) = (method.trainable_parameters, method.trainable_percent);
        let memory = |n: u64| (bytes(n), Some(n as f64));
        vec![
            (method.label.clone(), None),
            score,
            positive(parameters as f64, grouped(parameters)),
            positive(share, percent(share)),
            positive(method.adapter_bytes as f64, bytes(method.adapter_bytes)),
            method.lr.map_or_else(nothing, |lr| (lr.to_string(), Some(lr))),
            mean(&method.train_seconds, &|time| seconds(time.mean)),
            speed(&method.tokens_per_second),
            method.peak_memory_bytes.map_or_else(nothing, memory),
            speed(&method.generation_tokens_per_second),
            mean(&method.forgetting, &|rise| spread(rise, 3)),
        ]
    }

    /// The scores on each test set, if there are several.
    pub(super) fn tests(&self) -> Option<Table> {
        let tests = &self.plan.config.data.test;
        let names = tests.iter().map(|file| file.display().to_string());
        let base = self.base.iter().map(|base| {
            let scores = base.tests.iter().map(|x| (score(self.metric, *x), Some(*x)));
            let cells = std::iter::once(("base model".to_owned(), None)).chain(scores).collect();
            Row { cells, ..Row::default() }
        });
        let methods =
            self.methods.iter().enumerate().filter(|(_, method)| !method.tests.is_empty());
        let methods = methods.map(|(i, method)| {
            let scores = method.tests.iter();
            let scores = scores.map(|s| (score_spread(self.metric, s), Some(s.mean)));
            let cells = std::iter::once((method.label.clone(), None)).chain(scores).collect();
            Row { cells, colour: Some(i % COLOURS), is_best: false }
        });
        let heads = std::iter::once("method".to_owned()).chain(names).collect();
        (tests.len() > 1).then(|| Table { heads, rows: base.chain(methods).collect() })
    }

    /// A rate with its score: `0.004: 81.5 %`.
    pub(super) fn rate(&self, rate: &RateReport) -> String {
        let found = match (&rate.diverged, rate.validation) {
            (Some(_), _) => "diverged".to_owned(),
            (None, Some(value)) => score(self.metric, value),
            (None, None) => "not run yet".to_owned(),
        };
        format!("{}: {found}", rate.lr)
    }
}

/// A cell with a rounded number, sorted by its exact value.
fn whole(x: f64) -> Cell {
    (grouped(x.round() as i64), Some(x))
}
