use std::ops::Range;

use reft_models::{Model, Place, Row};
use tch::Tensor;

use crate::{Alignment, Error, Result, SourceToken, source_states};

/// The swaps of one variable, one entry for each counterfactual.
#[derive(Debug)]
pub struct VariableSwap {
    /// Where the variable is thought to be.
    pub place: Place,
    /// Which of the alignments of an [`Alignment`] it uses. Variables that share one should have coordinates of their own.
    pub alignment: usize,
    /// Its coordinates in the rotation, or its neurons.
    pub coordinates: Range<i64>,
    /// The base's token that is edited; `None` where the counterfactual does not swap the variable.
    pub tokens: Vec<Option<usize>>,
    /// The sources' hidden states at the place, `[n, d]`.
    pub sources: Tensor,
}

impl VariableSwap {
    /// Runs the sources of a variable. For each counterfactual that swaps it: the base's token, and the source's.
    ///
    /// # Errors
    /// Errors of [`source_states`].
    pub fn collect(
        model: &dyn Model,
        place: Place,
        (alignment, coordinates): (usize, Range<i64>),
        counterfactuals: Vec<Option<(usize, SourceToken)>>,
        batch_size: usize,
    ) -> Result<Self> {
        let n = counterfactuals.len() as i64;
        let tokens = counterfactuals.iter().map(|c| c.as_ref().map(|(token, _)| *token)).collect();
        let numbered = counterfactuals.into_iter().enumerate();
        let (numbers, sources): (Vec<i64>, Vec<SourceToken>) =
            numbered.filter_map(|(i, c)| Some((i as i64, c?.1))).unzip();
        let (rows, tokens_of_sources): (Vec<Row>, Vec<usize>) =
            sources.into_iter().map(|source| (source.row, source.token)).unzip();
        let wanted = (place.clone(), tokens_of_sources);
        let found = source_states(model, &rows, std::slice::from_ref(&wanted), batch_size)?;
        let found = &found[0]; // [swapped, d]
        let numbers = Tensor::from_slice(&numbers).to_device(found.device());
        let nothing = Tensor::zeros([n, found.size()[1]], (found.kind(), found.device()));
        let sources = nothing.index_copy(0, &numbers, found);
        Ok(Self { place, alignment, coordinates, tokens, sources })
    }

    /// Checks that it fits the counterfactuals and its alignment.
    pub(crate) fn check(&self, alignment: &Alignment, counterfactuals: usize) -> Result<()> {
        let refuse = |reason: String| {
            Err(Error::Counterfactuals { reason: format!("swap at {}: {reason}", self.place) })
        };
        let (tokens, sources) = (self.tokens.len(), self.sources.size());
        let &[n, d] = &sources[..] else {
            return refuse(format!("sources have shape {sources:?}, expected [n, d]"));
        };
        if n != tokens as i64 || tokens != counterfactuals {
            return refuse(format!(
                "{tokens} tokens and {n} sources; give one of each for each of the {counterfactuals} counterfactuals"
            ));
        }
        let Some((hidden_size, available)) = alignment.sizes(self.alignment) else {
            return refuse(format!("there is no alignment {}", self.alignment));
        };
        if hidden_size != d {
            return refuse(format!(
                "hidden states have size {d}, the rotations are of size {hidden_size}"
            ));
        }
        let Range { start, end } = self.coordinates;
        if start < 0 || start >= end || end > available {
            return refuse(format!("coordinates {start}..{end} are not within 0..{available}"));
        }
        Ok(())
    }
}
