//! Several adapters at once, at strengths and in subspaces, tested with small adapters that do one thing each.

use crate::oracle::{base_logits, rows, tiny_llama};
use reft_test_support::{Outcome, largest_difference, tensors};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, AdapterStack, Component, Error, GenerationConfig, HookPoint, Hooks, Layout, Mode,
    Model, PaddingSide, Reach, Result, Row, Site, Span, StackEntry, generate,
};
use tch::{Device, Kind, Tensor};

/// The hook and the site at which [`Scale`] acts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Point {
    Embeddings,
    Visit(Site),
    Input(Site),
    Output(Site),
}

/// One point of every hook that replaces a tensor.
const POINTS: [Point; 4] = [
    Point::Embeddings,
    Point::Visit(Site { layer: 1, component: Component::BlockOutput }),
    Point::Input(Site { layer: 2, component: Component::Down }),
    Point::Output(Site { layer: 0, component: Component::Query }),
];

/// Multiplies the tensor at a point (for generated tokens too) by a factor, adds a shift, and counts calls.
struct Scale {
    point: Point,
    factor: Tensor,        // a leaf, one number
    shift: f64,            // added after the factor
    is_by_row: bool,       // the factor grows with the row's first token
    prefix: usize,         // keys and values of ones before every layer's own
    virtual_tokens: usize, // with unchanged embeddings
    hooks_made: Cell<usize>,
    prefixes_asked: Cell<usize>,
    subspaces: RefCell<Vec<Option<Vec<i64>>>>, // of the rows of the last hooks made
}

impl Scale {
    fn at(point: Point, factor: f64) -> Self {
        Self {
            point,
            factor: Tensor::from(factor).to_kind(Kind::Float).set_requires_grad(true),
            shift: 0.0,
            is_by_row: false,
            prefix: 0,
            virtual_tokens: 0,
            hooks_made: Cell::new(0),
            prefixes_asked: Cell::new(0),
            subspaces: RefCell::default(),
        }
    }
}

impl Adapter for Scale {
    fn method(&self) -> &str {
        "scale"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new("factor", &self.factor)]
    }

    fn hooks<'a>(&'a self, layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        self.hooks_made.set(self.hooks_made.get() + 1);
        self.subspaces.replace(layout.rows().iter().map(|row| row.subspace.clone()).collect());
        let factor = self.factor.double_value(&[]);
        let of_row = |row: &Row| match self.is_by_row {
            true => factor * (1.0 + 0.02 * row.input_ids[0] as f64),
            false => factor,
        };
        let factors = layout.rows().iter().map(of_row).collect();
        Ok(Box::new(ScaleHooks { adapter: self, factors }))
    }

    fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    fn prefix_length(&self) -> usize {
        self.prefix
    }

    fn subspace_size(&self) -> Option<i64> {
        (self.virtual_tokens == 0).then_some(4)
    }

    fn reach(&self, _row: &Row) -> Reach {
        match self.point {
            Point::Embeddings => Reach::EVERYTHING,
            Point::Visit(site) | Point::Input(site) | Point::Output(site) => {
                Reach::of_sites([site], 3 * site.layer)
            }
        }
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors = [("factor".to_owned(), self.factor.detach())];
        reft_models::save_safetensors(&dir.join("scale.safetensors"), &tensors, None)
    }
}

struct ScaleHooks<'a> {
    adapter: &'a Scale,
    factors: Vec<f64>, // of each row
}

impl Hooks for ScaleHooks<'_> {
    fn visit(&mut self, point: HookPoint, x: Tensor, _span: &Span) -> Result<Tensor> {
        let point = match point {
            HookPoint::Embeddings => Point::Embeddings,
            HookPoint::Residual(site) => Point::Visit(site),
            HookPoint::Input(site) => Point::Input(site),
            HookPoint::Output(site, ..) => Point::Output(site),
        };
        if point != self.adapter.point {
            return Ok(x);
        }
        let factors = Tensor::from_slice(&self.factors).to_kind(Kind::Float);
        Ok(&x * factors.view([-1, 1, 1]) + self.adapter.shift) // [b, t, ..]
    }

    fn prefix_length(&self) -> usize {
        self.adapter.prefix
    }

    fn prefix(&mut self, _layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        self.adapter.prefixes_asked.set(self.adapter.prefixes_asked.get() + 1);
        let shape = [span.layout.batch_size() as i64, 2, self.adapter.prefix as i64, 16];
        let ones = || Tensor::ones(shape, (Kind::Float, Device::Cpu));
        Some((ones(), ones()))
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.factors = rows.iter().map(|&row| self.factors[row]).collect();
    }
}

