//! Tests of the error messages about files: with a wrong value at any place of a file, no message names a type of this program.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use reft_bench::{ConfigFile, TaskConfig};
use reft_causal::DasRecipe;
use reft_methods::{Methods, ReftConfig};
use reft_models::{AdapterStack, ChatTemplate, DecoderConfig, Tokenizer, Weights};
use reft_train::read_records;
use serde_json::{Map, Value, json};

use crate::options::Declared;
use crate::train::config_file;
use crate::train::run_options::declared;

/// Words of Rust that no message may contain.
const RUST_WORDS: [&str; 22] = [
    "enum", "struct", "tuple", "untagged", "newtype", "usize", "isize", "i8", "i16", "i32", "i64",
    "u8", "u16", "u32", "u64", "f64", "bool", "str", "Vec", "String", "Option", "BTreeMap",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The names of all types of this workspace, and [`RUST_WORDS`].
fn type_names() -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> = RUST_WORDS.iter().map(|word| (*word).to_owned()).collect();
    let mut folders = vec![root().join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                names.extend(declared_in(&fs::read_to_string(&path)?));
            }
        }
    }
    ensure!(names.contains("TargetModules") && names.len() > 200, "{} names", names.len());
    Ok(names)
}

fn declared_in(source: &str) -> impl Iterator<Item = String> {
    let name = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
        let kinds = ["struct ", "enum ", "trait ", "type ", "union "];
        let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        Some(rest[..end].to_owned()).filter(|name| name.starts_with(char::is_uppercase))
    };
    source.lines().filter_map(name).collect::<Vec<_>>().into_iter()
}

/// Values of every kind.
fn odd_values() -> [Value; 9] {
    [
        json!(null),
        json!(true),
        json!(-7),
        json!(1.5),
        json!("odd"),
        json!([]),
        json!([[1.5], "odd"]),
        json!({}),
        json!({ "odd": [1] }),
    ]
}

/// Variants of a document: an odd value at each place, each field left out, and an unknown field added.
fn spoilt(document: &Value) -> Vec<Value> {
    let mut all: Vec<Value> = odd_values().into_iter().filter(|value| value != document).collect();
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                let with = |value: Option<Value>| {
                    let mut fields = fields.clone();
                    match value {
                        Some(value) => _ = fields.insert(name.clone(), value),
                        None => _ = fields.remove(name),
                    }
                    Value::Object(fields)
                };
                all.push(with(None));
                all.extend(spoilt(value).into_iter().map(|value| with(Some(value))));
            }
            let mut more: Map<String, Value> = fields.clone();
            more.insert("odd".to_owned(), json!(1));
            all.push(Value::Object(more));
        }
        Value::Array(items) => {
            if let Some((first, rest)) = items.split_first() {
                let with = |value: Value| Value::Array([&[value], rest].concat());
                all.extend(spoilt(first).into_iter().map(with));
            }
        }
        _ => {}
    }
    all
}

/// Reads spoilt files, and checks the error messages.
struct Reader {
    names: BTreeSet<String>,
    dir: tempfile::TempDir,
}

impl Reader {
    fn new() -> Result<Self> {
        Ok(Self { names: type_names()?, dir: tempfile::tempdir()? })
    }

    fn check_message(&self, message: &str, file: &str) -> Result<()> {
        // the words of the file's path and contents are allowed
        let own = message.replace(&*self.dir.path().to_string_lossy(), "");
        // as phrases, because options have these words as names or values too
        let is_rust = ["unknown variant", "expected f32"].iter().any(|words| own.contains(words));
        ensure!(!is_rust, "{message}");
        let words = own.split(|c: char| !c.is_alphanumeric() && c != '_');
        match words.into_iter().find(|word| self.names.contains(*word) && !file.contains(word)) {
            Some(word) => bail!("{word} in: {message}"),
            None => Ok(()),
        }
    }

