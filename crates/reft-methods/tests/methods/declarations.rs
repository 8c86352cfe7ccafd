//! Checks of every declared method, without a check for a single one by name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use reft_methods::{
    AdapterFiles, AdapterSummary, Error, LAYERS, METHODS, Merging, MethodDeclaration,
    MethodOptions, POSITIONS, ValueKind, adapter_files, all_options, check_adapter,
    check_mergeable, load_trainable_adapters, merge_adapter, numel, resolve,
};
use reft_models::{
    AdapterStack, Component, Decoder, DecoderConfig, HookPoint, Hooks, Layout, Mode, Model,
    ModelDescription, PaddingSide, Row, Site, Span, StackEntry, load_safetensors,
};
use serde_json::json;
use tch::{Device, Tensor};

use crate::merging::MERGED;
use crate::oracle::{
    self, Outcome, assert_close, base_logits, difference, disturb, load_adapter, new_adapter, path,
    tiny_examples, tiny_llama,
};

/// A method's options with every size small: rank, virtual tokens, inner sizes.
pub fn small(declaration: &MethodDeclaration) -> MethodOptions {
    let counts = declaration.options.iter().filter(|option| option.value == ValueKind::Count);
    let sizes = counts.filter(|option| option.default.parse::<i64>().is_ok());
    sizes.fold(MethodOptions::default(), |options, option| options.with(option, 4))
}

/// A method at work: its adapter is away from its start, where parts of many are multiplied by 0.
struct AtWork {
    declaration: &'static MethodDeclaration,
    name: &'static str,
    model: Decoder,
    stack: AdapterStack<'static>,
}

impl AtWork {
    fn all() -> Outcome<Vec<Self>> {
        METHODS.iter().map(|declaration| Self::with(declaration, &small(declaration))).collect()
    }

    fn with(declaration: &'static MethodDeclaration, options: &MethodOptions) -> Outcome<Self> {
        let (name, model) = (declaration.name, tiny_llama()?);
        tch::manual_seed(3);
        let stack = new_adapter(name, options, &model)?;
        disturb(&stack, 1);
        Ok(Self { declaration, name, model, stack })
    }

    /// Whether it has a strength: not if its base model is changed, or its rows have virtual tokens or a prefix.
    fn has_strength(&self) -> bool {
        self.declaration.files != AdapterFiles::Weights
            && self.stack.virtual_tokens() + self.stack.prefix_length() == 0
    }

    fn at(&self, strength: f64) -> reft_models::Result<AdapterStack<'static>> {
        let entry = &self.stack.entries()[0];
        AdapterStack::new(vec![StackEntry { strength, ..entry.clone() }])
    }

    fn logits(&self) -> Outcome<Vec<Tensor>> {
        logits(&self.model, &self.stack)
    }
}

fn logits(model: &dyn Model, stack: &AdapterStack) -> Outcome<Vec<Tensor>> {
    oracle::logits(model, stack, &tiny_examples()?, PaddingSide::Right)
}

#[test]
fn names_are_told_apart() {
    let names: BTreeSet<&str> = METHODS.iter().map(|method| method.name).collect();
    assert_eq!(names.len(), METHODS.len());
    let options = all_options();
    let flags = options
        .iter()
        .flat_map(|option| [Some(option.flag()), option.alias.map(|alias| format!("--{alias}"))]);
    let flags: Vec<String> = flags.flatten().collect();
    assert_eq!(flags.iter().collect::<BTreeSet<_>>().len(), flags.len(), "{flags:?}");
    for method in METHODS {
        let own: BTreeSet<&str> = method.options.iter().map(|option| option.name).collect();
        assert_eq!(own.len(), method.options.len(), "{}", method.name);
        assert!(!method.title.is_empty() && !method.equation.is_empty(), "{}", method.name);
    }
}

/// The description of a model of usual sizes, without its weights.
fn wide_model() -> Outcome<ModelDescription> {
    let mut config = oracle::json(&path("tiny_llama/config.json"))?;
    for (field, size) in [
        ("hidden_size", 256),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 64),
        ("intermediate_size", 512),
    ] {
        config[field] = size.into();
    }
    Ok(DecoderConfig::from_json(config, Path::new("config.json"))?.describe())
}

/// Help and documentation give the actual defaults.
#[test]
fn defaults_are_those_that_help_tells() -> Outcome {
    let model = wide_model()?;
    for method in METHODS {
        let expected = resolve(method.name, &MethodOptions::default(), &model)?.describe();
        for option in method.options.iter().filter(|option| option.value != ValueKind::Modules) {
            let Ok(value) = option.parse(option.default) else { continue }; // a default in words
            let mut options = MethodOptions::default();
            options.set(option, value)?;
            let found = resolve(method.name, &options, &model)?.describe();
            assert_eq!(
                found, expected,
                "{}: {} is not {}",
                method.name, option.name, option.default
            );
        }
    }
    Ok(())
}

