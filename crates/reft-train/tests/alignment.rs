//! Distributed alignment search on networks whose answers are known.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reft_core::{AlignmentMethod, AlignmentSet, MapKind};
use reft_models::{
    Adapter, Component, Decoder, FeedForward, Linear, Mode, Place, Row, Site, Weight,
};
use reft_train::das::{
    Accuracy, Alignment, AlignmentAdapter, HierarchicalEquality, NetworkWeights, SideBySide,
    SourceToken, Variable, VariableSwap, accuracy,
};
use reft_train::{
    Backward, Batch, Computation, Dataset, Example, FrozenStore, IGNORE_INDEX, Model, ReuseConfig,
    ScheduleKind, Shuffle, Silent, TrainConfig, Trainer,
};
use tch::{Device, Kind, Tensor};

type TestResult = Result<(), Box<dyn std::error::Error>>;

/// One test at a time draws numbers: libtorch has one generator for all.
fn alone() -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::set_num_threads(1);
    guard
}

fn train(
    model: &dyn Model,
    adapter: &mut dyn Adapter,
    train: &[Example],
    lr: f64,
    epochs: usize,
) -> TestResult {
    let dataset = Dataset { train: train.to_vec(), validation: Vec::new() };
    let config = TrainConfig {
        epochs: Some(epochs),
        batch_size: 128,
        lr,
        schedule: ScheduleKind::Linear,
        shuffle: Shuffle::Plain,
        ..TrainConfig::default()
    };
    Trainer::new(model, adapter, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;
    Ok(())
}

/// Counterfactuals of the task, as bases with expected answers and as the sources of both variables.
struct Counterfactuals {
    bases: Vec<Example>,
    sources: [Vec<Option<(usize, SourceToken)>>; 2],
}

impl Counterfactuals {
    fn draw(task: &mut HierarchicalEquality, n: usize, seed: u64) -> reft_train::Result<Self> {
        let [left, right] = [task.left, task.right];
        let lists: [&[Variable]; 3] = [&[left], &[right], &[left, right]];
        let drawn = task.counterfactuals(n, &lists, seed)?;
        let bases = drawn.iter().enumerate().map(|(i, c)| task.base(i, c)).collect();
        let mut sources =
            |variable| drawn.iter().map(|c| Some((0, task.source(c, variable)?))).collect();
        let sources = [sources(left), sources(right)];
        Ok(Self { bases, sources })
    }

    /// An adapter that swaps each variable in its own half of the coordinates of the first layer.
    fn adapter(
        &self,
        network: &FeedForward,
        alignment: Alignment,
        width: i64,
    ) -> reft_train::Result<AlignmentAdapter> {
        let place = Place::whole(Site { layer: 0, component: Component::BlockOutput });
        let halves = [0..width / 2, width / 2..width];
        let swaps = self.sources.iter().zip(halves).map(|(sources, coordinates)| {
            VariableSwap::collect(network, place.clone(), (0, coordinates), sources.clone(), 512)
        });
        Ok(AlignmentAdapter::new(alignment, swaps.collect::<reft_train::Result<_>>()?)?)
    }

    /// Interchange intervention accuracy.
    fn accuracy(
        &self,
        network: &FeedForward,
        adapter: &AlignmentAdapter,
    ) -> reft_train::Result<Accuracy> {
        accuracy(network, &[adapter], &self.bases, 512, &[], None)
    }
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
    let mut trained = learned.adapter(network, rotation(5)?, 16)?;
    train(network, &mut trained, &learned.bases, 1e-2, 15)?;
    let mut tested = held_out.adapter(network, rotation(6)?, 16)?;
    tested.load_state(&trained.state())?;
    Ok(held_out.accuracy(network, &tested)?)
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

    let mut weights = NetworkWeights::of(&network);
    train(&network, &mut weights, &examples, 5e-3, 20)?;
    weights.freeze();
    let skill = accuracy(&network, &[], &tests, 512, &[], None)?;
    let found = search(&network, &learned, &held_out)?;
    let random = held_out.accuracy(&network, &held_out.adapter(&network, rotation(6)?, 16)?)?;
    let neurons =
        held_out.accuracy(&network, &held_out.adapter(&network, Alignment::Neurons, 16)?)?;
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
fn hand_built(inputs: &Tensor) -> reft_models::Result<FeedForward> {
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
    FeedForward::from_layers(inputs, layers)
}

#[test]
fn the_neurons_of_a_network_built_by_hand_are_its_variables() -> TestResult {
    let _guard = alone();
    let mut task = HierarchicalEquality::new(2, 3)?;
    let tests = task.examples(600, 1)?;
    let counterfactuals = Counterfactuals::draw(&mut task, 900, 2)?;
    let network = hand_built(&task.inputs())?;
    assert_eq!(
        accuracy(&network, &[], &tests, 512, &[], None)?,
        Accuracy { hits: 600, total: 600 }
    );
    let adapter = counterfactuals.adapter(&network, Alignment::Neurons, 8)?;
    let found = counterfactuals.accuracy(&network, &adapter)?;
    assert_eq!(found, Accuracy { hits: 900, total: 900 });

    // the test has power: without the swap, and with the variables at each other's neurons, it fails
    let plain = accuracy(&network, &[], &counterfactuals.bases, 512, &[], None)?;
    assert!(plain.share() < 0.7, "{plain:?}");
    let [left, right] = &counterfactuals.sources;
    let exchanged = Counterfactuals {
        bases: counterfactuals.bases.clone(),
        sources: [right.clone(), left.clone()],
    };
    let adapter = exchanged.adapter(&network, Alignment::Neurons, 8)?;
    let wrong = exchanged.accuracy(&network, &adapter)?;
    assert!(wrong.share() < 0.7, "{wrong:?}");
    Ok(())
}

/// Bases, sources and answers on the tiny decoder of `tests/oracle`, none of them meaningful.
fn tiny() -> Result<(Decoder, Vec<Example>, AlignmentAdapter), Box<dyn std::error::Error>> {
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
        let row = Row { input_ids, prompt_length, counterfactual: Some(i), ..Row::default() };
        Example { id: i.to_string(), row, labels }
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
    let adapter = AlignmentAdapter::new(Alignment::Rotated(set), vec![swap])?;
    Ok((decoder, examples, adapter))
}

#[test]
fn a_decoder_s_frozen_work_is_done_once_and_changes_neither_loss_nor_gradient() -> TestResult {
    let _guard = alone();
    let (decoder, examples, adapter) = tiny()?;
    let batch = Batch::collate(&examples, 0)?;
    let raw = adapter.parameters().remove(0).tensor;
    let run =
        |frozen: Option<&mut FrozenStore>| -> Result<(f64, Tensor), Box<dyn std::error::Error>> {
            let loss =
                decoder.loss_sum(Computation::new(&[&adapter], &batch, frozen), Mode::Train)?;
            let gradient = Tensor::run_backward(&[&loss], &[&raw], false, false).remove(0);
            Ok((loss.double_value(&[]), gradient))
        };
    let (loss, gradient) = run(None)?;
    let mut store = FrozenStore::new(ReuseConfig::default());
    let mut whole_rows = FrozenStore::of_whole_rows(ReuseConfig::default());
    for i in 0..4 {
        let (kept_loss, kept) = run(Some(if i < 2 { &mut store } else { &mut whole_rows }))?;
        // f32 sums over other numbers of columns
        assert!((kept_loss - loss).abs() < 1e-5 * loss, "{kept_loss} is not {loss}");
        let size = gradient.abs().max().double_value(&[]);
        let difference = (&kept - &gradient).abs().max().double_value(&[]);
        assert!(size > 1e-3 && difference < 1e-4 * size, "{difference:e} of {size:e}");
    }
    assert_eq!((store.len(), whole_rows.len()), (12, 12));
    let logits =
        |frozen| decoder.target_logits(Computation::new(&[&adapter], &batch, frozen), None);
    let difference = logits(None)?.0 - logits(Some(&mut whole_rows))?.0;
    assert!(difference.abs().max().double_value(&[]) < 1e-5); // f32, logits of about 1
    let plain =
        decoder.loss_sum(Computation::new(&[], &batch, None), Mode::Eval)?.double_value(&[]);
    assert!((plain - loss).abs() > 1e-3, "nothing was swapped");
    Ok(())
}

/// Alignments side by side, each with rows that begin at its own stage: losses, gradients and answers are those of each by itself.
#[test]
fn alignments_side_by_side_are_each_what_they_are_alone() -> TestResult {
    let _guard = alone();
    let (decoder, examples, _) = tiny()?;
    let n = examples.len();
    let layers = decoder.config().num_hidden_layers;
    tch::manual_seed(5);
    // the last token, or the one before it, which the last layer's output does nothing with
    let last = |(i, example): (usize, &Example)| example.row.prompt_length - 1 - i % 2;
    let tokens: Vec<Option<usize>> = examples.iter().enumerate().map(|e| Some(last(e))).collect();
    let columns = reft_core::random_columns(layers as i64, 64, 3, Device::Cpu);
    let sources = Tensor::randn([layers as i64, n as i64, 64], (Kind::Float, Device::Cpu)) * 4.0;
    let adapter = |layers: &[usize]| -> Result<AlignmentAdapter, Box<dyn std::error::Error>> {
        let numbers: Vec<i64> = layers.iter().map(|&layer| layer as i64).collect();
        let start = columns.index_select(0, &Tensor::from_slice(&numbers));
        let set = AlignmentSet::starting_at(AlignmentMethod::Das, MapKind::default(), &start)?;
        let swap = |(alignment, &layer): (usize, &usize)| VariableSwap {
            place: Place::whole(Site { layer, component: Component::BlockOutput }),
            alignment,
            coordinates: 0..3,
            first: alignment * n,
            tokens: tokens.clone(),
            sources: sources.select(0, layer as i64),
        };
        let swaps = layers.iter().enumerate().map(swap).collect();
        Ok(AlignmentAdapter::new(Alignment::Rotated(set), swaps)?)
    };
    let batch = Batch::collate(&examples, 0)?;
    let gradient = |adapter: &AlignmentAdapter, loss: &Tensor| {
        let raw = adapter.parameters().remove(0).tensor;
        Tensor::run_backward(&[loss], &[raw], false, false).remove(0)
    };
    let all: Vec<usize> = (0..layers).collect();
    let together = adapter(&all)?;
    let model = SideBySide::new(&decoder, layers, n);
    let mut store = FrozenStore::of_whole_rows(ReuseConfig::default());
    let adapters: [&dyn Adapter; 1] = [&together];
    let computation = Computation::new(&adapters, &batch, Some(&mut store));
    let losses = model.target_losses(computation, Mode::Train)?;
    let gradients = gradient(&together, &losses.sum(Kind::Float));
    let named = |(c, example): (usize, &Example)| {
        let counterfactual = example.row.counterfactual.map(|i| c * n + i);
        Example { row: Row { counterfactual, ..example.row.clone() }, ..example.clone() }
    };
    let copies: Vec<Example> =
        all.iter().flat_map(|&c| examples.iter().map(move |example| named((c, example)))).collect();
    let copied = Batch::collate(&copies, 0)?;
    let computation = Computation::new(&adapters, &copied, Some(&mut store));
    let _loss = decoder.checkpointed_backward(computation, Backward { factor: 1.0, seed: 1 })?;
    let checkpointed = together.parameters().remove(0).tensor.grad();
    let difference = (checkpointed - &gradients).abs().max().double_value(&[]);
    assert!(difference < 1e-5 * gradients.abs().max().double_value(&[]), "{difference:e}"); // f32
    let losses = losses.view([layers as i64, -1]);
    let answers = [7, 30, 91, 118];
    let hits = model.accuracies(&together, &examples, 20, &answers, Some(&mut store))?;
    let mut distinct = std::collections::BTreeSet::new();
    for layer in all {
        let alone = adapter(&[layer])?;
        let own = decoder.target_losses(Computation::new(&[&alone], &batch, None), Mode::Train)?;
        let expected = gradient(&alone, &own.sum(Kind::Float));
        // f32 sums over other numbers of columns, losses of about 5
        assert!((&own - losses.select(0, layer as i64)).abs().max().double_value(&[]) < 5e-5);
        let mean = own.mean(Kind::Double).double_value(&[]);
        assert!((mean - model.last_losses()[layer]).abs() < 5e-5);
        distinct.insert(format!("{mean:.3}"));
        let size = expected.abs().max().double_value(&[]);
        let difference = expected.squeeze_dim(0) - gradients.select(0, layer as i64);
        let difference = difference.abs().max().double_value(&[]);
        assert!(size > 1e-3 && difference < 1e-4 * size, "{layer}: {difference:e} of {size:e}");
        assert_eq!(hits[layer], accuracy(&decoder, &[&alone], &examples, 5, &answers, None)?);
    }
    assert_eq!(distinct.len(), layers, "every layer has a loss of its own");
    Ok(())
}

#[test]
fn swaps_that_do_not_fit_are_refused() -> TestResult {
    let _guard = alone();
    let place = Place::whole(Site { layer: 0, component: Component::BlockOutput });
    let swap = |coordinates: std::ops::Range<i64>, tokens: usize, d: i64| VariableSwap {
        place: place.clone(),
        alignment: 0,
        coordinates,
        first: 0,
        tokens: vec![Some(0); tokens],
        sources: Tensor::zeros([4, d], (Kind::Float, Device::Cpu)),
    };
    let refused = |swaps: Vec<VariableSwap>| {
        AlignmentAdapter::new(rotation(1)?, swaps)
            .err()
            .map(|e| e.to_string())
            .ok_or_else(|| "accepted".into())
    };
    let refused = |swaps| -> Result<String, Box<dyn std::error::Error>> { refused(swaps) };
    assert!(refused(vec![swap(0..17, 4, 16)])?.contains("0..17"));
    assert!(refused(vec![swap(0..4, 3, 16)])?.contains("3 tokens and 4 sources"));
    assert!(refused(vec![swap(0..4, 4, 8)])?.contains("size 8"));
    let two = VariableSwap { alignment: 1, ..swap(0..4, 4, 16) };
    assert!(refused(vec![two])?.contains("no alignment 1"));
    Ok(())
}
