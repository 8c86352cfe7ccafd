use reft_models::{
    Error, Fields, HookPoint, Hooks, Layout, Mode, Model, ModelDescription, PaddingSide, Result,
    Row, Span, beside, send,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::files::peft_fields::{self, OtherFields, check_model};
use crate::trained::{
    Keeps, MadeHooks, Part, Start, Table, TensorMethod, TensorSpec, check_positive, read_config,
    resolve_config,
};
use crate::{
    AdapterFiles, INIT, INIT_TOKENS, Joining, Merging, MethodDeclaration, MethodOptions,
    N_VIRTUAL_TOKENS, ONE_PLACE,
};

/// Prompt tuning: trained embeddings of virtual tokens before every prompt (Lester et al. 2021, arXiv:2104.08691).
pub(crate) const PROMPT: MethodDeclaration = MethodDeclaration {
    name: "prompt",
    title: "prompt tuning",
    equation: "embeddings before the prompt's own",
    source: "Lester et al. 2021, arXiv:2104.08691",
    options: &[&INIT, &INIT_TOKENS, &N_VIRTUAL_TOKENS],
    files: AdapterFiles::Peft("PROMPT_TUNING"),
    merging: Merging::Never("its embeddings stand before the prompt's own"),
    joining: Joining::Never(ONE_PLACE),
    acts_on_generated: false,
    per_row: false,
    usual_lr: 1e-2,
    resolve: resolve_config::<PromptConfig>,
    read: read_config::<PromptConfig>,
};

/// Prompt tuning as `adapter_config.json` says it (`peft_type` PROMPT_TUNING).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PromptConfig {
    num_virtual_tokens: i64,
    /// Hidden size `d`.
    token_dim: i64,
    num_attention_heads: i64,
    num_layers: usize,
    #[serde(flatten)]
    other: OtherFields,
    /// Its start, `random` or `vocabulary`; `None` if it is read from a file or starts as a text.
    #[serde(skip)]
    init: Option<&'static str>,
    /// The tokens of a text that the embeddings start as.
    #[serde(skip)]
    text: Option<Vec<i64>>,
}

/// Name of the embeddings in PEFT's file.
const TENSOR: &str = "prompt_embeddings";

/// Number of virtual tokens.
pub(crate) fn virtual_tokens(options: &MethodOptions) -> crate::Result<i64> {
    match options.get(&N_VIRTUAL_TOKENS).unwrap_or(20) {
        n @ 1.. => Ok(n),
        n => Err(N_VIRTUAL_TOKENS.refuse(n, "a positive number")),
    }
}

/// The first `n` of the tokens, repeated if they are fewer.
pub(crate) fn cycled(tokens: Vec<i64>, n: i64) -> crate::Result<Vec<i64>> {
    if tokens.is_empty() {
        return Err(INIT_TOKENS.refuse("empty", "at least one token"));
    }
    Ok(tokens.into_iter().cycle().take(n as usize).collect())
}

/// The embeddings of tokens, `[n, d]`, as a forward looks them up.
fn embeddings(model: &dyn Model, ids: Vec<i64>) -> Result<Tensor> {
    let layout = Layout::new(vec![Row::prompt(ids)], PaddingSide::Right)?;
    let forward = model.forward(&layout.whole(), 0);
    Ok(forward.embed(&layout.input_ids(model.device())).select(0, 0))
}

impl TensorMethod for PromptConfig {
    const DECLARATION: &'static MethodDeclaration = &PROMPT;
    type Constants = ();

    fn decide(_: &str, options: &MethodOptions, model: &ModelDescription) -> crate::Result<Self> {
        let n = virtual_tokens(options)?;
        let (init, text): (Option<String>, _) = (options.get(&INIT), options.get(&INIT_TOKENS));
        let (init, text) = match (init.as_deref(), text) {
            (None, Some(tokens)) => (None, Some(cycled(tokens, n)?)),
            (None | Some("vocabulary"), None) => (Some("vocabulary"), None),
            (Some("random"), None) => (Some("random"), None),
            (Some(found), _) => {
                let expected = "random or vocabulary, or init_tokens alone";
                return Err(INIT.refuse(format!("{found:?}"), expected));
            }
        };
        let other = json!({
            "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": null,
            "tokenizer_kwargs": null, "tokenizer_name_or_path": null,
        });
        Ok(Self {
            num_virtual_tokens: n,
            token_dim: model.hidden_size,
            num_attention_heads: model.num_attention_heads,
            num_layers: model.num_hidden_layers,
            other: OtherFields::of("PROMPT_TUNING", model, other),
            init,
            text,
        })
    }

