//! Where two oracle files differ by more than rounding.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

/// Tolerance of tensor elements, for f32 sums in another order on other processors; relative to the tensor's largest element if that is
/// above 1. Between two machines differences were up to 1.7e-5.
const TENSOR_TOLERANCE: f64 = 4e-5;
/// The same after ten steps of AdamW, which divides gradients by their own size however small they are: up to 2.9e-4.
const TRAINED_TOLERANCE: f64 = 6e-4;
/// The prefix of names of tensors that are computed after training.
const TRAINED: &str = "final";
/// Numbers in JSON: losses after up to 20 optimizer steps, which carry rounding along.
const NUMBER_TOLERANCE: f64 = 1e-5;

/// The differences between `kept/file` and `fresh/file`.
pub fn of_file(file: &Path, kept: &Path, fresh: &Path) -> Result<Vec<String>> {
    let name = file.display();
    let read =
        |root: &Path| fs::read(root.join(file)).with_context(|| format!("cannot read {name}"));
    if !fresh.join(file).exists() {
        return Ok(vec![format!("{name}: kept, but no longer written by a generator")]);
    }
    let (kept, fresh) = (read(kept)?, read(fresh)?);
    let mut found = Vec::new();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => {
            let parse = |bytes| {
                SafeTensors::deserialize(bytes).with_context(|| format!("{name} is damaged"))
            };
            tensors(&parse(&kept)?, &parse(&fresh)?, &mut found);
        }
        Some("json") => {
            let parse = |bytes| {
                serde_json::from_slice(bytes).with_context(|| format!("{name} is not JSON"))
            };
            values("$", &parse(&kept)?, &parse(&fresh)?, &mut found);
        }
        // The converter only copies the weights, so all bytes must be equal.
        Some("gguf") if kept != fresh => found.push("has other bytes".to_owned()),
        // Pickles: their tensors are also kept as `.bin_contents.safetensors`, and compared there.
        _ => {}
    }
    Ok(found.into_iter().map(|difference| format!("{name}: {difference}")).collect())
}

fn tensors(kept: &SafeTensors, fresh: &SafeTensors, found: &mut Vec<String>) {
    for (name, kept) in kept.iter() {
        match fresh.tensor(name) {
            Ok(fresh) => {
                let trained = name.starts_with(TRAINED);
                let tolerance = if trained { TRAINED_TOLERANCE } else { TENSOR_TOLERANCE };
                let difference = tensor(&kept, &fresh, tolerance);
                found.extend(difference.map(|what| format!("{name} {what}")));
            }
            Err(_) => found.push(format!("{name} is no longer written")),
        }
    }
    for name in fresh.names() {
        if kept.tensor(name).is_err() {
            found.push(format!("{name} is new"));
        }
    }
}

fn tensor(kept: &TensorView, fresh: &TensorView, tolerance: f64) -> Option<String> {
    if (kept.dtype(), kept.shape()) != (fresh.dtype(), fresh.shape()) {
        return Some(format!(
            "was {:?} {:?}, is {:?} {:?}",
            kept.dtype(),
            kept.shape(),
            fresh.dtype(),
            fresh.shape()
        ));
    }
    if kept.dtype() != Dtype::F32 {
        return (kept.data() != fresh.data()).then(|| "has other values".to_owned());
    }
    let (kept, fresh) = (f32s(kept), f32s(fresh));
    let scale = kept.iter().fold(1.0, |scale, x| x.abs().max(scale));
    let is_same = |a: &f64, b: &f64| a == b || (a.is_nan() && b.is_nan());
    let differences =
        kept.iter().zip(&fresh).map(|(a, b)| if is_same(a, b) { 0.0 } else { (a - b).abs() });
    // A NaN on one side only counts as the largest difference.
    let (index, largest) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
    let within = largest <= tolerance * scale;
    (!within).then(|| {
        format!(
            "differs by up to {largest:.1e}: element {index} was {}, is {}",
            kept[index], fresh[index]
        )
    })
}