/// Three prompts of 14, 12 and 9 tokens.
fn tiny_rows() -> Outcome<Vec<Row>> {
    let io = tensors("tiny_io.safetensors")?;
    rows(&io["input_ids"], &io["attention_mask"])
}

fn logits(model: &dyn Model, stack: &AdapterStack) -> Outcome<Vec<Tensor>> {
    Ok(stack.logits(model, tiny_rows()?, PaddingSide::Right)?)
}

/// One adapter at a strength.
fn at_strength(adapter: &dyn Adapter, strength: f64) -> Result<AdapterStack<'_>> {
    AdapterStack::new(vec![StackEntry { strength, ..adapter.into() }])
}

/// `base + s (2 base − base)` is `(1 + s) base`, bit for bit at these strengths.
#[test]
fn a_strength_goes_from_the_base_to_the_edited_state_and_beyond_at_every_hook() -> Outcome {
    let model = tiny_llama()?;
    let plain = base_logits(&model, &tiny_rows()?, PaddingSide::Right)?;
    for point in POINTS {
        let double = Scale::at(point, 2.0);
        for strength in [0.0, 1.0, 0.5, -1.0, 2.0] {
            let found = logits(&model, &at_strength(&double, strength)?)?;
            let expected = Scale::at(point, 1.0 + strength);
            let expected = logits(&model, &AdapterStack::one(&expected))?;
            let what = format!("{point:?} at {strength}");
            assert_eq!(largest_difference(&found, &expected), 0.0, "{what}");
            let is_plain = largest_difference(&found, &plain) == 0.0;
            assert_eq!(is_plain, strength == 0.0, "{what}");
        }
        let stack = AdapterStack::one(&double);
        let layout = Layout::new(tiny_rows()?, PaddingSide::Right)?;
        let mut turned = stack.hooks_at(-1.0, &layout, Mode::Eval)?;
        let turned = model.row_logits(&layout, &mut turned)?;
        let expected = logits(&model, &at_strength(&double, -1.0)?)?;
        assert_eq!(largest_difference(&turned, &expected), 0.0, "{point:?} turned around");
    }
    Ok(())
}

#[test]
fn factors_of_a_stack_multiply_the_strengths_of_its_entries() -> Outcome {
    let model = tiny_llama()?;
    let layout = Layout::new(tiny_rows()?, PaddingSide::Right)?;
    let (first, second) = (Scale::at(POINTS[1], 2.0), Scale::at(POINTS[3], 2.0));
    let at = |strengths: [f64; 2]| {
        let adapters = [&first as &dyn Adapter, &second].into_iter().zip(strengths);
        let entry = |(adapter, strength)| StackEntry { strength, ..StackEntry::from(adapter) };
        AdapterStack::new(adapters.map(entry).collect())
    };
    let (stack, halved) = (at([0.5, -1.0])?, at([0.25, -0.5])?);
    let found = model.row_logits(&layout, &mut stack.hooks_at(0.5, &layout, Mode::Eval)?)?;
    assert_eq!(largest_difference(&found, &logits(&model, &halved)?), 0.0);
    let made = (first.hooks_made.get(), second.hooks_made.get());
    let plain = model.row_logits(&layout, &mut stack.hooks_at(0.0, &layout, Mode::Eval)?)?;
    let expected = base_logits(&model, &tiny_rows()?, PaddingSide::Right)?;
    assert_eq!(largest_difference(&plain, &expected), 0.0);
    assert_eq!(made, (first.hooks_made.get(), second.hooks_made.get()), "nothing is computed at 0");
    Ok(())
}

#[test]
fn adapters_see_what_the_one_before_them_left() -> Outcome {
    let model = tiny_llama()?;
    let (double, shift) =
        (Scale::at(POINTS[1], 2.0), Scale { shift: 1.0, ..Scale::at(POINTS[1], 1.0) });
    for (adapters, shift) in [([&double, &shift], 1.0), ([&shift, &double], 2.0)] {
        let found = logits(&model, &AdapterStack::of(&adapters.map(|a| a as &dyn Adapter))?)?;
        let at_once = Scale { shift, ..Scale::at(POINTS[1], 2.0) };
        let expected = logits(&model, &AdapterStack::one(&at_once))?;
        assert_eq!(largest_difference(&found, &expected), 0.0, "2 h + {shift}");
    }
    // 2 h, then half of the way from 2 h to 2 h + 1
    let half = StackEntry { strength: 0.5, ..(&shift as &dyn Adapter).into() };
    let found = logits(&model, &AdapterStack::new(vec![(&double as &dyn Adapter).into(), half])?)?;
    let at_once = Scale { shift: 0.5, ..Scale::at(POINTS[1], 2.0) };
    let expected = logits(&model, &AdapterStack::one(&at_once))?;
    assert!(largest_difference(&found, &expected) < 1e-5); // f32, |h| up to 40
    Ok(())
}

