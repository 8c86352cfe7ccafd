use reft_models::{Adapter, Decoder, Hooks, Mode, Past, Reach, Row, Span, Stacked};
use tch::{Reduction, Tensor};

use crate::Result;
use crate::batches::Batch;
use crate::reuse::{FrozenBatch, FrozenStore};

/// Sum of `−log p(target)` over the target tokens of a batch: a scalar in f32, differentiable in the adapters' parameters.
///
/// Logits are computed only where a target is predicted, and in the last block so are queries and MLP. With `frozen`, what lies before
/// the adapters' [`Reach`] is taken from there, and only the rest is computed; the numbers are the same to rounding. The batch's layout
/// must hold the adapters' virtual tokens.
///
/// # Errors
/// What the model or an adapter refuses.
pub fn loss_sum(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    mode: Mode,
    frozen: Option<&mut FrozenStore>,
) -> Result<Tensor> {
    let resumed = match frozen {
        Some(store) => Resumed::new(decoder, adapters, batch, store)?,
        None => None,
    };
    let (aligned, start) = resumed.map(|r| (r.batch, (r.stage, r.column, r.frozen))).unzip();
    let batch = aligned.as_ref().unwrap_or(batch);
    let layout = &batch.layout;
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, mode));
    let mut hooks = Stacked(hooks.collect::<Result<_, _>>()?);
    let device = decoder.device();

    let column = start.as_ref().map_or(0, |(_, column, _)| *column);
    let span = Span { layout, columns: column..layout.width() };
    let forward = decoder.forward(&span, hooks.prefix_length());
    let forward = forward.wanting(batch.first_target_column());
    let (places, labels) = batch.targets(forward.outputs());
    let stages = decoder.config().num_hidden_layers;
    let h = match start {
        Some((stage, _, FrozenBatch { hidden_states, mut past })) => {
            let past: &mut dyn Past = &mut past;
            forward.run(stage..stages, hidden_states, Some(past), &mut hooks)?
        }
        None => {
            let embeddings = forward.embed(&layout.input_ids(device));
            forward.run(0..stages, embeddings, None, &mut hooks)?
        }
    };
    let h = forward.finish(h, &mut hooks)?; // [b, q, d]
    let h = h.flatten(0, 1).index_select(0, &Tensor::from_slice(&places).to_device(device)); // [m, d]
    let labels = Tensor::from_slice(&labels).to_device(device); // [m]
    Ok(decoder.logits(&h).cross_entropy_loss(&labels, None::<Tensor>, Reduction::Sum, -100, 0.0))
}

/// A forward that begins where the adapters do.
struct Resumed {
    batch: Batch, // aligned at each row's first touched token
    stage: usize,
    column: usize,
    frozen: FrozenBatch,
}

impl Resumed {
    /// `None` if there is nothing before the adapters' reach.
    fn new(
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        batch: &Batch,
        store: &mut FrozenStore,
    ) -> Result<Option<Self>> {
        if batch.layout.virtual_tokens() > 0 {
            return Ok(None); // what stands before every token is not frozen
        }
        let reach = |(row, first): (&Row, usize)| {
            let none = Reach { stage: decoder.config().num_hidden_layers, token: first };
            adapters.iter().map(|adapter| adapter.reach(row)).fold(none, Reach::and)
        };
        let reaches: Vec<Reach> =
            batch.layout.rows().iter().zip(batch.first_targets()).map(reach).collect();
        let stage = reaches.iter().map(|reach| reach.stage).min().unwrap_or(0);
        if stage == 0 && reaches.iter().all(|reach| reach.token == 0) {
            return Ok(None);
        }
        let tokens: Vec<usize> = reaches.iter().map(|reach| reach.token).collect();
        let rows = batch.layout.rows().iter().zip(&tokens);
        let rows = rows.map(|(row, &token)| store.row(decoder, row, Reach { stage, token }));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let batch = batch.aligned(&tokens)?;
        let column = tokens.iter().copied().max().unwrap_or(0);
        let width = (batch.layout.width() - column) as i64;
        let options = (decoder.kind(), decoder.device());
        let frozen = FrozenBatch::of_rows(&rows, stage, column as i64, width, options);
        Ok(Some(Self { batch, stage, column, frozen }))
    }
}
