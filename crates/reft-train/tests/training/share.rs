//! A run that is shared out among processes is the run of one.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reft_core::MapKind;
use reft_models::{Adapter, AdapterStack};
use reft_train::{
    Alone, Batch, Dataset, Error, Forwards, Learner, NextToken, Objective, Outcome, Progress,
    Reduce, Share, Shuffle, StepStats, Term, TrainConfig, Trainer, ValidationStats,
};
use tch::{Kind, Tensor};

use crate::tiny_llama::{
    TestResult, adapter, alone, decoder, examples, learner, relative_difference,
};

/// Processes that are threads and take turns from one sum to the next: libtorch has one random number generator for all threads.
struct Turns {
    world: usize,
    state: Mutex<State>,
    changed: Condvar,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    turn: usize,
    sums: Vec<Tensor>,
    /// The share of each rank.
    results: Vec<Vec<Tensor>>,
}

/// One of the processes.
struct Process<'a> {
    rank: usize,
    turns: &'a Turns,
}

impl<'a> Process<'a> {
    fn wait_for_turn(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.turn != self.rank {
            let waited = self.turns.changed.wait_timeout(state, Duration::from_secs(60));
            let (next, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            assert!(!timeout.timed_out(), "another process has ended");
            state = next;
        }
        state
    }

    fn begin(&self) {
        drop(self.wait_for_turn(self.turns.lock()));
    }

    /// Changes the shared state, passes the turn on and, if it `waits`, waits for its own next turn.
    fn pass_on(&self, waits: bool, act: impl FnOnce(&mut State)) -> Vec<Tensor> {
        let mut state = self.turns.lock();
        act(&mut state);
        state.turn = (self.rank + 1) % self.turns.world;
        self.turns.changed.notify_all();
        if waits {
            state = self.wait_for_turn(state);
        }
        std::mem::take(&mut state.results[self.rank])
    }
}

impl Reduce for Process<'_> {
    fn sum(&self, tensors: &mut [Tensor]) -> reft_train::Result<()> {
        let _guard = tch::no_grad_guard();
        let copies = |tensors: &[Tensor]| tensors.iter().map(Tensor::copy).collect::<Vec<_>>();
        let found = self.pass_on(true, |state| {
            if self.rank == 0 {
                state.sums = copies(tensors);
            } else {
                assert_eq!(state.sums.len(), tensors.len());
                for (sum, own) in state.sums.iter_mut().zip(&*tensors) {
                    *sum += own;
                }
            }
            if self.rank + 1 == self.turns.world {
                state.results = (0..self.turns.world).map(|_| copies(&state.sums)).collect();
            }
        });
        for (tensor, sum) in tensors.iter_mut().zip(found) {
            tensor.copy_(&sum);
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct Steps(pub Vec<StepStats>);

impl Progress for Steps {
    fn step(&mut self, stats: &StepStats) {
        self.0.push(stats.clone());
    }
}

/// Next tokens, with `weight · Σ θ²` added to each step's loss.
struct Penalised<'a> {
    adapter: &'a dyn Adapter,
    weight: f64,
}

impl Objective for Penalised<'_> {
    fn name(&self) -> &'static str {
        "penalised"
    }

    fn penalty(&self) -> Option<Tensor> {
        let parameters = self.adapter.parameters().into_iter();
        let squares = parameters.map(|p| p.tensor.square().sum(Kind::Float));
        (self.weight > 0.0).then(|| squares.sum::<Tensor>() * self.weight)
    }

    fn terms(&self) -> &[Term] {
        NextToken.terms()
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        NextToken.counts(batch)
    }

    fn sums(&self, forwards: &Forwards) -> reft_train::Result<Vec<Tensor>> {
        NextToken.sums(forwards)
    }
}

/// The settings in which runs differ.
#[derive(Clone, Copy, Default)]
struct Setting<'a> {
    dropout: f64,
    penalty: f64,
    directory: Option<&'a Path>,
}

const DROPOUT: Setting = Setting { dropout: 0.3, penalty: 0.0, directory: None };

