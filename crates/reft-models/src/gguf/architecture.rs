//! The architectures of GGUF files that are read: the tensors of their blocks, and how llama.cpp's converter changed them.

/// Modules of a block: llama.cpp's name, then Hugging Face's.
type Modules = &'static [(&'static str, &'static str)];

/// An architecture.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Its name in the file, and the prefix of its metadata keys.
    pub(crate) name: &'static str,
    /// The model families that are written in this architecture.
    families: &'static [&'static str],
    /// The norms of a block.
    norms: Modules,
    /// The projections into attention and MLP.
    projections: Modules,
    /// Whether the two rotary halves of each head are interleaved in the rows of q and k.
    pub(crate) interleaves: bool,
    /// Whether norms hold `1 + w`.
    pub(crate) adds_one: bool,
    /// Keys that are applied in this architecture, and refused in others.
    pub(crate) own: &'static [&'static str],
}

const PRE: Modules = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
const POST: Modules = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const BOTH: Modules = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const SEPARATE: Modules = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
];
const FUSED: Modules = &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")];
/// Modules that every architecture has, or may have.
const OF_ALL: Modules = &[
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_down", "mlp.down_proj"),
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    families: &["llama", "mistral"],
    norms: PRE,
    projections: SEPARATE,
    interleaves: true,
    adds_one: false,
    own: &[],
};
const QWEN2: Architecture =
    Architecture { name: "qwen2", families: &["qwen2"], interleaves: false, ..LLAMA };
const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    families: &["gemma2"],
    norms: BOTH,
    adds_one: true,
    own: &["attn_logit_softcapping", "final_logit_softcapping"],
    ..QWEN2
};

/// The architectures that are read.
pub(crate) const ARCHITECTURES: [Architecture; 10] = [
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", families: &["qwen3"], ..QWEN2 },
    GEMMA2,
    Architecture {
        name: "gemma3",
        families: &["gemma3_text"],
        own: &["final_logit_softcapping", "attention.sliding_window_pattern", "rope.freq_base_swa"],
        ..GEMMA2
    },
    Architecture { name: "smollm3", families: &["smollm3"], ..LLAMA },
    Architecture {
        name: "granite",
        families: &["granite"],
        own: &["attention.scale", "embedding_scale", "residual_scale", "logit_scale"],
        ..LLAMA
    },
    Architecture {
        name: "mistral3",
        families: &[], // its keys of YaRN are not a configuration's
        own: &["rope.scaling.yarn_log_multiplier", "attention.temperature_scale"],
        ..LLAMA
    },
    Architecture {
        name: "olmo2",
        families: &["olmo2", "olmo3"],
        norms: POST,
        own: &["attention.sliding_window_pattern", "rope.freq_base_swa"],
        ..QWEN2
    },
    Architecture {
        name: "phi3",
        families: &["phi3"],
        projections: FUSED,
        own: &["rope.scaling.attn_factor"],
        ..QWEN2
    },
];

/// The three tensors outside of blocks: llama.cpp's name, then Hugging Face's.
const OF_MODEL: Modules = &[
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

impl Architecture {
    /// The architecture in which models of a family are written; `None` if they cannot be written.
    pub(crate) fn of_family(model_type: &str) -> Option<Self> {
        ARCHITECTURES.into_iter().find(|own| own.families.contains(&model_type))
    }

    /// The families that are written.
    pub(crate) fn written_families() -> Vec<&'static str> {
        ARCHITECTURES.iter().flat_map(|own| own.families.iter().copied()).collect()
    }

    /// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`.
    pub(crate) fn hugging_face_name(&self, name: &str) -> Option<String> {
        if let Some((_, found)) = OF_MODEL.iter().find(|(own, _)| *own == name) {
            return Some((*found).to_owned());
        }
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        let (module, parameter) = rest.rsplit_once('.')?;
        let (_, module) = self.modules().find(|(own, _)| *own == module)?;
        matches!(parameter, "weight" | "bias")
            .then(|| format!("model.layers.{layer}.{module}.{parameter}"))
    }

    /// The other way round: `model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`.
    pub(crate) fn own_name(&self, name: &str) -> Option<String> {
        if let Some((own, _)) = OF_MODEL.iter().find(|(_, other)| *other == name) {
            return Some((*own).to_owned());
        }
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, parameter) = rest.rsplit_once('.')?;
        let (own, _) = self.modules().find(|(_, other)| *other == module)?;
        Some(format!("blk.{layer}.{own}.{parameter}"))
    }

    fn modules(&self) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        [self.norms, self.projections, OF_ALL].into_iter().flatten()
    }
}
