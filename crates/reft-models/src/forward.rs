use std::ops::Range;

use tch::Tensor;

use crate::Result;
use crate::decoder::Decoder;
use crate::hooks::Hooks;
use crate::layout::Span;
use crate::pass::Pass;
use crate::past::Past;
use crate::site::Component::BlockOutput;

/// One forward over a span, stage by stage.
///
/// Stage `k` shows the hooks what is between two blocks (the embeddings if `k` is 0, else the output of block `k − 1`) and runs block
/// `k` on what they return. After the stages, [`Self::finish`] shows them the last block's output and applies the final norm. So the
/// hidden states that go into stage `k` depend on no hook at a site above, and a forward can begin there with ones computed before.
#[derive(Debug)]
pub struct Forward<'a> {
    decoder: &'a Decoder,
    pass: Pass<'a>,
    prefix: usize,
    /// The last columns of the span, if only theirs are wanted of the last block.
    wanted: Option<Pass<'a>>,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(decoder: &'a Decoder, span: &Span<'a>, prefix: usize) -> Self {
        Self { decoder, pass: decoder.pass(span.clone(), prefix), prefix, wanted: None }
    }

    /// Wants the hidden states of the span's columns from `column` on only: the last block computes no others.
    ///
    /// # Panics
    /// If the span does not have the column.
    pub fn wanting(mut self, column: usize) -> Self {
        let span = &self.pass.span;
        assert!(span.columns.contains(&column), "column {column} is not of {:?}", span.columns);
        let columns = column..span.columns.end;
        self.wanted = (column > span.columns.start)
            .then(|| self.decoder.pass(Span { layout: span.layout, columns }, self.prefix));
        self
    }

    /// The columns whose hidden states [`Self::finish`] returns.
    pub fn outputs(&self) -> &Span<'a> {
        &self.wanted.as_ref().unwrap_or(&self.pass).span
    }

    /// What goes into stage 0: the embeddings `[b, t, d]` of `input_ids` `[b, t]`, the tokens of the span's columns.
    pub fn embed(&self, input_ids: &Tensor) -> Tensor {
        self.decoder.embed_tokens().rows_at(input_ids)
    }

    /// Runs stages on the hidden states `[b, t, d]` that go into the first of them, and returns what goes into the next.
    ///
    /// # Errors
    /// What a hook refuses, with its site.
    pub fn run(
        &self,
        stages: Range<usize>,
        mut h: Tensor,
        mut past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let blocks = self.decoder.blocks();
        for stage in stages {
            h = match stage.checked_sub(1) {
                None => hooks.embeddings(h, &self.pass.span)?,
                Some(below) => blocks[below].visit(BlockOutput, h, &self.pass, hooks)?,
            };
            let is_last = stage + 1 == blocks.len();
            let queries = self.wanted.as_ref().filter(|_| is_last).unwrap_or(&self.pass);
            let past = past.as_mut().map(|past| &mut **past as &mut dyn Past);
            h = blocks[stage].forward(h, &self.pass, queries, past, hooks)?;
        }
        Ok(h)
    }

    /// Ends a forward: hidden states `[b, q, d]` of the wanted columns after the final norm.
    ///
    /// # Errors
    /// What a hook refuses, with its site.
    pub fn finish(&self, h: Tensor, hooks: &mut dyn Hooks) -> Result<Tensor> {
        let pass = self.wanted.as_ref().unwrap_or(&self.pass);
        let h = match self.decoder.blocks().last() {
            Some(block) => block.visit(BlockOutput, pass.last_columns(&h), pass, hooks)?,
            None => h,
        };
        Ok(self.decoder.norm().forward(&h))
    }
}
