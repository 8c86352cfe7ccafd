use std::collections::BTreeMap;
use std::path::Path;

use reft_core::Parameter;
use reft_models::{
    Adapter, BaseModel, Cut, Decoder, DecoderConfig, Error, Hooks, Layout, Mode, NoHooks,
    PaddingSide, Result, Row, Span,
};
use tch::{Device, Tensor, no_grad};

use crate::leaves::{leaf, load_state, normal, state_of, uniform};
use crate::peft_config::{PrefixConfig, check_model, check_positive};
use crate::peft_file;

/// Prefix tuning: trained keys and values before every layer's own.
///
/// Li and Liang 2021 (arXiv:2101.00190); without its MLP, P-Tuning v2 (Liu et al. 2021, arXiv:2110.07602). A prefix token has one key and
/// one value per layer, used as stored: no rotary embedding is applied, and the batch's own tokens take the positions after the
/// prefix. With `prefix_projection` the prefix is `W₂ tanh(W₁ e + b₁) + b₂` of trained token vectors `e` while it trains; the file holds
/// the prefix itself, as PEFT's does, and an adapter read from it trains that on.
///
/// No prefix is the identity: even zeros take a share of the attention.
#[derive(Debug)]
pub struct PrefixAdapter {
    config: PrefixConfig,
    base_model: BaseModel,
    source: PrefixSource,
}

/// Where the prefix comes from.
#[derive(Debug)]
enum PrefixSource {
    /// `[n, layers · 2 · n_kv · d_h]`
    Stored(Tensor),
    /// The reparametrisation.
    Encoder { tokens: Tensor, hidden: (Tensor, Tensor), output: (Tensor, Tensor) },
}

/// Name of the prefix in PEFT's file.
const TENSOR: &str = "prompt_embeddings";

impl PrefixAdapter {
    /// A new adapter: normal numbers of variance 1, as in PEFT, or a random MLP of normal token vectors.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the configuration is not one for this model.
    pub fn new(mut config: PrefixConfig, decoder: &Decoder, base_model: &str) -> Result<Self> {
        config.base_model_name_or_path = Some(base_model.to_owned());
        check(&config, decoder.config())?;
        let device = decoder.device();
        let (n, width) = (config.num_virtual_tokens, width(&config));
        let source = if config.prefix_projection {
            let (token_dim, inner) = (config.token_dim, config.encoder_hidden_size);
            let linear = |out: i64, fan_in: i64| {
                let weight = leaf(&uniform(&[out, fan_in], fan_in), device);
                (weight, leaf(&uniform(&[out], fan_in), device))
            };
            let tokens = leaf(&normal(&[n, token_dim]), device);
            let hidden = linear(inner, token_dim);
            PrefixSource::Encoder { tokens, hidden, output: linear(width, inner) }
        } else {
            PrefixSource::Stored(leaf(&normal(&[n, width]), device))
        };
        Ok(Self::from_source(config, decoder, source))
    }

    /// A new adapter that starts as a text in front of every prompt: the keys and values that the model has for `tokens`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if their number is not `num_virtual_tokens`, or the prefix is made by an MLP; an unknown token id.
    pub fn from_text(
        mut config: PrefixConfig,
        tokens: &[i64],
        decoder: &Decoder,
        base_model: &str,
    ) -> Result<Self> {
        config.base_model_name_or_path = Some(base_model.to_owned());
        check(&config, decoder.config())?;
        let n = config.num_virtual_tokens;
        if tokens.len() as i64 != n || config.prefix_projection {
            let found = tokens.len();
            let reason = format!(
                "{found} tokens start a prefix of num_virtual_tokens {n} without prefix_projection; give as many"
            );
            return Err(Error::Adapter { reason });
        }
        tokens.iter().try_for_each(|&token| decoder.check_token(token))?;
        let row = Row::prompt(tokens.to_vec());
        let layout = Layout::new(vec![row], PaddingSide::Right)?;
        let mut cache = decoder.kv_cache(1, n);
        let ids = layout.input_ids(decoder.device());
        let _unused = no_grad(|| {
            decoder.hidden_states(&ids, &layout.whole(), Some(&mut cache), &mut NoHooks)
        })?;
        let layers = (0..config.num_layers).flat_map(|layer| {
            let (keys, values) = cache.keys_and_values(layer); // [1, n_kv, n, d_h] each
            [keys, values].map(|x| x.squeeze_dim(0).transpose(0, 1).flatten(1, 2)) // [n, n_kv · d_h]
        });
        let stored = Tensor::cat(&layers.collect::<Vec<_>>(), 1);
        let source = PrefixSource::Stored(leaf(&stored, decoder.device()));
        Ok(Self::from_source(config, decoder, source))
    }

