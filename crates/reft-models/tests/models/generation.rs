//! Generation against transformers' recorded continuations, and against the same model without cache, batch or padding.

use crate::oracle::{rows, smollm2, tiny_llama};
use reft_test_support::{Outcome, assert_close, oracle, oracle_text, tensors};
use std::cell::RefCell;
use std::ops::ControlFlow;

use reft_core::{Init, InterventionConfig, Method, Parameter};
use reft_methods::{ReftAdapter, ReftConfig};
use reft_models::{
    Adapter, AdapterStack, BaseModel, Decoder, Error, Finish, Generated, GenerationConfig,
    HookPoint, Hooks, Layout, Mode, Model, NoHooks, PaddingSide, Result, Row, Span, generate,
};
use tch::{Device, Kind, Tensor};

const BOTH_SIDES: [PaddingSide; 2] = [PaddingSide::Left, PaddingSide::Right];

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ..GenerationConfig::default() }
}

fn run(
    model: &dyn Model,
    adapters: &[&dyn Adapter],
    rows: &[Row],
    config: &GenerationConfig,
) -> Result<Vec<Generated>> {
    let stack = AdapterStack::of(adapters)?;
    generate(model, &stack, rows, config, &mut |_, _| ControlFlow::Continue(()))
}

fn ids(replies: &[Generated]) -> Vec<Vec<i64>> {
    replies.iter().map(|reply| reply.ids.clone()).collect()
}

/// Three prompts of 14, 12 and 9 tokens.
fn tiny_prompts() -> Outcome<Vec<Row>> {
    let io = tensors("tiny_io.safetensors")?;
    rows(&io["input_ids"], &io["attention_mask"])
}

/// Greedy decoding by its definition: one row, no cache, everything recomputed for every token.
fn recomputed(
    model: &dyn Model,
    adapters: &AdapterStack,
    prompt: &Row,
    n: usize,
) -> Result<Vec<i64>> {
    let mut row = prompt.clone();
    for _ in 0..n {
        let layout = Layout::new(vec![row.clone()], PaddingSide::Right)?;
        let layout = adapters.layout(layout);
        let mut hooks = adapters.hooks(&layout, Mode::Eval)?;
        let logits = model.row_logits(&layout, &mut hooks)?;
        row.input_ids.push(logits[0].select(0, -1).argmax(0, false).int64_value(&[]));
    }
    Ok(row.input_ids.split_off(prompt.input_ids.len()))
}

/// LoReFT far from the identity, on two layers.
fn reft(decoder: &Decoder, positions: &str) -> Result<ReftAdapter> {
    tch::manual_seed(7);
    let intervention = InterventionConfig {
        init: Some(Init::Reference),
        ..InterventionConfig::new(Method::Loreft, 4)
    };
    let base = BaseModel::of(decoder.description(), "tiny");
    let config = ReftConfig::new(&intervention, vec![0, 1], positions.parse()?, base);
    ReftAdapter::new(config, decoder)
}

/// Trained input embeddings before the prompt, or trained keys and values before every layer's own: an example of a method outside
/// of this crate.
struct VirtualTokens {
    embeddings: Tensor,                             // [n, d]
    prefix: Option<(usize, Vec<(Tensor, Tensor)>)>, // n, per layer [n_kv, n, d_h]
}

impl VirtualTokens {
    fn prompt(decoder: &Decoder, n: i64) -> Self {
        tch::manual_seed(8);
        let d = decoder.description().hidden_size;
        Self { embeddings: Tensor::randn([n, d], (Kind::Float, Device::Cpu)), prefix: None }
    }

    fn prefix(decoder: &Decoder, n: i64) -> Self {
        let c = decoder.description();
        let random =
            || Tensor::randn([c.num_key_value_heads, n, c.head_dim], (Kind::Float, Device::Cpu));
        let layers = (0..c.num_hidden_layers).map(|_| (random(), random())).collect();
        Self { prefix: Some((n as usize, layers)), ..Self::prompt(decoder, 0) }
    }
}

struct VirtualHooks<'a>(&'a VirtualTokens);

impl Adapter for VirtualTokens {
    fn method(&self) -> &str {
        "virtual tokens"
    }

