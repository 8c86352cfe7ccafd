use std::collections::VecDeque;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::adapters::by_row::Member;
use crate::generation::prefix_cache::{BLOCK, PrefixCache};
use crate::generation::sampling::{GenerationConfig, Sampler};
use crate::weights::quick_products::read;
use crate::{
    AdapterStack, ByRow, ContextLimit, Error, Finish, Head, Hooks, KvCache, KvPool, Layout, Mode,
    Model, PaddingSide, Result, Row, Span, StackAdapter, send,
};

/// Generates replies to requests in one batch. Requests may come at any time, each with its own adapters and options.
///
/// A prompt is computed alone or with other waiting prompts (prefill), with the hooks of its adapters. Then its row joins the batch, which
/// computes one token per row and step; each row has its own keys and values. ReFT edits hidden states of prompts only, so its
/// adapters add nothing to a step. Methods that act on replies too (LoRA, steering) are applied to their own rows. Rows join and leave at any
/// step.
///
/// A common beginning of prompts, such as a long system prompt, is computed once for all adapters. The shared part ends before the first token
/// that an adapter touches ([`EngineOptions::prefix_tokens`]).
///
/// Except for rounding, replies depend neither on other requests nor on cached prefixes. The engine has no thread of its own: call
/// [`Self::step`] while there is work.
pub struct Engine<'a> {
    model: &'a dyn Model,
    options: EngineOptions,
    waiting: VecDeque<Reply<'a>>,
    prefill: Option<Prefill<'a>>,
    /// In the order of the pool's slots.
    rows: Vec<Reply<'a>>,
    pool: KvPool,
    prefixes: PrefixCache,
    reused_tokens: u64,
    /// The parts of the batch that are computed together, until a row joins or leaves.
    batch: Option<Vec<Together<'a>>>,
    /// Hooks of the batches before the last change of rows, for reuse.
    earlier: Vec<ByRow<'a>>,
    next_id: u64,
}

/// Limits of an [`Engine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineOptions {
    /// Most rows in flight; later requests wait.
    pub rows: usize,
    /// Most prompt tokens in one pass: a longer prompt is computed in pieces, and the other rows get tokens in between.
    pub prefill_tokens: usize,
    /// Most keys that prompts and replies in flight may need, summed over all rows; `None`: no limit.
    pub cached_tokens: Option<usize>,
    /// Most tokens whose keys and values are cached for later prompts with the same beginning; 0: none.
    pub prefix_tokens: usize,
    /// Computes each row separately and shares no prefix: the order of sums does not depend on other requests, so a reply is reproduced bit for
    /// bit. Many requests then take as long as one after the other.
    pub deterministic: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            rows: 64,
            prefill_tokens: 2048,
            cached_tokens: None,
            prefix_tokens: 0,
            deterministic: false,
        }
    }
}

/// A request to an [`Engine`].
#[derive(Clone)]
pub struct Request<'a> {
    /// The prompt.
    pub row: Row,
    /// The adapters that it is used with.
    pub adapters: AdapterStack<'a>,
    /// How tokens are chosen, and when to stop. Its batch size is ignored.
    pub config: GenerationConfig,
    /// The number of the request's own stream of random numbers from the seed.
    pub stream: u64,
}

/// An outcome of a step for a request.
#[derive(Debug)]
pub enum Event {
    /// A token of its reply, a stop token included.
    Token {
        /// The request.
        id: u64,
        /// The token.
        token: i64,
        /// How likely it was, if [`GenerationConfig::logprobs`] asks.
        logprobs: Option<TokenLogprobs>,
        /// Whether it is the last one, and why.
        finish: Option<Finish>,
    },
    /// The request failed, and its tokens are discarded.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        error: Error,
    },
}

/// The log-probability of a token by the model's logits, before penalties, temperature, top-k and top-p.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, the most likely first.
    pub top: Vec<(i64, f32)>,
}

/// A token that was chosen.
struct Choice {
    token: i64,
    logprobs: Option<TokenLogprobs>,
}

/// A request, and its reply as it grows.
struct Reply<'a> {
    id: u64,
    request: Request<'a>,
    sampler: Sampler,
    ids: Vec<i64>,
    /// Cancelled during its prefill.
    is_cancelled: bool,
}

