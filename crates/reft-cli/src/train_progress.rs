//! How a run shows what it does: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use reft_train::{Plan, Progress, StepStats, ValidationStats};

use crate::output::{grouped, note, percent};

/// Shows a run on stderr, and keeps what the summary needs.
#[derive(Debug)]
pub struct TrainProgress {
    bar: Option<ProgressBar>,
    plan: Option<Plan>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Tokens of these steps.
    pub tokens: usize,
    /// Wall time of these steps.
    pub seconds: f64,
    /// When a line was printed, and after how many steps.
    line: (Instant, usize),
}

/// Longest silence of a run whose stderr is no terminal.
const SILENCE: Duration = Duration::from_secs(10);

impl TrainProgress {
    /// Before the first step.
    pub fn new() -> Self {
        Self {
            bar: None,
            plan: None,
            loss: None,
            tokens: 0,
            seconds: 0.0,
            line: (Instant::now(), 0),
        }
    }

    /// What the run was going to do.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Tokens per second of training, padding and validation not counted.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Takes the bar away, so that what follows stands on lines of its own.
    pub fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn time_left(&self, step: usize, plan: &Plan) -> String {
        let per_step = self.seconds / (step - plan.done).max(1) as f64;
        duration(per_step * plan.steps.saturating_sub(step) as f64)
    }
}

impl Progress for TrainProgress {
    fn started(&mut self, plan: &Plan) {
        let (trainable, total) = (plan.trainable as i64, plan.total as i64);
        note(&format!(
            "trainable {} of {} ({})",
            grouped(trainable),
            grouped(total),
            percent(trainable, total)
        ));
        note(&plan.kinds);
        let held_out = match plan.validation_examples {
            0 => String::new(),
            n => format!(", {n} held out"),
        };
        let (steps, epoch) = (plan.steps, plan.steps_per_epoch);
        let from =
            if plan.done > 0 { format!(", going on after {}", plan.done) } else { String::new() };
        note(&format!(
            "{} examples{held_out}; {steps} steps, {epoch} an epoch{from}",
            plan.examples
        ));
        if io::stderr().is_terminal() {
            let style =
                ProgressStyle::with_template("{bar:30} step {pos}/{len}  {msg}  {elapsed} gone");
            let bar = ProgressBar::new(plan.steps as u64).with_position(plan.done as u64);
            self.bar = Some(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        }
        self.line = (Instant::now(), plan.done);
        self.plan = Some(plan.clone());
    }

    fn step(&mut self, stats: &StepStats) {
        self.loss = Some(stats.loss);
        self.tokens += stats.tokens;
        self.seconds += stats.seconds;
        let Some(plan) = &self.plan else { return };
        let text = format!(
            "loss {:.4}  {} tokens/s  {} left",
            stats.loss,
            grouped(self.tokens_per_second() as i64),
            self.time_left(stats.step, plan)
        );
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(stats.step as u64);
            return;
        }
        let (printed, after) = self.line;
        let is_due = (stats.step - after) * 10 >= plan.steps || printed.elapsed() >= SILENCE;
        if is_due || stats.step == plan.steps {
            note(&format!("step {}/{}  {text}", stats.step, plan.steps));
            self.line = (Instant::now(), stats.step);
        }
    }

    fn overflowed(&mut self, step: usize, loss_scale: f64) {
        self.say(&format!("step {step}: f16 overflowed, trying again at loss scale {loss_scale}"));
    }

    fn warned(&mut self, warning: &str) {
        self.say(&format!("warning: {warning}"));
    }

    fn validated(&mut self, stats: &ValidationStats) {
        self.say(&format!("step {}: validation loss {:.4}", stats.step, stats.validation_loss));
    }

    fn checkpoint_saved(&mut self, step: usize, path: &Path) {
        if self.bar.is_none() {
            note(&format!("step {step}: checkpoint {}", path.display()));
        }
    }
}

/// Seconds as people read them: `48 s`, `3 min 5 s`, `2 h 7 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let texts = [0.4, 48.0, 185.0, 7_620.0].map(duration);
        assert_eq!(texts, ["0 s", "48 s", "3 min 5 s", "2 h 7 min"]);
    }
}