    fn parameters(&self) -> Vec<Parameter> {
        Vec::new()
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(VirtualHooks(self)))
    }

    fn virtual_tokens(&self) -> usize {
        self.embeddings.size()[0] as usize
    }

    fn prefix_length(&self) -> usize {
        self.prefix.as_ref().map_or(0, |(n, _)| *n)
    }

    fn save(&self, _dir: &std::path::Path) -> Result<()> {
        Ok(())
    }
}

impl Hooks for VirtualHooks<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        let indices = span.virtual_indices();
        let n = self.0.embeddings.size()[0];
        if !matches!(point, HookPoint::Embeddings) || n == 0 || indices.is_empty() {
            return Ok(h);
        }
        let rows = indices.len() as i64 / n;
        let size = h.size();
        let flat = h.flatten(0, 1);
        let embeddings = self.0.embeddings.repeat([rows, 1]);
        Ok(flat.index_copy(0, &Tensor::from_slice(&indices), &embeddings).view(&*size))
    }

    fn prefix_length(&self) -> usize {
        Adapter::prefix_length(self.0)
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        let b = span.layout.batch_size() as i64;
        let (key, value) = &self.0.prefix.as_ref()?.1[layer];
        let batched = |x: &Tensor| x.unsqueeze(0).repeat([b, 1, 1, 1]);
        Some((batched(key), batched(value)))
    }
}

/// Oracle: transformers 4.49, greedy, in `tests/oracle/smollm2/smollm2.json`.
#[test]
fn smollm2_continues_as_in_transformers_alone_and_batched() -> Outcome {
    let recorded =
        serde_json::from_str::<serde_json::Value>(&oracle_text("smollm2/smollm2.json")?)?;
    let decoder = smollm2()?;
    let of = |name: &str| -> std::result::Result<Vec<Vec<i64>>, Box<dyn std::error::Error>> {
        let cases = recorded["greedy"].as_array().ok_or("no greedy cases")?;
        cases.iter().map(|case| Ok(serde_json::from_value(case[name].clone())?)).collect()
    };
    let (prompts, expected) = (of("prompt_ids")?, of("new_ids")?);
    assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [8, 40, 32]);
    let rows: Vec<Row> = prompts.into_iter().map(Row::prompt).collect();
    let config = GenerationConfig { stop_ids: vec![2], ..greedy(40) };
    for (row, expected) in rows.iter().zip(&expected) {
        let reply = run(&decoder, &[], std::slice::from_ref(row), &config)?;
        assert_eq!(&reply[0].ids, expected);
    }
    let replies = run(&decoder, &[], &rows, &config)?;
    assert_eq!(ids(&replies), expected);
    let finishes: Vec<_> = replies.iter().map(|reply| reply.finish).collect();
    assert_eq!(finishes, [Finish::Stop, Finish::Length, Finish::Stop]);
    Ok(())
}

#[test]
fn cached_and_batched_equals_recomputed_row_by_row() -> Outcome {
    let prompts = tiny_prompts()?;
    let tiny = tiny_llama()?;
    // windows and normalised keys, with the model's recorded batch of 23, 17 and 9 tokens (context 64)
    let family = |name: &str| -> Outcome<(Decoder, Vec<Row>)> {
        let decoder = Decoder::open(&oracle("families").join(name), Kind::Float, Device::Cpu)?;
        let io = tensors(&format!("families/{name}/io.safetensors"))?;
        Ok((decoder, rows(&io["input_ids"], &io["attention_mask"])?))
    };
    for (decoder, rows) in [(tiny, prompts), family("mistral")?, family("qwen3")?] {
        let n = 24;
        let expected: Vec<Vec<i64>> = rows
            .iter()
            .map(|row| recomputed(&decoder, &AdapterStack::EMPTY, row, n))
            .collect::<Result<_>>()?;
        let found = ids(&run(&decoder, &[], &rows, &greedy(n))?);
        assert_eq!(found, expected, "{}", decoder.description().model_type);
        let two = GenerationConfig { batch_size: Some(2), ..greedy(n) };
        assert_eq!(ids(&run(&decoder, &[], &rows, &two)?), expected, "two at a time");
    }
    Ok(())
}

