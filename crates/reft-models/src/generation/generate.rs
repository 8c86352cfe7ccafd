use std::cmp::Reverse;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::generation::sampling::GenerationConfig;
use crate::{
    AdapterStack, ContextLimit, Engine, EngineOptions, Event, Layout, Mode, Model, PaddingSide,
    Request, Result, Row,
};

/// A reply to one prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens generated, a stop token included.
    pub ids: Vec<i64>,
    /// Why the reply ends.
    pub finish: Finish,
}

/// Why a reply ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// Its last token is one of [`GenerationConfig::stop_ids`].
    Stop,
    /// It has reached [`GenerationConfig::max_new_tokens`].
    Length,
    /// The caller stopped it.
    Cancelled,
}

impl Generated {
    /// A reply without tokens yet.
    fn nothing() -> Self {
        Self { ids: Vec::new(), finish: Finish::Cancelled }
    }

    /// The reply without the stop token.
    pub fn text_ids(&self) -> &[i64] {
        let end = self.ids.len() - usize::from(self.finish == Finish::Stop);
        &self.ids[..end]
    }
}

/// Generates replies to prompts with one stack of adapters, [`GenerationConfig::batch_size`] of them at a time, with an [`Engine`].
/// `on_token` gets each new token with its row's index.
///
/// The replies are in the order of `rows`, and do not depend on the batch size except for rounding.
///
/// # Errors
/// Rows without tokens, token ids that are not in the vocabulary, invalid options, prompts that do not fit into the model's context with
/// adapters and reply, NaN logits, and errors of adapters; all rows are checked before the first is computed.
pub fn generate(
    model: &dyn Model,
    adapters: &AdapterStack,
    rows: &[Row],
    config: &GenerationConfig,
    on_token: &mut dyn FnMut(usize, i64) -> ControlFlow<()>,
) -> Result<Vec<Generated>> {
    config.check()?;
    let batch_size = config.batch_size.unwrap_or(rows.len()).max(1);
    let options = EngineOptions {
        rows: batch_size,
        prefill_tokens: usize::MAX,
        cached_tokens: None,
        prefix_tokens: 0,
        deterministic: config.deterministic,
    };
    let mut engine = Engine::new(model, options)?;
    for id in rows.iter().flat_map(|row| &row.input_ids) {
        model.check_token(*id)?;
    }
    let names =
        (1..).map(|n| if rows.len() == 1 { "the prompt".into() } else { format!("prompt {n}") });
    let lengths = rows.iter().map(|row| row.input_ids.len());
    let context = ContextLimit::of(model.description(), adapters).generating(config.max_new_tokens);
    context.check(names.zip(lengths))?;
    let whole = Layout::new(rows.to_vec(), PaddingSide::Right)?; // refuses rows that fit no batch
    if rows.len() > batch_size {
        // refuses rows that an adapter cannot edit before the first batch; a single batch checks its own rows
        let _guard = tch::no_grad_guard();
        adapters.hooks(&adapters.layout(whole), Mode::Eval)?;
    }
    let mut by_length: Vec<usize> = (0..rows.len()).collect();
    by_length.sort_by_key(|&i| Reverse(rows[i].input_ids.len())); // longest first: they need the most memory
    for &i in &by_length {
        let (row, adapters, config) = (rows[i].clone(), adapters.clone(), config.clone());
        engine.submit(Request { row, adapters, config, stream: i as u64 })?;
    }
    let mut replies = vec![Generated::nothing(); rows.len()];
    while !engine.is_idle() {
        for event in engine.step()? {
            let (id, token, finish) = match event {
                Event::Token { id, token, finish, .. } => (id, token, finish),
                Event::Failed { error, .. } => return Err(error),
            };
            let i = by_length[id as usize]; // requests are numbered in their order
            replies[i].ids.push(token);
            replies[i].finish = finish.unwrap_or(Finish::Cancelled);
            if on_token(i, token).is_break() {
                return Ok(replies);
            }
        }
    }
    Ok(replies)
}
