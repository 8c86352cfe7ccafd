//! Two tasks in two groups of one subspace: trained apart in it, used alone or together (Wu et al. 2024, arXiv:2404.03592, appendix G.1).

use std::sync::atomic::AtomicBool;

use reft_core::{InterventionConfig, Method};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{
    Adapter, BaseModel, Component, Decoder, HookPoint, Hooks, Layout, Mode, Model, NoHooks,
    PaddingSide, Site, Span, Stacked,
};
use reft_train::{Dataset, Example, ScheduleKind, Silent, TrainConfig, Trainer};
use tch::{Kind, Tensor};

use crate::tiny_llama::{TestResult, alone, decoder, examples, learner, relative_difference};

const RANK: i64 = 8;
const FIRST: std::ops::Range<i64> = 0..4;
const SECOND: std::ops::Range<i64> = 4..8;

fn adapter(
    decoder: &Decoder,
    method: Method,
    layers: &[usize],
) -> Result<ReftAdapter, Box<dyn std::error::Error>> {
    tch::manual_seed(3);
    let base_model = BaseModel::of(decoder.description(), "tiny");
    let intervention = InterventionConfig::new(method, RANK);
    let config = ReftConfig {
        share_weights: true,
        ..ReftConfig::new(&intervention, layers.to_vec(), "f2+l2".parse()?, base_model)
    };
    Ok(ReftAdapter::new(config, decoder)?)
}

/// Examples whose edits may change some coordinates only.
fn within(group: &std::ops::Range<i64>, examples: Vec<Example>) -> Vec<Example> {
    let within = |mut example: Example| {
        example.sequences[0].row.subspace = Some(group.clone().collect());
        example
    };
    examples.into_iter().map(within).collect()
}

fn train(
    decoder: &Decoder,
    adapter: &ReftAdapter,
    train: Vec<Example>,
    steps: usize,
) -> TestResult {
    let options = TrainConfig {
        max_steps: Some(steps),
        batch_size: 4,
        lr: 1e-2,
        schedule: ScheduleKind::Constant,
        ..TrainConfig::default()
    };
    let dataset = Dataset { train, validation: Vec::new() };
    Trainer::new(&learner(decoder, adapter), &dataset, options)?
        .run(&mut Silent, &AtomicBool::new(false))?;
    Ok(())
}

/// The part of a tensor that belongs to a group: rows of `[r, d]` and `[r]`, columns of a rotation `[d, r]`.
fn part(name: &str, tensor: &Tensor, group: &std::ops::Range<i64>) -> Tensor {
    let dimension = if name == "rotation" { 1 } else { 0 };
    tensor.narrow(dimension, group.start, group.end - group.start).copy()
}

/// Tensors of the other group stay bit for bit the same, except `R`: its rows stay orthonormal, so it moves as a whole.
#[test]
fn training_one_group_leaves_the_other_as_it_was() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    for method in Method::ALL {
        let adapter = adapter(&decoder, *method, &[1, 3])?;
        let start = adapter.interventions().tensors();
        train(&decoder, &adapter, within(&FIRST, examples(8)), 12)?;
        for (start, after) in start.iter().zip(adapter.interventions().tensors()) {
            for (name, before) in start {
                let (before, after) = (before.detach(), after[name].detach());
                let of = |group| (part(name, &before, group), part(name, &after, group));
                let (own_before, own_after) = of(&FIRST);
                let moved = (own_after - own_before).abs().max().double_value(&[]);
                assert!(moved > 1e-3, "{method}: {name} of the trained group moved by {moved}");
                let (other_before, other_after) = of(&SECOND);
                if name != "rotation" {
                    assert_eq!(other_after, other_before, "{method}: {name} of the other group");
                }
            }
        }
    }
    Ok(())
}

/// The hidden states at the edited site in a forward.
struct Seen<'a> {
    site: Site,
    h: &'a mut Option<Tensor>,
}

