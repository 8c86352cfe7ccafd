//! Several methods at once.

use reft_methods::{Error, MethodOptions, RANK};
use reft_models::{AdapterStack, Layout, Mode, Model, PaddingSide, Stacked};
use reft_train::AdamW;

use crate::oracle::{
    Outcome, assert_close, difference, disturb, load_adapter, logits, loss, new_adapter, path,
    tiny_examples, tiny_llama,
};

#[test]
fn a_combination_is_its_methods_hooks_one_after_the_other() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    let reft = new_adapter("loreft", &MethodOptions::default().with(&RANK, 4), &decoder)?;
    let lora = load_adapter(&path("peft/lora_qv"), &decoder)?;
    disturb(&reft, 5);
    let [reft, lora] = [&reft, &lora].map(|stack| &*stack.entries()[0].adapter);
    let rows = examples.iter().map(|example| example.row().clone()).collect();
    let layout = Layout::new(rows, PaddingSide::Right)?;
    let ids = layout.input_ids(decoder.device());
    let expected = {
        let _guard = tch::no_grad_guard();
        let hooks = [reft, lora].map(|adapter| adapter.hooks(&layout, Mode::Eval));
        let mut hooks = Stacked(hooks.into_iter().collect::<Result<_, _>>()?);
        decoder.logits(&decoder.hidden_states(&ids, &layout.whole(), None, &mut hooks)?)
    };
    let alone = [reft, lora].map(|adapter| {
        logits(&decoder, &AdapterStack::one(adapter), &examples, PaddingSide::Right)
    });
    let combined = AdapterStack::of(&[reft, lora])?;
    let found = logits(&decoder, &combined, &examples, PaddingSide::Right)?;
    for (i, found) in found.iter().enumerate() {
        let expected = expected.select(0, i as i64).narrow(0, 0, found.size()[0]);
        assert_close(&format!("row {i}"), found, &expected, 0.0);
    }
    for alone in alone {
        assert!(difference(&found, &alone?) > 0.1, "one of the methods does nothing");
    }
    Ok(())
}

#[test]
fn a_combination_trains_all_its_parts_and_survives_its_files() -> Outcome {
    let decoder = tiny_llama()?;
    let examples = tiny_examples()?;
    for method in ["loreft+lora", "direft+prompt", "dora+prefix", "red+ia3+parallel-adapter"] {
        let options = MethodOptions::default();
        let combined = new_adapter(method, &options, &decoder)?;
        assert_eq!(combined.method(), method);
        let start = combined.state();
        let before = loss(&decoder, &combined, &examples)?.double_value(&[]);
        let mut optimizer = AdamW::new(combined.parameters(), 0.0);
        for _ in 0..5 {
            optimizer.zero_grad();
            loss(&decoder, &combined, &examples)?.backward();
            optimizer.step(1e-2);
        }
        let after = loss(&decoder, &combined, &examples)?.double_value(&[]);
        assert!(after < 0.9 * before, "{method}: {before} -> {after}");
        for parameter in combined.parameters() {
            let name = &parameter.name;
            assert_ne!(parameter.tensor, start[name], "{method}: {name} was not trained");
        }

        let dir = tempfile::tempdir()?;
        combined.save(dir.path())?;
        let again = load_adapter(dir.path(), &decoder)?;
        assert_eq!(again.method(), method);
        let run = |stack: &AdapterStack| logits(&decoder, stack, &examples, PaddingSide::Left);
        let trained = run(&combined)?;
        // the rotation is converted to reflections again: rounding
        assert!(difference(&trained, &run(&again)?) < 1e-4, "{method}");

        combined.load_state(&start)?;
        assert_eq!(combined.state(), start);
        assert!(difference(&trained, &run(&combined)?) > 1e-2, "{method}");
    }
    Ok(())
}

#[test]
fn two_methods_that_both_bring_tokens_are_refused() -> Outcome {
    let decoder = tiny_llama()?;
    for (method, expected) in [
        ("prompt+prompt", "both bring virtual tokens"),
        ("prefix+lora+prefix", "both bring a prefix"),
    ] {
        let refused = new_adapter(method, &MethodOptions::default(), &decoder);
        let Err(Error::Model(reft_models::Error::NotCombinable { reason, .. })) = refused else {
            panic!("{method}: {:?}", refused.err());
        };
        assert_eq!(reason, expected);
    }
    Ok(())
}
