use std::cmp::Reverse;
use std::ops::ControlFlow;

use tch::{Device, Tensor};

use crate::adapter::{Adapter, Mode};
use crate::decoder::Decoder;
use crate::hooks::Stacked;
use crate::layout::{Layout, Row, Span};
use crate::sampling::{GenerationConfig, Sampler};
use crate::send::send;
use crate::{Error, Result};

/// A reply to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens generated, a stop token included.
    pub ids: Vec<i64>,
    /// Why they end where they do.
    pub finish: Finish,
}

/// Why a reply ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Its last token is one of [`GenerationConfig::stop_ids`].
    Stop,
    /// It has [`GenerationConfig::max_new_tokens`], or prompt and reply fill the model's context.
    Length,
    /// The caller asked for an end.
    Cancelled,
}

impl Generated {
    /// The reply without the stop token.
    pub fn text_ids(&self) -> &[i64] {
        let end = self.ids.len() - usize::from(self.finish == Finish::Stop);
        &self.ids[..end]
    }
}

/// Generates replies to the prompts of one batch.
///
/// The prompts are computed in one pass, where the hooks of the adapters are active; then one token per row and pass, from a cache
/// of keys and values. Edits of hidden states are made on the prompt only, so a decoded token costs what it costs the base model.
/// A row that is finished leaves the batch. Each new token is given to `on_token` with its row's index.
///
/// # Errors
/// Rows without tokens, token ids that are not in the vocabulary, meaningless options, prompts that fill the context, logits that
/// are NaN, and whatever an adapter refuses.
pub fn generate(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    rows: &[Row],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    generate_all(decoder, adapters, rows, rows.len().max(1), config, on_token)
}

/// Generates replies to any number of prompts, `batch_size` at a time, prompts of like length together.
///
/// The replies are in the order of `rows`, and do not depend on `batch_size` but for rounding. See [`generate`].
///
/// # Errors
/// As [`generate`]; all rows are checked before the first is begun. [`Error::Generation`] if `batch_size` is 0.
pub fn generate_all(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    rows: &[Row],
    batch_size: usize,
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    config.check()?;
    if batch_size == 0 {
        let (option, found, expected) = ("batch_size", "0".to_owned(), "at least 1");
        return Err(Error::Generation { option, found, expected });
    }
    for id in rows.iter().flat_map(|row| &row.input_ids) {
        decoder.check_token(*id)?;
    }
    let whole = Layout::new(rows.to_vec(), config.padding)?; // refuses what no batch can be made of
    let _guard = tch::no_grad_guard();
    let adapters = Adapters::new(adapters, &whole)?;
    let context = decoder.config().max_position_embeddings as usize;
    let mut replies = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let length = adapters.prefix + adapters.virtual_tokens + row.input_ids.len();
        if length >= context {
            return Err(Error::ContextFull { index, length, context });
        }
        let limit = config.max_new_tokens.min(context - length);
        let sampler = Sampler::new(config, &row.input_ids, index);
        replies.push(Reply { sampler, limit, ids: Vec::new(), finish: None });
    }
    let mut by_length: Vec<usize> = (0..rows.len()).collect();
    by_length.sort_by_key(|&i| Reverse(rows[i].input_ids.len())); // what needs most memory first
    for indices in by_length.chunks(batch_size) {
        let rows = indices.iter().map(|&i| rows[i].clone()).collect();
        let layout = Layout::new(rows, config.padding)?;
        let batch = indices.to_vec();
        if generate_batch(decoder, &adapters, layout, batch, config, &mut replies, on_token)?
            .is_break()
        {
            break;
        }
    }
    let generated = |reply: Reply| Generated {
        ids: reply.ids,
        finish: reply.finish.unwrap_or(Finish::Cancelled),
    };
    Ok(replies.into_iter().map(generated).collect())
}

/// A reply as it grows.
struct Reply<'a> {
    sampler: Sampler<'a>,
    limit: usize, // tokens
    ids: Vec<i64>,
    finish: Option<Finish>,
}

impl Reply<'_> {
    fn push(&mut self, id: i64, stop_ids: &[i64]) {
        self.ids.push(id);
        if stop_ids.contains(&id) {
            self.finish = Some(Finish::Stop);
        } else if self.ids.len() == self.limit {
            self.finish = Some(Finish::Length);
        }
    }
}

/// The methods that are active, and the columns that they put before every prompt.
struct Adapters<'a> {
    adapters: &'a [&'a dyn Adapter],
    virtual_tokens: usize,
    prefix: usize,
}