impl Hooks for Seen<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> reft_models::Result<Tensor> {
        if matches!(point, HookPoint::Residual(site) if site == self.site) {
            *self.h = Some(h.shallow_clone());
        }
        Ok(h)
    }
}

/// The hidden states after the edit: of the base model (`None`), or with one group's edit (`None`: all coordinates).
fn hidden(
    decoder: &Decoder,
    adapter: Option<&ReftAdapter>,
    group: Option<&std::ops::Range<i64>>,
) -> Result<Tensor, Box<dyn std::error::Error>> {
    let rows = examples(5).into_iter().map(|mut example| {
        example.sequences[0].row.subspace = group.map(|group| group.clone().collect());
        example.row().clone()
    });
    let layout = Layout::new(rows.collect(), PaddingSide::Left)?;
    let mut h = None;
    let site = Site { layer: 2, component: Component::BlockOutput };
    let first: Box<dyn Hooks> = match adapter {
        Some(adapter) => adapter.hooks(&layout, Mode::Eval)?,
        None => Box::new(NoHooks),
    };
    let mut hooks = Stacked(vec![first, Box::new(Seen { site, h: &mut h })]);
    let ids = layout.input_ids(decoder.device());
    let _guard = tch::no_grad_guard();
    decoder.hidden_states(&ids, &layout.whole(), None, &mut hooks).map(drop)?;
    drop(hooks);
    h.ok_or_else(|| "the site was not visited".into())
}

/// `Φ(h) − h = Σ_g Dᵀ_g (source_g − target_g)`: the edit of all groups is the sum of each group's edit.
#[test]
fn both_groups_together_are_the_sum_of_their_edits() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    for method in Method::ALL {
        let adapter = adapter(&decoder, *method, &[2])?;
        train(&decoder, &adapter, examples(8), 12)?; // away from the identity
        let base = hidden(&decoder, None, None)?;
        let edit = |group| {
            Ok::<_, Box<dyn std::error::Error>>(hidden(&decoder, Some(&adapter), group)? - &base)
        };
        let (first, second, both) = (edit(Some(&FIRST))?, edit(Some(&SECOND))?, edit(None)?);
        for alone in [&first, &second] {
            let size = alone.abs().max().double_value(&[]);
            assert!(size > 1e-3, "{method}: a group edits by {size}, the test has no power");
        }
        // f32: the edits are differences of rounded hidden states larger than themselves
        let difference = relative_difference(&(first + second), &both);
        assert!(difference < 1e-4, "{method}: off by {difference:e}");
    }
    Ok(())
}

#[test]
fn two_tasks_learned_in_two_groups_work_alone_and_together() -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let adapter = adapter(&decoder, Method::Loreft, &[1, 3])?;
    let (first, second): (Vec<_>, Vec<_>) = {
        let numbered = examples(8).into_iter().enumerate();
        let (even, odd): (Vec<_>, Vec<_>) = numbered.partition(|(i, _)| i % 2 == 0);
        let rows = |rows: Vec<(usize, Example)>| rows.into_iter().map(|(_, row)| row).collect();
        (rows(even), rows(odd))
    };
    let loss = |adapter: &ReftAdapter, rows: &[Example]| -> reft_train::Result<f64> {
        Ok(learner(&decoder, adapter).evaluate(rows, 4, None)?.loss)
    };
    let start = [loss(&adapter, &first)?, loss(&adapter, &second)?];
    let groups = [within(&FIRST, first.clone()), within(&SECOND, second.clone())];
    train(&decoder, &adapter, groups.concat(), 60)?;
    for (i, (own, together)) in groups.iter().zip([&first, &second]).enumerate() {
        let (own, together) = (loss(&adapter, own)?, loss(&adapter, together)?);
        assert!(own < 0.7 * start[i], "task {i}: {} -> {own} in its group", start[i]);
        assert!(together < start[i], "task {i}: {} -> {together} together", start[i]);
    }
    Ok(())
}
