use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Decoder, DecoderConfig, Error, Hooks, Layout, Linear, Mode, Reach, Result,
    Row, Site, Span, Weight,
};
use tch::{Device, Kind, Tensor, autocast, no_grad};

use crate::leaves::{leaf, load_state, state_of, uniform};
use crate::peft_config::LoraConfig;
use crate::peft_file::{self, Shapes};
use crate::projection::Projection;

/// LoRA: a low-rank update of frozen projections, `y = W x + b + s B A x` with `s = alpha / r`.
///
/// Hu et al. 2021 (arXiv:2106.09685), section 4.1. `A` `[r, in]` starts random and `B` `[out, r]` at 0, so training begins from the
/// base model. Dropout is on the input of `A`. Rank-stabilised LoRA has `s = alpha / √r` (Kalajdzievski 2023, arXiv:2312.03732).
///
/// DoRA (`use_dora`; Liu et al. 2024, arXiv:2402.09353) trains the length of every row of the weight apart from its direction:
///
/// ```text
/// y = b + m ⊙ (W + s B A) x / ‖W + s B A‖,   ‖·‖ the length of each row, taken as a constant in the gradient (section 4.3)
/// ```
///
/// `m` `[out]` starts as `‖W‖`. Files are PEFT's, and so are the numbers.
#[derive(Debug)]
pub struct LoraAdapter {
    config: LoraConfig,
    base_model: BaseModel,
    layers: BTreeMap<Site, LoraLayer>,
}

/// The update of one projection.
#[derive(Debug)]
pub(crate) struct LoraLayer {
    pub(crate) module: String,
    lora_a: Tensor,            // A [r, in]
    lora_b: Tensor,            // B [out, r]
    magnitude: Option<Tensor>, // m [out], of DoRA
    scaling: f64,              // s
}

impl LoraAdapter {
    /// A new adapter. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// What [`LoraConfig::check`] and the selection of target modules refuse.
    pub fn new(mut config: LoraConfig, decoder: &Decoder, base_model: &str) -> Result<Self> {
        config.base_model_name_or_path = Some(base_model.to_owned());
        let weights: HashMap<String, Weight> =
            if config.use_dora { decoder.weights().into_iter().collect() } else { HashMap::new() };
        Self::with_tensors(config, decoder, &mut |module, tensor, shape| match tensor {
            LoraTensor::A => uniform(shape, shape[1]),
            LoraTensor::B => Tensor::zeros(shape, (Kind::Float, Device::Cpu)),
            LoraTensor::Magnitude => row_norms(&weights[&format!("{module}.weight")].dense()),
        })
    }

    /// Reads an adapter that PEFT or this program wrote.
    ///
    /// # Errors
    /// If a file is missing or broken, a field or tensor is missing, unexpected or wrong (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        Self::with_tensors(config, decoder, &mut |module, tensor, _| {
            tensors[&tensor.file_name(module)].shallow_clone()
        })
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(LoraConfig, BTreeMap<String, Tensor>)> {
        let config: LoraConfig = peft_file::read_config(dir)?;
        config.check()?;
        let tensors = peft_file::read(dir, &Self::shapes(&config, model)?, model)?;
        Ok((config, tensors))
    }

    fn with_tensors(
        config: LoraConfig,
        decoder: &Decoder,
        tensor: &mut dyn FnMut(&str, LoraTensor, &[i64]) -> Tensor,
    ) -> Result<Self> {
        config.check()?;
        let device = decoder.device();
        let mut layers = BTreeMap::new();
        for projection in Self::projections(&config, decoder.config())? {
            let (_, scaling) = config.rank_and_scaling(&projection.module)?;
            let mut make = |kind| {
                let shape = shape_of(&config, &projection, kind)?;
                Ok::<_, Error>(leaf(&tensor(&projection.module, kind, &shape), device))
            };
            let layer = LoraLayer {
                lora_a: make(LoraTensor::A)?,
                lora_b: make(LoraTensor::B)?,
                magnitude: config.use_dora.then(|| make(LoraTensor::Magnitude)).transpose()?,
                scaling,
                module: projection.module,
            };
            layers.insert(projection.site, layer);
        }
        let name = config.base_model_name_or_path.clone().unwrap_or_default();
        let base_model = BaseModel::of(decoder.config(), name);
        Ok(Self { config, base_model, layers })
    }

    fn projections(config: &LoraConfig, decoder: &DecoderConfig) -> Result<Vec<Projection>> {
        config.target_modules.select(decoder, config.layers_to_transform.as_deref())
    }

    fn shapes(config: &LoraConfig, decoder: &DecoderConfig) -> Result<Shapes> {
        let mut shapes = Shapes::new();
        for projection in Self::projections(config, decoder)? {
            for &kind in LoraTensor::of(config) {
                let name = kind.file_name(&projection.module);
                shapes.push((name, shape_of(config, &projection, kind)?));
            }
        }
        Ok(shapes)
    }

    /// What the adapter is.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The updated projections.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &LoraLayer> {
        self.layers.values()
    }

    fn tensors(&self) -> impl Iterator<Item = (String, &Tensor, LoraTensor)> {
        self.layers.values().flat_map(|layer| {
            let magnitude = layer.magnitude.iter().map(|m| (LoraTensor::Magnitude, m));
            [(LoraTensor::A, &layer.lora_a), (LoraTensor::B, &layer.lora_b)]
                .into_iter()
                .chain(magnitude)
                .map(|(kind, tensor)| (kind.file_name(&layer.module), tensor, kind))
        })
    }
}

