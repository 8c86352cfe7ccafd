use std::path::Path;

use reft_models::{Adapter, Decoder, ReftAdapter, ReftConfig};

use crate::baseline_file;
use crate::bottleneck::BottleneckAdapter;
use crate::combined::CombinedAdapter;
use crate::error::{Error, Result};
use crate::full::FullAdapter;
use crate::ia3::Ia3Adapter;
use crate::lora::LoraAdapter;
use crate::peft_file;
use crate::prefix::PrefixAdapter;
use crate::prompt::PromptAdapter;
use crate::red::RedAdapter;

/// What an adapter directory holds, told by its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterKind {
    /// `reft_config.json`
    Reft,
    /// `adapter_config.json` with `peft_type` LORA
    Lora,
    /// `adapter_config.json` with `peft_type` PREFIX_TUNING
    Prefix,
    /// `adapter_config.json` with `peft_type` PROMPT_TUNING
    Prompt,
    /// `adapter_config.json` with `peft_type` IA3
    Ia3,
    /// `baseline_config.json` with method red
    Red,
    /// `baseline_config.json` with method series-adapter or parallel-adapter
    Bottleneck,
    /// `combined.json`
    Combined,
    /// `model.safetensors` and none of these
    Full,
}

impl AdapterKind {
    /// Looks at a directory's files.
    ///
    /// # Errors
    /// [`Error::NotAnAdapter`] if none of them is there, or the configuration is of a method unknown here.
    pub fn of(dir: &Path) -> Result<Self> {
        let unknown = |expected: String| Error::NotAnAdapter { path: dir.to_owned(), expected };
        let has = |name: &str| dir.join(name).is_file();
        if has(ReftConfig::FILE_NAME) {
            Ok(Self::Reft)
        } else if has(peft_file::CONFIG_FILE) {
            match peft_file::peft_type(dir)?.as_str() {
                "LORA" => Ok(Self::Lora),
                "PREFIX_TUNING" => Ok(Self::Prefix),
                "PROMPT_TUNING" => Ok(Self::Prompt),
                "IA3" => Ok(Self::Ia3),
                other => Err(unknown(format!(
                    "peft_type LORA, PREFIX_TUNING, PROMPT_TUNING, IA3 in adapter_config.json (it says {other})"
                ))),
            }
        } else if has(baseline_file::CONFIG_FILE) {
            match baseline_file::method(dir)?.as_str() {
                "red" => Ok(Self::Red),
                "series-adapter" | "parallel-adapter" => Ok(Self::Bottleneck),
                other => Err(unknown(format!(
                    "method red, series-adapter, parallel-adapter in baseline_config.json (it says {other})"
                ))),
            }
        } else if has(CombinedAdapter::FILE_NAME) {
            Ok(Self::Combined)
        } else if has(FullAdapter::FILE_NAME) {
            Ok(Self::Full)
        } else {
            let files = [
                ReftConfig::FILE_NAME,
                peft_file::CONFIG_FILE,
                baseline_file::CONFIG_FILE,
                CombinedAdapter::FILE_NAME,
                FullAdapter::FILE_NAME,
            ];
            Err(unknown(files.join(", ")))
        }
    }
}

/// Reads an adapter of any method and checks that it belongs to the decoder.
///
/// A fully fine-tuned model is read *into* the decoder.
///
/// # Errors
/// [`Error::NotAnAdapter`], or what the method refuses: fields and tensors by name, another base model.
pub fn load_adapter(dir: &Path, decoder: &Decoder) -> Result<Box<dyn Adapter>> {
    Ok(match AdapterKind::of(dir)? {
        AdapterKind::Reft => Box::new(ReftAdapter::load(dir, decoder)?),
        AdapterKind::Lora => Box::new(LoraAdapter::load(dir, decoder)?),
        AdapterKind::Prefix => Box::new(PrefixAdapter::load(dir, decoder)?),
        AdapterKind::Prompt => Box::new(PromptAdapter::load(dir, decoder)?),
        AdapterKind::Ia3 => Box::new(Ia3Adapter::load(dir, decoder)?),
        AdapterKind::Red => Box::new(RedAdapter::load(dir, decoder)?),
        AdapterKind::Bottleneck => Box::new(BottleneckAdapter::load(dir, decoder)?),
        AdapterKind::Combined => Box::new(CombinedAdapter::load(dir, decoder)?),
        AdapterKind::Full => Box::new(FullAdapter::load(dir, decoder)?),
    })
}

/// [`load_adapter`], to be trained on.
///
/// # Errors
/// As [`load_adapter`]; rotations of a ReFT adapter that are none.
pub fn load_trainable_adapter(dir: &Path, decoder: &Decoder) -> Result<Box<dyn Adapter>> {
    Ok(match AdapterKind::of(dir)? {
        AdapterKind::Reft => Box::new(ReftAdapter::load(dir, decoder)?.into_trainable()?),
        AdapterKind::Combined => Box::new(CombinedAdapter::load_trainable(dir, decoder)?),
        _ => load_adapter(dir, decoder)?,
    })
}

/// Trainable numbers of an adapter.
pub fn trainable_parameters(adapter: &dyn Adapter) -> i64 {
    crate::leaves::numel(&adapter.parameters())
}
