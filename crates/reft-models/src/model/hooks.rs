use std::ops::Range;

use reft_core::LinearEdit;
use tch::{Device, Kind, Tensor};

use crate::{Component, Error, Layout, Linear, Result, Site, Span, send};

/// A point of a forward at which hooks see a tensor.
#[derive(Debug, Clone, Copy)]
pub enum HookPoint<'a> {
    /// The embeddings `[b, t, d]` of the pass's tokens (prompt tuning).
    Embeddings,
    /// The hidden states `[b, t, d]` at one of the four points of the residual stream.
    Residual(Site),
    /// The input of a projection, `[b, t, in]`.
    Input(Site),
    /// The output of a projection, `y = W x + b` `[b, t, out]`, with the projection and its input `x` (LoRA adds to it).
    Output(Site, &'a Linear, &'a Tensor),
}

impl HookPoint<'_> {
    /// The site whose hidden states, in the sense of [`Place`](crate::Place), are seen here.
    pub fn place(self) -> Option<Site> {
        match self {
            Self::Residual(site) => Some(site),
            Self::Input(site) => Some(site).filter(|site| site.is_projection_input()),
            Self::Output(site, ..) => Some(site).filter(|site| !site.is_projection_input()),
            Self::Embeddings => None,
        }
    }
}

/// Functions by which a method sees and replaces tensors of a frozen forward.
///
/// Every function has a default that changes nothing. The model continues with the returned tensor; gradients flow through it.
/// Edits, LoRA, prefix and prompt tuning, interchange interventions and the collection of hidden states are all hooks.
pub trait Hooks {
    /// Sees a forward's tensor at a point, `[b, t, ..]`, and may replace it.
    ///
    /// # Errors
    /// If the method refuses the tensor.
    fn visit(&mut self, _point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        Ok(h)
    }

    /// Whether [`Self::visit`] may replace the tensor at a point of a pass, or needs to see it. If not, the rows of these hooks need not
    /// be gathered. `true` is always correct.
    fn touches(&self, _point: HookPoint, _span: &Span) -> bool {
        true
    }

    /// The update of [`Self::visit`] at a point of a pass, if the visit only adds a low-rank product. Rows with such updates are computed
    /// together, even with different adapters. `None`: the visit does something else, or nothing.
    fn low_rank(&self, _point: HookPoint, _span: &Span) -> Option<LowRank<'_>> {
        None
    }

    /// The edits of [`Self::visit`] at some tokens of a pass, if the visit does nothing else, each edit is linear in the token's own hidden state,
    /// and no token has two edits. Such tokens are computed together, even with different adapters. `None`: the visit does something else, or
    /// nothing.
    fn token_edits(&self, _point: HookPoint, _span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        None
    }

    /// Number of [`Self::prefix`] tokens, the same at every layer; the batch's own tokens take the positions after them.
    fn prefix_length(&self) -> usize {
        0
    }

    /// Keys and values before a layer's own, `[b, n_kv, prefix_length, d_h]` each; no RoPE is applied to the keys.
    fn prefix(&mut self, _layer: usize, _span: &Span) -> Option<(Tensor, Tensor)> {
        None
    }

    /// Whether [`Self::see_attention`] needs the attention weights of a layer. They are computed in addition to the layer's output, which stays
    /// the same bit for bit.
    fn wants_attention(&self, _layer: usize) -> bool {
        false
    }

    /// Sees the attention weights of a layer, `[b, n_h, q, keys]` in f32: each query's sum to 1 over the keys, a prefix's first,
    /// then the batch's columns.
    fn see_attention(&mut self, _layer: usize, _weights: Tensor) {}

    /// Keeps only the given rows of the batch, in this order, after the others have left it.
    ///
    /// Hooks without state per row have nothing to do.
    fn keep_rows(&mut self, _rows: &[usize]) {}

    /// Cuts the graph of tensors that were computed from parameters before the forward (by an orthonormal map): the forward may then be run and
    /// differentiated in pieces, each of which adds its gradients to the new leaves.
    ///
    /// Hooks that compute nothing before the forward have nothing to cut.
    fn cut(&mut self) -> Vec<Cut> {
        Vec::new()
    }
}

/// A low-rank update of a projection's output, computed in f32: `y + s B A x`.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `A` `[r, in]`.
    pub a: &'a Tensor,
    /// `B` `[out, r]`.
    pub b: &'a Tensor,
    /// `s`.
    pub scaling: f64,
}

/// A linear edit of the hidden states of some tokens of a pass, computed in f32: `h + s Dᵀ(A h + b)`.
#[derive(Debug, Clone)]
pub struct TokenEdit<'a> {
    /// The tokens, as [`Span::flat_index`] counts them.
    pub tokens: Vec<i64>,
    /// The update.
    pub edit: LinearEdit<'a>,
    /// `s`.
    pub scaling: f64,
}

