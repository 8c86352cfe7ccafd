//! A batch through the model: made ready, run forward, and differentiated.

pub(crate) mod head_outputs;
pub(crate) mod learner;

pub(crate) mod ready_batch;

pub(crate) mod cross_entropy;
pub(crate) mod divergence;
pub(crate) mod logits_in_chunks;
pub(crate) mod outputs;

pub(crate) mod checkpointed_pass;
pub(crate) mod pass;
