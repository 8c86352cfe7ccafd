use std::collections::HashMap;

use reft_core::{GateKind, Interchange};
use reft_models::{Mode, TokenAt, send};
use reft_train::{Batch, Example, cross_entropy};
use tch::Tensor;

use crate::interchange::accuracy::{Accuracy, is_right, per_example};
use crate::{Alignment, BaseRuns, Error, Result, Swap, VariableSwap};

/// Base runs with the coordinates of variables taken from source runs.
///
/// Several trials can be run at once: every row is run once per trial, with the trial's swaps. Losses, gradients and answers are the same as in
/// separate runs. If trials are sorted by stage, each enters the forward at its own stage, and every weight above is read once for all trials.
///
/// The sources' hidden states were computed before: the model is frozen, so they are the same in every step.
pub struct InterchangeRuns<'a> {
    base: &'a BaseRuns<'a>,
    alignment: &'a Alignment,
    pub(super) trials: Vec<Vec<VariableSwap>>,
    /// The counterfactuals by the ids of their bases.
    numbers: HashMap<String, usize>,
}

impl<'a> InterchangeRuns<'a> {
    /// Runs of counterfactuals with these bases. The swaps of a trial are made in their order; a trial without swaps is the plain model.
    ///
    /// # Errors
    /// [`Error::Counterfactuals`] if two bases have one id, or a swap does not have a token and a source for each, or does not fit the
    /// alignment.
    pub fn new(
        base: &'a BaseRuns<'a>,
        alignment: &'a Alignment,
        bases: &[Example],
        trials: Vec<Vec<VariableSwap>>,
    ) -> Result<Self> {
        let mut numbers = HashMap::with_capacity(bases.len());
        for (number, Example { id, .. }) in bases.iter().enumerate() {
            if numbers.insert(id.clone(), number).is_some() {
                let reason = format!("two bases have the id {id:?}; give each its own");
                return Err(Error::Counterfactuals { reason });
            }
        }
        for swap in trials.iter().flatten() {
            swap.check(alignment, bases.len())?;
        }
        Ok(Self { base, alignment, trials, numbers })
    }

    /// The alignments that may hold the variables.
    pub fn alignment(&self) -> &'a Alignment {
        self.alignment
    }

    /// How many examples are answered as expected in each trial, about `rows` rows at a time: the interchange intervention accuracy. An
    /// answer is the likeliest of `answers`, or of all tokens if none are named.
    ///
    /// # Errors
    /// Errors of the model; an example that is no counterfactual.
    pub fn accuracies(
        &self,
        examples: &[Example],
        rows: usize,
        answers: &[i64],
    ) -> Result<Vec<Accuracy>> {
        let of_trial = |given: Vec<Vec<i64>>| {
            let hits = examples.iter().zip(&given).filter(|(own, given)| is_right(own, given));
            Accuracy { hits: hits.count(), total: examples.len() }
        };
        Ok(self.answers(examples, rows, answers)?.into_iter().map(of_trial).collect())
    }

    /// The answers at every target of each example, in each trial; as [`Self::accuracies`].
    ///
    /// # Errors
    /// As [`Self::accuracies`].
    pub fn answers(
        &self,
        examples: &[Example],
        rows: usize,
        answers: &[i64],
    ) -> Result<Vec<Vec<Vec<i64>>>> {
        let _guard = tch::no_grad_guard();
        let mut all = vec![Vec::with_capacity(examples.len()); self.trials.len()];
        for examples in examples.chunks((rows / self.trials.len().max(1)).max(1)) {
            let batch = self.base.batch(examples)?;
            let swaps = self.swaps(&batch, Mode::Eval)?;
            let given = self.base.answers(&batch, self.trials.len(), swaps, answers)?;
            let mut given = given.into_iter();
            for of_trial in &mut all {
                of_trial.extend(per_example(examples, &mut given));
            }
        }
        Ok(all)
    }

    /// `−log p(target)` of every target token in every trial, `[trials · m]`, differentiable in the alignment's parameters.
    ///
    /// Gates are soft in training and hard otherwise.
    ///
    /// # Errors
    /// Errors of the model; an example that is no counterfactual.
    pub fn target_losses(&self, batch: &Batch, mode: Mode) -> reft_train::Result<Tensor> {
        let (h, labels) = self.base.run(batch, self.trials.len(), self.swaps(batch, mode)?)?;
        Ok(cross_entropy(self.base.model(), &h, &labels))
    }

    /// The swaps of all trials in a batch.
    fn swaps(&self, batch: &Batch, mode: Mode) -> reft_models::Result<Vec<Swap<'static>>> {
        let number = |id: &String| {
            let reason = || format!("example {id} is no counterfactual of these swaps");
            let number = self.numbers.get(id).copied();
            number.ok_or_else(|| reft_models::Error::Adapter { reason: reason() })
        };
        let numbers: Vec<usize> = batch.ids.iter().map(number).collect::<Result<_, _>>()?;
        let gates = match mode {
            Mode::Train => GateKind::Soft,
            Mode::Eval => GateKind::Hard,
        };
        let interchanges = self.alignment.interchanges(gates)?;
        let mut swaps = Vec::new();
        for (trial, of_trial) in self.trials.iter().enumerate() {
            for VariableSwap { place, alignment, coordinates, tokens, sources } in of_trial {
                let interchange = interchanges[*alignment].coordinates(coordinates.clone())?;
                let swapped = numbers.iter().enumerate().filter_map(|(row, &number)| {
                    let token = tokens[number]?;
                    Some((TokenAt { row: trial * numbers.len() + row, token }, number as i64))
                });
                let (tokens, which): (Vec<TokenAt>, Vec<i64>) = swapped.unzip();
                let source =
                    sources.index_select(0, &send(&Tensor::from_slice(&which), sources.device()));
                let interchange: Box<dyn Interchange> = Box::new(interchange);
                swaps.push(Swap { place: place.clone(), tokens, source, interchange });
            }
        }
        Ok(swaps)
    }
}
