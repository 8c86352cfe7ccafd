use std::cell::OnceCell;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::{Span, send};

/// The keys that each query of a pass sees.
#[derive(Debug)]
pub(crate) enum AttentionMask {
    /// Query and key columns are the same, with or without a prefix before them; each query sees the prefix and the keys up to its own.
    Causal,
    /// Every query sees every key: one new token after tokens without padding, or an encoder's tokens without padding.
    Full,
    /// A mask to add to the scores, 0 where a query sees a key and −∞ elsewhere, repeated for every query head of a group:
    /// `[b, 1, groups · queries, keys]`.
    Explicit(Tensor),
    /// One token of each row, behind the keys of its row.
    OneToken(OneToken),
}

/// The keys that the newest token of each row sees.
#[derive(Debug)]
pub(crate) struct OneToken {
    /// Columns of each row.
    pub(crate) seen: Vec<Range<usize>>,
    /// The columns of the longest row.
    keys: usize,
    groups: i64,
    options: (Kind, Device),
    tensor: OnceCell<Tensor>,
}

impl AttentionMask {
    /// The mask of a pass whose keys are `prefix` extra ones, then all columns of the batch up to the last of the pass.
    ///
    /// A query sees the prefix and the tokens of its row up to itself, at most the last `window` of all these. If the model is not causal, it
    /// also sees the same number of later tokens. Padding sees only itself, so that no softmax is empty; its output is unused.
    pub(crate) fn new(
        span: &Span,
        prefix: usize,
        (window, is_causal): (Option<i64>, bool),
        groups: i64,
        (kind, device): (Kind, Device),
    ) -> Self {
        if let Some(lengths) = span.layout.lengths() {
            return Self::going_on(lengths, window, groups, (kind, device));
        }
        let keys = span.columns.end;
        let reach = window.map_or(usize::MAX, |window| window as usize);
        if !is_causal && prefix + keys <= reach && span.layout.is_unpadded() {
            return Self::Full;
        }
        if is_causal && span.layout.is_left_aligned() && prefix + keys <= reach {
            // Padding comes after all tokens of its row, so causal attention does not see it.
            if span.columns.start == 0 && keys <= span.layout.width() {
                return Self::Causal;
            }
            if span.width() == 1 && keys <= span.layout.width() {
                return Self::Full;
            }
        }
        if is_causal && span.width() == 1 && prefix + keys <= reach && span.layout.is_unpadded() {
            return Self::Full;
        }
        let rows = span.layout.batch_size();
        let mut mask = vec![0u8; rows * span.width() * (prefix + keys)];
        let mut queries = mask.chunks_exact_mut(prefix + keys);
        for row in 0..rows {
            let tokens = span.layout.columns(row);
            for (query, seen) in span.columns.clone().zip(&mut queries) {
                let is_token =
                    |column: usize| tokens.contains(&column) || column >= span.layout.width();
                if !is_token(query) {
                    seen[prefix + query] = 1;
                    continue;
                }
                // A window counts the prefix and tokens, but not right padding between prompt and generated tokens.
                let mut left = reach;
                for key in (0..=query).rev().filter(|&key| is_token(key)).take(reach) {
                    seen[prefix + key] = 1;
                    left -= 1;
                }
                seen[prefix.saturating_sub(left)..prefix].fill(1);
                if !is_causal {
                    let later = (query + 1..keys).filter(|&key| is_token(key));
                    later.take(reach - 1).for_each(|key| seen[prefix + key] = 1);
                }
            }
        }
        let shape = [rows as i64, 1, span.width() as i64, (prefix + keys) as i64];
        let is_hidden = send(&Tensor::from_slice(&mask).view(shape), device).eq(0);
        let mask = Tensor::zeros(shape, (kind, device)).masked_fill_(&is_hidden, f64::NEG_INFINITY);
        Self::Explicit(mask.repeat([1, 1, groups, 1]))
    }

    /// The mask of one new token per row after `lengths[i]` keys of row `i`.
    fn going_on(
        lengths: &[usize],
        window: Option<i64>,
        groups: i64,
        options: (Kind, Device),
    ) -> Self {
        let keys = lengths.iter().map(|length| length + 1).max().unwrap_or(0);
        let reach = window.map_or(usize::MAX, |window| window as usize);
        let seen = |length: &usize| (length + 1).saturating_sub(reach)..length + 1;
        let seen = lengths.iter().map(seen).collect();
        Self::OneToken(OneToken { seen, keys, groups, options, tensor: OnceCell::new() })
    }

    /// The mask to add to the scores, as in [`Self::Explicit`]; `None` if all of it is 0.
    ///
    /// # Panics
    /// For [`Self::Causal`], which libtorch knows by itself.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Full => None,
            Self::Explicit(mask) => Some(mask),
            Self::OneToken(rows) => rows.tensor(),
            Self::Causal => unreachable!("invariant: a causal mask is not asked for its tensor"),
        }
    }
}

impl OneToken {
    /// It is made on the device, when it is first asked for.
    pub(crate) fn tensor(&self) -> Option<&Tensor> {
        if self.seen.iter().all(|seen| *seen == (0..self.keys)) {
            return None;
        }
        Some(self.tensor.get_or_init(|| {
            let (kind, device) = self.options;
            let bounds = |of: fn(&Range<usize>) -> usize| {
                let bounds: Vec<i64> = self.seen.iter().map(|seen| of(seen) as i64).collect();
                send(&Tensor::from_slice(&bounds).view([-1, 1, 1, 1]), device)
            };
            let columns = Tensor::arange(self.keys as i64, (Kind::Int64, device));
            let is_later = columns.ge_tensor(&bounds(|seen| seen.end));
            let is_hidden = is_later.logical_or(&columns.lt_tensor(&bounds(|seen| seen.start)));
            let mask = Tensor::zeros(is_hidden.size(), (kind, device));
            mask.masked_fill(&is_hidden, f64::NEG_INFINITY).repeat([1, 1, self.groups, 1])
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, PaddingSide, Result, Row};

    fn mask(
        padding: PaddingSide,
        columns: std::ops::Range<usize>,
        prefix: usize,
    ) -> Result<AttentionMask> {
        let rows = [4, 2].map(|length| Row::prompt(vec![1; length])).to_vec();
        let layout = Layout::new(rows, padding)?;
        let span = Span { layout: &layout, columns };
        Ok(AttentionMask::new(&span, prefix, (None, true), 1, (Kind::Float, Device::Cpu)))
    }

    #[test]
    fn prompts_that_begin_together_need_no_mask() -> Result<()> {
        for prefix in [0, 3] {
            let right = mask(PaddingSide::Right, 0..4, prefix)?;
            assert!(matches!(right, AttentionMask::Causal), "{right:?}");
            let left = mask(PaddingSide::Left, 0..4, prefix)?;
            assert!(matches!(left, AttentionMask::Explicit(_)), "{left:?}");
            // the shorter row has padding after its prompt
            let generated = mask(PaddingSide::Right, 4..5, prefix)?;
            assert!(matches!(generated, AttentionMask::Explicit(_)), "{generated:?}");
        }
        Ok(())
    }
}
