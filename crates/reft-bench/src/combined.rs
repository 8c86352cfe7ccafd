use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reft_core::Parameter;
use reft_models::{Adapter, Decoder, Hooks, Layout, Mode, PaddingSide, Reach, Row, Stacked};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::peft_file;
use crate::registry::{load_adapter, load_trainable_adapter};

/// Several methods at once, for instance LoReFT and LoRA: each sees what the one before it left ([`Stacked`]).
///
/// In a directory every adapter has its own, `0-loreft`, `1-lora`, …, and `combined.json` names them in order.
pub struct CombinedAdapter {
    method: String,
    adapters: Vec<Box<dyn Adapter>>,
}

/// `combined.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Combination {
    format_version: u32,
    adapters: Vec<String>,
}

const FORMAT_VERSION: u32 = 1;

impl std::fmt::Debug for CombinedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CombinedAdapter({})", self.method)
    }
}

impl CombinedAdapter {
    /// Name of the file that makes a directory one of these.
    pub const FILE_NAME: &str = "combined.json";

    /// These adapters at once.
    ///
    /// # Errors
    /// [`Error::NotCombinable`] if two of them bring virtual tokens, or two a prefix: their order would be anyone's guess.
    pub fn new(adapters: Vec<Box<dyn Adapter>>) -> Result<Self> {
        let with_tokens = adapters.iter().filter(|adapter| adapter.virtual_tokens() > 0);
        refuse_two(with_tokens.map(|adapter| &**adapter), "both bring virtual tokens")?;
        let mut with_prefix = Vec::new();
        for adapter in &adapters {
            let layout = Layout::new(vec![Row::prompt(vec![0])], PaddingSide::Right)?
                .with_virtual_tokens(adapter.virtual_tokens());
            if adapter.hooks(&layout, Mode::Eval)?.prefix_length() > 0 {
                with_prefix.push(&**adapter);
            }
        }
        refuse_two(with_prefix.into_iter(), "both bring a prefix")?;
        let names: Vec<&str> = adapters.iter().map(|adapter| adapter.method()).collect();
        Ok(Self { method: names.join("+"), adapters })
    }

    /// Reads a directory.
    ///
    /// # Errors
    /// What reading one of the adapters refuses.
    pub fn load(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let adapters = Self::parts(dir)?.into_iter().map(|part| load_adapter(&part, decoder));
        Self::new(adapters.collect::<Result<_>>()?)
    }

    /// Reads a directory, to be trained on.
    ///
    /// # Errors
    /// As [`Self::load`], or what the trainable form of one of the adapters refuses.
    pub fn load_trainable(dir: &Path, decoder: &Decoder) -> Result<Self> {
        let parts = Self::parts(dir)?.into_iter();
        let adapters = parts.map(|part| load_trainable_adapter(&part, decoder));
        Self::new(adapters.collect::<Result<_>>()?)
    }

    /// The directories of the adapters in a directory, in the order that they are applied.
    pub(crate) fn parts(dir: &Path) -> Result<Vec<PathBuf>> {
        let combination: Combination = peft_file::read_json(&dir.join(Self::FILE_NAME))?;
        let refuse = |reason: String| Err(reft_models::Error::Adapter { reason }.into());
        if combination.format_version != FORMAT_VERSION {
            let found = combination.format_version;
            return refuse(format!(
                "format_version is {found}, this program reads {FORMAT_VERSION}"
            ));
        }
        let is_plain = |name: &&String| Path::new(name).file_name() == Some(name.as_ref());
        if let Some(name) = combination.adapters.iter().find(|name| !is_plain(name)) {
            return refuse(format!("combined.json names {name:?}, expected a directory beside it"));
        }
        Ok(combination.adapters.iter().map(|name| dir.join(name)).collect())
    }

    /// The adapters, in the order that they are applied.
    pub fn adapters(&self) -> &[Box<dyn Adapter>] {
        &self.adapters
    }

    /// Every adapter with the name of its directory.
    fn named(&self) -> impl Iterator<Item = (String, &dyn Adapter)> {
        let numbered = self.adapters.iter().enumerate();
        numbered.map(|(i, adapter)| (format!("{i}-{}", adapter.method()), &**adapter))
    }
}

fn refuse_two<'a>(
    mut adapters: impl Iterator<Item = &'a dyn Adapter>,
    reason: &'static str,
) -> Result<()> {
    match (adapters.next(), adapters.next()) {
        (Some(first), Some(second)) => {
            let (first, second) = (first.method().to_owned(), second.method().to_owned());
            Err(Error::NotCombinable { first, second, reason })
        }
        _ => Ok(()),
    }
}

impl Adapter for CombinedAdapter {
    fn method(&self) -> &str {
        &self.method
    }

    fn parameters(&self) -> Vec<Parameter> {
        let of_one = |(prefix, adapter): (String, &dyn Adapter)| {
            let rename = |p: Parameter| Parameter { name: format!("{prefix}/{}", p.name), ..p };
            adapter.parameters().into_iter().map(rename).collect::<Vec<_>>()
        };
        self.named().flat_map(of_one).collect()
    }

    fn hooks<'a>(
        &'a self,
        layout: &'a Layout,
        mode: Mode,
    ) -> reft_models::Result<Box<dyn Hooks + 'a>> {
        let hooks = self.adapters.iter().map(|adapter| adapter.hooks(layout, mode));
        Ok(Box::new(Stacked(hooks.collect::<reft_models::Result<_>>()?)))
    }

    fn virtual_tokens(&self) -> usize {
        self.adapters.iter().map(|adapter| adapter.virtual_tokens()).sum()
    }

    fn reach(&self, row: &Row) -> Reach {
        let reaches = self.adapters.iter().map(|adapter| adapter.reach(row));
        reaches.reduce(Reach::and).unwrap_or(Reach::EVERYTHING)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        let of_one = |(prefix, adapter): (String, &dyn Adapter)| {
            let state = adapter.state().into_iter();
            state.map(|(name, tensor)| (format!("{prefix}/{name}"), tensor)).collect::<Vec<_>>()
        };
        self.named().flat_map(of_one).collect()
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> reft_models::Result<()> {
        let names: Vec<String> = self.named().map(|(name, _)| name).collect();
        let mut states: BTreeMap<&str, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (tensor, value) in state {
            let (owner, name) = tensor.split_once('/').unwrap_or(("", tensor));
            if !names.iter().any(|own| own == owner) {
                let reason = format!("{tensor} belongs to none of {}", names.join(", "));
                return Err(reft_models::Error::Adapter { reason });
            }
            states.entry(owner).or_default().insert(name.to_owned(), value.shallow_clone());
        }
        let mut pairs = names.iter().zip(&mut self.adapters);
        pairs.try_for_each(|(name, adapter)| {
            adapter.load_state(&states.remove(name.as_str()).unwrap_or_default())
        })
    }

    fn save(&self, dir: &Path) -> reft_models::Result<()> {
        let mut adapters = Vec::new();
        for (name, adapter) in self.named() {
            let own = dir.join(&name);
            std::fs::create_dir_all(&own).map_err(|source| reft_models::Error::Io {
                action: "create",
                path: own.clone(),
                source,
            })?;
            adapter.save(&own)?;
            adapters.push(name);
        }
        let combination = Combination { format_version: FORMAT_VERSION, adapters };
        peft_file::write_json(&dir.join(Self::FILE_NAME), &combination)
    }
}
