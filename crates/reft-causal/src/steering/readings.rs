use reft_core::Detection;
use reft_models::{AdapterStack, Layout, Model, PaddingSide, Place, Row, Site, TokenAt, collect};
use tch::{Kind, Tensor};

use crate::Result;

/// The hidden states of every token of some texts at a site, `[t, d]` each.
fn states(model: &dyn Model, site: Site, texts: &[Row]) -> Result<Vec<Tensor>> {
    const BATCH: usize = 8;
    let mut found = Vec::with_capacity(texts.len());
    for rows in texts.chunks(BATCH) {
        let layout = Layout::new(rows.to_vec(), PaddingSide::Right)?;
        let lengths: Vec<i64> = rows.iter().map(|row| row.input_ids.len() as i64).collect();
        let of_row =
            |(row, n): (usize, &i64)| (0..*n as usize).map(move |token| TokenAt { row, token });
        let tokens = lengths.iter().enumerate().flat_map(of_row).collect();
        let all =
            collect(model, &AdapterStack::EMPTY, &layout, vec![(Place::whole(site), tokens)])?;
        found.extend(all[0].split_with_sizes(&lengths[..], 0));
    }
    Ok(found)
}

/// The median norm of the hidden states of some texts at a site; the median, since the first token's may be a hundred times the others'.
///
/// # Errors
/// If the model has no such site, or a text is empty.
pub fn median_norm(model: &dyn Model, site: Site, texts: &[Row]) -> Result<f64> {
    let all = Tensor::cat(&states(model, site, texts)?, 0).to_kind(Kind::Float);
    let norms = all.norm_scalaropt_dim(2.0, [-1i64].as_slice(), false); // [tokens]
    Ok(norms.median().double_value(&[]))
}

/// The latents `relu(vᵀ h)` of every token of some texts at a site, for a direction `v` `[d]`.
///
/// # Errors
/// As [`median_norm`].
pub fn latents(model: &dyn Model, site: Site, v: &Tensor, texts: &[Row]) -> Result<Vec<Vec<f64>>> {
    let _guard = tch::no_grad_guard();
    let of_text = |h: &Tensor| {
        let h = h.unsqueeze(0);
        let mask = Tensor::ones([1, h.size()[1]], (Kind::Float, h.device()));
        let found = Detection::of(&h, v, &mask, 1)?.latents.squeeze_dim(0);
        Ok(Vec::<f64>::try_from(found.to_kind(Kind::Double)).expect("invariant: a vector"))
    };
    states(model, site, texts)?.iter().map(of_text).collect()
}

/// How well scores tell two kinds of texts apart: the share of pairs, one of each kind, in which the first kind's is higher; ties count half.
/// 0.5 is chance. `None` unless there are texts of both kinds.
pub fn area_under_curve(scores: &[(f64, bool)]) -> Option<f64> {
    let of_kind =
        |kind: bool| scores.iter().filter(move |(_, is)| *is == kind).map(|(score, _)| *score);
    let (mut sum, mut pairs) = (0.0, 0.0);
    for first in of_kind(true) {
        for second in of_kind(false) {
            sum += if first > second {
                1.0
            } else if first == second {
                0.5
            } else {
                0.0
            };
            pairs += 1.0;
        }
    }
    (pairs > 0.0).then(|| sum / pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let scores = [(3.0, true), (1.0, true), (1.0, false), (0.0, false), (2.0, false)];
        // 3 is above all three; 1 is equal, above, below
        assert_eq!(area_under_curve(&scores), Some(4.5 / 6.0));
        assert_eq!(area_under_curve(&scores[..2]), None);
    }
}
