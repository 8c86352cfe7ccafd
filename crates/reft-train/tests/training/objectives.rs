//! Other objectives than next tokens: a head on the last token, and pairs with a reference forward.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use reft_core::{MapKind, Parameter};
use reft_methods::{MethodOptions, ReftAdapter, resolve};
use reft_models::{
    Adapter, AdapterStack, Decoder, Dose, Layout, Mode, Model, PaddingSide, Row, TokenAt,
};
use reft_train::{
    Alone, Batch, Content, Dataset, Encoding, Error, Example, Forwards, Learner, NextToken,
    Objective, Outcome, Progress, Record, Reduce, Sequence, Share, Shuffle, StepStats, Term,
    TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

use crate::share::{Trajectory, assert_same, in_turns};
use crate::tiny_llama::{TestResult, adapter, alone, decoder, examples, relative_difference};

const CLASSES: i64 = 3;

/// A linear head on the last token's hidden state, and cross-entropy over classes: the mean over sequences.
pub struct LastToken {
    head: Tensor, // [classes, d]
    told: RefCell<Vec<f64>>,
}

impl LastToken {
    pub fn new(d: i64) -> Self {
        let head = Tensor::arange(CLASSES * d, (Kind::Float, Device::Cpu)).sin() * 0.1;
        Self { head: head.view([CLASSES, d]).set_requires_grad(true), told: RefCell::default() }
    }
}

impl Objective for LastToken {
    fn name(&self) -> &'static str {
        "last-token"
    }

    fn reads_logits(&self) -> bool {
        false
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("head", &self.head)]
    }

    fn progress(&self, share: f64) {
        self.told.borrow_mut().push(share);
    }

    fn wanted(&self, sequence: &Sequence) -> Range<usize> {
        let n = sequence.row.input_ids.len();
        n - 1..n
    }

    fn terms(&self) -> &[Term] {
        &[Term { name: "class", weight: 1.0 }]
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        vec![batch.rows.len() as f64]
    }

    fn sums(&self, forwards: &Forwards) -> reft_train::Result<Vec<Tensor>> {
        let rows = forwards.batch.layout.rows().iter().enumerate();
        let last = rows.map(|(row, own)| TokenAt { row, token: own.input_ids.len() - 1 });
        let h = forwards.outputs[0].at(&last.collect::<Vec<_>>()).to_kind(Kind::Float); // [b, d]
        let classes: Vec<i64> =
            forwards.batch.values.iter().map(|value| value.unwrap_or(0.0) as i64).collect();
        let log_p = h.matmul(&self.head.tr()).log_softmax(-1, Kind::Float);
        let own = log_p.gather(1, &Tensor::from_slice(&classes).unsqueeze(1), false);
        Ok(vec![-own.sum(Kind::Float)])
    }
}

/// Preference of the first of two completions, relative to another strength of the adapters (Rafailov et al. 2023, arXiv:2305.18290): the
/// mean over pairs of `−log σ(β (Δ − Δ_reference))`, with `Δ` the difference of their log-probabilities. Added is the loss of the first
/// completion, the mean over its target tokens.
struct Pair {
    doses: [Dose; 2],
}

const BETA: f64 = 0.5;
const REFERENCE: Pair = Pair { doses: [Dose::WHOLE, Dose::Times(0.0)] };
const NEGATED: Pair = Pair { doses: [Dose::WHOLE, Dose::Times(-1.0)] };

impl Pair {
    fn loss(difference: &Tensor, of_reference: &Tensor) -> Tensor {
        -((difference - of_reference) * BETA).log_sigmoid()
    }
}

/// Number of labels that count.
fn targets(labels: &[i64]) -> i64 {
    labels.iter().skip(1).filter(|label| **label != reft_train::IGNORE_INDEX).count() as i64
}