/// Losses, gradient norms and counts of every step, and the trained tensors at the end.
pub type Trajectory = (Vec<StepStats>, Vec<Tensor>);

fn train(
    config: &TrainConfig,
    share: Share,
    reduction: &dyn Reduce,
    Setting { dropout, penalty, directory }: Setting,
) -> Result<Trajectory, Box<dyn std::error::Error>> {
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, dropout, 7)?;
    let objective = Penalised { adapter: &adapter, weight: penalty };
    let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
    let dataset = Dataset { train: examples(13), validation: examples(2) };
    let mut steps = Steps::default();
    let trainer = Trainer::new(&learner, &dataset, config.clone())?;
    let mut trainer = trainer.sharing(share, reduction);
    if let Some(directory) = directory {
        trainer = trainer.resuming_in(directory)?;
    }
    trainer.run(&mut steps, &AtomicBool::new(false))?;
    let tensors = adapter.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
    Ok((steps.0, tensors))
}

/// The results of each of `world` processes, in turns.
pub fn in_turns<T: Send>(
    world: usize,
    act: impl Fn(Share, &dyn Reduce) -> Result<T, Box<dyn std::error::Error>> + Sync,
) -> Result<Vec<T>, Box<dyn std::error::Error>> {
    let results = (0..world).map(|_| Vec::new()).collect();
    let state = Mutex::new(State { results, ..State::default() });
    let turns = Turns { world, state, changed: Condvar::new() };
    std::thread::scope(|scope| {
        let process = |rank| {
            let (process, act) = (Process { rank, turns: &turns }, &act);
            move || {
                process.begin();
                tch::set_num_threads(1);
                let run = Share::new(process.rank, world)
                    .map_err(Into::into)
                    .and_then(|share| act(share, &process))
                    .map_err(|error| error.to_string());
                process.pass_on(false, |_| ());
                run
            }
        };
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(process(rank))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T, String>>| {
            thread.join().map_err(|_| "a process panicked")?.map_err(Into::into)
        };
        threads.into_iter().map(join).collect()
    })
}

fn shared(
    world: usize,
    config: &TrainConfig,
    setting: Setting,
) -> Result<Vec<Trajectory>, Box<dyn std::error::Error>> {
    in_turns(world, |share, reduction| train(config, share, reduction, setting))
}

pub fn assert_same(found: &Trajectory, expected: &Trajectory) {
    assert_eq!(found.0.len(), expected.0.len());
    for (found, expected) in found.0.iter().zip(&expected.0) {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b; // f32, sums in another order
        assert!(close(found.loss, expected.loss), "{found:?} {expected:?}");
        assert!((found.grad_norm - expected.grad_norm).abs() < 1e-5 * expected.grad_norm);
        assert_eq!(
            (found.tokens, found.target_tokens, found.lr, found.epoch),
            (expected.tokens, expected.target_tokens, expected.lr, expected.epoch)
        );
    }
    for (found, expected) in found.1.iter().zip(&expected.1) {
        let difference = relative_difference(found, expected);
        // AdamW divides by the gradient's own size, so rounding of a small one counts as much as that of a large one
        assert!(difference < 1e-5, "parameters differ by {difference:e}");
    }
}

fn config(batch_size: usize, grad_accum: usize, shuffle: Shuffle) -> TrainConfig {
    TrainConfig {
        epochs: Some(4),
        batch_size,
        grad_accum,
        lr: 4e-3,
        shuffle,
        seed: 5,
        ..TrainConfig::default()
    }
}

/// 13 rows make 5 micro-batches of 3: the last step of an epoch has none for the second process.
#[test]
fn two_processes_train_as_one_with_the_whole_batch() -> TestResult {
    let _alone = alone();
    let whole = train(&config(6, 1, Shuffle::Plain), Share::WHOLE, &Alone, Setting::default())?;
    assert_eq!(whole.0.len(), 4 * 3);
    let halves = shared(2, &config(3, 1, Shuffle::Plain), Setting::default())?;
    for half in &halves {
        assert_same(half, &whole);
    }
    assert_eq!(halves[0].1, halves[1].1, "both processes hold the same bits");
    Ok(())
}

