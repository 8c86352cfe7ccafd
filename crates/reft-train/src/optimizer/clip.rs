use reft_models::beside;
use tch::{Kind, Tensor};

/// Scales gradients, in place, so that the 2-norm of all of them together is at most `max_norm`; returns the norm before, a
/// scalar.
///
/// As `torch.nn.utils.clip_grad_norm_`: the factor is `min(1, max_norm / (norm + 1e-6))`. `max_norm = 0` only measures. With several `groups`
/// (the first dimension of every gradient), each group is scaled by its own norm.
pub(crate) fn clip_grad_norm(grads: &[Tensor], max_norm: f64, groups: i64) -> Tensor {
    let of_groups = |grad: &Tensor| {
        let grad = grad.to_kind(Kind::Float).reshape([groups, -1]);
        grad.norm_scalaropt_dim(2, [1i64].as_slice(), false) // [groups]
    };
    let norms: Vec<Tensor> = grads.iter().map(of_groups).collect();
    let Some(first) = norms.first() else {
        return Tensor::zeros([], (Kind::Float, tch::Device::Cpu));
    };
    let norms: Vec<Tensor> = norms.iter().map(|own| beside(own, first)).collect();
    let norms = Tensor::stack(&norms, 0).norm_scalaropt_dim(2, [0i64].as_slice(), false); // [groups]
    if max_norm > 0.0 {
        let factors = ((&norms + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
        for grad in grads {
            let mut shape = vec![1; grad.dim()]; // [groups, 1, ..]
            shape.iter_mut().take(1).for_each(|first| *first = groups);
            let mut grad = grad.shallow_clone();
            let _scaled = grad.g_mul_(&beside(&factors, &grad).view(&shape[..]));
        }
    }
    norms.norm()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grads() -> Vec<Tensor> {
        vec![Tensor::from_slice(&[2f32, 4.0]), Tensor::from_slice(&[4f32])]
    }

    #[test]
    fn the_norm_is_that_of_all_gradients_together() {
        let grads = grads(); // √(4 + 16 + 16) = 6
        assert_eq!(clip_grad_norm(&grads, 0.0, 1).double_value(&[]), 6.0);
        assert_eq!(grads[0].double_value(&[1]), 4.0);
        assert_eq!(clip_grad_norm(&grads, 3.0, 1).double_value(&[]), 6.0);
        let factor = 3.0 / (6.0 + 1e-6);
        for (clipped, whole) in grads.iter().zip(self::grads()) {
            let difference = (clipped - whole * factor).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{difference}"); // f32 rounding of numbers up to 2
        }
    }

    #[test]
    fn a_norm_below_the_limit_changes_nothing() {
        let grads = grads();
        assert_eq!(clip_grad_norm(&grads, 6.5, 1).double_value(&[]), 6.0);
        assert_eq!(grads[0].double_value(&[1]), 4.0);
    }

    #[test]
    fn groups_are_clipped_by_themselves() {
        let grads = [
            Tensor::from_slice(&[0f32, 3.0, 0.0, 0.3]).view([2, 2]),
            Tensor::from_slice(&[4f32, 0.4]).view([2, 1, 1]),
        ]; // norms 5 and 0.5
        assert!((clip_grad_norm(&grads, 1.0, 2).double_value(&[]) - 25.25f64.sqrt()).abs() < 1e-6);
        let expected = [[0.0, 0.6, 0.0, 0.3].as_slice(), &[0.8, 0.4]];
        for (clipped, expected) in grads.iter().zip(expected) {
            let difference = clipped.flatten(0, -1) - Tensor::from_slice(expected);
            assert!(difference.abs().max().double_value(&[]) < 1e-6); // f32, and the 1e-6 of the factor
        }
    }

    #[test]
    fn a_gradient_that_is_no_number_gives_a_norm_that_is_none() {
        let grads = [Tensor::from_slice(&[1f32, f32::NAN])];
        assert!(clip_grad_norm(&grads, 1.0, 1).double_value(&[]).is_nan());
    }
}
