//! A digest of their content identifies weights. A path does not: its file may be replaced.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hub::names::user_cache;
use crate::weights::shards::{INDEX, read_shard_index};
use crate::{Result, io_error, read_json, write_json};

/// SHA-256 of the weights of a model directory or of a GGUF file, in hexadecimal digits.
///
/// For several shards it is the digest of their digests. A file of the hub's cache is named by its digest and is not read. Any other file is
/// read once: its digest is kept in the user's cache directory, and is valid while the file has the same size, modification time and inode.
///
/// # Errors
/// [`crate::Error::Io`] if a file cannot be read; [`crate::Error::Format`] or [`crate::Error::Json`] for an invalid index.
pub fn weights_digest(model: &Path) -> Result<String> {
    let cache = user_cache().map(|cache| cache.join("reft/weights"));
    digest_of(model, cache.as_deref())
}

fn digest_of(model: &Path, cache: Option<&Path>) -> Result<String> {
    let single = model.join("model.safetensors");
    let files = if model.is_file() {
        vec![model.to_owned()]
    } else if single.is_file() {
        vec![single]
    } else {
        let mut shards: Vec<String> = read_shard_index(&model.join(INDEX))?.into_values().collect();
        shards.sort();
        shards.dedup();
        shards.iter().map(|shard| model.join(shard)).collect()
    };
    let digests = files.iter().map(|file| file_digest(file, cache)).collect::<Result<Vec<_>>>()?;
    Ok(match <[String; 1]>::try_from(digests) {
        Ok([digest]) => digest,
        Err(digests) => hex(&Sha256::digest(digests.join("\n"))),
    })
}

/// A file whose digest was computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    path: PathBuf,
    size: u64,
    /// Nanoseconds since 1970.
    changed: u128,
    place: Option<(u64, u64)>,
    sha256: String,
}

/// A file changed more recently than this may change again without a new modification time.
const JUST_NOW: Duration = Duration::from_secs(2);

fn file_digest(file: &Path, cache: Option<&Path>) -> Result<String> {
    let failed = || io_error("read", file);
    let path = fs::canonicalize(file).map_err(failed())?;
    if let Some(digest) = of_hub(&path) {
        return Ok(digest);
    }
    let place = |path: &Path| {
        let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()));
        cache.map(|cache| cache.join(name + ".json"))
    };
    let facts = |sha256: String| -> io::Result<Known> {
        let found = fs::metadata(&path)?;
        let changed = found.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        let changed = changed.unwrap_or_default().as_nanos();
        let (size, place) = (found.len(), place_on_disk(&found));
        Ok(Known { path: path.clone(), size, changed, place, sha256 })
    };
    let kept = place(&path);
    let known: Option<Known> = kept.as_deref().and_then(|kept| read_json(kept).ok());
    let before = facts(known.as_ref().map_or_else(String::new, |known| known.sha256.clone()));
    let before = before.map_err(failed())?;
    if let Some(known) = known.filter(|known| *known == before) {
        return Ok(known.sha256);
    }
    let sha256 = read_digest(&path).map_err(failed())?;
    let after = facts(sha256.clone()).map_err(failed())?;
    let is_settled = Known { sha256: sha256.clone(), ..before } == after
        && age(after.changed).is_some_and(|age| age > JUST_NOW);
    if let (Some(kept), true) = (kept, is_settled) {
        // a digest that cannot be kept is computed again next time
        let _ = kept.parent().map(fs::create_dir_all);
        let _ = write_json(&kept, &after);
    }
    Ok(sha256)
}

fn age(changed: u128) -> Option<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let changed = u64::try_from(changed).ok().map(Duration::from_nanos)?;
    now.checked_sub(changed)
}

/// The digest of a large file in the hub's cache: the file lies in `blobs` and is named by its digest.
fn of_hub(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let is_blob = path.parent()?.file_name()? == "blobs";
    let is_digest = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    (is_blob && is_digest).then(|| name.to_ascii_lowercase())
}

fn read_digest(path: &Path) -> io::Result<String> {
    let (mut file, mut hasher) = (File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Device and inode number of the file, if the system has them.
fn place_on_disk(found: &Metadata) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some((found.dev(), found.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = found;
        None
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// SHA-256 of "weights" and of "Weights", by coreutils' sha256sum.
    const DIGESTS: [&str; 2] = [
        "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
        "147ec15498661dd98b2128a1fa230b4838f66d6b66dea64847dc55ac7d88a130",
    ];

    /// Writes a file that looks as if it were old.
    fn write(path: &Path, text: &str) -> io::Result<()> {
        fs::write(path, text)?;
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
    }

    #[test]
    fn digests_are_of_contents_and_kept_while_the_file_is_the_same() -> TestResult {
        let directory = tempfile::tempdir()?;
        let (model, cache) = (directory.path().join("model"), directory.path().join("cache"));
        fs::create_dir(&model)?;
        let file = model.join("model.safetensors");
        write(&file, "weights")?;
        let digest = || digest_of(&model, Some(&cache));
        assert_eq!(digest()?, DIGESTS[0]);
        let kept = fs::read_dir(&cache)?.next().ok_or("nothing is kept")??.path();
        let mut known: Known = read_json(&kept)?;
        known.sha256 = "as it is kept".to_owned();
        write_json(&kept, &known)?;
        assert_eq!(digest()?, "as it is kept");
        assert_eq!(digest_of(&file, None)?, DIGESTS[0]);

        // another file of the same size and time, such as a renamed download
        let other = model.join("other");
        write(&other, "Weights")?;
        fs::rename(&other, &file)?;
        assert_eq!(digest()?, DIGESTS[1]);
        // in place, and just now
        fs::write(&file, "weights")?;
        assert_eq!(digest()?, DIGESTS[0]);
        fs::write(&file, "Weights")?;
        assert_eq!(digest()?, DIGESTS[1]);
        Ok(())
    }

    #[test]
    fn shards_count_in_the_order_of_their_names_and_blobs_by_theirs() -> TestResult {
        let directory = tempfile::tempdir()?;
        let model = directory.path();
        let index =
            r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
        fs::write(model.join("model.safetensors.index.json"), index)?;
        fs::write(model.join("1.safetensors"), "weights")?;
        fs::write(model.join("2.safetensors"), "Weights")?;
        let both = hex(&Sha256::digest(DIGESTS.join("\n")));
        assert_eq!(digest_of(model, None)?, both);

        #[cfg(unix)]
        {
            let blobs = model.join("blobs");
            fs::create_dir(&blobs)?;
            let blob = blobs.join(DIGESTS[0]);
            fs::write(&blob, "never read")?;
            std::os::unix::fs::symlink(&blob, model.join("model.safetensors"))?;
            assert_eq!(digest_of(model, None)?, DIGESTS[0]);
        }
        Ok(())
    }
}