/// A penalty depends on the parameters, which all processes share: it counts once, not once per process.
#[test]
fn a_penalty_counts_once() -> TestResult {
    let _alone = alone();
    let penalised = Setting { penalty: 2.0, ..Setting::default() };
    let whole = train(&config(6, 1, Shuffle::Plain), Share::WHOLE, &Alone, penalised)?;
    for half in shared(2, &config(3, 1, Shuffle::Plain), penalised)? {
        assert_same(&half, &whole);
    }
    let without = train(&config(6, 1, Shuffle::Plain), Share::WHOLE, &Alone, Setting::default())?;
    assert_eq!(whole.0[0].loss, without.0[0].loss); // the reported loss leaves it out
    let (with, without) = (whole.0[0].grad_norm, without.0[0].grad_norm);
    assert!((with - without).abs() > 0.05 * without, "the penalty does nothing: {with} {without}");
    Ok(())
}

/// One batch holds all rows: the second process has no batch and no gradient of its own, but keeps the same parameters.
#[test]
fn a_process_that_is_never_fed_takes_the_steps_of_the_others() -> TestResult {
    let _alone = alone();
    let config = config(13, 1, Shuffle::Plain);
    let whole = train(&config, Share::WHOLE, &Alone, Setting::default())?;
    assert_eq!(whole.0.len(), 4);
    for process in shared(2, &config, Setting::default())? {
        assert_same(&process, &whole);
    }
    Ok(())
}

#[test]
fn processes_draw_the_dropout_of_one_with_as_many_micro_batches() -> TestResult {
    let _alone = alone();
    for (world, each) in [(2, 1), (3, 1), (2, 2)] {
        let together = config(2, each * world, Shuffle::Length);
        let whole = train(&together, Share::WHOLE, &Alone, DROPOUT)?;
        let parts = shared(world, &config(2, each, Shuffle::Length), DROPOUT)?;
        for part in &parts {
            assert_same(part, &whole);
        }
        let without = train(&together, Share::WHOLE, &Alone, Setting::default())?;
        // at the first loss the edit does nothing
        assert_ne!(without.0[1].loss, whole.0[1].loss, "dropout does nothing here");
    }
    Ok(())
}

#[test]
fn the_only_process_of_a_world_trains_as_if_there_were_no_world() -> TestResult {
    let _alone = alone();
    let config = config(3, 2, Shuffle::Length);
    let plain = {
        let decoder = decoder(Kind::Float)?;
        let adapter = adapter(&decoder, MapKind::Householder, 0.3, 7)?;
        let dataset = Dataset { train: examples(13), validation: examples(2) };
        let mut steps = Steps::default();
        let mut trainer = Trainer::new(&learner(&decoder, &adapter), &dataset, config.clone())?;
        trainer.run(&mut steps, &AtomicBool::new(false))?;
        let losses: Vec<f64> = steps.0.iter().map(|stats| stats.loss).collect();
        (losses, adapter.parameters().iter().map(|p| p.tensor.copy()).collect::<Vec<_>>())
    };
    let alone = shared(1, &config, DROPOUT)?.remove(0);
    let losses: Vec<f64> = alone.0.iter().map(|stats| stats.loss).collect();
    assert_eq!((losses, alone.1), plain);
    Ok(())
}

#[test]
fn the_first_process_writes_and_all_go_on_from_what_it_wrote() -> TestResult {
    let _alone = alone();
    let run = tempfile::tempdir()?;
    let config = TrainConfig { validation: 0.0, ..config(3, 1, Shuffle::Plain) };
    let in_directory = Setting { directory: Some(run.path()), ..Setting::default() };
    let whole = shared(2, &config, in_directory)?;
    assert_eq!(std::fs::read_dir(run.path().join("checkpoint"))?.count(), 1);
    let metrics = std::fs::read_to_string(run.path().join("metrics.jsonl"))?;
    assert_eq!(metrics.lines().filter(|line| line.contains("grad_norm")).count(), whole[0].0.len());
    let again = shared(2, &config, in_directory)?;
    for process in &again {
        assert!(process.0.is_empty(), "no step is left");
        assert_eq!(process.1, whole[0].1);
    }
    let other_world = shared(3, &config, in_directory);
    let message = other_world.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(message.contains("world was 2 when the run was started, now it is 3"), "{message}");
    Ok(())
}