impl<'a> Adapters<'a> {
    fn new(adapters: &'a [&'a dyn Adapter], layout: &Layout) -> Result<Self> {
        let virtual_tokens =
            only_one("virtual tokens", adapters.iter().map(|a| a.virtual_tokens()))?;
        let layout = layout.clone().with_virtual_tokens(virtual_tokens);
        let prefixes = adapters.iter().map(|a| Ok(a.hooks(&layout, Mode::Eval)?.prefix_length()));
        let prefix = only_one("a prefix", prefixes.collect::<Result<Vec<_>>>()?.into_iter())?;
        Ok(Self { adapters, virtual_tokens, prefix })
    }

    fn hooks<'b>(&'b self, layout: &'b Layout) -> Result<Stacked<'b>> {
        let hooks = self.adapters.iter().map(|adapter| adapter.hooks(layout, Mode::Eval));
        Ok(Stacked(hooks.collect::<Result<_>>()?))
    }
}

/// The one of several adapters' lengths that is not 0.
fn only_one(what: &str, lengths: impl Iterator<Item = usize>) -> Result<usize> {
    let lengths: Vec<usize> = lengths.filter(|&n| n > 0).collect();
    if lengths.len() > 1 {
        let found = lengths.len();
        let reason =
            format!("{found} adapters bring {what}; at most one of those used together may");
        return Err(Error::Adapter { reason });
    }
    Ok(lengths.first().copied().unwrap_or(0))
}

/// Generates the replies `batch` (indices of `replies`), the rows of `layout`, until all are finished or the caller breaks off.
fn generate_batch(
    decoder: &Decoder,
    adapters: &Adapters,
    layout: Layout,
    mut batch: Vec<usize>,
    config: &GenerationConfig,
    replies: &mut [Reply],
    on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
) -> Result<ControlFlow<()>> {
    let mut layout = layout.with_virtual_tokens(adapters.virtual_tokens);
    let longest = batch.iter().map(|&i| replies[i].limit).max().unwrap_or(0);
    let capacity = adapters.prefix + layout.width() + longest; // one more than is read
    let mut cache = decoder.kv_cache(batch.len() as i64, capacity as i64);
    let mut columns = 0..layout.width(); // the prompts; then one column at a time
    let mut input_ids = layout.input_ids(decoder.device());
    while !batch.is_empty() {
        let mut hooks = adapters.hooks(&layout)?;
        let staying = loop {
            let span = Span { layout: &layout, columns: columns.clone() };
            let h = decoder.hidden_states(&input_ids, &span, Some(&mut cache), &mut hooks)?;
            let logits = decoder.logits(&last_tokens(&h, &span)); // [b, v]
            let ids = choose(&logits, &batch, config, replies)?;
            for (&i, &id) in batch.iter().zip(&ids) {
                replies[i].push(id, &config.stop_ids);
                if on_token(i, id).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let unfinished = |&row: &usize| replies[batch[row]].finish.is_none();
            let staying: Vec<usize> = (0..batch.len()).filter(unfinished).collect();
            let next: Vec<i64> = staying.iter().map(|&row| ids[row]).collect();
            input_ids = send(&Tensor::from_slice(&next).unsqueeze(1), decoder.device()); // [b, 1]
            columns = columns.end..columns.end + 1;
            if staying.len() < batch.len() {
                break staying; // the finished rows leave
            }
        };
        drop(hooks);
        batch = staying.iter().map(|&row| batch[row]).collect();
        if !batch.is_empty() {
            layout = layout.keep_rows(&staying);
            cache.keep_rows(&staying.iter().map(|&row| row as i64).collect::<Vec<_>>());
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The hidden state of every row's last token, `[b, d]`, of `h` `[b, t, d]`.
fn last_tokens(h: &Tensor, span: &Span) -> Tensor {
    let layout = span.layout;
    if span.columns.start > 0 {
        return h.squeeze_dim(1); // [b, 1, d]: a generated token
    }
    let last = |row: usize| {
        let token = layout.rows()[row].input_ids.len() - 1;
        span.flat_index(row, token).expect("invariant: the first pass holds every token")
    };
    let indices: Vec<i64> = (0..layout.batch_size()).map(last).collect();
    h.flatten(0, 1).index_select(0, &send(&Tensor::from_slice(&indices), h.device()))
}

/// The next token of each row of `logits` `[b, v]`.
fn choose(
    logits: &Tensor,
    batch: &[usize],
    config: &GenerationConfig,
    replies: &mut [Reply],
) -> Result<Vec<i64>> {
    let (best, ids) = logits.max_dim(-1, false); // NaN if one is among them
    let best: Vec<f32> = best.try_into()?;
    if let Some(row) = best.iter().position(|x| x.is_nan()) {
        return Err(Error::NanLogits {
            index: batch[row],
            generated: replies[batch[row]].ids.len(),
        });
    }
    if config.is_plain_greedy() {
        return Ok(ids.try_into()?);
    }
    let v = logits.size()[1] as usize;
    let scores: Vec<f32> = logits.flatten(0, 1).to_device(Device::Cpu).try_into()?;
    let rows = batch.iter().zip(scores.chunks_exact(v));
    Ok(rows.map(|(&i, scores)| replies[i].sampler.choose(scores)).collect())
}
