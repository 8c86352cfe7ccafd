use tch::{Device, Kind, Tensor};

use crate::hooks::Hooks;
use crate::interchange::{Collect, TokenAt};
use crate::layout::Layout;
use crate::linear::Linear;
use crate::place::Place;
use crate::site::{Component, Site};
use crate::weight::Weight;
use crate::{Error, Result};

/// A plain feed-forward network under the same hooks as a decoder, for textbook tasks with known answers.
///
/// `h₀ = x`, `h_{ℓ+1} = relu(W_ℓ h_ℓ + b_ℓ)` for `ℓ = 0 … L−1`, `logits = W_L h_L + b_L`. The hidden state `h_{ℓ+1}` is shown to hooks as the
/// block output of layer `ℓ`, and `h_ℓ` as its block input.
///
/// Its inputs are the rows of a table `[n, in]`, and a token id names one of them: so rows, layouts, token positions, interchange
/// interventions and training are those of a language model whose tokens do not see each other.
#[derive(Debug)]
pub struct FeedForward {
    inputs: Tensor,      // [n, in]
    layers: Vec<Linear>, // L
    output: Linear,
}

impl FeedForward {
    /// A random network (uniform in `±1/√in`, as PyTorch's linear layers start) with `hidden_layers` layers of one width, its weights to
    /// be trained. Random numbers come from libtorch's CPU generator.
    ///
    /// # Panics
    /// Unless `inputs` is a matrix.
    pub fn random(inputs: &Tensor, hidden_layers: usize, width: i64, classes: i64) -> Self {
        let (_, n_in) = inputs.size2().expect("invariant: inputs are [n, in]");
        let linear = |n_in: i64, n_out: i64| {
            let bound = 1.0 / (n_in as f64).sqrt();
            let uniform = |shape: &[i64]| {
                Tensor::zeros(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
            };
            Linear { weight: Weight::Dense(uniform(&[n_out, n_in])), bias: Some(uniform(&[n_out])) }
        };
        let layers = (0..hidden_layers).map(|i| linear(if i == 0 { n_in } else { width }, width));
        Self {
            inputs: inputs.shallow_clone(),
            layers: layers.collect(),
            output: linear(if hidden_layers == 0 { n_in } else { width }, classes),
        }
    }

    /// A network of given layers, `W` `[out, in]` and `b` `[out]`; the last one gives the logits.
    ///
    /// # Errors
    /// [`Error::LayerSizes`] unless each layer takes what the one before it gives.
    pub fn from_layers(inputs: &Tensor, layers: Vec<Linear>) -> Result<Self> {
        let mut layers = layers;
        let output = layers.pop().ok_or(Error::LayerSizes { layer: 0, expected: 0, found: 0 })?;
        let mut expected = inputs.size().last().copied().unwrap_or(0);
        for (layer, linear) in layers.iter().chain([&output]).enumerate() {
            let &[n_out, n_in] = &linear.weight.size()[..] else {
                return Err(Error::LayerSizes { layer, expected, found: 0 });
            };
            if n_in != expected {
                return Err(Error::LayerSizes { layer, expected, found: n_in });
            }
            expected = n_out;
        }
        Ok(Self { inputs: inputs.shallow_clone(), layers, output })
    }

    /// The same network on another table of inputs.
    ///
    /// # Errors
    /// [`Error::LayerSizes`] if they are of another size.
    pub fn on(&self, inputs: &Tensor) -> Result<Self> {
        let copy = |linear: &Linear| Linear {
            weight: linear.weight.shallow_clone(),
            bias: linear.bias.as_ref().map(Tensor::shallow_clone),
        };
        Self::from_layers(inputs, self.layers.iter().chain([&self.output]).map(copy).collect())
    }

    /// Logits `[b, t, classes]` of the tokens of a layout.
    ///
    /// # Errors
    /// What a hook refuses, with its site.
    pub fn logits(&self, layout: &Layout, hooks: &mut dyn Hooks) -> Result<Tensor> {
        let span = layout.whole();
        let ids = layout.input_ids(self.inputs.device());
        let embedded = Tensor::embedding(&self.inputs, &ids, -1, false, false); // [b, t, in]
        let mut h = hooks.embeddings(embedded, &span)?;
        for (layer, linear) in self.layers.iter().enumerate() {
            let mut visit = |component, h| {
                let site = Site { layer, component };
                let visited = hooks.visit(site, h, &span);
                visited.map_err(|source| Error::At { site, source: Box::new(source) })
            };
            h = visit(Component::BlockInput, h)?;
            h = visit(Component::BlockOutput, linear.forward(&h).relu())?;
        }
        Ok(self.output.forward(&h))
    }

    /// A source run: as [`Decoder::collect`](crate::Decoder::collect).
    ///
    /// # Errors
    /// [`Error::NoSuchToken`]; [`Error::Coordinates`]; [`Error::NotReached`] if the network has no such site.
    pub fn collect(
        &self,
        layout: &Layout,
        wanted: Vec<(Place, Vec<TokenAt>)>,
    ) -> Result<Vec<Tensor>> {
        let mut collect = Collect::new(wanted, layout)?;
        let _logits = tch::no_grad(|| self.logits(layout, &mut collect))?;
        collect.finish()
    }

    /// The table of its inputs, `[n, in]`.
    pub fn inputs(&self) -> &Tensor {
        &self.inputs
    }

    /// Where the network is.
    pub fn device(&self) -> Device {
        self.inputs.device()
    }

    /// Every weight by name; the tensors share storage with the network's.
    pub fn weights(&self) -> Vec<(String, Weight)> {
        let mut weights = Vec::new();
        for (i, linear) in self.layers.iter().chain([&self.output]).enumerate() {
            weights.push((format!("layers.{i}.weight"), linear.weight.shallow_clone()));
            if let Some(bias) = &linear.bias {
                weights.push((format!("layers.{i}.bias"), Weight::Dense(bias.shallow_clone())));
            }
        }
        weights
    }
}
