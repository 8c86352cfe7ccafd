use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use reft_models::{Hub, io_error};

use crate::{Error, Result};

/// A split of a data set of the hub: `ORG/NAME/SPLIT`, or `ORG/NAME:CONFIG/SPLIT`.
#[derive(Debug, PartialEq, Eq)]
struct SplitName<'a> {
    data_set: &'a str,
    config: Option<&'a str>,
    split: &'a str,
}

/// The files that a path means: itself, or a split of a data set in the hub's local cache.
///
/// # Errors
/// [`Error::DataFile`] if the cache has the data set, but not the split, or several configurations of it.
pub(crate) fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.to_str().filter(|_| !path.exists()).and_then(SplitName::read);
    match name {
        Some(name) => {
            let cache = Hub::from_env()?.cache;
            Ok(name.files(path, &cache)?.unwrap_or_else(|| vec![path.to_owned()]))
        }
        None => Ok(vec![path.to_owned()]),
    }
}

impl<'a> SplitName<'a> {
    /// `None` if a text has another form. A last part with a dot is a file name.
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let (organisation, name, split) = (parts.next()?, parts.next()?, parts.next()?);
        let is_word = |word: &str| {
            word.starts_with(|c: char| c.is_ascii_alphanumeric())
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let (name, config) = name.split_once(':').map_or((name, None), |(n, c)| (n, Some(c)));
        let words = [organisation, name, split].into_iter().chain(config);
        if parts.next().is_some() || split.contains('.') || !words.into_iter().all(is_word) {
            return None;
        }
        let data_set = &text[..organisation.len() + 1 + name.len()];
        Some(Self { data_set, config, split })
    }

    /// The files of the split in a cache; `None` if it does not have the data set.
    fn files(&self, path: &Path, cache: &Path) -> Result<Option<Vec<PathBuf>>> {
        let folder = cache.join(format!("datasets--{}", self.data_set.replace('/', "--")));
        if !folder.is_dir() {
            return Ok(None);
        }
        let refuse = |reason: String| Err(Error::DataFile { path: path.to_owned(), reason });
        let Some(snapshot) = snapshot(&folder) else {
            return refuse(format!("{} holds no snapshot of a data set", folder.display()));
        };
        let mut found = Vec::new();
        data_files(&snapshot, &mut found)?;
        found.sort();
        let relative = |file: &PathBuf| file.strip_prefix(&snapshot).unwrap_or(file).to_owned();
        let mut of_split: Vec<PathBuf> = found.iter().map(relative).collect();
        of_split.retain(|file| self.is_of_split(file));
        if let Some(config) = self.config {
            of_split.retain(|file| file.iter().any(|part| part == config));
        }
        let configs: BTreeSet<String> = of_split.iter().map(|file| config_of(file)).collect();
        if of_split.is_empty() {
            let all: Vec<String> =
                found.iter().map(|file| relative(file).display().to_string()).collect();
            let what = match self.config {
                Some(config) => format!("split {} of configuration {config}", self.split),
                None => format!("split {}", self.split),
            };
            return refuse(format!(
                "the data set has no file of {what}; its files are {}",
                all.join(", ")
            ));
        }
        if configs.len() > 1 {
            let configs = configs.into_iter().collect::<Vec<_>>().join(", ");
            return refuse(format!(
                "the split is there in several configurations: {configs}; name one as {}:CONFIG/{}",
                self.data_set, self.split
            ));
        }
        Ok(Some(of_split.into_iter().map(|file| snapshot.join(file)).collect()))
    }

    /// Whether the split's name, or a synonym, is a word in a file's name or the name of a folder above it.
    fn is_of_split(&self, file: &Path) -> bool {
        const VALIDATION: [&str; 4] = ["validation", "valid", "val", "dev"];
        let names: &[&str] = if self.split == VALIDATION[0] { &VALIDATION } else { &[self.split] };
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut words = name.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let in_name = words
            .any(|word| names.contains(&word) || word.split('_').any(|part| names.contains(&part)));
        let folders = file.parent().into_iter().flat_map(Path::iter);
        in_name || folders.into_iter().any(|part| names.iter().any(|name| part == *name))
    }
}

/// A file's configuration: the first folder of its path, or `default` without one or in `data`.
fn config_of(file: &Path) -> String {
    let first = file.parent().and_then(|parent| parent.iter().next());
    let first = first.map_or("default".into(), |folder| folder.to_string_lossy());
    if first == "data" { "default".to_owned() } else { first.into_owned() }
}

