use reft_models::Model;
use tch::{Kind, Tensor};

/// Largest number of logits held at once: more are computed in chunks of tokens.
const LOGITS_AT_ONCE: i64 = 1 << 24;

/// Computes a number per hidden state, from its logits and its rows of further tensors `[m, …]`.
pub(crate) type OfLogits<'f> = &'f dyn Fn(&Tensor, &[Tensor]) -> Tensor;

/// Numbers `[m]` computed from the logits of hidden states `[m, d]`, and from further tensors `[m, …]`.
pub(crate) fn of_logits(
    model: &dyn Model,
    h: &Tensor,
    beside: &[&Tensor],
    of_chunk: OfLogits,
) -> Tensor {
    in_chunks(model, h, beside, rows_at_once(model), of_chunk)
}

/// Hidden states whose logits are held at once.
pub(crate) fn rows_at_once(model: &dyn Model) -> i64 {
    (LOGITS_AT_ONCE / model.description().vocab_size).max(1)
}

/// [`of_logits`] with the logits of `rows` hidden states at a time.
///
/// With a frozen head, each chunk's gradient is computed at once, so that its logits can be freed. The result holds the numbers, and passes
/// gradients on by `Σ h · ∂number/∂h`, one sum per number.
pub(crate) fn in_chunks(
    model: &dyn Model,
    h: &Tensor,
    beside: &[&Tensor],
    rows: i64,
    of_chunk: OfLogits,
) -> Tensor {
    let head = model.head().dense();
    if h.size()[0] <= rows {
        let beside: Vec<Tensor> = beside.iter().map(|own| own.shallow_clone()).collect();
        return of_chunk(&head.logits(h), &beside);
    }
    let of_beside: Vec<Vec<Tensor>> = beside.iter().map(|own| own.split(rows, 0)).collect();
    let beside = |i: usize| -> Vec<Tensor> {
        of_beside.iter().map(|chunks| chunks[i].shallow_clone()).collect()
    };
    let chunks = h.split(rows, 0).into_iter().enumerate();
    if !h.requires_grad() || model.trains_head() {
        let numbers: Vec<Tensor> =
            chunks.map(|(i, h)| of_chunk(&head.logits(&h), &beside(i))).collect();
        return Tensor::cat(&numbers, 0);
    }
    let (mut numbers, mut gradients) = (Vec::new(), Vec::new());
    for (i, h) in chunks {
        let h = h.detach().set_requires_grad(true);
        let own = of_chunk(&head.logits(&h), &beside(i));
        gradients.extend(Tensor::run_backward(&[own.sum(Kind::Float)], &[&h], false, false));
        numbers.push(own.detach());
    }
    let gradients = Tensor::cat(&gradients, 0); // a number depends on its own row of h alone
    let carrier = (h * gradients).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    Tensor::cat(&numbers, 0) + (&carrier - carrier.detach())
}
