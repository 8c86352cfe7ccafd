use std::collections::HashSet;
use std::ops::ControlFlow;

use reft_models::{
    AdapterStack, GenerationConfig, Layout, Mode, Model, PaddingSide, Row, TaskHead, generate,
};
use reft_train::{cross_entropy, head_outputs};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::Result;

/// Judges whether a reply shows a concept: a class of a trained head.
pub struct Judge<'a> {
    /// The head.
    pub head: TaskHead,
    /// The adapters that it was trained with.
    pub stack: AdapterStack<'a>,
    /// The index of the concept among its outputs.
    pub class: i64,
}

/// Prompts to be answered while something steers, and who judges the replies.
pub struct SteeredReplies<'a> {
    /// The model, which also tells how likely replies are without steering.
    pub model: &'a dyn Model,
    /// The prompts.
    pub prompts: Vec<Row>,
    /// How replies are generated.
    pub config: GenerationConfig,
    /// Who judges.
    pub judge: Judge<'a>,
}

/// The scores of replies, averaged over prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReplyScores {
    /// The judge's probability that a reply shows the concept; 0 for an empty reply.
    pub concept: f64,
    /// `e` to the mean of `−log p` of all replies' tokens under the plain model.
    pub perplexity: f64,
    /// Distinct pairs of neighbouring tokens in a reply, as a share of all its pairs: low if the reply repeats itself.
    pub distinct_pairs: f64,
}

impl SteeredReplies<'_> {
    /// Generates with adapters and measures the replies.
    ///
    /// # Errors
    /// Errors of the model or an adapter.
    pub fn measure(&self, adapters: &AdapterStack) -> Result<ReplyScores> {
        let go_on = &mut |_: usize, _: i64| ControlFlow::Continue(());
        let replies = generate(self.model, adapters, &self.prompts, &self.config, go_on)?;
        let without_end = |ids: &[i64]| {
            let is_text = |id: &&i64| !self.config.stop_ids.contains(id);
            ids.iter().take_while(is_text).copied().collect::<Vec<i64>>()
        };
        let replies: Vec<Vec<i64>> = replies.iter().map(|reply| without_end(&reply.ids)).collect();
        let n = replies.len().max(1) as f64;
        let said: Vec<&Vec<i64>> = replies.iter().filter(|reply| !reply.is_empty()).collect();
        let shown = if said.is_empty() { 0.0 } else { self.shown(&said)? };
        Ok(ReplyScores {
            concept: shown / n,
            perplexity: reply_perplexity(self.model, &self.prompts, &replies)?,
            distinct_pairs: replies.iter().map(|reply| distinct_pairs(reply)).sum::<f64>() / n,
        })
    }

    /// The sum of the judge's probabilities.
    fn shown(&self, replies: &[&Vec<i64>]) -> Result<f64> {
        let Judge { head, stack, class } = &self.judge;
        let rows = replies.iter().map(|reply| Row::prompt((*reply).clone())).collect();
        let outputs = head_outputs(head, self.model, stack, rows)?; // [n, classes]
        let shown = outputs.softmax(-1, Kind::Double).select(1, *class);
        Ok(shown.sum(Kind::Double).double_value(&[]))
    }
}

/// The perplexity of replies after their prompts under the plain model: `e` to the mean of `−log p` of all tokens; 1 without tokens.
///
/// # Errors
/// Errors of the model.
pub fn reply_perplexity(model: &dyn Model, prompts: &[Row], replies: &[Vec<i64>]) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    let (mut sum, mut tokens) = (0.0, 0);
    for (prompt, reply) in prompts.iter().zip(replies).filter(|(_, reply)| !reply.is_empty()) {
        let ids = [&prompt.input_ids[..], reply].concat();
        let layout = Layout::new(vec![Row::prompt(ids)], PaddingSide::Right)?;
        let mut plain = AdapterStack::EMPTY.hooks(&layout, Mode::Eval)?;
        let h = model.whole_pass(&layout, &mut plain)?.select(0, 0); // [t, d]
        let h = h.narrow(0, prompt.input_ids.len() as i64 - 1, reply.len() as i64);
        let losses = cross_entropy(model, &h, &Tensor::from_slice(reply).to_device(h.device()));
        sum += losses.sum(Kind::Double).double_value(&[]);
        tokens += reply.len();
    }
    Ok((sum / tokens.max(1) as f64).exp())
}

/// Distinct pairs of neighbours as a share of all; 1 for a reply without pairs.
fn distinct_pairs(reply: &[i64]) -> f64 {
    let pairs = reply.windows(2);
    let n = pairs.len();
    let different: HashSet<&[i64]> = pairs.collect();
    if n == 0 { 1.0 } else { different.len() as f64 / n as f64 }
}
