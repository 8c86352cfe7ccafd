use tch::Tensor;

use crate::attention::Attention;
use crate::hooks::Hooks;
use crate::kv_cache::KvCache;
use crate::mlp::Mlp;
use crate::pass::Pass;
use crate::rms_norm::RmsNorm;
use crate::site::Component::{self, AttentionOutput, BlockInput, BlockOutput, MlpOutput};
use crate::site::Site;
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
    /// `hooks` sees x, both branch outputs and y, all `[b, t, d]`, and may replace each.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        pass: &Pass,
        cache: Option<&mut KvCache>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let visit = |component: Component, h, hooks: &mut dyn Hooks| {
            let site = Site { layer: self.layer, component };
            let visited = hooks.visit(site, h, pass.span);
            visited.map_err(|source| Error::At { site, source: Box::new(source) })
        };
        let x = visit(BlockInput, x, hooks)?;
        let normed = self.attention_norm.forward(&x);
        let a = self.attention.forward(self.layer, &normed, pass, cache, hooks)?;
        let m = x + visit(AttentionOutput, a, hooks)?;
        let f = self.mlp.forward(self.layer, &self.mlp_norm.forward(&m), pass, hooks)?;
        let y = m + visit(MlpOutput, f, hooks)?;
        visit(BlockOutput, y, hooks)
    }
}
