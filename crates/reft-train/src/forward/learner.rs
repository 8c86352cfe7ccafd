use std::collections::BTreeMap;

use reft_core::Parameter;
use reft_models::{AdapterStack, ContextLimit, Dose, Mode, Model, Reach, Row};
use serde::Serialize;
use tch::Tensor;

use crate::forward::checkpointed_pass::CheckpointedPass;
use crate::forward::pass::Pass;
use crate::{
    Batch, Error, Example, Forwards, FrozenStore, Metric, Needed, Objective, Processes, Ready,
    ReadyBatch, Reference, Result, Sequence, Share,
};

/// A frozen model, its adapters and their objective, to be trained and evaluated.
#[derive(Clone)]
pub struct Learner<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// The adapters.
    pub stack: AdapterStack<'a>,
    /// The objective.
    pub objective: &'a dyn Objective,
}

/// How well a model does on some examples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LossReport {
    /// The objective's loss; of next tokens the mean of `−log p(target)` over the target tokens.
    pub loss: f64,
    /// `e^loss`.
    pub perplexity: f64,
    /// Number of target tokens.
    pub target_tokens: i64,
    /// By name: the mean of each term before its weight, of further measures too, and the objective's metrics.
    #[serde(skip)]
    pub measured: BTreeMap<String, f64>,
}

impl<'a> Learner<'a> {
    /// Adapters of a model, to learn by an objective.
    pub fn new(
        model: &'a dyn Model,
        stack: &AdapterStack<'a>,
        objective: &'a dyn Objective,
    ) -> Self {
        Self { model, stack: stack.clone(), objective }
    }

