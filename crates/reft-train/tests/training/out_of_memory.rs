//! Memory that runs out in the middle of a run: one clear error, and a checkpoint to resume from.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use reft_core::{MapKind, Parameter};
use reft_methods::ReftAdapter;
use reft_models::{Adapter, Hooks, Layout, Mode, Reach, Result, Row};
use reft_train::{Dataset, Error, Outcome, Silent, TrainConfig, Trainer};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples, learner};

/// An adapter that allocates 2⁵⁰ numbers in one of its forwards.
struct Greedy {
    inner: ReftAdapter,
    forwards_before: Cell<i64>,
}

impl Adapter for Greedy {
    fn method(&self) -> &str {
        self.inner.method()
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.inner.parameters()
    }

    fn hooks<'a>(&'a self, layout: &Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        self.forwards_before.set(self.forwards_before.get() - 1);
        if self.forwards_before.get() < 0 {
            drop(Tensor::zeros([1i64 << 50], (Kind::Float, Device::Cpu)));
        }
        self.inner.hooks(layout, mode)
    }

    fn reach(&self, row: &Row) -> Reach {
        self.inner.reach(row)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        self.inner.state()
    }

    fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.inner.load_state(state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.inner.save(dir)
    }
}

#[test]
fn a_run_that_runs_out_of_memory_goes_on_from_the_step_before() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let options =
        TrainConfig { max_steps: Some(8), batch_size: 4, lr: 5e-3, ..TrainConfig::default() };
    let dataset = Dataset { train: examples(8), validation: Vec::new() };
    let fresh = || adapter(&decoder, MapKind::Householder, 0.0, 1);
    let stop = AtomicBool::new(false);

    let whole = fresh()?;
    Trainer::new(&learner(&decoder, &whole), &dataset, options.clone())?.run(&mut Silent, &stop)?;

    let dir = tempfile::tempdir()?;
    let greedy = Greedy { inner: fresh()?, forwards_before: Cell::new(5) };
    let mut trainer = Trainer::new(&learner(&decoder, &greedy), &dataset, options.clone())?
        .starting_in(dir.path())?;
    let stopped = trainer.run(&mut Silent, &stop);
    assert!(
        matches!(&stopped, Err(Error::OutOfMemory { step: 6, reason }) if reason.contains("memory")),
        "{stopped:?}"
    );
    drop(trainer);

    // the advice: keep less for the backward, which changes numbers only by rounding
    let options = TrainConfig { checkpoint_activations: true, reuse: false, ..options };
    let resumed = fresh()?;
    let mut trainer =
        Trainer::new(&learner(&decoder, &resumed), &dataset, options)?.resuming_in(dir.path())?;
    assert_eq!(trainer.plan().done, 5);
    let outcome = trainer.run(&mut Silent, &stop)?;
    assert!(matches!(outcome, Outcome::Finished(summary) if summary.steps == 8));
    drop(trainer);
    for (name, expected) in whole.state() {
        let difference = (&resumed.state()[&name] - &expected).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{name}: {difference:e}"); // three steps of AdamW on f32 gradients summed in another order
    }
    Ok(())
}
