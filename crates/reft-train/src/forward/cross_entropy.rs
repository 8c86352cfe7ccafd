use reft_models::Model;
use tch::{Kind, Reduction, Tensor};

/// Logits that are held at once: more are computed a chunk of tokens at a time.
const LOGITS_AT_ONCE: i64 = 1 << 24;

/// `−log p(label)` `[m]` of hidden states `[m, d]`.
pub fn cross_entropy(model: &dyn Model, h: &Tensor, labels: &Tensor) -> Tensor {
    let rows = (LOGITS_AT_ONCE / model.description().vocab_size).max(1);
    in_chunks(model, h, labels, rows)
}

/// [`cross_entropy`] with the logits of `rows` of them at a time.
///
/// With a frozen head, the gradient of a chunk is taken as soon as its losses are known, so that its logits can go: what is returned has
/// the values of the losses, and the gradients by way of `Σ h · ∂loss/∂h`, a sum for each of them.
fn in_chunks(model: &dyn Model, h: &Tensor, labels: &Tensor, rows: i64) -> Tensor {
    let head = model.head();
    let of_chunk = |h: &Tensor, labels: &Tensor| {
        let logits = head.logits(h);
        logits.cross_entropy_loss(labels, None::<Tensor>, Reduction::None, -100, 0.0)
    };
    if h.size()[0] <= rows {
        return of_chunk(h, labels);
    }
    let chunks = h.split(rows, 0).into_iter().zip(labels.split(rows, 0));
    if !h.requires_grad() || model.trains_head() {
        let losses: Vec<Tensor> = chunks.map(|(h, labels)| of_chunk(&h, &labels)).collect();
        return Tensor::cat(&losses, 0);
    }
    let (mut losses, mut gradients) = (Vec::new(), Vec::new());
    for (h, labels) in chunks {
        let h = h.detach().set_requires_grad(true);
        let own = of_chunk(&h, &labels);
        gradients.extend(Tensor::run_backward(&[own.sum(Kind::Float)], &[&h], false, false));
        losses.push(own.detach());
    }
    let gradients = Tensor::cat(&gradients, 0); // a loss depends on its own row of h alone
    let carrier = (h * gradients).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    Tensor::cat(&losses, 0) + (&carrier - carrier.detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use reft_models::Decoder;
    use tch::Device;

    /// Logits a few at a time, all at once: loss and gradient are the same.
    #[test]
    fn chunks_of_logits_change_nothing() -> Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let d = decoder.description().hidden_size;
        let start = Tensor::arange(11 * d, (Kind::Float, Device::Cpu)).sin().view([11, d]);
        let labels = Tensor::from_slice(&[3i64, 9, 27, 81, 5, 25, 125, 7, 49, 2, 4]);
        let run = |rows| {
            let h = start.detach().set_requires_grad(true);
            let loss = in_chunks(&decoder, &h, &labels, rows).sum(Kind::Float);
            (&loss * 0.5).backward();
            (loss.double_value(&[]), h.grad())
        };
        let (loss, gradient) = run(11);
        assert!(gradient.abs().max().double_value(&[]) > 1e-2);
        for rows in [1, 3, 4] {
            let (chunked, same_gradient) = run(rows);
            assert!((loss - chunked).abs() < 1e-6 * loss, "{loss} {chunked}"); // f32
            let difference = (same_gradient - &gradient).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{rows} at a time: {difference:e}"); // f32, entries of about 0.1
            let _guard = tch::no_grad_guard();
            let without = in_chunks(&decoder, &start, &labels, rows).sum(Kind::Double);
            let without = without.double_value(&[]);
            assert!((loss - without).abs() < 1e-6 * loss);
        }
        Ok(())
    }
}
