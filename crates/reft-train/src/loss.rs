use reft_models::{Adapter, Decoder, Mode, Stacked};
use tch::{Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;

/// Sum of `−log p(target)` over the target tokens of a batch: a scalar in f32, differentiable in the adapters' parameters.
///
/// Logits are computed only where a target is predicted. The batch's layout must hold the adapters' virtual tokens.
///
/// # Errors
/// What the model or an adapter refuses.
pub fn loss_sum(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    mode: Mode,
) -> Result<Tensor> {
    let layout = &batch.layout;
    let device = decoder.device();
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);
    let input_ids = layout.input_ids(device);
    let h = decoder.hidden_states(&input_ids, &layout.whole(), None, &mut hooks)?; // [b, t, d]
    let (places, labels) = batch.targets();
    let h = h.flatten(0, 1).index_select(0, &Tensor::from_slice(&places).to_device(device)); // [m, d]
    let labels = Tensor::from_slice(&labels).to_device(device); // [m]
    Ok(decoder.logits(&h).cross_entropy_loss(&labels, None::<Tensor>, Reduction::Sum, -100, 0.0))
}
