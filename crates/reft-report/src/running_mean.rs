/// Of how many steps [`running_mean`] takes the mean in a curve of that many.
pub fn running_mean_steps(steps: usize) -> usize {
    (steps / 25).max(1)
}

/// The mean over the steps up to each.
pub fn running_mean(values: &[f64]) -> Vec<f64> {
    let width = running_mean_steps(values.len());
    let mean = |i: usize| {
        let part = &values[(i + 1).saturating_sub(width)..=i];
        part.iter().sum::<f64>() / part.len() as f64
    };
    (0..values.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_mean_starts_with_what_there_is() {
        let losses: Vec<f64> = (0..50).map(f64::from).collect();
        assert_eq!(&running_mean(&losses)[..3], [0.0, 0.5, 1.5]);
        assert_eq!(running_mean(&[2.0, 4.0]), [2.0, 4.0]);
    }
}