fn f32s(view: &TensorView) -> Vec<f64> {
    let (elements, _) = view.data().as_chunks::<4>();
    elements.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

fn values(place: &str, kept: &Value, fresh: &Value, found: &mut Vec<String>) {
    match (kept, fresh) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, a) in a {
                match b.get(key) {
                    // PEFT writes a Python set, in no particular order.
                    Some(b) if key == "target_modules" => {
                        values(&format!("{place}.{key}"), &sorted(a), &sorted(b), found)
                    }
                    Some(b) => values(&format!("{place}.{key}"), a, b, found),
                    None => found.push(format!("{place}.{key} is no longer written")),
                }
            }
            let new = b.keys().filter(|key| !a.contains_key(*key));
            found.extend(new.map(|key| format!("{place}.{key} is new")));
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                values(&format!("{place}[{i}]"), a, b, found);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (Some(x), Some(y)) = (a.as_f64(), b.as_f64()) else { return };
            if (x - y).abs() > NUMBER_TOLERANCE * x.abs().max(1.0) {
                found.push(format!("{place} was {x}, is {y}"));
            }
        }
        (a, b) if a != b => found.push(format!("{place} was {a}, is {b}")),
        _ => {}
    }
}

/// A list of strings in alphabetical order.
fn sorted(list: &Value) -> Value {
    let mut items = list.as_array().cloned().unwrap_or_default();
    items.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
    Value::Array(items)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::serialize_to_file;
    use serde_json::json;

    use super::*;

    fn write(path: &Path, values: &[f32], shape: &[usize]) -> Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes)?;
        Ok(serialize_to_file(HashMap::from([("w", view)]), None, path)?)
    }

    /// The differences between two files of one tensor `w`.
    fn between(kept: (&[f32], &[usize]), fresh: (&[f32], &[usize])) -> Result<Vec<String>> {
        let dir = tempfile::tempdir()?;
        let [a, b] = ["kept", "fresh"].map(|name| dir.path().join(name));
        for (folder, (values, shape)) in [(&a, kept), (&b, fresh)] {
            fs::create_dir(folder)?;
            write(&folder.join("t.safetensors"), values, shape)?;
        }
        of_file(Path::new("t.safetensors"), &a, &b)
    }

    #[test]
    fn rounding_is_no_difference_and_is_relative_to_large_elements() -> Result<()> {
        // f32 steps: 6e-8 just below 1, 6e-5 just above 512.
        let found = between((&[0.5, 1000.0], &[2]), (&[0.500_000_06, 1_000.000_06], &[2]))?;
        assert_eq!(found, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn the_largest_difference_of_a_tensor_is_reported_with_its_place() -> Result<()> {
        let found = between((&[0.5, -0.25, 0.125], &[3, 1]), (&[0.5, 0.25, 0.126], &[3, 1]))?;
        assert_eq!(
            found,
            ["t.safetensors: w differs by up to 5.0e-1: element 1 was -0.25, is 0.25"]
        );
        Ok(())
    }

    #[test]
    fn nan_is_a_difference() -> Result<()> {
        let found = between((&[0.5, 1.0], &[2]), (&[f32::NAN, 1.0], &[2]))?;
        assert_eq!(found.len(), 1, "{found:?}");
        Ok(())
    }

    #[test]
    fn another_shape_is_a_difference_even_with_the_same_elements() -> Result<()> {
        let found = between((&[1.0, 2.0], &[2, 1]), (&[1.0, 2.0], &[1, 2]))?;
        assert_eq!(found, ["t.safetensors: w was F32 [2, 1], is F32 [1, 2]"]);
        Ok(())
    }

    #[test]
    fn a_converted_file_is_compared_byte_by_byte() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let [a, b] = ["kept", "fresh"].map(|name| dir.path().join(name));
        for (folder, bytes) in [(&a, b"GGUF\x03"), (&b, b"GGUF\x02")] {
            fs::create_dir(folder)?;
            fs::write(folder.join("t.gguf"), bytes)?;
        }
        assert_eq!(of_file(Path::new("t.gguf"), &a, &b)?, ["t.gguf: has other bytes"]);
        assert_eq!(of_file(Path::new("t.gguf"), &a, &a)?, Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn differences_in_json_are_found_at_any_depth() {
        let mut found = Vec::new();
        values(
            "$",
            &json!({"target_modules": ["q", "v"]}),
            &json!({"target_modules": ["v", "q"]}),
            &mut found,
        );
        assert_eq!(found, Vec::<String>::new(), "a set");
        let kept = json!({"loss": [1.0, 2.0], "n": 3, "name": "loreft", "gone": 1, "ids": [1, 2]});
        let fresh =
            json!({"loss": [1.000001, 2.1], "n": 4, "name": "noreft", "added": 1, "ids": [1]});
        values("$", &kept, &fresh, &mut found);
        assert_eq!(
            found,
            [
                "$.loss[1] was 2, is 2.1",
                "$.n was 3, is 4",
                "$.name was \"loreft\", is \"noreft\"",
                "$.gone is no longer written",
                "$.ids was [1,2], is [1]",
                "$.added is new",
            ]
        );
    }
}