    /// Reads a file of this name with spoilt texts; returns how many were refused.
    fn refuse(
        &self,
        name: &str,
        texts: impl IntoIterator<Item = String>,
        read: impl Fn(&Path) -> Result<()>,
    ) -> Result<usize> {
        let path = self.dir.path().join(name);
        let mut refused = 0;
        for text in texts {
            fs::write(&path, &text)?;
            if let Err(error) = read(&path) {
                refused += 1;
                let checked = self.check_message(&format!("{error:#}"), &text);
                checked.with_context(|| format!("{name} is {text}"))?;
            }
        }
        fs::remove_file(&path)?;
        ensure!(refused > 0, "{name}: the test has no power, nothing was refused");
        Ok(refused)
    }

    fn json(&self, name: &str, document: &Value, read: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let texts = spoilt(document).into_iter().map(|value| value.to_string());
        self.refuse(name, texts, read)?;
        Ok(())
    }

    /// As `json`, with a TOML file. Values that TOML cannot hold are left out.
    fn toml(&self, name: &str, document: &str, read: impl Fn(&Path) -> Result<()>) -> Result<()> {
        let document: toml::Table = document.parse()?;
        let texts = spoilt(&serde_json::to_value(document)?).into_iter();
        let texts = texts.filter_map(|value| toml::to_string(&value).ok());
        self.refuse(name, texts, read)?;
        Ok(())
    }
}

fn text(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

fn document(path: &str) -> Result<Value> {
    Ok(serde_json::from_str(&text(path)?)?)
}

/// The files of a folder of the repository, by their ending.
fn files(folder: &str, ending: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(ending) {
            found.push(format!("{folder}/{name}"));
        }
    }
    found.sort();
    Ok(found)
}

#[test]
fn recipes_and_tasks() -> Result<()> {
    let reader = Reader::new()?;
    let mut compared = 0;
    for file in files("recipes", ".toml")? {
        let text = text(&file)?;
        if text.contains("[[method]]") {
            reader.toml("recipe.toml", &text, |path| Ok(ConfigFile::open(path).map(drop)?))?;
            compared += 1;
        } else {
            reader.toml("train.toml", &text, |path| config_file::read(path).map(drop))?;
        }
    }
    ensure!(compared > 3, "{compared} recipes of comparisons");
    for file in files("recipes/tasks", ".toml")? {
        reader.toml("task.toml", &text(&file)?, |path| Ok(TaskConfig::open(path).map(drop)?))?;
    }
    for file in files("recipes/das", ".toml")? {
        reader.toml("das.toml", &text(&file)?, |path| Ok(DasRecipe::open(path).map(drop)?))?;
    }
    Ok(())
}

#[test]
fn options_of_training() -> Result<()> {
    let reader = Reader::new()?;
    let texts = declared().into_iter().flat_map(|Declared { name, .. }| {
        let fields = odd_values().into_iter().map(move |value| json!({ name: value }));
        fields.filter_map(|value| toml::to_string(&value).ok())
    });
    let refused = reader.refuse("train.toml", texts, |path| config_file::read(path).map(drop))?;
    ensure!(refused > 300, "{refused} were refused");
    Ok(())
}

#[test]
fn adapters() -> Result<()> {
    let reader = Reader::new()?;
    let folders = ["peft", "peft_more", "road"].map(|folder| format!("tests/oracle/{folder}"));
    let mut read = 0;
    for folder in folders {
        for entry in fs::read_dir(root().join(&folder))? {
            let config = entry?.path().join("adapter_config.json");
            if config.is_file() {
                let document = serde_json::from_str(&fs::read_to_string(&config)?)?;
                reader.json("adapter_config.json", &document, |path| {
                    Ok(Methods::read(path.parent().unwrap_or(path)).map(drop)?)
                })?;
                read += 1;
            }
        }
    }
    ensure!(read > 10, "{read} adapters of PEFT");
    let written = "tests/written_by_0_1";
    for file in find(&root().join(written), "reft_config.json")? {
        let document = serde_json::from_str(&fs::read_to_string(&file)?)?;
        reader.json("reft_config.json", &document, |path| {
            Ok(ReftConfig::read(path.parent().unwrap_or(path)).map(drop)?)
        })?;
    }
    for file in find(&root().join(written), "baseline_config.json")? {
        let document = serde_json::from_str(&fs::read_to_string(&file)?)?;
        reader.json("baseline_config.json", &document, |path| {
            Ok(Methods::read(path.parent().unwrap_or(path)).map(drop)?)
        })?;
    }
    let combined = json!({ "format_version": 1, "adapters": ["0-loreft"] });
    reader.json(AdapterStack::FILE_NAME, &combined, |path| {
        Ok(AdapterStack::directories(path.parent().unwrap_or(path)).map(drop)?)
    })
}