/// The loss of another process is NaN.
struct Elsewhere;

impl Reduce for Elsewhere {
    fn sum(&self, tensors: &mut [Tensor]) -> reft_train::Result<()> {
        let [numbers] = tensors else { return Ok(()) };
        if numbers.size() != [3] {
            *numbers += f64::NAN; // not the three counts
        }
        Ok(())
    }
}

#[test]
fn a_loss_that_is_no_number_stops_every_process() -> TestResult {
    let _alone = alone();
    let config = config(3, 1, Shuffle::Plain);
    let error = train(&config, Share::new(0, 2)?, &Elsewhere, Setting::default()).err();
    let error = error.ok_or("it was not noticed")?.to_string();
    assert!(error.contains("loss is NaN at step 1, on examples of another process"), "{error}");
    Ok(())
}

/// Losses of held-out examples, and their numbers of target tokens.
#[derive(Default)]
struct Validations(Vec<(f64, i64)>);

impl Progress for Validations {
    fn validated(&mut self, stats: &ValidationStats) {
        self.0.push((stats.validation_loss, stats.target_tokens));
    }
}

/// Counts the batches that are computed.
struct Counted(Cell<usize>);

impl Objective for Counted {
    fn name(&self) -> &'static str {
        "counted"
    }

    fn terms(&self) -> &[Term] {
        NextToken.terms()
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        NextToken.counts(batch)
    }

    fn sums(&self, forwards: &Forwards) -> reft_train::Result<Vec<Tensor>> {
        self.0.set(self.0.get() + 1);
        NextToken.sums(forwards)
    }
}

/// Seven rows in batches of two make four batches: two for each of two processes; of three processes, the first has two.
#[test]
fn examples_held_out_are_shared_out_and_each_process_knows_the_loss_of_all() -> TestResult {
    let _alone = alone();
    let validated = |accum: usize, share: Share, reduction: &dyn Reduce| {
        let decoder = decoder(Kind::Float)?;
        let adapter = adapter(&decoder, MapKind::Householder, 0.0, 7)?;
        let objective = Counted(Cell::new(0));
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
        let dataset = Dataset { train: examples(4), validation: examples(7) };
        let config =
            TrainConfig { epochs: None, max_steps: Some(1), ..config(2, accum, Shuffle::None) };
        let mut validations = Validations::default();
        let trainer = Trainer::new(&learner, &dataset, config)?;
        trainer.sharing(share, reduction).run(&mut validations, &AtomicBool::new(false))?;
        Ok((validations.0, objective.0.get()))
    };
    for (world, shares) in [(2, vec![2, 2]), (3, vec![2, 1, 1])] {
        // one process with the batches of all processes in a step
        let (whole, batches) = validated(world, Share::WHOLE, &Alone)?;
        assert_eq!((whole.len(), batches), (2, 2 * 4 + 2));
        let processes = in_turns(world, |share, reduction| validated(1, share, reduction))?;
        for ((found, batches), share) in processes.iter().zip(shares) {
            // of the batches to train on, 2 a world, the third process has none
            assert!((2 * share..=2 * share + 1).contains(batches), "{world}: {batches}");
            for (found, whole) in found.iter().zip(&whole) {
                assert!((found.0 - whole.0).abs() < 1e-6 * whole.0, "{found:?} {whole:?}"); // f32
                assert_eq!(found.1, whole.1);
            }
            assert_eq!(found.len(), whole.len());
        }
    }
    Ok(())
}

/// Fails with a text, on the process that has one.
struct Failing(Option<&'static str>);

impl Objective for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn terms(&self) -> &[Term] {
        NextToken.terms()
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        NextToken.counts(batch)
    }

    fn sums(&self, forwards: &Forwards) -> reft_train::Result<Vec<Tensor>> {
        match self.0 {
            Some(text) => Err(Error::Reduction { reason: text.into() }),
            None => NextToken.sums(forwards),
        }
    }
}

