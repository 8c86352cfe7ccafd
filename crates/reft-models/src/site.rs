use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Where inside a block hidden states can be read or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The residual stream before the block, `[b, t, d]`.
    BlockInput,
    /// What attention adds to the residual stream, `[b, t, d]`.
    AttentionOutput,
    /// What the MLP adds to the residual stream, `[b, t, d]`.
    MlpOutput,
    /// The residual stream after the block, `[b, t, d]`.
    BlockOutput,
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// Attention's output projection; its input is what the heads give, side by side.
    Output,
    /// The MLP's gate projection.
    Gate,
    /// The MLP's up projection.
    Up,
    /// The MLP's down projection.
    Down,
}

impl Component {
    /// Every component: four points of the residual stream, then seven projections.
    pub const ALL: [Self; 11] = [
        Self::BlockInput,
        Self::AttentionOutput,
        Self::MlpOutput,
        Self::BlockOutput,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// The seven linear projections.
    pub const PROJECTIONS: [Self; 7] =
        [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The name used in files and on the command line; a projection has its checkpoint's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlockInput => "block_input",
            Self::AttentionOutput => "attention_output",
            Self::MlpOutput => "mlp_output",
            Self::BlockOutput => "block_output",
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Component {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|c| c.name() == s)
            .ok_or_else(|| Error::UnknownComponent { found: s.to_owned() })
    }
}

/// A place where a hidden state can be read or replaced: a component of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// 0-based index of the decoder block.
    pub layer: usize,
    /// Where in that block.
    pub component: Component,
}

impl Site {
    /// The stage of a [`Forward`](crate::Forward) in which hooks see the site: a block's output is seen where the next block begins.
    pub fn stage(self) -> usize {
        self.layer + usize::from(self.component == Component::BlockOutput)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} {}", self.layer, self.component)
    }
}
