//! Model names of the Hugging Face hub: found in the local cache, or downloaded into it.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api as ApiSync, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use crate::hub::push::{MAIN, is_branch};
use crate::weights::shards::{INDEX, read_shard_index};
use crate::{Error, Gguf, Result};

/// The source of models that are given by a hub name instead of a directory.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The directory that models are kept in.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// Whether nothing may be downloaded.
    pub offline: bool,
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const WEIGHTS: &str = "model.safetensors";
/// Required files of a model, besides its weights.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
/// Optional files of a model, fetched if they exist.
const WELCOME: [&str; 3] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"];

/// Finds the model that `name_or_path` means: an existing directory or `.gguf` file as it is, or `organisation/name` of the hub, with the
/// settings of the environment ([`Hub::from_env`], [`Hub::resolve`]).
///
/// # Errors
/// [`Error::UnknownModel`] if it is neither; errors of [`Hub::from_env`] and [`Hub::resolve`].
pub fn resolve_model(name_or_path: &str) -> Result<PathBuf> {
    if let Some(path) = local_model(name_or_path)? {
        return Ok(path);
    }
    Hub::from_env()?.resolve(name_or_path)
}

impl Hub {
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` as huggingface_hub does.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] if neither these variables nor a home directory give the location of the cache.
    pub fn from_env() -> Result<Self> {
        let path = |variable: &str| {
            env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
        };
        let homeless = "there is no home directory; set HF_HOME to say where the hub's cache is";
        let cache = path("HF_HUB_CACHE")
            .or_else(|| Some(path("HF_HOME")?.join("hub")))
            .or_else(|| Some(user_cache()?.join("huggingface/hub")))
            .ok_or_else(|| unknown("", homeless))?;
        let endpoint = env::var("HF_ENDPOINT").unwrap_or_else(|_| DEFAULT_ENDPOINT.to_owned());
        let offline = env::var("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        let offline = ["1", "on", "yes", "true"].contains(&offline.as_str());
        Ok(Self { cache, endpoint, offline })
    }

    /// Finds the model `organisation/name` in the hub's cache, downloading missing files.
    ///
    /// # Errors
    /// [`Error::UnknownModel`] if it is no such name, or files of the model are missing and cannot be downloaded.
    pub fn resolve(&self, name: &str) -> Result<PathBuf> {
        let refuse = |reason: String| Err(unknown(name, reason));
        let none = "there is no such directory";
        if !is_hub_name(name) {
            let form = "it is not of the hub's form organisation/name";
            return refuse(format!("{none} or .gguf file, and {form}"));
        }
        let missing = match self.cached(name) {
            Some(snapshot) => match missing_files(&snapshot) {
                missing if missing.is_empty() => return Ok(snapshot),
                missing => missing.join(", "),
            },
            None => "all of it".to_owned(),
        };
        let lacks = format!("the cache {} lacks {missing}", self.cache.display());
        if self.offline {
            return refuse(format!("{lacks}, and HF_HUB_OFFLINE forbids downloading"));
        }
        let endpoint = &self.endpoint;
        self.download(name)
            .or_else(|failed| refuse(format!("{none}, {lacks}, and {endpoint} gives: {failed}")))
    }

    /// The snapshot of a model in the cache, complete or not.
    fn cached(&self, name: &str) -> Option<PathBuf> {
        let config = Cache::new(self.cache.clone()).repo(repo(name)).get("config.json")?;
        config.parent().map(Path::to_owned)
    }

    /// The token of `HF_TOKEN`, else the token in the token file beside the cache.
    pub fn token(&self) -> Option<String> {
        let own = env::var("HF_TOKEN").ok().map(|token| token.trim().to_owned());
        own.filter(|token| !token.is_empty()).or_else(|| Cache::new(self.cache.clone()).token())
    }

    /// The hub, to download from.
    fn api(&self) -> Result<ApiSync, String> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.clone()));
        let builder = builder.with_endpoint(self.endpoint.clone()).with_token(self.token());
        builder.build().map_err(|failed| failed.to_string())
    }

    /// Finds the wanted files of a repository `organisation/name` in the cache, downloads the missing ones, and returns the directory that
    /// they lie in. A revision is a branch, a tag or a commit; without one it is the main branch.
    ///
    /// # Errors
    /// [`Error::Hub`] if there is no such repository, or it has none of the files, or they cannot be downloaded.
    pub fn fetch(
        &self,
        name: &str,
        revision: Option<&str>,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<PathBuf> {
        let refuse = |reason: String| Error::Hub { name: name.to_owned(), reason };
        if !is_hub_name(name) {
            return Err(refuse("expected a name of the form organisation/name".to_owned()));
        }
        let revision = revision.unwrap_or(MAIN);
        if !is_branch(revision) {
            return Err(refuse(format!("{revision:?} is no name of a revision")));
        }
        let repo = Repo::with_revision(name.to_owned(), RepoType::Model, revision.to_owned());
        let folder = self.cache.join(repo.folder_name());
        if self.offline {
            let commit = fs::read_to_string(folder.join("refs").join(revision)).ok();
            let commit = commit.map_or_else(|| revision.to_owned(), |own| own.trim().to_owned());
            let snapshot = folder.join("snapshots").join(commit);
            let lacks = "the cache lacks it, and HF_HUB_OFFLINE forbids downloading";
            return if snapshot.is_dir() { Ok(snapshot) } else { Err(refuse(lacks.to_owned())) };
        }
        let endpoint = &self.endpoint;
        let failed = |failed: String| refuse(format!("{endpoint} gives: {failed}"));
        let api = self.api().map_err(failed)?.repo(repo);
        let info = api.info().map_err(|error| failed(error.to_string()))?;
        let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let mut snapshot = None;
        for file in files.iter().filter(|file| is_plain(file) && is_wanted(file)) {
            let found = api.get(file).map_err(|error| failed(format!("{file}: {error}")))?;
            let folders = file.split('/').count();
            snapshot = found.ancestors().nth(folders).map(Path::to_owned);
        }
        snapshot.ok_or_else(|| {
            let shown: Vec<&str> = files.iter().take(12).map(String::as_str).collect();
            refuse(format!(
                "it holds none of the files that are wanted; it holds {}",
                shown.join(", ")
            ))
        })
    }

    fn download(&self, name: &str) -> Result<PathBuf, String> {
        let api = self.api()?.repo(repo(name));
        let info = api.info().map_err(|failed| failed.to_string())?;
        let offered: BTreeSet<String> =
            info.siblings.into_iter().map(|file| file.rfilename).collect();
        let get = |file: &str| api.get(file).map_err(|failed| format!("{file}: {failed}"));
        for file in
            NEEDED.into_iter().chain(WELCOME.into_iter().filter(|&file| offered.contains(file)))
        {
            get(file)?;
        }
        if offered.contains(WEIGHTS) {
            get(WEIGHTS)?;
        } else if offered.contains(INDEX) {
            for shard in shards(&get(INDEX)?).map_err(|failed| failed.to_string())? {
                get(&shard)?;
            }
        } else {
            let reads = "only safetensors can be read";
            return Err(format!("the model has neither {WEIGHTS} nor {INDEX}; {reads}"));
        }
        self.cached(name).ok_or_else(|| "the download is not in the cache".to_owned())
    }
}

/// The user's cache folder: `XDG_CACHE_HOME`, or `.cache` in the home directory.
pub(crate) fn user_cache() -> Option<PathBuf> {
    let path = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    path.or_else(|| Some(env::home_dir()?.join(".cache")))
}

/// An existing directory or GGUF file; a file of another kind is an error.
fn local_model(name: &str) -> Result<Option<PathBuf>> {
    let path = Path::new(name);
    if path.is_file() && !Gguf::is_named(path) {
        return Err(unknown(name, "it is a file; give a model's directory or a .gguf file"));
    }
    Ok((path.is_dir() || path.is_file()).then(|| path.to_owned()))
}

/// Whether a text is a hub name: `organisation/name`, each of letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
pub fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    name.split_once('/').is_some_and(|(organisation, name)| is_part(organisation) && is_part(name))
}

/// Whether a relative path stays inside its directory: no empty or hidden parts, no backslashes.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains('\\'))
}

/// The required files that a snapshot lacks.
fn missing_files(snapshot: &Path) -> Vec<String> {
    let lacks = |file: &str| !snapshot.join(file).is_file();
    let mut missing: Vec<String> =
        NEEDED.iter().filter(|file| lacks(file)).map(|&file| file.to_owned()).collect();
    if lacks(WEIGHTS) {
        match shards(&snapshot.join(INDEX)) {
            Ok(shards) => missing.extend(shards.into_iter().filter(|shard| lacks(shard))),
            Err(_) => missing.push(WEIGHTS.to_owned()),
        }
    }
    missing
}

/// The shards that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    Ok(read_shard_index(index)?.into_values().collect())
}

fn repo(name: &str) -> Repo {
    Repo::new(name.to_owned(), RepoType::Model)
}

fn unknown(name: &str, reason: impl Into<String>) -> Error {
    Error::UnknownModel { name: name.to_owned(), reason: reason.into() }
}
