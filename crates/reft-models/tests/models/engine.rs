//! Requests that come and go, each with its own adapters, against the definition: one row, no cache, everything recomputed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRng, TestRunner};
use reft_methods::{
    LAYERS, MAX_EDIT_NORM, MethodOptions, N_VIRTUAL_TOKENS, ORTHONORMAL_MAP, POSITIONS, RANK,
    TOKENS, resolve,
};
use reft_models::{
    Adapter, AdapterStack, Decoder, Engine, EngineOptions, Error, Event, Finish, GenerationConfig,
    Layout, Mode, Model, PaddingSide, Placement, Request, Row, StackEntry, TokenLogprobs,
};
use reft_test_support::{Outcome, disturb, oracle};
use tch::{Device, Kind, Tensor, no_grad};

use crate::oracle::tiny_llama;

/// An adapter whose parameters are far from their start: scales, and the model's own weights, keep it under the noise; the noise of `seed`
/// replaces all others. A rotation is the Q of its noise, so nothing depends on a generator that other tests draw from meanwhile.
fn adapter(
    model: &Decoder,
    method: &str,
    options: MethodOptions,
    seed: i64,
) -> Outcome<Box<dyn Adapter>> {
    let options = match method {
        "loreft" => options.with(&ORTHONORMAL_MAP, "qr"),
        _ => options,
    };
    let built = resolve(method, &options, model.description())?.build(model, "tiny")?;
    let adapter = built.into_iter().next().ok_or("no adapter")?;
    let parameters = adapter.parameters().into_iter().map(|p| {
        let is_scale = !p.weight_decay && !p.is_rotation;
        (p.tensor, is_scale || method == "full")
    });
    disturb(parameters, seed);
    Ok(adapter)
}

/// Adapters of every kind: edits at several places, methods that act on replies, methods with tokens before prompts.
fn adapters(model: &Decoder) -> Outcome<Vec<Box<dyn Adapter>>> {
    let options = MethodOptions::default;
    let edits = |layers: [i64; 2], positions: &str| {
        options().with(&RANK, 3).with(&LAYERS, layers).with(&POSITIONS, positions)
    };
    Ok(vec![
        adapter(model, "loreft", edits([0, 1], "f2+l2"), 1)?,
        adapter(model, "loreft", edits([1, 3], "l1"), 2)?,
        adapter(model, "lora", options().with(&RANK, 2), 3)?,
        adapter(model, "dora", options().with(&RANK, 2), 4)?,
        adapter(model, "ia3", options(), 5)?,
        adapter(model, "prefix", options().with(&N_VIRTUAL_TOKENS, 3), 6)?,
        adapter(model, "prompt", options().with(&N_VIRTUAL_TOKENS, 2), 7)?,
        adapter(model, "lora", options().with(&RANK, 2).with(&TOKENS, "prompt"), 8)?,
        adapter(model, "direft", edits([0, 2], "all"), 9)?,
    ])
}

/// Stacks as (index of the adapter, strength): the plain model, each adapter alone, and two together.
const STACKS: [&[(usize, f64)]; 13] = [
    &[],
    &[(0, 1.0)],
    &[(1, 1.0)],
    &[(2, 1.0)],
    &[(3, 1.0)],
    &[(4, 1.0)],
    &[(5, 1.0)],
    &[(6, 1.0)],
    &[(7, 1.0)],
    &[(8, 1.0)],
    &[(0, 0.5), (2, 1.0)],
    &[(1, 1.0), (5, 1.0)],
    &[(2, 1.0), (7, 0.5)],
];

fn stack<'a>(adapters: &'a [Box<dyn Adapter>], which: usize) -> Outcome<AdapterStack<'a>> {
    let entry = |(adapter, strength): &(usize, f64)| StackEntry {
        strength: *strength,
        ..StackEntry::from(&*adapters[*adapter])
    };
    Ok(AdapterStack::new(STACKS[which].iter().map(entry).collect())?)
}

/// The logits of the next token, computed without a cache.
fn next_logits(model: &dyn Model, stack: &AdapterStack, row: &Row) -> Outcome<Tensor> {
    let layout = stack.layout(Layout::new(vec![row.clone()], PaddingSide::Right)?);
    let mut hooks = stack.hooks(&layout, Mode::Eval)?;
    let logits = no_grad(|| model.row_logits(&layout, &mut hooks))?;
    Ok(logits[0].select(0, -1))
}

