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

impl ScheduleKind {
    /// The learning rate of a step, counted from 0, of a run whose highest is `lr`.
    ///
    /// With `w` warm-up steps of `n`, the share `warmup_ratio` of them rounded up, step `k` has `lr · k/w` for `k < w`; then, with
    /// `x = (k − w)/(n − w)`, constant `lr`, linear `lr · (1 − x)`, cosine `lr · ½(1 + cos πx)`. These are the schedules of transformers.
    pub(crate) fn lr(self, lr: f64, warmup_ratio: f64, step: usize, total_steps: usize) -> f64 {
        let warmup_steps = (warmup_ratio * total_steps as f64).ceil() as usize;
        if step < warmup_steps {
            return lr * step as f64 / warmup_steps as f64;
        }
        let steps_after = total_steps.saturating_sub(warmup_steps).max(1);
        let progress = ((step - warmup_steps) as f64 / steps_after as f64).min(1.0);
        match self {
            Self::Constant => lr,
            Self::Linear => lr * (1.0 - progress),
            Self::Cosine => lr * 0.5 * (1.0 + (PI * progress).cos()),
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
            for (step, lr) in warmup.into_iter().chain(after).enumerate() {
                let found = kind.lr(2.0, 0.35, step, 10);
                // f64 arithmetic in another order
                assert!((found - lr).abs() < 1e-12, "{kind:?} step {step}: {found} is not {lr}");
            }
        }
    }

    #[test]
    fn without_warmup_the_first_step_has_the_full_rate() {
        for kind in [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine] {
            assert_eq!(kind.lr(4e-3, 0.0, 0, 100), 4e-3);
            assert_eq!(kind.lr(4e-3, 0.0, 0, 1), 4e-3);
        }
    }

    #[test]
    fn a_warmup_of_the_whole_run_never_falls() {
        let lr = |step| ScheduleKind::Linear.lr(1.0, 1.0, step, 5);
        assert_eq!([0, 1, 2, 3, 4].map(lr), [0.0, 0.2, 0.4, 0.6, 0.8]);
    }

    #[test]
    fn an_unknown_schedule_is_refused() {
        assert!(matches!("cosine".parse(), Ok(ScheduleKind::Cosine)));
        let refused = "Linear".parse::<ScheduleKind>().map_err(|error| error.to_string());
        let words = "unknown schedule \"Linear\"; use one of constant, linear, cosine";
        assert_eq!(refused, Err(words.to_owned()));
    }
}
