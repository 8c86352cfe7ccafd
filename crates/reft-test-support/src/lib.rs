//! Helpers for the tests of all crates: recorded numbers of other implementations, and assertions of closeness.
//!
//! The crate knows libtorch and safetensors, and no crate of this workspace, so the tests of every crate can use it.
//!
//! ```
//! use reft_test_support::assert_values_close;
//!
//! // f64: 0.1 and 0.2 are rounded
//! assert_values_close("sums", &[0.1 + 0.2, 1.0], &[0.3, 1.0], 1e-15);
//! ```

mod closeness;
mod documentation;
mod files;
mod numbers;

pub use closeness::{
    GRADIENTS, LOGITS, assert_close, assert_values_close, largest_difference, of_logits,
    relative_difference,
};
pub use documentation::check_page;
pub use files::{
    Outcome, Tensors, Values, change_values, demo_model, folders, oracle, oracle_text, tensors,
    values,
};
pub use numbers::{alone, disturb, own_tokens};