impl Objective for Pair {
    fn name(&self) -> &'static str {
        "pair"
    }

    fn doses(&self) -> &[Dose] {
        &self.doses
    }

    fn terms(&self) -> &[Term] {
        &[Term { name: "preference", weight: 1.0 }, Term { name: "chosen", weight: 0.25 }]
    }

    fn counts(&self, batch: &Batch) -> Vec<f64> {
        let chosen = batch.rows.iter().map(|rows| targets(&batch.labels[rows.start]));
        vec![batch.rows.len() as f64, chosen.sum::<i64>() as f64]
    }

    fn sums(&self, forwards: &Forwards) -> reft_train::Result<Vec<Tensor>> {
        let batch = forwards.batch;
        let counts: Vec<i64> = batch.labels.iter().map(|labels| targets(labels)).collect();
        // the losses of all rows [b]
        let of_rows = |losses: Tensor| {
            let of_rows = losses.split_with_sizes(&counts[..], 0);
            let sums: Vec<Tensor> = of_rows.iter().map(|own| own.sum(Kind::Float)).collect();
            Tensor::stack(&sums, 0)
        };
        let of_forwards: Vec<Tensor> =
            forwards.outputs.iter().map(|outputs| of_rows(outputs.target_losses())).collect();
        let first = |i: usize| -> Vec<i64> {
            batch.rows.iter().map(|rows| (rows.start + i) as i64).collect()
        };
        let (chosen, rejected) = (Tensor::from_slice(&first(0)), Tensor::from_slice(&first(1)));
        let difference =
            |losses: &Tensor| losses.index_select(0, &rejected) - losses.index_select(0, &chosen);
        let preference = Self::loss(&difference(&of_forwards[0]), &difference(&of_forwards[1]));
        let chosen = of_forwards[0].index_select(0, &chosen);
        Ok(vec![preference.sum(Kind::Float), chosen.sum(Kind::Float)])
    }
}

/// Rows of unequal lengths; `id` is a class.
fn records(n: usize) -> Vec<Record> {
    let record = |(i, example): (usize, Example)| {
        let Sequence { row, labels } = example.sequences[0].clone();
        let Row { input_ids, prompt_length, subspace, .. } = row;
        let content = Content::Tokens { input_ids, prompt_length, labels: Some(labels) };
        Record { id: (i as i64 % CLASSES).to_string(), content, subspace }
    };
    examples(n).into_iter().enumerate().map(record).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    LastToken,
    Reference,
    Negated,
}

impl Which {
    fn objective(self, decoder: &Decoder) -> Box<dyn Objective> {
        match self {
            Self::LastToken => Box::new(LastToken::new(decoder.description().hidden_size)),
            Self::Reference => Box::new(REFERENCE),
            Self::Negated => Box::new(NEGATED),
        }
    }
}

const ALL: [Which; 3] = [Which::LastToken, Which::Reference, Which::Negated];

fn dataset(objective: &dyn Objective, n: usize) -> reft_train::Result<Dataset> {
    let encoding = Encoding { text: None, vocab_size: 128, max_length: 64 };
    let of_two = |two: &[Example]| Example {
        sequences: two.iter().flat_map(|one| one.sequences.clone()).collect(),
        ..two[0].clone()
    };
    let of_one = |record: &Record| {
        let sequences = vec![encoding.sequence(record)?];
        Ok(Example { id: record.id.clone(), sequences, value: record.id.parse().ok() })
    };
    let train = match objective.name() {
        "pair" => encoding.examples(&records(2 * n))?.chunks(2).map(of_two).collect(),
        _ => records(n).iter().map(of_one).collect::<reft_train::Result<Vec<_>>>()?,
    };
    assert_eq!(train.len(), n);
    Ok(Dataset { train, validation: Vec::new() })
}

/// A trained adapter, so that strengths differ.
fn trained(decoder: &Decoder) -> reft_models::Result<ReftAdapter> {
    let adapter = adapter(decoder, MapKind::Householder, 0.0, 7)?;
    tch::no_grad(|| {
        for parameter in adapter.parameters() {
            let waves = Tensor::arange(parameter.tensor.numel() as i64, (Kind::Float, Device::Cpu));
            let waves = (waves * 0.7).sin().view_as(&parameter.tensor) * 0.05;
            let _moved = parameter.tensor.shallow_clone().g_add_(&waves);
        }
    });
    Ok(adapter)
}

fn options() -> TrainConfig {
    TrainConfig {
        max_steps: Some(3),
        batch_size: 6,
        lr: 1e-3,
        max_grad_norm: 0.5,
        shuffle: Shuffle::Plain,
        reuse: false,
        ..TrainConfig::default()
    }
}

#[derive(Default)]
struct Steps(Vec<StepStats>);

impl Progress for Steps {
    fn step(&mut self, stats: &StepStats) {
        self.0.push(stats.clone());
    }
}

