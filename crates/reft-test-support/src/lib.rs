//! What the tests of all crates share: where the recorded numbers of other implementations are, how they are read, and how closeness is
//! asserted. It knows libtorch and safetensors, and no crate of this workspace, so that the tests of every one of them can use it.

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
