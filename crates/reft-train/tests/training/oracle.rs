//! Every method against pyreft: logits, loss, gradients and twenty AdamW steps. Files and generator: `tests/oracle`, `tools/oracle`.

use reft_test_support::{oracle_text, tensors};
use std::collections::BTreeMap;

use reft_core::{
    Householder, InterventionConfig, InterventionSet, InterventionTensors, Method, OrthonormalMap,
    PositionRule,
};
use reft_methods::ReftAdapter;
use reft_models::{Adapter, Decoder, Layout, Mode, Model, PaddingSide, Row};
use reft_train::{Batch, Dataset, Example, ScheduleKind, Shuffle, Step, TrainConfig, Trainer};
use tch::{Device, Kind, Reduction, Tensor};

use crate::tiny_llama::{TestResult, alone, config, decoder, learner, relative_difference};

/// One of the oracle's cases: pyreft's numbers, and our adapter made of its start.
struct Case {
    tensors: BTreeMap<String, Tensor>,
    trajectory: Vec<f64>,
    adapter: ReftAdapter,
    n: usize,
}

fn case(name: &str, method: Method, decoder: &Decoder) -> Result<Case, Box<dyn std::error::Error>> {
    let json = serde_json::from_str::<serde_json::Value>(&oracle_text("reft/reft.json")?)?;
    let json = &json[name];
    let tensors = tensors(&format!("reft/{name}.safetensors"))?;
    let n = json["layers"].as_array().ok_or("layers")?.len();
    let mut reft = config(decoder, method, Default::default(), 0.0);
    reft.position_rule = PositionRule::Pyreft;
    reft.share_weights = n == 2;
    reft.add_bias = json["kwargs"]["add_bias"].as_bool().unwrap_or(false);
    if let Some(act_fn) = json["kwargs"]["act_fn"].as_str() {
        reft.act_fn = act_fn.parse()?;
        reft.init = reft_core::Init::Reference;
    }
    let ours = |theirs: &str| match theirs {
        "rotate_layer.effective" => Some("rotation".to_owned()),
        "learned_source" => Some("learned_source.bias".to_owned()),
        _ if theirs.starts_with("rotate_layer") => None,
        same => Some(same.to_owned()),
    };
    let start = |i: usize| -> InterventionTensors {
        let prefix = format!("init.iv{i}.");
        let own = tensors.iter().filter_map(|(name, tensor)| {
            Some((ours(name.strip_prefix(&prefix)?)?, tensor.shallow_clone()))
        });
        own.collect()
    };
    let starts: Vec<_> = (0..n).map(start).collect();
    let intervention: InterventionConfig = reft.intervention();
    let mut set = InterventionSet::from_tensors(intervention, 64, &starts, Device::Cpu)?;
    set = set.into_trainable()?;
    if method.has_rotation() {
        let base = stacked(&tensors, "init", n, "rotate_layer.base");
        let map = Householder::on_base(&base, 4);
        let constants = map.constants().into_iter().chain([("raw", map.raw().detach())]);
        let mut state = set.state();
        state.extend(constants.map(|(name, tensor)| (format!("rotation.{name}"), tensor)));
        set.load_state(&state)?;
    }
    let trajectory: Vec<f64> = serde_json::from_value(json["trajectory"].clone())?;
    let adapter = ReftAdapter::from_interventions(reft, set)?;
    Ok(Case { tensors, trajectory, adapter, n })
}

/// A tensor of all interventions, stacked as ours are.
fn stacked(tensors: &BTreeMap<String, Tensor>, when: &str, n: usize, name: &str) -> Tensor {
    let own: Vec<_> =
        (0..n).map(|i| tensors[&format!("{when}.iv{i}.{name}")].shallow_clone()).collect();
    Tensor::stack(&own, 0)
}

