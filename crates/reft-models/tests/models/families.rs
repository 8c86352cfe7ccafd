//! Families and types of RoPE against transformers 5.24: `tests/oracle/more_families`, made by `tools/oracle/make_more_families.py`.

use crate::oracle::{Flow, base_logits, rows};
use reft_test_support::{Outcome, Tensors, assert_close, of_logits, oracle, tensors};
use std::ops::ControlFlow;

use reft_models::{
    AdapterStack, Decoder, DecoderConfig, GenerationConfig, Layout, Model, NoHooks, NormKind,
    NormPlaces, PaddingSide, QkNorm, RopeScaling, Row, Span, WeightStorage, Weights, generate,
};
use tch::{Device, Kind, Tensor};

const FAMILIES: [&str; 12] = [
    "gemma2",
    "gemma3",
    "gemma3_images",
    "smollm3",
    "granite",
    "olmo2",
    "olmo3",
    "phi3",
    "phi3_longrope",
    "ministral3",
    "llama_yarn",
    "llama_dynamic",
];

/// Prompts of the recorded replies.
const PROMPT: usize = 9;

fn folder(family: &str) -> std::path::PathBuf {
    oracle("more_families").join(family)
}

fn decoder(family: &str) -> Outcome<Decoder> {
    tch::set_num_threads(1);
    Ok(Decoder::open(&folder(family), Kind::Float, Device::Cpu)?)
}

fn recorded(family: &str) -> Outcome<Tensors> {
    tensors(&format!("more_families/{family}/io.safetensors"))
}