/// A run on twelve examples: the statistics of its steps, and all that is trained at its end.
fn train(
    which: Which,
    decoder: &Decoder,
    config: TrainConfig,
    (share, reduction): (Share, &dyn Reduce),
) -> Result<Trajectory, Box<dyn std::error::Error>> {
    let (adapter, objective) = (trained(decoder)?, which.objective(decoder));
    let dataset = dataset(&*objective, 12)?;
    let learner = Learner::new(decoder, &AdapterStack::one(&adapter), &*objective);
    let mut steps = Steps::default();
    let mut trainer = Trainer::new(&learner, &dataset, config)?.sharing(share, reduction);
    trainer.run(&mut steps, &AtomicBool::new(false))?;
    let tensors = learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
    Ok((steps.0, tensors))
}

const WHOLE: (Share, &dyn Reduce) = (Share::WHOLE, &Alone);

#[test]
fn micro_batches_checkpointing_and_caching_give_the_numbers_of_one_plain_batch() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    for which in ALL {
        let plain = train(which, &decoder, options(), WHOLE)?;
        assert_eq!(plain.0.len(), 3);
        let is_single = which == Which::LastToken;
        assert_eq!(plain.0[0].terms.len(), if is_single { 0 } else { 2 });
        for (batch_size, grad_accum, checkpoint_activations, reuse) in [
            (1, 6, false, false),
            (2, 3, true, false),
            (6, 1, true, false),
            (6, 1, false, true),
            (2, 3, true, true),
        ] {
            let config =
                TrainConfig { batch_size, grad_accum, checkpoint_activations, reuse, ..options() };
            assert_same(&train(which, &decoder, config, WHOLE)?, &plain);
        }
    }
    Ok(())
}

#[test]
fn processes_give_the_numbers_of_one() -> TestResult {
    let _alone = alone();
    for which in ALL {
        let run = |config: &TrainConfig, processes: (Share, &dyn Reduce)| {
            train(which, &decoder(Kind::Float)?, config.clone(), processes)
        };
        let plain = run(&options(), WHOLE)?;
        for (world, batch_size) in [(2, 3), (3, 2)] {
            let config = TrainConfig { batch_size, ..options() };
            for part in in_turns(world, |share, reduction| run(&config, (share, reduction)))? {
                assert_same(&part, &plain);
            }
        }
    }
    Ok(())
}

/// f16 keeps 11 bits, and the scaled loss is far from 1.
#[test]
fn the_loss_scaler_gives_the_numbers_of_single_precision() -> TestResult {
    let _alone = alone();
    for which in ALL {
        let single = train(which, &decoder(Kind::Float)?, options(), WHOLE)?;
        let half = train(which, &decoder(Kind::Half)?, options(), WHOLE)?;
        for (single, half) in single.0.iter().zip(&half.0) {
            let what = format!("{which:?}: {single:?} {half:?}");
            assert!((single.loss - half.loss).abs() < 0.02 * single.loss, "{what}");
            assert!((single.grad_norm - half.grad_norm).abs() < 0.05 * single.grad_norm, "{what}");
        }
    }
    Ok(())
}

#[test]
fn a_batch_size_counts_examples_and_a_pair_is_never_split() -> TestResult {
    let _alone = alone();
    let (decoder, config) = (decoder(Kind::Float)?, TrainConfig { batch_size: 3, ..options() });
    let (adapter, dataset) = (trained(&decoder)?, dataset(&REFERENCE, 7)?);
    let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &REFERENCE);
    let mut trainer = Trainer::new(&learner, &dataset, config)?;
    assert_eq!(trainer.steps_per_epoch(), 3);
    for (step, examples) in [3, 3, 1].into_iter().enumerate() {
        let batches = trainer.micro_batches(step)?;
        assert_eq!((batches.len(), batches[0].ids.len()), (1, examples));
        assert_eq!(batches[0].layout.batch_size(), 2 * examples);
        for (rows, id) in batches[0].rows.iter().zip(&batches[0].ids) {
            let of_pair = dataset.train.iter().filter(|example| example.id == *id);
            let labels: Vec<Vec<i64>> =
                rows.clone().map(|i| batches[0].labels[i].clone()).collect();
            let is_one = |example: &Example| {
                example.sequences.iter().map(|sequence| &sequence.labels).eq(&labels)
            };
            assert_eq!(of_pair.filter(|example| is_one(example)).count(), 1);
        }
    }
    Ok(())
}