/// No process waits for one whose step fails, and each reports what it knows.
#[test]
fn the_failure_of_a_process_in_its_step_is_that_of_all() -> TestResult {
    let _alone = alone();
    for (text, own, others) in [
        ("a bad thing", "a bad thing", "another process of the run has failed"),
        (
            "CUDA out of memory",
            "CUDA out of memory",
            "memory ran out in step 1: on another process",
        ),
    ] {
        for failing in [0, 1] {
            let found = in_turns(2, |share, reduction| {
                let decoder = decoder(Kind::Float)?;
                let adapter = adapter(&decoder, MapKind::Householder, 0.0, 7)?;
                let objective = Failing((share.rank() == failing).then_some(text));
                let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
                let dataset = Dataset { train: examples(13), validation: Vec::new() };
                let trainer = Trainer::new(&learner, &dataset, config(3, 1, Shuffle::Plain))?;
                let mut trainer = trainer.sharing(share, reduction);
                let outcome = trainer.run(&mut Steps::default(), &AtomicBool::new(false));
                Ok(outcome.err().map(|error| error.to_string()).unwrap_or_default())
            })?;
            assert!(found[failing].contains(own), "{found:?}");
            assert!(found[1 - failing].contains(others), "{found:?}");
        }
    }
    Ok(())
}

/// Stops the run after a step, on its own process only.
struct StopAfter<'a>(usize, &'a AtomicBool);

impl Progress for StopAfter<'_> {
    fn step(&mut self, stats: &StepStats) {
        self.1.store(stats.step == self.0, Ordering::Relaxed);
    }
}

#[test]
fn when_one_process_is_stopped_all_stop_after_the_same_step() -> TestResult {
    let _alone = alone();
    let steps = in_turns(2, |share, reduction| {
        let decoder = decoder(Kind::Float)?;
        let adapter = adapter(&decoder, MapKind::Householder, 0.0, 7)?;
        let dataset = Dataset { train: examples(13), validation: Vec::new() };
        let learner = learner(&decoder, &adapter);
        let trainer = Trainer::new(&learner, &dataset, config(3, 1, Shuffle::Plain))?;
        let (stop, last) = (AtomicBool::new(false), if share.is_first() { 99 } else { 2 });
        let outcome = trainer.sharing(share, reduction).run(&mut StopAfter(last, &stop), &stop)?;
        match outcome {
            Outcome::Interrupted(summary) => Ok(summary.steps),
            Outcome::Finished(_) => Err("it was not stopped".into()),
        }
    })?;
    assert_eq!(steps, [2, 2]);
    Ok(())
}

/// Another process is lost after so many sums.
struct LostAfter(Cell<usize>);

impl Reduce for LostAfter {
    fn sum(&self, _: &mut [Tensor]) -> reft_train::Result<()> {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.ok_or_else(|| Error::Reduction { reason: "rank 1 is gone".into() })?);
        Ok(())
    }
}

/// One sum for the validation before the first step, four per step (stop flags, counts, loss, gradients), one at the epoch's end.
#[test]
fn a_process_that_is_lost_leaves_a_checkpoint_of_the_last_whole_step() -> TestResult {
    let _alone = alone();
    for (sums, step) in [(9, 2), (10, 2), (11, 2), (12, 2), (13, 3)] {
        let run = tempfile::tempdir()?;
        let in_directory = Setting { directory: Some(run.path()), ..Setting::default() };
        let lost = LostAfter(Cell::new(sums));
        let error = train(&config(3, 1, Shuffle::Plain), Share::new(0, 2)?, &lost, in_directory);
        let error = error.err().ok_or("it was not noticed")?.to_string();
        assert!(error.contains("rank 1 is gone"), "{error}");
        let checkpoint = run.path().join(format!("checkpoint/step-{step:08}"));
        assert!(checkpoint.is_dir(), "after {sums} sums");
    }
    Ok(())
}
