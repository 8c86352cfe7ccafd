use std::ops::Range;

use reft_models::{Forward, Hooks, Mode, Model, Past, Span, Stacked};
use tch::Tensor;

use crate::{Learner, Outputs, ReadyBatch, Result};

/// One forward of a batch, stage by stage.
pub(crate) struct Pass<'p> {
    pub(crate) hooks: Stacked<'p>,
    model: &'p dyn Model,
    ready: &'p ReadyBatch,
    forward: Box<dyn Forward<'p> + 'p>,
}

impl<'p> Pass<'p> {
    /// A forward before its first stage.
    pub(crate) fn new(learner: &'p Learner<'p>, ready: &'p ReadyBatch, mode: Mode) -> Result<Self> {
        let (model, layout) = (learner.model, &ready.layout);
        let hooks = learner.stack.hooks_of(ready.dose, layout, mode)?;
        let span = Span { layout, columns: ready.first_column..layout.width() };
        let mut forward = model.forward(&span, hooks.prefix_length());
        forward.want_from(ready.first_wanted);
        Ok(Self { hooks, model, ready, forward })
    }

    /// The whole forward.
    pub(crate) fn outputs(mut self) -> Result<Outputs<'p>> {
        let _guard = self.ready.dose.is_none().then(tch::no_grad_guard); // the plain model has nothing to learn
        let h = self.run(self.stages(), self.input())?;
        self.finish(h)
    }

    /// The stages that are to be run.
    pub(crate) fn stages(&self) -> Range<usize> {
        self.ready.stage..self.model.description().num_hidden_layers
    }

    /// The input of the first stage.
    pub(crate) fn input(&self) -> Tensor {
        match self.ready.past {
            None => self.forward.embed(&self.ready.input),
            Some(_) => self.ready.input.shallow_clone(),
        }
    }

    /// Runs stages on the input of the first of them.
    pub(crate) fn run(&mut self, stages: Range<usize>, h: Tensor) -> Result<Tensor> {
        let mut past = self.ready.past.as_ref();
        let past = past.as_mut().map(|past| past as &mut dyn Past);
        Ok(self.forward.run(stages, h, past, &mut self.hooks)?)
    }

    /// Ends the forward.
    pub(crate) fn finish(&mut self, h: Tensor) -> Result<Outputs<'p>> {
        let hidden_states = self.forward.finish(h, &mut self.hooks)?;
        let span = self.forward.outputs().clone();
        Ok(Outputs { model: self.model, span, targets: &self.ready.targets, hidden_states })
    }
}
