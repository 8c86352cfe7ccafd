//! Distributed alignment search on networks whose answers are known.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reft_causal::{
    Accuracy, Alignment, BaseRuns, FeedForward, HierarchicalEquality, InterchangeObjective,
    InterchangeRuns, SourceToken, Variable, VariableSwap,
};
use reft_core::{AlignmentMethod, AlignmentSet, MapKind};
use reft_methods::{MethodOptions, resolve};
use reft_models::{
    Adapter, AdapterStack, Component, Decoder, Linear, Mode, Model, Place, Row, Site, Weight,
};
use reft_train::{
    Batch, Dataset, Example, IGNORE_INDEX, Learner, NextToken, Objective, ScheduleKind, Shuffle,
    Silent, TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// Lets one test at a time draw random numbers: libtorch has one generator per process.
fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    guard
}

fn train(
    network: &FeedForward,
    adapter: &dyn Adapter,
    objective: &dyn Objective,
    train: &[Example],
    (lr, epochs): (f64, usize),
) -> TestResult {
    let dataset = Dataset { train: train.to_vec(), validation: Vec::new() };
    let config = TrainConfig {
        epochs: Some(epochs),
        batch_size: 128,
        lr,
        schedule: ScheduleKind::Linear,
        shuffle: Shuffle::Plain,
        reuse: false,
        ..TrainConfig::default()
    };
    let stack = AdapterStack::one(adapter);
    let learner = Learner::new(network, &stack, objective);
    Trainer::new(&learner, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;
    Ok(())
}

/// Counterfactuals of the task, as bases with expected answers and as the sources of both variables.
struct Counterfactuals {
    bases: Vec<Example>,
    sources: [Vec<Option<(usize, SourceToken)>>; 2],
}

impl Counterfactuals {
    fn draw(task: &mut HierarchicalEquality, n: usize, seed: u64) -> reft_causal::Result<Self> {
        let [left, right] = [task.left, task.right];
        let lists: [&[Variable]; 3] = [&[left], &[right], &[left, right]];
        let drawn = task.counterfactuals(n, &lists, seed)?;
        let bases = drawn.iter().enumerate().map(|(i, c)| task.base(i, c)).collect();
        let mut sources =
            |variable| drawn.iter().map(|c| Some((0, task.source(c, variable)?))).collect();
        let sources = [sources(left), sources(right)];
        Ok(Self { bases, sources })
    }

    /// Runs that swap each variable in its own half of the coordinates of the first layer.
    fn runs<'a>(
        &self,
        base: &'a BaseRuns<'a>,
        alignment: &'a Alignment,
        width: i64,
    ) -> reft_causal::Result<InterchangeRuns<'a>> {
        let place = Place::whole(Site { layer: 0, component: Component::BlockOutput });
        let halves = [0..width / 2, width / 2..width];
        let swaps = self.sources.iter().zip(halves).map(|(sources, coordinates)| {
            let sources = sources.clone();
            VariableSwap::collect(base.model(), place.clone(), (0, coordinates), sources, 512)
        });
        let swaps = swaps.collect::<reft_causal::Result<_>>()?;
        InterchangeRuns::new(base, alignment, &self.bases, vec![swaps])
    }

    /// Interchange intervention accuracy.
    fn accuracy(
        &self,
        network: &FeedForward,
        alignment: &Alignment,
        width: i64,
    ) -> reft_causal::Result<Accuracy> {
        let base = BaseRuns::uncached(network);
        Ok(self.runs(&base, alignment, width)?.accuracies(&self.bases, 512, &[])?[0])
    }
}

fn skill(network: &FeedForward, examples: &[Example]) -> reft_causal::Result<Accuracy> {
    let base = BaseRuns::uncached(network);
    let fixed = Alignment::Fixed(Vec::new());
    let plain = InterchangeRuns::new(&base, &fixed, examples, vec![Vec::new()])?;
    Ok(plain.accuracies(examples, 512, &[])?[0])
}

fn rotation(seed: i64) -> reft_core::Result<Alignment> {
    tch::manual_seed(seed);
    let set =
        AlignmentSet::new(AlignmentMethod::Das, MapKind::default(), (1, 16, 16), Device::Cpu)?;
    Ok(Alignment::Rotated(set))
}