/// The snapshot of the main branch, or the only one.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if let Ok(commit) = fs::read_to_string(folder.join("refs/main")) {
        return Some(snapshots.join(commit.trim())).filter(|path| path.is_dir());
    }
    let mut entries = fs::read_dir(snapshots).ok()?.flatten();
    let only = entries.next()?.path();
    entries.next().is_none().then_some(only)
}

/// Files below a folder that hold rows.
fn data_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    const ENDINGS: [&str; 6] = [".parquet", ".jsonl", ".json", ".csv", ".tsv", ".ndjson"];
    for entry in fs::read_dir(folder).map_err(io_error("read", folder))? {
        let path = entry.map_err(io_error("read", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let packed = [".gz", ".zst"].into_iter().find_map(|ending| name.strip_suffix(ending));
        let name = packed.unwrap_or(&name);
        if path.is_dir() && !name.starts_with('.') {
            data_files(&path, found)?;
        } else if ENDINGS.iter().any(|ending| name.ends_with(ending))
            && !["dataset_infos.json", "dataset_dict.json"].contains(&name)
        {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    fn data_set(cache: &Path, name: &str, files: &[&str]) -> TestResult {
        let folder = cache.join(format!("datasets--{}", name.replace('/', "--")));
        fs::create_dir_all(folder.join("refs"))?;
        fs::write(folder.join("refs/main"), "c0ffee\n")?;
        for file in files {
            let path = folder.join("snapshots/c0ffee").join(file);
            fs::create_dir_all(path.parent().ok_or("a folder")?)?;
            fs::write(path, "")?;
        }
        fs::create_dir_all(folder.join("snapshots/older"))?;
        Ok(())
    }

    /// The files of a split, below the snapshot, or why there are none.
    fn found(cache: &Path, text: &str) -> std::result::Result<Vec<String>, String> {
        let name = SplitName::read(text).ok_or("no name")?;
        let files = name.files(Path::new(text), cache).map_err(|error| error.to_string())?;
        let files = files.ok_or("no data set")?;
        let below = |file: &PathBuf| {
            let text = file.to_string_lossy();
            text.split_once("c0ffee/").map(|(_, below)| below.to_owned()).unwrap_or_default()
        };
        Ok(files.iter().map(below).collect())
    }

    #[test]
    fn splits_are_found_as_the_hub_lays_them_out() -> TestResult {
        let cache = tempfile::tempdir()?;
        let cache = cache.path();
        data_set(
            cache,
            "org/sharded",
            &[
                "README.md",
                "data/train-00001-of-00002.parquet",
                "data/train-00000-of-00002.parquet",
                "data/dev.jsonl.gz",
                "dataset_infos.json",
            ],
        )?;
        data_set(
            cache,
            "org/glue",
            &["sst2/train-00000-of-00001.parquet", "cola/train.csv", "cola/test/part.json"],
        )?;
        let shards = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
        for (name, expected) in [
            ("org/sharded/train", &shards[..]),
            ("org/sharded/validation", &["data/dev.jsonl.gz"]),
            ("org/glue:cola/train", &["cola/train.csv"]),
            ("org/glue/test", &["cola/test/part.json"]),
        ] {
            assert_eq!(found(cache, name)?, expected, "{name}");
        }
        for (name, says) in [
            ("org/glue/train", "cola, sst2; name one as org/glue:CONFIG/train"),
            ("org/sharded/test", "its files are data/dev.jsonl.gz"),
            ("org/glue:mnli/train", "split train of configuration mnli"),
            ("org/other/train", "no data set"),
        ] {
            let refused = found(cache, name);
            assert!(refused.as_ref().is_err_and(|text| text.contains(says)), "{refused:?}");
        }
        Ok(())
    }

    #[test]
    fn paths_of_files_are_no_names_of_splits() {
        for path in
            ["data/a/train.jsonl", "train", "a/b", "a/b/c/d", "../a/train", "/a/b/c", "a/b:/c"]
        {
            assert_eq!(SplitName::read(path), None, "{path}");
        }
        let name = SplitName { data_set: "a/b", config: Some("en"), split: "train" };
        assert_eq!(SplitName::read("a/b:en/train"), Some(name));
    }
}
