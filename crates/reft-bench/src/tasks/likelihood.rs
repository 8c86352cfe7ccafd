use reft_models::{Adapter, Decoder, Mode, Stacked};
use reft_train::{Batch, Example};
use tch::{Kind, Tensor};

use crate::error::Result;

/// For every example the sum of `log p(target)` over its target tokens, in the order given; prompts of like length together.
pub(crate) fn log_probabilities(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    examples: &[Example],
    batch_size: usize,
) -> Result<Vec<f64>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(examples[i].row.input_ids.len()));
    let mut sums = vec![0.0; examples.len()];
    let _guard = tch::no_grad_guard();
    for indices in order.chunks(batch_size.max(1)) {
        let batch = collate(adapters, indices.iter().map(|&i| &examples[i]))?;
        let (places, targets) = batch.targets(&batch.layout.whole());
        let logits = logits_at(decoder, adapters, &batch, &places)?; // [m, v]
        let targets_column = Tensor::from_slice(&targets).to_device(decoder.device()).unsqueeze(1); // [m, 1]
        let log_p =
            logits.log_softmax(-1, Kind::Float).gather(1, &targets_column, false).squeeze_dim(1);
        let log_p =
            Vec::<f64>::try_from(log_p.to_kind(Kind::Double)).map_err(reft_models::Error::from)?; // sync
        let width = batch.layout.width() as i64;
        for (place, log_p) in places.iter().zip(log_p) {
            sums[indices[(place / width) as usize]] += log_p;
        }
    }
    Ok(sums)
}

/// For every prompt the most probable of some tokens to come next: an index into the prompt's own list.
pub(crate) fn best_next_tokens(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    examples: &[(Example, Vec<i64>)],
    batch_size: usize,
) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(examples[i].0.row.input_ids.len()));
    let mut best = vec![0; examples.len()];
    let _guard = tch::no_grad_guard();
    for indices in order.chunks(batch_size.max(1)) {
        let batch = collate(adapters, indices.iter().map(|&i| &examples[i].0))?;
        let width = batch.layout.width();
        let last = |row: usize| (row * width + batch.layout.columns(row).end - 1) as i64;
        let places: Vec<i64> = (0..indices.len()).map(last).collect();
        let logits = logits_at(decoder, adapters, &batch, &places)?; // [b, v]
        for (row, &i) in indices.iter().enumerate() {
            let tokens = Tensor::from_slice(&examples[i].1).to_device(decoder.device());
            let scores = logits.get(row as i64).index_select(0, &tokens);
            best[i] = scores.argmax(0, false).int64_value(&[]) as usize; // sync
        }
    }
    Ok(best)
}

fn collate<'a>(
    adapters: &[&dyn Adapter],
    examples: impl Iterator<Item = &'a Example>,
) -> Result<Batch> {
    let virtual_tokens = adapters.iter().map(|adapter| adapter.virtual_tokens()).sum();
    Ok(Batch::collate(examples, virtual_tokens)?)
}

/// Logits `[m, v]` in f32 at places of `[b·t]`.
fn logits_at(
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
    batch: &Batch,
    places: &[i64],
) -> Result<Tensor> {
    let layout = &batch.layout;
    let hooks = adapters.iter().map(|adapter| adapter.hooks(layout, Mode::Eval));
    let mut hooks = Stacked(hooks.collect::<reft_models::Result<_>>()?);
    let input_ids = layout.input_ids(decoder.device());
    let h = decoder.hidden_states(&input_ids, &layout.whole(), None, &mut hooks)?; // [b, t, d]
    let places = Tensor::from_slice(places).to_device(decoder.device());
    Ok(decoder.logits(&h.flatten(0, 1).index_select(0, &places)))
}
