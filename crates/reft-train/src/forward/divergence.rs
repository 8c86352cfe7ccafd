//! How far a distribution of next tokens is from another one: `KL(p ‖ q) = Σ p (log p − log q)`, in nats.

use reft_models::Model;
use tch::{Kind, Tensor};

use crate::forward::logits_in_chunks::rows_at_once;
use crate::of_logits;

/// For each of the hidden states `[m, d]`: the `k` likeliest next tokens `[m, k]`, and their `log p` `[m, k + 1]`. The last `log p` is of all
/// other tokens together.
pub(crate) fn likeliest(model: &dyn Model, h: &Tensor, k: usize) -> [Tensor; 2] {
    let head = model.head().dense();
    let of_chunk = |h: Tensor| {
        let logits = head.logits(&h);
        let (_, tokens) = logits.topk(k.min(logits.size()[1] as usize) as i64, -1, true, true);
        let log_p = with_the_rest(&logits, &tokens);
        (tokens, log_p)
    };
    let chunks = h.split(rows_at_once(model), 0).into_iter().map(of_chunk);
    let (tokens, log_p): (Vec<Tensor>, Vec<Tensor>) = chunks.unzip();
    [Tensor::cat(&tokens, 0), Tensor::cat(&log_p, 0)]
}

/// `KL(p ‖ q)` `[m]` of `p` from [`likeliest`] and `q` after hidden states `[m, d]`; all other tokens count as one.
pub(crate) fn divergence_of_likeliest(
    model: &dyn Model,
    h: &Tensor,
    [tokens, log_p]: [&Tensor; 2],
) -> Tensor {
    of_logits(model, h, &[tokens, log_p], &|logits, beside| {
        divergence(&beside[1], &with_the_rest(logits, &beside[0]))
    })
}

/// `KL(p ‖ q)` `[m]` of the distributions after `reference` and after `h`, both `[m, d]`.
pub fn divergence_of_hidden_states(model: &dyn Model, h: &Tensor, reference: &Tensor) -> Tensor {
    of_logits(model, h, &[reference], &|logits, beside| {
        let of = |logits: &Tensor| logits.log_softmax(-1, Kind::Float);
        let log_p = tch::no_grad(|| of(&model.head().logits(&beside[0])));
        divergence(&log_p, &of(logits))
    })
}

/// `log p` of some tokens `[m, k]`, and of all others together: `[m, k + 1]`. The others are summed from their own logits: `1 − Σ p` would be
/// rounding noise where the tokens are nearly certain.
fn with_the_rest(logits: &Tensor, tokens: &Tensor) -> Tensor {
    let log_sum = |logits: &Tensor| logits.logsumexp([-1i64].as_slice(), true); // [m, 1]
    let others = logits.scatter_value(-1, tokens, f64::NEG_INFINITY);
    let own = logits.gather(-1, tokens, false);
    Tensor::cat(&[own, log_sum(&others)], -1) - log_sum(logits)
}

/// `KL(p ‖ q)` `[m]` of `log p` and `log q`, `[m, n]`; entries with `p = 0` add nothing.
fn divergence(log_p: &Tensor, log_q: &Tensor) -> Tensor {
    let is_never = log_p.isneginf();
    let ratio = (log_p - log_q).masked_fill(&is_never, 0.0);
    (log_p.exp() * ratio).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::forward::logits_in_chunks::in_chunks;
    use reft_models::Decoder;
    use tch::Device;

    /// Hidden states, and others not far from them.
    fn two(decoder: &Decoder) -> (Tensor, Tensor) {
        let d = decoder.description().hidden_size;
        let waves = Tensor::arange(5 * d, (Kind::Float, Device::Cpu)).view([5, d]);
        ((&waves * 0.7).sin() * 3.0, (waves * 1.3).cos() * 3.0)
    }

    /// With every token kept, the divergence is exact; with fewer it is smaller; between equal distributions it is 0.
    #[test]
    fn what_is_kept_gives_the_divergence_of_the_whole() -> Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let (p, q) = two(&decoder);
        let numbers = |tensor: Tensor| Vec::<f64>::try_from(tensor.to_kind(Kind::Double));
        let whole = numbers(divergence_of_hidden_states(&decoder, &q, &p))?;
        let of = |k: usize, q: &Tensor| {
            let [tokens, log_p] = likeliest(&decoder, &p, k);
            numbers(divergence_of_likeliest(&decoder, q, [&tokens, &log_p]))
        };
        let (all, some) = (of(1000, &q)?, of(7, &q)?);
        for i in 0..5 {
            assert!((all[i] - whole[i]).abs() < 1e-5 * whole[i], "{all:?} {whole:?}"); // f32
            assert!(0.1 * whole[i] < some[i] && some[i] < 0.999 * whole[i], "{some:?} {whole:?}");
            assert!(of(7, &p)?[i].abs() < 1e-6);
        }
        Ok(())
    }

    /// Logits a few at a time give the gradients of all at once.
    #[test]
    fn chunks_change_nothing() -> Result<()> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let decoder = Decoder::open(model.as_ref(), Kind::Float, Device::Cpu)?;
        let (p, q) = two(&decoder);
        let [tokens, log_p] = likeliest(&decoder, &p, 7);
        let run = |rows: i64| {
            let q = q.detach().set_requires_grad(true);
            let kl = in_chunks(&decoder, &q, &[&tokens, &log_p], rows, &|logits, beside| {
                divergence(&beside[1], &with_the_rest(logits, &beside[0]))
            });
            kl.sum(Kind::Float).backward();
            (kl.detach(), q.grad())
        };
        let (plain, gradient) = run(5);
        assert!(gradient.abs().max().double_value(&[]) > 1e-2);
        for rows in [1, 2] {
            let (kl, same) = run(rows);
            assert!((kl - &plain).abs().max().double_value(&[]) < 1e-6);
            assert!((same - &gradient).abs().max().double_value(&[]) < 1e-6);
        }
        Ok(())
    }

    /// Where the kept tokens have all but 1e-7 of the probability, the rest is still exact.
    #[test]
    fn a_rest_below_rounding_is_no_infinity() -> Result<()> {
        let logits = Tensor::from_slice(&[30f32, 0.0, 1.0, -2.0]).unsqueeze(0);
        let tokens = Tensor::from_slice(&[0i64]).unsqueeze(0);
        let log_p =
            Vec::<f64>::try_from(with_the_rest(&logits, &tokens).view([-1]).to_kind(Kind::Double))?;
        let rest = (1f64 + 1f64.exp() + (-2f64).exp()).ln() - 30.0;
        assert!((log_p[1] - rest).abs() < 1e-5, "{log_p:?} {rest}"); // f32
        Ok(())
    }
}
