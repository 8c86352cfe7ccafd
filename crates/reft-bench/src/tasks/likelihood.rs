use reft_models::{AdapterStack, Layout, Mode, Model, PaddingSide, Row};
use tch::{Kind, Tensor};

use crate::Result;

/// For every row the sum of `log p` over the tokens after its prompt, in the order given.
pub(crate) fn log_probabilities(
    model: &dyn Model,
    stack: &AdapterStack,
    rows: &[Row],
    batch_size: usize,
) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; rows.len()];
    let _guard = tch::no_grad_guard();
    for batch in of_like_length(rows, batch_size) {
        // the last token of a row predicts nothing
        let without_last = |&i: &usize| {
            let row = rows[i].clone();
            Row { input_ids: row.input_ids[..row.input_ids.len() - 1].to_vec(), ..row }
        };
        let target = |(row, &i): (usize, &usize)| {
            let completion = rows[i].prompt_length..rows[i].input_ids.len();
            completion.map(move |token| (row, token, rows[i].input_ids[token])).collect::<Vec<_>>()
        };
        let targets: Vec<_> = batch.iter().enumerate().flat_map(target).collect();
        let before: Vec<_> = targets.iter().map(|(row, token, _)| (*row, token - 1)).collect();
        let ids: Vec<i64> = targets.iter().map(|(_, _, id)| *id).collect();
        let ids = Tensor::from_slice(&ids).to_device(model.device()).unsqueeze(1); // [m, 1]
        let logits = logits_at(model, stack, batch.iter().map(without_last), &before)?; // [m, v]
        let log_p = logits.log_softmax(-1, Kind::Float).gather(1, &ids, false).squeeze_dim(1);
        let log_p =
            Vec::<f64>::try_from(log_p.to_kind(Kind::Double)).map_err(reft_models::Error::from)?; // sync
        for ((row, ..), log_p) in targets.iter().zip(log_p) {
            sums[batch[*row]] += log_p;
        }
    }
    Ok(sums)
}

/// For every prompt the most probable next token among its candidates, as an index into its list; `None` if a candidate's logit is NaN.
pub(crate) fn best_next_tokens(
    model: &dyn Model,
    stack: &AdapterStack,
    prompts: &[Row],
    choices: &[Vec<i64>],
    batch_size: usize,
) -> Result<Vec<Option<usize>>> {
    let mut best = vec![None; prompts.len()];
    let _guard = tch::no_grad_guard();
    for batch in of_like_length(prompts, batch_size) {
        let last = |(row, &i): (usize, &usize)| (row, prompts[i].input_ids.len() - 1);
        let last: Vec<_> = batch.iter().enumerate().map(last).collect();
        let rows = batch.iter().map(|&i| prompts[i].clone());
        let logits = logits_at(model, stack, rows, &last)?; // [b, v]
        for (row, &i) in batch.iter().enumerate() {
            let tokens = Tensor::from_slice(&choices[i]).to_device(model.device());
            let scores = logits.get(row as i64).index_select(0, &tokens);
            let (highest, index) = scores.max_dim(0, false); // NaN if one is among them
            let is_number = !highest.double_value(&[]).is_nan(); // sync
            best[i] = is_number.then(|| index.int64_value(&[]) as usize);
        }
    }
    Ok(best)
}

/// Rows in batches, by their indices; the longest first.
fn of_like_length(rows: &[Row], batch_size: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(rows[i].input_ids.len()));
    order.chunks(batch_size.max(1)).map(<[usize]>::to_vec).collect()
}

/// Logits `[m, v]` in f32 at some tokens, each given by its row and its index in the row.
fn logits_at(
    model: &dyn Model,
    stack: &AdapterStack,
    rows: impl Iterator<Item = Row>,
    tokens: &[(usize, usize)],
) -> Result<Tensor> {
    let layout = stack.layout(Layout::new(rows.collect(), PaddingSide::Right)?);
    let span = layout.whole();
    let place = |&(row, token)| span.flat_index(row, token).expect("invariant: a token of the row");
    let places: Vec<i64> = tokens.iter().map(place).collect();
    let h = model.whole_pass(&layout, &mut stack.hooks(&layout, Mode::Eval)?)?; // [b, t, d]
    let places = Tensor::from_slice(&places).to_device(model.device());
    Ok(model.logits(&h.flatten(0, 1).index_select(0, &places)))
}

#[cfg(test)]
mod tests {
    use reft_models::Decoder;
    use reft_test_support::{Outcome, oracle};
    use reft_train::{Example, IGNORE_INDEX, Learner, NextToken};
    use tch::Device;

    use super::*;

    /// Rows of several lengths in one batch, with completions of one token and of several.
    #[test]
    fn log_probabilities_are_the_losses_of_completions() -> Outcome {
        let model = Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?;
        let row = |ids: &[i64], prompt_length| Row {
            input_ids: ids.to_vec(),
            prompt_length,
            ..Row::default()
        };
        let rows = [row(&[5, 17, 99, 3], 3), row(&[8, 64, 30, 71, 2, 40], 2), row(&[9, 11], 1)];
        let found = log_probabilities(&model, &AdapterStack::EMPTY, &rows, 3)?;
        for (row, found) in rows.iter().zip(found) {
            let prompt = std::iter::repeat_n(IGNORE_INDEX, row.prompt_length);
            let labels = prompt.chain(row.input_ids[row.prompt_length..].iter().copied()).collect();
            let example = Example::of("", row.clone(), labels);
            let learner = Learner::new(&model, &AdapterStack::EMPTY, &NextToken);
            let report = learner.evaluate(&[example], 1, None)?;
            let expected = -report.loss * report.target_tokens as f64;
            // f32 logits, padded and not: measured below 1e-5
            assert!((found - expected).abs() < 1e-4, "{row:?}: {found} is not {expected}");
        }
        Ok(())
    }
}