/// The oracle's batch as examples, and its mask of real tokens.
fn oracle_batch() -> Result<(Vec<Example>, Tensor), Box<dyn std::error::Error>> {
    let io = tensors("tiny_io.safetensors")?;
    let json = serde_json::from_str::<serde_json::Value>(&oracle_text("tiny_io.json")?)?;
    let lengths: Vec<i64> = serde_json::from_value(json["lens"].clone())?;
    let prompts: Vec<usize> = serde_json::from_value(json["prompt_lens"].clone())?;
    let mut examples = Vec::new();
    for (i, (&length, &prompt_length)) in lengths.iter().zip(&prompts).enumerate() {
        let part = |name: &str| Vec::<i64>::try_from(io[name].get(i as i64).narrow(0, 0, length));
        let row = Row { input_ids: part("input_ids")?, prompt_length, ..Row::default() };
        examples.push(Example::of(format!("row {i}"), row, part("labels")?));
    }
    Ok((examples, io["attention_mask"].shallow_clone()))
}

fn logits(
    decoder: &Decoder,
    adapter: &dyn Adapter,
    examples: &[Example],
) -> Result<Tensor, reft_models::Error> {
    let rows = examples.iter().map(|example| example.row().clone()).collect();
    let layout = &Layout::new(rows, PaddingSide::Right)?;
    let mut hooks = adapter.hooks(layout, Mode::Eval)?;
    let ids = layout.input_ids(Device::Cpu);
    let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut *hooks)?;
    Ok(decoder.logits(&h))
}

/// The largest difference of logits where the oracle's mask has a token.
fn logit_difference(found: &Tensor, expected: &Tensor, mask: &Tensor) -> f64 {
    ((found - expected) * mask.unsqueeze(-1)).abs().max().double_value(&[])
}

/// `dL/dRᵀ` with `Rᵀ` as a free matrix, of all interventions, `[n, d, r]`.
fn gradient_of_the_rotation(
    decoder: &Decoder,
    adapter: &ReftAdapter,
    batch: &Batch,
) -> Result<Tensor, reft_models::Error> {
    let rotations: Vec<Tensor> = adapter
        .interventions()
        .tensors()
        .into_iter()
        .map(|t| t["rotation"].shallow_clone())
        .collect();
    let columns = Tensor::stack(&rotations, 0).set_requires_grad(true);
    let layout = &batch.layout;
    let mut hooks =
        adapter.hooks_with(adapter.interventions().edits_along(&columns, false), layout)?;
    let ids = layout.input_ids(Device::Cpu);
    let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut hooks)?;
    let (places, labels) = batch.targets(&layout.whole());
    let h = h.flatten(0, 1).index_select(0, &Tensor::from_slice(&places));
    let labels = Tensor::from_slice(&labels);
    decoder
        .logits(&h)
        .cross_entropy_loss(&labels, None::<Tensor>, Reduction::Mean, -100, 0.0)
        .backward();
    Ok(columns.grad())
}

/// Twenty steps of the trainer; the losses before each, and after the last.
fn train(
    decoder: &Decoder,
    adapter: &ReftAdapter,
    examples: Vec<Example>,
    weight_decay: f64,
) -> reft_train::Result<Vec<f64>> {
    let options = TrainConfig {
        max_steps: Some(20),
        batch_size: 3,
        lr: 5e-3,
        schedule: ScheduleKind::Constant,
        weight_decay,
        max_grad_norm: 0.0,
        shuffle: Shuffle::None,
        ..TrainConfig::default()
    };
    let dataset = Dataset { train: examples, validation: Vec::new() };
    let mut losses = Vec::new();
    let mut trainer = Trainer::new(&learner(decoder, adapter), &dataset, options)?;
    for step in 0..20 {
        let micro_batches = trainer.micro_batches(step)?;
        match trainer.step(&micro_batches)? {
            Step::Taken(stats) => losses.push(stats.loss),
            Step::Overflowed => panic!("f32 does not overflow here"),
        }
    }
    losses.push(learner(decoder, adapter).evaluate(&dataset.train, 3, None)?.loss);
    Ok(losses)
}

