use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of reading data and of training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data file that is not JSON.
    #[error("{} is broken JSON at line {line}, column {column}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the file, counted from 1.
        line: usize,
        /// Column of that line, counted from 1.
        column: usize,
        /// The parser's message.
        reason: String,
    },
    /// A row of a data file that is not one of the accepted forms.
    #[error("{}, {place}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// "line 3" of a JSONL file, "row 3" of a list; counted from 1.
        place: String,
        /// The value found, and the value expected.
        reason: String,
    },
    /// A data file from which no rows can be read.
    #[error("{}: {reason}", path.display())]
    DataFile {
        /// The file.
        path: PathBuf,
        /// The value found, the value expected, and the advice.
        reason: String,
    },
    /// A data file without a row.
    #[error("{} holds no example; every line is one, or the file is a list of them", path.display())]
    NoExamples {
        /// The file.
        path: PathBuf,
    },
    /// Rows whose labels no head can learn.
    #[error("{reason}")]
    Labels {
        /// The value found, the value expected, and the advice.
        reason: String,
    },
    /// A row that cannot become an example.
    #[error("example {id}: {reason}")]
    Refused {
        /// The example.
        id: String,
        /// The value found, and the value expected.
        reason: String,
    },
    /// An example's text cannot be tokenised or rendered, or it names a coordinate that the adapters do not have.
    #[error("example {id}")]
    Example {
        /// The example.
        id: String,
        /// The operation that failed.
        source: Box<reft_models::Error>,
    },
    /// No token of an example counts in the loss.
    #[error(
        "example {id} has no label: none of its {length} tokens is predicted from earlier ones; give it a completion, or drop the example"
    )]
    NoLabel {
        /// The example.
        id: String,
        /// Its length in tokens.
        length: usize,
    },
    /// No label is left in an example after it was cut.
    #[error(
        "example {id} has no label left: it is {length} tokens long and cut to {max_length}; raise max_length or drop the example"
    )]
    NoTarget {
        /// The example.
        id: String,
        /// Its length in tokens.
        length: usize,
        /// Largest allowed number of tokens.
        max_length: usize,
    },
    /// There is nothing to train on.
    #[error(
        "{train} examples are left to train on after {validation} are held out; give more data or hold out fewer"
    )]
    TooFewExamples {
        /// Examples to train on.
        train: usize,
        /// Examples held out.
        validation: usize,
    },
    /// The directory holds a run already.
    #[error(
        "{} holds a training run already ({found}); resume it, or name another directory",
        path.display()
    )]
    RunExists {
        /// The directory.
        path: PathBuf,
        /// The files of a run that are there.
        found: &'static str,
    },
    /// The resumed run was started with other settings.
    #[error(
        "cannot resume: {field} was {saved} when the run was started, now it is {now}; use the same, or start anew in another directory"
    )]
    ResumeMismatch {
        /// The difference.
        field: String,
        /// Its value at the start.
        saved: String,
        /// Its value now.
        now: String,
    },
    /// A checkpoint that this program did not write.
    #[error("checkpoint {} cannot be used: {reason}", path.display())]
    Checkpoint {
        /// Its directory.
        path: PathBuf,
        /// The value found, and the value expected.
        reason: String,
    },
    /// The loss, or the gradient, is NaN or infinite.
    #[error(
        "{what} is {value} at step {step}, on examples {}; lower lr, or look at these examples; nothing was updated with it",
        ids.join(", ")
    )]
    NotFinite {
        /// "loss" or "gradient norm".
        what: &'static str,
        /// NaN or ±∞.
        value: f64,
        /// The step, counted from 1.
        step: usize,
        /// The examples of the micro-batch, or of the whole step.
        ids: Vec<String>,
    },
    /// The loss of examples that are evaluated is NaN or infinite.
    #[error(
        "the loss is {value} on examples {}; look at these examples, at the adapter, and at the kind (f16 ends at 65504)",
        ids.join(", ")
    )]
    EvaluationNotFinite {
        /// NaN or ±∞.
        value: f64,
        /// The examples that were computed together.
        ids: Vec<String>,
    },
    /// Gradients overflow f16 at every loss scale.
    #[error(
        "gradients overflow f16 at step {step} even at loss scale {scale}, on examples {}; use kind bf16 or f32",
        ids.join(", ")
    )]
    Overflow {
        /// The step, counted from 1.
        step: usize,
        /// The loss scale at which the step was given up.
        scale: f64,
        /// The examples of the step.
        ids: Vec<String>,
    },
    /// Memory ran out, of the GPU or of the host.
    #[error("memory ran out in step {step}: {reason}; nothing was updated with it")]
    OutOfMemory {
        /// The step, counted from 1.
        step: usize,
        /// libtorch's message.
        reason: String,
    },
    /// Summing over the processes of a run failed.
    #[error(
        "cannot sum over the processes of the run: {reason}; start them again from the checkpoint"
    )]
    Reduction {
        /// The fault, and the process.
        reason: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A process of the run has failed where this one has not.
    #[error("another process of the run has failed; it says why")]
    Elsewhere,
    /// A weight that should be frozen requires a gradient.
    #[error(
        "weight {name} of the base model requires a gradient and is no parameter of the adapter; freeze it"
    )]
    NotFrozen {
        /// The weight.
        name: String,
    },
    /// Adapters and an objective without anything to train.
    #[error("adapter {method} has no parameter to train")]
    NothingToTrain {
        /// The adapters' methods.
        method: String,
    },
    /// The objective needs the plain model, which a method has changed.
    #[error(
        "{objective} compares with the plain model, and {method} trains the model's own weights; use another method"
    )]
    NoPlainModel {
        /// The objective.
        objective: &'static str,
        /// The adapters' methods.
        method: String,
    },
    /// The optimizer's saved state belongs to other parameters.
    #[error("optimizer state: tensor {name} {reason}")]
    OptimizerState {
        /// The tensor.
        name: String,
        /// The value found, and the value expected.
        reason: String,
    },
    /// An option has an invalid value.
    #[error(transparent)]
    Core(#[from] reft_core::Error),
    /// A model, a tokenizer or an adapter refused something.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// The error for an example of `length` tokens without a label, or without one left after the cut to `max_length`.
    pub fn without_label(id: impl Into<String>, length: usize, max_length: usize) -> Self {
        let id = id.into();
        match length > max_length {
            true => Self::NoTarget { id, length, max_length },
            false => Self::NoLabel { id, length },
        }
    }
}