/// Trains a rotation to the counterfactuals of `learned` and returns the share of hits on `held_out`, which has other inputs.
fn search(
    network: &FeedForward,
    learned: &Counterfactuals,
    held_out: &Counterfactuals,
) -> Result<Accuracy, Box<dyn std::error::Error>> {
    let (base, trained) = (BaseRuns::uncached(network), rotation(5)?);
    let objective = InterchangeObjective::new(learned.runs(&base, &trained, 16)?);
    train(network, &trained, &objective, &learned.bases, (1e-2, 15))?;
    let tested = rotation(6)?;
    tested.load_state(&trained.state())?;
    Ok(held_out.accuracy(network, &tested, 16)?)
}

#[test]
fn the_search_finds_both_equalities_in_a_trained_network_and_the_controls_do_not() -> TestResult {
    let _guard = alone();
    let mut task = HierarchicalEquality::new(4, 1)?;
    let examples = task.examples(80_000, 1)?;
    let tests = task.examples(2000, 2)?;
    let learned = Counterfactuals::draw(&mut task, 9000, 3)?;
    let held_out = Counterfactuals::draw(&mut task, 1500, 4)?;
    tch::manual_seed(7);
    let network = FeedForward::random(&task.inputs(), 3, 16, HierarchicalEquality::CLASSES);
    let untrained = FeedForward::random(&task.inputs(), 3, 16, HierarchicalEquality::CLASSES);

    let full = resolve("full", &MethodOptions::default(), network.description())?;
    let weights = full.build(&network, "")?.remove(0);
    train(&network, &*weights, &NextToken, &examples, (5e-3, 20))?;
    for weight in weights.parameters() {
        let _frozen = weight.tensor.set_requires_grad(false);
    }
    let skill = skill(&network, &tests)?;
    let found = search(&network, &learned, &held_out)?;
    let random = held_out.accuracy(&network, &rotation(6)?, 16)?;
    let neurons = held_out.accuracy(&network, &Alignment::neurons(16, Device::Cpu)?, 16)?;
    let in_untrained = search(&untrained, &learned, &held_out)?;
    // measured, of 1500: search 1500, random rotation 793, neurons 844, untrained network 750
    assert!(skill.share() >= 0.99, "the network has not learned the task: {skill:?}");
    assert!(found.share() >= 0.98, "{found:?}");
    assert!(neurons.share() < 0.75, "{neurons:?}");
    assert!(random.share() < 0.75, "{random:?}");
    assert!(in_untrained.share() < 0.75, "{in_untrained:?}");
    Ok(())
}

fn linear(rows: &[&[f32]], bias: &[f32]) -> Linear {
    let rows: Vec<Tensor> = rows.iter().map(|row| Tensor::from_slice(row)).collect();
    Linear { weight: Weight::Dense(Tensor::stack(&rows, 0)), bias: Some(Tensor::from_slice(bias)) }
}

/// A network built by hand on objects of two numbers: neurons 0..4 are `relu(±(w − x))`, 4..8 `relu(±(y − z))`; their sums `A` and `B` are
/// the distances within the pairs. The second layer is `relu(A − K B)` and `relu(B − K A)` for a `K` above all ratios of distances that are
/// not 0: their sum is above 0 exactly if one pair is equal and the other is not.
fn hand_built(inputs: &Tensor) -> reft_causal::Result<FeedForward> {
    const K: f32 = 1e6;
    let differences: Vec<Vec<f32>> = (0..8)
        .map(|i| {
            let (pair, number, sign) = (i / 4, i % 2, if i % 4 < 2 { 1.0 } else { -1.0 });
            let mut row = vec![0.0; 8];
            row[4 * pair + number] = sign;
            row[4 * pair + 2 + number] = -sign;
            row
        })
        .collect();
    let rows: Vec<&[f32]> = differences.iter().map(Vec::as_slice).collect();
    let layers = vec![
        linear(&rows, &[0.0; 8]),
        linear(
            &[&[1.0, 1.0, 1.0, 1.0, -K, -K, -K, -K], &[-K, -K, -K, -K, 1.0, 1.0, 1.0, 1.0]],
            &[0.0, 0.0],
        ),
        linear(&[&[1.0, 1.0], &[-1.0, -1.0]], &[0.0, 1e-9]), // class 0: unlike, class 1: alike
    ];
    Ok(FeedForward::from_layers(inputs, layers)?)
}