/// The files of this name below a folder.
fn find(folder: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let (mut folders, mut found) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with(name) {
                found.push(path);
            }
        }
    }
    ensure!(!found.is_empty(), "there is no {name} below {}", folder.display());
    Ok(found)
}

#[test]
fn models() -> Result<()> {
    let reader = Reader::new()?;
    for family in [
        "families/llama_rope_llama3",
        "families/mistral",
        "families/qwen2",
        "families/qwen3",
        "more_families/gemma2",
        "more_families/gemma3_images",
        "more_families/phi3_longrope",
        "more_families/ministral3",
    ] {
        let document = document(&format!("tests/oracle/{family}/config.json"))?;
        reader.json("config.json", &document, |path| {
            Ok(DecoderConfig::open(path.parent().unwrap_or(path)).map(drop)?)
        })?;
    }
    let index = document("tests/oracle/families/llama_sharded/model.safetensors.index.json")?;
    reader.json("model.safetensors.index.json", &index, |path| {
        Ok(Weights::open(path.parent().unwrap_or(path)).map(drop)?)
    })
}

#[test]
fn tokenizers() -> Result<()> {
    let reader = Reader::new()?;
    let model = json!({ "type": "WordLevel", "vocab": { "<s>": 0, "a": 1 }, "unk_token": "<s>" });
    let tokenizer = json!({ "version": "1.0", "model": model });
    fs::write(reader.dir.path().join("tokenizer.json"), tokenizer.to_string())?;
    let token = json!({ "content": "<s>", "special": true });
    let named = json!([{ "name": "default", "template": "{{ messages }}" }]);
    for (bos, template) in [(json!("<s>"), json!("{{ messages }}")), (token, named)] {
        let config = json!({
            "bos_token": bos, "eos_token": bos, "pad_token": null, "unk_token": "a", "chat_template": template,
        });
        reader.json("tokenizer_config.json", &config, |path| {
            let dir = path.parent().unwrap_or(path);
            Tokenizer::open(dir)?;
            Ok(ChatTemplate::open(dir).map(drop)?)
        })?;
    }
    for eos in [json!(1), json!([1, 0])] {
        let ids = json!({ "bos_token_id": 0, "eos_token_id": eos, "pad_token_id": 1 });
        for name in ["generation_config.json", "config.json"] {
            reader.json(name, &ids, |path| {
                Ok(Tokenizer::open(path.parent().unwrap_or(path)).map(drop)?)
            })?;
        }
    }
    Ok(())
}

#[test]
fn rows() -> Result<()> {
    let reader = Reader::new()?;
    let message = json!({ "role": "user", "content": "hi" });
    for row in [
        json!({ "prompt": "a", "completion": "b", "id": 7 }),
        json!({ "instruction": "do", "input": "x", "output": "y", "answer": 1.5 }),
        json!({ "messages": [message, message] }),
        json!({ "input_ids": [5, 6], "prompt_length": 1, "labels": [-100, 6], "subspace": [0] }),
    ] {
        reader.json("rows.jsonl", &row, |path| Ok(read_records(path, None).map(drop)?))?;
        reader.json("rows.json", &json!([row]), |path| Ok(read_records(path, None).map(drop)?))?;
    }
    let batch = json!({ "input_ids": [[1, 2]], "prompt_lengths": [1], "labels": [[-100, 2]] });
    reader.json("batch.json", &batch, |path| crate::logits::read(path).map(drop))
}