#[test]
fn the_subspace_of_an_entry_stands_in_place_of_those_that_rows_name() -> Outcome {
    let mut rows = tiny_rows()?;
    rows[1].subspace = Some(vec![0, 2]);
    let layout = Layout::new(rows, PaddingSide::Left)?;
    let (own, of_rows) = (Scale::at(POINTS[1], 2.0), Scale::at(POINTS[1], 2.0));
    let restricted = StackEntry { subspace: Some(vec![3]), ..(&own as &dyn Adapter).into() };
    let stack = AdapterStack::new(vec![restricted, (&of_rows as &dyn Adapter).into()])?;
    stack.hooks(&layout, Mode::Eval)?;
    assert_eq!(*own.subspaces.borrow(), vec![Some(vec![3]); 3]);
    assert_eq!(*of_rows.subspaces.borrow(), [None, Some(vec![0, 2]), None]);

    // coordinates that the entry's adapter does not have, and an adapter without a subspace
    let without = Scale { virtual_tokens: 1, ..Scale::at(POINTS[1], 2.0) };
    let refused = |adapter: &Scale, coordinate| {
        let entry =
            StackEntry { subspace: Some(vec![coordinate]), ..(adapter as &dyn Adapter).into() };
        let stack = AdapterStack::new(vec![entry])?;
        stack.check_subspace(&Row::prompt(vec![5]))
    };
    assert!(matches!(
        refused(&own, 4),
        Err(Error::Core(reft_core::Error::Subspace { index: 4, rank: 4 }))
    ));
    assert!(matches!(refused(&without, 0), Err(Error::NoSubspace { .. })));
    Ok(())
}

#[test]
fn tokens_before_the_prompt_come_from_one_adapter_at_full_strength() -> Outcome {
    let plain = Scale::at(POINTS[1], 2.0);
    let prefix = Scale { prefix: 3, ..Scale::at(POINTS[1], 2.0) };
    let prompt = Scale { virtual_tokens: 4, ..Scale::at(POINTS[1], 2.0) };
    for (twice, expected) in [
        ([&prefix as &dyn Adapter, &plain, &prefix], "both bring a prefix"),
        ([&plain, &prompt, &prompt], "both bring virtual tokens"),
    ] {
        let refused = AdapterStack::of(&twice).err();
        assert!(
            matches!(&refused, Some(Error::NotCombinable { reason, .. }) if *reason == expected),
            "{refused:?}"
        );
    }
    let all = AdapterStack::of(&[&prefix, &plain, &prompt])?;
    assert_eq!((all.prefix_length(), all.virtual_tokens()), (3, 4));
    let layout = Layout::new(tiny_rows()?, PaddingSide::Right)?;
    assert_eq!(all.layout(layout.clone()).width(), layout.width() + 4);

    for adapter in [&prefix as &dyn Adapter, &prompt] {
        for strength in [0.0, 0.5, -1.0] {
            assert!(matches!(at_strength(adapter, strength), Err(Error::Adapter { .. })));
        }
        let stack = at_strength(adapter, 1.0)?;
        let layout = stack.layout(layout.clone());
        for factor in [0.5, -1.0] {
            let refused = stack.hooks_at(factor, &layout, Mode::Eval).err();
            assert!(matches!(refused, Some(Error::Adapter { .. })), "{refused:?}");
        }
        assert_eq!(stack.hooks_at(0.0, &layout, Mode::Eval)?.prefix_length(), 0); // the plain model
    }
    for strength in [f64::NAN, f64::INFINITY] {
        assert!(matches!(at_strength(&plain, strength), Err(Error::Adapter { .. })));
    }
    Ok(())
}