#[test]
fn the_neurons_of_a_network_built_by_hand_are_its_variables() -> TestResult {
    let _guard = alone();
    let mut task = HierarchicalEquality::new(2, 3)?;
    let tests = task.examples(600, 1)?;
    let counterfactuals = Counterfactuals::draw(&mut task, 900, 2)?;
    let network = hand_built(&task.inputs())?;
    assert_eq!(skill(&network, &tests)?, Accuracy { hits: 600, total: 600 });
    let neurons = Alignment::neurons(8, Device::Cpu)?;
    let found = counterfactuals.accuracy(&network, &neurons, 8)?;
    assert_eq!(found, Accuracy { hits: 900, total: 900 });

    // the test has power: without the swap, and with the variables at each other's neurons, it fails
    let plain = skill(&network, &counterfactuals.bases)?;
    assert!(plain.share() < 0.7, "{plain:?}");
    let [left, right] = &counterfactuals.sources;
    let exchanged = Counterfactuals {
        bases: counterfactuals.bases.clone(),
        sources: [right.clone(), left.clone()],
    };
    let wrong = exchanged.accuracy(&network, &neurons, 8)?;
    assert!(wrong.share() < 0.7, "{wrong:?}");
    Ok(())
}

/// Bases with answers, an alignment and its swap on the tiny decoder of `tests/oracle`, none of them meaningful.
type Tiny = (Decoder, Vec<Example>, Alignment, VariableSwap);

fn tiny() -> Result<Tiny, Box<dyn std::error::Error>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/tiny_llama");
    let decoder = Decoder::open(&dir, Kind::Float, Device::Cpu)?;
    let tokens = |i: usize, n: usize| -> Vec<i64> {
        (0..n).map(|t| (3 + (i * 37 + t * 11) % 120) as i64).collect()
    };
    let example = |i: usize| {
        let prompt_length = 5 + i % 4;
        let input_ids = tokens(i, prompt_length + 1);
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.push(input_ids[prompt_length]);
        let row = Row { input_ids, prompt_length, ..Row::default() };
        Example::of(i.to_string(), row, labels)
    };
    let examples: Vec<Example> = (0..12).map(example).collect();
    let sources = |i: usize| {
        let source = SourceToken { row: Row::prompt(tokens(i + 50, 4 + i % 3)), token: 2 + i % 2 };
        (i % 4 != 3).then_some((2 + i % 3, source)) // one in four is not swapped
    };
    let place = Place::whole(Site { layer: 1, component: Component::BlockOutput });
    let sources = (0..12).map(sources).collect();
    let swap = VariableSwap::collect(&decoder, place, (0, 0..6), sources, 5)?;
    tch::manual_seed(2);
    let set = AlignmentSet::new(AlignmentMethod::Das, MapKind::default(), (1, 64, 6), Device::Cpu)?;
    Ok((decoder, examples, Alignment::Rotated(set), swap))
}

fn batch(model: &dyn Model, examples: &[Example]) -> reft_train::Result<Batch> {
    Learner::new(model, &AdapterStack::EMPTY, &NextToken).batch(examples)
}

/// Losses of all targets `[m]`, and the gradient of their sum with respect to the rotation.
fn losses_and_gradient(
    runs: &InterchangeRuns,
    batch: &Batch,
) -> reft_train::Result<(Tensor, Tensor)> {
    let losses = runs.target_losses(batch, Mode::Train)?;
    let raw = runs.alignment().parameters().remove(0).tensor;
    let gradient = Tensor::run_backward(&[losses.sum(Kind::Float)], &[raw], false, false).remove(0);
    Ok((losses.detach(), gradient))
}

