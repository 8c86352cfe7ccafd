use std::cell::OnceCell;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::transformer::attention_mask::AttentionMask;
use crate::transformer::rope::{Angles, Rope};
use crate::{Component, DecoderConfig, HookPoint, Hooks, Linear, QueryScaling, Result, Site, Span};

/// What is the same for every block of one forward: rotary angles and attention masks of each kind of layer.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) span: Span<'a>,
    pub(crate) angles: Vec<Angles>,
    /// What queries are multiplied with, `[b, 1, t, 1]`.
    pub(crate) query_scale: Option<Tensor>,
    pub(crate) prefix: usize,
    windows: &'a [Option<i64>],
    is_causal: bool,
    masks: BTreeMap<Option<i64>, OnceCell<AttentionMask>>,
    groups: i64,
    options: (Kind, Device),
}

/// The columns that a block sees, and the last of them, whose hidden states it computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockColumns<'a> {
    pub(crate) seen: &'a Pass<'a>,
    pub(crate) computed: &'a Pass<'a>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        span: Span<'a>,
        config: &'a DecoderConfig,
        ropes: &[Rope],
        prefix: usize,
        options: (Kind, Device),
    ) -> Self {
        let (kind, device) = options;
        let position_ids = span.position_ids(device) + prefix as i64;
        let masks = config.windows.iter().map(|window| (*window, OnceCell::new())).collect();
        let lengths = || {
            let lengths = (0..span.layout.batch_size()).map(|row| prefix + span.row_length(row));
            lengths.collect()
        };
        let query_scale = config.attention.query_scaling.map(|scaling| {
            scaling.of_positions(&position_ids).to_kind(kind).unsqueeze(1).unsqueeze(-1)
        });
        Self {
            angles: ropes.iter().map(|rope| rope.angles(&position_ids, lengths, kind)).collect(),
            query_scale,
            span,
            prefix,
            windows: &config.windows,
            is_causal: config.is_causal,
            masks,
            groups: config.num_attention_heads / config.num_key_value_heads,
            options,
        }
    }

    /// Whether a prefix is put before the keys: in the first pass, from which on it stands in the cache.
    pub(crate) fn begins_with_prefix(&self) -> bool {
        self.prefix > 0 && self.span.columns.start == 0
    }

    /// The mask of a layer; layers that see equally far share one.
    pub(crate) fn mask(&self, layer: usize) -> &AttentionMask {
        let window = self.windows[layer];
        self.masks[&window].get_or_init(|| {
            let seen = (window, self.is_causal);
            AttentionMask::new(&self.span, self.prefix, seen, self.groups, self.options)
        })
    }

    /// The columns of this pass of `x` `[b, t, ..]`, which holds those of a wider pass with the same end.
    pub(crate) fn last_columns(&self, x: &Tensor) -> Tensor {
        let (width, t) = (self.span.width() as i64, x.size()[1]);
        if width == t { x.shallow_clone() } else { x.narrow(1, t - width, width) }
    }

    /// A projection between its hooks.
    pub(crate) fn project(
        &self,
        layer: usize,
        component: Component,
        linear: &Linear,
        x: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let site = Site { layer, component };
        let x = hooks.visit(HookPoint::Input(site), x.shallow_clone(), &self.span)?;
        let y = linear.forward(&x);
        hooks.visit(HookPoint::Output(site, linear, &x), y, &self.span)
    }
}

impl QueryScaling {
    /// Factors of the queries at these positions.
    fn of_positions(self, position_ids: &Tensor) -> Tensor {
        let Self { beta, original_max_position_embeddings: original } = self;
        let contexts = (position_ids.to_kind(Kind::Float) / original).floor();
        (contexts + 1.0).log() * beta + 1.0
    }
}
