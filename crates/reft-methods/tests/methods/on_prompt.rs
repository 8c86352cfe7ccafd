//! Methods that act on the prompt's tokens alone, and edits of all of them.

use reft_methods::{
    Error, JoinOptions, JoinPart, METHODS, Merging, MethodDeclaration, MethodOptions, POSITIONS,
    RANK, SHARE_WEIGHTS, TOKENS, check_mergeable, export_peft, export_pyreft, join_adapters,
    resolve,
};
use reft_models::{
    Adapter, AdapterStack, Decoder, GenerationConfig, Layout, Mode, Model, NoHooks, PaddingSide,
    Row, Span, generate,
};
use reft_train::AdamW;
use serde_json::json;
use std::ops::ControlFlow;
use tch::{Device, Tensor};

use crate::oracle::{
    LOGITS, Outcome, assert_close, difference, disturb, json as read, load_adapter, logits, loss,
    new_adapter, tiny_examples, tiny_llama,
};

/// The methods that can act on the prompt alone or on all tokens.
fn choosing() -> Vec<&'static MethodDeclaration> {
    let methods: Vec<_> =
        METHODS.iter().copied().filter(|method| method.options.contains(&&TOKENS)).collect();
    assert!(methods.len() >= 8, "{methods:?}");
    methods
}

fn options(tokens: &str) -> MethodOptions {
    MethodOptions::default().with(&TOKENS, tokens)
}

/// The same adapter on the prompt alone and on all tokens, made of the same numbers.
fn both(method: &str, model: &Decoder) -> Outcome<[AdapterStack<'static>; 2]> {
    let mut stacks = Vec::new();
    for tokens in ["prompt", "all"] {
        let stack = new_adapter(method, &options(tokens), model)?;
        disturb(&stack, 3);
        stacks.push(stack);
    }
    stacks.try_into().map_err(|_| "two".into())
}

/// Oracle: the adapter on all tokens runs the prompt and leaves keys and values; the plain model runs the reply behind them.
#[test]
fn a_reply_is_the_plain_models_behind_a_prompt_that_was_changed() -> Outcome {
    let _guard = tch::no_grad_guard();
    let model = tiny_llama()?;
    let examples = tiny_examples()?;
    for method in choosing() {
        let [prompt, all] = both(method.name, &model)?;
        let found = logits(&model, &prompt, &examples, PaddingSide::Right)?;
        let everywhere = logits(&model, &all, &examples, PaddingSide::Right)?;
        assert!(difference(&found, &everywhere) > 1e-2, "{}: nothing left out", method.name);
        for (found, example) in found.iter().zip(&examples) {
            let row = example.row();
            let layout = Layout::new(vec![row.clone()], PaddingSide::Right)?;
            let ids = layout.input_ids(Device::Cpu);
            let mut cache = model.kv_cache(1, row.input_ids.len() as i64);
            let mut part = |columns: std::ops::Range<usize>, hooks: &mut dyn reft_models::Hooks| {
                let (start, length) = (columns.start as i64, columns.len() as i64);
                let span = Span { layout: &layout, columns };
                let ids = ids.narrow(1, start, length);
                let h = model.hidden_states(&ids, &span, Some(&mut cache), hooks)?;
                Ok::<Tensor, reft_models::Error>(model.logits(&h).squeeze_dim(0))
            };
            let (n, width) = (row.prompt_length, row.input_ids.len());
            let of_prompt = part(0..n, &mut all.hooks(&layout, Mode::Eval)?)?;
            let of_reply = part(n..width, &mut NoHooks)?;
            let expected = Tensor::cat(&[of_prompt, of_reply], 0);
            // in two passes, the second over a cache: sums of other kernels
            assert_close(method.name, found, &expected, 5.0 * LOGITS);
        }
        let left = logits(&model, &prompt, &examples, PaddingSide::Left)?;
        assert!(difference(&found, &left) < LOGITS, "{}: padding", method.name);
    }
    Ok(())
}

