//! Half precision: the frozen model is in bf16 or f16, trained tensors are in f32.

use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_models::{Adapter, Decoder, Model};
use reft_train::{Dataset, Outcome, Progress, ScheduleKind, StepStats, TrainConfig, Trainer};
use tch::Kind;

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples, learner};

#[derive(Default)]
struct Heard {
    losses: Vec<f64>,
    overflows: Vec<(usize, f64)>,
}

impl Progress for Heard {
    fn step(&mut self, stats: &StepStats) {
        self.losses.push(stats.loss);
    }

    fn overflowed(&mut self, step: usize, loss_scale: f64) {
        self.overflows.push((step, loss_scale));
    }
}

fn run(kind: Kind) -> Result<(Heard, String), Box<dyn std::error::Error>> {
    train(&decoder(kind)?)
}

fn train(decoder: &Decoder) -> Result<(Heard, String), Box<dyn std::error::Error>> {
    let adapter = adapter(decoder, MapKind::Householder, 0.0, 1)?;
    assert!(adapter.parameters().iter().all(|p| p.tensor.kind() == Kind::Float));
    let options = TrainConfig {
        max_steps: Some(30),
        batch_size: 4,
        lr: 5e-3,
        schedule: ScheduleKind::Constant,
        ..TrainConfig::default()
    };
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let mut trainer = Trainer::new(&learner(decoder, &adapter), &dataset, options)?;
    let kinds = trainer.describe_kinds();
    let mut heard = Heard::default();
    let outcome = trainer.run(&mut heard, &AtomicBool::new(false))?;
    assert!(matches!(outcome, Outcome::Finished(summary) if summary.steps == 30));
    Ok((heard, kinds))
}

#[test]
fn half_precision_learns_as_single_precision_does() -> TestResult {
    let _alone = alone();
    let (single, kinds) = run(Kind::Float)?;
    assert!(kinds.starts_with("frozen model and hidden states in f32;"), "{kinds}");
    assert!(single.losses[29] < single.losses[0] - 1.0, "no power: {:?}", single.losses);
    // bf16 keeps 8 bits, f16 keeps 11: logits up to 10 are off by up to 0.05 and 0.005, and so are single losses
    for (kind, word, tolerance) in [(Kind::BFloat16, "bf16;", 0.1), (Kind::Half, "f16,", 0.02)] {
        let (half, kinds) = run(kind)?;
        assert!(kinds.contains(word), "{kinds}");
        for (step, (a, b)) in half.losses.iter().zip(&single.losses).enumerate() {
            assert!((a - b).abs() < tolerance, "{kind:?}, step {step}: {a} is not {b}");
        }
    }
    Ok(())
}

#[test]
fn gradients_that_overflow_f16_lower_the_loss_scale_until_the_step_can_be_taken() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Half)?;
    let weights = decoder.weights();
    let (_, head) = weights.iter().find(|(name, _)| name == "lm_head.weight").ok_or("no head")?;
    // Logits of up to 10 become 5,000, which f16 holds; their gradients times a scale of 65536 are more than it holds.
    let _scaled = tch::no_grad(|| head.dense().g_mul_scalar_(500.0));
    let (heard, _) = train(&decoder)?;
    assert!(heard.overflows.len() >= 2, "no power: {:?}", heard.overflows);
    for (i, (step, scale)) in heard.overflows.iter().enumerate() {
        assert!((1..=30).contains(step));
        assert_eq!(*scale, 65536.0 / 2f64.powi(i as i32 + 1)); // 30 steps are too few for it to grow
    }
    assert_eq!(heard.overflows[0].0, 1);
    assert_eq!(heard.losses.len(), 30); // every step was taken in the end
    assert!(heard.losses.iter().all(|loss| loss.is_finite()));
    Ok(())
}