/// Hooks by reference.
impl<T: Hooks + ?Sized> Hooks for &mut T {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        (**self).visit(point, h, span)
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        (**self).touches(point, span)
    }

    fn low_rank(&self, point: HookPoint, span: &Span) -> Option<LowRank<'_>> {
        (**self).low_rank(point, span)
    }

    fn token_edits(&self, point: HookPoint, span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        (**self).token_edits(point, span)
    }

    fn prefix_length(&self) -> usize {
        (**self).prefix_length()
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        (**self).prefix(layer, span)
    }

    fn wants_attention(&self, layer: usize) -> bool {
        (**self).wants_attention(layer)
    }

    fn see_attention(&mut self, layer: usize, weights: Tensor) {
        (**self).see_attention(layer, weights);
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        (**self).keep_rows(rows);
    }

    fn cut(&mut self) -> Vec<Cut> {
        (**self).cut()
    }
}

impl dyn Hooks + '_ {
    /// Shows the hidden states `[b, s, d]` at a point of the residual stream; returns them, edited, in this shape.
    ///
    /// # Errors
    /// [`Error::At`]: the error of the hooks, with the site.
    pub fn visit_residual(
        &mut self,
        layer: usize,
        component: Component,
        h: Tensor,
        span: &Span,
    ) -> Result<Tensor> {
        let site = Site { layer, component };
        let visited = self.visit(HookPoint::Residual(site), h, span);
        visited.map_err(|source| Error::At { site, source: Box::new(source) })
    }
}

/// A tensor that hooks computed from parameters, and the leaf that replaces it after a cut of the graph.
#[derive(Debug)]
pub struct Cut {
    /// The tensor of any shape, at the end of its graph.
    pub computed: Tensor,
    /// The leaf with the same shape and value, whose gradient must be passed on to `computed`.
    pub leaf: Tensor,
}

impl Cut {
    /// Replaces a tensor of any shape that was computed from parameters by a leaf; does nothing and returns `None` if it was not computed.
    pub fn of(tensor: &mut Tensor) -> Option<Self> {
        if tensor.is_leaf() {
            return None;
        }
        let leaf = tensor.detach().set_requires_grad(true);
        Some(Self { computed: std::mem::replace(tensor, leaf.shallow_clone()), leaf })
    }
}

/// The plain model.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn touches(&self, _point: HookPoint, _span: &Span) -> bool {
        false
    }
}

/// Several methods at once; each sees the output of the method before it.
///
/// At most one of them may bring a [`Hooks::prefix`]; only the first prefix is used.
#[derive(Default)]
pub struct Stacked<'a>(pub Vec<Box<dyn Hooks + 'a>>);

impl<'a> Stacked<'a> {
    /// The only method that acts at a point of a pass; `None` if there are two, as the second sees the output of the first.
    fn only(&self, point: HookPoint, span: &Span) -> Option<&(dyn Hooks + 'a)> {
        let mut touching = self.0.iter().filter(|hooks| hooks.touches(point, span));
        let one = touching.next()?;
        touching.next().is_none().then_some(&**one)
    }
}

impl Hooks for Stacked<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        self.0.iter_mut().try_fold(h, |h, hooks| hooks.visit(point, h, span))
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.0.iter().any(|hooks| hooks.touches(point, span))
    }

    fn low_rank(&self, point: HookPoint, span: &Span) -> Option<LowRank<'_>> {
        self.only(point, span)?.low_rank(point, span)
    }

    fn token_edits(&self, point: HookPoint, span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        self.only(point, span)?.token_edits(point, span)
    }

    fn prefix_length(&self) -> usize {
        self.0.iter().map(|hooks| hooks.prefix_length()).find(|&n| n > 0).unwrap_or(0)
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        self.0.iter_mut().find(|hooks| hooks.prefix_length() > 0)?.prefix(layer, span)
    }

    fn wants_attention(&self, layer: usize) -> bool {
        self.0.iter().any(|hooks| hooks.wants_attention(layer))
    }

    fn see_attention(&mut self, layer: usize, weights: Tensor) {
        let asking = self.0.iter_mut().filter(|hooks| hooks.wants_attention(layer));
        asking.for_each(|hooks| hooks.see_attention(layer, weights.shallow_clone()));
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.0.iter_mut().for_each(|hooks| hooks.keep_rows(rows));
    }

    fn cut(&mut self) -> Vec<Cut> {
        self.0.iter_mut().flat_map(|hooks| hooks.cut()).collect()
    }
}