/// A request: its step of arrival, prompt, stack and reply length, and the number of tokens after which it is cancelled, if it is.
#[derive(Debug, Clone)]
struct Arrival {
    step: usize,
    prompt: Vec<i64>,
    stack: usize,
    new_tokens: usize,
    given_up: Option<usize>,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    // some prompts share a beginning of more than a block of tokens
    let own = prop::collection::vec(3i64..120, 1..14);
    let prompt = (0usize..3, own).prop_map(|(blocks, own)| {
        let common = (0..20 * blocks as i64).map(|i| 3 + i * 7 % 110);
        common.chain(own).collect::<Vec<i64>>()
    });
    let given_up = prop::option::weighted(0.2, 1usize..6);
    (0usize..12, prompt, 0..STACKS.len(), 1usize..10, given_up).prop_map(
        |(step, prompt, stack, new_tokens, given_up)| Arrival {
            step,
            prompt,
            stack,
            new_tokens,
            given_up,
        },
    )
}

/// The number of replies compared, and of replies that differ from the reference at two equally likely tokens.
#[derive(Default)]
struct Compared {
    replies: usize,
    ties: usize,
    /// The widest gap between such tokens, as a share of the tolerance.
    widest: f64,
}

/// Tolerance for the gap between the logits of two tokens that sums in another order may exchange: a ten-thousandth of the largest logit in
/// f32, two units in its last place in bf16.
fn closeness(kind: Kind, logits: &Tensor) -> f64 {
    let largest = logits.abs().max().double_value(&[]);
    match kind {
        Kind::BFloat16 => 2.0 * (largest.log2().floor() - 7.0).exp2(),
        _ => 1e-4 * largest,
    }
}

/// A reply's tokens, each with the most likely tokens at its position.
type Scored = Vec<(i64, TokenLogprobs)>;

/// Runs the engine until it is idle; returns the reply to each arrival, or `None` if it was not completed.
fn answered(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    arrivals: &[Arrival],
    options: EngineOptions,
) -> Outcome<Vec<Option<Scored>>> {
    let mut engine = Engine::new(model, options)?;
    let mut replies: Vec<(Scored, Option<Finish>)> = vec![Default::default(); arrivals.len()];
    let mut of_id: HashMap<u64, usize> = HashMap::new();
    for step in 0.. {
        for (i, arrival) in arrivals.iter().enumerate().filter(|(_, arrival)| arrival.step == step)
        {
            let config = GenerationConfig {
                max_new_tokens: arrival.new_tokens,
                logprobs: Some(8),
                ..GenerationConfig::default()
            };
            let (row, adapters) =
                (Row::prompt(arrival.prompt.clone()), stack(adapters, arrival.stack)?);
            of_id.insert(engine.submit(Request { row, adapters, config, stream: 0 })?, i);
        }
        let (_, in_flight) = engine.requests();
        assert!(in_flight <= options.rows);
        for event in engine.step()? {
            let Event::Token { id, token, finish, logprobs: Some(logprobs) } = event else {
                return Err(format!("{event:?}").into());
            };
            let i = of_id[&id];
            let (ids, ended) = &mut replies[i];
            if *ended == Some(Finish::Cancelled) {
                continue; // an event of the step of its cancellation
            }
            assert!(ended.is_none(), "it goes on after its end");
            ids.push((token, logprobs));
            *ended = finish;
            if arrivals[i].given_up == Some(ids.len()) && finish.is_none() {
                engine.cancel(id);
                *ended = Some(Finish::Cancelled);
            }
        }
        if step > 12 && engine.is_idle() {
            break;
        }
    }
    let whole =
        |(ids, ended): (Scored, Option<Finish>)| (ended == Some(Finish::Length)).then_some(ids);
    Ok(replies.into_iter().map(whole).collect())
}

