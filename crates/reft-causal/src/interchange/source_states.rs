use std::collections::HashMap;

use reft_models::{
    AdapterStack, Layout, Model, PaddingSide, Place, Result, Row, TokenAt, collect, send,
};
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
/// All places share the runs, and so do sources with equal rows and tokens.
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
    let (which, distinct) = numbered(sources, wanted);
    let mut found: Vec<Vec<Tensor>> = wanted.iter().map(|_| Vec::new()).collect();
    for of_batch in distinct.chunks(batch_size.max(1)) {
        let rows = of_batch.iter().map(|&source| sources[source].clone()).collect();
        let layout = Layout::new(rows, PaddingSide::Right)?;
        let wanted = wanted.iter().map(|(place, tokens)| {
            let tokens = of_batch.iter().map(|&source| tokens[source]).enumerate();
            (place.clone(), tokens.map(|(row, token)| TokenAt { row, token }).collect())
        });
        let states = collect(model, &AdapterStack::EMPTY, &layout, wanted.collect())?;
        found.iter_mut().zip(states).for_each(|(found, states)| found.push(states));
    }
    let which = send(&Tensor::from_slice(&which), model.device());
    Ok(found.iter().map(|states| Tensor::cat(states, 0).index_select(0, &which)).collect())
}

/// Sources with equal rows and tokens share a run. Returns for each source the number of its run, and for each run its first source.
fn numbered(sources: &[Row], wanted: &[(Place, Vec<usize>)]) -> (Vec<i64>, Vec<usize>) {
    let mut numbers = HashMap::new();
    let mut distinct = Vec::new();
    let number = |(source, row): (usize, &Row)| {
        let tokens: Vec<usize> = wanted.iter().map(|(_, tokens)| tokens[source]).collect();
        let next = distinct.len();
        let number = *numbers.entry((row.clone(), tokens)).or_insert(next);
        if number == next {
            distinct.push(source);
        }
        number as i64
    };
    (sources.iter().enumerate().map(number).collect(), distinct)
}
