use std::cmp::Reverse;
use std::ops::ControlFlow;

use serde::Serialize;
use tch::{Device, Tensor};

use crate::generation::sampling::{GenerationConfig, Sampler};
use crate::{
    AdapterStack, ContextLimit, Error, Hooks, Layout, Mode, Model, PaddingSide, Result, Row, Span,
    send,
};

/// A reply to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens generated, a stop token included.
    pub ids: Vec<i64>,
    /// Why they end where they do.
    pub finish: Finish,
}

/// Why a reply ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// Its last token is one of [`GenerationConfig::stop_ids`].
    Stop,
    /// It has [`GenerationConfig::max_new_tokens`].
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

/// Generates replies to prompts, [`GenerationConfig::batch_size`] of them at a time, prompts of like length together.
///
/// The prompts are computed in one pass, where the hooks of the adapters are active; then one token per row and pass, from a cache
/// of keys and values. Prompts begin together: no token sees padding, and the first pass needs no mask. Edits of hidden states are made
/// on the prompt only, so a decoded token costs what it costs the base model. A row that is finished leaves the batch. Each new token is
/// given to `on_token` with its row's index.
///
/// The replies are in the order of `rows`, and do not depend on the batch size but for rounding.
///
/// # Errors
/// Rows without tokens, token ids that are not in the vocabulary, meaningless options, prompts that do not fit into the model's context with
/// adapters and reply, logits that are NaN, and whatever an adapter refuses; all rows are checked before the first is begun.
pub fn generate(
    model: &dyn Model,
    adapters: &AdapterStack,
    rows: &[Row],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    config.check()?;
    model.description().check_predicts("generation")?;
    let batch_size = config.batch_size.unwrap_or(rows.len());
    for id in rows.iter().flat_map(|row| &row.input_ids) {
        model.check_token(*id)?;
    }
    let names =
        (1..).map(|n| if rows.len() == 1 { "the prompt".into() } else { format!("prompt {n}") });
    let lengths = rows.iter().map(|row| row.input_ids.len());
    let context = ContextLimit::of(model.description(), adapters).generating(config.max_new_tokens);
    context.check(names.zip(lengths))?;
    let whole = Layout::new(rows.to_vec(), PaddingSide::Right)?; // refuses what no batch can be made of
    let _guard = tch::no_grad_guard();
    if rows.len() > batch_size {
        // rows that an adapter cannot edit are refused before the first batch is begun; one batch refuses its own
        adapters.hooks(&adapters.layout(whole), Mode::Eval)?;
    }
    let reply = |(index, row): (usize, &'_ Row)| Reply {
        sampler: Sampler::new(config, &row.input_ids, index),
        generated: Generated { ids: Vec::new(), finish: Finish::Cancelled },
    };
    let replies = rows.iter().enumerate().map(reply).collect();
    let mut by_length: Vec<usize> = (0..rows.len()).collect();
    by_length.sort_by_key(|&i| Reverse(rows[i].input_ids.len())); // what needs most memory first
    let mut generation = Generation { model, adapters, config, replies };
    for indices in by_length.chunks(batch_size) {
        let rows = indices.iter().map(|&i| rows[i].clone()).collect();
        let layout = Layout::new(rows, PaddingSide::Right)?;
        if generation.run(indices.to_vec(), layout, on_token)?.is_break() {
            break;
        }
    }
    Ok(generation.replies.into_iter().map(|reply| reply.generated).collect())
}

/// The replies to all prompts as they grow.
struct Generation<'a> {
    model: &'a dyn Model,
    adapters: &'a AdapterStack<'a>,
    config: &'a GenerationConfig,
    replies: Vec<Reply<'a>>,
}

/// A reply as it grows.
struct Reply<'a> {
    sampler: Sampler<'a>,
    generated: Generated, // cancelled, until it ends otherwise
}

impl Reply<'_> {
    fn push(&mut self, id: i64, config: &GenerationConfig) {
        let Generated { ids, finish } = &mut self.generated;
        ids.push(id);
        if config.stop_ids.contains(&id) {
            *finish = Finish::Stop;
        } else if ids.len() == config.max_new_tokens {
            *finish = Finish::Length;
        }
    }
}