#[test]
fn names_say_which_of_several_adapters_a_tensor_belongs_to() -> Outcome {
    let (double, triple) = (Scale::at(POINTS[1], 2.0), Scale::at(POINTS[3], 3.0));
    let names = |stack: &AdapterStack| -> Vec<String> {
        let names: Vec<String> = stack.parameters().into_iter().map(|p| p.name).collect();
        assert_eq!(stack.state().into_keys().collect::<Vec<_>>(), names);
        names
    };
    assert_eq!(names(&AdapterStack::one(&double)), ["factor"]);
    assert_eq!(names(&AdapterStack::EMPTY), [""; 0]);
    let both = AdapterStack::of(&[&double, &triple])?;
    assert_eq!(names(&both), ["0-scale/factor", "1-scale/factor"]);
    assert_eq!(both.method(), "scale+scale");

    let state = both.state();
    let changed = [("0-scale/factor", 7.0f32), ("1-scale/factor", 5.0)];
    let changed = changed.map(|(name, factor)| (name.to_owned(), Tensor::from(factor)));
    both.load_state(&BTreeMap::from(changed))?;
    assert_eq!([&double, &triple].map(|adapter| adapter.factor.double_value(&[])), [7.0, 5.0]);
    both.load_state(&state)?;
    assert_eq!([&double, &triple].map(|adapter| adapter.factor.double_value(&[])), [2.0, 3.0]);

    let with = |name: &str| {
        let mut state = both.state();
        state.insert(name.to_owned(), Tensor::from(1.0f32));
        state
    };
    let without = |name: &str| {
        let mut state = both.state();
        state.remove(name);
        state
    };
    for (wrong, name) in [
        (with("2-scale/factor"), "2-scale/factor"),
        (with("factor"), "factor"),
        (with("1-scale/bias"), "bias"),
        (without("1-scale/factor"), "factor is missing"),
        (without("0-scale/factor"), "factor is missing"),
    ] {
        let refused = both.load_state(&wrong);
        assert!(
            matches!(&refused, Err(Error::Adapter { reason }) if reason.contains(name)),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn several_adapters_are_kept_in_a_directory_each() -> Outcome {
    let (double, triple) = (Scale::at(POINTS[1], 2.0), Scale::at(POINTS[3], 3.0));
    let dir = tempfile::tempdir()?;
    AdapterStack::of(&[&double, &triple])?.save(dir.path())?;
    let own = ["0-scale", "1-scale"].map(|name| dir.path().join(name));
    assert_eq!(AdapterStack::directories(dir.path())?, own);
    for (own, factor) in own.iter().zip([2.0, 3.0]) {
        let tensors = reft_models::load_safetensors(&own.join("scale.safetensors"))?;
        assert_eq!(tensors["factor"].double_value(&[]), factor);
    }
    let combined = dir.path().join(AdapterStack::FILE_NAME);
    let written: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&combined)?)?;
    let expected = serde_json::json!({"format_version": 1, "adapters": ["0-scale", "1-scale"]});
    assert_eq!(written, expected);

    let alone = tempfile::tempdir()?;
    AdapterStack::one(&double).save(alone.path())?;
    assert!(alone.path().join("scale.safetensors").is_file());
    assert!(!alone.path().join(AdapterStack::FILE_NAME).exists());

    for broken in [
        r#"{"format_version": 2, "adapters": ["0-scale"]}"#,
        r#"{"format_version": 1, "adapters": ["0-scale", "../1-scale"]}"#,
        r#"{"format_version": 1, "adapters": [".."]}"#,
        r#"{"format_version": 1, "adapters": ["0-scale"], "more": 1}"#,
        r#"{"format_version": 1}"#,
    ] {
        std::fs::write(&combined, broken)?;
        let refused = AdapterStack::directories(dir.path());
        assert!(
            matches!(&refused, Err(Error::Adapter { .. } | Error::Json { .. })),
            "{broken}: {refused:?}"
        );
    }
    Ok(())
}

#[test]
fn the_reach_of_a_stack_is_the_lowest_of_its_adapters() -> Outcome {
    let row = Row::prompt(vec![1; 9]);
    let at = |layer, component| Scale::at(Point::Visit(Site { layer, component }), 2.0);
    let (low, high) = (at(1, Component::BlockOutput), at(3, Component::MlpOutput));
    assert_eq!(AdapterStack::EMPTY.reach(&row), None);
    assert_eq!(AdapterStack::one(&high).reach(&row), Some(Reach { stage: 3, token: 9 }));
    let both = AdapterStack::of(&[&high, &low])?;
    assert_eq!(both.reach(&row), Some(Reach { stage: 2, token: 3 }));
    Ok(())
}

fn replies(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    rows: &[Row],
    config: &GenerationConfig,
) -> Result<Vec<Vec<i64>>> {
    let stack = AdapterStack::of(adapters)?;
    let replies = generate(model, &stack, rows, config, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(replies.into_iter().map(|reply| reply.ids).collect())
}

/// An adapter's state per row is kept while rows leave; its hooks are made once and serve the whole reply.
#[test]
fn hooks_go_on_with_the_rows_that_stay() -> Outcome {
    let model = tiny_llama()?;
    let rows = tiny_rows()?;
    for point in POINTS {
        for prefix in [0, 2] {
            let by_row = || Scale { is_by_row: true, prefix, ..Scale::at(point, 1.1) };
            let adapter = by_row();
            let greedy = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::default() };
            let full = replies(&model, &[&by_row()], &rows, &greedy)?;
            let stop_ids = vec![full[0][2], full[2][5]]; // the first row leaves, then the last
            let config = GenerationConfig { stop_ids, ..greedy.clone() };
            let found = replies(&model, &[&adapter], &rows, &config)?;
            let what = format!("{point:?}, prefix {prefix}");
            assert_eq!(adapter.hooks_made.get(), 1, "{what}");
            let layers = if prefix > 0 { 4 } else { 0 };
            assert_eq!(adapter.prefixes_asked.get(), layers, "{what}: asked in decode steps");
            let lengths: Vec<usize> = found.iter().map(Vec::len).collect();
            assert!(lengths[0] < lengths[2], "{what}: no row leaves before another");
            for (row, found) in rows.iter().zip(&found) {
                let alone = replies(&model, &[&by_row()], std::slice::from_ref(row), &config)?;
                assert_eq!(*found, alone[0], "{what}");
            }
        }
    }
    Ok(())
}

/// A batch that an adapter refuses is an error before a token of any batch is generated.
#[test]
fn rows_of_later_batches_are_refused_before_the_first_is_begun() -> Outcome {
    struct Picky;
    impl Adapter for Picky {
        fn method(&self) -> &str {
            "picky"
        }

        fn parameters(&self) -> Vec<Parameter> {
            Vec::new()
        }

        fn subspace_size(&self) -> Option<i64> {
            Some(1)
        }

        fn hooks<'a>(&'a self, layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
            match layout.rows().iter().any(|row| row.subspace.is_some()) {
                true => Err(Error::Adapter { reason: "a subspace".into() }),
                false => Ok(Box::new(reft_models::NoHooks)),
            }
        }

        fn save(&self, _dir: &Path) -> Result<()> {
            Ok(())
        }
    }
    let model = tiny_llama()?;
    let mut rows = tiny_rows()?;
    rows[2].subspace = Some(vec![0]);
    for batch_size in [1, 3] {
        let (stack, mut tokens) = (AdapterStack::one(&Picky), 0);
        let batch_size = Some(batch_size);
        let config =
            GenerationConfig { max_new_tokens: 2, batch_size, ..GenerationConfig::default() };
        let refused = generate(&model, &stack, &rows, &config, &mut |_, _| {
            tokens += 1;
            ControlFlow::Continue(())
        });
        assert!(matches!(refused, Err(Error::Adapter { .. })), "{refused:?}");
        assert_eq!(tokens, 0);
    }
    Ok(())
}

