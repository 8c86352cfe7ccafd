use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::weights::quick_products::largest_by_kernels;
use crate::{
    Error, Hooks, KvCache, Layout, Linear, ModelDescription, Past, Placement, Result, Span, Weight,
};

/// A frozen model: its description, its weights, and a forward through hooks.
///
/// Methods, trainer, planner and tasks use models only through this trait.
pub trait Model {
    /// Its description.
    fn description(&self) -> &ModelDescription;

    /// The kind of the residual stream, of the weights, and of expanded quantised weights.
    fn kind(&self) -> Kind;

    /// The devices of its stages.
    fn placement(&self) -> &Placement;

    /// The device of token ids, final hidden states and logits. A model on one device is all there.
    fn device(&self) -> Device {
        self.placement().home()
    }

    /// Every weight by its checkpoint name; they share storage with the model's.
    fn weights(&self) -> Vec<(String, Weight)>;

    /// A forward over a span, to be run stage by stage. `prefix_length` is the [`Hooks::prefix_length`] of its hooks.
    fn forward<'a>(&'a self, span: &Span<'a>, prefix_length: usize) -> Box<dyn Forward<'a> + 'a>;

    /// The head, which turns the last hidden states into logits. A quantised head is expanded once for several products.
    ///
    /// # Panics
    /// If the model is an encoder, which has none: check with [`ModelDescription::check_predicts`].
    fn head(&self) -> Head;

    /// Whether the head's weights (with tied embeddings, these) need gradients.
    fn trains_head(&self) -> bool;

    /// Logits `[.., v]` in f32 of hidden states `[.., d]`.
    ///
    /// # Panics
    /// As [`Self::head`].
    fn logits(&self, h: &Tensor) -> Tensor {
        self.head().logits(h)
    }

    /// Bytes that the weights take.
    fn weight_bytes(&self) -> usize {
        self.weights().iter().map(|(_, weight)| weight.bytes()).sum()
    }

    /// Whether some weights are quantised. A forward with autograd then keeps the expanded weights until its backward, so
    /// training goes block by block to save memory.
    fn is_quantised(&self) -> bool {
        self.weights().iter().any(|(_, weight)| weight.tensor().is_none())
    }

    /// An empty cache for generation: `batch_size` rows of up to `capacity` columns, a prefix included.
    fn kv_cache(&self, batch_size: i64, capacity: i64) -> KvCache {
        KvCache::new(self.description(), batch_size, capacity, (self.kind(), self.placement()))
    }

    /// Checks that a token id is one of the vocabulary.
    ///
    /// # Errors
    /// [`Error::TokenId`].
    fn check_token(&self, id: i64) -> Result<()> {
        let vocab_size = self.description().vocab_size;
        if (0..vocab_size).contains(&id) {
            return Ok(());
        }
        Err(Error::TokenId { id, vocab_size })
    }

    /// [`Self::hidden_states`] of a whole batch in one pass, `[b, t, d]`.
    ///
    /// # Errors
    /// The error of a hook, with its site.
    fn whole_pass(&self, layout: &Layout, hooks: &mut dyn Hooks) -> Result<Tensor> {
        self.hidden_states(&layout.input_ids(self.device()), &layout.whole(), None, hooks)
    }

    /// The logits of every row's own tokens in one pass of a whole batch, virtual ones included: `[t, v]` each.
    ///
    /// # Errors
    /// As [`Self::whole_pass`].
    ///
    /// # Panics
    /// As [`Self::head`].
    fn row_logits(&self, layout: &Layout, hooks: &mut dyn Hooks) -> Result<Vec<Tensor>> {
        let logits = self.logits(&self.whole_pass(layout, hooks)?);
        Ok((0..layout.batch_size()).map(|row| layout.own(&logits, row)).collect())
    }

