//! A model of four layers with a tokenizer of letters, and a question that it can learn: which letter is the last?

use std::path::{Path, PathBuf};

use reft_bench::{CompareConfig, Comparison, ConfigFile, LoadedComparison, TaskConfig};
use serde_json::{Value, json};
use tch::Device;
use tempfile::TempDir;

pub type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A directory with a model and data; everything is removed with it.
pub struct Bench {
    directory: TempDir,
}

impl Bench {
    pub fn new() -> TestResult<Self> {
        tch::set_num_threads(1); // tests run in parallel
        let bench = Self { directory: tempfile::tempdir()? };
        let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/tiny_llama");
        let model = bench.path("model");
        std::fs::create_dir(&model)?;
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(oracle.join(file), model.join(file))?;
        }
        std::fs::write(model.join("tokenizer.json"), tokenizer().to_string())?;
        std::fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#)?;
        bench.write("train.tsv", &rows(0, 60))?;
        bench.write("test.tsv", &rows(100, 24))?;
        bench.write("neutral.txt", &"the quick brown fox jumps over a lazy dog ".repeat(40))?;
        bench.write("task.toml", TASK)?;
        Ok(bench)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> TestResult {
        Ok(std::fs::write(self.path(name), text)?)
    }

    /// The configuration, with a piece of its text replaced.
    pub fn config(&self, from: &str, to: &str) -> reft_bench::Result<CompareConfig> {
        assert!(CONFIG.contains(from), "{from} is not in the configuration");
        let text = CONFIG.replace(from, to);
        let mut config = ConfigFile::parse(text, &self.path("compare.toml"))?.config;
        config.model = self.path("model").to_string_lossy().into_owned();
        config.data.directory = Some(self.directory.path().to_owned());
        config.neutral = Some(self.path("neutral.txt"));
        Ok(config)
    }

    pub fn load(&self, config: CompareConfig) -> reft_bench::Result<LoadedComparison> {
        let task = TaskConfig::open(&self.path("task.toml"))?;
        let comparison = Comparison { config, task, train_task: None };
        LoadedComparison::new(comparison, "reft compare", &self.path("out"), Device::Cpu)
    }
}

pub const TASK: &str = r#"name = "last letter"
type = "choice"
columns = ["text", "label"]
prompt = "{text}:"
answer = "label"
template = "plain"

[labels]
0 = "n"
1 = "y"
"#;

pub const CONFIG: &str = r#"task = "task.toml"
seeds = [0, 1]

[data]
train = "train.tsv"
test = ["test.tsv"]
train_size = 40
validation_size = 20

[train]
max_steps = 30
batch_size = 8
warmup_ratio = 0.1

[[method]]
method = "loreft"
lr = [1e-2, 2e-2]
options = { rank = 2, positions = "f2+l2", share_weights = true }

[[method]]
method = "lora"
lr = [5e-3, 1e-2]
options = { rank = 2 }
"#;

/// Rows of letters; the label is whether the last one is an a. No two rows are the same.
fn rows(first: usize, n: usize) -> String {
    let row = |i: usize| {
        let letters: String =
            (0..5).map(|k| char::from(b'a' + ((i * 7 + k * k * 3 + i * k) % 26) as u8)).collect();
        let label = i % 2;
        format!(
            "{letters}{}{}\t{label}\n",
            char::from(b'a' + (i / 26 % 26) as u8),
            ["b", "a"][label]
        )
    };
    (first..first + n).map(row).collect()
}

fn tokenizer() -> Value {
    let letters = "abcdefghijklmnopqrstuvwxyz :.".chars();
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<pad>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert((*token).to_owned(), id.into());
    }
    vocab.extend(letters.zip(3..).map(|(letter, id)| (letter.to_string(), id.into())));
    let special = |id: i64, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<pad>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}
