//! Random starts and dropout follow the seed.

use reft_methods::{DROPOUT, MethodOptions, TARGET_MODULES, method_names};
use reft_models::{
    AdapterStack, Component, HookPoint, Hooks, Layout, Linear, Mode, Model, PaddingSide, Row, Site,
    Weight,
};
use reft_test_support::{Outcome, alone, assert_close, disturb, largest_difference};
use reft_train::{Learner, NextToken};
use tch::{Kind, Tensor};

use crate::tiny_model::{adapters, tiny_examples, tiny_llama};

#[test]
fn seeds_decide_every_random_start() -> Outcome {
    let _guard = alone();
    let decoder = tiny_llama()?;
    for method in method_names()
        .into_iter()
        .filter(|method| !["full", "ia3", "red", "brep", "road"].contains(method))
    {
        let state = |seed: i64| -> Outcome<_> {
            tch::manual_seed(seed);
            let adapters = adapters(method, &MethodOptions::default(), &decoder)?;
            Ok(AdapterStack::of_boxed(&adapters)?.state())
        };
        assert_eq!(state(1)?, state(1)?, "{method}");
        assert_ne!(state(1)?, state(2)?, "{method}");
    }
    Ok(())
}

#[test]
fn lora_dropout_is_on_its_input_and_only_in_training() -> Outcome {
    let _guard = alone();
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let with = |dropout: f64, method: &str| {
        adapters(method, &MethodOptions::default().with(&DROPOUT, dropout), &decoder)
    };
    let loss = |stack: &AdapterStack| -> Outcome<Tensor> {
        Ok(Learner::new(&decoder, stack, &NextToken).loss(&examples, Mode::Train)?)
    };
    let rows = || examples.iter().map(|example| example.row().clone()).collect();
    let logits = |stack: &AdapterStack| stack.logits(&decoder, rows(), PaddingSide::Right);
    for method in ["lora", "dora"] {
        let (dropped, plain) = (with(0.5, method)?, with(0.0, method)?);
        let (dropped, plain) = (AdapterStack::of_boxed(&dropped)?, AdapterStack::of_boxed(&plain)?);
        // at the start B = 0, so dropout has no effect unless it touches the frozen model
        assert!(largest_difference(&logits(&plain)?, &logits(&AdapterStack::EMPTY)?) < 5e-5);
        assert_close(method, &loss(&dropped)?, &loss(&plain)?, 1e-5);

        disturb(dropped.parameters().into_iter().map(|p| (p.tensor, !p.weight_decay)), 1);
        let losses = || -> Outcome<Vec<f64>> {
            tch::manual_seed(11);
            (0..12).map(|_| Ok(loss(&dropped)?.double_value(&[]))).collect()
        };
        let found = losses()?;
        assert_eq!(found, losses()?, "{method}: dropout does not follow the seed");
        assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{method}: nothing is dropped");
        assert_eq!(largest_difference(&logits(&dropped)?, &logits(&dropped)?), 0.0);
    }
    Ok(())
}

/// The mean over many dropout masks of the first layer's update is the update without dropout.
#[test]
fn lora_dropout_keeps_the_mean_of_the_update() -> Outcome {
    let _guard = alone();
    let decoder = tiny_llama()?;
    let options = MethodOptions::default().with(&DROPOUT, 0.3).with(&TARGET_MODULES, ["q_proj"]);
    let adapters = adapters("lora", &options, &decoder)?;
    let adapter = AdapterStack::of_boxed(&adapters)?;
    disturb(adapter.parameters().into_iter().map(|p| (p.tensor, !p.weight_decay)), 2);
    let layout = Layout::new(vec![Row::prompt(vec![5, 6])], PaddingSide::Right)?;
    let site = Site { layer: 0, component: Component::Query };
    let linear = Linear {
        weight: Weight::Dense(Tensor::zeros([64, 64], (Kind::Float, decoder.device()))),
        bias: None,
    };
    let x = Tensor::randn([1, 500, 64], (Kind::Float, decoder.device())) + 5.0;
    let update = |hooks: &mut dyn Hooks, x: &Tensor| -> Outcome<Tensor> {
        let y = linear.forward(x);
        let update = hooks.visit(HookPoint::Output(site, &linear, x), y, &layout.whole())?;
        Ok(update.detach())
    };
    let exact = update(&mut adapter.hooks(&layout, Mode::Eval)?, &x)?;
    let mut hooks = adapter.hooks(&layout, Mode::Train)?;
    let mut mean = exact.zeros_like();
    for _ in 0..50 {
        mean += update(&mut hooks, &x)? / 50.0;
    }
    let mean_of = |x: &Tensor| x.mean_dim([1i64].as_slice(), false, Kind::Float);
    let (mean, exact) = (mean_of(&mean), mean_of(&exact));
    // Power: without the factor 1 / (1 − p), the mean would be off by 0.3 of this.
    assert!(exact.abs().max().double_value(&[]) > 0.5);
    // 25,000 masks; one changes an update by 1.1 or so, hence 0.007 for the mean
    assert_close("mean update", &mean, &exact, 0.05);
    Ok(())
}