impl Generation<'_> {
    /// Generates the replies `batch` (their indices), the rows of `layout`, until all are finished or the caller breaks off.
    fn run(
        &mut self,
        mut batch: Vec<usize>,
        layout: Layout,
        on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let Self { model, adapters, config, .. } = *self;
        let mut layout = adapters.layout(layout);
        let capacity = adapters.prefix_length() + layout.width() + config.max_new_tokens; // one more than is read
        let mut cache = model.kv_cache(batch.len() as i64, capacity as i64);
        let mut columns = 0..layout.width(); // the prompts; then one column at a time
        let mut input_ids = layout.input_ids(model.device());
        let mut hooks = adapters.hooks(&layout, Mode::Eval)?;
        while !batch.is_empty() {
            let mut span = Span { layout: &layout, columns: columns.clone() };
            if keys_change(model, &span, adapters.prefix_length()) {
                // all tokens once more: the keys of the earlier ones are others now
                cache.len = 0;
                span.columns.start = 0;
                input_ids = Tensor::cat(
                    &[layout.input_ids(model.device()), self.generated(&batch, model.device())],
                    1,
                );
            }
            let h = model.hidden_states(&input_ids, &span, Some(&mut cache), &mut hooks)?;
            let logits = model.logits(&last_tokens(&h, &span)); // [b, v]
            let ids = self.choose(&logits, &batch)?;
            for (&i, &id) in batch.iter().zip(&ids) {
                self.replies[i].push(id, config);
                if on_token(i, id).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let unfinished =
                |&row: &usize| self.replies[batch[row]].generated.finish == Finish::Cancelled;
            let staying: Vec<usize> = (0..batch.len()).filter(unfinished).collect();
            let next: Vec<i64> = staying.iter().map(|&row| ids[row]).collect();
            input_ids = send(&Tensor::from_slice(&next).unsqueeze(1), model.device()); // [b, 1]
            columns = columns.end..columns.end + 1;
            if staying.len() < batch.len() && !staying.is_empty() {
                layout = layout.keep_rows(&staying);
                hooks.keep_rows(&staying);
                cache.keep_rows(&staying.iter().map(|&row| row as i64).collect::<Vec<_>>());
            }
            batch = staying.iter().map(|&row| batch[row]).collect();
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The tokens of replies so far, `[b, n]`.
    fn generated(&self, batch: &[usize], device: Device) -> Tensor {
        let ids = batch.iter().flat_map(|&i| self.replies[i].generated.ids.iter().copied());
        let ids: Vec<i64> = ids.collect();
        send(&Tensor::from_slice(&ids).view([batch.len() as i64, -1]), device)
    }

    /// The next token of each row of `logits` `[b, v]`.
    fn choose(&mut self, logits: &Tensor, batch: &[usize]) -> Result<Vec<i64>> {
        let (best, ids) = logits.max_dim(-1, false); // NaN if one is among them
        let best: Vec<f32> = best.try_into()?;
        if let Some(row) = best.iter().position(|x| x.is_nan()) {
            let index = batch[row];
            let generated = self.replies[index].generated.ids.len();
            return Err(Error::NanLogits { index, generated });
        }
        if self.config.is_plain_greedy() {
            return Ok(ids.try_into()?);
        }
        let v = logits.size()[1] as usize;
        let scores: Vec<f32> = logits.flatten(0, 1).to_device(Device::Cpu).try_into()?;
        let rows = batch.iter().zip(scores.chunks_exact(v));
        Ok(rows.map(|(&i, scores)| self.replies[i].sampler.choose(scores)).collect())
    }
}

/// Whether this pass makes a row one whose earlier tokens have other keys.
fn keys_change(model: &dyn Model, span: &Span, prefix: usize) -> bool {
    let first = model.description().keys_change_at.map(|longest| longest + 1);
    let mut lengths = (0..span.layout.batch_size()).map(|row| prefix + span.row_length(row));
    span.columns.start > 0 && first.is_some_and(|first| lengths.any(|length| length == first))
}

/// The hidden state of every row's last token, `[b, d]`, of `h` `[b, t, d]`.
fn last_tokens(h: &Tensor, span: &Span) -> Tensor {
    let layout = span.layout;
    if span.columns.end > layout.width() {
        return h.select(1, -1); // a generated token
    }
    let last = |row: usize| {
        let token = layout.rows()[row].input_ids.len() - 1;
        span.flat_index(row, token).expect("invariant: the first pass holds every token")
    };
    let indices: Vec<i64> = (0..layout.batch_size()).map(last).collect();
    h.flatten(0, 1).index_select(0, &send(&Tensor::from_slice(&indices), h.device()))
}