    fn options(&self) -> MethodOptions {
        MethodOptions::default()
            .with_some(&INIT, self.init)
            .with_some(&INIT_TOKENS, self.text.as_ref())
            .with(&N_VIRTUAL_TOKENS, self.num_virtual_tokens)
    }

    fn other(&self) -> Option<(&'static Fields, &OtherFields)> {
        Some((&peft_fields::PROMPT, &self.other))
    }

    fn parts(&self, model: &ModelDescription) -> crate::Result<Vec<Part<()>>> {
        let (n, d) = (self.num_virtual_tokens, self.token_dim);
        check_positive("num_virtual_tokens", n)?;
        check_model(&[
            ("num_layers", self.num_layers as i64, model.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads, model.num_attention_heads),
            ("token_dim", d, model.hidden_size),
        ])?;
        let start = match (self.init, self.text.clone()) {
            (_, Some(tokens)) => Start::FromModel(Box::new(move |model| {
                tokens.iter().try_for_each(|&token| model.check_token(token))?;
                embeddings(model, tokens.clone())
            })),
            // Vocabularies of byte-pair encodings begin with the pairs merged first, so the first 5,000 ids are frequent tokens,
            // as Lester et al. sample from the 5,000 most common ones.
            (Some("vocabulary"), None) => Start::FromModel(Box::new(move |model| {
                let frequent = model.description().vocab_size.min(5_000);
                let ids = Tensor::randint(frequent, [n], (Kind::Int64, Device::Cpu));
                embeddings(model, ids.try_into()?)
            })),
            _ => Start::Normal, // as in PEFT
        };
        let tensors = vec![TensorSpec::new(TENSOR, [n, d], start)];
        Ok(vec![Part { site: None, constants: (), tensors, keeps: Keeps::default() }])
    }

    fn hooks<'a>(&'a self, table: &'a Table<()>, layout: &Layout, _: Mode) -> MadeHooks<'a> {
        let (found, expected) = (layout.virtual_tokens(), self.virtual_tokens());
        if found != expected {
            let reason =
                format!("the batch has {found} virtual tokens, the soft prompt has {expected}");
            return Err(Error::Adapter { reason });
        }
        Ok(Box::new(PromptHooks { embeddings: &table.tensors()[0] }))
    }

    fn virtual_tokens(&self) -> usize {
        self.num_virtual_tokens as usize
    }
}

/// The soft prompt in one forward.
struct PromptHooks<'a> {
    embeddings: &'a Tensor, // [n, d]
}

impl Hooks for PromptHooks<'_> {
    fn touches(&self, point: HookPoint, span: &Span) -> bool {
        matches!(point, HookPoint::Embeddings) && span.columns.start < span.layout.width()
    }

    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        let (b, t, d) = h.size3()?;
        let indices = span.virtual_indices();
        if !matches!(point, HookPoint::Embeddings) || indices.is_empty() {
            return Ok(h);
        }
        // a pass may hold only some of the virtual tokens: the column tells which
        let token = |index: &i64| {
            let (row, column) = (index / t, index % t + span.columns.start as i64);
            column - span.layout.columns(row as usize).start as i64
        };
        let tokens: Vec<i64> = indices.iter().map(token).collect();
        let on_device = |indices: &[i64]| send(&Tensor::from_slice(indices), h.device());
        let own =
            beside(self.embeddings, &h).index_select(0, &on_device(&tokens)).to_kind(h.kind());
        Ok(h.reshape([b * t, d]).index_copy(0, &on_device(&indices), &own).view([b, t, d]))
    }
}
