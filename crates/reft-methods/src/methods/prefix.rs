use reft_models::{
    Cut, Fields, HookPoint, Hooks, Layout, Mode, Model, ModelDescription, NoHooks, PaddingSide,
    Result, Row, Span, beside,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Tensor, no_grad};

use crate::files::peft_fields::{self, OtherFields, check_model};
use crate::methods::prompt::{cycled, virtual_tokens};
use crate::{
    AdapterFiles, ENCODER_HIDDEN_SIZE, INIT_TOKENS, Joining, Keeps, MadeHooks, Merging,
    MethodDeclaration, MethodOptions, N_VIRTUAL_TOKENS, ONE_PLACE, Part, Start, Table,
    TensorMethod, TensorSpec, check_positive, read_config, resolve_config,
};

/// Prefix tuning: trained keys and values before every layer's own.
///
/// Li and Liang 2021 (arXiv:2101.00190); without its MLP, P-Tuning v2 (Liu et al. 2021, arXiv:2110.07602). A prefix token has one key and
/// one value per layer, used as stored: no rotary embedding is applied, and the batch's own tokens take the positions after the
/// prefix. With `prefix_projection` the prefix is `W₂ tanh(W₁ e + b₁) + b₂` of trained token vectors `e` while it trains; the file holds
/// the prefix itself, as PEFT's does, and an adapter read from it trains that on.
///
/// No prefix is the identity: even zeros take a share of the attention.
pub(crate) const PREFIX: MethodDeclaration = MethodDeclaration {
    name: "prefix",
    title: "prefix tuning",
    equation: "keys and values before each layer's own",
    source: "Li and Liang 2021, arXiv:2101.00190",
    options: &[&INIT_TOKENS, &N_VIRTUAL_TOKENS, &ENCODER_HIDDEN_SIZE],
    files: AdapterFiles::Peft("PREFIX_TUNING"),
    merging: Merging::Never("its keys and values stand before the weights' own"),
    joining: Joining::Never(ONE_PLACE),
    acts_on_generated: false,
    per_row: false,
    usual_lr: 1e-2,
    resolve: resolve_config::<PrefixConfig>,
    read: read_config::<PrefixConfig>,
};

/// Prefix tuning as `adapter_config.json` says it (`peft_type` PREFIX_TUNING).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PrefixConfig {
    num_virtual_tokens: i64,
    /// Size of all keys of a token, `n_kv · d_h`.
    token_dim: i64,
    /// Heads of keys and values, `n_kv`.
    num_attention_heads: i64,
    num_layers: usize,
    /// Inner size of the MLP that makes the prefix while it trains, if `prefix_projection`.
    encoder_hidden_size: i64,
    prefix_projection: bool,
    #[serde(flatten)]
    other: OtherFields,
    /// The tokens of a text that the prefix starts as.
    #[serde(skip)]
    text: Option<Vec<i64>>,
    /// Whether the prefix itself is trained, without the MLP.
    #[serde(skip)]
    is_read: bool,
}

/// Name of the prefix in PEFT's file.
const TENSOR: &str = "prompt_embeddings";

impl PrefixConfig {
    fn check(&self, model: &ModelDescription) -> crate::Result<()> {
        let heads = model.num_key_value_heads;
        check_positive("num_virtual_tokens", self.num_virtual_tokens)?;
        check_positive("encoder_hidden_size", self.encoder_hidden_size)?;
        Ok(check_model(&[
            ("num_layers", self.num_layers as i64, model.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads, heads),
            ("token_dim", self.token_dim, heads * model.head_dim),
        ])?)
    }

    /// The prefix `[n, layers · 2 · n_kv · d_h]`: of each token the keys, then the values, of each layer.
    fn prefix(&self, table: &Table<()>) -> Tensor {
        match table.tensors() {
            [tokens, w1, b1, w2, b2] => tokens.linear(w1, Some(b1)).tanh().linear(w2, Some(b2)),
            stored => stored[0].shallow_clone(),
        }
    }
}

/// The keys and values that a model has for a text, `[n, layers · 2 · n_kv · d_h]`.
fn of_text(model: &dyn Model, tokens: &[i64]) -> Result<Tensor> {
    tokens.iter().try_for_each(|&token| model.check_token(token))?;
    let layout = Layout::new(vec![Row::prompt(tokens.to_vec())], PaddingSide::Right)?;
    let mut cache = model.kv_cache(1, tokens.len() as i64);
    let ids = layout.input_ids(model.device());
    let _unused =
        no_grad(|| model.hidden_states(&ids, &layout.whole(), Some(&mut cache), &mut NoHooks))?;
    let layers = (0..model.description().num_hidden_layers).flat_map(|layer| {
        let (keys, values) = cache.keys_and_values(layer); // [1, n_kv, n, d_h] each
        [keys, values].map(|x| x.squeeze_dim(0).transpose(0, 1).flatten(1, 2)) // [n, n_kv · d_h]
    });
    let layers: Vec<Tensor> = layers.collect();
    Ok(Tensor::cat(&layers.iter().map(|own| beside(own, &layers[0])).collect::<Vec<_>>(), 1))
}