    /// Examples to be computed together.
    ///
    /// # Errors
    /// [`reft_models::Error::EmptyBatch`] or [`reft_models::Error::PromptLength`].
    pub fn batch<'e>(&self, examples: impl IntoIterator<Item = &'e Example>) -> Result<Batch> {
        let needed = |sequence| self.needed(sequence);
        Batch::collate(examples, needed, self.stack.virtual_tokens())
    }

    /// Each term's sum over a batch: scalars, differentiable in the [parameters](Self::parameters). With `frozen`, activations before the
    /// adapters' [`Reach`] come from the store, and only the rest is computed; the numbers are the same to rounding.
    ///
    /// # Errors
    /// Errors of the model, of an adapter or of the objective.
    pub fn sums(
        &self,
        batch: &Batch,
        mode: Mode,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<Vec<Tensor>> {
        Ok(self.sums_of(batch, &self.ready(batch, frozen)?, mode, None)?.0)
    }

    /// The loss of examples computed together: a scalar, differentiable in the [parameters](Self::parameters), for custom training loops.
    ///
    /// # Errors
    /// As [`Self::batch`] and [`Self::sums`].
    pub fn loss<'e>(
        &self,
        examples: impl IntoIterator<Item = &'e Example>,
        mode: Mode,
    ) -> Result<Tensor> {
        let batch = self.batch(examples)?;
        let sums = self.sums(&batch, mode, None)?;
        let factors = self.factors(&self.objective.counts(&batch));
        let terms: Vec<Tensor> =
            sums.iter().zip(factors).map(|(sum, factor)| sum * factor).collect();
        Ok(Tensor::stack(&terms, 0).sum(None))
    }

    /// The loss on examples. The longest examples come first: if memory runs out, it runs out at once. With `frozen`, cached activations come from
    /// the store.
    ///
    /// # Errors
    /// [`reft_models::Error::ContextFull`] before the first example is computed; [`Error::EvaluationNotFinite`]; the errors of [`Self::check`];
    /// errors of the model, an adapter or the objective.
    pub fn evaluate(
        &self,
        examples: &[Example],
        batch_size: usize,
        frozen: Option<&mut FrozenStore>,
    ) -> Result<LossReport> {
        self.evaluate_among(examples, batch_size, frozen, Processes::ALONE)
    }

    /// [`Self::evaluate`], with the batches divided among the processes of a run: each process has every `world`-th batch.
    pub(crate) fn evaluate_among(
        &self,
        examples: &[Example],
        batch_size: usize,
        frozen: Option<&mut FrozenStore>,
        processes: Processes,
    ) -> Result<LossReport> {
        self.check_lengths(examples)?;
        self.check(examples)?;
        let terms = self.objective.terms();
        let own = self.own_sums(examples, batch_size, frozen, processes.share);
        let told = if self.measures_told() { 2 * examples.len() } else { 0 };
        let mut sums = processes.sums_of(own, 2 * terms.len() + 1 + told, 0)?;
        let told = sums.split_off(sums.len() - told);
        let target_tokens = sums.pop().unwrap_or_default() as i64;
        let counts = sums.split_off(terms.len());
        let means = sums.iter().zip(self.divisors(&counts)).map(|(sum, n)| sum / n);
        let means: Vec<f64> = means.collect();
        let loss = self.loss_of(&means);
        let named = terms.iter().zip(&means).map(|(term, mean)| (term.name.to_owned(), *mean));
        let mut measured: BTreeMap<String, f64> = named.collect();
        if !told.is_empty() {
            let pairs: Vec<[f64; 2]> = told.chunks_exact(2).map(|own| [own[0], own[1]]).collect();
            let classes = self.objective.classes();
            let metrics = self.objective.metrics().iter();
            let of_told =
                |metric: &Metric| Some((metric.to_string(), metric.of_told(&pairs, classes)?));
            measured.extend(metrics.filter_map(of_told));
        }
        Ok(LossReport { loss, perplexity: loss.exp(), target_tokens, measured })
    }

    /// Whether one of the objective's metrics is computed from predictions, and is no term of its loss.
    fn measures_told(&self) -> bool {
        let is_term =
            |metric: &Metric| self.objective.terms().iter().any(|term| term.name == metric.name());
        !self.objective.metrics().iter().all(is_term)
    }

    /// For a process's batches: the sum of each term, its count, the number of target tokens, and the prediction and label of each example;
    /// 0 for the examples of other processes.
    fn own_sums(
        &self,
        examples: &[Example],
        batch_size: usize,
        mut frozen: Option<&mut FrozenStore>,
        share: Share,
    ) -> Result<Vec<f64>> {
        let mut sorted: Vec<&Example> = examples.iter().collect();
        sorted.sort_by_key(|example| std::cmp::Reverse(example.length()));
        let terms = self.objective.terms().len();
        let (mut sums, mut counts, mut target_tokens) = (vec![0.0; terms], vec![0.0; terms], 0);
        let measures_told = self.measures_told();
        let mut told = vec![0.0; if measures_told { 2 * examples.len() } else { 0 }];
        let _guard = tch::no_grad_guard();
        let batch_size = batch_size.max(1);
        let batches = sorted.chunks(batch_size).enumerate();
        for (i, examples) in batches.skip(share.rank()).step_by(share.world()) {
            let batch = self.batch(examples.iter().copied())?;
            let ready = self.ready(&batch, frozen.as_deref_mut())?;
            let (forwards, _) = self.forwards(&batch, &ready, Mode::Eval, None)?;
            let found = self.objective.sums(&forwards)?;
            let found: Vec<f64> = found.iter().map(|sum| sum.double_value(&[])).collect(); // sync
            if let Some(&value) = found.iter().find(|sum| !sum.is_finite()) {
                let ids = examples.iter().map(|example| example.id.clone()).collect();
                return Err(Error::EvaluationNotFinite { value, ids });
            }
            add(&mut sums, &found);
            add(&mut counts, &self.objective.counts(&batch));
            target_tokens += batch.n_targets();
            if measures_told {
                let own = self.objective.told(&forwards)?.concat();
                let first = 2 * i * batch_size;
                told[first..first + own.len()].copy_from_slice(&own);
            }
        }
        sums.extend(counts);
        sums.push(target_tokens as f64);
        sums.extend(told);
        Ok(sums)
    }

    /// Checks that examples fit into the model's context, with the adapters' tokens before them.
    ///
    /// # Errors
    /// [`reft_models::Error::ContextFull`].
    pub(crate) fn check_lengths<'e>(
        &self,
        examples: impl IntoIterator<Item = &'e Example>,
    ) -> Result<()> {
        let lengths = examples.into_iter().map(|example| (&example.id, example.length()));
        Ok(ContextLimit::of(self.model.description(), &self.stack).check(lengths)?)
    }

    /// Checks that the model has logits if the objective reads them, and that the adapters have the coordinates that examples name.
    ///
    /// # Errors
    /// [`reft_models::Error::Encoder`]; [`Error::Example`] with the first example of unknown coordinates.
    pub fn check(&self, examples: &[Example]) -> Result<()> {
        if self.objective.reads_logits() {
            let what = format!("the objective {}", self.objective.name());
            self.model.description().check_predicts(what)?;
        }
        examples.iter().try_for_each(|example| {
            let mut rows = example.sequences.iter().map(|sequence| &sequence.row);
            rows.try_for_each(|row| self.stack.check_subspace(row)).map_err(|source| {
                Error::Example { id: example.id.clone(), source: Box::new(source) }
            })
        })
    }

    /// The trained tensors: the adapters' parameters, and the objective's, prefixed with its name: `last-token/…`.
    pub fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = self.stack.parameters();
        let own = self.objective.parameters().into_iter();
        parameters.extend(own.map(|p| Parameter { name: self.own_name(&p.name), ..p }));
        parameters
    }

    /// Every tensor that a checkpoint needs of the adapters and the objective.
    pub(crate) fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = self.stack.state();
        let own = self.objective.parameters().into_iter();
        state.extend(own.map(|p| (self.own_name(&p.name), p.tensor.detach().copy())));
        state
    }

    /// Restores a [`Self::state`].
    ///
    /// # Errors
    /// If tensors are missing, unexpected or of another shape, by name.
    pub(crate) fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut of_adapters: BTreeMap<String, Tensor> =
            state.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        for Parameter { name, tensor, .. } in self.objective.parameters() {
            let name = self.own_name(&name);
            let saved = of_adapters.remove(&name).filter(|saved| saved.size() == tensor.size());
            let saved = saved.ok_or_else(|| {
                let reason = format!("{name} is missing, or not of shape {:?}", tensor.size());
                reft_models::Error::Adapter { reason }
            })?;
            tch::no_grad(|| tensor.shallow_clone().copy_(&saved));
        }
        Ok(self.stack.load_state(&of_adapters)?)
    }

    /// The objective's name, a slash, and a parameter's name.
    fn own_name(&self, name: &str) -> String {
        format!("{}/{name}", self.objective.name())
    }

    /// The divisor of each term's sum for its mean: its count. A term with count 0 gets ∞ and adds nothing, unless all counts are 0.
    pub(crate) fn divisors(&self, counts: &[f64]) -> Vec<f64> {
        let is_empty = counts.iter().all(|n| *n == 0.0);
        let divisor = |n: &f64| if *n > 0.0 || is_empty { *n } else { f64::INFINITY };
        counts.iter().map(divisor).collect()
    }

    /// The factor of each term's sum in the loss.
    pub(crate) fn factors(&self, counts: &[f64]) -> Vec<f64> {
        let terms = self.objective.terms().iter().zip(self.divisors(counts));
        terms.map(|(term, n)| term.weight / n).collect()
    }

    /// The loss, from the mean of each term.
    pub(crate) fn loss_of(&self, means: &[f64]) -> f64 {
        let terms = self.objective.terms().iter().zip(means);
        terms.filter(|(term, _)| term.weight != 0.0).map(|(term, mean)| term.weight * mean).sum()
    }

    /// Makes a batch ready for all forwards and references that the objective wants of it.
    pub(crate) fn ready(
        &self,
        batch: &Batch,
        mut frozen: Option<&mut FrozenStore>,
    ) -> Result<Ready> {
        let forward = |dose: &Dose| ReadyBatch::new(self, *dose, batch, frozen.as_deref_mut());
        let forwards = self.objective.doses().iter().map(forward).collect::<Result<Vec<_>>>()?;
        let references = self.objective.references(batch.part);
        let reference = |own: &Reference| own.of_batch(self.model, batch, frozen.as_deref_mut());
        let references = references.iter().map(reference).collect::<Result<_>>()?;
        Ok(Ready { forwards, references })
    }

    /// Whether a batch can be made ready without the device computing anything for it.
    pub(crate) fn is_cached(&self, batch: &Batch, frozen: Option<&FrozenStore>) -> bool {
        let is_cached = |dose: &Dose| ReadyBatch::is_cached(self, *dose, batch, frozen);
        let references = self.objective.references(batch.part);
        self.objective.doses().iter().all(is_cached)
            && references.iter().all(|reference| reference.is_cached(batch, frozen))
    }

    /// Adds the gradient of `Σ factor · sum` over the terms to the parameters' gradients; returns the sums, without gradient.
    ///
    /// `by_block` computes activations again in the backward, block by block, to save memory.
    ///
    /// # Errors
    /// Errors of the model, of an adapter or of the objective.
    pub(crate) fn backward(
        &self,
        batch: &Batch,
        ready: &Ready,
        factors: &[f64],
        seed: u64,
        by_block: bool,
    ) -> Result<Vec<Tensor>> {
        tch::manual_seed(seed as i64); // dropout
        let (sums, passes) = self.sums_of(batch, ready, Mode::Train, by_block.then_some(seed))?;
        let detached = sums.iter().map(Tensor::detach).collect();
        let scaled = sums.into_iter().zip(factors).map(|(sum, factor)| sum * *factor);
        // no gradient: the outputs of these examples do not depend on trained parameters
        if let Some(loss) = scaled.filter(Tensor::requires_grad).reduce(|a, b| a + b) {
            loss.backward();
        }
        passes.into_iter().rev().try_for_each(CheckpointedPass::backward)?;
        Ok(detached)
    }

    /// The sums of a batch, and the forwards that are still to be differentiated block by block, with the seed of
    /// their dropout.
    fn sums_of<'p>(
        &'p self,
        batch: &'p Batch,
        ready: &'p Ready,
        mode: Mode,
        by_block: Option<u64>,
    ) -> Result<(Vec<Tensor>, Vec<CheckpointedPass<'p>>)> {
        let (forwards, passes) = self.forwards(batch, ready, mode, by_block)?;
        Ok((self.objective.sums(&forwards)?, passes))
    }

    /// The forwards of a batch, and those still to be differentiated block by block.
    fn forwards<'p>(
        &'p self,
        batch: &'p Batch,
        ready: &'p Ready,
        mode: Mode,
        by_block: Option<u64>,
    ) -> Result<(Forwards<'p>, Vec<CheckpointedPass<'p>>)> {
        let Ready { forwards, references } = ready;
        let (mut outputs, mut passes) = (Vec::with_capacity(forwards.len()), Vec::new());
        for (i, ready) in forwards.iter().enumerate() {
            let pass = Pass::new(self, ready, mode)?;
            match by_block.filter(|_| !ready.dose.is_none()) {
                None => outputs.push(pass.outputs()?),
                Some(seed) => {
                    let seed = seed.wrapping_add(i as u64); // another dropout for each forward
                    let (pass, own) = CheckpointedPass::forward(pass, seed)?;
                    passes.push(pass);
                    outputs.push(own);
                }
            }
        }
        Ok((Forwards { model: self.model, mode, batch, outputs, references }, passes))
    }

    /// The part of a row that the adapters at a dose leave to the frozen model; `first_wanted` is its first token whose final
    /// hidden state is read.
    pub fn reach(&self, dose: Dose, row: &Row, first_wanted: usize) -> Reach {
        let description = self.model.description();
        let untouched = Reach { stage: description.num_hidden_layers, token: first_wanted };
        let touched = Some(row).filter(|_| !dose.is_none()).and_then(|row| self.stack.reach(row));
        let reach = touched.map_or(untouched, |touched| untouched.and(touched));
        // in a model that is not causal every token sees the touched ones
        if description.is_causal { reach } else { Reach { token: 0, ..reach } }
    }

    /// The needed tokens of a sequence.
    pub(crate) fn needed<'d>(&self, sequence: &'d Sequence) -> Needed<'d> {
        let wanted = self.objective.wanted(sequence);
        let model = self.model.description();
        Needed::new(sequence, wanted, model.is_causal && !model.depends_on_length)
    }
}

/// Adds numbers to others, in place.
pub(crate) fn add(sums: &mut [f64], numbers: &[f64]) {
    sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
}