#[test]
fn what_is_saved_is_what_is_loaded_to_the_last_bit() -> Outcome {
    for method in AtWork::all()? {
        let (name, expected) = (method.name, method.logits()?);
        let dir = tempfile::tempdir()?;
        method.stack.save(dir.path())?;
        check_adapter(dir.path(), method.model.description())?;
        let fresh = tiny_llama()?;
        let again = load_adapter(dir.path(), &fresh)?;
        assert_eq!(again.method(), name);
        assert_eq!(difference(&logits(&fresh, &again)?, &expected), 0.0, "{name}");

        let fresh = tiny_llama()?;
        let trainable = load_trainable_adapters(dir.path(), &fresh)?;
        let trainable = AdapterStack::of_boxed(&trainable)?;
        let names = |stack: &AdapterStack| stack.state().into_keys().collect::<Vec<_>>();
        assert_eq!(names(&trainable), names(&method.stack), "{name}");
        // the rotation is converted to reflections again: rounding
        assert!(difference(&logits(&fresh, &trainable)?, &expected) < 1e-4, "{name}");

        let files = adapter_files(dir.path())?;
        assert_eq!(files.len(), std::fs::read_dir(dir.path())?.count(), "{name}");
        let numbers = load_safetensors(&files[0])?;
        let numbers: i64 = numbers.values().map(|tensor| tensor.numel() as i64).sum();
        let sizes = files.iter().map(|file| Ok(std::fs::metadata(file)?.len()));
        let summary = AdapterSummary::read(dir.path())?;
        assert_eq!(summary.parameters, numbers, "{name}");
        assert_eq!(summary.parameters, numel(&method.stack.parameters()), "{name}");
        assert_eq!(summary.bytes, sizes.sum::<std::io::Result<u64>>()?, "{name}");
        assert_eq!(summary.base_model_name.as_deref(), Some("tiny_llama"), "{name}");
    }
    Ok(())
}

#[test]
fn a_state_brings_back_every_number_in_the_leaves_that_are_there() -> Outcome {
    for method in AtWork::all()? {
        let (name, expected) = (method.name, method.logits()?);
        let (state, leaves) = (method.stack.state(), method.stack.parameters());
        disturb(&method.stack, 2);
        assert!(difference(&method.logits()?, &expected) > 1e-3, "{name}: nothing is changed");
        method.stack.load_state(&state)?;
        assert_eq!(method.stack.state(), state, "{name}");
        assert_eq!(difference(&method.logits()?, &expected), 0.0, "{name}");
        for (before, after) in leaves.iter().zip(method.stack.parameters()) {
            let is_same = before.tensor.data_ptr() == after.tensor.data_ptr();
            assert!(is_same, "{name}: an optimizer has another {}", after.name);
        }
    }
    Ok(())
}

/// The hooks of a plain model whose cache holds as many keys and values as an adapter's prefix.
struct AfterPrefix(usize);

impl Hooks for AfterPrefix {
    fn prefix_length(&self) -> usize {
        self.0
    }
}

/// A method acts on generated tokens if it predicts another next token distribution than the base model does from the same cache of the
/// prompt. Prefixes and soft prompts act on generated tokens through that cache alone.
#[test]
fn methods_that_act_on_generated_tokens_say_so() -> Outcome {
    let base = tiny_llama()?;
    let rows: Vec<Row> = tiny_examples()?.iter().map(|example| example.row().clone()).collect();
    let next = Tensor::from_slice(&[1i64, 50, 90]).unsqueeze(1);
    let _guard = tch::no_grad_guard();
    for method in AtWork::all()? {
        let (model, stack) = (&method.model, &method.stack);
        let layout = stack.layout(Layout::new(rows.clone(), PaddingSide::Left)?);
        let input_ids = layout.input_ids(Device::Cpu);
        let step = Span { layout: &layout, columns: layout.width()..layout.width() + 1 };
        let after_prompt = |decoder: &Decoder, hooks: Option<&mut dyn Hooks>| -> Outcome<Tensor> {
            let mut own = stack.hooks(&layout, Mode::Eval)?;
            let mut cache = model.kv_cache(3, 40);
            let whole = layout.whole();
            let _h = model.hidden_states(&input_ids, &whole, Some(&mut cache), &mut own)?;
            let hooks = hooks.unwrap_or(&mut own);
            Ok(decoder.logits(&decoder.hidden_states(&next, &step, Some(&mut cache), hooks)?))
        };
        let found = after_prompt(model, None)?;
        let plain = after_prompt(&base, Some(&mut AfterPrefix(stack.prefix_length())))?;
        let changed = (found - plain).abs().max().double_value(&[]);
        let acts = method.declaration.acts_on_generated;
        let is_right = if acts { changed > 1e-2 } else { changed == 0.0 };
        assert!(is_right, "{}: {acts} is declared, off by {changed:e}", method.name);
    }
    Ok(())
}

