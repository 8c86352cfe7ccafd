/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm (Zhang and Sennrich 2019): `x / √(mean(x²) + ε) ⊙ w`.
    Rms,
    /// The same with `1 + w` in the place of `w`, so that weights of 0 scale nothing (Gemma).
    RmsPlusOne,
    /// LayerNorm (Ba et al. 2016, arXiv:1607.06450): `(x − mean(x)) / √(var(x) + ε) ⊙ w`, and a bias if it has one.
    Layer,
}

/// The position of the norms of a block's two branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlaces {
    /// The input of a branch (Llama).
    Pre,
    /// The output of a branch, before it is added to the residual stream (OLMo 2).
    Post,
    /// Both, the "sandwich" (Gemma 2).
    Both,
    /// The residual stream itself, once a branch has been added to it (BERT).
    Stream,
}

/// The norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, with one weight for all heads (Qwen 3).
    PerHead,
    /// All heads as one vector (OLMo 2).
    FullWidth,
}

/// The input projections of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// Two projections, one the gate of the other: `down(f(gate x) ⊙ up x)` (Shazeer 2020).
    Gated,
    /// The same with gate and up in one projection, gate first.
    FusedGate,
    /// One projection: `down(f(up x))`.
    Plain,
}

/// The function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpActivation {
    /// `x · σ(x)`.
    Silu,
    /// `x · Φ(x)`, exactly.
    Gelu,
    /// GELU by way of tanh.
    TanhGelu,
}

impl MlpActivation {
    /// The function that `config.json` names.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_pytorch_tanh" | "gelu_new" => Self::TanhGelu,
            _ => return None,
        })
    }
}

/// Rotary position embedding of one kind of layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeOptions {
    /// Base θ.
    pub theta: f64,
    /// Number of rotated coordinates of a head, an even number: the first ones.
    pub rotated: i64,
    /// How the frequencies are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Stretching of the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths stretched by a factor, short ones kept, with a smooth transition between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths past `original / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context that the frequencies were made for.
        original_max_position_embeddings: f64,
    },
    /// A base θ that grows with the length of a row past the original context ("dynamic NTK").
    Dynamic {
        /// The factor.
        factor: f64,
        /// Context that the frequencies were made for.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071): long wavelengths divided by a factor, short ones kept, by the number of turns in the
    /// original context.
    Yarn {
        /// The factor.
        factor: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Turns from which on a wavelength is kept.
        beta_fast: f64,
        /// Turns below which it is stretched in full.
        beta_slow: f64,
        /// Whether the limits between are rounded to whole coordinates.
        truncate: bool,
        /// Context that the frequencies were made for.
        original_max_position_embeddings: f64,
    },
    /// LongRoPE (Ding et al. 2024, arXiv:2402.13753): a factor for each frequency, with other factors in rows past the original context.
    LongRope {
        /// Factors within the original context.
        short_factor: Vec<f64>,
        /// Factors past it.
        long_factor: Vec<f64>,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Context that the frequencies were made for.
        original_max_position_embeddings: f64,
    },
}

impl RopeScaling {
    /// Whether the frequencies of a row depend on how many tokens it has.
    pub(crate) fn depends_on_length(&self) -> bool {
        matches!(self, Self::Dynamic { .. } | Self::LongRope { .. })
    }

    /// Its name in `config.json`, if it stretches anything.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::Linear { .. } => "linear",
            Self::Llama3 { .. } => "llama3",
            Self::Dynamic { .. } => "dynamic",
            Self::Yarn { .. } => "yarn",
            Self::LongRope { .. } => "longrope",
        })
    }
}

/// Queries that grow with their position: `q · (1 + β ln(1 + ⌊position / original⌋))` (Ministral 3, after Llama 4).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScaling {
    /// β.
    pub beta: f64,
    /// Positions in the original context.
    pub original_max_position_embeddings: f64,
}

/// Attention's options beside its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionOptions {
    /// Factor of scores; `None`: 1 / √(head size).
    pub scale: Option<f64>,
    /// Bound of a soft cap on scores: `cap · tanh(score / cap)`.
    pub soft_cap: Option<f64>,
    /// The norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Whether query, key and value are one projection.
    pub is_fused: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the output has a bias.
    pub output_bias: bool,
    /// Queries that grow with their position.
    pub query_scaling: Option<QueryScaling>,
    /// The rotary position embeddings of the model's kinds of layers.
    pub ropes: Vec<RopeOptions>,
    /// Index of each layer's RoPE in [`Self::ropes`]; `None`: the layer has no positions.
    pub rope_of_layer: Vec<Option<usize>>,
}

/// The MLP's options beside its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct MlpOptions {
    /// Its function.
    pub activation: MlpActivation,
    /// How it takes its input.
    pub kind: MlpKind,
    /// Whether its projections have a bias.
    pub bias: bool,
}

/// The norms' options beside their sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct NormOptions {
    /// How they use their weights.
    pub kind: NormKind,
    /// Their position in a block.
    pub places: NormPlaces,
    /// ε.
    pub eps: f64,
    /// Whether they have a bias.
    pub bias: bool,
    /// Whether attention of the first block has no norm, as its input is normalised already (ModernBERT).
    pub skips_first: bool,
}

/// Additions to the embeddings of tokens, and the norm of the sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EmbeddingOptions {
    /// A trained vector for every position.
    pub positions: Option<LearnedPositions>,
    /// Number of token types, each with a trained vector; 0: tokens have no type.
    pub token_types: i64,
    /// Whether the sum is normalised.
    pub is_normed: bool,
}

/// A table of position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnedPositions {
    /// Rows of the table.
    pub rows: i64,
    /// The row of a text's first token.
    pub first: i64,
    /// The token that takes no position: it always has the row before the first (RoBERTa).
    pub uncounted: Option<i64>,
}

/// A family's factors and bounds of embeddings, branches and logits; 1 and `None` in Llama.
#[derive(Debug, Clone, PartialEq)]
pub struct Multipliers {
    /// Of looked up embeddings, rounded to the kind of the model (Gemma).
    pub embedding: f64,
    /// Of all embeddings, virtual tokens' included (Granite).
    pub input: f64,
    /// Of a branch's output (Granite).
    pub residual: f64,
    /// Divisor of logits (Granite).
    pub logit_divisor: f64,
    /// Bound of a soft cap on logits: `cap · tanh(logit / cap)` (Gemma 2).
    pub logit_soft_cap: Option<f64>,
}

impl Default for Multipliers {
    fn default() -> Self {
        Self { embedding: 1.0, input: 1.0, residual: 1.0, logit_divisor: 1.0, logit_soft_cap: None }
    }
}
