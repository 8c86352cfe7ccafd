use tch::Tensor;

use crate::site::Component::{AttentionOutput, BlockInput, MlpOutput};
use crate::transformer::attention::Attention;
use crate::transformer::mlp::Mlp;
use crate::{BlockColumns, Hooks, Past, Result, RmsNorm};

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
    /// `x` `[b, t, d]` to `y` `[b, q, d]`, whose columns are the `q` computed ones. `hooks` sees x and both branch outputs, and may replace each.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        columns: BlockColumns,
        past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let BlockColumns { seen, computed } = columns;
        let x = hooks.visit_residual(self.layer, BlockInput, x, &seen.span)?;
        let normed = self.attention_norm.forward(&x);
        let a = self.attention.forward(self.layer, &normed, columns, past, hooks)?;
        let a = hooks.visit_residual(self.layer, AttentionOutput, a, &computed.span)?;
        let m = computed.last_columns(&x) + a;
        let f = self.mlp.forward(self.layer, &self.mlp_norm.forward(&m), computed, hooks)?;
        Ok(m + hooks.visit_residual(self.layer, MlpOutput, f, &computed.span)?)
    }
}