impl LoraLayer {
    /// The weight with the update in it, `W + s B A` or `m ⊙ (W + s B A) / ‖W + s B A‖`, in f32 `[out, in]`.
    pub(crate) fn merged(&self, weight: &Tensor) -> Tensor {
        let updated = self.updated(weight);
        match &self.magnitude {
            Some(m) => (m / row_norms(&updated)).unsqueeze(1) * updated,
            None => updated,
        }
    }

    /// `W + s B A` `[out, in]`
    fn updated(&self, weight: &Tensor) -> Tensor {
        weight.to_kind(Kind::Float) + self.lora_b.matmul(&self.lora_a) * self.scaling
    }

    /// `‖W + s B A‖` `[out]`, without gradient.
    fn norms(&self, weight: &Tensor) -> Tensor {
        no_grad(|| autocast(false, || row_norms(&self.updated(weight))))
    }
}

/// Length of every row `[out]` of `[out, in]`, in f32.
fn row_norms(weight: &Tensor) -> Tensor {
    weight
        .to_kind(Kind::Float)
        .square()
        .sum_dim_intlist([1i64].as_slice(), false, Kind::Float)
        .sqrt()
}

/// The tensors of one projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoraTensor {
    A,
    B,
    Magnitude,
}

impl LoraTensor {
    /// Those that an adapter has.
    fn of(config: &LoraConfig) -> &'static [Self] {
        if config.use_dora { &[Self::A, Self::B, Self::Magnitude] } else { &[Self::A, Self::B] }
    }

    /// Its name in PEFT's file.
    fn file_name(self, module: &str) -> String {
        let suffix = match self {
            Self::A => "lora_A.weight",
            Self::B => "lora_B.weight",
            Self::Magnitude => "lora_magnitude_vector",
        };
        format!("base_model.model.{module}.{suffix}")
    }
}

fn shape_of(config: &LoraConfig, projection: &Projection, tensor: LoraTensor) -> Result<Vec<i64>> {
    let (r, _) = config.rank_and_scaling(&projection.module)?;
    Ok(match tensor {
        LoraTensor::A => vec![r, projection.in_features],
        LoraTensor::B => vec![projection.out_features, r],
        LoraTensor::Magnitude => vec![projection.out_features],
    })
}

impl Adapter for LoraAdapter {
    fn method(&self) -> &str {
        self.config.method()
    }

    fn parameters(&self) -> Vec<Parameter> {
        let parameter = |(name, tensor, kind): (String, &Tensor, LoraTensor)| match kind {
            // a length has no natural pull to 0
            LoraTensor::Magnitude => Parameter::without_weight_decay(name, tensor),
            LoraTensor::A | LoraTensor::B => Parameter::new(name, tensor),
        };
        self.tensors().map(parameter).collect()
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let dropout = if mode == Mode::Train { self.config.lora_dropout } else { 0.0 };
        Ok(Box::new(LoraHooks { layers: &self.layers, dropout, norms: BTreeMap::new() }))
    }

    fn reach(&self, _row: &Row) -> Reach {
        Reach::of_sites(self.layers.keys().copied(), 0)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> =
            self.tensors().map(|(name, tensor, _)| (name, tensor.shallow_clone())).collect();
        peft_file::write(dir, &self.config, &tensors, &self.base_model)
    }
}

/// The updates in one forward.
struct LoraHooks<'a> {
    layers: &'a BTreeMap<Site, LoraLayer>,
    dropout: f64,                  // 0 but in training
    norms: BTreeMap<Site, Tensor>, // ‖W + s B A‖ of DoRA: the same in every pass until the next step
}

impl Hooks for LoraHooks<'_> {
    fn projection_output(
        &mut self,
        site: Site,
        linear: &Linear,
        x: &Tensor,
        y: Tensor,
        _span: &Span,
    ) -> Result<Tensor> {
        let Some(layer) = self.layers.get(&site) else { return Ok(y) };
        let kind = y.kind();
        let x = x.to_kind(Kind::Float);
        let dropped = (self.dropout > 0.0).then(|| x.dropout(self.dropout, true));
        let x = dropped.as_ref().unwrap_or(&x);
        let scaled = x.linear(&layer.lora_a, None::<Tensor>) * layer.scaling; // s A x [b, t, r]
        let update = scaled.linear(&layer.lora_b, None::<Tensor>); // s B A x [b, t, out]
        let Some(magnitude) = &layer.magnitude else { return Ok((y + update).to_kind(kind)) };
        let norms = self.norms.entry(site).or_insert_with(|| layer.norms(&linear.weight.dense()));
        let factor = magnitude / &*norms; // m / ‖W + s B A‖ [out]
        let frozen = match (&dropped, &linear.bias) {
            (Some(x), _) => x.linear(&linear.weight.dense().to_kind(Kind::Float), None::<Tensor>),
            (None, Some(bias)) => &y - bias,
            (None, None) => y.shallow_clone(),
        }; // W x [b, t, out], of the same x as the update
        Ok((y + (&factor - 1.0) * frozen + factor * update).to_kind(kind))
    }
}
