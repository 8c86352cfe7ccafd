use tch::Tensor;

use crate::site::Component::{AttentionOutput, BlockInput, MlpOutput};
use crate::transformer::attention::Attention;
use crate::transformer::mlp::Mlp;
use crate::transformer::norm::Norm;
use crate::{BlockColumns, Hooks, Past, Result};

/// A block of two branches: `m = x + Attention(x)`, `y = m + MLP(m)`, each between the norms of its [`Branch`].
#[derive(Debug)]
pub(crate) struct DecoderBlock {
    pub(crate) layer: usize,
    pub(crate) attention_branch: Branch,
    pub(crate) attention: Attention,
    pub(crate) mlp_branch: Branch,
    pub(crate) mlp: Mlp,
}

/// A branch's norms and factor: `norm(x + multiplier · norm(branch(norm(x))))`, with the norms that a family has.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) norm_before: Option<Norm>,
    pub(crate) norm_after: Option<Norm>,
    pub(crate) norm_of_stream: Option<Norm>,
    pub(crate) multiplier: f64,
}

impl Branch {
    /// The input of the branch.
    fn input(&self, x: &Tensor) -> Tensor {
        self.norm_before.as_ref().map_or_else(|| x.shallow_clone(), |norm| norm.forward(x))
    }

    /// The output of the branch, to be added to the residual stream.
    fn output(&self, y: Tensor) -> Tensor {
        let y = self.norm_after.as_ref().map_or_else(|| y.shallow_clone(), |norm| norm.forward(&y));
        if self.multiplier == 1.0 { y } else { y * self.multiplier }
    }

    /// The residual stream after the branch.
    fn stream(&self, sum: Tensor) -> Tensor {
        match &self.norm_of_stream {
            Some(norm) => norm.forward(&sum),
            None => sum,
        }
    }
}

impl DecoderBlock {
    /// `x` `[b, t, d]` to `y` `[b, q, d]`, whose columns are the `q` computed ones. `hooks` sees x and both branches' outputs, and may replace
    /// each.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        columns: BlockColumns,
        past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let BlockColumns { seen, computed } = columns;
        let x = hooks.visit_residual(self.layer, BlockInput, x, &seen.span)?;
        let normed = self.attention_branch.input(&x);
        let a = self.attention.forward(self.layer, &normed, columns, past, hooks)?;
        let a = self.attention_branch.output(a);
        let a = hooks.visit_residual(self.layer, AttentionOutput, a, &computed.span)?;
        let m = self.attention_branch.stream(computed.last_columns(&x) + a);
        let f = self.mlp.forward(self.layer, &self.mlp_branch.input(&m), computed, hooks)?;
        let f = self.mlp_branch.output(f);
        let f = hooks.visit_residual(self.layer, MlpOutput, f, &computed.span)?;
        Ok(self.mlp_branch.stream(m + f))
    }
}
