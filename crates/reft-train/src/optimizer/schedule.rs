use std::f64::consts::PI;

/// How the learning rate changes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// It falls to 0 along a line.
    #[default]
    Linear,
    /// It falls to 0 along half a cosine.
    Cosine,
}

reft_core::names!(ScheduleKind, "schedule", reft_models::Error, {
    Constant => "constant", Linear => "linear", Cosine => "cosine",
});

/// The learning rate of every step.
///
/// With `w` warm-up steps of `n`, step `k` (counted from 0) has `lr · k/w` for `k < w`; then, with `x = (k − w)/(n − w)`,
/// constant `lr`, linear `lr · (1 − x)`, cosine `lr · ½(1 + cos πx)`. These are the schedules of transformers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    lr: f64,
    warmup_steps: usize,
    total_steps: usize,
}

impl Schedule {
    /// A schedule over `total_steps`, of which the share `warmup_ratio`, rounded up, is warm-up.
    pub fn new(kind: ScheduleKind, lr: f64, warmup_ratio: f64, total_steps: usize) -> Self {
        let warmup_steps = (warmup_ratio * total_steps as f64).ceil() as usize;
        Self { kind, lr, warmup_steps, total_steps }
    }

    /// The learning rate of a step, counted from 0.
    pub fn lr(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * step as f64 / self.warmup_steps as f64;
        }
        let steps_after = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / steps_after as f64).min(1.0);
        match self.kind {
            ScheduleKind::Constant => self.lr,
            ScheduleKind::Linear => self.lr * (1.0 - progress),
            ScheduleKind::Cosine => self.lr * 0.5 * (1.0 + (PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand from the formulas: 10 steps, warm-up ⌈0.35 · 10⌉ = 4, six steps after it.
    #[test]
    fn rates_are_those_of_the_formulas() {
        let warmup = [0.0, 0.5, 1.0, 1.5];
        let root3 = 3f64.sqrt();
        let expected = [
            (ScheduleKind::Constant, [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
            (ScheduleKind::Linear, [2.0, 10.0 / 6.0, 8.0 / 6.0, 1.0, 4.0 / 6.0, 2.0 / 6.0]),
            // 1 + cos(0°, 30°, 60°, 90°, 120°, 150°)
            (ScheduleKind::Cosine, [2.0, 1.0 + root3 / 2.0, 1.5, 1.0, 0.5, 1.0 - root3 / 2.0]),
        ];
        for (kind, after) in expected {
            let schedule = Schedule::new(kind, 2.0, 0.35, 10);
            for (step, lr) in warmup.into_iter().chain(after).enumerate() {
                let found = schedule.lr(step);
                // f64 arithmetic in another order
                assert!((found - lr).abs() < 1e-12, "{kind:?} step {step}: {found} is not {lr}");
            }
        }
    }

    #[test]
    fn without_warmup_the_first_step_has_the_full_rate() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            assert_eq!(Schedule::new(kind, 4e-3, 0.0, 100).lr(0), 4e-3);
            assert_eq!(Schedule::new(kind, 4e-3, 0.0, 1).lr(0), 4e-3);
        }
    }

    #[test]
    fn a_warmup_of_the_whole_run_never_falls() {
        let schedule = Schedule::new(ScheduleKind::Linear, 1.0, 1.0, 5);
        assert_eq!([0, 1, 2, 3, 4].map(|step| schedule.lr(step)), [0.0, 0.2, 0.4, 0.6, 0.8]);
    }

    #[test]
    fn an_unknown_schedule_is_refused() {
        assert!(matches!("cosine".parse(), Ok(ScheduleKind::Cosine)));
        let refused = "Linear".parse::<ScheduleKind>().map_err(|error| error.to_string());
        let words = "unknown schedule \"Linear\"; use one of constant, linear, cosine";
        assert_eq!(refused, Err(words.to_owned()));
    }
}
