use std::cell::OnceCell;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::transformer::attention_mask::AttentionMask;
use crate::transformer::rope::Angles;
use crate::{
    Component, Decoder, HookPoint, Hooks, Linear, Model, QueryScaling, Result, Site, Span,
};

/// The state that all blocks of one forward share.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) span: Span<'a>,
    pub(crate) prefix: usize,
    decoder: &'a Decoder,
    /// Created for a part of the model on the first use by one of its blocks.
    parts: Vec<OnceCell<PartPass>>,
}

/// The state that the blocks of one part of the model share, on its device: rotary angles and attention masks of each kind of layer.
#[derive(Debug)]
pub(crate) struct PartPass {
    pub(crate) angles: Vec<Angles>,
    /// Factor of queries, `[b, 1, t, 1]`.
    pub(crate) query_scale: Option<Tensor>,
    masks: BTreeMap<Option<i64>, OnceCell<AttentionMask>>,
    device: Device,
}

/// The columns that a block sees, and the last columns among them, whose hidden states it computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockColumns<'a> {
    pub(crate) seen: &'a Pass<'a>,
    pub(crate) computed: &'a Pass<'a>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(decoder: &'a Decoder, span: Span<'a>, prefix: usize) -> Self {
        let parts = (0..decoder.placement().parts()).map(|_| OnceCell::new()).collect();
        Self { span, prefix, decoder, parts }
    }

    /// The shared state of a layer's part.
    pub(crate) fn of(&self, layer: usize) -> &PartPass {
        let part = self.decoder.placement().part(layer);
        self.parts[part].get_or_init(|| self.part(part, self.decoder.placement().device(layer)))
    }

    fn part(&self, part: usize, device: Device) -> PartPass {
        let (config, kind) = (self.decoder.config(), self.decoder.kind());
        let position_ids = self.span.position_ids(device) + self.prefix as i64;
        let masks = config.windows.iter().map(|window| (*window, OnceCell::new())).collect();
        let lengths = || {
            let rows = 0..self.span.layout.batch_size();
            rows.map(|row| self.prefix + self.span.row_length(row)).collect()
        };
        let query_scale = config.attention.query_scaling.map(|scaling| {
            scaling.of_positions(&position_ids).to_kind(kind).unsqueeze(1).unsqueeze(-1)
        });
        let angles = self.decoder.ropes[part].iter();
        let angles = angles.map(|rope| rope.angles(&position_ids, lengths, kind)).collect();
        PartPass { angles, query_scale, masks, device }
    }

    /// Whether the prefix must be put before the keys: only in the first pass, as the cache holds it afterwards.
    pub(crate) fn begins_with_prefix(&self) -> bool {
        self.prefix > 0 && self.span.columns.start == 0
    }

    /// The mask of a layer; layers with the same window share it.
    pub(crate) fn mask(&self, layer: usize) -> &AttentionMask {
        let (config, kind) = (self.decoder.config(), self.decoder.kind());
        let (own, window) = (self.of(layer), config.windows[layer]);
        own.masks[&window].get_or_init(|| {
            let seen = (window, config.is_causal);
            let groups = config.num_attention_heads / config.num_key_value_heads;
            AttentionMask::new(&self.span, self.prefix, seen, groups, (kind, own.device))
        })
    }

    /// The columns of this pass in `x` `[b, t, ..]`, which has the columns of a wider pass with the same end.
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
