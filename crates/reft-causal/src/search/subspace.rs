//! Untrained subspaces: the start of a search, and its controls.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

/// The mean hidden state of each value in sorted order, minus the mean of these means: `[k, d]` in f64 from hidden states `[n, d]`.
fn centred_means(h: &Tensor, values: &[String]) -> Tensor {
    let mut groups: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for (i, value) in values.iter().enumerate() {
        groups.entry(value).or_default().push(i as i64);
    }
    let mean = |rows: &Vec<i64>| {
        let rows = Tensor::from_slice(rows).to_device(h.device());
        h.index_select(0, &rows).to_kind(Kind::Double).mean_dim(
            [0i64].as_slice(),
            false,
            Kind::Double,
        )
    };
    let means: Vec<Tensor> = groups.values().map(mean).collect();
    let means = Tensor::stack(&means, 0); // [k, d]
    &means - means.mean_dim([0i64].as_slice(), true, Kind::Double)
}

/// The leading directions in which the mean hidden state varies with the variable; for a variable of two values the first is the
/// difference of means. Further directions, up to `rank`, are random, from libtorch's generator.
///
/// # Shapes
/// `h` `[n, d]`, one of `values` for each; result `[1, d, rank]`, orthonormal columns.
pub(crate) fn mean_directions(h: &Tensor, values: &[String], rank: i64) -> Tensor {
    let d = h.size()[1];
    let (_, s, v) = centred_means(h, values).svd(true, true); // V [d, min(k, d)]
    // k means minus their mean span at most k − 1 directions
    let cut = s.max().double_value(&[]) * 1e-6;
    let found = s.gt(cut).sum(Kind::Int64).int64_value(&[]).min(rank);
    let random = Tensor::randn([d, rank - found], (Kind::Double, tch::Device::Cpu));
    let columns = Tensor::cat(&[v.narrow(1, 0, found), random.to_device(h.device())], 1);
    let (q, upper) = Tensor::linalg_qr(&columns, "reduced");
    let signs = upper.diagonal(0, 0, 1).sign(); // keeps columns that were already orthonormal
    (q * signs).to_kind(Kind::Float).unsqueeze(0)
}

/// The `rank` neurons that follow the variable most: with the largest ratio of the variance of the means to the variance over all hidden
/// states.
///
/// # Shapes
/// `h` `[n, d]`, one of `values` for each; result `[1, d, rank]`, columns of the identity.
pub(crate) fn leading_neurons(h: &Tensor, values: &[String], rank: i64) -> Tensor {
    let d = h.size()[1];
    let between =
        centred_means(h, values).square().mean_dim([0i64].as_slice(), false, Kind::Double);
    let all = h.to_kind(Kind::Double).var_dim([0i64].as_slice(), false, false);
    let (_, neurons) = (between / (all + 1e-12)).topk(rank, 0, true, true);
    let identity = Tensor::eye(d, (Kind::Float, h.device()));
    identity.index_select(1, &neurons).unsqueeze(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_core::orthonormality_error;
    use tch::Device;

    /// Hidden states that follow the value along one direction, and vary on another neuron much more.
    fn states() -> (Tensor, Vec<String>, Tensor) {
        let direction = Tensor::from_slice(&[0.6f32, 0.0, 0.8, 0.0, 0.0]);
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for i in 0..40 {
            let value = if i % 2 == 0 { 1.0 } else { -1.0 };
            let noise =
                Tensor::from_slice(&[0.0f32, if i % 4 < 2 { 9.0 } else { -9.0 }, 0.0, 0.0, 1.0]);
            rows.push(&direction * value + noise);
            values.push(value.to_string());
        }
        (Tensor::stack(&rows, 0), values, direction)
    }

    #[test]
    fn the_first_direction_is_the_difference_of_means_and_the_rest_is_orthonormal_to_it() {
        let (h, values, direction) = states();
        for rank in [1, 3] {
            let columns = mean_directions(&h, &values, rank);
            assert_eq!(columns.size(), [1, 5, rank]);
            assert!(orthonormality_error(&columns) < 1e-6); // f32
            let along = columns.select(0, 0).select(1, 0).dot(&direction).double_value(&[]);
            assert!((along.abs() - 1.0).abs() < 1e-6, "{along}"); // f32
        }
    }

    #[test]
    fn neurons_that_follow_the_variable_come_before_those_that_vary_more() {
        let (h, values, _) = states();
        let columns = leading_neurons(&h, &values, 2);
        let chosen = columns.select(0, 0).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let expected = Tensor::from_slice(&[1.0f32, 0.0, 1.0, 0.0, 0.0]).to_device(Device::Cpu);
        assert_eq!((chosen - expected).abs().max().double_value(&[]), 0.0);
    }
}
