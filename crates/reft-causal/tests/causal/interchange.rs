//! Interchange interventions on a decoder against pyvene 0.1.8 (`tests/oracle/dii.safetensors`), and the guarantees of the hooks.

use reft_causal::{FeedForward, InterchangeHooks, Swap};
use reft_core::{
    Householder, Interchange, OrthonormalMap, SubspaceInterchange, VanillaInterchange,
    boundary_gate, random_columns, sigmoid_gate,
};
use reft_models::{
    AdapterStack, Collect, Component, Decoder, Error, HookPoint, Hooks, Layout, Linear, Model,
    NoHooks, PaddingSide, Place, Row, Site, Span, TokenAt, collect,
};
use reft_test_support::{Outcome, Tensors, assert_close, oracle, tensors};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn block_output(layer: usize) -> Place {
    Place::whole(Site { layer, component: Component::BlockOutput })
}

fn rows(ids: &Tensor) -> Result<Vec<Row>, tch::TchError> {
    (0..ids.size()[0]).map(|i| Ok(Row::prompt(ids.select(0, i).try_into()?))).collect()
}

/// A token of each of the first `rows` rows.
fn every_row(rows: usize, token: usize) -> Vec<TokenAt> {
    (0..rows).map(|row| TokenAt { row, token }).collect()
}

fn tiny_llama() -> Result<Decoder, Error> {
    tch::set_num_threads(1); // tests run in parallel already
    Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)
}

/// The reference's experiment: layer 1 block output, token 6 of the base takes from token 4 of the source.
struct Experiment {
    decoder: Decoder,
    base: Layout,
    source: Tensor, // [2, 64]
    recorded: Tensors,
}

impl Experiment {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let recorded = tensors("dii.safetensors")?;
        let decoder = tiny_llama()?;
        let layout = |name| {
            Ok::<_, Box<dyn std::error::Error>>(Layout::new(
                rows(&recorded[name])?,
                PaddingSide::Right,
            )?)
        };
        let (base, source) = (layout("base_ids")?, layout("source_ids")?);
        let wanted = vec![(block_output(1), every_row(2, 4))];
        let source = collect(&decoder, &AdapterStack::EMPTY, &source, wanted)?.remove(0);
        Ok(Self { decoder, base, source, recorded })
    }

    /// Logits `[2, 10, 128]` of the base run with the swap, and the loss.
    fn run(&self, interchange: &dyn Interchange) -> reft_models::Result<(Tensor, Tensor)> {
        let swap = Swap {
            place: block_output(1),
            tokens: every_row(2, 6),
            source: self.source.shallow_clone(),
            interchange: Box::new(interchange),
        };
        let mut hooks = InterchangeHooks::new(vec![swap], &self.base)?;
        let logits = Tensor::stack(&self.decoder.row_logits(&self.base, &mut hooks)?, 0);
        let loss = logits.select(1, -1).cross_entropy_for_logits(&self.recorded["target"]);
        Ok((logits, loss))
    }

    /// Compares logits and loss, and the gradients of leaves, each by its name.
    fn compare(
        &self,
        name: &str,
        interchange: &dyn Interchange,
        leaves: &[(&str, &Tensor)],
    ) -> Outcome {
        let (logits, loss) = self.run(interchange)?;
        // the same f32 sums in another order, |logits| up to 6; measured 5e-6
        assert_close(name, &logits, &self.recorded[&format!("{name}.logits")], 2e-5);
        let expected = self.recorded[&format!("{name}.loss")].double_value(&[0]);
        let found = loss.double_value(&[]);
        assert!((found - expected).abs() < 1e-4 * expected, "{name}: loss {found}, not {expected}");
        let leaves_only: Vec<&Tensor> = leaves.iter().map(|(_, leaf)| *leaf).collect();
        if leaves_only.is_empty() {
            return Ok(());
        }
        let gradients = Tensor::run_backward(&[loss], &leaves_only, false, false);
        for ((leaf, _), found) in leaves.iter().zip(gradients) {
            let expected = self.recorded[&format!("{name}.grad.{leaf}")].reshape(found.size());
            let size = expected.abs().max().double_value(&[]);
            assert!(size > 1e-5, "{name}: the recorded gradient of {leaf} has no power");
            // relative to the largest entry: f32 through two blocks and the head, measured 5e-6
            assert_close(&format!("{name}: gradient of {leaf}"), &found, &expected, 1e-4 * size);
        }
        Ok(())
    }
}