/// Rows in flight that are computed together and have adjacent slots in the pool.
struct Together<'a> {
    rows: Vec<Row>,
    hooks: ByRow<'a>,
}

/// Prompts in prefill.
struct Prefill<'a> {
    replies: Vec<Reply<'a>>,
    layout: Layout,
    hooks: ByRow<'a>,
    cache: KvCache,
    /// Number of columns computed so far, cached ones included.
    done: usize,
}

impl Reply<'_> {
    /// The tokens before the next one: the prompt and the generated tokens.
    fn row(&self) -> Row {
        let Row { input_ids, token_types, .. } = &self.request.row;
        let input_ids: Vec<i64> = input_ids.iter().chain(&self.ids).copied().collect();
        let token_types = token_types.as_ref().map(|types| {
            let last = types.last().copied().unwrap_or(0);
            types.iter().copied().chain(self.ids.iter().map(|_| last)).collect()
        });
        Row { input_ids, token_types, ..self.request.row.clone() }
    }

    /// Tokens of [`Self::row`].
    fn length(&self) -> usize {
        self.request.row.input_ids.len() + self.ids.len()
    }

    /// The most keys that it can need.
    fn most_keys(&self) -> usize {
        let adapters = &self.request.adapters;
        let before = adapters.prefix_length() + adapters.virtual_tokens();
        before + self.request.row.input_ids.len() + self.request.config.max_new_tokens
    }

    /// The number of columns before the prompt, (prefix, virtual tokens): equal for all rows of one prefill.
    fn columns_before(&self) -> (usize, usize) {
        let adapters = &self.request.adapters;
        (adapters.prefix_length(), adapters.virtual_tokens())
    }

    fn push(&mut self, id: i64) -> Option<Finish> {
        self.ids.push(id);
        let GenerationConfig { stop_ids, max_new_tokens, .. } = &self.request.config;
        match (stop_ids.contains(&id), self.ids.len() == *max_new_tokens) {
            (true, _) => Some(Finish::Stop),
            (_, true) => Some(Finish::Length),
            _ => None,
        }
    }
}

