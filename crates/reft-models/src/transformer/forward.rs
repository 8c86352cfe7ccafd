use std::ops::Range;

use tch::Tensor;

use crate::site::Component::BlockOutput;
use crate::{BlockColumns, Decoder, Forward, HookPoint, Hooks, Pass, Past, Result, Span};

/// A forward of a [`Decoder`].
#[derive(Debug)]
pub(crate) struct DecoderForward<'a> {
    decoder: &'a Decoder,
    pass: Pass<'a>,
    /// The last columns of the span, if only theirs are wanted of the last block.
    wanted: Option<Pass<'a>>,
}

impl<'a> DecoderForward<'a> {
    pub(crate) fn new(decoder: &'a Decoder, span: &Span<'a>, prefix: usize) -> Self {
        Self { decoder, pass: decoder.pass(span.clone(), prefix), wanted: None }
    }
}

impl<'a> Forward<'a> for DecoderForward<'a> {
    fn want_from(&mut self, column: usize) {
        let span = &self.pass.span;
        assert!(span.columns.contains(&column), "column {column} is not of {:?}", span.columns);
        let columns = column..span.columns.end;
        self.wanted = (column > span.columns.start)
            .then(|| self.decoder.pass(Span { layout: span.layout, columns }, self.pass.prefix));
    }

    fn outputs(&self) -> &Span<'a> {
        &self.wanted.as_ref().unwrap_or(&self.pass).span
    }

    fn embed(&self, input_ids: &Tensor) -> Tensor {
        self.decoder.embeddings.of_tokens(input_ids)
    }

    fn run(
        &self,
        stages: Range<usize>,
        mut h: Tensor,
        mut past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let blocks = &self.decoder.blocks;
        for stage in stages {
            h = match stage.checked_sub(1) {
                None => {
                    let h = hooks.visit(HookPoint::Embeddings, h, &self.pass.span)?;
                    self.decoder.embeddings.block_input(h, &self.pass.span, self.pass.prefix)?
                }
                Some(below) => hooks.visit_residual(below, BlockOutput, h, &self.pass.span)?,
            };
            let is_last = stage + 1 == blocks.len();
            let queries = self.wanted.as_ref().filter(|_| is_last).unwrap_or(&self.pass);
            let past = past.as_mut().map(|past| &mut **past as &mut dyn Past);
            let columns = BlockColumns { seen: &self.pass, computed: queries };
            h = blocks[stage].forward(h, columns, past, hooks)?;
        }
        Ok(h)
    }

    fn finish(&self, h: Tensor, hooks: &mut dyn Hooks) -> Result<Tensor> {
        let pass = self.wanted.as_ref().unwrap_or(&self.pass);
        let h = match self.decoder.blocks.len().checked_sub(1) {
            Some(last) => {
                hooks.visit_residual(last, BlockOutput, pass.last_columns(&h), &pass.span)?
            }
            None => h,
        };
        Ok(match &self.decoder.norm {
            Some(norm) => norm.forward(&h),
            None => h,
        })
    }
}