/// The reference uses `b QQᵀ` where ours uses the base `b`. For orthogonal `Q` both are equal, but their derivatives with respect to a free
/// matrix differ. This adds `b QQᵀ − b`, which is zero, so that the derivatives can be compared entry by entry.
#[derive(Debug)]
struct RebuiltBase<'a> {
    q: &'a Tensor,
    interchange: SubspaceInterchange,
}

impl Interchange for RebuiltBase<'_> {
    fn intervene(&self, base: &Tensor, source: &Tensor) -> reft_core::Result<Tensor> {
        let nothing = base.matmul(self.q).matmul(&self.q.tr()) - base;
        Ok(self.interchange.intervene(base, source)? + nothing)
    }
}

/// Full rotations of the reference at its start: `Q = Q₀ exp(tril(A) − tril(A)ᵀ)` with `A = 0`, and the free matrix `A`.
fn exponential(base: &Tensor) -> (Tensor, Tensor) {
    let raw = base.zeros_like().set_requires_grad(true);
    let skew = raw.tril(0) - raw.tril(0).tr();
    (base.matmul(&skew.linalg_matrix_exp()), raw)
}

#[test]
fn vanilla_interchange_equals_pyvene() -> Outcome {
    let experiment = Experiment::new()?;
    experiment.compare("vanilla", &VanillaInterchange::new(64), &[])
}

#[test]
fn low_rank_interchange_and_its_gradients_equal_pyvene() -> Outcome {
    let experiment = Experiment::new()?;
    let columns = experiment.recorded["rotation_low"].copy().set_requires_grad(true);
    let interchange = SubspaceInterchange::new(&columns)?;
    experiment.compare("lowrank8", &interchange, &[("rotate_effective", &columns)])?;

    // The reference completes Rᵀ to a square matrix with random columns that were not recorded. Two parts of the gradient of its free tensor X
    // do not depend on them: the block that turns R within its subspace, and the inner products of the columns below that block.
    let map = Householder::starting_at(&columns.detach().unsqueeze(0));
    let interchange = SubspaceInterchange::new(&map.columns().select(0, 0))?;
    let (_, loss) = experiment.run(&interchange)?;
    let found = Tensor::run_backward(&[loss], &[map.raw()], false, false).remove(0).select(0, 0);
    let expected = &experiment.recorded["lowrank8.grad.rotate_raw"];
    let size = expected.abs().max().double_value(&[]);
    let within = |x: &Tensor| x.narrow(0, 0, 8).tril(-1);
    let gram = |x: &Tensor| {
        let below = x.narrow(0, 8, 56);
        below.tr().matmul(&below)
    };
    assert_close("raw, within", &within(&found), &within(expected), 1e-4 * size);
    let gram_size = gram(expected).abs().max().double_value(&[]);
    assert_close("raw, below", &gram(&found), &gram(expected), 2e-4 * gram_size); // squares: twice the error
    Ok(())
}