#[test]
fn methods_are_merged_or_say_why_they_cannot_be() -> Outcome {
    for method in AtWork::all()? {
        let (name, dir, fresh) = (method.name, tempfile::tempdir()?, tiny_llama()?);
        method.stack.save(dir.path())?;
        match method.declaration.merging {
            Merging::IntoWeights => {
                check_mergeable(dir.path())?;
                merge_adapter(dir.path(), &fresh)?;
                let merged = base_logits(&fresh, &tiny_examples()?)?;
                for (merged, unmerged) in merged.iter().zip(&method.logits()?) {
                    assert_close(name, merged, unmerged, MERGED);
                }
            }
            Merging::Never(expected) => {
                let refused = [check_mergeable(dir.path()), merge_adapter(dir.path(), &fresh)];
                for refused in refused {
                    let Err(Error::NotMergeable { what, reason, .. }) = refused else {
                        panic!("{name}: {refused:?}");
                    };
                    assert_eq!((what.as_str(), reason), (name, expected));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn strengths_go_from_the_base_model_to_the_method() -> Outcome {
    let base = base_logits(&tiny_llama()?, &tiny_examples()?)?;
    for method in AtWork::all()? {
        let (name, model, full) = (method.name, &method.model, method.logits()?);
        assert_eq!(difference(&logits(model, &method.at(1.0)?)?, &full), 0.0, "{name}");
        if !method.has_strength() {
            for strength in [0.0, 0.5, -1.0] {
                assert!(method.at(strength).is_err(), "{name} takes strength {strength}");
            }
            continue;
        }
        assert_eq!(difference(&logits(model, &method.at(0.0)?)?, &base), 0.0, "{name}");
        let half = logits(model, &method.at(0.5)?)?;
        assert!(difference(&half, &base) > 1e-3 && difference(&half, &full) > 1e-3, "{name}");
    }
    Ok(())
}

/// Hooks restricted to some of their rows equal the hooks of a batch of these rows.
#[test]
fn hooks_go_on_with_some_rows_of_a_batch() -> Outcome {
    for method in AtWork::all()? {
        let mut rows: Vec<Row> = tiny_examples()?.iter().map(|e| e.row().clone()).collect();
        rows[0].subspace = Some(vec![0, 2]);
        if method.stack.check_subspace(&rows[0]).is_err() {
            rows[0].subspace = None;
        }
        let layout = method.stack.layout(Layout::new(rows, PaddingSide::Left)?);
        for kept in [&[2, 0][..], &[1]] {
            let mut hooks = method.stack.hooks(&layout, Mode::Eval)?;
            hooks.keep_rows(kept);
            let rest = layout.keep_rows(kept);
            let found = tch::no_grad(|| method.model.whole_pass(&rest, &mut hooks))?;
            let mut hooks = method.stack.hooks(&rest, Mode::Eval)?;
            let expected = tch::no_grad(|| method.model.whole_pass(&rest, &mut hooks))?;
            // f32: a batch in which no row has a subspace computes without masks, measured 1.5e-6
            assert_close(&format!("{}: rows {kept:?}", method.name), &found, &expected, 1e-5);
        }
    }
    Ok(())
}

/// Records the hidden states at a site.
struct Record<'a>(Site, &'a RefCell<Option<Tensor>>);

impl Hooks for Record<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, _: &Span) -> reft_models::Result<Tensor> {
        if matches!(point, HookPoint::Residual(site) if site == self.0) {
            self.1.replace(Some(h.shallow_clone()));
        }
        Ok(h)
    }
}

#[test]
fn half_of_an_edit_is_the_mean_of_base_and_edited_states() -> Outcome {
    let rows: Vec<Row> = tiny_examples()?.iter().map(|example| example.row().clone()).collect();
    let layout = Layout::new(rows, PaddingSide::Left)?;
    let site = Site { layer: 2, component: Component::BlockOutput };
    for declaration in METHODS.iter().filter(|m| m.files == AdapterFiles::Reft) {
        let options = small(declaration).with(&LAYERS, [2]).with(&POSITIONS, "f2+l1");
        let method = AtWork::with(declaration, &options)?;
        let states = |strength| -> Outcome<Tensor> {
            let seen = RefCell::new(None);
            let mut hooks = method.at(strength)?.hooks(&layout, Mode::Eval)?;
            hooks.0.push(Box::new(Record(site, &seen)));
            let _h = tch::no_grad(|| method.model.whole_pass(&layout, &mut hooks))?;
            drop(hooks);
            seen.into_inner().ok_or_else(|| "the site was not seen".into())
        };
        let (base, edited) = (states(0.0)?, states(1.0)?);
        let changed = (&edited - &base).abs().amax([-1i64].as_slice(), false).gt(1e-3);
        let expected = 3 * 3; // three prompts, with the first two tokens and the last one of each
        assert_eq!(i64::try_from(changed.sum(tch::Kind::Int64))?, expected, "{}", method.name);
        // f32, |h| up to 20
        assert_close(method.name, &states(0.5)?, &((base + edited) / 2.0), 5e-6);
    }
    Ok(())
}

/// The frozen model's part that training does not compute again: see [`reft_models::Reach`].
#[test]
fn states_before_the_reach_are_the_frozen_models() -> Outcome {
    for declaration in METHODS {
        let mut options = small(declaration);
        let has = |option: &_| declaration.options.contains(&option);
        if has(&LAYERS) {
            options = options.with(&LAYERS, [2]);
        }
        if has(&POSITIONS) {
            options = options.with(&POSITIONS, "l2");
        }
        let method = AtWork::with(declaration, &options)?;
        for example in tiny_examples()? {
            let row = example.row();
            let reach = method.stack.reach(row).ok_or("no adapter")?;
            assert!(!has(&LAYERS) || reach.stage >= 2, "{}: {reach:?}", method.name);
            assert!(!has(&POSITIONS) || reach.token == row.prompt_length - 2, "{reach:?}");
            let layout = Layout::new(vec![row.clone()], PaddingSide::Right)?;
            let layout = method.stack.layout(layout);
            let _guard = tch::no_grad_guard();
            let into_stage = |hooks: &mut dyn Hooks, stage| -> Outcome<Tensor> {
                let forward = method.model.forward(&layout.whole(), hooks.prefix_length());
                let embeddings = forward.embed(&layout.input_ids(Device::Cpu));
                Ok(forward.run(0..stage, embeddings, None, hooks)?)
            };
            for stage in 0..=4 {
                let mut hooks = method.stack.hooks(&layout, Mode::Eval)?;
                let found = into_stage(&mut hooks, stage)?;
                let plain = into_stage(&mut reft_models::NoHooks, stage)?;
                let tokens =
                    if stage <= reach.stage { found.size()[1] } else { reach.token as i64 };
                let own = |h: &Tensor| h.narrow(1, 0, tokens);
                let is_same = own(&found).equal(&own(&plain));
                assert!(is_same, "{}: stage {stage}, {reach:?}", method.name);
            }
        }
    }
    Ok(())
}

#[test]
fn what_a_backward_keeps_is_told_for_every_block() -> Outcome {
    for method in METHODS {
        let description = tiny_llama()?.description().clone();
        let methods = resolve(method.name, &small(method), &description)?;
        for kind_bytes in [2.0, 4.0] {
            let kept = methods.kept_per_token(&description, kind_bytes)?;
            assert_eq!(kept.len(), description.num_hidden_layers, "{}", method.name);
            let is_size = |bytes: &f64| bytes.is_finite() && *bytes >= 0.0;
            assert!(kept.iter().all(is_size), "{}: {kept:?}", method.name);
        }
    }
    Ok(())
}

/// A method is known by its directory, whatever other files are there.
#[test]
fn directories_are_told_by_their_files() -> Outcome {
    for method in AtWork::all()? {
        let dir = tempfile::tempdir()?;
        method.stack.save(dir.path())?;
        std::fs::write(dir.path().join("notes.json"), json!({"method": "none"}).to_string())?;
        let found = reft_methods::adapters_in(dir.path())?;
        let names: Vec<&str> = found.iter().map(|(_, declaration)| declaration.name).collect();
        let files: Vec<_> = found.iter().map(|(_, declaration)| declaration.files).collect();
        assert_eq!(files, [method.declaration.files], "{}: {names:?}", method.name);
        let names = reft_methods::Methods::read(dir.path())?.describe().0;
        assert_eq!(names, method.name);
    }
    Ok(())
}