fn check(name: &str, method: Method) -> TestResult {
    let _alone = alone();
    let decoder = decoder(Kind::Float)?;
    let Case { tensors, trajectory, adapter, n } = case(name, method, &decoder)?;
    let (examples, mask) = oracle_batch()?;
    let batch = learner(&decoder, &adapter).batch(&examples)?;

    let start = logits(&decoder, &adapter, &examples)?;
    let difference = logit_difference(&start, &tensors["logits"], &mask);
    // f32 sums of 64 and 128 products in another order, logits up to 10
    assert!(difference < 2e-5, "{name}: logits differ by {difference:e}");

    let sum = learner(&decoder, &adapter).sums(&batch, Mode::Eval, None)?.remove(0);
    let mean = sum / batch.n_targets() as f64;
    let difference = (&mean - &tensors["loss"]).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{name}: loss differs by {difference:e}"); // f32, losses up to 6
    mean.backward();
    for parameter in adapter.parameters() {
        let grad = parameter.tensor.grad();
        let theirs = match parameter.name.as_str() {
            // Only entries below the diagonal are coordinates; pyreft's diagonal is cut to a constant.
            "rotation.raw" => stacked(&tensors, "grad", n, "rotate_layer.raw").tril(-1),
            "learned_source.bias" if !method.has_affine_source() => {
                stacked(&tensors, "grad", n, "learned_source")
            }
            same => stacked(&tensors, "grad", n, same),
        };
        let difference = relative_difference(&grad, &theirs);
        // a backward of f32 products in another order
        assert!(
            difference < 1e-4,
            "{name}: gradient of {} differs by {difference:e}",
            parameter.name
        );
    }
    if method.has_rotation() {
        let grad = gradient_of_the_rotation(&decoder, &adapter, &batch)?;
        let theirs = stacked(&tensors, "grad", n, "rotate_layer.effective");
        let difference = relative_difference(&grad, &theirs);
        assert!(difference < 1e-4, "{name}: gradient of R differs by {difference:e}"); // as above
    }

    let is_trap = name == "loreft_wd0.01";
    let losses = train(&decoder, &adapter, examples.clone(), if is_trap { 0.01 } else { 0.0 })?;
    if let Some(error) = adapter.interventions().orthonormality_error() {
        assert!(error < 1e-5, "{name}: R is off by {error:e}"); // f32 rounding, see reft-core
    }
    if is_trap {
        // pyreft's R becomes 0 with the first decay, and its loss the base model's, 5.57; ours continues to learn.
        assert!(losses[20] < 3.5, "{losses:?}");
        return Ok(());
    }
    for (step, (found, expected)) in losses.iter().zip(&trajectory).enumerate() {
        let difference = (found - expected).abs();
        // AdamW divides by √v: rounding of small gradients is not small in the update
        assert!(difference < 1e-4, "{name}: loss {step} is {found}, pyreft's {expected}");
    }
    let end = logits(&decoder, &adapter, &examples)?;
    let difference = logit_difference(&end, &tensors["final_logits"], &mask);
    assert!(difference < 1e-3, "{name}: final logits differ by {difference:e}"); // twenty updates on
    Ok(())
}

macro_rules! cases {
    ($($test:ident: $name:literal, $method:ident;)*) => {
        $(
            #[test]
            fn $test() -> TestResult {
                check($name, Method::$method)
            }
        )*
    };
}

cases! {
    loreft_equals_pyreft: "loreft", Loreft;
    loreft_with_relu_equals_pyreft: "loreft_relu", Loreft;
    loreft_untied_equals_pyreft: "loreft_split", Loreft;
    noreft_equals_pyreft: "noreft", Noreft;
    noreft_with_bias_equals_pyreft: "noreft_bias", Noreft;
    consreft_equals_pyreft: "consreft", Consreft;
    lobireft_equals_pyreft: "lobireft", Lobireft;
    direft_orth_equals_pyrefts_direft: "direft", DireftOrth;
    direft_equals_pyrefts_nodireft: "nodireft", Direft;
    weight_decay_spares_the_rotation_that_it_destroys_in_pyreft: "loreft_wd0.01", Loreft;
}