#[test]
fn full_rotations_and_their_gradients_equal_pyvene() -> Outcome {
    let experiment = Experiment::new()?;
    let boundary = Tensor::from(0.4f32).set_requires_grad(true);
    let temperature = Tensor::from(2.0f32).set_requires_grad(true);
    let masks = experiment.recorded["sigmoid_mask.masks"].copy().set_requires_grad(true);
    let gate = |name: &str| match name {
        "boundless" => Some(boundary_gate(&boundary, &temperature, 64)),
        "sigmoid_mask" => Some(sigmoid_gate(&masks, &temperature)),
        _ => None,
    };
    for (name, coordinates, own) in [
        ("rotated_k16", 16, vec![]),
        ("rotated_full", 64, vec![]),
        (
            "boundless",
            64,
            vec![("intervention_boundaries", &boundary), ("temperature", &temperature)],
        ),
        ("sigmoid_mask", 64, vec![("masks", &masks), ("temperature", &temperature)]),
    ] {
        let q0 = &experiment.recorded["rotation_full"];
        let with = |q: &Tensor| -> reft_core::Result<SubspaceInterchange> {
            let interchange = SubspaceInterchange::new(q)?.coordinates(0..coordinates)?;
            match gate(name) {
                Some(gate) => interchange.with_gate(gate),
                None => Ok(interchange),
            }
        };
        let q = q0.copy().set_requires_grad(true);
        let leaves = [&own[..], &[("rotate_effective", &q)]].concat();
        let rebuilt = RebuiltBase { q: &q, interchange: with(&q)? };
        experiment.compare(name, &rebuilt, &leaves)?;

        // with Q on the manifold the derivatives agree, so RebuiltBase is not needed
        let (q, raw) = exponential(q0);
        let leaves = [&own[..], &[("rotate_raw", &raw)]].concat();
        if name == "rotated_full" {
            // all coordinates are swapped: no rotation can change the outcome, and the recorded gradient is rounding
            experiment.compare(name, &with(&q)?, &own)?;
        } else {
            experiment.compare(name, &with(&q)?, &leaves)?;
        }
    }
    Ok(())
}

/// Rows of unlike length, so that padding and positions matter.
fn uneven() -> Vec<Row> {
    [vec![5, 9, 31, 77, 12, 64, 8], vec![40, 3, 101], vec![7, 88, 19, 55, 23]]
        .map(Row::prompt)
        .into()
}

fn at(tokens: &[(usize, usize)]) -> Vec<TokenAt> {
    tokens.iter().map(|&(row, token)| TokenAt { row, token }).collect()
}

#[test]
fn a_source_that_is_the_base_changes_nothing_at_any_place() -> Outcome {
    let decoder = tiny_llama()?;
    let layout = Layout::new(uneven(), PaddingSide::Left)?;
    let plain = decoder.row_logits(&layout, &mut NoHooks)?;
    let tokens = at(&[(0, 2), (1, 1), (2, 0), (2, 4)]);
    tch::manual_seed(3);
    let fused = [Component::QueryKeyValue, Component::GateUp].map(|fused| fused.name());
    for &component in Component::ALL.iter().filter(|own| !fused.contains(&own.name())) {
        let place = Place::whole(Site { layer: 2, component });
        let d = decoder.description().size_of(&place)?;
        let source = collect(
            &decoder,
            &AdapterStack::EMPTY,
            &layout,
            vec![(place.clone(), tokens.clone())],
        )?
        .remove(0);
        let columns = random_columns(1, d, 5, Device::Cpu).select(0, 0);
        let interchange = SubspaceInterchange::new(&columns)?;
        let swap =
            Swap { place, tokens: tokens.clone(), source, interchange: Box::new(&interchange) };
        let mut hooks = InterchangeHooks::new(vec![swap], &layout)?;
        let swapped = decoder.row_logits(&layout, &mut hooks)?;
        assert_eq!(swapped, plain, "{component}"); // b + 0
    }
    Ok(())
}