#[test]
fn replies_are_generated_as_they_are_trained() -> Outcome {
    let model = tiny_llama()?;
    let rows: Vec<Row> = tiny_examples()?
        .iter()
        .map(|example| Row::prompt(example.row().input_ids[..example.row().prompt_length].to_vec()))
        .collect();
    let config = GenerationConfig { max_new_tokens: 8, ..GenerationConfig::default() };
    for method in choosing() {
        let [prompt, _] = both(method.name, &model)?;
        let replies =
            generate(&model, &prompt, &rows, &config, &mut |_, _| ControlFlow::Continue(()))?;
        for (row, reply) in rows.iter().zip(replies) {
            let mut whole = Row { prompt_length: row.input_ids.len(), ..row.clone() };
            whole.input_ids.extend(&reply.ids);
            let logits = prompt.logits(&model, vec![whole], PaddingSide::Right)?.remove(0);
            let expected = logits.narrow(0, row.input_ids.len() as i64 - 1, reply.ids.len() as i64);
            let expected: Vec<i64> = expected.argmax(-1, false).try_into()?;
            assert_eq!(reply.ids, expected, "{}", method.name);
        }
    }
    Ok(())
}

#[test]
fn such_an_adapter_learns_and_is_read_again_and_is_none_of_pefts() -> Outcome {
    let model = tiny_llama()?;
    let examples = tiny_examples()?;
    for method in choosing() {
        let name = method.name;
        let stack = new_adapter(name, &options("prompt"), &model)?;
        let before = loss(&model, &stack, &examples)?.double_value(&[]);
        let mut optimizer = AdamW::new(stack.parameters(), 0.0);
        for _ in 0..15 {
            optimizer.zero_grad();
            loss(&model, &stack, &examples)?.backward();
            optimizer.step(1e-2);
        }
        let after = loss(&model, &stack, &examples)?.double_value(&[]);
        assert!(after < 0.95 * before, "{name}: {before} -> {after}");
        let (dir, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
        stack.save(dir.path())?;
        let again = load_adapter(dir.path(), &model)?;
        let run = |stack: &AdapterStack| logits(&model, stack, &examples, PaddingSide::Right);
        assert_eq!(difference(&run(&stack)?, &run(&again)?), 0.0, "{name}");
        assert!(!again.entries()[0].adapter.acts_on_replies(), "{name}");
        let told = reft_methods::Methods::read(dir.path())?.describe();
        assert_eq!(told.1.get::<String>(&TOKENS).as_deref(), Some("prompt"), "{name}");
        for refused in [
            export_peft(dir.path(), output.path()).err(),
            check_mergeable(dir.path()).err(),
            export_pyreft(dir.path(), output.path()).err(),
        ] {
            let message = refused.ok_or("it was not refused")?.to_string();
            assert!(!message.is_empty(), "{name}");
        }
        let methods = resolve(name, &options("prompt"), model.description())?;
        assert!(methods.iter().all(|own| matches!(own.merging(), Merging::Never(_))), "{name}");
    }
    Ok(())
}

/// `peft_type` and `tokens` say the same, or the file is refused.
#[test]
fn files_that_contradict_themselves_are_refused() -> Outcome {
    let model = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    new_adapter("lora", &options("prompt"), &model)?.save(dir.path())?;
    let path = dir.path().join("adapter_config.json");
    let written = read(&path)?;
    assert_eq!(written["peft_type"], "LORA_ON_PROMPT");
    assert_eq!(written["tokens"], "prompt");
    for (field, value) in [("peft_type", json!("LORA")), ("tokens", json!("all"))] {
        let mut changed = written.clone();
        changed[field] = value;
        std::fs::write(&path, changed.to_string())?;
        let message = load_adapter(dir.path(), &model).err().ok_or("it was read")?.to_string();
        assert!(message.contains("tokens is") && message.contains("expected LORA"), "{message}");
    }
    let mut changed = written.clone();
    changed["tokens"] = json!("reply");
    std::fs::write(&path, changed.to_string())?;
    let error = load_adapter(dir.path(), &model).err().ok_or("it was read")?;
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    let message: String = causes.map(ToString::to_string).collect();
    assert!(message.contains("reply") && message.contains("all, prompt"), "{message}");
    Ok(())
}

#[test]
fn adapters_of_the_same_tokens_are_joined_and_others_are_not() -> Outcome {
    let model = tiny_llama()?;
    let examples = tiny_examples()?;
    let [on_prompt, on_all, other] = [(); 3].map(|()| tempfile::tempdir());
    let (on_prompt, on_all, other) = (on_prompt?, on_all?, other?);
    for (dir, tokens, seed) in
        [(&on_prompt, "prompt", 1), (&on_all, "all", 2), (&other, "prompt", 4)]
    {
        let stack = new_adapter("lora", &options(tokens).with(&RANK, 2), &model)?;
        disturb(&stack, seed);
        stack.save(dir.path())?;
    }
    let part = |dir: &tempfile::TempDir| JoinPart { directory: dir.path().into(), strength: 1.0 };
    let output = tempfile::tempdir()?;
    let mixed = [part(&on_prompt), part(&on_all)];
    let refused = join_adapters(&mixed, JoinOptions::default(), output.path());
    let Err(Error::NotJoinable { reason, .. }) = refused else {
        return Err("it was joined".into());
    };
    assert!(reason.contains("acts on the tokens all"), "{reason}");
    join_adapters(&[part(&on_prompt), part(&other)], JoinOptions::default(), output.path())?;
    let joined = load_adapter(output.path(), &model)?;
    let [first, second] = [&on_prompt, &other].map(|dir| load_adapter(dir.path(), &model));
    let (first, second) = (first?, second?);
    let stack = AdapterStack::of(&[&*first.entries()[0].adapter, &*second.entries()[0].adapter])?;
    let run = |stack: &AdapterStack| logits(&model, stack, &examples, PaddingSide::Right);
    assert!(difference(&run(&joined)?, &run(&stack)?) < 1e-4);
    Ok(())
}

/// `all` positions of a prompt of n tokens are its first n.
#[test]
fn all_positions_are_those_of_the_whole_prompt() -> Outcome {
    let model = tiny_llama()?;
    for method in ["loreft", "direft", "consreft"] {
        let stack_at = |positions: &str, share: bool| -> Outcome<AdapterStack<'static>> {
            let options = MethodOptions::default().with(&RANK, 4);
            let options = options.with(&POSITIONS, positions).with(&SHARE_WEIGHTS, share);
            Ok(new_adapter(method, &options, &model)?)
        };
        let all = stack_at("all", true)?;
        disturb(&all, 6);
        for example in tiny_examples()? {
            let n = example.row().prompt_length;
            let run = |positions: &str, share: bool| -> Outcome<Vec<Tensor>> {
                let stack = stack_at(positions, share)?;
                stack.load_state(&all.state())?;
                logits(&model, &stack, std::slice::from_ref(&example), PaddingSide::Right)
            };
            let expected = run(&format!("f{n}"), true)?;
            for share in [true, false] {
                assert_eq!(difference(&run("all", share)?, &expected), 0.0, "{method}, {n}");
            }
            assert!(difference(&run("l1", true)?, &expected) > 1e-3, "{method}, {n}");
        }
    }
    Ok(())
}