impl TensorMethod for PrefixConfig {
    const DECLARATION: &'static MethodDeclaration = &PREFIX;
    type Constants = ();

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        let n = virtual_tokens(options)?;
        let encoder: Option<i64> = options.get(&ENCODER_HIDDEN_SIZE);
        let text: Option<Vec<i64>> = options.get(&INIT_TOKENS);
        if text.is_some() && encoder.is_some() {
            return Err(INIT_TOKENS.refuse("given with encoder_hidden_size", "one of the two"));
        }
        let token_dim = model.num_key_value_heads * model.head_dim;
        Ok(Self {
            num_virtual_tokens: n,
            token_dim,
            num_attention_heads: model.num_key_value_heads,
            num_layers: model.num_hidden_layers,
            encoder_hidden_size: encoder.unwrap_or(token_dim),
            prefix_projection: encoder.is_some(),
            other: OtherFields::of(
                "PREFIX_TUNING",
                model,
                json!({ "num_transformer_submodules": 1 }),
            ),
            text: text.map(|text| cycled(text, n)).transpose()?,
            is_read: false,
        })
    }

    fn options(&self) -> MethodOptions {
        let encoder = self.prefix_projection.then_some(self.encoder_hidden_size);
        MethodOptions::default()
            .with_some(&INIT_TOKENS, self.text.as_ref())
            .with(&N_VIRTUAL_TOKENS, self.num_virtual_tokens)
            .with_some(&ENCODER_HIDDEN_SIZE, encoder)
    }

    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        Some((&peft_fields::PREFIX, &self.other))
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        self.check(model)?;
        let (n, width) = (self.num_virtual_tokens, self.num_layers as i64 * 2 * self.token_dim);
        let (token_dim, inner) = (self.token_dim, self.encoder_hidden_size);
        let tensors = if self.prefix_projection && !self.is_read {
            let first = Start::Uniform;
            vec![
                TensorSpec::new("embedding.weight", [n, token_dim], Start::Normal),
                TensorSpec::new("transform.0.weight", [inner, token_dim], first(token_dim)),
                TensorSpec::new("transform.0.bias", [inner], first(token_dim)),
                TensorSpec::new("transform.2.weight", [width, inner], first(inner)),
                TensorSpec::new("transform.2.bias", [width], first(inner)),
            ]
        } else {
            let start = match self.text.clone() {
                Some(text) => Start::FromModel(Box::new(move |model| of_text(model, &text))),
                None => Start::Normal,
            };
            vec![TensorSpec::new(TENSOR, [n, width], start)]
        };
        Ok(vec![Part { site: None, constants: (), tensors, keeps: Keeps::default() }])
    }

    fn into_read(self) -> Self {
        Self { is_read: true, ..self }
    }

    fn saved(&self, table: &Table<()>) -> Vec<(String, Tensor)> {
        vec![(TENSOR.to_owned(), self.prefix(table).detach().to_device(Device::Cpu))]
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, _: &Layout, _: Mode) -> MadeHooks<'a> {
        let (n, heads) = (self.num_virtual_tokens, self.num_attention_heads);
        let shape = [n, self.num_layers as i64, 2, heads, self.token_dim / heads];
        let prefix = self.prefix(table).view(shape).permute([1, 2, 3, 0, 4]); // [layers, 2, n_kv, n, d_h]
        Ok(Box::new(PrefixHooks { n: n as usize, layers: prefix.unbind(0) }))
    }

    fn prefix_length(&self) -> usize {
        self.num_virtual_tokens as usize
    }
}

/// The prefix in one forward.
struct PrefixHooks {
    n: usize,
    layers: Vec<Tensor>, // [2, n_kv, n, d_h] each
}

impl Hooks for PrefixHooks {
    fn touches(&self, _point: HookPoint, _span: &Span) -> bool {
        false
    }

    fn prefix_length(&self) -> usize {
        self.n
    }

    fn prefix(&mut self, layer: usize, span: &Span) -> Option<(Tensor, Tensor)> {
        let b = span.layout.batch_size() as i64;
        let both = self.layers.get(layer)?; // [2, n_kv, n, d_h]
        let of_every_row = |x: Tensor| x.unsqueeze(0).expand([b, -1, -1, -1], false);
        Some((of_every_row(both.get(0)), of_every_row(both.get(1))))
    }

    fn cut(&mut self) -> Vec<Cut> {
        self.layers.iter_mut().filter_map(Cut::of).collect()
    }
}