#[test]
fn swapping_a_whole_site_from_one_row_gives_that_row_s_continuation() -> Outcome {
    let decoder = tiny_llama()?;
    // two prompts that differ in their first token only: with all tokens' block output swapped, one becomes the other
    let rows = [vec![5, 9, 31, 77], vec![60, 9, 31, 77]].map(Row::prompt);
    let [base, source] = rows.map(|row| Layout::new(vec![row], PaddingSide::Right));
    let (base, source) = (base?, source?);
    let tokens: Vec<TokenAt> = (0..4).map(|token| TokenAt { row: 0, token }).collect();
    let expected = decoder.row_logits(&source, &mut NoHooks)?.remove(0);
    let plain = decoder.row_logits(&base, &mut NoHooks)?.remove(0);
    assert!((&plain - &expected).abs().max().double_value(&[]) > 0.1, "the prompts are alike");
    let vanilla = VanillaInterchange::new(64);
    let everything =
        SubspaceInterchange::new(&random_columns(1, 64, 64, Device::Cpu).select(0, 0))?;
    let interchanges: [&dyn Interchange; 2] = [&vanilla, &everything];
    for interchange in interchanges {
        let wanted = vec![(block_output(1), tokens.clone())];
        let found = collect(&decoder, &AdapterStack::EMPTY, &source, wanted)?.remove(0);
        let swap = Swap {
            place: block_output(1),
            tokens: tokens.clone(),
            source: found,
            interchange: Box::new(interchange),
        };
        let mut hooks = InterchangeHooks::new(vec![swap], &base)?;
        let found = decoder.row_logits(&base, &mut hooks)?.remove(0);
        // the full rotation there and back costs f32 rounding: measured 2e-6
        assert_close("all of it", &found, &expected, 1e-5);
    }
    Ok(())
}

/// Sees the input of one output projection.
struct HeadsOf {
    layer: usize,
    seen: Option<Tensor>,
}

impl Hooks for HeadsOf {
    fn visit(&mut self, point: HookPoint, x: Tensor, _: &Span) -> reft_models::Result<Tensor> {
        let heads = Site { layer: self.layer, component: Component::Output };
        if matches!(point, HookPoint::Input(site) if site == heads) {
            self.seen = Some(x.shallow_clone());
        }
        Ok(x)
    }
}