#[test]
fn adapters_generate_in_a_padded_batch_what_they_generate_alone() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let n = 16;
    let base = ids(&run(&decoder, &[], &rows, &greedy(n))?);
    let adapters: [Box<dyn Adapter>; 4] = [
        Box::new(reft(&decoder, "f2+l2")?),
        Box::new(reft(&decoder, "l1")?),
        Box::new(VirtualTokens::prompt(&decoder, 3)),
        Box::new(VirtualTokens::prefix(&decoder, 3)),
    ];
    for (i, adapter) in adapters.iter().enumerate() {
        let expected: Vec<Vec<i64>> = rows
            .iter()
            .map(|row| recomputed(&decoder, &AdapterStack::one(&**adapter), row, n))
            .collect::<Result<_>>()?;
        assert_ne!(expected, base, "test has no power: adapter {i} changes nothing");
        assert_eq!(ids(&run(&decoder, &[&**adapter], &rows, &greedy(n))?), expected, "{i}");
    }
    let (reft, prefix) = (&*adapters[0], &*adapters[3]);
    let both = ids(&run(&decoder, &[reft, prefix], &rows, &greedy(n))?);
    assert_ne!(
        both,
        ids(&run(&decoder, &[prefix], &rows, &greedy(n))?),
        "the first of two is lost"
    );
    Ok(())
}

#[test]
fn two_adapters_with_virtual_tokens_or_prefixes_are_refused() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let prompt = VirtualTokens::prompt(&decoder, 3);
    let prefix = VirtualTokens::prefix(&decoder, 2);
    for twice in [[&prompt as &dyn Adapter, &prompt], [&prefix, &prefix]] {
        assert!(matches!(
            run(&decoder, &twice, &rows, &greedy(2)),
            Err(Error::NotCombinable { .. })
        ));
    }
    let both = run(&decoder, &[&prompt, &prefix], &rows, &greedy(2))?;
    let of_prompt = run(&decoder, &[&prompt], &rows, &greedy(2))?;
    assert!(both.iter().all(|reply| (1..=2).contains(&reply.ids.len())));
    assert_ne!(ids(&both), ids(&of_prompt), "the prefix is not there");
    Ok(())
}

/// Decoding costs as much as with the base model: after the prefill only the cache depends on the adapter.
#[test]
fn decode_steps_are_bit_equal_to_the_base_model_given_the_same_cache() -> Outcome {
    let decoder = tiny_llama()?;
    let adapter = reft(&decoder, "f2+l2")?;
    for padding in BOTH_SIDES {
        let layout = Layout::new(tiny_prompts()?, padding)?;
        let input_ids = layout.input_ids(Device::Cpu);
        let prefill = || -> Result<_> {
            let mut hooks = adapter.hooks(&layout, Mode::Eval)?;
            let mut cache = decoder.kv_cache(3, 20);
            let h = decoder.hidden_states(
                &input_ids,
                &layout.whole(),
                Some(&mut cache),
                &mut *hooks,
            )?;
            drop(hooks);
            Ok((h, cache))
        };
        let (edited, mut cache) = prefill()?;
        let (_, mut same) = prefill()?;
        let plain = decoder.hidden_states(&input_ids, &layout.whole(), None, &mut NoHooks)?;
        assert!(
            (edited - plain).abs().max().double_value(&[]) > 0.1,
            "test has no power: nothing is edited"
        );
        let mut hooks = adapter.hooks(&layout, Mode::Eval)?;
        for step in 0..6 {
            let next = Tensor::from_slice(&[step * 7 + 1, step + 50, 90 - step]).unsqueeze(1);
            let column = layout.width() + step as usize;
            let span = Span { layout: &layout, columns: column..column + 1 };
            let with = decoder.hidden_states(&next, &span, Some(&mut cache), &mut *hooks)?;
            let without = decoder.hidden_states(&next, &span, Some(&mut same), &mut NoHooks)?;
            assert!(with.equal(&without), "step {step}, {padding:?}");
        }
    }
    Ok(())
}

#[test]
fn an_adapted_batch_of_one_equals_padded_batches() -> Outcome {
    let decoder = tiny_llama()?;
    let adapter = reft(&decoder, "f2+l2")?;
    let rows = tiny_prompts()?;
    let adapted = |rows: &[Row], padding| {
        let layout = Layout::new(rows.to_vec(), padding)?;
        let mut hooks = adapter.hooks(&layout, Mode::Eval)?;
        decoder.row_logits(&layout, &mut *hooks)
    };
    let (left, right) = (adapted(&rows, PaddingSide::Left)?, adapted(&rows, PaddingSide::Right)?);
    for (i, row) in rows.iter().enumerate() {
        let alone = &adapted(std::slice::from_ref(row), PaddingSide::Right)?[0];
        // f32, |logits| up to 6: sums over other row counts in another order, measured 4e-6
        assert_close("left-padded", &left[i], alone, 1e-5);
        assert_close("right-padded", &right[i], alone, 1e-5);
    }
    Ok(())
}

