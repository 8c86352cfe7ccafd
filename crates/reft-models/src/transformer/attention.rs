use tch::{Device, Kind, Tensor};

use crate::site::Component::{Key, Output, Query, QueryKeyValue, Value};
use crate::transformer::attention_mask::AttentionMask;
use crate::transformer::norm::Norm;
use crate::weights::quick_products::is_slow_in_bf16;
use crate::weights::quick_rows::attended;
use crate::{BlockColumns, Hooks, Linear, Pass, Past, QkNorm, Result, beside};

/// Self-attention with grouped queries (Ainslie et al. 2023): `n_h` query heads share `n_kv` key and value heads.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) input: AttentionInput,
    pub(crate) output: Linear,
    pub(crate) qk_norm: Option<(QkNorm, Norm, Norm)>,
    /// Index of the layer's angles among the angles of the pass; `None`: no RoPE.
    pub(crate) rope: Option<usize>,
    pub(crate) scale: Option<f64>, // none: 1 / √d_h
    pub(crate) soft_cap: Option<f64>,
    pub(crate) n_h: i64,
    pub(crate) n_kv: i64,
    pub(crate) d_h: i64,
}

/// The projections to queries, keys and values.
#[derive(Debug)]
pub(crate) enum AttentionInput {
    /// Three projections.
    Separate { query: Linear, key: Linear, value: Linear },
    /// One projection: queries, then keys, then values.
    Fused(Linear),
}

