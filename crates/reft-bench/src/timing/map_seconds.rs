use std::time::Instant;

use reft_core::random_columns;
use reft_methods::{Method, Methods};
use tch::{Cuda, Device, Kind};

use crate::error::Result;

/// Times that count, after one that does not.
const TIMES: usize = 9;

/// Seconds of the methods' orthonormal map, forward and backward, as every step has it once for all interventions; `None` without one.
///
/// # Errors
/// What the map refuses.
pub(crate) fn map_seconds(methods: &Methods, device: Device) -> Result<Option<Vec<f64>>> {
    let Some((kind, [n, d, r])) = methods.iter().find_map(Method::rotations) else {
        return Ok(None);
    };
    let start = random_columns(n, d, r, device);
    let map = kind.starting_at(&start).map_err(reft_models::Error::from)?;
    let once = || {
        synchronize(device);
        let started = Instant::now();
        map.columns().sum(Kind::Float).backward();
        synchronize(device);
        started.elapsed().as_secs_f64()
    };
    Ok(Some((0..=TIMES).map(|_| once()).skip(1).collect()))
}

/// Waits for what a device is to do.
pub(crate) fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use reft_methods::{MethodOptions, resolve};
    use reft_models::DecoderConfig;

    use super::*;

    #[test]
    fn only_a_method_with_a_rotation_has_a_map()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let model = DecoderConfig::open(model.as_ref())?.describe();
        for (method, has_map) in
            [("loreft", true), ("noreft", false), ("direft", false), ("lora", false)]
        {
            let methods = resolve(method, &MethodOptions::default(), &model)?;
            let seconds = map_seconds(&methods, Device::Cpu)?;
            assert_eq!(seconds.is_some(), has_map, "{method}");
            assert!(seconds.is_none_or(|s| s.len() == TIMES && s.iter().all(|&s| s > 0.0)));
        }
        Ok(())
    }
}
