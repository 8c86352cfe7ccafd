use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use reft_train::{Plan, Progress, StepStats, ValidationStats};

use crate::terminal::output::{bar, counted, grouped, note, share};

/// Shows a run on stderr, and keeps the figures of the summary.
#[derive(Debug)]
pub struct TrainProgress {
    bar: Option<ProgressBar>,
    /// The plan of the run.
    pub plan: Option<Plan>,
    /// Loss of the last step.
    pub loss: Option<f64>,
    /// Tokens of the steps that this process has taken.
    pub tokens: usize,
    /// Wall time of these steps in seconds.
    pub seconds: f64,
    /// Time of the last printed line, and the number of steps by then.
    line: (Instant, usize),
}

/// Longest time between lines on a stderr that is no terminal.
const SILENCE: Duration = Duration::from_secs(10);

impl TrainProgress {
    /// The progress before the first step.
    pub fn new() -> Self {
        let line = (Instant::now(), 0);
        Self { bar: None, plan: None, loss: None, tokens: 0, seconds: 0.0, line }
    }

    /// Tokens per second of training, padding and validation not counted.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }

    /// Takes the bar away, so that later messages have lines of their own.
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
}

impl Progress for TrainProgress {
    fn started(&mut self, plan: &Plan) {
        let head = match plan.of_objective {
            0 => String::new(),
            n => format!(", and the {} of a head", grouped(n as i64)),
        };
        note(format!("trainable {}{head}", share(plan.of_adapters() as i64, plan.total as i64)));
        note(&plan.kinds);
        let Plan { steps, steps_per_epoch, examples, validation_examples, done, .. } = *plan;
        let some = |n: usize, text: String| if n > 0 { text } else { String::new() };
        let held_out = some(validation_examples, format!(", {validation_examples} held out"));
        let from = some(done, format!(", going on after {done}"));
        note(format!(
            "{}{held_out}; {}, {steps_per_epoch} an epoch{from}",
            counted(examples, "example"),
            counted(steps, "step")
        ));
        if io::stderr().is_terminal() {
            let bar = bar(steps, "{bar:30} step {pos}/{len}  {msg}  {elapsed} gone");
            self.bar = Some(bar.with_position(done as u64));
        }
        self.line = (Instant::now(), done);
        self.plan = Some(plan.clone());
    }

    fn step(&mut self, stats: &StepStats) {
        self.loss = Some(stats.loss);
        self.tokens += stats.tokens;
        self.seconds += stats.seconds;
        let Some(plan) = &self.plan else { return };
        let speed = grouped(self.tokens_per_second() as i64);
        let per_step = self.seconds / (stats.step - plan.done).max(1) as f64;
        let left = duration(per_step * plan.steps.saturating_sub(stats.step) as f64);
        let terms: Vec<String> =
            stats.terms.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        let terms =
            if terms.is_empty() { terms.concat() } else { format!(" ({})", terms.join(", ")) };
        let text = format!("loss {:.4}{terms}  {speed} tokens/s  {left} left", stats.loss);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            bar.set_position(stats.step as u64);
            return;
        }
        let (printed, after) = self.line;
        let is_due = (stats.step - after) * 10 >= plan.steps || printed.elapsed() >= SILENCE;
        if is_due || stats.step == plan.steps {
            note(format!("step {}/{}  {text}", stats.step, plan.steps));
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
        let measured = stats.measured.iter().map(|(name, value)| format!(", {name} {value:.4}"));
        let (step, loss) = (stats.step, stats.validation_loss);
        self.say(&format!(
            "step {step}: validation loss {loss:.4}{}",
            measured.collect::<String>()
        ));
    }

    fn checkpoint_saved(&mut self, step: usize, path: &Path) {
        if self.bar.is_none() {
            note(format!("step {step}: checkpoint {}", path.display()));
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
