use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Decoder, DecoderConfig, Error, Hooks, Layout, Mode, Result, Span, Weight,
    send,
};
use tch::{Device, Kind, Tensor};

use crate::leaves::{leaf, load_state, normal, state_of};
use crate::peft_config::{PromptConfig, check_model, check_positive};
use crate::peft_file;

/// Prompt tuning: trained embeddings of virtual tokens before every prompt (Lester et al. 2021, arXiv:2104.08691).
#[derive(Debug)]
pub struct PromptAdapter {
    config: PromptConfig,
    base_model: BaseModel,
    embeddings: Tensor, // [n, d]
}

/// How a soft prompt starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInit {
    /// Normal numbers of variance 1, as in PEFT.
    Random,
    /// The embeddings of random frequent tokens. Vocabularies of byte-pair encodings begin with what was merged first, so these are
    /// the first 5,000 ids, as Lester et al. sample from the 5,000 most common tokens.
    Vocabulary,
    /// The embeddings of a text, repeated or cut to the number of virtual tokens.
    Text(Vec<i64>),
}

/// Name of the embeddings in PEFT's file.
const TENSOR: &str = "prompt_embeddings";

impl PromptAdapter {
    /// A new adapter. Random numbers come from libtorch's CPU generator ([`tch::manual_seed`]).
    ///
    /// # Errors
    /// [`Error::Adapter`] if the configuration is not one for this model, or a text is empty; an unknown token id.
    pub fn new(
        mut config: PromptConfig,
        init: &PromptInit,
        decoder: &Decoder,
        base_model: &str,
    ) -> Result<Self> {
        config.base_model_name_or_path = Some(base_model.to_owned());
        check(&config, decoder.config())?;
        let (n, d) = (config.num_virtual_tokens, config.token_dim);
        let ids = match init {
            PromptInit::Random => None,
            PromptInit::Vocabulary => {
                let frequent = decoder.config().vocab_size.min(5_000);
                Some(Tensor::randint(frequent, [n], (Kind::Int64, Device::Cpu)))
            }
            PromptInit::Text(tokens) => {
                tokens.iter().try_for_each(|&token| decoder.check_token(token))?;
                if tokens.is_empty() {
                    let reason = "the text that the soft prompt starts from has no tokens".into();
                    return Err(Error::Adapter { reason });
                }
                let repeated: Vec<i64> = tokens.iter().copied().cycle().take(n as usize).collect();
                Some(Tensor::from_slice(&repeated))
            }
        };
        let embeddings = match ids {
            None => normal(&[n, d]),
            Some(ids) => embedding_matrix(decoder)?.rows_at(&ids.to_device(decoder.device())),
        };
        Ok(Self::from_embeddings(config, decoder, &embeddings))
    }

    /// Reads an adapter that PEFT or this program wrote.
    ///
    /// # Errors
    /// If a file is missing or broken, a field or tensor is missing, unexpected or wrong (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        Ok(Self::from_embeddings(config, decoder, &tensors[TENSOR]))
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(PromptConfig, BTreeMap<String, Tensor>)> {
        let config: PromptConfig = peft_file::read_config(dir)?;
        check(&config, model)?;
        let shape = vec![config.num_virtual_tokens, config.token_dim];
        let tensors = peft_file::read(dir, &vec![(TENSOR.into(), shape)], model)?;
        Ok((config, tensors))
    }

    fn from_embeddings(config: PromptConfig, decoder: &Decoder, embeddings: &Tensor) -> Self {
        let name = config.base_model_name_or_path.clone().unwrap_or_default();
        let base_model = BaseModel::of(decoder.config(), name);
        Self { config, base_model, embeddings: leaf(embeddings, decoder.device()) }
    }

    /// What the adapter is.
    pub fn config(&self) -> &PromptConfig {
        &self.config
    }
}

fn embedding_matrix(decoder: &Decoder) -> Result<Weight> {
    let mut weights = decoder.weights().into_iter();
    let found = weights.find(|(name, _)| name == "model.embed_tokens.weight");
    found.map(|(_, matrix)| matrix).ok_or_else(|| Error::Adapter {
        reason: "the model has no model.embed_tokens.weight to start a soft prompt from".into(),
    })
}

fn check(config: &PromptConfig, decoder: &DecoderConfig) -> Result<()> {
    config.other.check("PROMPT_TUNING", &[])?;
    check_positive("num_virtual_tokens", config.num_virtual_tokens)?;
    check_model(&[
        ("num_layers", config.num_layers as i64, decoder.num_hidden_layers as i64),
        ("num_attention_heads", config.num_attention_heads, decoder.num_attention_heads),
        ("token_dim", config.token_dim, decoder.hidden_size),
    ])
}

impl Adapter for PromptAdapter {
    fn method(&self) -> &str {
        "prompt"
    }

    fn parameters(&self) -> Vec<Parameter> {
        vec![Parameter::new(TENSOR, &self.embeddings)]
    }

    fn hooks<'a>(&'a self, layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let (found, expected) = (layout.virtual_tokens(), self.virtual_tokens());
        if found != expected {
            let reason =
                format!("the batch has {found} virtual tokens, the soft prompt has {expected}");
            return Err(Error::Adapter { reason });
        }
        Ok(Box::new(PromptHooks { embeddings: &self.embeddings }))
    }

    fn virtual_tokens(&self) -> usize {
        self.config.num_virtual_tokens as usize
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let tensors = [(TENSOR.to_owned(), self.embeddings.shallow_clone())];
        peft_file::write(dir, &self.config, &tensors, &self.base_model)
    }
}

/// The soft prompt in one forward.
struct PromptHooks<'a> {
    embeddings: &'a Tensor, // [n, d]
}

impl Hooks for PromptHooks<'_> {
    fn embeddings(&mut self, h: Tensor, span: &Span) -> Result<Tensor> {
        let (b, t, d) = h.size3()?;
        let indices = span.virtual_indices();
        if indices.is_empty() {
            return Ok(h);
        }
        // a pass may hold some of the virtual tokens only: which of them follows from the column
        let token = |index: &i64| {
            let (row, column) = (index / t, index % t + span.columns.start as i64);
            column - span.layout.columns(row as usize).start as i64
        };
        let tokens: Vec<i64> = indices.iter().map(token).collect();
        let on_device = |indices: &[i64]| send(&Tensor::from_slice(indices), h.device());
        let own = self.embeddings.index_select(0, &on_device(&tokens)).to_kind(h.kind());
        Ok(h.reshape([b * t, d]).index_copy(0, &on_device(&indices), &own).view([b, t, d]))
    }
}
