use serde_json::{Map, Value, json};

/// The tokenizer classes of transformers 5.24 that take only vocabulary and merges from `tokenizer.json` and split text in their own way. The
/// other classes use the file unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TokenizerClass {
    #[default]
    AsWritten,
    Llama,
    Qwen2,
    Qwen35,
    Gpt2,
    Gemma,
    Bert,
    Roberta,
}

use TokenizerClass::{AsWritten, Bert, Gemma, Gpt2, Llama, Qwen2, Qwen35, Roberta};

/// Model types and their class.
const OF_MODELS: [(&[&str], TokenizerClass); 7] = [
    (&["bert", "distilbert"], Bert),
    (&["roberta"], Roberta),
    (
        &[
            "gemma",
            "gemma2",
            "gemma3",
            "gemma3_text",
            "gemma3n",
            "gemma3n_text",
            "recurrent_gemma",
            "shieldgemma2",
            "t5gemma",
        ],
        Gemma,
    ),
    (&["qwen2", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe", "qwen3_next"], Qwen2),
    (&["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"], Qwen35),
    (&["gpt2", "opt", "phi", "starcoder2", "codegen"], Gpt2),
    (
        &[
            "ernie4_5",
            "glm",
            "glm4",
            "granite",
            "granitemoe",
            "granitemoehybrid",
            "internlm2",
            "internlm3",
            "minicpm3",
            "ministral",
            "ministral3",
            "mistral",
            "mixtral",
            "modernbert",
            "nemotron",
            "olmo2",
            "olmo3",
            "phi3",
            "phimoe",
            "stablelm",
        ],
        AsWritten,
    ),
];

/// Model types whose class overrides `tokenizer_class`.
const DISTRUSTED: [&str; 14] = [
    "ernie4_5",
    "internlm2",
    "internlm3",
    "minicpm3",
    "modernbert",
    "nemotron",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "h2ovl_chat",
];

const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl TokenizerClass {
    /// The class that transformers chooses for a declared one and a model type.
    pub(crate) fn of(
        declared: Option<&str>,
        model_type: Option<&str>,
        is_byte_level: impl FnOnce() -> bool,
    ) -> Self {
        let model_type = model_type.unwrap_or_default();
        let registered = OF_MODELS.iter().find(|(types, _)| types.contains(&model_type));
        let registered = registered.map(|(_, class)| *class);
        let Some(declared) = declared.map(|name| name.strip_suffix("Fast").unwrap_or(name)) else {
            return registered.unwrap_or(AsWritten);
        };
        let is_distrusted = DISTRUSTED.contains(&model_type);
        match registered {
            Some(AsWritten) => AsWritten,
            Some(registered) if is_distrusted => registered,
            _ => match declared {
                "LlamaTokenizer" if is_byte_level() => AsWritten,
                "LlamaTokenizer" => Llama,
                "Qwen2Tokenizer" => Qwen2,
                "Qwen3_5Tokenizer" => Qwen35,
                "GPT2Tokenizer" => Gpt2,
                "GemmaTokenizer" => Gemma,
                "BertTokenizer" | "DistilBertTokenizer" => Bert,
                "RobertaTokenizer" => Roberta,
                "PreTrainedTokenizer" | "TokenizersBackend" | "PythonBackend" => AsWritten,
                other => {
                    log::warn!(
                        "tokenizer_class is {other}, which is not known here: tokenizer.json is used as it is written"
                    );
                    AsWritten
                }
            },
        }
    }

    /// Its default special tokens.
    pub(crate) fn default_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            AsWritten => &[],
            Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            Qwen2 | Qwen35 => &[("unk_token", END), ("eos_token", END), ("pad_token", END)],
            Gpt2 => &[("unk_token", END), ("bos_token", END), ("eos_token", END)],
            Gemma => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("sep_token", "</s>"),
                ("cls_token", "<s>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
        }
    }

    /// `tokenizer.json` with the class's own way to split and join text, and without the added tokens, which are added later.
    pub(crate) fn rebuilt(
        self,
        mut file: Map<String, Value>,
        field: impl Fn(&str) -> Option<Value>,
    ) -> Map<String, Value> {
        let prefix_space =
            |default| field("add_prefix_space").map_or(default, |given| given == true);
        let byte_level = |prefix: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex});
        let decoded = byte_level(true, true);
        let spaces = [
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let (normalizer, pre_tokenizer, decoder, fuses, unknown) = match self {
            AsWritten => return file,
            Llama => {
                let prefix = prefix_space(true);
                let is_legacy = field("legacy").is_some_and(|legacy| legacy == true);
                let scheme = match (prefix, is_legacy) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
                let steps: Vec<Value> = spaces.into_iter().chain(prefix.then_some(strip)).collect();
                (
                    Value::Null,
                    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
                    json!({"type": "Sequence", "decoders": steps}),
                    true,
                    None,
                )
            }
            Qwen2 | Qwen35 => {
                let pattern = if self == Qwen2 { QWEN2_PATTERN } else { QWEN35_PATTERN };
                let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
                let steps = [split, byte_level(prefix_space(false), false)];
                (
                    json!({"type": "NFC"}),
                    json!({"type": "Sequence", "pretokenizers": steps}),
                    decoded,
                    false,
                    None,
                )
            }
            Gpt2 | Roberta => {
                (Value::Null, byte_level(prefix_space(false), true), decoded, false, None)
            }
            Bert => {
                let is_set = |name: &str| field(name).is_none_or(|given| given == true);
                let normalizer = json!({
                    "type": "BertNormalizer",
                    "clean_text": true,
                    "handle_chinese_chars": is_set("tokenize_chinese_chars"),
                    "strip_accents": field("strip_accents"),
                    "lowercase": is_set("do_lower_case"),
                });
                (
                    normalizer,
                    json!({"type": "BertPreTokenizer"}),
                    json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
                    false,
                    Some(field("unk_token").unwrap_or_else(|| json!("[UNK]"))),
                )
            }
            Gemma => (
                json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
                json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
                json!({"type": "Sequence", "decoders": spaces}),
                true,
                field("unk_token"),
            ),
        };
        let model = file.get("model").cloned().unwrap_or_default();
        let vocabulary = match &model["vocab"] {
            // of a unigram model, whose pieces have scores
            Value::Array(pieces) => {
                let piece = |(id, piece): (usize, &Value)| {
                    let text = piece.as_str().or_else(|| piece.get(0)?.as_str());
                    Some((text?.to_owned(), Value::from(id)))
                };
                Value::Object(pieces.iter().enumerate().filter_map(piece).collect())
            }
            other => other.clone(),
        };
        let merges = match &model["merges"] {
            Value::Null => json!([]),
            merges => merges.clone(),
        };
        let unknown = unknown.map(|token| token.get("content").cloned().unwrap_or(token));
        let word_piece = json!({
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        });
        let byte_pairs = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": fuses,
            "byte_fallback": fuses,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        });
        let fields = [
            ("added_tokens", json!([])),
            ("normalizer", normalizer),
            ("pre_tokenizer", pre_tokenizer),
            ("decoder", decoder),
            ("model", if self == Bert { word_piece } else { byte_pairs }),
        ];
        file.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        file
    }
}
