use reft_models::{AdapterStack, Model, PaddingSide, Row, TaskHead};
use tch::Tensor;

use crate::Result;

/// Outputs `[n, k]` of a head in f32, for rows run through the adapters, without autograd.
///
/// # Errors
/// As [`AdapterStack::hidden_states`].
pub fn head_outputs(
    head: &TaskHead,
    model: &dyn Model,
    stack: &AdapterStack,
    rows: Vec<Row>,
) -> Result<Tensor> {
    let before = stack.virtual_tokens();
    let tokens: Vec<usize> =
        rows.iter().map(|row| before + head.token(row.input_ids.len())).collect();
    let states = stack.hidden_states(model, rows, PaddingSide::Right)?;
    let read = states.iter().zip(tokens).map(|(h, token)| h.get(token as i64));
    let _guard = tch::no_grad_guard();
    Ok(head.outputs(&Tensor::stack(&read.collect::<Vec<_>>(), 0)))
}