#[test]
fn samples_follow_from_the_seed_and_not_from_the_batch() -> Outcome {
    let decoder = tiny_llama()?;
    let mut rows = tiny_prompts()?;
    rows.push(rows[0].clone());
    let sampled = |seed, batch_size| -> Result<_> {
        let config = GenerationConfig {
            temperature: 1.3,
            top_k: Some(90),
            top_p: 0.98,
            seed,
            batch_size: Some(batch_size),
            ..greedy(20)
        };
        Ok(ids(&run(&decoder, &[], &rows, &config)?))
    };
    let expected = sampled(5, 4)?;
    for batch_size in 1..4 {
        assert_eq!(sampled(5, batch_size)?, expected, "{batch_size} at a time");
    }
    assert_ne!(sampled(6, 4)?, expected);
    assert_ne!(expected[0], expected[3], "equal prompts draw apart");
    Ok(())
}

#[test]
fn penalties_look_at_prompt_and_reply() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let config = GenerationConfig { no_repeat_ngram_size: Some(1), ..greedy(60) };
    for (row, reply) in rows.iter().zip(run(&decoder, &[], &rows, &config)?) {
        let mut seen: Vec<i64> = row.input_ids.clone();
        seen.sort_unstable();
        seen.dedup();
        let n = seen.len() + reply.ids.len();
        seen.extend(&reply.ids);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), n, "a token stands twice: {:?}", reply.ids);
    }
    let plain = ids(&run(&decoder, &[], &rows, &greedy(30))?);
    let penalty = GenerationConfig { repetition_penalty: 1.4, ..greedy(30) };
    let penalized = ids(&run(&decoder, &[], &rows, &penalty)?);
    let distinct = |replies: &[Vec<i64>]| {
        replies
            .iter()
            .map(|ids| ids.iter().collect::<std::collections::BTreeSet<_>>().len())
            .sum::<usize>()
    };
    assert!(distinct(&penalized) > distinct(&plain), "{penalized:?}\n{plain:?}");
    Ok(())
}

#[test]
fn finished_rows_leave_and_the_others_go_on_unchanged() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let full = ids(&run(&decoder, &[], &rows, &greedy(12))?);
    let stop = full[1][3];
    let config = GenerationConfig { stop_ids: vec![stop], ..greedy(12) };
    let mut streamed = vec![Vec::new(); 3];
    let replies = generate(&decoder, &AdapterStack::EMPTY, &rows, &config, &mut |row, id| {
        streamed[row].push(id);
        ControlFlow::Continue(())
    })?;
    assert_eq!(ids(&replies), streamed);
    for (reply, full) in replies.iter().zip(&full) {
        let end = full.iter().position(|&id| id == stop);
        assert_eq!(reply.ids, full[..end.map_or(12, |end| end + 1)]);
        assert_eq!(reply.finish, if end.is_some() { Finish::Stop } else { Finish::Length });
        assert_eq!(reply.text_ids(), &full[..end.unwrap_or(12)]);
    }
    assert!(replies.iter().any(|reply| reply.finish == Finish::Length), "test has no power");
    Ok(())
}

/// A batch of prompts needs no mask if no token has padding before it.
#[test]
fn prompts_of_a_batch_begin_together() -> Outcome {
    struct Begins(RefCell<Vec<usize>>);
    struct SeeLayout<'a>(&'a Begins);

    impl Adapter for Begins {
        fn method(&self) -> &str {
            "begins"
        }

        fn parameters(&self) -> Vec<Parameter> {
            Vec::new()
        }

        fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
            Ok(Box::new(SeeLayout(self)))
        }

        fn save(&self, _dir: &std::path::Path) -> Result<()> {
            Ok(())
        }
    }

    impl Hooks for SeeLayout<'_> {
        fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
            if matches!(point, HookPoint::Embeddings) && span.columns.start == 0 {
                let begins = (0..3).map(|row| span.layout.columns(row).start);
                self.0.0.borrow_mut().extend(begins);
            }
            Ok(h)
        }
    }

    let begins = Begins(RefCell::default());
    run(&tiny_llama()?, &[&begins], &tiny_prompts()?, &greedy(2))?;
    assert_eq!(begins.0.into_inner(), [0, 0, 0]);
    Ok(())
}

