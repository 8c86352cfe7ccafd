use std::ops::Range;

use tch::Tensor;

use crate::site::Component::BlockOutput;
use crate::{BlockColumns, Decoder, Forward, HookPoint, Hooks, Model, Pass, Past, Result, Span};

/// A forward of a [`Decoder`].
#[derive(Debug)]
pub(crate) struct DecoderForward<'a> {
    decoder: &'a Decoder,
    pass: Pass<'a>,
    /// The last columns of the span, if the last block computes only these.
    wanted: Option<Pass<'a>>,
}

impl<'a> DecoderForward<'a> {
    pub(crate) fn new(decoder: &'a Decoder, span: &Span<'a>, prefix: usize) -> Self {
        Self { decoder, pass: Pass::new(decoder, span.clone(), prefix), wanted: None }
    }
}

impl<'a> Forward<'a> for DecoderForward<'a> {
    fn want_from(&mut self, column: usize) {
        let span = &self.pass.span;
        assert!(span.columns.contains(&column), "column {column} is not of {:?}", span.columns);
        let columns = column..span.columns.end;
        self.wanted = (column > span.columns.start).then(|| {
            Pass::new(self.decoder, Span { layout: span.layout, columns }, self.pass.prefix)
        });
    }

    fn outputs(&self) -> &Span<'a> {
        &self.wanted.as_ref().unwrap_or(&self.pass).span
    }

    fn embed(&self, input_ids: &Tensor) -> Tensor {
        self.decoder.embeddings.of_tokens(&self.decoder.placement().to_embeddings(input_ids))
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
            h = self.decoder.placement().after(stage, h);
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
        let h = match &self.decoder.norm {
            Some(norm) => norm.forward(&h),
            None => h,
        };
        Ok(self.decoder.placement().to_head(h))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::placement::MOVES;
    use crate::{AdapterStack, GenerationConfig, Layout, NoHooks, PaddingSide, Placement, Row};
    use reft_test_support::{Outcome, oracle};
    use tch::{Device, Kind};

    /// How often a tensor is moved in a computation.
    fn moves<T>(act: impl FnOnce() -> Result<T>) -> Result<usize> {
        MOVES.with(|moves| moves.set(0));
        act()?;
        Ok(MOVES.with(std::cell::Cell::get))
    }

    fn cut(name: &str, blocks: &[usize]) -> Result<Decoder> {
        let parts: Vec<(Device, usize)> = blocks.iter().map(|n| (Device::Cpu, *n)).collect();
        Decoder::open(&oracle(name), Kind::Float, Placement::of_blocks(&parts)?)
    }

    #[test]
    fn states_are_moved_where_the_model_is_cut_and_nowhere_else() -> Outcome {
        let layout = Layout::new(vec![Row::prompt(vec![5, 6, 7])], PaddingSide::Right)?;
        let of = |model: &Decoder| moves(|| model.whole_pass(&layout, &mut NoHooks));
        assert_eq!(of(&cut("tiny_llama", &[4])?)?, 0);
        // the ids to the embeddings, and hidden states once for every cut
        assert_eq!(of(&cut("tiny_llama", &[3, 1])?)?, 2);
        assert_eq!(of(&cut("tiny_llama", &[1, 1, 1, 1])?)?, 4);
        // tied: the ids are on the device of the embeddings already, and the last states are moved back to it
        let tied = cut("families/llama_tied", &[1, 1])?;
        assert_eq!((of(&tied)?, tied.placement().part(1)), (2, 1));
        Ok(())
    }

    #[test]
    fn stages_that_are_run_by_themselves_move_as_often() -> Outcome {
        let model = cut("tiny_llama", &[1, 1, 2])?;
        let layout = Layout::new(vec![Row::prompt(vec![5, 6, 7])], PaddingSide::Right)?;
        let forward = model.forward(&layout.whole(), 0);
        let mut h = forward.embed(&layout.input_ids(model.device()));
        let found = (0..4).map(|stage| {
            moves(|| {
                h = forward.run(stage..stage + 1, h.shallow_clone(), None, &mut NoHooks)?;
                Ok(())
            })
        });
        assert_eq!(found.collect::<Result<Vec<usize>>>()?, [1, 1, 0, 0]);
        Ok(())
    }

    #[test]
    fn prefill_and_every_decoding_step_move_once_a_cut() -> Outcome {
        let model = cut("tiny_llama", &[2, 2])?;
        let config = GenerationConfig { max_new_tokens: 5, ..GenerationConfig::default() };
        let rows = vec![Row::prompt(vec![5, 6, 7]), Row::prompt(vec![8, 9])];
        let generate = || {
            crate::generate(&model, &AdapterStack::EMPTY, &rows, &config, &mut |_, _| {
                std::ops::ControlFlow::Continue(())
            })
        };
        assert_eq!(moves(generate)?, 2 * 5); // ids and states, of a prefill and four steps
        Ok(())
    }
}