/// Each reply equals the reply to the request alone, except for equally likely tokens; in f32 it also follows the definition.
fn compare(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    (arrivals, options): (&[Arrival], EngineOptions),
    compared: &mut Compared,
) -> Outcome {
    let together = answered(model, adapters, arrivals, options)?;
    for (arrival, found) in arrivals.iter().zip(together) {
        let Some(found) = found else {
            assert!(arrival.given_up.is_some(), "it has no end: {arrival:?}");
            continue;
        };
        compared.replies += 1;
        assert_eq!(found.len(), arrival.new_tokens);
        let stack = stack(adapters, arrival.stack)?;
        if model.kind() == Kind::Float {
            follows_the_definition(model, &stack, arrival, &found)?;
        }
        let asked = std::slice::from_ref(arrival);
        let alone = answered(model, adapters, asked, EngineOptions::default())?;
        let alone = alone.into_iter().next().flatten().ok_or("it has no end alone")?;
        let Some(at) = alone.iter().zip(&found).position(|(alone, found)| alone.0 != found.0)
        else {
            continue;
        };
        let ((own, likely), (other, _)) = (&alone[at], &found[at]);
        let gap = likely.top.iter().find(|(token, _)| token == other);
        let gap = gap.map(|(_, of_other)| f64::from(likely.logprob - of_other));
        let gap = gap.ok_or(format!("{arrival:?}: {other} is none of the two likeliest"))?;
        let logits = next_logits(model, &stack, &row_with(arrival, &alone[..at]))?;
        let parts = gap / closeness(model.kind(), &logits);
        compared.widest = compared.widest.max(parts);
        // log-probabilities are in f32: their difference is that of the logits up to a thousandth of a unit
        assert!(parts <= 1.001, "{arrival:?}: {other} for {own}, {parts} of what is allowed");
        compared.ties += 1;
    }
    Ok(())
}

/// The prompt of an arrival and the first tokens of its reply.
fn row_with(arrival: &Arrival, reply: &[(i64, TokenLogprobs)]) -> Row {
    let mut row = Row::prompt(arrival.prompt.clone());
    row.input_ids.extend(reply.iter().map(|(token, _)| token));
    row
}

/// Each token is the most likely by the definition, up to the first with an equally likely alternative.
fn follows_the_definition(
    model: &Decoder,
    stack: &AdapterStack,
    arrival: &Arrival,
    found: &[(i64, TokenLogprobs)],
) -> Outcome {
    for (at, (token, _)) in found.iter().enumerate() {
        let logits = next_logits(model, stack, &row_with(arrival, &found[..at]))?;
        let (best, own) = (logits.max().double_value(&[]), logits.double_value(&[*token]));
        if logits.argmax(-1, false).int64_value(&[]) != *token {
            let close = closeness(model.kind(), &logits);
            assert!(best - own <= close, "{arrival:?}: {token}, {} below the best", best - own);
            break;
        }
    }
    Ok(())
}

/// In deterministic mode each reply equals the reply to the request alone, bit for bit.
fn compare_bits(
    model: &Decoder,
    adapters: &[Box<dyn Adapter>],
    arrivals: &[Arrival],
    options: EngineOptions,
) -> Outcome {
    let options = EngineOptions { deterministic: true, ..options };
    let together = answered(model, adapters, arrivals, options)?;
    for (arrival, found) in arrivals.iter().zip(together) {
        let alone = answered(model, adapters, std::slice::from_ref(arrival), options)?;
        if found != alone[0] {
            return Err(format!("{arrival:?}: {found:?}, alone {:?}", alone[0]).into());
        }
    }
    Ok(())
}

