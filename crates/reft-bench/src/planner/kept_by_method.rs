use reft_models::{Component, DecoderConfig, Site};

use crate::error::Result;
use crate::method_config::MethodConfig;
use crate::projection::Projection;

/// Bytes per token that a method's own backward keeps in each block, beside what the frozen block's keeps.
///
/// A trained matrix keeps its input; a trained vector keeps what it is multiplied with. Edits of a few positions, prefixes and soft
/// prompts keep next to nothing beside their columns.
pub(super) fn kept_by_method(
    method: Option<&MethodConfig>,
    model: &DecoderConfig,
    kind_bytes: f64,
) -> Result<Vec<f64>> {
    let mut bytes = vec![0.0; model.num_hidden_layers];
    if let Some(method) = method {
        add(method, model, kind_bytes, &mut bytes)?;
    }
    Ok(bytes)
}

/// Size of the methods' own numbers: f32.
const OWN: f64 = 4.0;

fn add(
    method: &MethodConfig,
    model: &DecoderConfig,
    kind_bytes: f64,
    bytes: &mut [f64],
) -> Result<()> {
    let d = model.hidden_size as f64;
    match method {
        MethodConfig::Reft(_) | MethodConfig::Prefix(..) | MethodConfig::Prompt(..) => {}
        MethodConfig::Lora(config) => {
            let layers = config.layers_to_transform.as_deref();
            let targets = config.target_modules.select(model, layers)?;
            for (i, target) in targets.iter().enumerate() {
                // in f32 projections of one input keep one tensor, in half precision each keeps its own copy in f32
                let is_shared = kind_bytes == OWN
                    && targets[..i].iter().any(|other| share_an_input(other.site, target.site));
                let (rank, _) = config.rank_and_scaling(&target.module)?;
                let input = if is_shared { 0 } else { target.in_features };
                let mut kept = input + rank;
                if config.use_dora {
                    kept += 2 * target.out_features; // the frozen product, and the sum that is rescaled
                }
                bytes[target.site.layer] += OWN * kept as f64;
            }
        }
        MethodConfig::Ia3(config) => {
            let inputs = config.feedforward_modules.select(model, None)?;
            for target in config.target_modules.select(model, None)? {
                let is_input = inputs.contains(&target);
                let kept = if is_input { target.in_features } else { target.out_features };
                bytes[target.site.layer] += OWN * kept as f64;
            }
        }
        MethodConfig::Red(config) => {
            for &layer in &config.layers {
                bytes[layer] += OWN * d * config.components.len() as f64;
            }
        }
        MethodConfig::Bottleneck(config) => {
            // the input, what goes into the activation, and what comes out of it
            let kept = OWN * (d + 2.0 * config.bottleneck_size as f64);
            for &layer in &config.layers {
                bytes[layer] += kept * config.components.len() as f64;
            }
        }
        MethodConfig::Full => {
            let inputs = Projection::all(model).into_iter().filter(|p| {
                use Component::{Down, Gate, Output, Query};
                [Query, Output, Gate, Down].contains(&p.site.component) // one of each input
            });
            for projection in inputs {
                bytes[projection.site.layer] += kind_bytes * projection.in_features as f64;
            }
            for layer in bytes {
                *layer += 2.0 * kind_bytes * d; // what the weights of the norms are multiplied with
            }
        }
        MethodConfig::Combined(methods) => {
            for method in methods {
                add(method, model, kind_bytes, bytes)?;
            }
        }
    }
    Ok(())
}

/// Whether two projections have the same input: query, key and value; gate and up.
fn share_an_input(a: Site, b: Site) -> bool {
    use Component::{Gate, Key, Query, Up, Value};
    let groups: [&[Component]; 2] = [&[Query, Key, Value], &[Gate, Up]];
    a.layer == b.layer
        && groups.iter().any(|group| group.contains(&a.component) && group.contains(&b.component))
}