/// A method at a strength: every tensor that it replaces becomes `base + s · (edited − base)`. It may bring no prefix.
pub(crate) struct AtStrength<'a> {
    pub(crate) hooks: Box<dyn Hooks + 'a>,
    pub(crate) strength: f64,
}

impl Hooks for AtStrength<'_> {
    fn visit(&mut self, point: HookPoint, base: Tensor, span: &Span) -> Result<Tensor> {
        let edited = self.hooks.visit(point, base.shallow_clone(), span)?;
        let is_edited = edited.data_ptr() != base.data_ptr();
        Ok(if is_edited { &base + (edited - &base) * self.strength } else { edited })
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        self.hooks.touches(point, span)
    }

    fn low_rank(&self, point: HookPoint, span: &Span) -> Option<LowRank<'_>> {
        let own = self.hooks.low_rank(point, span)?;
        Some(LowRank { scaling: own.scaling * self.strength, ..own })
    }

    fn token_edits(&self, point: HookPoint, span: &Span) -> Option<Vec<TokenEdit<'_>>> {
        let mut own = self.hooks.token_edits(point, span)?;
        own.iter_mut().for_each(|edit| edit.scaling *= self.strength);
        Some(own)
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.hooks.keep_rows(rows);
    }

    fn cut(&mut self) -> Vec<Cut> {
        self.hooks.cut()
    }
}

/// Restricts a method to prompt tokens: its changes of other tokens are discarded, and in a pass without prompt tokens it is not called.
pub struct OnPrompt<'a> {
    hooks: Box<dyn Hooks + 'a>,
    prompt_lengths: Vec<usize>,
    pass: Option<PromptTokens>,
}

/// The prompt tokens of the present pass: the same at every point of a device, so computed once.
struct PromptTokens {
    columns: Range<usize>,
    device: Device,
    tokens: Part,
}

/// The prompt tokens among a pass's tokens.
enum Part {
    Nothing,
    Everything,
    Some(Tensor), // [b, t, 1] bool
}

impl<'a> OnPrompt<'a> {
    /// Restricts the hooks of a method without prefix and virtual tokens, on the batch of a layout.
    pub fn new(hooks: Box<dyn Hooks + 'a>, layout: &Layout) -> Self {
        let prompt_lengths = layout.rows().iter().map(|row| row.prompt_length).collect();
        Self { hooks, prompt_lengths, pass: None }
    }

    /// The tokens of a pass that are in a prompt. Padding is ignored.
    fn part(&self, span: &Span, device: Device) -> Part {
        let (mut inside, mut outside) = (Vec::new(), false);
        for (row, own) in span.layout.rows().iter().enumerate() {
            for token in 0..own.input_ids.len() {
                match span.flat_index(row, token) {
                    Some(index) if token < self.prompt_lengths[row] => inside.push(index),
                    Some(_) => outside = true,
                    None => {}
                }
            }
        }
        // columns after the layout are generated tokens
        outside |= span.columns.end > span.layout.width();
        match (inside.is_empty(), outside) {
            (true, _) => Part::Nothing,
            (false, false) => Part::Everything,
            (false, true) => {
                let (b, t) = (self.prompt_lengths.len() as i64, span.columns.len() as i64);
                let mask = Tensor::zeros([b * t], (Kind::Bool, Device::Cpu));
                let mask = mask.index_fill(0, &Tensor::from_slice(&inside), 1);
                Part::Some(send(&mask.view([b, t, 1]), device))
            }
        }
    }
}

impl Hooks for OnPrompt<'_> {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        if !self.hooks.touches(point, span) {
            return Ok(h);
        }
        let device = h.device();
        let is_known = |pass: &PromptTokens| pass.columns == span.columns && pass.device == device;
        if !self.pass.as_ref().is_some_and(is_known) {
            let tokens = self.part(span, device);
            self.pass = Some(PromptTokens { columns: span.columns.clone(), device, tokens });
        }
        match self.pass.as_ref().map(|pass| &pass.tokens) {
            None | Some(Part::Nothing) => Ok(h),
            Some(Part::Everything) => self.hooks.visit(point, h, span),
            Some(Part::Some(mask)) => {
                let edited = self.hooks.visit(point, h.shallow_clone(), span)?;
                Ok(edited.where_self(mask, &h))
            }
        }
    }

    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        span.columns.start < span.layout.width() && self.hooks.touches(point, span)
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        self.prompt_lengths = rows.iter().map(|&row| self.prompt_lengths[row]).collect();
        self.pass = None;
        self.hooks.keep_rows(rows);
    }

    fn cut(&mut self) -> Vec<Cut> {
        self.hooks.cut()
    }
}
