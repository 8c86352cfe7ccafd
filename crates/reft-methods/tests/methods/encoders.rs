//! Methods on the encoders of `tests/oracle/encoders`: LoRA and LoReFT against PEFT 0.21.2 and plain torch, the others by properties that
//! hold for each.

use reft_methods::{METHODS, MethodOptions};
use reft_models::{AdapterStack, Decoder, Layout, Mode, Model, PaddingSide, Row};
use reft_test_support::own_tokens;
use tch::{Kind, Tensor};

use crate::families::{assert_recorded_gradients, recorded_loreft};
use crate::oracle::{
    Outcome, Tensors, assert_close, difference, disturb, json, load_adapter, model, names_in,
    new_adapter, path, tensors,
};

struct Case {
    name: String,
    encoder: Decoder,
    io: Tensors,
    rows: Vec<Row>,
}

fn cases() -> Outcome<Vec<Case>> {
    tch::set_num_threads(1);
    let case = |name: String| {
        let encoder = model(&format!("encoders/{name}"))?;
        let io = tensors(&format!("encoders/{name}/io.safetensors"))?;
        let rows = own_tokens(&io["input_ids"], &io["attention_mask"])?;
        let rows = rows.into_iter().map(Row::prompt).collect();
        Ok(Case { name, encoder, io, rows })
    };
    names_in(&path("encoders"))?.into_iter().map(case).collect()
}

impl Case {
    /// The last hidden states of each row's own tokens, `[t, d]`, virtual ones included.
    fn last(&self, stack: &AdapterStack, padding: PaddingSide) -> Outcome<Vec<Tensor>> {
        Ok(stack.hidden_states(&self.encoder, self.rows.clone(), padding)?)
    }

    /// The last hidden states against recorded ones, on either side of the padding.
    fn assert_recorded(&self, what: &str, stack: &AdapterStack) -> Outcome {
        let expected = &self.io[what];
        let off = (&self.io["last"] - expected).abs().max().double_value(&[]);
        assert!(off > 0.1, "{}: {what} has no power", self.name);
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            for (i, found) in self.last(stack, padding)?.iter().enumerate() {
                let expected = expected.select(0, i as i64).narrow(0, 0, found.size()[0]);
                let tolerance = 2e-5 * (expected.abs().max().double_value(&[]) / 10.0).max(1.0);
                let what = format!("{}: {what} of row {i}, {padding:?}", self.name);
                assert_close(&what, found, &expected, tolerance);
            }
        }
        Ok(())
    }
}

/// PEFT's names of modules begin with that of the bare model in the adapters of classifiers, and do not in the others.
#[test]
fn lora_of_peft_on_the_modules_of_each_encoder_gives_its_hidden_states() -> Outcome {
    for case in cases()? {
        let dir = path("encoders").join(&case.name).join("lora");
        let stack = tch::no_grad(|| load_adapter(&dir, &case.encoder))?;
        case.assert_recorded("lora.last", &stack)?;
        // saved adapters have the names of the bare model, and can be read again
        let again = tempfile::tempdir()?;
        stack.entries()[0].adapter.save(again.path())?;
        let again = load_adapter(again.path(), &case.encoder)?;
        let (found, expected) =
            (case.last(&again, PaddingSide::Right)?, case.last(&stack, PaddingSide::Right)?);
        assert_eq!(difference(&found, &expected), 0.0, "{}", case.name);
    }
    Ok(())
}

#[test]
fn loreft_on_whole_texts_and_its_gradients_equal_plain_torch() -> Outcome {
    for case in cases()? {
        let layers = [0, 1];
        let adapter = recorded_loreft(&case.io, &case.encoder, &layers, "f3+l2")?;
        let stack = AdapterStack::one(&adapter);
        case.assert_recorded("reft.last", &stack)?;
        let layout = Layout::new(case.rows.clone(), PaddingSide::Right)?;
        let h = case.encoder.whole_pass(&layout, &mut stack.hooks(&layout, Mode::Eval)?)?;
        let sum = (0..case.rows.len()).map(|i| {
            let last = layout.own(&h, i);
            let probe = case.io["probe"].select(0, i as i64).narrow(0, 0, last.size()[0]);
            (last * probe).sum(Kind::Float)
        });
        sum.reduce(|a, b| a + b).ok_or("no rows")?.backward();
        assert_recorded_gradients(&case.name, &case.io, &stack, &layers)?;
    }
    Ok(())
}

/// The class of models without a head that PEFT reads, and the family's names of modules.
#[test]
fn a_new_lora_of_an_encoder_is_written_for_the_bare_model() -> Outcome {
    let encoder = model("encoders/bert")?;
    let dir = tempfile::tempdir()?;
    let stack = new_adapter("lora", &MethodOptions::default(), &encoder)?;
    stack.entries()[0].adapter.save(dir.path())?;
    let config = json(&dir.path().join("adapter_config.json"))?;
    assert_eq!(config["task_type"], "FEATURE_EXTRACTION");
    let modules = serde_json::json!([
        "query",
        "key",
        "value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense"
    ]);
    assert_eq!(config["target_modules"], modules);
    let tensors = reft_models::load_safetensors(&dir.path().join("adapter_model.safetensors"))?;
    let first = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight";
    assert!(tensors.contains_key(first), "{:?}", tensors.keys());
    Ok(())
}

/// Every method can be made for every encoder, changes its hidden states, and does not care for padding.
#[test]
fn every_method_works_on_every_encoder() -> Outcome {
    for case in cases()? {
        let plain = case.last(&AdapterStack::EMPTY, PaddingSide::Right)?;
        for method in METHODS.iter().filter(|method| method.name != "full") {
            let what = format!("{} on {}", method.name, case.name);
            tch::manual_seed(3);
            let stack = new_adapter(method.name, &MethodOptions::default(), &case.encoder)?;
            disturb(&stack, 5);
            let found = case.last(&stack, PaddingSide::Right)?;
            let largest = found.iter().map(|l| l.abs().max().double_value(&[])).fold(1.0, f64::max);
            let off = difference(&found, &case.last(&stack, PaddingSide::Left)?);
            assert!(off < 1e-5 * largest, "{what}: {off:e}");
            if stack.virtual_tokens() == 0 {
                assert!(difference(&found, &plain) > 1e-3, "{what}: nothing is changed");
            }
        }
    }
    Ok(())
}