#[test]
fn a_decoder_s_base_runs_are_done_once_and_change_neither_loss_nor_gradient() -> TestResult {
    let _guard = alone();
    let (decoder, examples, alignment, swap) = tiny()?;
    let batch = batch(&decoder, &examples)?;
    let (computed, kept) = (BaseRuns::uncached(&decoder), BaseRuns::new(&decoder));
    let swap = || VariableSwap {
        place: swap.place.clone(),
        coordinates: swap.coordinates.clone(),
        tokens: swap.tokens.clone(),
        sources: swap.sources.shallow_clone(),
        ..swap
    };
    let runs = |base| InterchangeRuns::new(base, &alignment, &examples, vec![vec![swap()]]);
    let (losses, gradient) = losses_and_gradient(&runs(&computed)?, &batch)?;
    let loss = losses.sum(Kind::Float).double_value(&[]);
    let runs = runs(&kept)?;
    for _ in 0..2 {
        let (kept_losses, kept) = losses_and_gradient(&runs, &batch)?;
        let kept_loss = kept_losses.sum(Kind::Float).double_value(&[]);
        // f32 sums over other numbers of columns
        assert!((kept_loss - loss).abs() < 1e-5 * loss, "{kept_loss} is not {loss}");
        let size = gradient.abs().max().double_value(&[]);
        let difference = (&kept - &gradient).abs().max().double_value(&[]);
        assert!(size > 1e-3 && difference < 1e-4 * size, "{difference:e} of {size:e}");
        let difference = (&kept_losses - &losses).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference:e}"); // f32, logits of about 1
    }
    assert_eq!((computed.kept_rows(), kept.kept_rows()), (0, 12));
    let learner = Learner::new(&decoder, &AdapterStack::EMPTY, &NextToken);
    let plain = learner.sums(&batch, Mode::Eval, None)?.remove(0).double_value(&[]);
    assert!((plain - loss).abs() > 1e-3, "nothing was swapped");
    Ok(())
}

/// Trials that are run together, each with rows that enter at its own stage, have the losses, gradients and answers of each by itself.
#[test]
fn trials_run_together_are_each_what_they_are_alone() -> TestResult {
    let _guard = alone();
    let (decoder, examples, _, _) = tiny()?;
    let n = examples.len();
    let layers = decoder.description().num_hidden_layers;
    tch::manual_seed(5);
    // the last token, or the token before it, where a swap of the last layer's output has no effect
    let last = |(i, example): (usize, &Example)| example.row().prompt_length - 1 - i % 2;
    let tokens: Vec<Option<usize>> = examples.iter().enumerate().map(|e| Some(last(e))).collect();
    let columns = reft_core::random_columns(layers as i64, 64, 3, Device::Cpu);
    let sources = Tensor::randn([layers as i64, n as i64, 64], (Kind::Float, Device::Cpu)) * 4.0;
    let alignment = |layers: &[usize]| -> reft_core::Result<Alignment> {
        let numbers: Vec<i64> = layers.iter().map(|&layer| layer as i64).collect();
        let start = columns.index_select(0, &Tensor::from_slice(&numbers));
        let set = AlignmentSet::starting_at(AlignmentMethod::Das, MapKind::default(), &start)?;
        Ok(Alignment::Independent(set))
    };
    let trials = |layers: &[usize]| -> Vec<Vec<VariableSwap>> {
        let swap = |(alignment, &layer): (usize, &usize)| VariableSwap {
            place: Place::whole(Site { layer, component: Component::BlockOutput }),
            alignment,
            coordinates: 0..3,
            tokens: tokens.clone(),
            sources: sources.select(0, layer as i64),
        };
        layers.iter().enumerate().map(|layer| vec![swap(layer)]).collect()
    };
    let batch = batch(&decoder, &examples)?;
    let all: Vec<usize> = (0..layers).collect();
    let (kept, together) = (BaseRuns::new(&decoder), alignment(&all)?);
    assert!(together.parameters().iter().all(|parameter| parameter.clip_groups == layers as i64));
    let runs = InterchangeRuns::new(&kept, &together, &examples, trials(&all))?;
    let (losses, gradients) = losses_and_gradient(&runs, &batch)?;
    let losses = losses.view([layers as i64, -1]);
    let answers = [7, 30, 91, 118];
    let hits = runs.accuracies(&examples, 20, &answers)?;

    let objective = InterchangeObjective::new(runs);
    let stack = AdapterStack::one(&together);
    let learner = Learner::new(&decoder, &stack, &objective);
    let sum = learner.sums(&batch, Mode::Train, None)?.remove(0);
    assert_eq!(sum.double_value(&[]), losses.sum(Kind::Float).double_value(&[]));
    assert_eq!(objective.counts(&batch), [n as f64], "a mean is over the targets of one trial");
    let computed = BaseRuns::uncached(&decoder);
    let mut distinct = std::collections::BTreeSet::new();
    for layer in all {
        let own = alignment(&[layer])?;
        let alone = InterchangeRuns::new(&computed, &own, &examples, trials(&[layer]))?;
        let (own, expected) = losses_and_gradient(&alone, &batch)?;
        // f32 sums over other numbers of columns, losses of about 5
        assert!((&own - losses.select(0, layer as i64)).abs().max().double_value(&[]) < 5e-5);
        let mean = own.mean(Kind::Double).double_value(&[]);
        assert!((mean - objective.last_losses()[layer]).abs() < 5e-5);
        distinct.insert(format!("{mean:.3}"));
        let size = expected.abs().max().double_value(&[]);
        let difference = expected.squeeze_dim(0) - gradients.select(0, layer as i64);
        let difference = difference.abs().max().double_value(&[]);
        assert!(size > 1e-3 && difference < 1e-4 * size, "{layer}: {difference:e} of {size:e}");
        assert_eq!(hits[layer], alone.accuracies(&examples, 5, &answers)?[0]);
    }
    assert_eq!(distinct.len(), layers, "every layer has a loss of its own");
    Ok(())
}

