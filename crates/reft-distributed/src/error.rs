use std::io;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors between the processes of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There are no process groups on this platform.
    #[error(
        "a run in several processes needs the process groups of libtorch, which this program calls on Linux on x86-64 alone: elsewhere they were not tried; use one process"
    )]
    Unsupported,
    /// The launcher's variables for this process are incomplete, or cannot be read.
    #[error("{found}; {advice}")]
    Environment {
        /// The variables and their values.
        found: String,
        /// The advice.
        advice: String,
    },
    /// The processes of a run were started with different options.
    #[error(
        "the processes of the run do not agree on {what}: rank {rank} has {own}, rank {other} has {others}; start all of them alike"
    )]
    Disagreement {
        /// The fact that differs.
        what: String,
        /// This process.
        rank: usize,
        /// This process's value.
        own: String,
        /// The process with the other value.
        other: usize,
        /// The other's value.
        others: String,
    },
    /// Processes did not connect, stopped, or ended.
    #[error("{} {what}; {reason}", name(ranks, *world))]
    Lost {
        /// Their ranks; empty for the launcher.
        ranks: Vec<usize>,
        /// Whether this process reports the loss: the first of the remaining processes does.
        tells: bool,
        /// Number of processes.
        world: usize,
        /// How they were lost: "did not come within 30 s".
        what: String,
        /// The operation that failed for it.
        reason: String,
    },
    /// A process cannot be started.
    #[error("cannot start the processes of the run")]
    Start(#[source] io::Error),
    /// An error of libtorch that no lost process has caused.
    #[error("libtorch's process group: {reason}")]
    Engine {
        /// libtorch's words.
        reason: String,
    },
    /// GPUs cannot be connected as asked.
    #[error("--reduce nccl: {reason}")]
    Gpus {
        /// The obstacle of a process, and advice.
        reason: String,
    },
    /// A tensor that cannot be shared.
    #[error(
        "tensors of kind {found} cannot be shared between processes; f32, bf16, f16, f64 and i64 can"
    )]
    Kind {
        /// Its kind.
        found: String,
    },
    /// libtorch refused an operation.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// The name of an option's value is unknown.
    #[error(transparent)]
    Core(#[from] reft_core::Error),
    /// The trainer refuses the place in the run.
    #[error(transparent)]
    Train(#[from] reft_train::Error),
}

impl Error {
    /// Whether another process of the run reports the same loss: the first of the remaining processes reports it.
    pub fn is_told_elsewhere(&self) -> bool {
        matches!(self, Self::Lost { tells: false, .. })
    }
}

/// "rank 1 of 4 processes (counted from 0)", "ranks 1, 3 of …".
fn name(ranks: &[usize], world: usize) -> String {
    if ranks.is_empty() {
        return format!("the launcher of the run's {world} processes");
    }
    let numbers: Vec<String> = ranks.iter().map(usize::to_string).collect();
    let ending = if ranks.len() == 1 { "" } else { "s" };
    format!("rank{ending} {} of {world} processes (counted from 0)", numbers.join(", "))
}
