//! The errors of this crate.

use std::path::PathBuf;

/// The result of this crate's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors when models, tokenizers and their files are read, written or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The action: "read", "write", …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The model cannot be placed on the devices named.
    #[error("the model cannot be put on these devices: {reason}")]
    Placement {
        /// The value found, and the value expected.
        reason: String,
    },
    /// The path to write to exists already.
    #[error("{} exists already and is not an empty directory; remove it or name another place", .0.display())]
    OutputExists(PathBuf),
    /// Another process writes into the directory.
    #[error(
        "{} is in use by another run{}; wait for its end, or name another directory",
        path.display(), process.map_or_else(String::new, |id| format!(" (process {id})"))
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, if known.
        process: Option<u32>,
    },
    /// A file is not valid JSON, or has unexpected fields.
    #[error("{} does not hold the JSON that belongs there", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why, with the line.
        source: crate::JsonReason,
    },
    /// A line of a text file that cannot be used.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The value found, and the value expected.
        reason: String,
    },
    /// A safetensors file whose header does not describe its data.
    #[error("{} is not a whole safetensors file; it may be cut short: fetch or write it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The fault of the header.
        source: safetensors::SafeTensorError,
    },
    /// A model that GGUF cannot represent, or that llama.cpp would compute differently.
    #[error(
        "the model has no form in GGUF: {reason}; write it as a directory (--merge without --to), and try llama.cpp's own converter on that"
    )]
    NoGgufForm {
        /// The part of the model that cannot be represented.
        reason: String,
    },
    /// A file has contents that this crate does not support.
    #[error("cannot read {}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The value found, and the value expected.
        reason: String,
    },
    /// A model directory without weights.
    #[error("{} holds neither model.safetensors nor model.safetensors.index.json", .0.display())]
    NoWeights(PathBuf),
    /// The checkpoint does not have the requested tensor.
    #[error("{} holds no tensor {name}", path.display())]
    UnknownTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// The checkpoint's tensors are not the model's.
    #[error("the tensors of {} are not the model's{}", path.display(), describe_mismatch(missing, unexpected, misshapen))]
    WeightMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Tensors that the model needs and the checkpoint lacks.
        missing: Vec<String>,
        /// Tensors that the checkpoint holds and the model does not know.
        unexpected: Vec<String>,
        /// Tensors of another shape: name, shape found, shape expected.
        misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
    },
    /// A tensor's element type has no counterpart here.
    #[error("tensor {name} has dtype {dtype}, which cannot be {action}")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// Its element type.
        dtype: String,
        /// "read" or "written".
        action: &'static str,
    },
    /// Two tensors of one file have the same name.
    #[error("tensor {0} is given twice; every name must be given once")]
    DuplicateTensor(String),
    /// The tokenizer could not be built, or text could not be tokenised.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat was requested, but the tokenizer has no chat template.
    #[error("{} brings no chat template; use a chat model, or give plain prompts", .0.display())]
    NoChatTemplate(PathBuf),
    /// The chat template cannot be read, or refuses these messages.
    #[error("the chat template fails: {0}")]
    ChatTemplate(String),
    /// No model was found under this name.
    #[error("no model {name:?}: {reason}")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A repository of the hub that cannot be read or written.
    #[error("{name}: {reason}")]
    Hub {
        /// The repository.
        name: String,
        /// The action, and its outcome.
        reason: String,
    },
    /// A batch without a row, or with a row without a token.
    #[error("the batch has no rows, or a row without tokens; every row needs a token")]
    EmptyBatch,
    /// A prompt is longer than the row that it is part of.
    #[error("prompt_length {prompt_length} is past the row's {length} tokens")]
    PromptLength {
        /// The prompt's length.
        prompt_length: usize,
        /// The row's length.
        length: usize,
    },
    /// The number of token types of a row is not its number of tokens.
    #[error(
        "a row has {length} tokens and {found} token types; give each token one, or leave them out"
    )]
    TokenTypes {
        /// Number of types.
        found: usize,
        /// Number of tokens.
        length: usize,
    },
    /// A token has a type that the model does not have.
    #[error("row {row} has a token of type {id}, and the model has types 0..={}", types - 1)]
    TokenType {
        /// The row.
        row: usize,
        /// The type.
        id: i64,
        /// Number of types of the model.
        types: i64,
    },
    /// The request needs a model that predicts next tokens, and the model is an encoder.
    #[error(
        "{model_type} is an encoder, which predicts no next tokens, and {what} needs them; use a decoder. Of an encoder `reft logits --hidden-states` writes hidden states, `reft inspect` describes it, and `reft train --objective classification` or `regression` trains a head on it"
    )]
    Encoder {
        /// The model's family.
        model_type: String,
        /// The request.
        what: String,
    },
    /// A row names coordinates of a subspace, and no adapter edits in one.
    #[error(
        "it names coordinates of a subspace, and {method} edits in none; leave its subspace out"
    )]
    NoSubspace {
        /// The adapters' methods.
        method: String,
    },
    /// A key-value cache has no room for the columns of a pass.
    #[error("the key-value cache has room for {room} more columns, {needed} are to be appended")]
    CacheFull {
        /// Columns that still fit.
        room: i64,
        /// Columns of the pass.
        needed: i64,
    },
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is not in the vocabulary of {vocab_size} (ids 0..={})", vocab_size - 1)]
    TokenId {
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocab_size: i64,
    },
    /// Rows do not fit into the model's context.
    #[error(
        "{}; the model's context is {limit}: {}",
        describe_long(rows, *before, *new_tokens),
        advise_long(*room, *new_tokens)
    )]
    ContextFull {
        /// The rows that are too long, with their tokens.
        rows: Vec<(String, usize)>,
        /// The model's `max_position_embeddings`.
        limit: usize,
        /// Number of virtual tokens and of prefix tokens before every row.
        before: usize,
        /// Tokens to be generated after a row.
        new_tokens: usize,
        /// Tokens that a row may have.
        room: usize,
    },
    /// The model's scores of the next token are not numbers.
    #[error(
        "the logits of prompt {index} are NaN after {generated} generated tokens; the weights or an adapter hold NaN, or the kind overflows: try f32"
    )]
    NanLogits {
        /// The prompt's place in the list.
        index: usize,
        /// Tokens generated before.
        generated: usize,
    },
    /// The model's configuration needs a feature that this decoder lacks, or is inconsistent.
    #[error("config.json: {0}")]
    Config(String),
    /// An adapter and a model, or an adapter's files, do not fit together.
    #[error("{reason}")]
    Adapter {
        /// The value found, the value expected, and the advice.
        reason: String,
    },
    /// Adapters that cannot be used at once.
    #[error("{first} and {second} cannot be combined: {reason}")]
    NotCombinable {
        /// One method.
        first: String,
        /// Another.
        second: String,
        /// Why not.
        reason: &'static str,
    },
    /// A place names coordinates that its site does not have.
    #[error("{place}: coordinates {found:?} are not within 0..{width}; use a range of these")]
    Coordinates {
        /// The place.
        place: crate::Place,
        /// The coordinates named.
        found: std::ops::Range<i64>,
        /// Number of coordinates of the site.
        width: i64,
    },
    /// A place names a layer that the model does not have.
    #[error("there is no layer {layer}, the model has {layers}; use 0..{layers}")]
    NoSuchLayer {
        /// The layer named.
        layer: usize,
        /// Number of layers.
        layers: usize,
    },
    /// A row does not have the token named.
    #[error("row {row} has {length} tokens, there is no token {token}; use 0..{length}")]
    NoSuchToken {
        /// The row.
        row: usize,
        /// The token named.
        token: usize,
        /// Number of tokens of the row; 0 if there is no such row.
        length: usize,
    },
    /// There are more or fewer source hidden states than tokens to put them into.
    #[error(
        "{place}: {sources} source hidden states for {tokens} tokens of the base; give one for each"
    )]
    Sources {
        /// The place.
        place: crate::Place,
        /// Tokens of the base.
        tokens: usize,
        /// Source hidden states given.
        sources: usize,
    },
    /// A run did not reach a place whose hidden states were requested.
    #[error(
        "the run showed no hidden states, or not all, of {0}; name a site of the model and tokens that the run computes"
    )]
    NotReached(crate::Place),
    /// Something failed at a site of the model.
    #[error("at {site}")]
    At {
        /// Where.
        site: crate::Site,
        /// The action that failed.
        source: Box<Error>,
    },
    /// An intervention or a position string is wrong.
    #[error(transparent)]
    Core(#[from] reft_core::Error),
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

/// Kinds of mismatch that a message lists; more are only counted.
const TOLD: usize = 8;

/// Rows that a message names; more are only counted.
const NAMED: usize = 5;

/// The rows that do not fit into a context, and the tokens beside them.
fn describe_long(rows: &[(String, usize)], before: usize, new_tokens: usize) -> String {
    let name = |(name, length): &(String, usize)| format!("{name} has {length} tokens");
    let mut text = rows.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if rows.len() > NAMED {
        text += &format!(", and {} more are too long", rows.len() - NAMED);
    }
    let before =
        (before > 0).then(|| format!("{before} virtual tokens or tokens of a prefix before it"));
    let after = (new_tokens > 0).then(|| format!("{new_tokens} new ones after it"));
    let beside: Vec<String> = before.into_iter().chain(after).collect();
    match beside.is_empty() {
        true => text,
        false => format!("{text}, beside {}", beside.join(" and ")),
    }
}

/// Advice about rows that do not fit into a context.
fn advise_long(room: usize, new_tokens: usize) -> String {
    match (room, new_tokens) {
        (0, 0) => "nothing is left for rows: use fewer virtual tokens".to_owned(),
        (0, _) => "nothing is left for prompts: lower max_new_tokens".to_owned(),
        (room, 0) => format!("shorten to {room} (max_length cuts examples), or leave out"),
        (room, _) => format!("shorten to {room}, or lower max_new_tokens"),
    }
}

/// The names of a mismatch; names that differ only by the layer share one line.
fn describe_mismatch(
    missing: &[String],
    unexpected: &[String],
    misshapen: &[(String, Vec<i64>, Vec<i64>)],
) -> String {
    let kind = |name: &str| {
        let parts =
            name.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
        parts.collect::<Vec<_>>().join(".")
    };
    let mut kinds: Vec<(String, String, usize)> = Vec::new(); // problem, example, count
    let mut add =
        |said: String, example: String| match kinds.iter_mut().find(|(own, ..)| *own == said) {
            Some((.., n)) => *n += 1,
            None => kinds.push((said, example, 1)),
        };
    missing
        .iter()
        .for_each(|name| add(format!("missing: {}", kind(name)), format!("missing: {name}")));
    let of_unexpected =
        |name: &String| (format!("unexpected: {}", kind(name)), format!("unexpected: {name}"));
    unexpected.iter().map(of_unexpected).for_each(|(said, example)| add(said, example));
    for (name, found, expected) in misshapen {
        let shapes = format!("has shape {found:?}, expected {expected:?}");
        add(format!("{} {shapes}", kind(name)), format!("{name} {shapes}"));
    }
    let told = kinds.iter().take(TOLD).map(|(said, example, n)| match n {
        1 => format!("\n  {example}"),
        n => format!("\n  {said} ({n} tensors)"),
    });
    let rest: usize = kinds.iter().skip(TOLD).map(|(.., n)| n).sum();
    let more = (rest > 0).then(|| format!("\n  and {rest} tensors more"));
    told.chain(more).collect()
}