impl<'a> Engine<'a> {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`Error::Encoder`] of a model that predicts no tokens.
    pub fn new(model: &'a dyn Model, options: EngineOptions) -> Result<Self> {
        model.description().check_predicts("generation")?;
        Ok(Self {
            model,
            options,
            waiting: VecDeque::new(),
            prefill: None,
            rows: Vec::new(),
            pool: KvPool::new(model),
            prefixes: PrefixCache::new(
                match options.deterministic || model.description().depends_on_length {
                    true => 0,
                    false => options.prefix_tokens,
                },
            ),
            reused_tokens: 0,
            batch: None,
            earlier: Vec::new(),
            next_id: 0,
        })
    }

    /// Queues a request; returns its number.
    ///
    /// # Errors
    /// Invalid options or token ids; coordinates that its adapters do not have; prompt and reply too long for the model's context or for
    /// [`EngineOptions::cached_tokens`]; [`Error::Adapter`] for adapters in the weights that differ from those of requests in flight.
    pub fn submit(&mut self, request: Request<'a>) -> Result<u64> {
        let Request { row, adapters, config, stream } = &request;
        config.check()?;
        row.input_ids.iter().try_for_each(|id| self.model.check_token(*id))?;
        adapters.check_subspace(row)?;
        Layout::new(vec![row.clone()], PaddingSide::Right)?; // refuses rows that fit no batch
        let context = ContextLimit::of(self.model.description(), adapters);
        let room = context.generating(config.max_new_tokens);
        room.check([("the prompt", row.input_ids.len())])?;
        self.check_weights(adapters)?;
        let id = self.next_id;
        let sampler = Sampler::new(config, &row.input_ids, *stream);
        let reply = Reply { id, request, sampler, ids: Vec::new(), is_cancelled: false };
        if let Some(most) = self.options.cached_tokens.filter(|most| *most < reply.most_keys()) {
            let reason = format!(
                "prompt and reply come to {} keys, and there is room for {most}",
                reply.most_keys()
            );
            return Err(Error::Adapter { reason });
        }
        if !reply.request.adapters.in_weights().is_empty() {
            self.prefixes.clear();
        }
        self.next_id += 1;
        self.waiting.push_back(reply);
        Ok(id)
    }

    /// Cancels a request: it causes no more events. A request that has ended is ignored.
    pub fn cancel(&mut self, id: u64) {
        self.waiting.retain(|reply| reply.id != id);
        if let Some(row) = self.rows.iter().position(|reply| reply.id == id) {
            self.leave(row);
        }
        // a prompt in prefill is dropped after the prefill
        let on_its_way = self.prefill.iter_mut().flat_map(|prefill| &mut prefill.replies);
        on_its_way.filter(|reply| reply.id == id).for_each(|reply| reply.is_cancelled = true);
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.prefill.is_none() && self.rows.is_empty()
    }

    /// The number of waiting requests and the number of requests in flight.
    pub fn requests(&self) -> (usize, usize) {
        let on_their_way = self.prefill.as_ref().map_or(0, |prefill| prefill.replies.len());
        (self.waiting.len(), on_their_way + self.rows.len())
    }

    /// The number of prompt tokens taken from the cache so far, and the number of tokens in the cache.
    pub fn prefixes(&self) -> (u64, usize) {
        (self.reused_tokens, self.prefixes.tokens())
    }

    /// The first tokens of a reply, up to the first that an adapter touches: other requests may share them.
    fn shareable<'r>(&self, reply: &Reply, ids: &'r [i64]) -> &'r [i64] {
        let Request { row, adapters, .. } = &reply.request;
        let is_alone = reply.columns_before() != (0, 0)
            || row.token_types.is_some()
            || !adapters.in_weights().is_empty();
        if is_alone {
            return &[];
        }
        let untouched = adapters.reach(row).map_or(ids.len(), |reach| reach.token);
        &ids[..untouched.min(ids.len())]
    }

    /// Number of a reply's tokens in the prefix cache. The last token never counts, because its hidden state must be computed.
    fn known(&self, reply: &Reply) -> usize {
        if !self.prefixes.is_on() {
            return 0; // no ids need be copied
        }
        let ids = reply.row().input_ids;
        let shared = self.shareable(reply, &ids);
        self.prefixes.known(&shared[..shared.len().min(ids.len() - 1)])
    }

    /// Bytes reserved for the keys and values of rows in flight.
    pub fn cached_bytes(&self) -> usize {
        self.pool.bytes()
    }

    /// Computes one prefill pass, if prompts wait and there is room, and one token of every row in flight.
    ///
    /// # Errors
    /// Errors of libtorch. An error of one request is an [`Event`].
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let _guard = tch::no_grad_guard();
        let mut events = Vec::new();
        if self.prefill.is_none() {
            self.begin_prefill(&mut events);
        }
        if let Some(prefill) = self.prefill.take() {
            self.go_on_with(prefill, &mut events)?;
        }
        self.decode(&mut events)?;
        if self.rows.is_empty() {
            self.earlier.clear(); // no row can reuse them, and they keep shared adapters alive
        }
        Ok(events)
    }

    /// Refuses adapters in the weights that differ from the other requests' adapters: such adapters change the model for all requests.
    fn check_weights(&self, adapters: &AdapterStack) -> Result<()> {
        let on_their_way = self.prefill.iter().flat_map(|prefill| &prefill.replies);
        let Some(other) = self.waiting.iter().chain(on_their_way).chain(&self.rows).next() else {
            return Ok(());
        };
        let (own, others) = (adapters.in_weights(), other.request.adapters.in_weights());
        let same = |(own, other): (&&StackAdapter, &&StackAdapter)| own.is_same(other);
        if own.len() == others.len() && own.iter().zip(&others).all(same) {
            return Ok(());
        }
        let reason = "an adapter that is the model's weights shares no batch with requests that have other weights".to_owned();
        Err(Error::Adapter { reason })
    }

    /// Takes the first waiting request and others that can be computed with it, while there is room.
    fn begin_prefill(&mut self, events: &mut Vec<Event>) {
        let mut taken: Vec<Reply> = Vec::new();
        let mut keys: usize = self.rows.iter().map(Reply::most_keys).sum();
        let (mut widest, mut known) = (0, 0);
        while let Some(next) = self.waiting.front() {
            let rows = self.rows.len() + taken.len() + 1;
            keys += next.most_keys();
            if rows > self.options.rows
                || self.options.cached_tokens.is_some_and(|most| keys > most)
            {
                break;
            }
            if let Some(first) = taken.first() {
                widest = widest.max(next.length() - known.min(next.length()));
                let is_alike =
                    first.columns_before() == next.columns_before() && self.known(next) == known;
                if !is_alike
                    || self.options.deterministic
                    || widest * (taken.len() + 1) > self.options.prefill_tokens
                {
                    break;
                }
            } else {
                known = self.known(next);
                widest = next.length() - known;
            }
            taken.extend(self.waiting.pop_front());
        }
        let prepared = self.prefill_of(taken).or_else(|(replies, _)| {
            // only the faulty request fails; the others continue together
            let mut good = Vec::new();
            for reply in replies {
                match self.prefill_of(vec![reply]) {
                    Ok(alone) => good.extend(alone.into_iter().flat_map(|alone| alone.replies)),
                    Err((replies, error)) => {
                        events.extend(
                            replies.first().map(|reply| Event::Failed { id: reply.id, error }),
                        );
                    }
                }
            }
            self.prefill_of(good)
        });
        self.prefill = prepared.unwrap_or_else(|(replies, error)| {
            let reason = error.to_string();
            let failed = |reply: &Reply| Event::Failed {
                id: reply.id,
                error: Error::Adapter { reason: reason.clone() },
            };
            events.extend(replies.iter().map(failed));
            None
        });
    }

    /// Prepares the prefill of some prompts.
    fn prefill_of(
        &mut self,
        replies: Vec<Reply<'a>>,
    ) -> Result<Option<Prefill<'a>>, (Vec<Reply<'a>>, Error)> {
        let Some(first) = replies.first() else { return Ok(None) };
        let (prefix, virtual_tokens) = first.columns_before();
        let rows = replies.iter().map(Reply::row).collect();
        let prepared = Layout::new(rows, PaddingSide::Right).and_then(|layout| {
            let layout = layout.with_virtual_tokens(virtual_tokens);
            let member = |reply: &'_ Reply<'a>| (reply.id, reply.request.adapters.clone());
            let members: Vec<_> = replies.iter().map(member).collect();
            let members: Vec<Member> =
                members.iter().map(|(id, stack)| Member { id: *id, stack }).collect();
            let hooks = ByRow::new(&members, &layout, Mode::Eval, &mut [])?;
            Ok((layout, hooks))
        });
        let (layout, hooks) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err((replies, error)),
        };
        let mut cache = self.model.kv_cache(replies.len() as i64, (prefix + layout.width()) as i64);
        let done = replies.iter().map(|reply| self.known(reply)).min().unwrap_or(0);
        let read = |reply: &Reply| self.prefixes.read(&reply.row().input_ids[..done]);
        let rows: Vec<Vec<Tensor>> = replies.iter().filter_map(read).collect();
        cache.fill(&rows);
        self.reused_tokens += (done * rows.len()) as u64;
        Ok(Some(Prefill { replies, layout, hooks, cache, done }))
    }

    /// Computes the next columns of a prefill. After the last one the rows join the batch, each with the first token of its reply.
    fn go_on_with(&mut self, mut prefill: Prefill<'a>, events: &mut Vec<Event>) -> Result<()> {
        let Prefill { replies, layout, hooks, cache, done } = &mut prefill;
        // several prompts take one pass; a single long prompt may take several
        let width = layout.width();
        let end =
            if replies.len() > 1 { width } else { width.min(*done + self.options.prefill_tokens) };
        let span = Span { layout, columns: *done..end };
        let ids =
            layout.input_ids(self.model.device()).narrow(1, *done as i64, (end - *done) as i64);
        let h = self.model.hidden_states(&ids, &span, Some(cache), hooks)?;
        *done = end;
        if end < width {
            self.prefill = Some(prefill);
            return Ok(());
        }
        let last = |row: usize| {
            let token = layout.rows()[row].input_ids.len() - 1;
            span.flat_index(row, token)
                .expect("invariant: the last pass holds every row's last token")
        };
        let indices: Vec<i64> = (0..replies.len()).map(last).collect();
        let h = h.flatten(0, 1).index_select(0, &send(&Tensor::from_slice(&indices), h.device()));
        let prefix = hooks.prefix_length();
        let lengths: Vec<usize> =
            (0..replies.len()).map(|row| prefix + layout.columns(row).len()).collect();
        let Prefill { replies, cache, hooks, .. } = prefill;
        let mut rows: Vec<Reply<'a>> = replies;
        let chosen = choose(&self.model.head(), &h, &mut rows)?;
        let room = self.waiting.iter().chain(&self.rows).chain(&rows).map(Reply::most_keys).max();
        let most = (self.waiting.len() + self.rows.len() + rows.len()).min(self.options.rows);
        self.pool.reserve(most.max(self.rows.len() + rows.len()), room.unwrap_or(0));
        for (row, (mut reply, chosen)) in rows.into_iter().zip(chosen).enumerate() {
            if self.prefixes.is_on() {
                let ids = reply.row().input_ids;
                let shared = self.shareable(&reply, &ids).len() / BLOCK * BLOCK;
                self.prefixes.keep(&ids[..shared], &cache, row);
            }
            if reply.is_cancelled {
                continue;
            }
            if told(&mut reply, chosen, events) {
                self.pool.push(&cache, row, lengths[row]);
                self.rows.push(reply);
            }
        }
        self.earlier.push(hooks);
        self.batch_has_changed();
        Ok(())
    }

    /// Computes the next token of every row in flight.
    fn decode(&mut self, events: &mut Vec<Event>) -> Result<()> {
        self.recompute_where_keys_change();
        if self.rows.is_empty() {
            return Ok(());
        }
        let (mut batch, mut ended, mut first) = (self.batch_now()?, Vec::new(), 0);
        for together in &mut batch {
            let part = first..first + together.rows.len();
            let chosen = self.next_tokens(together, part.clone())?;
            for (row, chosen) in part.clone().zip(chosen) {
                if !told(&mut self.rows[row], chosen, events) {
                    ended.push(row);
                }
            }
            first = part.end;
        }
        self.batch = Some(batch);
        for row in ended.into_iter().rev() {
            self.leave(row);
        }
        Ok(())
    }

    /// The next token of each row of a part of the batch.
    fn next_tokens(
        &mut self,
        together: &mut Together<'a>,
        part: Range<usize>,
    ) -> Result<Vec<Result<Choice>>> {
        let Together { rows, hooks } = together;
        let lengths = self.pool.lengths()[part.clone()].to_vec();
        let layout = Layout::going_on(std::mem::take(rows), lengths);
        let span = layout.next();
        let newest = |reply: &Reply| *reply.ids.last().expect("invariant: it has its first token");
        let ids: Vec<i64> = self.rows[part.clone()].iter().map(newest).collect();
        let ids = send(&Tensor::from_slice(&ids).unsqueeze(1), self.model.device()); // [b, 1]
        self.pool.begin_step(part.clone());
        let forward = self.model.forward(&span, 0);
        let blocks = self.model.description().num_hidden_layers;
        let h = forward.run(0..blocks, forward.embed(&ids), Some(&mut self.pool), hooks)?;
        let h = forward.finish(h, hooks)?.select(1, -1); // [b, d]
        drop(forward);
        self.pool.end_step();
        *rows = layout.into_rows();
        choose(&self.model.head(), &h, &mut self.rows[part])
    }

    /// The parts of the batch that are computed together: all of it, or (if deterministic) each row alone.
    fn batch_now(&mut self) -> Result<Vec<Together<'a>>> {
        if let Some(batch) = self.batch.take() {
            return Ok(batch);
        }
        let mut earlier = std::mem::take(&mut self.earlier);
        let all = self.rows.len();
        let size = if self.options.deterministic { 1 } else { all };
        let parts = (0..all).step_by(size).map(|first| first..first + size);
        parts.map(|part| self.together(part, &mut earlier)).collect()
    }

    /// Some rows of the batch, and the hooks of their adapters that act on replies.
    fn together(&self, part: Range<usize>, earlier: &mut [ByRow<'a>]) -> Result<Together<'a>> {
        let replies = &self.rows[part.clone()];
        let rows: Vec<Row> = replies.iter().map(|reply| reply.request.row.clone()).collect();
        let layout = Layout::going_on(rows, self.pool.lengths()[part].to_vec());
        let plain = AdapterStack::EMPTY;
        let member = |reply: &'_ Reply<'a>| -> (u64, AdapterStack<'a>) {
            let adapters = &reply.request.adapters;
            (reply.id, if adapters.acts_on_replies() { adapters.clone() } else { plain.clone() })
        };
        let members: Vec<_> = replies.iter().map(member).collect();
        let members: Vec<Member> =
            members.iter().map(|(id, stack)| Member { id: *id, stack }).collect();
        let hooks = ByRow::new(&members, &layout, Mode::Eval, earlier)?;
        Ok(Together { rows: layout.into_rows(), hooks })
    }

    /// Sends rows back to prefill whose earlier keys change with the next token (LongRoPE).
    fn recompute_where_keys_change(&mut self) {
        let Some(longest) = self.model.description().keys_change_at else { return };
        while let Some(row) = self.pool.lengths().iter().position(|length| *length == longest) {
            let reply = self.leave(row);
            self.waiting.push_front(reply);
        }
    }

    fn leave(&mut self, row: usize) -> Reply<'a> {
        self.pool.swap_remove(row);
        self.batch_has_changed();
        self.rows.swap_remove(row)
    }

    /// Keeps the hooks, which the next batch reuses for a stack without new rows.
    fn batch_has_changed(&mut self) {
        self.earlier.extend(self.batch.take().into_iter().flatten().map(|part| part.hooks));
    }
}

