//! Padding on either side, and passes cut in two, change nothing.

use reft_methods::{METHODS, MethodOptions, N_VIRTUAL_TOKENS};
use reft_models::{Layout, Mode, Model, PaddingSide, Span};
use tch::{Device, Tensor};

use crate::declarations::small;
use crate::oracle::{
    LOGITS, Outcome, assert_close, disturb, logits, new_adapter, tiny_examples, tiny_llama,
};

/// The same sums in another order, f32, from other random starts in every run: up to 1.1e-5 was seen.
const EQUAL: f64 = LOGITS;

#[test]
fn padding_on_either_side_and_none_give_the_same_logits() -> Outcome {
    let examples = tiny_examples()?;
    for (i, declaration) in METHODS.iter().enumerate() {
        let (method, decoder) = (declaration.name, tiny_llama()?);
        let adapter = new_adapter(method, &small(declaration), &decoder)?;
        if method != "full" {
            disturb(&adapter, i as i64);
        }
        let right = logits(&decoder, &adapter, &examples, PaddingSide::Right)?;
        let left = logits(&decoder, &adapter, &examples, PaddingSide::Left)?;
        for (row, example) in examples.iter().enumerate() {
            let alone = std::slice::from_ref(example);
            let alone = &logits(&decoder, &adapter, alone, PaddingSide::Right)?[0];
            assert_close(&format!("{method}: left, row {row}"), &left[row], &right[row], EQUAL);
            assert_close(&format!("{method}: alone, row {row}"), alone, &right[row], EQUAL);
        }
    }
    Ok(())
}

/// Prefill in two passes through the cache, cut at every column: also through the middle of the virtual tokens.
#[test]
fn a_prefill_cut_in_two_gives_the_same_hidden_states() -> Outcome {
    let examples = tiny_examples()?;
    for method in ["prefix", "prompt", "dora", "parallel-adapter"] {
        let decoder = tiny_llama()?;
        let n = (method == "prompt" || method == "prefix").then_some(4);
        let options = MethodOptions::default().with_some(&N_VIRTUAL_TOKENS, n);
        let adapter = new_adapter(method, &options, &decoder)?;
        disturb(&adapter, 7);
        let rows = examples.iter().map(|example| example.row().clone()).collect();
        let layout = adapter.layout(Layout::new(rows, PaddingSide::Left)?);
        let (t, ids) = (layout.width(), layout.input_ids(Device::Cpu));
        let run = |cut: usize| -> Outcome<Tensor> {
            let _guard = tch::no_grad_guard();
            let mut hooks = adapter.hooks(&layout, Mode::Eval)?;
            let mut cache = decoder.kv_cache(3, 40);
            let mut parts = Vec::new();
            for columns in [0..cut, cut..t].into_iter().filter(|columns| !columns.is_empty()) {
                let ids = ids.narrow(1, columns.start as i64, columns.len() as i64);
                let span = Span { layout: &layout, columns };
                parts.push(decoder.hidden_states(&ids, &span, Some(&mut cache), &mut hooks)?);
            }
            Ok(Tensor::cat(&parts, 1))
        };
        let whole = run(t)?;
        for cut in 1..t {
            let found = run(cut)?;
            for row in 0..3 {
                let columns = layout.columns(row);
                let own = |h: &Tensor| {
                    let (start, length) = (columns.start as i64, columns.len() as i64);
                    h.select(0, row as i64).narrow(0, start, length)
                };
                assert_close(&format!("{method} cut at {cut}"), &own(&found), &own(&whole), EQUAL);
            }
        }
    }
    Ok(())
}
