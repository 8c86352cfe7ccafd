//! The best adapter by another metric than the loss.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reft_core::MapKind;
use reft_methods::ReftAdapter;
use reft_models::AdapterStack;
use reft_train::{
    Alone, Batch, Dataset, Error, Forwards, Learner, Metric, NextToken, Objective, Outcome,
    Progress, Reduce, ScheduleKind, Share, StepStats, Summary, Term, TrainConfig, Trainer,
    ValidationStats,
};
use tch::{Kind, Tensor};

use crate::share::in_turns;
use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples};

const N: usize = 7;

/// Predicts next tokens. Its prediction and label for an example come from a function of the id and of the number of calls before.
struct Telling<F> {
    told: F,
    before: Cell<usize>,
}

impl<F: Fn(&str, usize) -> [f64; 2]> Objective for Telling<F> {
    fn name(&self) -> &'static str {
        "telling"
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

    fn metrics(&self) -> &[Metric] {
        &[Metric::Accuracy, Metric::Spearman]
    }

    fn told(&self, forwards: &Forwards) -> reft_train::Result<Vec<[f64; 2]>> {
        let of_one = |id: &String| (self.told)(id, self.before.replace(self.before.get() + 1));
        Ok(forwards.batch.ids.iter().map(of_one).collect())
    }

    fn classes(&self) -> usize {
        2
    }
}

/// Number of examples predicted correctly: at the start, and after 4, 8, 12, 16 and 20 steps.
const RIGHT: [usize; 6] = [7, 2, 5, 3, 5, 6];

fn config(best: Metric) -> TrainConfig {
    TrainConfig {
        best: Some(best),
        max_steps: Some(20),
        batch_size: 2,
        lr: 1e-2,
        schedule: ScheduleKind::Constant,
        eval_every: 4,
        ..TrainConfig::default()
    }
}

/// Remembers validations, and stops after a step.
struct Listening<'a>(&'a mut Vec<ValidationStats>, Option<usize>, &'a AtomicBool);

impl Progress for Listening<'_> {
    fn step(&mut self, stats: &StepStats) {
        self.2.store(Some(stats.step) == self.1, Ordering::Relaxed);
    }

    fn validated(&mut self, stats: &ValidationStats) {
        self.0.push(stats.clone());
    }
}

/// A run in a directory where `validations` were made before, and the run's own validations.
fn run(
    config: TrainConfig,
    output: &Path,
    validations: usize,
    stop_after: Option<usize>,
) -> Result<(Summary, Vec<ValidationStats>), Error> {
    let decoder = decoder(Kind::Float)?;
    let dataset = Dataset { train: examples(10), validation: examples(N) };
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let told = |_: &str, i: usize| [f64::from(i % N < RIGHT[i / N]), 1.0];
    let objective = Telling { told, before: Cell::new(validations * N) };
    let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
    let trainer = Trainer::new(&learner, &dataset, config)?;
    let mut trainer = match validations {
        0 => trainer.starting_in(output)?,
        _ => trainer.resuming_in(output)?,
    };
    let (stop, mut heard) = (AtomicBool::new(false), Vec::new());
    match trainer.run(&mut Listening(&mut heard, stop_after, &stop), &stop)? {
        Outcome::Finished(summary) | Outcome::Interrupted(summary) => Ok((summary, heard)),
    }
}

