use std::collections::BTreeMap;

use reft_core::LinearEdit;
use tch::{Kind, Tensor};

use crate::{TokenEdit, send};

/// `h` `[b, t, d]` with some of its tokens edited, each by one edit: `h_i + s_i Dᵢᵀ(A_i h_i + b_i)`. All edits of the same rank and number of
/// tokens take two products together, even if they belong to different adapters. Works without autograd only.
pub(crate) fn add_token_edits(h: Tensor, edits: &[TokenEdit]) -> Tensor {
    let mut alike: BTreeMap<(i64, usize), Vec<&TokenEdit>> = BTreeMap::new();
    for edit in edits.iter().filter(|edit| !edit.tokens.is_empty()) {
        let rank = edit.edit.bias.size()[0];
        alike.entry((rank, edit.tokens.len())).or_default().push(edit);
    }
    if alike.is_empty() {
        return h;
    }
    let (width, size) = (h.size()[2], h.size());
    let flat = h.reshape([-1, width]);
    let mut edited = flat.shallow_clone();
    for ((_, tokens), edits) in alike {
        let stack = |of: fn(&LinearEdit) -> Tensor| {
            let all: Vec<Tensor> = edits.iter().map(|edit| of(&edit.edit)).collect();
            Tensor::stack(&all, 0)
        };
        let indices: Vec<i64> = edits.iter().flat_map(|edit| edit.tokens.iter().copied()).collect();
        let indices = send(&Tensor::from_slice(&indices), h.device());
        let n = edits.len() as i64;
        let own = flat.index_select(0, &indices).to_kind(Kind::Float);
        let own = own.view([n, tokens as i64, width]); // [n, m, d]
        let weights = stack(|edit| edit.weight.shallow_clone()); // [n, r, d]
        let biases = stack(|edit| edit.bias.shallow_clone()).unsqueeze(1); // [n, 1, r]
        let directions = stack(|edit| edit.directions.shallow_clone()); // [n, d, r]
        let mut source = own.bmm(&weights.transpose(1, 2)) + biases; // [n, m, r]
        if edits.iter().any(|edit| edit.scaling != 1.0) {
            let scaling: Vec<f32> = edits.iter().map(|edit| edit.scaling as f32).collect();
            source *= send(&Tensor::from_slice(&scaling).view([n, 1, 1]), h.device());
        }
        let change = source.bmm(&directions.transpose(1, 2)); // [n, m, d]
        let change = change.view([-1, width]).to_kind(h.kind());
        edited = edited.index_add(0, &indices, &change);
    }
    edited.view(size.as_slice())
}
