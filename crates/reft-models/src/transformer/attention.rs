use tch::{Device, Tensor};

use crate::site::Component::{Key, Output, Query, Value};
use crate::transformer::attention_mask::AttentionMask;
use crate::{BlockColumns, Hooks, Linear, Past, Result, RmsNorm};

/// Causal self-attention with grouped queries (Ainslie et al. 2023): `n_h` query heads share `n_kv` key and value heads.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) output: Linear,
    pub(crate) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(crate) n_h: i64,
    pub(crate) n_kv: i64,
    pub(crate) d_h: i64,
}

impl Attention {
    /// `x` `[b, t, d]` to `[b, q, d]`: the `q` computed columns ask, all are seen. What is in the past comes before them.
    pub(crate) fn forward(
        &self,
        layer: usize,
        x: &Tensor,
        BlockColumns { seen: pass, computed: queries }: BlockColumns,
        past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let heads = |x: Tensor, n: i64| {
            let (b, t, _) = x.size3().expect("invariant: [b, t, n·d_h]");
            x.view([b, t, n, self.d_h]).transpose(1, 2) // [b, n, t, d_h]
        };
        let asking = queries.last_columns(x);
        let q = heads(queries.project(layer, Query, &self.query, &asking, hooks)?, self.n_h);
        let k = heads(pass.project(layer, Key, &self.key, x, hooks)?, self.n_kv);
        let v = heads(pass.project(layer, Value, &self.value, x, hooks)?, self.n_kv);
        let (q, k) = match &self.qk_norm {
            Some((q_norm, k_norm)) => (q_norm.forward(&q), k_norm.forward(&k)),
            None => (q, k),
        };
        let (q, mut k, mut v) = (queries.angles.rotate(&q), pass.angles.rotate(&k), v);
        let prefix = pass.begins_with_prefix().then(|| hooks.prefix(layer, &pass.span)).flatten();
        if let Some((prefix_k, prefix_v)) = prefix {
            k = Tensor::cat(&[prefix_k.to_kind(k.kind()), k], 2);
            v = Tensor::cat(&[prefix_v.to_kind(v.kind()), v], 2);
        }
        if let Some(past) = past {
            (k, v) = past.extend(layer, k, v);
        }
        let mixed = match queries.mask(layer) {
            AttentionMask::Causal => self.causal_attention(&q, k, v),
            AttentionMask::Full => self.grouped_attention(&q, &k, &v, None),
            AttentionMask::Explicit(mask) => self.grouped_attention(&q, &k, &v, Some(mask)),
        };
        let mixed = mixed.transpose(1, 2).flatten(2, 3); // [b, q, n_h·d_h]
        queries.project(layer, Output, &self.output, &mixed, hooks)
    }

    fn groups(&self) -> i64 {
        self.n_h / self.n_kv
    }

    /// Attention of `q` `[b, n_h, t, d_h]` to `k` and `v` `[b, n_kv, n + t, d_h]`, each query to the `n` of a prefix and to the keys up
    /// to its own.
    fn causal_attention(&self, q: &Tensor, k: Tensor, v: Tensor) -> Tensor {
        let (groups, queries) = (self.groups(), q.size()[2]);
        let prefix = k.size()[2] - queries;
        // libtorch counts queries and keys from the first on: as many queries that nobody reads stand before the others
        let padded = (prefix > 0).then(|| q.constant_pad_nd([0, 0, prefix, 0]));
        let q = padded.as_ref().unwrap_or(q);
        let mixed = if groups == 1 || q.device() == Device::Cpu {
            dot_product_attention(q, &k, &v, None, true)
        } else {
            // a GPU's kernel for f32 wants a key head for every query head
            let repeated = |x: Tensor| x.repeat_interleave_self_int(groups, 1, None);
            dot_product_attention(q, &repeated(k), &repeated(v), None, true)
        };
        mixed.narrow(2, prefix, queries)
    }

    /// Attention of `q` `[b, n_h, q, d_h]`, the query heads of a group behind each other as queries of one head: keys and values
    /// `[b, n_kv, t, d_h]` are not copied. `mask` `[b, 1, groups · q, t]`.
    fn grouped_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
    ) -> Tensor {
        let groups = self.groups();
        if groups == 1 {
            return dot_product_attention(q, k, v, mask, false);
        }
        let (b, n_h, t, d_h) = q.size4().expect("invariant: [b, n_h, q, d_h]");
        let q = q.reshape([b, self.n_kv, groups * t, d_h]);
        dot_product_attention(&q, k, v, mask, false).reshape([b, n_h, t, d_h])
    }
}

/// `softmax(q kᵀ / √d_h) v` of `q` `[b, n, q, d_h]` and `k`, `v` `[b, m, t, d_h]`: each of the `m` serves `n / m` query heads.
fn dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    is_causal: bool,
) -> Tensor {
    let is_grouped = q.size()[1] != k.size()[1];
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, None, is_grouped)
}
