//! The decoder against transformers: `tests/oracle/tiny_llama` (4.49), `smollm2` (4.49) and `families` (4.51).

use crate::oracle::{Flow, base_logits, rows, smollm2, tiny_llama};
use reft_models::{Decoder, DecoderConfig, Layout, Model, NoHooks, PaddingSide, RopeScaling, Row};
use reft_test_support::{Outcome, assert_close, oracle, oracle_text, tensors};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// The same f32 sums, perhaps in another order: logits of the families up to 13, measured 7e-6.
const EQUAL: f64 = 2e-5;

/// [`EQUAL`] for values past 10: hidden states go up to 21, and a processor without AVX-512 is off by 2.0e-5 there.
fn equal_to(expected: &Tensor) -> f64 {
    EQUAL * (expected.abs().max().double_value(&[]) / 10.0).max(1.0)
}

#[test]
fn logits_and_every_block_output_equal_transformers() -> Outcome {
    let io = tensors("tiny_io.safetensors")?;
    let decoder = tiny_llama()?;
    let rows = rows(&io["input_ids"], &io["attention_mask"])?;
    for padding in [PaddingSide::Right, PaddingSide::Left] {
        let layout = Layout::new(rows.clone(), padding)?;
        let mut collected = Flow::default();
        let ids = layout.input_ids(Device::Cpu);
        let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut collected)?;
        let embeddings = collected.embeddings.ok_or("no embeddings")?;
        let mut seen = vec![("embed.output".to_owned(), embeddings)];
        assert_eq!(collected.block_outputs.len(), 4);
        for (i, output) in collected.block_outputs.into_iter().enumerate() {
            seen.push((format!("layer_{i}.output"), output));
        }
        seen.push(("base_logits".to_owned(), decoder.logits(&h)));
        seen.push(("final_norm.output".to_owned(), h));
        for (name, found) in seen {
            for (i, row) in rows.iter().enumerate() {
                let expected =
                    io[&name].select(0, i as i64).narrow(0, 0, row.input_ids.len() as i64);
                let what = format!("{name}, row {i}, {padding:?}");
                let tolerance = equal_to(&expected);
                assert_close(&what, &layout.own(&found, i), &expected, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn batch_of_one_equals_a_batch_padded_on_either_side() -> Outcome {
    let io = tensors("tiny_io.safetensors")?;
    let decoder = tiny_llama()?;
    let rows = rows(&io["input_ids"], &io["attention_mask"])?;
    let right = base_logits(&decoder, &rows, PaddingSide::Right)?;
    let left = base_logits(&decoder, &rows, PaddingSide::Left)?;
    for (i, row) in rows.iter().enumerate() {
        let alone = base_logits(&decoder, std::slice::from_ref(row), PaddingSide::Right)?;
        // f32, |logits| up to 6: sums over other row counts in another order, measured 4e-6
        assert_close("right-padded", &right[i], &alone[0], 1e-5);
        assert_close("left-padded", &left[i], &alone[0], 1e-5);
    }
    Ok(())
}

#[test]
fn a_cache_filled_in_pieces_equals_one_pass() -> Outcome {
    let io = tensors("tiny_io.safetensors")?;
    let decoder = tiny_llama()?;
    let rows = rows(&io["input_ids"], &io["attention_mask"])?;
    for padding in [PaddingSide::Right, PaddingSide::Left] {
        let layout = Layout::new(rows.clone(), padding)?;
        let ids = layout.input_ids(Device::Cpu);
        let whole = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
        let mut cache = decoder.kv_cache(3, layout.width() as i64);
        let mut pieces = Vec::new();
        for columns in [0..5, 5..6, 6..11, 11..14] {
            let (start, width) = (columns.start as i64, columns.len() as i64);
            let span = reft_models::Span { layout: &layout, columns };
            let ids = ids.narrow(1, start, width);
            pieces.push(decoder.hidden_states(&ids, &span, Some(&mut cache), &mut NoHooks)?);
        }
        let pieces = Tensor::cat(&pieces, 1);
        for i in 0..3 {
            let found = layout.own(&pieces, i);
            let expected = layout.own(&whole, i);
            // after the final norm |h| is up to 4; f32 sums in another order, measured 5e-6
            assert_close(&format!("row {i}, {padding:?}"), &found, &expected, EQUAL);
        }
    }
    Ok(())
}

/// Families that differ from plain Llama in one option or a set of them; see `tools/oracle/make_families.py`.
#[test]
fn every_family_equals_transformers() -> Outcome {
    let families = [
        "llama_rope_llama3",
        "llama_rope_linear",
        "llama_biases",
        "llama_tied",
        "llama_head_dim",
        "llama_sharded",
        "llama_bf16",
        "mistral",
        "qwen2",
        "qwen3",
    ];
    for family in families {
        let dir = oracle("families").join(family);
        let decoder = Decoder::open(&dir, Kind::Float, Device::Cpu)?;
        let io = tensors(&format!("families/{family}/io.safetensors"))?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            let found = base_logits(&decoder, &rows, padding)?;
            for (i, row) in rows.iter().enumerate() {
                let expected =
                    io["logits"].select(0, i as i64).narrow(0, 0, row.input_ids.len() as i64);
                assert_close(
                    &format!("{family}, row {i}, {padding:?}"),
                    &found[i],
                    &expected,
                    EQUAL,
                );
            }
        }
    }
    Ok(())
}

/// The comparison detects each option: with another value the logits are far from the recorded ones.
#[test]
fn every_option_of_the_families_matters() -> Outcome {
    type Change = (&'static str, &'static str, fn(&mut DecoderConfig));
    let changes: [Change; 6] = [
        ("llama_rope_llama3", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("llama_rope_linear", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("llama_head_dim", "theta", |c| c.attention.ropes[0].theta = 100.0),
        ("llama_tied", "eps", |c| c.norm.eps = 0.1),
        ("mistral", "window", |c| c.model.windows.fill(Some(5))),
        ("qwen2", "window", |c| c.model.windows.fill(Some(4))),
    ];
    for (family, option, change) in changes {
        let dir = oracle("families").join(family);
        let mut config = DecoderConfig::open(&dir)?;
        change(&mut config);
        let weights = reft_models::Weights::open(&dir)?;
        let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        let io = tensors(&format!("families/{family}/io.safetensors"))?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        let found = &base_logits(&decoder, &rows, PaddingSide::Right)?[0];
        let expected = io["logits"].select(0, 0).narrow(0, 0, found.size()[0]);
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(difference > 100.0 * EQUAL, "{family} without its {option}: off by {difference:e}");
    }
    Ok(())
}

#[test]
fn rope_scaling_is_read_in_every_spelling() -> Outcome {
    let written = serde_json::from_str::<serde_json::Value>(&oracle_text(
        "families/llama_rope_linear/config.json",
    )?)?; // "type" and "rope_type"
    let with = |rope: serde_json::Value, field: &str| -> Result<_, reft_models::Error> {
        let mut config = written.clone();
        config["rope_scaling"] = serde_json::Value::Null;
        config[field] = rope;
        let mut config = DecoderConfig::from_json(config, "config.json".as_ref())?;
        Ok(config.attention.ropes.remove(0).scaling)
    };
    let expected = RopeScaling::Linear { factor: 2.0 };
    assert_eq!(with(written["rope_scaling"].clone(), "rope_scaling")?, expected);
    assert_eq!(with(json!({"type": "linear", "factor": 2.0}), "rope_scaling")?, expected);
    assert_eq!(with(json!({"rope_type": "linear", "factor": 2.0}), "rope_scaling")?, expected);
    assert_eq!(with(json!({"rope_type": "linear", "factor": 2.0}), "rope_parameters")?, expected);
    assert_eq!(with(json!({"rope_type": "default"}), "rope_parameters")?, RopeScaling::None);
    for bad in [
        json!({"type": "proportional", "factor": 2.0}),
        json!({"type": "linear"}),
        json!({"type": "linear", "factor": 0}),
    ] {
        assert!(
            matches!(with(bad.clone(), "rope_scaling"), Err(reft_models::Error::Config { .. })),
            "{bad}"
        );
    }
    Ok(())
}

#[test]
fn smollm2_equals_transformers() -> Outcome {
    let io = tensors("smollm2/logits.safetensors")?;
    let decoder = smollm2()?;
    for seq in ["seq0", "seq1"] {
        let recorded = |name: &str| &io[&format!("{seq}.{name}")];
        let ids: Vec<i64> = recorded("input_ids").try_into()?;
        let layout = Layout::new(vec![Row::prompt(ids)], PaddingSide::Right)?;
        let mut collected = Flow::default();
        let ids = layout.input_ids(Device::Cpu);
        let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut collected)?;
        let logits = decoder.logits(&h).select(0, 0); // [t, v]

        let last = logits.select(0, -1).index_select(0, recorded("top50_ids"));
        // f32 through 30 layers and 49,152 words: |logits| up to 34
        assert_close(&format!("{seq}: top 50 logits"), &last, recorded("top50_logits"), 5e-3);
        let (_, best) = logits.select(0, -1).topk(1, 0, true, true);
        assert_eq!(best.int64_value(&[0]), recorded("top50_ids").int64_value(&[0]));

        let t = logits.size()[0];
        let log_probabilities = logits.narrow(0, 0, t - 1).log_softmax(-1, Kind::Float);
        let next = ids.select(0, 0).narrow(0, 1, t - 1).unsqueeze(1);
        let found = log_probabilities.gather(1, &next, false).squeeze_dim(1);
        assert_close(
            &format!("{seq}: log-probabilities"),
            &found,
            recorded("token_logprobs"),
            1e-3,
        );

        let mut states = vec![collected.embeddings.ok_or("no embeddings")?];
        states.extend(collected.block_outputs);
        states.push(h);
        let states = Tensor::cat(&states, 0); // [32, t, d]
        let ends = states.select(1, -1); // [32, d]
        let l2 =
            |x: Tensor| x.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).sqrt();
        for (name, found) in [
            ("hidden_last_l2", l2(ends.shallow_clone())),
            ("hidden_all_l2", l2(states.flatten(1, 2))),
        ] {
            let relative = found / recorded(name);
            // relative: norms range over four orders of magnitude; measured 1e-5
            assert_close(&format!("{seq}: {name}"), &relative, &relative.ones_like(), 1e-4);
        }
        let found = ends.narrow(1, 0, 16);
        let scale = recorded("hidden_last_l2").unsqueeze(1);
        let expected = recorded("hidden_last16") / &scale;
        // relative to the vector's norm, for the same reason
        assert_close(&format!("{seq}: hidden_last16"), &(found / scale), &expected, 1e-4);
    }
    Ok(())
}