impl Attention {
    /// `x` `[b, t, d]` to `[b, q, d]`: the queries are the `q` computed columns, the keys all columns after those of the past.
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
        let (q, k, v) = match &self.input {
            AttentionInput::Separate { query, key, value } => {
                let asking = queries.last_columns(x);
                let q = queries.project(layer, Query, query, &asking, hooks)?;
                let k = pass.project(layer, Key, key, x, hooks)?;
                (q, k, pass.project(layer, Value, value, x, hooks)?)
            }
            AttentionInput::Fused(all) => {
                let all = pass.project(layer, QueryKeyValue, all, x, hooks)?;
                let (q, kv) = (self.n_h * self.d_h, self.n_kv * self.d_h);
                let part = |start, width| all.narrow(2, start, width);
                (queries.last_columns(&part(0, q)), part(q, kv), part(q + kv, kv))
            }
        };
        let (q, k) = self.normed(QkNorm::FullWidth, q, k);
        let (q, k, mut v) = (heads(q, self.n_h), heads(k, self.n_kv), heads(v, self.n_kv));
        let (mut q, mut k) = self.normed(QkNorm::PerHead, q, k);
        if let Some(rope) = self.rope {
            let angles = |pass: &Pass, x: &Tensor| pass.of(layer).angles[rope].rotate(x);
            (q, k) = (angles(queries, &q), angles(pass, &k));
        }
        let q = match &queries.of(layer).query_scale {
            Some(scale) => q * scale,
            None => q,
        };
        let prefix = pass.begins_with_prefix().then(|| hooks.prefix(layer, &pass.span)).flatten();
        if let Some((prefix_k, prefix_v)) = prefix {
            k = Tensor::cat(&[beside(&prefix_k, &k).to_kind(k.kind()), k], 2);
            v = Tensor::cat(&[beside(&prefix_v, &v).to_kind(v.kind()), v], 2);
        }
        if let Some(past) = past {
            (k, v) = past.extend(layer, k, v);
        }
        if hooks.wants_attention(layer) {
            hooks.see_attention(layer, self.weights(&q, &k, queries.mask(layer)));
        }
        let mixed = match (queries.mask(layer), self.soft_cap) {
            (mask, Some(cap)) => self.capped_attention(&q, &k, &v, (mask, cap)),
            (AttentionMask::Causal, None) => self.causal_attention(&q, k, v),
            (AttentionMask::OneToken(rows), None) => {
                attended(&q, (&k, &v), &rows.seen, self.scale_of_scores())
                    .unwrap_or_else(|| self.grouped_attention(&q, &k, &v, rows.tensor()))
            }
            (mask, None) => self.grouped_attention(&q, &k, &v, mask.tensor()),
        };
        let mixed = mixed.transpose(1, 2).flatten(2, 3); // [b, q, n_h·d_h]
        queries.project(layer, Output, &self.output, &mixed, hooks)
    }

    /// Queries and keys after their norms, if the norms are at this place.
    fn normed(&self, place: QkNorm, q: Tensor, k: Tensor) -> (Tensor, Tensor) {
        match &self.qk_norm {
            Some((own, q_norm, k_norm)) if *own == place => {
                (q_norm.forward(&q), k_norm.forward(&k))
            }
            _ => (q, k),
        }
    }

    fn groups(&self) -> i64 {
        self.n_h / self.n_kv
    }

    /// The factor of `q kᵀ`.
    fn scale_of_scores(&self) -> f64 {
        self.scale.unwrap_or_else(|| (self.d_h as f64).powf(-0.5))
    }

    /// Causal attention of `q` `[b, n_h, t, d_h]` to `k` and `v` `[b, n_kv, n + t, d_h]`: each query sees the prefix of `n` keys and the
    /// keys up to its own.
    fn causal_attention(&self, q: &Tensor, k: Tensor, v: Tensor) -> Tensor {
        let (groups, queries) = (self.groups(), q.size()[2]);
        let prefix = k.size()[2] - queries;
        // libtorch aligns the first query with the first key, so `prefix` unused queries are padded in front
        let padded = (prefix > 0).then(|| q.constant_pad_nd([0, 0, prefix, 0]));
        let q = padded.as_ref().unwrap_or(q);
        let mixed = if groups == 1 || q.device() == Device::Cpu {
            self.dot_product_attention(q, &k, &v, None, true)
        } else {
            // the GPU kernel for f32 needs a key head for every query head
            let repeated = |x: Tensor| x.repeat_interleave_self_int(groups, 1, None);
            self.dot_product_attention(q, &repeated(k), &repeated(v), None, true)
        };
        mixed.narrow(2, prefix, queries)
    }

    /// Attention of `q` `[b, n_h, q, d_h]`, with the query heads of a group concatenated as queries of one head: keys and values
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
            return self.dot_product_attention(q, k, v, mask, false);
        }
        let (b, n_h, t, d_h) = q.size4().expect("invariant: [b, n_h, q, d_h]");
        let q = q.reshape([b, self.n_kv, groups * t, d_h]);
        self.dot_product_attention(&q, k, v, mask, false).reshape([b, n_h, t, d_h])
    }

    /// `softmax(scale · q kᵀ) v` of `q` `[b, n, q, d_h]` and `k`, `v` `[b, m, t, d_h]`: each of the `m` serves `n / m` query heads.
    fn dot_product_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        mask: Option<&Tensor>,
        is_causal: bool,
    ) -> Tensor {
        let to_f32 = |x: &Tensor| x.to_kind(Kind::Float);
        if is_slow_in_bf16([q, k, v].into_iter().chain(mask)) {
            let (q, k, v, mask) = (to_f32(q), to_f32(k), to_f32(v), mask.map(to_f32));
            let mixed = self.dot_product_attention(&q, &k, &v, mask.as_ref(), is_causal);
            return mixed.to_kind(Kind::BFloat16);
        }
        let is_grouped = q.size()[1] != k.size()[1];
        Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, self.scale, is_grouped)
    }

    /// [`Self::grouped_attention`] with scores soft-capped to ±cap, for which libtorch has no kernel:
    /// `softmax(cap · tanh(scale · q kᵀ / cap)) v`.
    fn capped_attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        (mask, cap): (&AttentionMask, f64),
    ) -> Tensor {
        let (b, n_h, t, d_h) = q.size4().expect("invariant: [b, n_h, q, d_h]");
        let weights = self.scores(q, k, (mask, Some(cap))).softmax(-1, Kind::Float);
        weights.to_kind(v.kind()).matmul(v).reshape([b, n_h, t, d_h])
    }

    /// The attention weights `[b, n_h, q, keys]` of `q` `[b, n_h, q, d_h]` and `k` `[b, n_kv, keys, d_h]`, in f32, for hooks: the attention
    /// kernels do not return them.
    fn weights(&self, q: &Tensor, k: &Tensor, mask: &AttentionMask) -> Tensor {
        let (b, n_h, t, _) = q.size4().expect("invariant: [b, n_h, q, d_h]");
        let scores = self.scores(q, k, (mask, self.soft_cap));
        scores.softmax(-1, Kind::Float).reshape([b, n_h, t, -1])
    }

    /// Scores, soft-capped to ±cap and masked, `[b, n_kv, groups · q, keys]`: the query heads of a group are concatenated.
    fn scores(&self, q: &Tensor, k: &Tensor, (mask, cap): (&AttentionMask, Option<f64>)) -> Tensor {
        let groups = self.groups();
        let (b, _, t, d_h) = q.size4().expect("invariant: [b, n_h, q, d_h]");
        let keys = k.size()[2];
        let q = q.reshape([b, self.n_kv, groups * t, d_h]);
        let scores = q.matmul(&k.transpose(2, 3)) * self.scale_of_scores();
        let scores = match cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        match mask {
            AttentionMask::Causal => {
                let options = (scores.kind(), scores.device());
                let later = Tensor::full([t, keys], f64::NEG_INFINITY, options);
                scores + later.triu(keys - t + 1).repeat([groups, 1])
            }
            mask => match mask.tensor() {
                Some(mask) => scores + mask,
                None => scores,
            },
        }
    }
}