    /// Hidden states `[b, t, d]` after the last block and the final norm.
    ///
    /// `input_ids` `[b, t]` belong to the span's columns. With a cache, its columns are attended to, and the span's are
    /// appended; a span that does not begin in column 0 needs one.
    ///
    /// # Errors
    /// The error of a hook, with its site; [`Error::CacheFull`].
    fn hidden_states(
        &self,
        input_ids: &Tensor,
        span: &Span,
        mut cache: Option<&mut KvCache>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor> {
        let prefix = hooks.prefix_length();
        let appended =
            span.width() as i64 + if span.columns.start == 0 { prefix as i64 } else { 0 };
        if let Some(room) = cache.as_deref().map(KvCache::room).filter(|room| *room < appended) {
            return Err(Error::CacheFull { room, needed: appended });
        }
        let forward = self.forward(span, prefix);
        let past = cache.as_deref_mut().map(|cache| cache as &mut dyn Past);
        let blocks = self.description().num_hidden_layers;
        let h = forward.run(0..blocks, forward.embed(input_ids), past, hooks)?;
        if let Some(cache) = cache {
            cache.len += appended;
        }
        forward.finish(h, hooks)
    }
}

/// One forward over a span, stage by stage.
///
/// Stage `k` shows the hooks the hidden states between two blocks (the embeddings if `k` is 0, else the output of block `k − 1`) and runs block
/// `k` on the hooks' output. After the stages, [`Self::finish`] shows them the last block's output and applies the final norm. So the
/// input of stage `k` depends on no hook at a later site, and a forward can begin there with hidden states computed before. The input is
/// on the device of stage `k` ([`Placement::device`]), and so are the tensors that hooks see in this stage.
pub trait Forward<'a> {
    /// Restricts the output to the span's columns from `column` on: the last block computes no others.
    ///
    /// # Panics
    /// If the span does not have the column.
    fn want_from(&mut self, column: usize);

    /// The columns whose hidden states [`Self::finish`] returns.
    fn outputs(&self) -> &Span<'a>;

    /// The input of stage 0: the embeddings `[b, t, d]` of `input_ids` `[b, t]`, the tokens of the span's columns on
    /// [`Model::device`].
    fn embed(&self, input_ids: &Tensor) -> Tensor;

    /// Runs stages on the input `[b, t, d]` of the first of them, and returns the input of the next.
    ///
    /// # Errors
    /// The error of a hook, with its site.
    fn run(
        &self,
        stages: Range<usize>,
        h: Tensor,
        past: Option<&mut dyn Past>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor>;

    /// Ends a forward: hidden states `[b, q, d]` of the wanted columns after the final norm, on [`Model::device`].
    ///
    /// # Errors
    /// The error of a hook, with its site.
    fn finish(&self, h: Tensor, hooks: &mut dyn Hooks) -> Result<Tensor>;
}

/// Turns hidden states into logits: `cap · tanh(W h / (divisor · cap))`, in most models `W h`.
#[derive(Debug)]
pub struct Head {
    linear: Linear,
    divisor: f64,
    soft_cap: Option<f64>,
}

impl Head {
    /// A head `W` `[v, d]`, with a bias or without.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { linear: Linear { weight, bias }, divisor: 1.0, soft_cap: None }
    }

    /// The same with its weight expanded, for many calls with many rows.
    pub fn dense(self) -> Self {
        let Self { linear: Linear { weight, bias }, .. } = self;
        Self { linear: Linear { weight: Weight::Dense(weight.dense()), bias }, ..self }
    }

    /// The same with logits divided by `divisor`, then soft-capped to ±cap.
    pub fn scaled(self, divisor: f64, soft_cap: Option<f64>) -> Self {
        Self { divisor, soft_cap, ..self }
    }

    /// The head for some tokens `[a]` only, to choose between them.
    pub fn of_tokens(&self, tokens: &Tensor) -> Self {
        let bias = self.linear.bias.as_ref().map(|bias| bias.index_select(0, tokens));
        Self::new(Weight::Dense(self.linear.weight.rows_at(tokens)), bias)
            .scaled(self.divisor, self.soft_cap)
    }

    /// Logits `[.., v]` in f32 of hidden states `[.., d]`.
    pub fn logits(&self, h: &Tensor) -> Tensor {
        let logits = self.linear.forward(h).to_kind(Kind::Float);
        let logits = if self.divisor == 1.0 { logits } else { logits / self.divisor };
        match self.soft_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The largest logit of each row of hidden states `[b, d]` and its token; NaN if one of the logits is.
    pub(crate) fn likeliest(&self, h: &Tensor) -> Result<(Vec<f32>, Vec<i64>)> {
        let Linear { weight, bias } = &self.linear;
        if self.divisor == 1.0
            && self.soft_cap.is_none()
            && bias.is_none()
            && let Some(largest) = largest_by_kernels(h, weight)
        {
            return Ok(largest.into_iter().map(|one| (one.value, one.row as i64)).unzip());
        }
        let (best, ids) = self.logits(h).max_dim(-1, false);
        Ok((best.try_into()?, ids.try_into()?))
    }
}
