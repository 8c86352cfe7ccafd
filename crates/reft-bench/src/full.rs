use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Decoder, Error, Hooks, Layout, Mode, NoHooks, Result, Weight,
};
use tch::Tensor;

use crate::leaves::{load_state, state_of};
use crate::peft_file::{self, Shapes};

/// Full fine-tuning: every weight of the decoder is trained.
///
/// The decoder's own tensors are the parameters, so a decoder that was trained so is no base model any more: other methods must open
/// it anew. The file is a checkpoint, `model.safetensors` with the base model's names. One-dimensional weights (norms and biases)
/// are exempt from weight decay, as is usual.
#[derive(Debug)]
pub struct FullAdapter {
    base_model: BaseModel,
    weights: Vec<(String, Tensor)>,
}

impl FullAdapter {
    /// Name of the weights' file.
    pub const FILE_NAME: &str = "model.safetensors";

    /// Makes every weight of the decoder trainable.
    ///
    /// # Errors
    /// [`reft_models::Error::Adapter`] if one is quantised.
    pub fn new(decoder: &Decoder, base_model: &str) -> Result<Self> {
        let trainable = |(name, mut tensor): (String, Tensor)| {
            // row by row, as its gradient is: AdamW then reads both in one order
            tensor.set_data(&tensor.detach().contiguous());
            (name, tensor.set_requires_grad(true))
        };
        Ok(Self {
            weights: weight_tensors(decoder)?.into_iter().map(trainable).collect(),
            base_model: BaseModel::of(decoder.config(), base_model),
        })
    }

    /// Reads trained weights into the decoder, and makes them trainable.
    ///
    /// # Errors
    /// If the file is missing or broken, or a tensor is missing, unexpected or misshapen: by name. The decoder is unchanged then.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let expected: Shapes =
            decoder.weights().into_iter().map(|(name, tensor)| (name, tensor.size())).collect();
        let path = dir.join(Self::FILE_NAME);
        let tensors = peft_file::read_tensors(&path, &expected, decoder.config())?;
        let name = peft_file::base_model(&path)?.and_then(|base_model| base_model.name);
        let mut full = Self::new(decoder, &name.unwrap_or_default())?;
        full.load_state(&tensors)?;
        Ok(full)
    }
}

/// The weights of a model, to be changed in place.
///
/// # Errors
/// [`reft_models::Error::Adapter`] if one is quantised.
pub(crate) fn weight_tensors(decoder: &Decoder) -> Result<Vec<(String, Tensor)>> {
    let tensor = |(name, weight): (String, Weight)| match weight {
        Weight::Dense(tensor) => Ok((name, tensor)),
        Weight::Quantised(_) => Err(Error::Adapter {
            reason: format!(
                "{name} is quantised, and its numbers cannot be changed; hold the weights as tensors (dense)"
            ),
        }),
    };
    decoder.weights().into_iter().map(tensor).collect()
}

impl Adapter for FullAdapter {
    fn method(&self) -> &str {
        "full"
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(name, tensor): &(String, Tensor)| match tensor.dim() {
            1 => Parameter::without_weight_decay(name.clone(), tensor),
            _ => Parameter::new(name.clone(), tensor),
        };
        self.weights.iter().map(parameter).collect()
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(NoHooks))
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        peft_file::write_tensors(&dir.join(Self::FILE_NAME), &self.weights, &self.base_model)
    }
}
