/// Errors of interventions, orthonormal maps, positions and options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hidden states are not of the size that the intervention was built for.
    #[error("hidden state has size {got}, the intervention was built for {expected}")]
    HiddenSize {
        /// Size that the intervention was built for.
        expected: i64,
        /// Size of the last dimension found.
        got: i64,
    },
    /// The subspace has no dimension, or more than the hidden state has.
    #[error("rank {rank} does not fit in hidden_size {hidden_size}; use 1..={hidden_size}")]
    Rank {
        /// The `low_rank_dimension` asked for.
        rank: i64,
        /// Size of the hidden state.
        hidden_size: i64,
    },
    /// A tensor has another shape than its place needs.
    #[error("{name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape needed.
        expected: Vec<i64>,
        /// Shape found.
        got: Vec<i64>,
    },
    /// A tensor that the method needs is not there.
    #[error("tensor {name} is missing, method {method} needs it")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
        /// Method that needs it.
        method: &'static str,
    },
    /// A tensor is there that the method has no use for.
    #[error("tensor {name} is not one of method {method}; remove it or change the method")]
    UnexpectedTensor {
        /// Name of the tensor.
        name: String,
        /// Method that does not know it.
        method: &'static str,
    },
    /// The columns of a rotation are too far from orthonormal to be one.
    #[error(
        "columns of {name} are not orthonormal: largest entry of |RᵀR − I| is {error:.1e}, at most {limit:.0e} is rounding"
    )]
    NotOrthonormal {
        /// Name of the tensor.
        name: String,
        /// Largest entry of |RᵀR − I|.
        error: f64,
        /// Largest entry accepted.
        limit: f64,
    },
    /// The position string is not of the form `f7+l7`.
    #[error(
        "positions {found:?} are not of the form f7+l7, f3 or l1 (first 7 and last 7 prompt tokens): {why}"
    )]
    Positions {
        /// The string found.
        found: String,
        /// The fault.
        why: &'static str,
    },
    /// A name that is none of the accepted ones.
    #[error("unknown {what} {found:?}; use one of {accepted}")]
    UnknownName {
        /// The kind of thing that is named.
        what: &'static str,
        /// The name found.
        found: String,
        /// The names accepted.
        accepted: String,
    },
    /// The method cannot start as the identity with this activation.
    #[error(
        "{method} with act_fn {act_fn} has no start that is the identity; use init = \"reference\""
    )]
    NoIdentityStart {
        /// The method.
        method: &'static str,
        /// The activation.
        act_fn: &'static str,
    },
    /// A bound of the edit that is none.
    #[error(
        "max_edit_norm is {0}, expected a number above 0, a multiple of the hidden state's norm"
    )]
    EditNorm(f64),
    /// Dropout outside of 0 ≤ p < 1.
    #[error("dropout is {0}, expected a probability with 0 <= p < 1")]
    Dropout(f64),
    /// An option with an impossible value.
    #[error("{option} is {found}, expected {expected}")]
    OptionValue {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// The allowed values.
        expected: &'static str,
    },
    /// A subspace names a coordinate that does not exist.
    #[error("subspace coordinate {index} is out of range, low_rank_dimension is {rank}")]
    Subspace {
        /// The coordinate named.
        index: i64,
        /// The number of coordinates.
        rank: i64,
    },
}

/// Result with this crate's [`enum@Error`].
pub type Result<T> = std::result::Result<T, Error>;
