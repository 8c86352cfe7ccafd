use reft_models::{Layout, PaddingSide, Place, Row, TokenAt};
use tch::Tensor;

use crate::Result;
use crate::model::Model;

/// A token of a source run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceToken {
    /// The source's input.
    pub row: Row,
    /// The token whose hidden states are wanted.
    pub token: usize,
}

/// Runs sources, `batch_size` at a time, and keeps the hidden states of their tokens at every place: `[n, d]` for each place.
///
/// One run serves all places.
///
/// # Errors
/// If the model has no such place, or a row no such token.
pub fn source_states(
    model: &dyn Model,
    sources: &[SourceToken],
    places: &[Place],
    batch_size: usize,
) -> Result<Vec<Tensor>> {
    let mut found: Vec<Vec<Tensor>> = places.iter().map(|_| Vec::new()).collect();
    for sources in sources.chunks(batch_size.max(1)) {
        let rows = sources.iter().map(|source| source.row.clone()).collect();
        let layout = Layout::new(rows, PaddingSide::Right)?;
        let tokens = sources.iter().enumerate();
        let tokens: Vec<_> =
            tokens.map(|(row, source)| TokenAt { row, token: source.token }).collect();
        let wanted = places.iter().map(|place| (place.clone(), tokens.clone())).collect();
        for (found, states) in found.iter_mut().zip(model.collect(&layout, wanted)?) {
            found.push(states);
        }
    }
    Ok(found.iter().map(|states| Tensor::cat(states, 0)).collect())
}
