use reft_models::{Mode, Model, Span, TokenAt, send};
use tch::Tensor;

use crate::{Batch, cross_entropy};

/// The forwards of one batch that an objective has asked for.
pub struct Forwards<'p> {
    /// The model.
    pub model: &'p dyn Model,
    /// Whether this is training.
    pub mode: Mode,
    /// The batch.
    pub batch: &'p Batch,
    /// The output of each forward, in the order of [`Objective::doses`](crate::Objective::doses).
    pub outputs: Vec<Outputs<'p>>,
    /// The cached part of each of the objective's [references](crate::Objective::references), all sequences concatenated:
    /// `[tokens, ..]`.
    pub references: &'p [Vec<Tensor>],
}

/// The hidden states that a forward ended with, from the first wanted column on.
pub struct Outputs<'p> {
    pub(crate) model: &'p dyn Model,
    /// Their columns.
    pub(crate) span: Span<'p>,
    pub(crate) targets: &'p Targets,
    /// After the final norm: `[b, q, d]`.
    pub(crate) hidden_states: Tensor,
}

/// The labels to be predicted from the last hidden states of a forward.
#[derive(Debug)]
pub(crate) struct Targets {
    pub(crate) places: Tensor, // [m], in [b·q]
    pub(crate) labels: Tensor, // [m]
}

impl Outputs<'_> {
    /// `−log p(label)` of every labelled token, `[m]` in f32, in the order of [`Batch::labels`]. The label of a first token counts only
    /// behind virtual tokens.
    ///
    /// Logits are computed only where a label is predicted, in chunks of bounded size.
    pub fn target_losses(&self) -> Tensor {
        let Targets { places, labels } = self.targets;
        let h = self.hidden_states.flatten(0, 1).index_select(0, places);
        cross_entropy(self.model, &h, labels)
    }

    /// The hidden states that labels are predicted from, `[m, d]`, and the labels, `[m]`, row by row. Labels of first tokens are left out,
    /// with or without virtual tokens.
    pub(crate) fn labelled(&self, batch: &Batch) -> (Tensor, Tensor) {
        let Targets { places, labels } = self.targets;
        let h = self.hidden_states.flatten(0, 1);
        let Some(kept) = batch.targets_behind_another() else {
            return (h.index_select(0, places), labels.shallow_clone());
        };
        let kept = send(&Tensor::from_slice(&kept), h.device());
        (h.index_select(0, &places.index_select(0, &kept)), labels.index_select(0, &kept))
    }

    /// The hidden states of some tokens, `[m, d]`.
    ///
    /// # Panics
    /// If a token stands before the first that the objective [wants](crate::Objective::wanted).
    pub fn at(&self, tokens: &[TokenAt]) -> Tensor {
        let place = |at: &TokenAt| self.span.flat_index(at.row, at.token).expect("a wanted token");
        let places: Vec<i64> = tokens.iter().map(place).collect();
        let places = send(&Tensor::from_slice(&places), self.hidden_states.device());
        self.hidden_states.flatten(0, 1).index_select(0, &places)
    }
}
