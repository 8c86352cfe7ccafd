//! What is made ready ahead is what would have been made when it was wanted.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;

use reft_core::MapKind;
use reft_models::{Adapter, Decoder, Layout, Mode, Place, TokenAt, Weight};
use reft_train::{
    Backward, Batch, Computation, Dataset, FrozenStore, Model, Prepared, Progress, Result,
    ReuseConfig, Shuffle, Step, StepStats, TrainConfig, Trainer, ValidationStats,
};
use tch::{Device, Kind, Tensor};

use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples};

/// A decoder that counts the batches that were made ready ahead, or makes none.
struct Watched {
    decoder: Decoder,
    looks_ahead: bool,
    made: Cell<usize>,
    used: Cell<usize>,
}

impl Watched {
    fn new(looks_ahead: bool) -> reft_models::Result<Self> {
        let (made, used) = (Cell::new(0), Cell::new(0));
        Ok(Self { decoder: decoder(Kind::Float)?, looks_ahead, made, used })
    }

    fn see(&self, computation: &Computation) {
        self.used.set(self.used.get() + usize::from(computation.prepared.is_some()));
    }
}

impl Model for Watched {
    fn target_losses(&self, computation: Computation, mode: Mode) -> Result<Tensor> {
        self.see(&computation);
        self.decoder.target_losses(computation, mode)
    }

    fn checkpointed_backward(
        &self,
        computation: Computation,
        backward: Backward,
    ) -> Result<Tensor> {
        self.see(&computation);
        self.decoder.checkpointed_backward(computation, backward)
    }

    fn prepare(
        &self,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Option<Prepared>> {
        if !self.looks_ahead {
            return Ok(None);
        }
        let prepared = self.decoder.prepare(adapters, batch, frozen)?;
        self.made.set(self.made.get() + usize::from(prepared.is_some()));
        Ok(prepared)
    }

    fn target_logits(
        &self,
        computation: Computation,
        answers: Option<&Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        self.decoder.target_logits(computation, answers)
    }

    fn collect(&self, layout: &Layout, wanted: Vec<(Place, Vec<TokenAt>)>) -> Result<Vec<Tensor>> {
        Model::collect(&self.decoder, layout, wanted)
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        self.decoder.weights()
    }

    fn kind(&self) -> Kind {
        self.decoder.kind()
    }

    fn device(&self) -> Device {
        self.decoder.device()
    }

    fn describe(&self) -> String {
        self.decoder.describe()
    }
}

#[derive(Default)]
struct Losses(Vec<f64>);

impl Progress for Losses {
    fn step(&mut self, stats: &StepStats) {
        self.0.extend([stats.loss, stats.grad_norm]);
    }

    fn validated(&mut self, stats: &ValidationStats) {
        self.0.push(stats.validation_loss);
    }
}

fn config() -> TrainConfig {
    TrainConfig {
        max_steps: Some(11),
        batch_size: 3,
        lr: 4e-3,
        shuffle: Shuffle::Plain,
        seed: 5,
        ..TrainConfig::default()
    }
}

type Trajectory = (Vec<f64>, Vec<Tensor>);

fn train(
    model: &Watched,
    config: &TrainConfig,
    store: FrozenStore,
) -> std::result::Result<Trajectory, Box<dyn std::error::Error>> {
    let mut adapter = adapter(&model.decoder, MapKind::Householder, 0.2, 7)?;
    let dataset = Dataset { train: examples(8), validation: examples(2) };
    let mut losses = Losses::default();
    let trainer = Trainer::new(model, &mut adapter, &dataset, config.clone())?;
    trainer.with_store(store).run(&mut losses, &AtomicBool::new(false))?;
    let tensors = adapter.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
    Ok((losses.0, tensors))
}

#[test]
fn looking_ahead_changes_no_bit_of_a_run() -> TestResult {
    let _alone = alone();
    let directory = tempfile::tempdir()?;
    let spilled = ReuseConfig { memory: Some(0), directory: Some(directory.path().to_owned()) };
    let some = ReuseConfig { memory: Some(3000), directory: None }; // a few of the rows
    let runs: [(&str, TrainConfig, &dyn Fn() -> FrozenStore<'static>); 6] = [
        ("in memory", config(), &|| FrozenStore::new(ReuseConfig::default())),
        ("in a file", config(), &|| FrozenStore::new(spilled.clone())),
        ("in part", config(), &|| FrozenStore::new(some.clone())),
        ("whole rows", config(), &|| FrozenStore::of_whole_rows(spilled.clone())),
        ("nothing kept", TrainConfig { reuse: false, ..config() }, &|| {
            FrozenStore::new(ReuseConfig::default())
        }),
        (
            "micro-batches, checkpointed",
            TrainConfig { grad_accum: 2, checkpoint_activations: true, ..config() },
            &|| FrozenStore::new(ReuseConfig::default()),
        ),
    ];
    for (what, config, store) in runs {
        let (plain, ahead) = (Watched::new(false)?, Watched::new(true)?);
        let expected = train(&plain, &config, store())?;
        assert_eq!(train(&ahead, &config, store())?, expected, "{what}");
        assert_eq!((plain.made.get(), plain.used.get()), (0, 0), "{what}");
        let batches = match what {
            "nothing kept" => 10,                // every step but the first
            "in part" => continue, // as many as happen to be made of rows that are kept
            "micro-batches, checkpointed" => 14, // 17 of 6 epochs, but the 3 of the first: the last of it prepares one of the second
            _ => 8, // the first epoch has 3: its last step prepares one of the second
        };
        assert_eq!(ahead.made.get(), ahead.used.get(), "{what}");
        assert_eq!(ahead.made.get(), batches, "{what}");
    }
    Ok(())
}

#[test]
fn a_step_on_other_batches_than_were_to_come_uses_nothing_of_them() -> TestResult {
    let _alone = alone();
    let losses = |model: &Watched| -> std::result::Result<Vec<f64>, Box<dyn std::error::Error>> {
        let mut adapter = adapter(&model.decoder, MapKind::Householder, 0.0, 7)?;
        let dataset = Dataset { train: examples(8), validation: Vec::new() };
        let mut trainer = Trainer::new(model, &mut adapter, &dataset, config())?;
        let mut losses = Vec::new();
        for step in [0, 1, 2, 5, 3, 1] {
            let batches = trainer.micro_batches(step)?;
            match trainer.step(&batches)? {
                Step::Taken(stats) => losses.push(stats.loss),
                Step::Overflowed => return Err("f32 does not overflow".into()),
            }
        }
        Ok(losses)
    };
    let (plain, ahead) = (Watched::new(false)?, Watched::new(true)?);
    assert_eq!(losses(&ahead)?, losses(&plain)?);
    assert!(ahead.made.get() > ahead.used.get(), "{} {}", ahead.made.get(), ahead.used.get());
    Ok(())
}