/// Requests that arrive and are cancelled at random, with engines of many sizes.
fn arrivals_at_random(kind: Kind) -> Outcome {
    tch::set_num_threads(1); // a tiny model is slower with more threads while tests run in parallel
    let model = Decoder::open(&oracle("tiny_llama"), kind, Device::Cpu)?;
    let adapters = adapters(&model)?;
    let cached = prop::option::of(70usize..160);
    let prefixes = prop::sample::select(vec![0, 32, 1000]);
    let cases = (prop::collection::vec(arrival(), 1..14), 1usize..9, 1usize..40, cached, prefixes);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let mut runner = match kind {
        // rounding in bf16 has no bound for all prompts, so the same, checked cases are used in every run
        Kind::BFloat16 => {
            let rng = TestRng::deterministic_rng(config.rng_algorithm);
            TestRunner::new_with_rng(config, rng)
        }
        _ => TestRunner::new(config),
    };
    let all = RefCell::new(Compared::default()); // a runner's closure is Fn
    let tried =
        runner.run(&cases, |(arrivals, rows, prefill_tokens, cached_tokens, prefix_tokens)| {
            let options = EngineOptions {
                rows,
                prefill_tokens,
                cached_tokens,
                prefix_tokens,
                deterministic: false,
            };
            let of_case = |case: &mut Compared| {
                compare(&model, &adapters, (&arrivals, options), case)?;
                compare_bits(&model, &adapters, &arrivals, options)
            };
            of_case(&mut all.borrow_mut()).map_err(|error| TestCaseError::fail(error.to_string()))
        });
    tried.map_err(|error| error.to_string())?;
    let each: Vec<Arrival> = (0..STACKS.len())
        .map(|stack| Arrival {
            step: stack / 3,
            prompt: (0..4 + stack as i64).map(|t| 5 + (t * 31 + stack as i64) % 100).collect(),
            stack,
            new_tokens: 12,
            given_up: None,
        })
        .collect();
    let mut compared = all.into_inner();
    let at_random = compared.replies;
    compare(&model, &adapters, (&each, EngineOptions::default()), &mut compared)?;
    assert_eq!(compared.replies - at_random, STACKS.len());
    eprintln!(
        "{kind:?}: {} of {} replies are others than alone where tokens are as likely, their logits apart by {:.2} of what is allowed",
        compared.ties, compared.replies, compared.widest
    );
    Ok(())
}

#[test]
fn replies_do_not_depend_on_what_else_is_in_flight() -> Outcome {
    arrivals_at_random(Kind::Float)
}

#[test]
fn replies_in_bf16_do_not_depend_on_what_else_is_in_flight() -> Outcome {
    arrivals_at_random(Kind::BFloat16)
}

#[test]
fn a_request_that_fails_leaves_the_others_alone() -> Outcome {
    let model = tiny_llama()?;
    let broken = adapter(&model, "loreft", MethodOptions::default().with(&RANK, 2), 1)?;
    for parameter in broken.parameters() {
        let _ = no_grad(|| parameter.tensor.shallow_clone().fill_(f64::NAN));
    }
    let config = GenerationConfig { max_new_tokens: 4, ..GenerationConfig::default() };
    let request = |adapters: AdapterStack<'static>| Request {
        row: Row::prompt(vec![5, 6, 7]),
        adapters,
        config: config.clone(),
        stream: 0,
    };
    let mut engine = Engine::new(&model, EngineOptions::default())?;
    let good = engine.submit(request(AdapterStack::EMPTY))?;
    let bad = Request { adapters: AdapterStack::one(&*broken), ..request(AdapterStack::EMPTY) };
    let bad = engine.submit(bad)?;
    let (mut tokens, mut failures) = (0, Vec::new());
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { id, .. } if id == good => tokens += 1,
                Event::Failed { id, error } => failures.push((id, error.to_string())),
                other => return Err(format!("{other:?}").into()),
            }
        }
    }
    assert_eq!(tokens, 4);
    assert!(
        matches!(&failures[..], [(id, error)] if *id == bad && error.contains("NaN")),
        "{failures:?}"
    );
    Ok(())
}

#[test]
fn what_can_never_be_done_is_refused_when_it_comes() -> Outcome {
    let model = tiny_llama()?;
    let full = adapter(&model, "full", MethodOptions::default(), 1)?;
    let options = EngineOptions { cached_tokens: Some(20), ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options)?;
    let request = |n: i64, new_tokens: usize| Request {
        row: Row::prompt((0..n).map(|i| 5 + i).collect()),
        adapters: AdapterStack::EMPTY,
        config: GenerationConfig { max_new_tokens: new_tokens, ..GenerationConfig::default() },
        stream: 0,
    };
    let refused =
        |refused: Result<u64, Error>| refused.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused(engine.submit(request(10, 11))).contains("come to 21 keys"));
    assert!(refused(engine.submit(request(0, 3))).contains("without tokens"));
    let beyond = Request { row: Row::prompt(vec![1 << 40]), ..request(3, 3) };
    assert!(refused(engine.submit(beyond)).contains("1099511627776"));
    engine.submit(request(3, 3))?;
    let weights = Request { adapters: AdapterStack::one(&*full), ..request(3, 3) };
    assert!(refused(engine.submit(weights)).contains("shares no batch"));
    while !engine.is_idle() {
        engine.step()?;
    }
    let weights = Request { adapters: AdapterStack::one(&*full), ..request(3, 3) };
    assert!(engine.submit(weights).is_ok(), "alone it may");
    Ok(())
}