/// Final hidden states `[t, d]` of the tokens of one sequence, by a forward of its own.
fn hidden_states(
    decoder: &Decoder,
    stack: &AdapterStack,
    row: &Row,
) -> reft_models::Result<Tensor> {
    let layout = stack.layout(Layout::new(vec![row.clone()], PaddingSide::Right)?);
    let mut hooks = stack.hooks(&layout, Mode::Train)?;
    let ids = layout.input_ids(Device::Cpu);
    let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut hooks)?.squeeze_dim(0);
    Ok(h.narrow(0, layout.virtual_tokens() as i64, row.input_ids.len() as i64))
}

/// Sum of `log p` of the labels of one sequence.
fn log_probability(
    decoder: &Decoder,
    stack: &AdapterStack,
    Sequence { row, labels }: &Sequence,
) -> reft_models::Result<Tensor> {
    let log_p = decoder.logits(&hidden_states(decoder, stack, row)?).log_softmax(-1, Kind::Float);
    let of_label = |(t, &label): (usize, &i64)| {
        (label != reft_train::IGNORE_INDEX).then(|| log_p.get(t as i64 - 1).get(label))
    };
    Ok(labels.iter().enumerate().skip(1).filter_map(of_label).sum())
}

/// Loss and gradients written out sequence by sequence, without batches, chunks and cuts.
#[test]
fn gradients_are_those_of_the_formula() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let mut adapters: Vec<Box<dyn Adapter>> = vec![Box::new(trained(&decoder)?)];
    for method in ["prompt", "prefix"] {
        // the reference has no virtual tokens and no prefixes
        tch::manual_seed(3);
        let method = resolve(method, &MethodOptions::default(), decoder.description())?;
        adapters.extend(method.build(&decoder, "tiny")?);
    }
    let cases = adapters.iter().flat_map(|adapter| {
        [
            (adapter, Which::LastToken, false),
            (adapter, Which::Reference, false),
            (adapter, Which::Reference, true),
        ]
    });
    for (adapter, which, reuse) in cases {
        let objective = which.objective(&decoder);
        let stack = AdapterStack::one(&**adapter);
        let what = format!("{}, {which:?}, reuse {reuse}", adapter.method());
        let dataset = dataset(&*objective, 5)?;
        let learner = Learner::new(&decoder, &stack, &*objective);
        let gradients = || -> Vec<Tensor> {
            let take = |parameter: Parameter| {
                let gradient = parameter.tensor.grad().copy();
                parameter.tensor.shallow_clone().zero_grad();
                gradient
            };
            learner.parameters().into_iter().map(take).collect()
        };
        let n = dataset.train.len() as f64;
        let loss: Tensor = match which {
            Which::LastToken => {
                let head = &objective.parameters()[0].tensor;
                let mut sum = Tensor::from(0f32);
                for example in &dataset.train {
                    let h = hidden_states(&decoder, &stack, example.row())?.get(-1);
                    let log_p = head.matmul(&h).log_softmax(-1, Kind::Float);
                    sum -= log_p.get(example.value.ok_or("no class")? as i64);
                }
                sum / n
            }
            _ => {
                let (mut preference, mut chosen, mut tokens) =
                    (Tensor::from(0f32), Tensor::from(0f32), 0);
                let plain = AdapterStack::EMPTY;
                for Example { sequences, .. } in &dataset.train {
                    let of = |stack| -> reft_models::Result<[Tensor; 2]> {
                        Ok([
                            log_probability(&decoder, stack, &sequences[0])?,
                            log_probability(&decoder, stack, &sequences[1])?,
                        ])
                    };
                    let [a, b] = of(&stack)?;
                    let [a_plain, b_plain] = tch::no_grad(|| of(&plain))?;
                    preference += Pair::loss(&(&a - b), &(a_plain - b_plain));
                    chosen -= a;
                    tokens += targets(&sequences[0].labels);
                }
                preference / n + chosen * 0.25 / tokens as f64
            }
        };
        loss.backward();
        let (loss, expected) = (loss.double_value(&[]), gradients());

        let config = TrainConfig {
            batch_size: 2,
            grad_accum: 3,
            max_grad_norm: 0.0,
            checkpoint_activations: reuse,
            reuse,
            ..options()
        };
        let mut trainer = Trainer::new(&learner, &dataset, config)?;
        let batches = trainer.micro_batches(0)?;
        let reft_train::Step::Taken(stats) = trainer.step(&batches)? else { panic!("overflow") };
        assert!((stats.loss - loss).abs() < 1e-5 * loss, "{what}: {} {loss}", stats.loss); // f32
        for (found, expected) in gradients().iter().zip(&expected) {
            let size = expected.abs().max().double_value(&[]);
            assert!(size > 1e-4, "{what}: the test has no power: {size}");
            let difference = relative_difference(found, expected);
            assert!(difference < 1e-4, "{what}: gradients differ by {difference:e}"); // f32, sums in another order
        }
    }
    Ok(())
}

