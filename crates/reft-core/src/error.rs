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
    /// A tensor has an unexpected shape.
    #[error("{name} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape needed.
        expected: Vec<i64>,
        /// Shape found.
        got: Vec<i64>,
    },
    /// A tensor of the method is missing.
    #[error("tensor {name} is missing, method {method} needs it")]
    MissingTensor {
        /// Name of the tensor.
        name: String,
        /// Method that needs it.
        method: &'static str,
    },
    /// A tensor does not belong to the method.
    #[error("tensor {name} is not one of method {method}; remove it or change the method")]
    UnexpectedTensor {
        /// Name of the tensor.
        name: String,
        /// The method.
        method: &'static str,
    },
    /// The columns of a rotation are not orthonormal.
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
    /// An unknown name.
    #[error("unknown {what} {found:?}; use one of {accepted}")]
    UnknownName {
        /// The kind of name, such as "method".
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
    /// The bound of the edit is not a positive number.
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
