use std::fmt;

/// Where inside a block hidden states can be read or replaced. A projection has the name of its module in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The residual stream before the block, `[b, t, d]`.
    BlockInput,
    /// The output of attention, which is added to the residual stream, `[b, t, d]`.
    AttentionOutput,
    /// The output of the MLP, which is added to the residual stream, `[b, t, d]`.
    MlpOutput,
    /// The residual stream after the block, `[b, t, d]`.
    BlockOutput,
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// Attention's output projection; its input is the concatenated heads.
    Output,
    /// The MLP's gate projection.
    Gate,
    /// The MLP's up projection.
    Up,
    /// The MLP's down projection.
    Down,
    /// Attention's query, key and value projections in one.
    QueryKeyValue,
    /// The MLP's gate and up projections in one.
    GateUp,
}

reft_core::names!(Component, "component", crate::Error, {
    BlockInput => "block_input",
    AttentionOutput => "attention_output",
    MlpOutput => "mlp_output",
    BlockOutput => "block_output",
    Query => "q_proj",
    Key => "k_proj",
    Value => "v_proj",
    Output => "o_proj",
    Gate => "gate_proj",
    Up => "up_proj",
    Down => "down_proj",
    QueryKeyValue => "qkv_proj",
    GateUp => "gate_up_proj",
});

impl Component {
    /// The linear projections, of which no model has all.
    pub const PROJECTIONS: [Self; 9] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QueryKeyValue,
        Self::GateUp,
    ];
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
    /// Whether its hidden states, in the sense of [`Place`](crate::Place), are the input of a projection.
    pub(crate) fn is_projection_input(self) -> bool {
        matches!(self.component, Component::Output | Component::Down)
    }

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