/// A long beginning is computed for the first adapter and cached for the second, up to the first token that either touches.
#[test]
fn what_prompts_begin_with_is_computed_once_for_all_adapters() -> Outcome {
    let model = tiny_llama()?;
    let adapters = adapters(&model)?;
    let common: Vec<i64> = (0..50).map(|i| 3 + i * 7 % 110).collect();
    let options = EngineOptions { prefix_tokens: 64, ..EngineOptions::default() };
    let mut engine = Engine::new(&model, options)?;
    let mut reused = Vec::new();
    // the plain model, l1, the same l1, LoRA on all tokens, f2+l2, a prefix, the plain model
    for which in [0, 2, 2, 3, 1, 6, 0] {
        let before = engine.prefixes().0;
        let prompt = common.iter().copied().chain([100 + which as i64]).collect();
        let config = GenerationConfig { max_new_tokens: 3, ..GenerationConfig::default() };
        let (row, adapters) = (Row::prompt(prompt), stack(&adapters, which)?);
        engine.submit(Request { row, adapters, config, stream: 0 })?;
        while !engine.is_idle() {
            engine.step()?;
        }
        reused.push(engine.prefixes().0 - before);
    }
    assert_eq!(reused, [0, 48, 48, 0, 0, 0, 48]);
    assert_eq!(engine.prefixes().1, 48, "what an adapter has touched is not kept");
    Ok(())
}

/// Runs an engine until it is idle and passes on its events; returns the reply to each request.
fn replies_of(
    engine: &mut Engine,
    events: &mut dyn FnMut(&Event),
) -> Outcome<HashMap<u64, Vec<i64>>> {
    let mut replies: HashMap<u64, Vec<i64>> = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step()? {
            events(&event);
            let Event::Token { id, token, .. } = event else {
                return Err(format!("{event:?}").into());
            };
            replies.entry(id).or_default().push(token);
        }
    }
    Ok(replies)
}

#[test]
fn shared_adapters_reply_as_borrowed_ones_and_go_with_their_last_request() -> Outcome {
    let model = tiny_llama()?;
    let shared: Vec<Rc<dyn Adapter>> = adapters(&model)?.into_iter().map(Rc::from).collect();
    let alive: Vec<_> = shared.iter().map(Rc::downgrade).collect();
    // stacks in reverse order, so that the plain model comes last
    let stacks = || (0..STACKS.len()).rev();
    let row = |which: usize| Row::prompt((0..5 + which as i64).map(|t| 7 + t * 11 % 90).collect());
    let config = GenerationConfig { max_new_tokens: 6, ..GenerationConfig::default() };
    let expected = {
        let mut borrowing = Engine::new(&model, EngineOptions::default())?;
        for which in stacks() {
            let entries = STACKS[which].iter().map(|(adapter, strength)| StackEntry {
                strength: *strength,
                ..StackEntry::from(&*shared[*adapter])
            });
            let adapters = AdapterStack::new(entries.collect())?;
            let config = config.clone();
            borrowing.submit(Request { row: row(which), adapters, config, stream: 0 })?;
        }
        replies_of(&mut borrowing, &mut |_| {})?
    };
    let mut sharing = Engine::new(&model, EngineOptions::default())?;
    for which in stacks() {
        let entries = STACKS[which].iter().map(|(adapter, strength)| StackEntry {
            strength: *strength,
            ..StackEntry::from(Rc::clone(&shared[*adapter]))
        });
        let adapters = AdapterStack::new(entries.collect())?;
        let config = config.clone();
        sharing.submit(Request { row: row(which), adapters, config, stream: 0 })?;
    }
    drop(shared);
    assert!(alive.iter().all(|adapter| adapter.strong_count() > 0), "gone before their requests");
    let found = replies_of(&mut sharing, &mut |_| {})?;
    assert_eq!(found, expected);
    let of_base = &found[&(STACKS.len() as u64 - 1)];
    assert!(found.values().any(|reply| reply != of_base), "the test has no power");
    let kept: Vec<usize> = alive.iter().map(std::rc::Weak::strong_count).collect();
    assert_eq!(kept, vec![0; alive.len()], "adapters that nobody uses are kept");
    Ok(())
}