#[test]
fn swaps_that_do_not_fit_are_refused() -> TestResult {
    let _guard = alone();
    let place = Place::whole(Site { layer: 0, component: Component::BlockOutput });
    let network = FeedForward::random(
        &Tensor::zeros([4, 16], (Kind::Float, Device::Cpu)),
        1,
        16,
        HierarchicalEquality::CLASSES,
    );
    let base = BaseRuns::uncached(&network);
    let row = |i: i64| Row { input_ids: vec![i, 0], prompt_length: 1, ..Row::default() };
    let example = |i: i64| Example::of(i.to_string(), row(i), vec![IGNORE_INDEX, 0]);
    let examples: Vec<Example> = (0..4).map(example).collect();
    let swap = |coordinates: std::ops::Range<i64>, tokens: usize, d: i64| VariableSwap {
        place: place.clone(),
        alignment: 0,
        coordinates,
        tokens: vec![Some(0); tokens],
        sources: Tensor::zeros([4, d], (Kind::Float, Device::Cpu)),
    };
    let refused = |swap: VariableSwap| -> Result<String, Box<dyn std::error::Error>> {
        let alignment = rotation(1)?;
        let runs = InterchangeRuns::new(&base, &alignment, &examples, vec![vec![swap]]);
        Ok(runs.err().ok_or("accepted")?.to_string())
    };
    assert!(refused(swap(0..17, 4, 16))?.contains("0..17"));
    assert!(refused(swap(0..4, 3, 16))?.contains("3 tokens and 4 sources"));
    assert!(refused(swap(0..4, 4, 8))?.contains("size 8"));
    let two = VariableSwap { alignment: 1, ..swap(0..4, 4, 16) };
    assert!(refused(two)?.contains("no alignment 1"));

    let alignment = rotation(1)?;
    let trials = || vec![vec![swap(0..4, 4, 16)]];
    let twice = [example(0), example(1), example(0), example(3)];
    let refused = InterchangeRuns::new(&base, &alignment, &twice, trials());
    let refused = refused.err().ok_or("accepted")?.to_string();
    assert!(refused.contains("two bases have the id \"0\""), "{refused}");
    let runs = InterchangeRuns::new(&base, &alignment, &examples, trials())?;
    let unknown = Example { id: "9".to_owned(), ..example(0) };
    let refused = runs.accuracies(&[unknown], 4, &[]).err().ok_or("accepted")?;
    assert!(refused.to_string().contains("example 9 is no counterfactual"), "{refused}");
    Ok(())
}
