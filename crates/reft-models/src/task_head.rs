//! The head of a task on a frozen model, in the form that transformers gives it.

use std::collections::BTreeMap;

use reft_core::Parameter;
use tch::{Device, Kind, Tensor};

use crate::{Error, Model, ModelDescription, Result, TaskHeadForm, Weights};

/// A trained head: it computes `k` outputs for a text from the final hidden state of one of its tokens.
#[derive(Debug)]
pub struct TaskHead {
    form: TaskHeadForm,
    names: Vec<String>,
    trained: Vec<(String, Tensor)>,
    pooler: Option<[Tensor; 2]>, // weight [d, d] and bias [d]
}

/// Standard deviation of new matrices, as Hugging Face models start.
const START: f64 = 0.02;

impl TaskHead {
    /// A new head with `k` outputs: matrices normal with standard deviation 0.02, biases 0. Random numbers come from libtorch's CPU
    /// generator ([`tch::manual_seed`]). `names` are the names of the classes, one for each output; empty for regression.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the family's head is not supported, or the checkpoint lacks the pooler below the head.
    pub fn new(model: &dyn Model, weights: &Weights, k: i64, names: Vec<String>) -> Result<Self> {
        let form = model.description().task_head;
        let start = |(name, shape): (&str, Vec<i64>)| {
            let options = (Kind::Float, Device::Cpu);
            let tensor = match shape[..] {
                [_, _] => Tensor::randn(&shape, options) * START,
                _ => Tensor::zeros(&shape, options),
            };
            (name.to_owned(), tensor)
        };
        let tensors = form.tensors(model.description().hidden_size, k).into_iter().map(start);
        Self::of(model, weights, tensors.collect(), names)
    }

    /// A head from its tensors by transformers' names, for use or further training.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Adapter`] with the tensors that are missing, unexpected or misshapen.
    pub fn of(
        model: &dyn Model,
        weights: &Weights,
        mut tensors: BTreeMap<String, Tensor>,
        names: Vec<String>,
    ) -> Result<Self> {
        let ModelDescription { task_head: form, model_type, hidden_size: d, .. } =
            model.description();
        let refuse = |reason: String| Err(Error::Adapter { reason });
        if *form == TaskHeadForm::Other {
            return refuse(format!(
                "the head of {model_type} is not computed; take a decoder, BERT, RoBERTa or DistilBERT"
            ));
        }
        let of_outputs = form.tensors(*d, 1).into_iter().map(|(name, _)| name);
        let last = of_outputs.rev().find(|name| name.ends_with("weight")).unwrap_or_default();
        let k = tensors.get(last).and_then(|tensor| tensor.size().first().copied()).unwrap_or(1);
        let mut trained = Vec::new();
        for (name, expected) in form.tensors(*d, k) {
            let Some(tensor) = tensors.remove(name) else {
                return refuse(format!("the head of {model_type} needs {name}, which is missing"));
            };
            let found = tensor.size();
            if found != expected {
                return refuse(format!("{name} has shape {found:?}, expected {expected:?}"));
            }
            let leaf = tensor.detach().to_kind(Kind::Float).to_device(model.device()).copy();
            trained.push((name.to_owned(), leaf.set_requires_grad(true)));
        }
        if let Some(unexpected) = tensors.keys().next() {
            return refuse(format!("the head of {model_type} has no {unexpected}"));
        }
        if !names.is_empty() && names.len() as i64 != k {
            let n = names.len();
            return refuse(format!("the head has {k} outputs and {n} names of classes"));
        }
        let pooler = (*form == TaskHeadForm::Pooled).then(|| pooler(model, weights)).transpose()?;
        Ok(Self { form: *form, names, trained, pooler })
    }

    /// Its tensors, as transformers names them, weights as `[out, in]` and biases as `[out]`; they share storage with the head's.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        self.trained.iter().map(|(name, own)| (name.clone(), own.shallow_clone())).collect()
    }

    /// The leaves that an optimizer updates. Weight decay leaves biases alone.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(name, tensor): &(String, Tensor)| match tensor.dim() {
            1 => Parameter::without_weight_decay(name.clone(), tensor),
            _ => Parameter::new(name.clone(), tensor),
        };
        self.trained.iter().map(parameter).collect()
    }

    /// The names of the classes, one for each output; empty for regression.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of outputs `k`.
    pub fn n_outputs(&self) -> i64 {
        self.trained.last().map_or(0, |(_, last)| last.size()[0])
    }

    /// The token that it reads in a row of `n` tokens: the first for encoders, the last for decoders.
    pub fn token(&self, n: usize) -> usize {
        if self.form == TaskHeadForm::Score { n.saturating_sub(1) } else { 0 }
    }

    /// Its outputs `[m, k]` in f32, of final hidden states `[m, d]`.
    pub fn outputs(&self, h: &Tensor) -> Tensor {
        let h = h.to_kind(Kind::Float);
        let own = |i: usize| &self.trained[i].1;
        match (self.form, &self.pooler) {
            (TaskHeadForm::Pooled, Some([weight, bias])) => {
                h.linear(weight, Some(bias)).tanh().linear(own(0), Some(own(1)))
            }
            (TaskHeadForm::Dense, _) => {
                h.linear(own(0), Some(own(1))).tanh().linear(own(2), Some(own(3)))
            }
            (TaskHeadForm::PreClassifier, _) => {
                h.linear(own(0), Some(own(1))).relu().linear(own(2), Some(own(3)))
            }
            _ => h.linear(own(0), None::<Tensor>),
        }
    }
}

impl Clone for TaskHead {
    /// A copy of the head whose tensors share storage with it.
    fn clone(&self) -> Self {
        let pooler = self.pooler.as_ref().map(|own| own.each_ref().map(Tensor::shallow_clone));
        Self { form: self.form, names: self.names.clone(), trained: self.tensors(), pooler }
    }
}

/// BERT's pooler, weight and bias in f32, which the checkpoint holds beside the encoder.
fn pooler(model: &dyn Model, weights: &Weights) -> Result<[Tensor; 2]> {
    let prefix = model.description().prefix.unwrap_or_default();
    let load = |part: &str| {
        let names = [format!("pooler.dense.{part}"), format!("{prefix}.pooler.dense.{part}")];
        let Some(name) = names.iter().find(|name| weights.shape(name).is_some()) else {
            let reason = format!(
                "{} has no {}, which the head of BERT stands on; take a checkpoint with its pooler",
                weights.path().display(),
                names[0]
            );
            return Err(Error::Adapter { reason });
        };
        weights.load(name, Kind::Float, model.device())
    };
    Ok([load("weight")?, load("bias")?])
}
