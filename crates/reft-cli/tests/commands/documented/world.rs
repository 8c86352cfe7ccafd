//! A folder with all files that the documents' command lines name.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use reft_test_support::demo_model;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::lines::root;
use super::small_files;
use crate::Result;
use crate::hub_server::HubServer;
use crate::runs::{Run, command, oracle};
use crate::serve_client::Served;

/// The name of the demo model, and names of other decoders, which are links to it.
const MODEL: &str = "models/SmolLM2-135M-Instruct";
const ALSO_MODELS: [&str; 4] =
    ["DIR", "MODEL", "meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.2-3B"];

/// Encoders, and the oracle's encoders that replace them.
const ENCODERS: [(&str, &str); 2] =
    [("all-MiniLM-L6-v2", "bert"), ("models/all-MiniLM-L6-v2", "bert")];

/// Lines that make the adapters which the documents' first lines use.
const FIRST: [&str; 2] = [
    "train --model DIR --data mine.csv --output runs/style --method lora --rank 4",
    "train --model DIR --data concepts/tale/judge.jsonl --output runs/judge --method lora --rank 4 --objective classification",
];

/// Files that documents use without making them, and files of the same kind from earlier lines.
const MADE: [(&str, &str); 4] = [
    ("runs/facts", "runs/style"),
    ("runs/loreft", "runs/pirate"),
    ("model.gguf", "exported/lora.gguf"),
    ("gemma-3-270m-q4_k_m.gguf", "exported/lora.gguf"),
];

/// Flags that make a line's run small: the flag, its value, and whether it is added to lines without it.
type Sizes = &'static [(&'static str, &'static str, bool)];

fn sizes(words: &[String]) -> Sizes {
    let is_of_model = words.iter().any(|word| word == "--model");
    match words[0].as_str() {
        "train" => &[("--max-steps", "1", true), ("--threads", "1", true)],
        "das" if is_of_model => &[
            ("--layers", "14", true),
            ("--steps", "1", true),
            ("--train-pairs", "4", true),
            ("--test-pairs", "4", true),
        ],
        "generate" | "chat" => &[("--max-new-tokens", "3", true)],
        "steer" => &[("--max-new-tokens", "3", false)],
        "bench" => &[
            ("--model-config", "models/SmolLM2-135M-Instruct/config.json", false),
            ("--prompt-length", "8", true),
            ("--response-length", "4", true),
            ("--steps", "1", true),
            ("--rounds", "1", true),
            ("--generate", "2", false),
            ("--threads", "1", true),
        ],
        "serve" => &[("--port", "0", true), ("--threads", "1", true)],
        _ => &[],
    }
}

/// The folder, and a hub for lines that pull and push.
pub struct World {
    dir: TempDir,
    hub: Option<HubServer>,
}

impl World {
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path();
        tiny_model(&path.join(MODEL))?;
        for (name, of) in ENCODERS {
            link(&oracle("encoders").join(of), &path.join(name))?;
        }
        for name in ALSO_MODELS {
            link(&path.join(MODEL), &path.join(name))?;
        }
        for folder in ["examples", "tools"] {
            link(&root().join(folder), &path.join(folder))?;
        }
        small_files::write(path)?;
        fs::copy(oracle("data/snappy.parquet"), path.join("general.parquet"))?;
        link(&oracle("reft_saved/loreft"), &path.join("saved"))?;
        recipes(&root().join("recipes"), &path.join("recipes"))?;
        let mut world = Self { dir, hub: None };
        for line in FIRST {
            world.run(&shlex::split(line).ok_or(line)?)?;
        }
        let adapter = world.dir.path().join("runs/style");
        let files = ["adapter_config.json", "adapter_model.safetensors"];
        let files = files.map(|name| Ok((name.to_owned(), fs::read(adapter.join(name))?)));
        let files = files.into_iter().collect::<Result<_>>()?;
        world.hub = Some(HubServer::start(files, |_| None)?);
        Ok(world)
    }

    /// Runs a command line, which must succeed.
    pub fn run(&self, words: &[String]) -> Result {
        let words = smaller(words);
        for (name, of) in MADE {
            let (path, of) = (self.dir.path().join(name), self.dir.path().join(of));
            if words.iter().any(|word| word.split('@').next() == Some(name)) && !path.exists() {
                link(&of, &path)?;
            }
        }
        if let Some(output) = words.iter().position(|word| word == "--output") {
            let output = self.dir.path().join(&words[output + 1]);
            if output.is_dir() {
                fs::remove_dir_all(output)?;
            } else if output.exists() {
                fs::remove_file(output)?;
            }
        }
        if words[0] == "serve" {
            let mut served = Served::run(self.command(&words))?;
            served.terminate()?;
            let code = served.code()?;
            return if code == Some(0) {
                Ok(())
            } else {
                Err(format!("{code:?}: {}", served.log()).into())
            };
        }
        let run: Run = self.command(&words).stdin(Stdio::null()).output()?.into();
        if run.code == Some(0) {
            Ok(())
        } else {
            Err(format!("{:?}: {}", run.code, run.stderr).into())
        }
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = command(words);
        command.current_dir(self.dir.path());
        let hub = self.hub.as_ref().filter(|_| words.iter().any(|word| word.starts_with("org/")));
        if let Some(hub) = hub {
            command.env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_OFFLINE", "0");
            command.env("HF_TOKEN", "hf_a-token").env("HF_HUB_CACHE", self.dir.path().join("hub"));
            command
                .env_remove("HF_HOME")
                .env_remove("http_proxy")
                .env("NO_PROXY", "127.0.0.1,localhost");
        }
        command
    }
}