#[test]
fn the_loss_of_examples_does_not_depend_on_their_batches_or_the_cache() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    for which in ALL {
        let (adapter, objective) = (trained(&decoder)?, which.objective(&decoder));
        let rows = dataset(&*objective, 7)?.train;
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &*objective);
        let all = learner.evaluate(&rows, 7, None)?.loss;
        let mut store = reft_train::FrozenStore::new(Default::default());
        for (batch_size, store) in [(1, None), (3, None), (3, Some(&mut store))] {
            let other = learner.evaluate(&rows, batch_size, store)?.loss;
            assert!((other - all).abs() < 1e-6 * all, "{which:?}: {all} {other}"); // f32
        }
        assert!(!store.is_empty());
    }
    Ok(())
}

/// The head is saved in checkpoints, and comes back with the adapter.
#[test]
fn a_run_with_a_head_goes_on_bit_for_bit() -> TestResult {
    struct StopAt<'a>(usize, &'a AtomicBool);
    impl Progress for StopAt<'_> {
        fn step(&mut self, stats: &StepStats) {
            self.1.store(stats.step == self.0, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let dir = tempfile::tempdir()?;
    let run = |name: &str, stop_at: usize, seed: i64| -> Result<_, Box<dyn std::error::Error>> {
        let adapter = adapter(&decoder, MapKind::Householder, 0.2, seed)?;
        let objective = LastToken::new(decoder.description().hidden_size);
        let _other = tch::no_grad(|| objective.head.shallow_clone().g_mul_scalar_(seed as f64));
        let train = dataset(&objective, 12)?.train;
        let dataset = Dataset::split(train, 3.0, 0)?;
        let learner = Learner::new(&decoder, &AdapterStack::one(&adapter), &objective);
        let config = TrainConfig { max_steps: Some(6), batch_size: 3, lr: 1e-2, ..options() };
        let mut trainer =
            Trainer::new(&learner, &dataset, config)?.resuming_in(&dir.path().join(name))?;
        let stop = AtomicBool::new(false);
        let outcome = trainer.run(&mut StopAt(stop_at, &stop), &stop)?;
        let tensors: Vec<Tensor> =
            learner.parameters().iter().map(|p| p.tensor.detach().copy()).collect();
        Ok((outcome, tensors, objective.told.take()))
    };
    let (whole, expected, told) = run("whole", 0, 1)?;
    assert_eq!(told, (0..6).map(|step| f64::from(step) / 6.0).collect::<Vec<_>>());
    let (stopped, _, _) = run("broken", 4, 1)?;
    assert!(matches!(stopped, Outcome::Interrupted(summary) if summary.steps == 4));
    let (resumed, found, told) = run("broken", 0, 2)?; // another seed: everything comes from the checkpoint
    assert_eq!((resumed, found, told.len()), (whole, expected, 2));
    Ok(())
}

#[test]
fn a_method_that_changes_the_models_weights_leaves_no_plain_model() -> TestResult {
    let decoder = decoder(Kind::Float)?;
    let full = resolve("full", &MethodOptions::default(), decoder.description())?;
    let adapters = full.build(&decoder, "tiny")?;
    let stack = AdapterStack::one(&*adapters[0]);
    let next_tokens = Dataset { train: examples(4), validation: Vec::new() };
    assert!(
        Trainer::new(&Learner::new(&decoder, &stack, &NextToken), &next_tokens, options()).is_ok()
    );
    let pairs = dataset(&REFERENCE, 4)?;
    let refused = Trainer::new(&Learner::new(&decoder, &stack, &REFERENCE), &pairs, options());
    assert!(
        matches!(refused, Err(Error::NoPlainModel { objective: "pair", method }) if method == "full")
    );
    Ok(())
}