/// Adds the event of a row's token or of its failure; returns whether the row continues.
fn told(reply: &mut Reply, chosen: Result<Choice>, events: &mut Vec<Event>) -> bool {
    let id = reply.id;
    match chosen {
        Ok(Choice { token, logprobs }) => {
            let finish = reply.push(token);
            events.push(Event::Token { id, token, logprobs, finish });
            finish.is_none()
        }
        Err(error) => {
            events.push(Event::Failed { id, error });
            false
        }
    }
}

/// The next token of each row, by the hidden states `[b, d]` of the last tokens. Logits are kept only if a row needs more than the likeliest token.
fn choose(head: &Head, h: &Tensor, rows: &mut [Reply]) -> Result<Vec<Result<Choice>>> {
    let wants_likeliest = |reply: &Reply| {
        let config = &reply.request.config;
        config.is_plain_greedy() && config.logprobs.is_none()
    };
    let logits = if rows.iter().all(wants_likeliest) { None } else { Some(head.logits(h)) };
    let (best, ids) = match &logits {
        None => head.likeliest(h)?,
        Some(logits) => {
            let (best, ids) = logits.max_dim(-1, false); // NaN if one is among them
            (best.try_into()?, ids.try_into()?)
        }
    };
    let (mut choices, mut weights) = (Vec::new(), Vec::new());
    for (row, (reply, (best, id))) in rows.iter_mut().zip(best.into_iter().zip(ids)).enumerate() {
        let generated = reply.ids.len();
        if best.is_nan() {
            let index = reply.request.stream as usize;
            choices.push(Err(Error::NanLogits { index, generated }));
            continue;
        }
        let config = &reply.request.config;
        let scores = logits.as_ref().map(|logits| logits.get(row as i64));
        let token = match &scores {
            Some(scores) if !config.is_plain_greedy() => {
                let scores = scores.to_device(Device::Cpu);
                let numbers = read(&scores).expect("invariant: a row of logits is in order");
                reply.sampler.choose(&numbers, &mut weights)
            }
            _ => id,
        };
        let logprobs = match (&scores, config.logprobs) {
            (Some(scores), Some(top)) => Some(logprobs(scores, token, top)?),
            _ => None,
        };
        choices.push(Ok(Choice { token, logprobs }));
    }
    Ok(choices)
}

/// The log-probability of a token by the scores `[v]`, and the `top` most likely tokens.
fn logprobs(scores: &Tensor, token: i64, top: usize) -> Result<TokenLogprobs> {
    let all = scores.log_softmax(-1, Kind::Float);
    let (best, ids) = all.topk((top as i64).min(all.size()[0]), -1, true, true);
    let ids: Vec<i64> = ids.try_into()?;
    let best: Vec<f32> = best.try_into()?;
    let logprob = all.double_value(&[token]) as f32;
    Ok(TokenLogprobs { logprob, top: ids.into_iter().zip(best).collect() })
}
