use std::time::Instant;

use reft_core::random_columns;
use tch::{Device, Kind};

use crate::error::Result;
use crate::method_config::MethodConfig;
use crate::timing::measure::synchronize;

/// Times that count, after one that does not.
const TIMES: usize = 9;

/// Seconds of a method's orthonormal map, forward and backward, as every step has it once for all interventions; `None` without one.
///
/// # Errors
/// What the map refuses.
pub(crate) fn map_seconds(method: &MethodConfig, device: Device) -> Result<Option<Vec<f64>>> {
    let MethodConfig::Reft(config) = method else { return Ok(None) };
    if !config.method.has_rotation() {
        return Ok(None);
    }
    let (d, r) = (config.base_model.hidden_size, config.low_rank_dimension);
    let intervention = config.intervention();
    let start = random_columns(config.sites().len() as i64, d, r, device);
    let map = intervention.orthonormal_map.starting_at(&start)?;
    let once = || {
        synchronize(device);
        let started = Instant::now();
        map.columns().sum(Kind::Float).backward();
        synchronize(device);
        started.elapsed().as_secs_f64()
    };
    Ok(Some((0..=TIMES).map(|_| once()).skip(1).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method_config::MethodOptions;
    use reft_models::DecoderConfig;

    #[test]
    fn only_a_method_with_a_rotation_has_a_map()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/tiny_llama");
        let model = DecoderConfig::open(model.as_ref())?;
        for (method, has_map) in
            [("loreft", true), ("noreft", false), ("direft", false), ("lora", false)]
        {
            let config = MethodConfig::resolve(method, &MethodOptions::default(), &model)?;
            let seconds = map_seconds(&config, Device::Cpu)?;
            assert_eq!(seconds.is_some(), has_map, "{method}");
            assert!(seconds.is_none_or(|s| s.len() == TIMES && s.iter().all(|&s| s > 0.0)));
        }
        Ok(())
    }
}