#[test]
fn edits_of_all_tokens_are_joined_kept_and_not_pyrefts() -> Outcome {
    let model = tiny_llama()?;
    let examples = tiny_examples()?;
    let options =
        |positions: &str| MethodOptions::default().with(&RANK, 2).with(&POSITIONS, positions);
    let [first, second, other] = [(); 3].map(|()| tempfile::tempdir());
    let (first, second, other) = (first?, second?, other?);
    for (dir, positions, seed) in [(&first, "all", 1), (&second, "all", 2), (&other, "l1", 3)] {
        let stack = new_adapter("loreft", &options(positions), &model)?;
        disturb(&stack, seed);
        stack.save(dir.path())?;
    }
    let output = tempfile::tempdir()?;
    let message = export_pyreft(first.path(), output.path()).err().ok_or("exported")?.to_string();
    assert!(message.contains("all of a prompt's tokens"), "{message}");
    let part = |dir: &tempfile::TempDir| JoinPart { directory: dir.path().into(), strength: 1.0 };
    let mixed = [part(&first), part(&other)];
    let refused = join_adapters(&mixed, JoinOptions::default(), output.path());
    let message = refused.err().ok_or("it was joined")?.to_string();
    assert!(message.contains("all of a prompt's tokens"), "{message}");
    join_adapters(&[part(&first), part(&second)], JoinOptions::default(), output.path())?;
    let joined = load_adapter(output.path(), &model)?;
    let (first, second) =
        (load_adapter(first.path(), &model)?, load_adapter(second.path(), &model)?);
    let adapters: Vec<&dyn Adapter> =
        vec![&*first.entries()[0].adapter, &*second.entries()[0].adapter];
    let stack = AdapterStack::of(&adapters)?;
    let run = |stack: &AdapterStack| logits(&model, stack, &examples, PaddingSide::Right);
    assert!(difference(&run(&joined)?, &run(&stack)?) < 1e-4);
    Ok(())
}