#[test]
fn tokens_are_as_likely_as_the_model_says() -> Outcome {
    let model = tiny_llama()?;
    let adapters = adapters(&model)?;
    for (which, temperature) in [(0, 0.0), (8, 0.0), (1, 1.5)] {
        let stack = stack(&adapters, which)?;
        let mut row = Row::prompt(vec![5, 9, 23, 4]);
        let config = GenerationConfig {
            max_new_tokens: 6,
            temperature,
            logprobs: Some(3),
            ..GenerationConfig::default()
        };
        let mut engine = Engine::new(&model, EngineOptions::default())?;
        engine.submit(Request { row: row.clone(), adapters: stack.clone(), config, stream: 0 })?;
        let mut told = Vec::new();
        replies_of(&mut engine, &mut |event| {
            if let Event::Token { token, logprobs: Some(logprobs), .. } = event {
                told.push((*token, logprobs.clone()));
            }
        })?;
        assert_eq!(told.len(), 6);
        for (token, logprobs) in told {
            let all = next_logits(&model, &stack, &row)?.log_softmax(-1, Kind::Double);
            let close = |id: i64, told: f32| {
                // f32 logits of size 1 or so, with a cache and without: measured 2e-6
                (all.double_value(&[id]) - f64::from(told)).abs() < 2e-5
            };
            assert!(close(token, logprobs.logprob), "{token}: {logprobs:?}");
            let best = all.topk(3, -1, true, true).0;
            assert_eq!(logprobs.top.len(), 3);
            for (i, (id, told)) in logprobs.top.iter().enumerate() {
                assert!(close(*id, *told), "{id}: {logprobs:?}");
                let expected = best.double_value(&[i as i64]);
                assert!((expected - f64::from(*told)).abs() < 2e-5, "{expected}: {logprobs:?}");
            }
            row.input_ids.push(token);
        }
    }
    Ok(())
}

/// The tokens of a reply with the bits of their log-probabilities, and those of the most likely alternatives.
type Bits = Vec<(i64, u32, Vec<(i64, u32)>)>;

/// In deterministic mode a reply is the same bit for bit whatever else is in flight, its log-probabilities included.
#[test]
fn a_deterministic_reply_is_the_same_bits_whatever_else_runs() -> Outcome {
    let model = tiny_llama()?;
    let adapters = adapters(&model)?;
    let options = EngineOptions {
        rows: 5,
        prefill_tokens: 7,
        prefix_tokens: 1000,
        deterministic: true,
        ..EngineOptions::default()
    };
    let request = |which: usize| -> Outcome<Request> {
        // prompts of many lengths with the same beginning
        let prompt = (0..20 + 3 * which as i64).map(|t| 7 + t * 11 % 90).collect();
        let config = GenerationConfig {
            max_new_tokens: 6 + which,
            logprobs: Some(4),
            ..GenerationConfig::default()
        };
        let adapters = stack(&adapters, which)?;
        Ok(Request { row: Row::prompt(prompt), adapters, config, stream: 0 })
    };
    let run = |engine: &mut Engine| -> Outcome<HashMap<u64, Bits>> {
        let mut bits: HashMap<u64, Bits> = HashMap::new();
        replies_of(engine, &mut |event| {
            if let Event::Token { id, token, logprobs: Some(logprobs), .. } = event {
                let top = logprobs.top.iter().map(|(id, x)| (*id, x.to_bits())).collect();
                bits.entry(*id).or_default().push((*token, logprobs.logprob.to_bits(), top));
            }
        })?;
        Ok(bits)
    };
    let mut together = Engine::new(&model, options)?;
    let ids: Vec<u64> = (0..STACKS.len())
        .map(|which| -> Outcome<u64> {
            let id = together.submit(request(which)?)?;
            together.cancel(id); // and some that never run
            Ok(together.submit(request(which)?)?)
        })
        .collect::<Outcome<_>>()?;
    let found = run(&mut together)?;
    for (which, id) in ids.iter().enumerate() {
        let mut alone = Engine::new(&model, options)?;
        let own = alone.submit(request(which)?)?;
        assert_eq!(found[id], run(&mut alone)?[&own], "stack {which}");
    }
    assert_eq!(together.prefixes(), (0, 0), "a prefix was computed in another batch");
    // for contrast: in a batch the last bits change, otherwise this test shows nothing
    let mut batch = Engine::new(&model, EngineOptions { deterministic: false, ..options })?;
    for which in 0..STACKS.len() {
        batch.submit(request(which)?)?;
    }
    let batched = run(&mut batch)?;
    assert!(ids.iter().enumerate().any(|(which, id)| batched[&(which as u64)] != found[id]));
    Ok(())
}

