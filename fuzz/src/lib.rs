//! Readers of untrusted files, each as a function of bytes.
//!
//! A reader may refuse bytes. It must not panic, loop without end, or take memory out of proportion to their number: `cargo xtask fuzz` looks
//! for such inputs.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use reft_bench::{ConfigFile, TaskConfig};
use reft_causal::DasRecipe;
use reft_core::{PositionRule, Positions, TokenGroup};
use reft_methods::{AdapterSummary, check_adapter, load_torch_pickle};
use reft_models::{
    ChatTemplate, DecoderConfig, Gguf, Message, ModelDescription, load_safetensors,
    load_safetensors_metadata,
};
use reft_train::read_records;
use serde_json::json;
use tempfile::TempDir;

thread_local! {
    static MODEL: ModelDescription = tiny_model();
    static DIRECTORY: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Writes a file of this process, in `/dev/shm` where there is one.
fn file(name: &str, data: &[u8]) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let new = || TempDir::new_in(parent).expect("a directory for the inputs");
    let path = DIRECTORY.with(|directory| directory.get_or_init(new).path().join(name));
    fs::write(&path, data).expect("room for an input");
    path
}

/// A `.safetensors` file: its header, its metadata, its tensors.
pub fn safetensors(data: &[u8]) {
    let path = file("model.safetensors", data);
    drop(load_safetensors_metadata(&path));
    drop(load_safetensors(&path));
}

/// A GGUF file: its header, the model that it describes, its tokenizer and chat template.
pub fn gguf(data: &[u8]) {
    let Ok(gguf) = Gguf::open(&file("model.gguf", data)) else { return };
    if let Ok(config) = gguf.config() {
        drop(DecoderConfig::from_json(config, gguf.path()).map(|config| config.describe()));
    }
    drop(gguf.tokenizer_json());
    drop(gguf.tokenizer_config());
}

/// A file of `torch.save`.
pub fn pickles(data: &[u8]) {
    drop(load_torch_pickle(&file("model.bin", data)));
}

/// A model's `config.json`.
pub fn model_configs(data: &[u8]) {
    let Ok(json) = serde_json::from_slice(data) else { return };
    drop(DecoderConfig::from_json(json, Path::new("config.json")).map(|config| config.describe()));
}

/// An adapter's configuration in PEFT's form or, after an odd first byte, a ReFT adapter's.
pub fn adapter_configs(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let names = ["adapter_config.json", "reft_config.json"];
    let path = file(names[usize::from(kind % 2)], text);
    let directory = path.parent().expect("a file has a directory");
    drop(AdapterSummary::read(directory));
    MODEL.with(|model| drop(check_adapter(directory, model)));
    fs::remove_file(path).expect("the file was there");
}

fn tiny_model() -> ModelDescription {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": 32
    });
    let config = DecoderConfig::from_json(config, Path::new("config.json"));
    config.expect("a configuration of transformers").describe()
}

/// Positions such as `f7+l7`, and the tokens of a prompt that they name.
pub fn positions(data: &[u8]) {
    let Some((length, text)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(positions) = text.parse::<Positions>() else { return };
    for rule in [PositionRule::Paper, PositionRule::Pyreft] {
        let n = usize::from(*length);
        let found = positions.in_prompt(n, rule);
        let [first, last] = [TokenGroup::First, TokenGroup::Last].map(|group| found.group(group));
        let tokens: Vec<usize> = first.chain(last).collect();
        assert!(tokens.is_sorted_by(|a, b| a < b), "{text} in {n} tokens: {tokens:?}");
        assert!(tokens.iter().all(|token| *token < n), "{text} in {n} tokens: {tokens:?}");
    }
    assert_eq!(positions.to_string().parse::<Positions>().ok(), Some(positions));
}

/// Rows of data.
pub fn rows(data: &[u8]) {
    drop(read_records(&file("rows.jsonl", data), None));
}

/// A chat template, which renders a conversation with and without tools.
pub fn chat_templates(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let tokens = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
    let Ok(template) = ChatTemplate::new(source, tokens) else { return };
    let messages = [("system", "s"), ("user", "a b"), ("assistant", "c")]
        .map(|(role, text)| Message::new(role, text));
    drop(template.render(&messages, false));
    let tools = [json!({ "type": "function", "function": { "name": "f", "parameters": {} } })];
    drop(template.render_with_tools(&messages, Some(&tools), true));
}

/// A recipe of a comparison, a task, or an alignment search.
pub fn recipes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new("recipe.toml");
    drop(ConfigFile::parse(text.to_owned(), path));
    drop(TaskConfig::parse(text, path));
    drop(DasRecipe::open(&file("recipe.toml", data)));
}