#[test]
fn logits_and_every_block_output_equal_transformers() -> Outcome {
    for family in FAMILIES {
        let (decoder, io) = (decoder(family)?, recorded(family)?);
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            let layout = Layout::new(rows.clone(), padding)?;
            let mut collected = Flow::default();
            let ids = layout.input_ids(Device::Cpu);
            let h = decoder.hidden_states(&ids, &layout.whole(), None, &mut collected)?;
            assert_eq!(collected.block_outputs.len(), decoder.description().num_hidden_layers);
            let outputs = collected.block_outputs.into_iter().enumerate();
            let mut seen: Vec<(String, Tensor)> =
                outputs.map(|(i, output)| (format!("block.{i}"), output)).collect();
            seen.push(("logits".to_owned(), decoder.logits(&h)));
            for (name, found) in seen {
                for (i, row) in rows.iter().enumerate() {
                    let length = row.input_ids.len() as i64;
                    let expected = io[&name].select(0, i as i64).narrow(0, 0, length);
                    let what = format!("{family}: {name}, row {i}, {padding:?}");
                    let found = layout.own(&found, i);
                    assert_close(&what, &found, &expected, of_logits(&expected));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_filled_in_pieces_equals_one_pass() -> Outcome {
    for family in FAMILIES {
        let (decoder, io) = (decoder(family)?, recorded(family)?);
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            let layout = Layout::new(rows.clone(), padding)?;
            let ids = layout.input_ids(Device::Cpu);
            let whole = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
            let mut cache = decoder.kv_cache(3, layout.width() as i64);
            let mut pieces = Vec::new();
            for columns in [0..7, 7..8, 8..15, 15..layout.width()] {
                let ids = ids.narrow(1, columns.start as i64, columns.len() as i64);
                let span = Span { layout: &layout, columns };
                pieces.push(decoder.hidden_states(&ids, &span, Some(&mut cache), &mut NoHooks)?);
            }
            let pieces = Tensor::cat(&pieces, 1);
            for i in 0..3 {
                let expected = layout.own(&whole, i);
                let found = layout.own(&pieces, i);
                let what = format!("{family}: row {i}, {padding:?}");
                assert_close(&what, &found, &expected, of_logits(&expected));
            }
        }
    }
    Ok(())
}

/// 32 tokens after prompts of 9, past every original context; alone, and in a batch with a shorter prompt.
#[test]
fn greedy_tokens_equal_transformers() -> Outcome {
    for family in FAMILIES {
        let (decoder, io) = (decoder(family)?, recorded(family)?);
        let all = rows(&io["input_ids"], &io["attention_mask"])?;
        let prompt = |row: &Row, n| Row::prompt(row.input_ids[..n].to_vec());
        let prompts = [prompt(&all[0], PROMPT), prompt(&all[1], PROMPT), prompt(&all[2], 4)];
        for prompts in [&prompts[..1], &prompts[..]] {
            let config = GenerationConfig {
                max_new_tokens: io["generated"].size()[1] as usize,
                ..GenerationConfig::default()
            };
            let go_on = &mut |_, _| ControlFlow::Continue(());
            let replies = generate(&decoder, &AdapterStack::EMPTY, prompts, &config, go_on)?;
            for (i, reply) in replies.iter().take(2).enumerate() {
                let expected: Vec<i64> = io["generated"].select(0, i as i64).try_into()?;
                let lead: Vec<f32> = io["lead"].select(0, i as i64).try_into()?;
                let differs = (0..expected.len()).find(|&t| reply.ids[t] != expected[t]);
                if let Some(t) = differs.filter(|&t| lead[t] > 1e-4) {
                    let found = &reply.ids;
                    return Err(
                        format!("{family}: token {t} of {found:?}, not {expected:?}").into()
                    );
                }
            }
        }
    }
    Ok(())
}

/// The comparison detects each option: with another value the logits are far from the recorded ones.
#[test]
fn every_option_of_the_families_matters() -> Outcome {
    type Change = (&'static str, &'static str, fn(&mut DecoderConfig));
    let changes: [Change; 30] = [
        ("gemma2", "norm", |c| c.norm.kind = NormKind::Rms),
        ("gemma2", "scale", |c| c.attention.scale = None),
        ("gemma2", "soft cap", |c| c.attention.soft_cap = None),
        ("gemma2", "cap of logits", |c| c.multipliers.logit_soft_cap = None),
        ("gemma2", "scale of embeddings", |c| c.multipliers.embedding = 1.0),
        ("gemma2", "windows", |c| c.model.windows.fill(None)),
        ("gemma2", "activation", |c| c.mlp.activation = reft_models::MlpActivation::Silu),
        ("gemma3", "theta of windows", |c| c.attention.ropes[1].theta = 1000.0),
        ("gemma3", "theta of all", |c| c.attention.ropes[0].theta = 50.0),
        ("gemma3", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("gemma3", "windows", |c| c.model.windows.fill(Some(5))),
        ("gemma3_images", "windows", |c| c.model.windows.fill(None)),
        ("smollm3", "layers without RoPE", |c| c.attention.rope_of_layer.fill(Some(0))),
        ("smollm3", "windows", |c| c.model.windows.fill(None)),
        ("granite", "scale", |c| c.attention.scale = None),
        ("granite", "multiplier of embeddings", |c| c.multipliers.input = 1.0),
        ("granite", "multiplier of branches", |c| c.multipliers.residual = 1.0),
        ("granite", "divisor of logits", |c| c.multipliers.logit_divisor = 1.0),
        ("olmo3", "windows", |c| c.model.windows.fill(None)),
        ("olmo3", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("olmo3", "theta of windows", |c| c.attention.ropes[1].theta = 10_000.0),
        ("phi3", "share of heads", |c| c.attention.ropes[0].rotated = 24),
        ("phi3", "windows", |c| c.model.windows.fill(None)),
        ("phi3_longrope", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("phi3_longrope", "long factors", |c| {
            if let RopeScaling::LongRope { short_factor, long_factor, .. } =
                &mut c.attention.ropes[0].scaling
            {
                long_factor.clone_from(short_factor);
            }
        }),
        ("ministral3", "query scaling", |c| c.attention.query_scaling = None),
        ("ministral3", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
        ("ministral3", "windows", |c| c.model.windows.fill(None)),
        ("llama_yarn", "attention factor", |c| {
            if let RopeScaling::Yarn { attention_factor, .. } = &mut c.attention.ropes[0].scaling {
                *attention_factor = 1.0;
            }
        }),
        ("llama_dynamic", "scaling", |c| c.attention.ropes[0].scaling = RopeScaling::None),
    ];
    for (family, option, change) in changes {
        let mut config = DecoderConfig::open(&folder(family))?;
        change(&mut config);
        let weights = Weights::open(&folder(family))?;
        let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        let io = recorded(family)?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        let found = &base_logits(&decoder, &rows, PaddingSide::Right)?[0];
        let expected = io["logits"].select(0, 0).narrow(0, 0, found.size()[0]);
        let off = (found - expected).abs().max().double_value(&[]);
        assert!(off > 1e-3, "{family} without its {option}: off by {off:e}");
    }
    Ok(())
}

#[test]
fn places_of_norms_are_told_by_their_tensors() -> Outcome {
    for (family, places, qk_norm, norms) in [
        ("gemma3", NormPlaces::Both, Some(QkNorm::PerHead), 4),
        ("olmo2", NormPlaces::Post, Some(QkNorm::FullWidth), 2),
        ("granite", NormPlaces::Pre, None, 2),
    ] {
        let config = DecoderConfig::open(&folder(family))?;
        assert_eq!((config.norm.places, config.attention.qk_norm), (places, qk_norm), "{family}");
        assert_eq!(config.describe().norms_of_block(), norms, "{family}");
    }
    Ok(())
}

/// With packed weights and in half precision, results are close to those in f32.
#[test]
fn every_family_can_be_held_small() -> Outcome {
    for family in FAMILIES {
        let io = recorded(family)?;
        let rows = rows(&io["input_ids"], &io["attention_mask"])?;
        let of = |weights: Weights, kind| -> Outcome<Tensor> {
            let config = DecoderConfig::open(&folder(family))?;
            let decoder = Decoder::from_weights(config, &weights, kind, Device::Cpu)?;
            let found = base_logits(&decoder, &rows[..1], PaddingSide::Right)?.remove(0);
            assert!(found.isfinite().all().int64_value(&[]) == 1, "{family}");
            Ok(found)
        };
        let expected = io["logits"].select(0, 0);
        let spread = expected.std(false).double_value(&[]);
        let open = || Weights::open(&folder(family));
        // rows of 32 and 96 numbers are whole blocks of 32: eight-bit weights are off by a few hundredths of a standard deviation
        for (found, allowed) in [
            (of(open()?.held_as(WeightStorage::Int8), Kind::Float)?, 0.2),
            (of(open()?, Kind::BFloat16)?, 0.4),
        ] {
            let off = (found - &expected).square().mean(Kind::Double).sqrt().double_value(&[]);
            assert!(off < allowed * spread, "{family}: off by {off} of {spread}");
        }
    }
    Ok(())
}

/// Rounding to eight bits changes logits less than four-bit weights do. It concerns four-bit weights only.
#[test]
fn int8_products_round_hidden_states_for_four_bit_weights() -> Outcome {
    let of = |storage: WeightStorage, int8_products: bool, tokens: i64| -> Outcome<Tensor> {
        let config = DecoderConfig::open(&folder("llama_yarn"))?;
        let weights = Weights::open(&folder("llama_yarn"))?.held_as(storage);
        let weights = weights.int8_products(int8_products);
        let decoder = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        let row = Row::prompt((0..tokens).map(|i| i * 7 % 60).collect());
        Ok(base_logits(&decoder, &[row], PaddingSide::Right)?.remove(0))
    };
    let error =
        |a: &Tensor, b: &Tensor| (a - b).square().mean(Kind::Double).sqrt().double_value(&[]);
    for storage in [WeightStorage::Int8, WeightStorage::Dense] {
        let (exact, rounded) = (of(storage, false, 40)?, of(storage, true, 40)?);
        assert_eq!(error(&exact, &rounded), 0.0, "{storage}");
    }
    for tokens in [1, 40] {
        let [dense, exact, rounded] = [
            of(WeightStorage::Dense, false, tokens)?,
            of(WeightStorage::Int4, false, tokens)?,
            of(WeightStorage::Int4, true, tokens)?,
        ];
        let (of_weights, of_rounding) = (error(&dense, &exact), error(&exact, &rounded));
        assert!(of_rounding < of_weights / 4.0, "{of_rounding} of {of_weights}");
        #[cfg(target_arch = "x86_64")]
        assert_eq!(of_rounding > 0.0, std::arch::is_x86_feature_detected!("avx2"));
    }
    Ok(())
}
