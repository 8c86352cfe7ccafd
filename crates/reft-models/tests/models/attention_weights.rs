//! Attention weights against transformers 5.24: `tests/oracle/attentions`, made by `tools/oracle/make_attentions.py`.

use crate::oracle::model;
use reft_methods::load_adapters;
use reft_models::{
    Adapter, AdapterStack, Error, Hooks, Layout, Model, NoHooks, PaddingSide, Row,
    attention_weights,
};
use tch::{Kind, Tensor};

use reft_test_support::{Outcome, assert_close, oracle, tensors};

/// Weights up to 1, f32 sums in another order.
const WEIGHTS: f64 = 1e-5;

#[test]
fn weights_equal_those_of_transformers() -> Outcome {
    let expected = tensors("attentions/attentions.safetensors")?;
    let ids = Vec::<i64>::try_from(expected["input_ids"].select(0, 0))?;
    for (case, name, adapter) in [
        ("llama", "tiny_llama", None),
        ("llama_lora", "tiny_llama", Some("peft/lora_all")),
        ("gemma2", "more_families/gemma2", None), // windows and soft-capped scores
        ("modernbert", "encoders/modernbert", None), // windows to both sides
    ] {
        let model = model(name)?;
        let n = model.description().num_hidden_layers;
        let adapters = match adapter {
            Some(adapter) => load_adapters(&oracle(adapter), &model)?,
            None => Vec::new(),
        };
        let stack = AdapterStack::of_boxed(&adapters)?;
        let layers: Vec<usize> = (0..n).rev().collect();
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            // beside a shorter row, as padding must change nothing
            let rows = vec![Row::prompt(ids.clone()), Row::prompt(ids[..9].to_vec())];
            let layout = Layout::new(rows, padding)?;
            let found = attention_weights(&model, &stack, &layout, &layers)?;
            for (layer, found) in layers.iter().zip(&found) {
                let what = format!("{case}, layer {layer}, {padding:?}");
                let expected = &expected[&format!("{case}.{layer}")];
                assert_close(&what, &found.select(0, 0), expected, WEIGHTS);
                let sums = found.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
                assert_close(&what, &sums, &sums.ones_like(), WEIGHTS);
            }
        }
        if adapter.is_some() {
            let base = &expected[&format!("llama.{}", n - 1)];
            let moved = (base - &expected[&format!("{case}.{}", n - 1)]).abs().max();
            assert!(moved.double_value(&[]) > 1e-2, "{case}: the adapter changes nothing");
        }
    }
    Ok(())
}

/// Hooks that only see every layer's attention weights.
#[derive(Default)]
struct Looking(usize);

impl Hooks for Looking {
    fn wants_attention(&self, _layer: usize) -> bool {
        true
    }

    fn see_attention(&mut self, _layer: usize, _weights: Tensor) {
        self.0 += 1;
    }
}

#[test]
fn looking_changes_no_bit_of_the_forward() -> Outcome {
    for name in ["tiny_llama", "more_families/gemma2", "encoders/modernbert"] {
        let model = model(name)?;
        let rows = vec![Row::prompt((2..14).collect()), Row::prompt((5..10).collect())];
        let layout = Layout::new(rows, PaddingSide::Right)?;
        let ids = layout.input_ids(model.device());
        let span = layout.whole();
        let _guard = tch::no_grad_guard();
        let plain = model.hidden_states(&ids, &span, None, &mut NoHooks)?;
        let mut looking = Looking::default();
        let seen = model.hidden_states(&ids, &span, None, &mut looking)?;
        assert_eq!(seen, plain, "{name}");
        assert_eq!(looking.0, model.description().num_hidden_layers, "{name}");
    }
    Ok(())
}

/// The keys of a prefix come first, and the logits follow from these weights.
#[test]
fn a_prefix_is_among_the_keys() -> Outcome {
    let model = model("tiny_llama")?;
    let prefix: Vec<Box<dyn Adapter>> = load_adapters(&oracle("peft/prefix"), &model)?;
    let stack = AdapterStack::of_boxed(&prefix)?;
    let n = stack.prefix_length() as i64;
    let layout = Layout::new(vec![Row::prompt((2..9).collect())], PaddingSide::Right)?;
    let found = attention_weights(&model, &stack, &layout, &[0, 2])?;
    for weights in &found {
        assert_eq!(weights.size()[2..], [7, n + 7]);
        let of_prefix = weights.narrow(3, 0, n).sum(Kind::Double).double_value(&[]);
        assert!(of_prefix > 1e-2, "nobody looks at the prefix");
        // the first token sees only the prefix and itself
        let later = weights.select(2, 0).narrow(2, n + 1, 6).abs().max();
        assert_eq!(later.double_value(&[]), 0.0);
    }
    let beyond = attention_weights(&model, &stack, &layout, &[4]);
    assert!(matches!(beyond, Err(Error::NoSuchLayer { layer: 4, layers: 4 })), "{beyond:?}");
    Ok(())
}
