use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Hooks, Layout, Mode, Model, NoHooks, Result, TaskHead, TrainedText, Weight,
};
use serde_json::Value;
use tch::Tensor;

use crate::MethodDeclaration;
use crate::files::adapter_file::{self, Beside};
use crate::files::head_file;
use crate::merge::dense;

/// Weights of a model that are trained themselves: all of them, or some.
///
/// Training changes the model, so other methods must open the base model anew. One-dimensional weights (norms and biases) are exempt from
/// weight decay, as is usual.
#[derive(Debug)]
pub(crate) struct InWeights {
    declaration: &'static MethodDeclaration,
    base_model: BaseModel,
    text: Option<TrainedText>,
    head: Option<TaskHead>,
    weights: Vec<(String, Tensor)>,
    /// The configuration, if its files have one.
    config: Option<Value>,
}

impl InWeights {
    /// The weights of a model that `is_trained` names.
    ///
    /// # Errors
    /// [`reft_models::Error::Adapter`] if one of them is quantised.
    pub(crate) fn of(
        declaration: &'static MethodDeclaration,
        model: &dyn Model,
        is_trained: &dyn Fn(&str) -> bool,
        base_model: BaseModel,
        config: Option<Value>,
    ) -> Result<Self> {
        let own = model.weights().into_iter().filter(|(name, _)| is_trained(name));
        let trainable = |(name, weight): (String, Weight)| {
            let (name, mut tensor) = dense((name, weight))?;
            // row-major like its gradient: AdamW then reads both in the same order
            if tensor.dim() == 2 && tensor.tr().is_contiguous() {
                tensor.set_data(&tensor.detach().contiguous());
            }
            Ok((name, tensor.set_requires_grad(true)))
        };
        let weights = own.map(trainable).collect::<Result<_>>()?;
        Ok(Self { declaration, base_model, text: None, head: None, weights, config })
    }
}

impl Adapter for InWeights {
    fn method(&self) -> &str {
        self.declaration.name
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(name, tensor): &(String, Tensor)| match tensor.dim() {
            1 => Parameter::without_weight_decay(name.clone(), tensor),
            _ => Parameter::new(name.clone(), tensor),
        };
        self.weights.iter().map(parameter).collect()
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(NoHooks))
    }

    fn is_in_weights(&self) -> bool {
        true
    }

    fn keep_trained_text(&mut self, text: TrainedText) {
        self.text = Some(text);
    }

    fn keep_head(&mut self, head: &TaskHead) {
        self.head = Some(head.clone());
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let (files, head) = (self.declaration.files, self.head.as_ref());
        let (base_model, text) = (Some(&self.base_model), self.text.as_ref());
        let beside = Beside { base_model, text, ..Beside::default() };
        if let Some(config) = &self.config {
            let copy = |(name, own): &(String, Tensor)| (name.clone(), own.shallow_clone());
            let tensors = self.weights.iter().map(copy).collect();
            return adapter_file::write(files, dir, config, tensors, Beside { head, ..beside });
        }
        if let Some(head) = head {
            head_file::write(dir, head)?;
        }
        adapter_file::write_tensors(&dir.join(files.tensors()), &self.weights, beside)
    }
}
