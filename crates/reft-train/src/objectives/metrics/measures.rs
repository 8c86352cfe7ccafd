//! Measures of predicted classes and numbers, as in scikit-learn and SciPy.

/// Share of classes that are the right ones; `[n]` each.
pub(crate) fn accuracy(found: &[usize], right: &[usize]) -> f64 {
    let same = found.iter().zip(right).filter(|(found, right)| found == right).count();
    same as f64 / right.len() as f64
}

/// F1, `2 p r / (p + r)` of precision `p` and recall `r`: of two classes the second's, of more the mean over classes. A class that is neither
/// predicted nor a label has 0.
pub(crate) fn f1(found: &[usize], right: &[usize], classes: usize) -> f64 {
    let of_class = |class: usize| {
        let pairs = || found.iter().zip(right);
        let both = pairs().filter(|(f, r)| **f == class && **r == class).count();
        let either = pairs().map(|(f, r)| usize::from(*f == class) + usize::from(*r == class));
        let either: usize = either.sum();
        if either == 0 { 0.0 } else { 2.0 * both as f64 / either as f64 }
    };
    match classes {
        2 => of_class(1),
        _ => (0..classes).map(of_class).sum::<f64>() / classes as f64,
    }
}

/// Matthews' correlation (Gorodkin 2004 for more than two classes), with `c` right of `n`, and `p` and `t` the counts of found and right
/// classes: `(c n − p·t) / √((n² − p·p)(n² − t·t))`; 0 if all found or all right classes are the same.
pub(crate) fn matthews(found: &[usize], right: &[usize], classes: usize) -> f64 {
    let counts = |of: &[usize]| -> Vec<f64> {
        (0..classes).map(|class| of.iter().filter(|own| **own == class).count() as f64).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (p, t, n) = (counts(found), counts(right), right.len() as f64);
    let c = accuracy(found, right) * n;
    let spread = (n * n - dot(&p, &p)) * (n * n - dot(&t, &t));
    if spread > 0.0 { (c * n - dot(&p, &t)) / spread.sqrt() } else { 0.0 }
}

/// Pearson's correlation; 0 where one of both is constant.
pub(crate) fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let sum = |f: &dyn Fn(f64, f64) -> f64| {
        x.iter().zip(y).map(|(x, y)| f(x - mean_x, y - mean_y)).sum::<f64>()
    };
    let spread = sum(&|x, _| x * x) * sum(&|_, y| y * y);
    if spread > 0.0 { sum(&|x, y| x * y) / spread.sqrt() } else { 0.0 }
}

/// Spearman's correlation: Pearson's of the ranks, equal numbers having the mean of theirs.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&ranks(x), &ranks(y))
}

fn ranks(x: &[f64]) -> Vec<f64> {
    let rank = |own: &f64| {
        let below = x.iter().filter(|other| *other < own).count() as f64;
        let equal = x.iter().filter(|other| *other == own).count() as f64;
        below + (equal + 1.0) / 2.0
    };
    x.iter().map(rank).collect()
}

/// The mean of `(x − y)²`.
pub(crate) fn mean_squared_error(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / x.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value};

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// Oracle: scikit-learn 1.9 and SciPy 1.17, tools/oracle/make_labels.py.
    #[test]
    fn measures_are_those_of_scikit_learn_and_scipy() -> TestResult {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/labels/measures.json");
        let oracle: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let close = |what: &str, found: f64, expected: &Value| {
            let expected = expected.as_f64().unwrap_or(f64::NAN);
            assert!((found - expected).abs() < 1e-12, "{what}: {found} {expected}"); // f64
        };
        let classes = oracle["classes"].as_array().ok_or("classes")?;
        for case in classes {
            let of = |name: &str| from_value::<Vec<usize>>(case[name].clone());
            let (found, right, k) = (of("found")?, of("right")?, case["k"].as_u64().ok_or("k")?);
            close("accuracy", accuracy(&found, &right), &case["accuracy"]);
            close("F1", f1(&found, &right, k as usize), &case["f1"]);
            close("Matthews", matthews(&found, &right, k as usize), &case["matthews"]);
        }
        let numbers = oracle["numbers"].as_array().ok_or("numbers")?;
        for case in numbers {
            let of = |name: &str| from_value::<Vec<f64>>(case[name].clone());
            let (x, y) = (of("x")?, of("y")?);
            close("Pearson", pearson(&x, &y), &case["pearson"]);
            close("Spearman", spearman(&x, &y), &case["spearman"]);
            close("squared error", mean_squared_error(&x, &y), &case["mean_squared_error"]);
        }
        assert_eq!((classes.len(), numbers.len()), (5, 2));
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
        Ok(())
    }
}
