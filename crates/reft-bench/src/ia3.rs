use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Decoder, DecoderConfig, Error, Hooks, Layout, Linear, Mode, Reach, Result,
    Row, Site, Span,
};
use tch::{Device, Kind, Tensor};

use crate::leaves::{leaf, load_state, state_of};
use crate::peft_config::Ia3Config;
use crate::peft_file::{self, Shapes};
use crate::projection::Projection;
use crate::target_modules::TargetModules;

/// (IA)³: learned factors for keys, values and the inner state of the MLP.
///
/// Liu et al. 2022 (arXiv:2205.05638), section 3.3: `y = l ⊙ (W x + b)`, and `y = W (l ⊙ x) + b` for feed-forward modules. Every `l` starts at
/// 1, so training begins from the base model. Files are PEFT's.
#[derive(Debug)]
pub struct Ia3Adapter {
    config: Ia3Config,
    base_model: BaseModel,
    factors: BTreeMap<Site, Ia3Factor>,
}

/// The factors of one projection.
#[derive(Debug)]
pub(crate) struct Ia3Factor {
    pub(crate) module: String,
    l: Tensor, // [1, in] of a feed-forward module, [out, 1] else: PEFT's shapes
    scales_input: bool,
}

impl Ia3Adapter {
    /// A new adapter.
    ///
    /// # Errors
    /// What the selection of target modules refuses.
    pub fn new(mut config: Ia3Config, decoder: &Decoder, base_model: &str) -> Result<Self> {
        config.base_model_name_or_path = Some(base_model.to_owned());
        Self::with_tensors(config, decoder, &mut |_, shape| {
            Tensor::ones(shape, (Kind::Float, Device::Cpu))
        })
    }

    /// Reads an adapter that PEFT or this program wrote.
    ///
    /// # Errors
    /// If a file is missing or broken, a field or tensor is missing, unexpected or wrong (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        Self::with_tensors(config, decoder, &mut |name, _| tensors[name].shallow_clone())
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(Ia3Config, BTreeMap<String, Tensor>)> {
        let config: Ia3Config = peft_file::read_config(dir)?;
        config.other.check("IA3", &[])?;
        let shapes = config.projections(model)?.into_iter().map(|(projection, scales_input)| {
            (file_name(&projection.module), shape(&projection, scales_input))
        });
        let tensors = peft_file::read(dir, &shapes.collect::<Shapes>(), model)?;
        Ok((config, tensors))
    }

    fn with_tensors(
        config: Ia3Config,
        decoder: &Decoder,
        tensor: &mut dyn FnMut(&str, &[i64]) -> Tensor,
    ) -> Result<Self> {
        config.other.check("IA3", &[])?;
        let mut factors = BTreeMap::new();
        for (projection, scales_input) in config.projections(decoder.config())? {
            let l = tensor(&file_name(&projection.module), &shape(&projection, scales_input));
            let l = leaf(&l, decoder.device());
            factors
                .insert(projection.site, Ia3Factor { module: projection.module, l, scales_input });
        }
        let name = config.base_model_name_or_path.clone().unwrap_or_default();
        let base_model = BaseModel::of(decoder.config(), name);
        Ok(Self { config, base_model, factors })
    }

    /// What the adapter is.
    pub fn config(&self) -> &Ia3Config {
        &self.config
    }

    /// The rescaled projections.
    pub(crate) fn factors(&self) -> impl Iterator<Item = &Ia3Factor> {
        self.factors.values()
    }
}

impl Ia3Factor {
    /// The weight with the factors in it: the shapes of `l` make it rows or columns.
    pub(crate) fn merged(&self, weight: &Tensor) -> Tensor {
        weight.to_kind(Kind::Float) * &self.l
    }

    /// The bias with the factors in it.
    pub(crate) fn merged_bias(&self, bias: &Tensor) -> Tensor {
        let bias = bias.to_kind(Kind::Float);
        if self.scales_input { bias } else { bias * self.l.flatten(0, 1) }
    }
}

impl Ia3Config {
    /// The projections rescaled, and whether it is their input.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a name means no projection, or a feed-forward module is no target module.
    pub fn projections(&self, model: &DecoderConfig) -> Result<Vec<(Projection, bool)>> {
        let feedforward = match &self.feedforward_modules {
            TargetModules::Names(names) if names.is_empty() => Vec::new(),
            modules => modules.select(model, None)?,
        };
        let selected = self.target_modules.select(model, None)?;
        if let Some(p) = feedforward.iter().find(|p| !selected.contains(p)) {
            let module = &p.module;
            let reason = format!(
                "feedforward_modules means {module}, target_modules does not; name it there too"
            );
            return Err(Error::Adapter { reason });
        }
        let with_side = |p: Projection| {
            let scales_input = feedforward.contains(&p);
            (p, scales_input)
        };
        Ok(selected.into_iter().map(with_side).collect())
    }
}

fn shape(projection: &Projection, scales_input: bool) -> Vec<i64> {
    if scales_input { vec![1, projection.in_features] } else { vec![projection.out_features, 1] }
}

/// The name of the factors in PEFT's file.
fn file_name(module: &str) -> String {
    format!("base_model.model.{module}.ia3_l")
}

impl Adapter for Ia3Adapter {
    fn method(&self) -> &str {
        "ia3"
    }

    fn parameters(&self) -> Vec<Parameter> {
        // decay would pull factors to 0, not to the base model
        let factors = self.factors.values();
        factors.map(|f| Parameter::without_weight_decay(file_name(&f.module), &f.l)).collect()
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        Ok(Box::new(Ia3Hooks { factors: &self.factors }))
    }

    fn reach(&self, _row: &Row) -> Reach {
        Reach::of_sites(self.factors.keys().copied(), 0)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors: Vec<_> =
            self.factors.values().map(|f| (file_name(&f.module), f.l.shallow_clone())).collect();
        peft_file::write(dir, &self.config, &tensors, &self.base_model)
    }
}

/// The factors in one forward.
struct Ia3Hooks<'a> {
    factors: &'a BTreeMap<Site, Ia3Factor>,
}

impl Ia3Hooks<'_> {
    /// `l ⊙ x`, `x` `[b, t, ..]`, if the site has factors for its input (or output).
    fn scale(&self, site: Site, x: Tensor, is_input: bool) -> Tensor {
        match self.factors.get(&site).filter(|factor| factor.scales_input == is_input) {
            Some(factor) => (&x * factor.l.flatten(0, 1)).to_kind(x.kind()),
            None => x,
        }
    }
}

impl Hooks for Ia3Hooks<'_> {
    fn projection_input(&mut self, site: Site, x: Tensor, _span: &Span) -> Result<Tensor> {
        Ok(self.scale(site, x, true))
    }

    fn projection_output(
        &mut self,
        site: Site,
        _linear: &Linear,
        _x: &Tensor,
        y: Tensor,
        _span: &Span,
    ) -> Result<Tensor> {
        Ok(self.scale(site, y, false))
    }
}
