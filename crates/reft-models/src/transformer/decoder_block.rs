use tch::Tensor;

use crate::model::hooks::Hooks;
use crate::model::past::Past;
use crate::site::Component::{self, AttentionOutput, BlockInput, MlpOutput};
use crate::site::Site;
use crate::transformer::attention::Attention;
use crate::transformer::mlp::Mlp;
use crate::transformer::pass::Pass;
use crate::transformer::rms_norm::RmsNorm;
use crate::{Error, Result};

/// Pre-norm decoder block: `m = x + Attention(norm₁(x))`, `y = m + MLP(norm₂(m))`.
#[derive(Debug)]
pub(crate) struct DecoderBlock {
    pub(crate) layer: usize,
    pub(crate) attention_norm: RmsNorm,
    pub(crate) attention: Attention,
    pub(crate) mlp_norm: RmsNorm,
    pub(crate) mlp: Mlp,
}

impl DecoderBlock {
    /// `x` `[b, t, d]` to `y` `[b, q, d]`, whose columns are the last `q`. `hooks` sees x and both branch outputs, and may replace each.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        pass: &Pass,
        queries: &Pass,
        past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let x = self.visit(BlockInput, x, pass, hooks)?;
        let normed = self.attention_norm.forward(&x);
        let a = self.attention.forward(self.layer, &normed, pass, queries, past, hooks)?;
        let m = queries.last_columns(&x) + self.visit(AttentionOutput, a, queries, hooks)?;
        let f = self.mlp.forward(self.layer, &self.mlp_norm.forward(&m), queries, hooks)?;
        Ok(m + self.visit(MlpOutput, f, queries, hooks)?)
    }

    /// Shows `hooks` the hidden states of a component.
    pub(crate) fn visit(
        &self,
        component: Component,
        h: Tensor,
        pass: &Pass,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let site = Site { layer: self.layer, component };
        let visited = hooks.visit(site, h, &pass.span);
        visited.map_err(|source| Error::At { site, source: Box::new(source) })
    }
}
