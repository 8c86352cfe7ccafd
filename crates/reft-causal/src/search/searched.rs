use std::fmt;
use std::str::FromStr;

use reft_models::{Component, Decoder, Model, Place, Site, Weights};

use crate::{BaseRuns, Error, Result, refuse};

/// A model that can be searched.
pub trait Searched {
    /// The model that is run.
    fn model(&self) -> &dyn Model;

    /// A model of the same shape whose weights are random.
    ///
    /// # Errors
    /// If it cannot be made.
    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>>;

    /// Its base runs.
    fn base_runs(&self) -> BaseRuns<'_> {
        BaseRuns::new(self.model())
    }

    /// Where a component or head of a layer is, and its number of coordinates.
    ///
    /// # Errors
    /// [`Error::OptionValue`](crate::Error::OptionValue) if the model has no such component or head.
    fn place(&self, layer: usize, of_layer: ComponentOrHead) -> Result<(Place, i64)> {
        let model = self.model().description();
        let heads = model.num_attention_heads;
        if matches!(of_layer, ComponentOrHead::Head(head) if head >= heads) {
            return refuse("site", of_layer.to_string(), format!("head_0 to head_{}", heads - 1));
        }
        let place = of_layer.place(layer, model.head_dim);
        let size = model.size_of(&place)?;
        Ok((place, size))
    }
}

impl Searched for Decoder {
    fn model(&self) -> &dyn Model {
        self
    }

    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>> {
        tch::manual_seed(seed as i64);
        if self.device().is_cuda() {
            tch::Cuda::manual_seed_all(seed);
        }
        let weights = Weights::random(&self.description().tensors);
        let config = self.config().clone();
        Ok(Box::new(Decoder::from_weights(config, &weights, self.kind(), self.device())?))
    }
}

/// The part of a layer that is searched: a component of the block, or one attention head's output before the output projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ComponentOrHead {
    /// A component.
    Component(Component),
    /// An attention head.
    Head(i64),
}

const HEAD: &str = "head_";

impl ComponentOrHead {
    /// Where hooks see it in a layer, for a model whose heads have `head_dim` coordinates.
    pub fn place(self, layer: usize, head_dim: i64) -> Place {
        match self {
            Self::Component(component) => Place::whole(Site { layer, component }),
            Self::Head(head) => Place::head(layer, head, head_dim),
        }
    }
}

impl fmt::Display for ComponentOrHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Component(component) => component.fmt(f),
            Self::Head(head) => write!(f, "{HEAD}{head}"),
        }
    }
}

impl FromStr for ComponentOrHead {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if let Some(head) = s.strip_prefix(HEAD).and_then(|head| head.parse::<u32>().ok()) {
            return Ok(Self::Head(head.into()));
        }
        let component: Component = s.parse()?;
        if Component::PROJECTIONS.contains(&component) {
            let expected =
                "block_input, attention_output, mlp_output, block_output or a head, such as head_0";
            return refuse("site", s, expected);
        }
        Ok(Self::Component(component))
    }
}