    /// Reads an adapter that PEFT or this program wrote.
    ///
    /// # Errors
    /// If a file is missing or broken, a field or tensor is missing, unexpected or wrong (by name), or the model is another one.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let (config, tensors) = Self::read(dir, decoder.config())?;
        let source = PrefixSource::Stored(leaf(&tensors[TENSOR], decoder.device()));
        Ok(Self::from_source(config, decoder, source))
    }

    /// Configuration and tensors of a directory, checked against a model.
    pub(crate) fn read(
        dir: &Path,
        model: &DecoderConfig,
    ) -> Result<(PrefixConfig, BTreeMap<String, Tensor>)> {
        let config: PrefixConfig = peft_file::read_config(dir)?;
        check(&config, model)?;
        let shape = vec![config.num_virtual_tokens, width(&config)];
        let tensors = peft_file::read(dir, &vec![(TENSOR.into(), shape)], model)?;
        Ok((config, tensors))
    }

    fn from_source(config: PrefixConfig, decoder: &Decoder, source: PrefixSource) -> Self {
        let name = config.base_model_name_or_path.clone().unwrap_or_default();
        Self { base_model: BaseModel::of(decoder.config(), name), config, source }
    }

    /// What the adapter is.
    pub fn config(&self) -> &PrefixConfig {
        &self.config
    }

    /// The prefix `[n, layers · 2 · n_kv · d_h]`: of each token the keys, then the values, of each layer.
    pub fn prefix(&self) -> Tensor {
        match &self.source {
            PrefixSource::Stored(prefix) => prefix.shallow_clone(),
            PrefixSource::Encoder { tokens, hidden, output } => {
                tokens.linear(&hidden.0, Some(&hidden.1)).tanh().linear(&output.0, Some(&output.1))
            }
        }
    }
}

/// Size of a prefix token.
fn width(config: &PrefixConfig) -> i64 {
    config.num_layers as i64 * 2 * config.token_dim
}

fn check(config: &PrefixConfig, decoder: &DecoderConfig) -> Result<()> {
    config.other.check("PREFIX_TUNING", &[])?;
    let (heads, kv) = (decoder.num_key_value_heads, decoder.num_key_value_heads * decoder.head_dim);
    check_positive("num_virtual_tokens", config.num_virtual_tokens)?;
    check_positive("encoder_hidden_size", config.encoder_hidden_size)?;
    check_model(&[
        ("num_layers", config.num_layers as i64, decoder.num_hidden_layers as i64),
        ("num_attention_heads", config.num_attention_heads, heads),
        ("token_dim", config.token_dim, kv),
    ])
}

impl Adapter for PrefixAdapter {
    fn method(&self) -> &str {
        "prefix"
    }

    fn parameters(&self) -> Vec<Parameter> {
        match &self.source {
            PrefixSource::Stored(prefix) => vec![Parameter::new(TENSOR, prefix)],
            PrefixSource::Encoder { tokens, hidden, output } => vec![
                Parameter::new("embedding.weight", tokens),
                Parameter::new("transform.0.weight", &hidden.0),
                Parameter::new("transform.0.bias", &hidden.1),
                Parameter::new("transform.2.weight", &output.0),
                Parameter::new("transform.2.bias", &output.1),
            ],
        }
    }

    fn hooks<'a>(&'a self, _layout: &'a Layout, _mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let (n, heads) = (self.config.num_virtual_tokens, self.config.num_attention_heads);
        let shape = [n, self.config.num_layers as i64, 2, heads, self.config.token_dim / heads];
        let table = self.prefix().view(shape).permute([1, 2, 3, 0, 4]); // [layers, 2, n_kv, n, d_h]
        Ok(Box::new(PrefixHooks { n: n as usize, layers: table.unbind(0) }))
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        state_of(&self.parameters())
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        load_state(&self.parameters(), state)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let prefix = self.prefix().detach().to_device(Device::Cpu);
        peft_file::write(dir, &self.config, &[(TENSOR.to_owned(), prefix)], &self.base_model)
    }
}

/// The prefix in one forward.
struct PrefixHooks {
    n: usize,
    layers: Vec<Tensor>, // [2, n_kv, n, d_h] each
}

impl Hooks for PrefixHooks {
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
