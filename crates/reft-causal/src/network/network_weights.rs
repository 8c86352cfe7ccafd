use std::path::Path;

use reft_core::Parameter;
use reft_models::{Adapter, Hooks, Layout, Mode, Model, NoHooks, Result, save_safetensors};
use tch::Tensor;

use crate::network::feed_forward::FeedForward;

/// All weights of a plain network, as an adapter: what trains the network itself, before anything is looked for in it.
#[derive(Debug)]
pub struct NetworkWeights(Vec<(String, Tensor)>);

impl NetworkWeights {
    /// Name of the file.
    pub const FILE_NAME: &str = "network.safetensors";

    /// Makes every weight of the network trainable.
    pub fn of(network: &FeedForward) -> Self {
        let weights = network.weights().into_iter();
        Self(weights.map(|(name, weight)| (name, weight.dense().set_requires_grad(true))).collect())
    }

    /// Ends their training: the network is frozen then.
    pub fn freeze(self) {
        for (_, weight) in self.0 {
            let _frozen = weight.set_requires_grad(false);
        }
    }
}

impl Adapter for NetworkWeights {
    fn method(&self) -> &str {
        "weights"
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.0.iter().map(|(name, weight)| Parameter::new(name.clone(), weight)).collect()
    }

    fn hooks<'a>(&'a self, _layout: &Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(NoHooks))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<(String, Tensor)> = self.state().into_iter().collect();
        save_safetensors(&dir.join(Self::FILE_NAME), &tensors, None)
    }
}