#[test]
fn sizes_of_edits_are_relative_to_what_is_edited() -> Outcome {
    let model = tiny_llama()?;
    let row = || Row::prompt(vec![1, 7, 9, 4, 30]);
    let sizes = |stack: &AdapterStack| stack.edit_sizes(&model, row());
    let is = |found: Vec<f64>, expected: f64| {
        // f32: a difference of neighbours in 24 bits
        let is_near = |size: &f64| (size - expected).abs() < 1e-5;
        assert!(found.len() == 5 && found.iter().all(is_near), "{found:?} {expected}");
    };
    is(sizes(&AdapterStack::EMPTY)?, 0.0);
    let [embeddings, residual, input, output] = POINTS.map(|point| Scale::at(point, 1.25));
    is(sizes(&AdapterStack::one(&embeddings))?, 0.0);
    for scale in [&residual, &input, &output] {
        is(sizes(&AdapterStack::one(scale))?, 0.25);
    }
    let weaker = StackEntry { strength: -0.5, ..StackEntry::from(&input as &dyn Adapter) };
    is(sizes(&AdapterStack::new(vec![weaker.clone()])?)?, 0.125);
    // the largest change of several points counts
    let both = AdapterStack::new(vec![weaker, StackEntry::from(&output as &dyn Adapter)])?;
    is(sizes(&both)?, 0.25);
    // virtual tokens belong to no row
    let mut behind = Scale::at(POINTS[1], 0.5);
    behind.virtual_tokens = 3;
    is(sizes(&AdapterStack::one(&behind))?, 0.5);
    let long = Row::prompt(vec![1; model.description().max_position_embeddings as usize]);
    let refused = AdapterStack::one(&behind).edit_sizes(&model, long);
    assert!(matches!(refused, Err(Error::ContextFull { .. })), "{refused:?}");
    Ok(())
}