#[test]
fn swapping_one_head_leaves_the_other_heads_and_tokens_as_they_are() -> Outcome {
    let decoder = tiny_llama()?;
    let layout = Layout::new(uneven(), PaddingSide::Right)?;
    let (place, tokens) = (Place::head(1, 2, 16), at(&[(0, 3), (2, 1)]));
    let source = Tensor::arange(32, F32).view([2, 16]);
    let vanilla = VanillaInterchange::new(16);
    let swap = Swap {
        place,
        tokens: tokens.clone(),
        source: source.shallow_clone(),
        interchange: Box::new(&vanilla),
    };
    let mut plain = HeadsOf { layer: 1, seen: None };
    let _logits = decoder.row_logits(&layout, &mut plain)?;
    let plain = plain.seen.ok_or("no heads")?;
    let boxed: Vec<Box<dyn Hooks>> =
        vec![Box::new(InterchangeHooks::new(vec![swap], &layout)?), Box::new(NoHooks)];
    let mut stacked = reft_models::Stacked(boxed);
    let ids = layout.input_ids(Device::Cpu);
    let before = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
    let after = decoder.hidden_states(&ids, &layout.whole(), None, &mut stacked)?;
    // row 1, and the tokens before token 3 of row 0, have no swap and do not change by a bit
    assert_eq!(before.select(0, 1), after.select(0, 1));
    assert_eq!(before.select(0, 0).narrow(0, 0, 3), after.select(0, 0).narrow(0, 0, 3));
    let change = (before - after).abs();
    assert!(change.select(0, 0).select(0, 3).max().double_value(&[]) > 1e-2, "nothing was swapped");

    // hooks that run after the swap and see the swapped heads
    struct Then<'a>(InterchangeHooks<'a>, HeadsOf);
    impl Hooks for Then<'_> {
        fn visit(
            &mut self,
            point: HookPoint,
            x: Tensor,
            span: &Span,
        ) -> reft_models::Result<Tensor> {
            let x = self.0.visit(point, x, span)?;
            self.1.visit(point, x, span)
        }
    }
    let swap = Swap {
        place: Place::head(1, 2, 16),
        tokens,
        source: source.shallow_clone(),
        interchange: Box::new(&vanilla),
    };
    let mut then =
        Then(InterchangeHooks::new(vec![swap], &layout)?, HeadsOf { layer: 1, seen: None });
    let _logits = decoder.row_logits(&layout, &mut then)?;
    let found = then.1.seen.ok_or("no heads")?;
    let expected = plain.copy();
    for (i, (row, token)) in [(0, 3), (2, 1)].into_iter().enumerate() {
        let mut slice = expected.select(0, row).select(0, token).narrow(0, 32, 16);
        slice.copy_(&source.select(0, i as i64));
    }
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn two_sources_bring_their_own_coordinates_of_one_subspace() -> Outcome {
    let decoder = tiny_llama()?;
    tch::manual_seed(4);
    let layout = Layout::new(uneven(), PaddingSide::Right)?;
    let whole = SubspaceInterchange::new(&random_columns(1, 64, 10, Device::Cpu).select(0, 0))?;
    let (first, second) = (whole.coordinates(0..4)?, whole.coordinates(4..10)?);
    let tokens = at(&[(0, 5), (1, 2)]);
    let sources = [Tensor::randn([2, 64], F32), Tensor::randn([2, 64], F32)];
    let run = |order: [usize; 2]| -> Result<Tensor, Box<dyn std::error::Error>> {
        let swaps = order.map(|i| Swap {
            place: block_output(2),
            tokens: tokens.clone(),
            source: sources[i].shallow_clone(),
            interchange: Box::new([&first, &second][i]),
        });
        let hooks = InterchangeHooks::new(swaps.into(), &layout)?;
        struct See<'a>(InterchangeHooks<'a>, Collect);
        impl Hooks for See<'_> {
            fn visit(
                &mut self,
                point: HookPoint,
                h: Tensor,
                span: &Span,
            ) -> reft_models::Result<Tensor> {
                let h = self.0.visit(point, h, span)?;
                self.1.visit(point, h, span)
            }
        }
        let mut see = See(hooks, Collect::new(vec![(block_output(2), tokens.clone())], &layout)?);
        let _logits = decoder.row_logits(&layout, &mut see)?;
        Ok(see.1.finish()?.remove(0))
    };
    let edited = run([0, 1])?;
    let coordinates = edited.matmul(whole.columns());
    for (source, range) in sources.iter().zip([0..4, 4..10]) {
        let length = range.end - range.start;
        let expected = source.matmul(whole.columns()).narrow(1, range.start, length);
        // f32 products of length 64; measured 2e-6
        assert_close("own part", &coordinates.narrow(1, range.start, length), &expected, 2e-5);
    }
    assert_close("order", &run([1, 0])?, &edited, 2e-5);
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Outcome {
    let decoder = tiny_llama()?;
    let layout = Layout::new(uneven(), PaddingSide::Right)?;
    let collected = |place: Place, tokens| {
        collect(&decoder, &AdapterStack::EMPTY, &layout, vec![(place, tokens)])
    };
    assert!(matches!(
        collected(block_output(4), at(&[(0, 0)])),
        Err(Error::NoSuchLayer { layer: 4, layers: 4 })
    ));
    assert!(matches!(
        collected(block_output(3), at(&[(1, 3)])),
        Err(Error::NoSuchToken { row: 1, token: 3, length: 3 })
    ));
    assert!(matches!(
        collected(block_output(3), at(&[(3, 0)])),
        Err(Error::NoSuchToken { row: 3, token: 0, length: 0 })
    ));
    assert!(matches!(
        collected(Place::head(0, 4, 16), at(&[(0, 0)])),
        Err(Error::Coordinates { width: 64, found, .. }) if found == (64..80)
    ));
    let vanilla = VanillaInterchange::new(64);
    let swap = |rows: i64, d: i64| Swap {
        place: block_output(0),
        tokens: at(&[(0, 1), (1, 1)]),
        source: Tensor::zeros([rows, d], F32),
        interchange: Box::new(&vanilla),
    };
    assert!(matches!(
        InterchangeHooks::new(vec![swap(3, 64)], &layout),
        Err(Error::Sources { tokens: 2, sources: 3, .. })
    ));
    let mut hooks = InterchangeHooks::new(vec![swap(2, 32)], &layout)?;
    let refused = decoder.row_logits(&layout, &mut hooks);
    assert!(
        matches!(&refused, Err(Error::At { site: Site { layer: 0, .. }, source })
            if matches!(**source, Error::Core(reft_core::Error::Shape { .. }))),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn the_same_hooks_drive_a_plain_network() -> Outcome {
    // h = relu(x₀ − x₁, x₁ − x₀, x₂), logits = (h₀ + h₁, h₂)
    let linear = |rows: &[&[f32]], bias: &[f32]| {
        let rows: Vec<Tensor> = rows.iter().map(|row| Tensor::from_slice(row)).collect();
        Linear {
            weight: reft_models::Weight::Dense(Tensor::stack(&rows, 0)),
            bias: Some(Tensor::from_slice(bias)),
        }
    };
    let layers = vec![
        linear(&[&[1.0, -1.0, 0.0], &[-1.0, 1.0, 0.0], &[0.0, 0.0, 1.0]], &[0.0, 0.0, 0.5]),
        linear(&[&[1.0, 1.0, 0.0], &[0.0, 0.0, 1.0]], &[0.0, 0.0]),
    ];
    let inputs = Tensor::from_slice(&[3f32, 1.0, 4.0, 1.0, 6.0, 2.0]).view([2, 3]);
    let network = FeedForward::from_layers(&inputs, layers)?;
    let logits = |layout: &Layout, hooks: &mut dyn Hooks| -> reft_models::Result<Tensor> {
        let ids = layout.input_ids(Device::Cpu);
        Ok(network.logits(&network.hidden_states(&ids, &layout.whole(), None, hooks)?))
    };
    let one = |id| Layout::new(vec![Row::prompt(vec![id])], PaddingSide::Right);
    let (base, source) = (one(0)?, one(1)?);
    let plain = logits(&base, &mut NoHooks)?;
    assert_eq!(plain, Tensor::from_slice(&[2f32, 4.5]).view([1, 1, 2]));

    let place = block_output(0);
    let tokens = every_row(1, 0);
    let found =
        collect(&network, &AdapterStack::EMPTY, &source, vec![(place.clone(), tokens.clone())])?
            .remove(0);
    assert_eq!(found, Tensor::from_slice(&[0f32, 5.0, 2.5]).view([1, 3]));
    let neurons = SubspaceInterchange::neurons(3, 0..2, Device::Cpu)?;
    let swap =
        Swap { place, tokens: tokens.clone(), source: found, interchange: Box::new(&neurons) };
    let mut hooks = InterchangeHooks::new(vec![swap], &base)?;
    let swapped = logits(&base, &mut hooks)?;
    assert_eq!(swapped, Tensor::from_slice(&[5f32, 4.5]).view([1, 1, 2]));

    let no_layer =
        collect(&network, &AdapterStack::EMPTY, &source, vec![(block_output(1), tokens.clone())]);
    assert!(matches!(no_layer, Err(Error::NoSuchLayer { layer: 1, layers: 1 })), "{no_layer:?}");
    let attention = Place::whole(Site { layer: 0, component: Component::AttentionOutput });
    let nowhere = collect(&network, &AdapterStack::EMPTY, &source, vec![(attention, tokens)]);
    assert!(matches!(nowhere, Err(Error::NotReached { .. })), "{nowhere:?}");
    let refused = FeedForward::from_layers(&inputs, vec![linear(&[&[1.0, 2.0]], &[0.0])]);
    assert!(matches!(
        refused,
        Err(reft_core::Error::Shape { expected, got, .. }) if expected == [-1, 3] && got == [1, 2]
    ));
    Ok(())
}
