use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::hub::client::{Client, Content, JSON};
use crate::hub::is_hub_name;
use crate::{Error, Hub, Result, io_error};

/// Files that become one commit of a repository of the hub.
#[derive(Debug, Clone)]
pub struct Push {
    /// The repository, `organisation/name`. It is created if missing.
    pub name: String,
    /// Whether a new repository is private.
    pub private: bool,
    /// The branch. It is created if missing.
    pub branch: String,
    /// The message of the commit.
    pub message: String,
    /// The files.
    pub files: Vec<PushFile>,
}

/// A file and its path in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFile {
    /// Its path in the repository, with `/` between folders.
    pub path: String,
    /// The file.
    pub file: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// A commit that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Its address, if the hub names it.
    pub url: Option<String>,
    /// Files that the hub's rules exclude.
    pub ignored: Vec<String>,
}

/// The branch that every repository has.
pub(crate) const MAIN: &str = "main";

const LFS_JSON: &str = "application/vnd.git-lfs+json";
const NDJSON: &str = "application/x-ndjson";

/// Number of first bytes of a file from which the hub decides how to store it.
const SAMPLE: usize = 512;

impl PushFile {
    /// A file of a directory.
    ///
    /// # Errors
    /// [`Error::Adapter`] if its path is not valid in a repository; [`Error::Io`] if it is missing.
    pub fn of(directory: &Path, file: &Path) -> Result<Self> {
        let relative = file.strip_prefix(directory).unwrap_or(file);
        let parts: Option<Vec<&str>> = relative
            .components()
            .map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        let Some(parts) = parts.filter(|parts| !parts.is_empty()) else {
            let reason = format!("{} has no name that a repository can have", file.display());
            return Err(Error::Adapter { reason });
        };
        let size = std::fs::metadata(file).map_err(io_error("read", file))?.len();
        Ok(Self { path: parts.join("/"), file: file.to_owned(), size })
    }

    fn read(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.file).map_err(io_error("read", &self.file))
    }

    /// The first bytes.
    fn sample(&self) -> Result<Vec<u8>> {
        use io::Read;
        let read = || {
            let mut sample = Vec::with_capacity(SAMPLE);
            std::fs::File::open(&self.file)?.take(SAMPLE as u64).read_to_end(&mut sample)?;
            Ok(sample)
        };
        read().map_err(io_error("read", &self.file))
    }

    /// SHA-256 of its bytes: the id of a large file.
    fn oid(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let hash = |hasher: &mut Sha256| {
            let mut file = std::fs::File::open(&self.file)?;
            let mut buffer = vec![0; 1 << 20];
            loop {
                match io::Read::read(&mut file, &mut buffer)? {
                    0 => return Ok(()),
                    n => hasher.update(&buffer[..n]),
                }
            }
        };
        hash(&mut hasher).map_err(io_error("read", &self.file))?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Hub {
    /// Makes one commit of files, which becomes visible only when it is complete. `say` gets a message for each large file.
    ///
    /// # Errors
    /// [`Error::Hub`] for a refusal of the hub, or a connection that is missing or cut; [`Error::Io`] of a file.
    pub fn push(&self, push: &Push, token: &str, say: &mut dyn FnMut(&str)) -> Result<Pushed> {
        let Push { name, branch, .. } = push;
        let client = Client::new(&self.endpoint, token, name);
        let Some((organisation, own_name)) = name.split_once('/').filter(|_| is_hub_name(name))
        else {
            return Err(client.refuse("push", "expected a name of the form organisation/name"));
        };
        if !is_branch(branch) {
            return Err(client.refuse("push", &format!("{branch:?} is no name of a branch")));
        }
        if self.offline {
            return Err(client.refuse("push", "HF_HUB_OFFLINE forbids it"));
        }
        let repository = json!({
            "type": "model", "organization": organisation, "name": own_name, "private": push.private,
        });
        let made = (JSON, repository.to_string());
        client.post("make the repository", "api/repos/create", made, &[409])?; // 409: it exists already
        let branch = branch.replace('/', "%2F");
        if branch != MAIN {
            let path = format!("api/models/{name}/branch/{branch}");
            client.post("make the branch", &path, (JSON, "{}".to_owned()), &[409])?;
        }
        let modes = upload_modes(&client, push, &branch)?;
        let mode =
            |file: &PushFile| modes.get(file.path.as_str()).copied().unwrap_or(Mode::Regular);
        let of_mode = |wanted: Mode| push.files.iter().filter(move |file| mode(file) == wanted);
        let large = of_mode(Mode::Large).map(|file| Ok((file, file.oid()?)));
        let large: Vec<(&PushFile, String)> = large.collect::<Result<_>>()?;
        upload_large(&client, name, &large, say)?;

        let mut lines =
            vec![json!({"key": "header", "value": {"summary": push.message, "description": ""}})];
        for file in of_mode(Mode::Regular) {
            let content = BASE64_STANDARD.encode(file.read()?);
            let value = json!({"content": content, "path": file.path, "encoding": "base64"});
            lines.push(json!({"key": "file", "value": value}));
        }
        for (file, oid) in &large {
            let value = json!({"path": file.path, "algo": "sha256", "oid": oid, "size": file.size});
            lines.push(json!({"key": "lfsFile", "value": value}));
        }
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = format!("api/models/{name}/commit/{branch}");
        let answer = client.post("commit", &path, (NDJSON, lines), &[])?.unwrap_or_default();
        let url = answer["commitUrl"].as_str().map(str::to_owned);
        let ignored = of_mode(Mode::Ignored).map(|file| file.path.clone()).collect();
        Ok(Pushed { url, ignored })
    }
}

/// Whether a text can be the name of a branch, a tag or a commit.
pub(crate) fn is_branch(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    !name.is_empty() && !name.starts_with('/') && !name.contains("..") && name.chars().all(is_plain)
}

/// How the hub stores a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// In the commit itself.
    Regular,
    /// Separately, by its digest (LFS).
    Large,
    /// Not at all.
    Ignored,
}