#[test]
fn the_caller_can_break_off() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let mut n = 0;
    let config = GenerationConfig { batch_size: Some(2), ..greedy(12) };
    let replies = generate(&decoder, &AdapterStack::EMPTY, &rows, &config, &mut |_, _| {
        n += 1;
        if n == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    assert_eq!(replies.iter().map(|reply| reply.ids.len()).collect::<Vec<_>>(), [3, 2, 0]);
    assert!(replies.iter().all(|reply| reply.finish == Finish::Cancelled));
    Ok(())
}

#[test]
fn prompts_and_replies_that_do_not_fit_into_the_context_are_refused() -> Outcome {
    let decoder = tiny_llama()?; // 256 positions
    let mut rows = tiny_prompts()?;
    rows.push(Row::prompt((0..251).map(|i| i % 128).collect()));
    let whole = run(&decoder, &[], &rows, &greedy(5))?;
    assert_eq!(whole.iter().map(|reply| reply.ids.len()).collect::<Vec<_>>(), [5; 4]);
    let refused = |adapters: &[&dyn Adapter], n| match run(&decoder, adapters, &rows, &greedy(n)) {
        Err(Error::ContextFull { rows, limit, before, new_tokens, room }) => {
            (rows, [limit, before, new_tokens, room])
        }
        other => panic!("not refused: {other:?}"),
    };
    let long = vec![("prompt 4".to_owned(), 251)];
    assert_eq!(refused(&[], 6), (long.clone(), [256, 0, 6, 250]));
    let [prefix, prompt] = [VirtualTokens::prefix(&decoder, 2), VirtualTokens::prompt(&decoder, 3)];
    assert_eq!(refused(&[&prefix, &prompt], 1), (long, [256, 5, 1, 250]));
    Ok(())
}

#[test]
fn impossible_requests_are_refused() -> Outcome {
    let decoder = tiny_llama()?;
    let rows = tiny_prompts()?;
    let with = |ids: Vec<i64>| [rows[0].clone(), Row::prompt(ids)];
    assert!(matches!(run(&decoder, &[], &[], &greedy(2)), Err(Error::EmptyBatch)));
    assert!(matches!(run(&decoder, &[], &with(vec![]), &greedy(2)), Err(Error::EmptyBatch)));
    for id in [128, -1] {
        let refused = run(&decoder, &[], &with(vec![5, id]), &greedy(2));
        assert!(
            matches!(refused, Err(Error::TokenId { id: found, vocab_size: 128 }) if found == id)
        );
    }
    assert!(matches!(
        run(&decoder, &[], &rows, &greedy(0)),
        Err(Error::Core(reft_core::Error::OptionValue { option: "max_new_tokens", .. }))
    ));
    let none = GenerationConfig { batch_size: Some(0), ..greedy(2) };
    assert!(matches!(
        run(&decoder, &[], &rows, &none),
        Err(Error::Core(reft_core::Error::OptionValue { option: "batch_size", .. }))
    ));
    Ok(())
}

#[test]
fn logits_that_are_nan_are_an_error_and_no_token() -> Outcome {
    let decoder = tiny_llama()?;
    let broken = VirtualTokens {
        embeddings: Tensor::full([1, 64], f64::NAN, (Kind::Float, Device::Cpu)),
        prefix: None,
    };
    for config in [greedy(3), GenerationConfig { temperature: 1.0, ..greedy(3) }] {
        let refused = run(&decoder, &[&broken], &tiny_prompts()?, &config);
        assert!(matches!(refused, Err(Error::NanLogits { index: 0, generated: 0 })), "{refused:?}");
    }
    Ok(())
}

#[test]
fn generation_leaves_no_graph() -> Outcome {
    let decoder = tiny_llama()?;
    let adapter = reft(&decoder, "l1")?;
    run(&decoder, &[&adapter], &tiny_prompts()?, &greedy(3))?;
    for parameter in adapter.parameters() {
        assert!(!parameter.tensor.grad().defined());
    }
    let h = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true) * 2.0;
    assert!(h.requires_grad(), "the caller's autograd is on again");
    Ok(())
}