/// The low-rank updates of rows with different adapters are computed together and equal those computed alone, also while rows join, leave and
/// change slots.
#[test]
fn rows_of_low_rank_are_computed_together_as_each_alone() -> Outcome {
    let model = tiny_llama()?;
    let of_rank = |(rank, seed): (i64, i64)| {
        adapter(&model, "lora", MethodOptions::default().with(&RANK, rank), seed)
    };
    let adapters: Vec<Box<dyn Adapter>> =
        [2, 2, 3, 2, 3, 2].into_iter().zip(1..).map(of_rank).collect::<Outcome<_>>()?;
    let request = |which: usize, new_tokens: usize| -> Outcome<Request> {
        let strength = if which == 3 { 0.5 } else { 1.0 };
        let entry = StackEntry { strength, ..StackEntry::from(&*adapters[which]) };
        let config = GenerationConfig {
            max_new_tokens: new_tokens,
            logprobs: Some(1),
            ..GenerationConfig::default()
        };
        let row = Row::prompt((0..4 + which as i64).map(|t| 9 + t * 13 % 80).collect());
        Ok(Request { row, adapters: AdapterStack::new(vec![entry])?, config, stream: 0 })
    };
    let run = |engine: &mut Engine| -> Outcome<HashMap<u64, Vec<(i64, f32)>>> {
        let mut told: HashMap<u64, Vec<(i64, f32)>> = HashMap::new();
        replies_of(engine, &mut |event| {
            if let Event::Token { id, token, logprobs: Some(own), .. } = event {
                told.entry(*id).or_default().push((*token, own.logprob));
            }
        })?;
        Ok(told)
    };
    // more requests than rows: they end at different steps, and others take their slots
    let wanted: Vec<(usize, usize)> =
        (0..18).map(|i| (i * 5 % adapters.len(), 3 + i * 7 % 9)).collect();
    let mut together = Engine::new(&model, EngineOptions { rows: 5, ..EngineOptions::default() })?;
    let ids = wanted.iter().map(|(which, n)| Ok(together.submit(request(*which, *n)?)?));
    let ids: Vec<u64> = ids.collect::<Outcome<_>>()?;
    let found = run(&mut together)?;
    for ((which, n), id) in wanted.into_iter().zip(ids) {
        let mut alone = Engine::new(&model, EngineOptions::default())?;
        let own = alone.submit(request(which, n)?)?;
        let expected = &run(&mut alone)?[&own];
        assert_eq!(found[&id].len(), expected.len());
        for ((token, logprob), (expected, alone)) in found[&id].iter().zip(expected) {
            assert_eq!(token, expected, "adapter {which}");
            // f32 sums in another order
            assert!((logprob - alone).abs() < 2e-5, "adapter {which}: {logprob}, alone {alone}");
        }
    }
    Ok(())
}

