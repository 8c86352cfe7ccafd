use std::ops::Range;

use reft_core::{Error, Result};
use reft_models::{
    Component, Forward, Head, HookPoint, Hooks, Linear, Model, ModelDescription, ModelTensor, Past,
    Placement, Span, TaskHeadForm, TensorRole, Weight,
};
use tch::{Device, Kind, Tensor};

/// A plain feed-forward network under the same hooks as a decoder, for textbook tasks with known answers.
///
/// `h₀ = x`, `h_{ℓ+1} = relu(W_ℓ h_ℓ + b_ℓ)` for `ℓ = 0 … L−1`, `logits = W_L h_L + b_L`. The hidden state `h_{ℓ+1}` is shown to hooks as the
/// block output of layer `ℓ`, and `h_ℓ` as its block input.
///
/// Its inputs are the rows of a table `[n, in]`, and a token id names one of them: so rows, layouts, token positions, interchange
/// interventions and training work as in a language model whose tokens do not see each other.
#[derive(Debug)]
pub struct FeedForward {
    inputs: Tensor,      // [n, in]
    layers: Vec<Linear>, // L
    output: Linear,
    description: ModelDescription,
    placement: Placement,
}

impl FeedForward {
    /// A random network (uniform in `±1/√in`, as PyTorch's linear layers start) with `hidden_layers` layers of one width, its weights to
    /// be trained; `inputs` is the table `[n, in]`, and logits are `[.., classes]`. Random numbers come from libtorch's CPU generator.
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
        let n_in_of = |layer| if layer == 0 { n_in } else { width };
        let layers = (0..hidden_layers).map(|layer| linear(n_in_of(layer), width)).collect();
        Self::of_parts(inputs, layers, linear(n_in_of(hidden_layers), classes))
    }

    /// A network of given layers, `W` `[out, in]` and `b` `[out]`; the last one gives the logits.
    ///
    /// # Errors
    /// [`Error::Shape`] unless each layer's input size is the output size of the layer before; [`Error::MissingTensor`] without layers.
    pub fn from_layers(inputs: &Tensor, mut layers: Vec<Linear>) -> Result<Self> {
        let mut n_in = inputs.size().last().copied().unwrap_or(0);
        for (layer, linear) in layers.iter().enumerate() {
            let got = linear.weight.size();
            if got.len() != 2 || got[1] != n_in {
                let name = format!("layers.{layer}.weight");
                return Err(Error::Shape { name, expected: vec![-1, n_in], got });
            }
            n_in = got[0];
        }
        let (name, method) = ("layers.0.weight".to_owned(), "feed-forward");
        let output = layers.pop().ok_or(Error::MissingTensor { name, method })?;
        Ok(Self::of_parts(inputs, layers, output))
    }

    fn of_parts(inputs: &Tensor, layers: Vec<Linear>, output: Linear) -> Self {
        let (classes, width) = output.weight.dense().size2().expect("invariant: it is [out, in]");
        let mut tensors = Vec::new();
        for (i, Linear { weight, bias }) in layers.iter().chain([&output]).enumerate() {
            let role = if i == layers.len() { TensorRole::Head } else { TensorRole::Vector };
            let mut add = |name, shape, role| {
                let name = format!("layers.{i}.{name}");
                tensors.push(ModelTensor { name, shape, role, stage: i });
            };
            add("weight", weight.size(), role);
            bias.iter().for_each(|bias| add("bias", bias.size(), TensorRole::Vector));
        }
        let description = ModelDescription {
            model_type: "feed-forward".to_owned(),
            vocab_size: classes,
            hidden_size: width,
            intermediate_size: width,
            num_hidden_layers: layers.len(),
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: i64::MAX,
            is_causal: true, // no token sees another
            windows: vec![None; layers.len()],
            keys_change_at: None,
            depends_on_length: false,
            keeps_scores: false,
            prefix: None,
            task_head: TaskHeadForm::Other,
            tensors,
        };
        let (inputs, placement) = (inputs.shallow_clone(), inputs.device().into());
        Self { inputs, layers, output, description, placement }
    }

    /// The table of its inputs, `[n, in]`.
    pub fn inputs(&self) -> &Tensor {
        &self.inputs
    }

    /// Its name in reports: the shapes of its weights.
    pub fn describe(&self) -> String {
        let shape = |tensor: &ModelTensor| format!("{:?}", tensor.shape);
        let shapes: Vec<String> = self.description.tensors.iter().map(shape).collect();
        format!("feed-forward network of weights {}", shapes.join(" "))
    }
}

impl Model for FeedForward {
    fn description(&self) -> &ModelDescription {
        &self.description
    }

    fn kind(&self) -> Kind {
        Kind::Float
    }

    fn placement(&self) -> &Placement {
        &self.placement
    }

    fn weights(&self) -> Vec<(String, Weight)> {
        let layers = self.layers.iter().chain([&self.output]);
        let weights = layers.flat_map(|Linear { weight, bias }| {
            let bias = bias.as_ref().map(|bias| Weight::Dense(bias.shallow_clone()));
            [Some(weight.shallow_clone()), bias].into_iter().flatten()
        });
        self.description.tensors.iter().map(|tensor| tensor.name.clone()).zip(weights).collect()
    }

    fn forward<'a>(&'a self, span: &Span<'a>, _prefix_length: usize) -> Box<dyn Forward<'a> + 'a> {
        Box::new(FeedForwardPass { network: self, span: span.clone(), wanted: span.clone() })
    }

    fn head(&self) -> Head {
        Head::new(
            self.output.weight.shallow_clone(),
            self.output.bias.as_ref().map(Tensor::shallow_clone),
        )
    }

    fn trains_head(&self) -> bool {
        self.output.weight.requires_grad()
    }
}

/// A forward of a [`FeedForward`]: a stage is a layer.
struct FeedForwardPass<'a> {
    network: &'a FeedForward,
    span: Span<'a>,
    wanted: Span<'a>, // the last columns, whose output is needed
}

impl<'a> Forward<'a> for FeedForwardPass<'a> {
    fn want_from(&mut self, column: usize) {
        self.wanted = Span { columns: column..self.span.columns.end, ..self.span };
    }

    fn outputs(&self) -> &Span<'a> {
        &self.wanted
    }

    fn embed(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.network.inputs, input_ids, -1, false, false) // [b, t, in]
    }

    fn run(
        &self,
        stages: Range<usize>,
        mut h: Tensor,
        _past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> reft_models::Result<Tensor> {
        for layer in stages {
            h = match layer.checked_sub(1) {
                None => hooks.visit(HookPoint::Embeddings, h, &self.span)?,
                Some(below) => {
                    hooks.visit_residual(below, Component::BlockOutput, h, &self.span)?
                }
            };
            h = hooks.visit_residual(layer, Component::BlockInput, h, &self.span)?;
            h = self.network.layers[layer].forward(&h).relu();
        }
        Ok(h)
    }

    fn finish(&self, h: Tensor, hooks: &mut dyn Hooks) -> reft_models::Result<Tensor> {
        let wanted = self.wanted.width() as i64;
        let h = h.narrow(1, h.size()[1] - wanted, wanted);
        match self.network.layers.len().checked_sub(1) {
            Some(last) => hooks.visit_residual(last, Component::BlockOutput, h, &self.wanted),
            None => Ok(h),
        }
    }
}