fn link(of: &Path, path: &Path) -> Result {
    fs::create_dir_all(path.parent().ok_or("no folder")?)?;
    Ok(symlink(of, path)?)
}

/// A line's words with sizes that take moments.
fn smaller(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    if words[0] == "train"
        && let Some(at) = words.iter().position(|word| word == "--epochs")
    {
        drop(words.drain(at..at + 2)); // replaced by --max-steps
    }
    for (flag, value, is_added) in sizes(&words) {
        match words.iter().position(|word| word == flag) {
            Some(at) => words[at + 1] = (*value).to_owned(),
            None if *is_added => words.extend([(*flag).to_owned(), (*value).to_owned()]),
            None => {}
        }
    }
    // the hub of the tests has one repository
    for word in &mut words {
        if word.starts_with("org/") {
            *word = "org/name".into();
        }
    }
    words
}

/// A model of random numbers with the demo model's tokenizer and as many layers, each of them tiny.
fn tiny_model(dir: &Path) -> Result {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(demo_model())? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name())
        };
        if name != "model.safetensors" {
            fs::copy(path, dir.join(name))?;
        }
    }
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let (width, inner) = (16, 32);
    for (key, value) in [
        ("hidden_size", width),
        ("intermediate_size", inner),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 4),
    ] {
        config[key] = json!(value);
    }
    fs::write(&path, config.to_string())?;
    let number = |key: &str| config[key].as_u64().map(|n| n as usize).ok_or(format!("no {key}"));
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![number("vocab_size")?, width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    for layer in 0..number("num_hidden_layers")? {
        for (name, shape) in [
            ("input_layernorm", vec![width]),
            ("post_attention_layernorm", vec![width]),
            ("self_attn.q_proj", vec![16, width]),
            ("self_attn.k_proj", vec![8, width]),
            ("self_attn.v_proj", vec![8, width]),
            ("self_attn.o_proj", vec![width, 16]),
            ("mlp.gate_proj", vec![inner, width]),
            ("mlp.up_proj", vec![inner, width]),
            ("mlp.down_proj", vec![width, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut state = 1u32;
    let mut bytes = Vec::new();
    for (_, shape) in &shapes {
        let (is_norm, is_embedding) = (shape.len() == 1, shape[0] > 1000);
        // wide embeddings tell tokens apart, and make some likelier than others
        let width = if is_embedding { 2.0 } else { 0.4 };
        let number = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if is_norm { 1.0 } else { ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * width }
        };
        let numbers = (0..shape.iter().product()).map(number);
        bytes.push(numbers.flat_map(f32::to_le_bytes).collect::<Vec<u8>>());
    }
    let mut views = HashMap::new();
    for ((name, shape), bytes) in shapes.iter().zip(&bytes) {
        views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?);
    }
    Ok(fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None)?)?)
}

/// A copy of the recipes with sizes that take moments.
fn recipes(from: &Path, to: &Path) -> Result {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            recipes(&path, &to)?;
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let is_recipe = path.extension().is_some_and(|end| end == "toml");
        fs::write(to, if is_recipe { small_recipe(&text)? } else { text })?;
    }
    Ok(())
}

/// Bounds on the numbers of a recipe: the table, the key, and the largest value.
const LARGEST: [(&str, &str, i64); 11] = [
    ("data", "train_size", 2),
    ("data", "validation_size", 2),
    ("data", "test_size", 2),
    ("train", "epochs", 1),
    ("train", "max_steps", 1),
    ("network", "examples", 600),
    ("network", "epochs", 2),
    ("search", "train_pairs", 8),
    ("search", "test_pairs", 8),
    ("search", "steps", 1),
    ("search", "batch_size", 8),
];

/// Comparisons have two methods, one rate, one seed and few rows. Tasks generate four tokens, and searches take one step.
fn small_recipe(text: &str) -> Result<String> {
    let mut recipe: toml::Table = text.parse()?;
    for (table, key, largest) in LARGEST {
        if let Some(value) = recipe.get_mut(table).and_then(|table| table.get_mut(key)) {
            *value = value.as_integer().unwrap_or(largest).min(largest).into();
        }
    }
    if let Some(tokens) = recipe.get_mut("max_new_tokens") {
        *tokens = 4.into();
    }
    let sweep = recipe.get_mut("sweep").and_then(toml::Value::as_table_mut);
    for (_, axis) in sweep.into_iter().flat_map(toml::Table::iter_mut) {
        ["values", "quick"].into_iter().for_each(|key| shorten(axis.get_mut(key), 1));
    }
    let Some(methods) = recipe.get_mut("method") else { return Ok(toml::to_string(&recipe)?) };
    shorten(Some(methods), 2);
    for method in methods.as_array_mut().into_iter().flatten() {
        shorten(method.get_mut("lr"), 1);
        let options = method.get_mut("options").and_then(|options| options.get_mut("rank"));
        // the tiny model is 16 wide
        options.into_iter().for_each(|rank| *rank = 4.into());
    }
    shorten(recipe.get_mut("seeds"), 1);
    recipe.remove("quick");
    Ok(toml::to_string(&recipe)?)
}

/// Leaves the first elements of a list.
fn shorten(list: Option<&mut toml::Value>, length: usize) {
    if let Some(list) = list.and_then(toml::Value::as_array_mut) {
        list.truncate(length);
    }
}
