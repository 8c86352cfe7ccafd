use reft_models::{AdapterStack, Layout, Model, PaddingSide, Place, Result, Row, TokenAt, collect};
use tch::Tensor;

/// A token of a source run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceToken {
    /// The source's input.
    pub row: Row,
    /// The token whose hidden states are wanted.
    pub token: usize,
}

/// Runs sources, `batch_size` at a time, and keeps hidden states `[n, d]` for each of `wanted`: a place, and a token of every source.
///
/// One run serves all that is wanted.
///
/// # Errors
/// If the model has no such place, or a row no such token.
///
/// # Panics
/// Unless there is a token for every source.
pub fn source_states(
    model: &dyn Model,
    sources: &[Row],
    wanted: &[(Place, Vec<usize>)],
    batch_size: usize,
) -> Result<Vec<Tensor>> {
    let mut found: Vec<Vec<Tensor>> = wanted.iter().map(|_| Vec::new()).collect();
    let batch_size = batch_size.max(1);
    for (i, rows) in sources.chunks(batch_size).enumerate() {
        let layout = Layout::new(rows.to_vec(), PaddingSide::Right)?;
        let first = i * batch_size;
        let of_batch = wanted.iter().map(|(place, tokens)| {
            let tokens = tokens[first..first + rows.len()].iter().enumerate();
            (place.clone(), tokens.map(|(row, &token)| TokenAt { row, token }).collect())
        });
        for (found, states) in
            found.iter_mut().zip(collect(model, &AdapterStack::EMPTY, &layout, of_batch.collect())?)
        {
            found.push(states);
        }
    }
    Ok(found.iter().map(|states| Tensor::cat(states, 0)).collect())
}