/// Different prompt edits of rows are computed together, with the same hidden states as alone. Some edits overlap in a short prompt, have a
/// bound, or change only some coordinates.
#[test]
fn edits_of_rows_are_computed_together_as_each_alone() -> Outcome {
    let model = tiny_llama()?;
    let edits = |method: &str, rank: i64, positions: &str, seed: i64| {
        let options = MethodOptions::default().with(&RANK, rank).with(&POSITIONS, positions);
        adapter(&model, method, options, seed)
    };
    let bounded = MethodOptions::default().with(&RANK, 2).with(&MAX_EDIT_NORM, 0.3);
    let adapters = [
        edits("loreft", 2, "f2+l2", 1)?,
        edits("loreft", 2, "f3+l2", 2)?,
        edits("loreft", 3, "l1", 3)?,
        edits("direft", 2, "f2+l2", 4)?,
        edits("noreft", 2, "all", 5)?,
        adapter(&model, "loreft", bounded, 6)?,
    ];
    let rows: Vec<(usize, f64, Row)> = (0..16usize)
        .map(|i| {
            let prompt = (0..1 + i as i64 * 5 % 11).map(|t| 9 + (t * 13 + i as i64) % 80);
            let subspace = (i == 5).then(|| vec![0]);
            let row = Row { subspace, ..Row::prompt(prompt.collect()) };
            (i % adapters.len(), if i % 4 == 3 { -0.5 } else { 1.0 }, row)
        })
        .collect();
    let request = |(which, strength, row): &(usize, f64, Row)| -> Outcome<Request> {
        let entry = StackEntry { strength: *strength, ..StackEntry::from(&*adapters[*which]) };
        let config =
            GenerationConfig { max_new_tokens: 2, logprobs: Some(1), ..Default::default() };
        let adapters = AdapterStack::new(vec![entry])?;
        Ok(Request { row: row.clone(), adapters, config, stream: 0 })
    };
    let mut together = Engine::new(&model, EngineOptions::default())?;
    let mut found: HashMap<u64, Vec<(i64, f32)>> = HashMap::new();
    for row in &rows {
        together.submit(request(row)?)?;
    }
    replies_of(&mut together, &mut |event| {
        if let Event::Token { id, token, logprobs: Some(own), .. } = event {
            found.entry(*id).or_default().push((*token, own.logprob));
        }
    })?;
    let mut changed = 0;
    for (id, row) in rows.iter().enumerate() {
        let stack = request(row)?.adapters;
        let own = next_logits(&model, &stack, &row.2)?.log_softmax(-1, Kind::Double);
        let plain =
            next_logits(&model, &AdapterStack::EMPTY, &row.2)?.log_softmax(-1, Kind::Double);
        let (token, logprob) = found[&(id as u64)][0];
        let off = (own.double_value(&[token]) - f64::from(logprob)).abs();
        assert!(off < 2e-5, "row {id}: {off}"); // f32 sums in another order
        changed += usize::from((&own - plain).abs().max().double_value(&[]) > 1e-2);
    }
    assert!(changed > 12, "{changed} of {} rows are edited: the test has no power", rows.len());
    Ok(())
}

/// A model in parts gives the same replies as in one piece, bit for bit in the log-probabilities: with different adapters, prompts with a common
/// beginning, and rows that join and leave.
#[test]
fn a_model_in_parts_answers_with_the_same_bits() -> Outcome {
    let arrival = |i: usize| {
        // each stack has one prompt with the common beginning, which is then in the prefix cache
        let begins_so = i.is_multiple_of(2) == (i < STACKS.len());
        let common = (0..20i64).map(|t| 3 + t * 7 % 110).filter(|_| begins_so);
        let prompt = common.chain((0..4 + i as i64 % 5).map(|t| 3 + (t * 11 + i as i64) % 100));
        let (step, stack) = (i / 4, i % STACKS.len());
        Arrival { step, prompt: prompt.collect(), stack, new_tokens: 3 + i % 5, given_up: None }
    };
    let arrivals: Vec<Arrival> = (0..2 * STACKS.len()).map(arrival).collect();
    let options = EngineOptions { rows: 7, prefix_tokens: 256, ..EngineOptions::default() };
    let open = |placement: Placement| {
        tch::set_num_threads(1);
        Decoder::open(&oracle("tiny_llama"), Kind::Float, placement)
    };
    let whole = open(Device::Cpu.into())?;
    let trained = adapters(&whole)?;
    let expected = answered(&whole, &trained, &arrivals, options)?;
    assert!(expected.iter().all(Option::is_some));
    for blocks in [&[1, 3][..], &[3, 1], &[1, 1, 1, 1]] {
        let parts: Vec<(Device, usize)> = blocks.iter().map(|n| (Device::Cpu, *n)).collect();
        let model = open(Placement::of_blocks(&parts)?)?;
        let own = adapters(&model)?;
        // parallel tests share the random generator, so the parameters are copied
        own.iter().zip(&trained).try_for_each(|(own, of)| own.load_state(&of.state()))?;
        assert_eq!(answered(&model, &own, &arrivals, options)?, expected, "{blocks:?}");
    }
    Ok(())
}