#[test]
fn the_adapter_with_the_best_metric_is_kept_and_known_when_a_run_goes_on() -> TestResult {
    let _alone = alone();
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let (summary, heard) = run(config(Metric::Accuracy), &path("whole"), 0, None)?;
    let best = summary.best.ok_or("no best")?;
    assert_eq!((best.step, best.chosen_by), (20, Some((Metric::Accuracy, 6.0 / 7.0))));
    let marked = heard.iter().filter(|own| own.is_best).map(|own| own.step);
    assert_eq!(marked.collect::<Vec<_>>(), [4, 8, 20]); // neither the start, nor validations that only equal the best
    let found = heard.iter().map(|own| (own.measured["accuracy"] * N as f64).round() as usize);
    assert_eq!(found.collect::<Vec<_>>(), RIGHT);

    // two validations after that of step 8 are no better, though their losses are lower
    let patient = TrainConfig { patience: Some(2), ..config(Metric::Accuracy) };
    let (summary, _) = run(patient, &path("patient"), 0, None)?;
    assert_eq!((summary.steps, summary.best.map(|best| best.step)), (16, Some(8)));
    assert!(heard[3].validation_loss < heard[2].validation_loss, "no power: {heard:?}");
    let eight = TrainConfig { max_steps: Some(8), ..config(Metric::Loss) };
    let (summary, _) = run(eight, &path("eight"), 0, None)?;
    let best = summary.best.ok_or("no best")?;
    assert_eq!((best.step, best.chosen_by), (8, None));
    let kept = |name: &str| std::fs::read(path(name).join(ReftAdapter::FILE_NAME));
    assert_eq!(kept("patient")?, kept("eight")?);
    assert_ne!(kept("patient")?, kept("whole")?);

    // stopped after the validation of step 12; the best one, of step 8, is remembered
    let patient = || TrainConfig { patience: Some(2), ..config(Metric::Accuracy) };
    let (stopped, _) = run(patient(), &path("stopped"), 0, Some(13))?;
    assert_eq!((stopped.steps, stopped.best.map(|best| best.step)), (13, Some(8)));
    let (resumed, _) = run(patient(), &path("stopped"), 4, None)?;
    assert_eq!((resumed.steps, resumed.best), (16, stopped.best));
    assert_eq!(kept("stopped")?, kept("eight")?);
    Ok(())
}

/// Seven examples in batches of two: the predictions of all processes make up one metric.
#[test]
fn a_metric_of_several_processes_is_that_of_one() -> TestResult {
    let _alone = alone();
    let told = |id: &str, _: usize| {
        let i: f64 =
            id.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0.0);
        [(i * 3.0) % 7.0 + i, i]
    };
    let pairs: Vec<[f64; 2]> = examples(N).iter().map(|example| told(&example.id, 0)).collect();
    let expected = Metric::Spearman.of_told(&pairs, 0).ok_or("no metric")?;
    assert!((0.1..0.9).contains(&expected.abs()), "no power: {pairs:?} {expected}");
    let validated = |share: Share, reduction: &dyn Reduce| {
        let decoder = decoder(Kind::Float)?;
        let adapter = adapter(&decoder, MapKind::Householder, 0.0, 7)?;
        let objective = Telling { told, before: Cell::new(0) };
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
        let dataset = Dataset { train: examples(6), validation: examples(N) };
        let config = TrainConfig { max_steps: Some(1), ..config(Metric::Spearman) };
        let (stop, mut heard) = (AtomicBool::new(false), Vec::new());
        let trainer = Trainer::new(&learner, &dataset, config)?;
        trainer.sharing(share, reduction).run(&mut Listening(&mut heard, None, &stop), &stop)?;
        Ok(heard.iter().map(|own| own.measured["spearman"]).collect::<Vec<f64>>())
    };
    assert_eq!(validated(Share::WHOLE, &Alone)?, [expected; 2]);
    for world in [2, 3] {
        for found in in_turns(world, |share, reduction| validated(share, reduction))? {
            assert_eq!(found, [expected; 2], "{world} processes");
        }
    }
    Ok(())
}

#[test]
fn a_metric_that_there_is_not_is_refused() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, MapKind::Householder, 0.0, 1)?;
    let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &NextToken);
    for (best, validation, words) in [
        (Metric::F1, N, "f1 beside objective next-token"),
        (Metric::Loss, 0, "loss and no examples are held out"),
    ] {
        let dataset = Dataset { train: examples(4), validation: examples(validation) };
        let refused = Trainer::new(&learner, &dataset, config(best)).map(|_| ());
        let refused = refused.map_err(|error| error.to_string());
        assert!(refused.as_ref().is_err_and(|text| text.contains(words)), "{refused:?}");
    }
    Ok(())
}
