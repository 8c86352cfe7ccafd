use std::fmt;
use std::str::FromStr;

use reft_models::{Component, Place, Site};

use crate::error::{Error, Result, refuse};

/// What of a layer is searched: a component of the block, or what one attention head gives before the output projection.
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
