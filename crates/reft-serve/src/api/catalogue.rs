use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reft_methods::adapters_in;
use reft_models::TrainedText;

use crate::api::error::ApiError;
use crate::error::{Error, Result};
use crate::worker::generation::Generation;

/// The adapters by their names.
pub(crate) struct Catalogue {
    base: String,
    /// Directory whose directories are adapters, links resolved.
    root: Option<PathBuf>,
    named: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Clone)]
enum Entry {
    /// An adapter has the name.
    Is(Arc<Generation>),
    /// The name was unloaded, even if the directory of adapters has an adapter of this name.
    Unloaded,
}

impl Catalogue {
    /// A catalogue of named adapters and of the adapters in a directory.
    ///
    /// # Errors
    /// [`Error::AdapterName`], [`Error::Directory`] and errors of reading an adapter's files.
    pub(crate) fn new(
        base: &str,
        adapters: &[(String, PathBuf)],
        root: Option<&Path>,
    ) -> Result<Self> {
        let root = root.map(|path| {
            let whole = path.canonicalize().ok().filter(|whole| whole.is_dir());
            whole.ok_or_else(|| Error::Directory {
                what: "the directory of adapters",
                path: path.to_owned(),
                reason: "it is no directory".to_owned(),
            })
        });
        let mut named = BTreeMap::new();
        for (name, directory) in adapters {
            let refuse = |reason| Error::AdapterName { name: name.clone(), reason };
            if !is_name(name) {
                return Err(refuse(NAME_RULE));
            }
            if name == base {
                return Err(refuse("is the base model's; give it another one"));
            }
            let generation = Arc::new(Generation::of(name, directory.clone())?);
            warn_of_template(&generation);
            if named.insert(name.clone(), Entry::Is(generation)).is_some() {
                return Err(refuse("is given twice; give each adapter its own"));
            }
        }
        Ok(Self { base: base.to_owned(), root: root.transpose()?, named: Mutex::new(named) })
    }

    /// The base model's name.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// The adapters that were named at the start.
    pub(crate) fn given(&self) -> Vec<Arc<Generation>> {
        let is = |entry: &Entry| match entry {
            Entry::Is(generation) => Some(Arc::clone(generation)),
            Entry::Unloaded => None,
        };
        self.named().values().filter_map(is).collect()
    }

    /// The names of all adapters, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let named = self.named().clone(); // a copy, so that the directory is read without the lock
        let is =
            |(name, entry): (&String, &Entry)| matches!(entry, Entry::Is(_)).then(|| name.clone());
        let mut names: Vec<String> = named.iter().filter_map(is).collect();
        let entries = self.root.iter().filter_map(|root| std::fs::read_dir(root).ok()).flatten();
        let in_root = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let is_new =
            |name: &String| is_name(name) && !named.contains_key(name) && *name != self.base;
        names.extend(in_root.filter(is_new).filter(|name| self.in_root(name).is_some()));
        names.sort();
        names
    }

    /// The current adapter of a name.
    ///
    /// # Errors
    /// If no adapter has the name, or its files cannot be read.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Generation>, ApiError> {
        match self.named().get(name) {
            Some(Entry::Is(generation)) => return Ok(Arc::clone(generation)),
            Some(Entry::Unloaded) => return Err(ApiError::no_model(name)),
            None => {}
        }
        let directory = self.in_root(name).ok_or_else(|| ApiError::no_model(name))?;
        let found = Arc::new(generation(name, directory)?);
        let mut named = self.named();
        let entry = named.entry(name.to_owned()).or_insert(Entry::Is(found)); // the first of two simultaneous requests wins
        match entry {
            Entry::Is(generation) => Ok(Arc::clone(generation)),
            Entry::Unloaded => Err(ApiError::no_model(name)),
        }
    }

    /// The adapter at a path below the directory of adapters, to be loaded under this name.
    ///
    /// # Errors
    /// If the name is invalid, or the path has no adapter below that directory.
    pub(crate) fn candidate(&self, name: &str, path: &str) -> Result<Generation, ApiError> {
        if !is_name(name) {
            let message = format!("the adapter name {name:?} {NAME_RULE}");
            return Err(ApiError::invalid(message).of_field("lora_name"));
        }
        if name == self.base {
            let message = format!("{name:?} is the base model's name");
            return Err(ApiError::conflict(message).of_field("lora_name"));
        }
        let Some(root) = &self.root else {
            return Err(ApiError::forbidden(
                "adapters are loaded from the directory of --adapters-dir only, and this server has none",
            ));
        };
        // missing paths and paths outside give the same error, so that clients learn nothing of the machine's files
        let whole = root.join(path).canonicalize().ok();
        let below = whole.filter(|whole| whole.starts_with(root) && whole != root);
        let Some(directory) = below.filter(|directory| adapters_in(directory).is_ok()) else {
            let message = format!(
                "{path:?} is no adapter below the server's directory of adapters; give a path in it, such as \"emoji\""
            );
            return Err(ApiError::invalid(message).of_field("lora_path"));
        };
        generation(name, directory)
    }

    /// Whether a name is an adapter's.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self.named().get(name) {
            Some(Entry::Is(_)) => true,
            Some(Entry::Unloaded) => false,
            None => self.in_root(name).is_some(),
        }
    }

    /// Gives a loaded adapter its name. Returns the adapter that had the name before, if it was used.
    pub(crate) fn put(&self, generation: &Arc<Generation>) -> Option<Arc<Generation>> {
        let entry = Entry::Is(Arc::clone(generation));
        match self.named().insert(generation.name.clone(), entry) {
            Some(Entry::Is(earlier)) => Some(earlier),
            Some(Entry::Unloaded) | None => None,
        }
    }

    /// Removes a name. Returns the adapter that had it, if it was used.
    ///
    /// # Errors
    /// If no adapter has the name.
    pub(crate) fn take(&self, name: &str) -> Result<Option<Arc<Generation>>, ApiError> {
        if !self.has(name) {
            return Err(ApiError::no_model(name).of_field("lora_name"));
        }
        match self.named().insert(name.to_owned(), Entry::Unloaded) {
            Some(Entry::Is(generation)) => Ok(Some(generation)),
            Some(Entry::Unloaded) | None => Ok(None),
        }
    }

    /// The directory of this name in the directory of adapters, if it holds an adapter and no link leads outside.
    fn in_root(&self, name: &str) -> Option<PathBuf> {
        let root = self.root.as_ref().filter(|_| is_name(name) && name != self.base)?;
        let whole = root.join(name).canonicalize().ok()?;
        (whole.starts_with(root) && adapters_in(&whole).is_ok()).then_some(whole)
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files of a directory as an adapter.
fn generation(name: &str, directory: PathBuf) -> Result<Generation, ApiError> {
    let read = Generation::of(name, directory.clone());
    let generation =
        read.map_err(|refused| ApiError::adapter(&Generation::unread(name, directory), &refused))?;
    warn_of_template(&generation);
    Ok(generation)
}

/// Warns of an adapter that was trained on prompts without the chat template.
fn warn_of_template(generation: &Generation) {
    let name = &generation.name;
    let Some(TrainedText { template, .. }) = &generation.trained else { return };
    if !["auto", "chat"].contains(&template.as_str()) {
        log::warn!(
            "adapter {name} was trained with template {template}, and chats are framed by the chat template; /v1/completions takes prompts as they are"
        );
    }
}

const NAME_RULE: &str =
    "is no name; use letters, digits, '.', '_', '-' and ':', beginning with a letter or a digit";

/// Whether a text can be an adapter's name, which is part of paths, addresses and log lines.
fn is_name(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_letter)
}