/// Asks the hub how it stores each file.
fn upload_modes(client: &Client, push: &Push, branch: &str) -> Result<BTreeMap<String, Mode>> {
    let of_file = |file: &PushFile| -> Result<Value> {
        let sample = BASE64_STANDARD.encode(file.sample()?);
        Ok(json!({"path": file.path, "size": file.size, "sample": sample}))
    };
    let files = push.files.iter().map(of_file).collect::<Result<Vec<_>>>()?;
    let path = format!("api/models/{}/preupload/{branch}", push.name);
    let asked = (JSON, json!({ "files": files }).to_string());
    let answer = client.post("announce the files", &path, asked, &[])?.unwrap_or_default();
    let modes = answer["files"].as_array().into_iter().flatten().filter_map(|file| {
        let mode = match (file["shouldIgnore"].as_bool(), file["uploadMode"].as_str()) {
            (Some(true), _) => Mode::Ignored,
            (_, Some("lfs")) => Mode::Large,
            _ => Mode::Regular,
        };
        Some((file["path"].as_str()?.to_owned(), mode))
    });
    Ok(modes.collect())
}

/// Uploads the large files that the hub does not have.
fn upload_large(
    client: &Client,
    name: &str,
    large: &[(&PushFile, String)],
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    if large.is_empty() {
        return Ok(());
    }
    let objects: Vec<Value> =
        large.iter().map(|(file, oid)| json!({"oid": oid, "size": file.size})).collect();
    let batch = json!({
        "operation": "upload", "transfers": ["basic"], "objects": objects, "hash_algo": "sha256",
    });
    let path = format!("{name}.git/info/lfs/objects/batch");
    let asked = (LFS_JSON, batch.to_string());
    let answer = client.post("announce the large files", &path, asked, &[])?.unwrap_or_default();
    let answers = answer["objects"].as_array().map_or(&[][..], Vec::as_slice);
    for (file, oid) in large {
        let doing = format!("upload {}", file.path);
        let Some(own) = answers.iter().find(|own| own["oid"] == json!(oid)) else {
            return Err(client.refuse(&doing, "the hub says nothing of it"));
        };
        if let Some(message) = own["error"]["message"].as_str() {
            return Err(client.refuse(&doing, message));
        }
        let (upload, verify) = (&own["actions"]["upload"], &own["actions"]["verify"]);
        if upload.is_null() {
            continue; // the hub has it
        }
        if !upload["header"]["chunk_size"].is_null() {
            let reason = "the hub wants it in parts, which this program does not do; push it with the hub's own program";
            return Err(client.refuse(&doing, reason));
        }
        say(&doing);
        client.send_to(&doing, upload, Content::File(&file.file))?;
        if !verify.is_null() {
            let check = json!({"oid": oid, "size": file.size}).to_string();
            client.send_to(&doing, verify, Content::Text(LFS_JSON, check))?;
        }
    }
    Ok(())
}
