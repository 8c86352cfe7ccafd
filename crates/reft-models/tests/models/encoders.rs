//! Encoders against transformers 5.24: `tests/oracle/encoders`, made by `tools/oracle/make_encoders.py`.

use crate::oracle::rows;
use reft_test_support::{
    Outcome, Tensors, assert_close, folders, of_logits, oracle, oracle_text, tensors,
};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use reft_models::{
    AdapterStack, Component, Decoder, DecoderConfig, Error, GenerationConfig, HookPoint, Hooks,
    Layout, MlpActivation, Model, NormPlaces, PaddingSide, Row, Site, Span, Tokenizer,
    WeightStorage, Weights, generate, load_safetensors, save_safetensors,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn folder(name: &str) -> PathBuf {
    oracle("encoders").join(name)
}

fn encoders() -> Outcome<Vec<String>> {
    let names = folders(&oracle("encoders"))?;
    assert!(names.len() >= 7, "{names:?}");
    Ok(names)
}

fn encoder(name: &str) -> Outcome<Decoder> {
    tch::set_num_threads(1);
    Ok(Decoder::open(&folder(name), Kind::Float, Device::Cpu)?)
}

fn recorded(name: &str) -> Outcome<(Tensors, Vec<Row>)> {
    let io = tensors(&format!("encoders/{name}/io.safetensors"))?;
    let rows = rows(&io["input_ids"], &io["attention_mask"])?;
    Ok((io, rows))
}

/// Keeps the input of the first block and the output of every block.
#[derive(Default)]
struct Stream(Vec<Tensor>);

impl Hooks for Stream {
    fn visit(&mut self, point: HookPoint, h: Tensor, _: &Span) -> reft_models::Result<Tensor> {
        match point {
            HookPoint::Residual(Site { layer: 0, component: Component::BlockInput })
            | HookPoint::Residual(Site { component: Component::BlockOutput, .. }) => {
                self.0.push(h.shallow_clone());
            }
            _ => {}
        }
        Ok(h)
    }
}

/// Last hidden states of each row's own tokens.
fn last(model: &Decoder, rows: &[Row], padding: PaddingSide) -> Outcome<Vec<Tensor>> {
    Ok(AdapterStack::EMPTY.hidden_states(model, rows.to_vec(), padding)?)
}

fn of_row(recorded: &Tensor, row: usize, rows: &[Row]) -> Tensor {
    recorded.select(0, row as i64).narrow(0, 0, rows[row].input_ids.len() as i64)
}

#[test]
fn every_hidden_state_equals_that_of_transformers() -> Outcome {
    for name in encoders()? {
        let (model, (io, rows)) = (encoder(&name)?, recorded(&name)?);
        assert!(!model.description().is_causal);
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            let layout = Layout::new(rows.clone(), padding)?;
            let mut stream = Stream::default();
            let ids = layout.input_ids(Device::Cpu);
            let h = model.hidden_states(&ids, &layout.whole(), None, &mut stream)?;
            assert_eq!(stream.0.len(), model.description().num_hidden_layers + 1);
            let mut seen = vec![("last".to_owned(), h)];
            for (i, state) in stream.0.into_iter().enumerate() {
                let block = || format!("block.{}", i - 1);
                seen.push((if i == 0 { "embeddings".to_owned() } else { block() }, state));
            }
            for (state, found) in seen {
                for row in 0..rows.len() {
                    let expected = of_row(&io[&state], row, &rows);
                    let what = format!("{name}: {state}, row {row}, {padding:?}");
                    let found = layout.own(&found, row);
                    assert_close(&what, &found, &expected, of_logits(&expected));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_row_alone_needs_no_mask_and_gives_the_same() -> Outcome {
    for name in encoders()? {
        let (model, (io, rows)) = (encoder(&name)?, recorded(&name)?);
        for row in 0..rows.len() {
            let expected = of_row(&io["last"], row, &rows);
            let found = last(&model, &rows[row..=row], PaddingSide::Right)?;
            assert_close(&format!("{name}: {row}"), &found[0], &expected, of_logits(&expected));
        }
    }
    Ok(())
}

#[test]
fn tokens_have_the_types_that_they_are_given() -> Outcome {
    let (model, (io, mut rows)) = (encoder("bert")?, recorded("bert")?);
    let off = (&io["typed.last"] - &io["last"]).abs().max().double_value(&[]);
    assert!(off > 0.1, "types change nothing");
    for (i, row) in rows.iter_mut().enumerate() {
        let length = row.input_ids.len() as i64;
        let types = io["token_type_ids"].select(0, i as i64).narrow(0, 0, length);
        row.token_types = Some(types.try_into()?);
    }
    for padding in [PaddingSide::Right, PaddingSide::Left] {
        for (i, found) in last(&model, &rows, padding)?.iter().enumerate() {
            let expected = of_row(&io["typed.last"], i, &rows);
            assert_close(&format!("row {i}, {padding:?}"), found, &expected, of_logits(&expected));
        }
    }
    // one row without types: all of its tokens have type 0
    let plain = last(
        &model,
        &[Row::prompt(rows[0].input_ids.clone()), rows[1].clone()],
        PaddingSide::Left,
    )?;
    let expected = of_row(&io["last"], 0, &rows);
    assert_close("without types", &plain[0], &expected, of_logits(&expected));
    rows[1].token_types = Some(vec![3; rows[1].input_ids.len()]);
    let refused = last(&model, &rows, PaddingSide::Right).err().ok_or("accepted")?.to_string();
    assert_eq!(refused, "row 1 has a token of type 3, and the model has types 0..=2");
    rows[1].token_types = Some(vec![1]);
    let refused = Layout::new(rows, PaddingSide::Right);
    assert!(matches!(refused, Err(Error::TokenTypes { found: 1, length: 13 })), "{refused:?}");
    Ok(())
}

/// The comparison detects each option: with another value the hidden states are far from the recorded ones.
#[test]
fn every_option_of_the_encoders_matters() -> Outcome {
    type Change = (&'static str, &'static str, fn(&mut DecoderConfig));
    let changes: [Change; 14] = [
        ("bert", "view of later tokens", |c| c.model.is_causal = true),
        ("bert", "ε", |c| c.norm.eps = 1e-12),
        ("bert", "place of norms", |c| c.norm.places = NormPlaces::Post),
        ("bert", "function", |c| c.mlp.activation = MlpActivation::Silu),
        ("bert_mlm", "function", |c| c.mlp.activation = MlpActivation::Gelu),
        ("roberta", "first position", |c| {
            c.embeddings.positions.iter_mut().for_each(|own| own.first -= 1);
        }),
        ("roberta", "uncounted token", |c| {
            c.embeddings.positions.iter_mut().for_each(|own| own.uncounted = None);
        }),
        ("modernbert", "windows", |c| c.model.windows.fill(None)),
        ("modernbert", "width of windows", |c| c.model.windows[1] = Some(5)),
        ("modernbert", "θ", |c| c.attention.ropes[0].theta = 160_000.0),
        ("modernbert", "θ of windows", |c| c.attention.ropes[1].theta = 10_000.0),
        ("modernbert", "layers with windows", |c| c.model.windows.rotate_left(1)),
        ("modernbert_mlm", "layers with windows", |c| c.model.windows.rotate_left(1)),
        ("modernbert_mlm", "function", |c| c.mlp.activation = MlpActivation::Silu),
    ];
    for (name, option, change) in changes {
        let mut config = DecoderConfig::open(&folder(name))?;
        change(&mut config);
        let weights = Weights::open(&folder(name))?;
        let model = Decoder::from_weights(config, &weights, Kind::Float, Device::Cpu)?;
        let (io, rows) = recorded(name)?;
        let found = last(&model, &rows, PaddingSide::Right)?;
        let off = (&found[0] - of_row(&io["last"], 0, &rows)).abs().max().double_value(&[]);
        // GELU and its tanh approximation are close
        let least = if name == "bert_mlm" { 1e-4 } else { 1e-3 };
        assert!(off > least, "{name} without its {option}: off by {off:e}");
    }
    Ok(())
}

/// A copy of a model with renamed or additional tensors.
fn renamed(
    name: &str,
    rename: impl Fn(&str) -> String,
    more: &[&str],
) -> Outcome<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    fs::copy(folder(name).join("config.json"), dir.path().join("config.json"))?;
    let tensors = load_safetensors(&folder(name).join("model.safetensors"))?;
    let mut tensors: Vec<(String, Tensor)> =
        tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    let surplus = || Tensor::ones([3, 32], (Kind::Float, Device::Cpu));
    tensors.extend(more.iter().map(|name| ((*name).to_owned(), surplus())));
    save_safetensors(&dir.path().join("model.safetensors"), &tensors, None)?;
    Ok(dir)
}

#[test]
fn files_of_the_bare_encoder_and_of_its_heads_hold_the_same_model() -> Outcome {
    for (name, prefix, heads) in [
        ("bert", "bert.", &["pooler.more.weight", "cls.seq_relationship.weight"][..]),
        ("roberta", "roberta.", &["classifier.out_proj.weight", "lm_head.bias"]),
        ("modernbert", "model.", &["head.norm.weight", "decoder.bias", "classifier.weight"]),
    ] {
        let (_, rows) = recorded(name)?;
        let expected = last(&encoder(name)?, &rows, PaddingSide::Right)?;
        let whole = renamed(name, |own| format!("{prefix}{own}"), heads)?;
        let bare = renamed(name, str::to_owned, heads)?;
        for dir in [&whole, &bare] {
            let model = Decoder::open(dir.path(), Kind::Float, Device::Cpu)?;
            let found = last(&model, &rows, PaddingSide::Right)?;
            assert_eq!(found, expected, "{name}");
            assert!(model.weights().iter().all(|(own, _)| !own.starts_with(prefix)), "{name}");
        }
    }
    // surplus tensors that belong to no head are reported
    let surplus = ["bert.embeddings.other.weight", "bert.encoder.layer.9.output.dense.weight"];
    let dir = renamed("bert", |own| format!("bert.{own}"), &surplus)?;
    match Decoder::open(dir.path(), Kind::Float, Device::Cpu) {
        Err(Error::WeightMismatch { unexpected, missing, .. }) => {
            assert_eq!((unexpected, missing.len()), (surplus.map(str::to_owned).to_vec(), 0));
        }
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}

/// The names of norms in 2018, which files on the hub still use.
#[test]
fn norms_with_gamma_and_beta_are_read() -> Outcome {
    let old = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta"))
    };
    let dir = renamed("bert", old, &["bert.embeddings.position_ids"])?;
    let model = Decoder::open(dir.path(), Kind::Float, Device::Cpu)?;
    let (io, rows) = recorded("bert")?;
    let expected = of_row(&io["last"], 0, &rows);
    let found = last(&model, &rows[..1], PaddingSide::Right)?;
    assert_close("gamma and beta", &found[0], &expected, of_logits(&expected));
    Ok(())
}

#[test]
fn what_needs_next_tokens_refuses_an_encoder() -> Outcome {
    let (model, (_, rows)) = (encoder("bert")?, recorded("bert")?);
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let config = GenerationConfig::default();
    let refused = generate(&model, &AdapterStack::EMPTY, &rows, &config, go_on);
    assert!(
        matches!(&refused, Err(Error::Encoder { model_type, .. }) if model_type == "bert"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn texts_longer_than_the_table_of_positions_are_refused() -> Outcome {
    for (name, most) in [("bert", 48), ("roberta", 46), ("roberta_classifier", 42)] {
        let model = encoder(name)?;
        assert_eq!(model.description().max_position_embeddings, most as i64, "{name}");
        let of = |length| last(&model, &[Row::prompt(vec![7; length])], PaddingSide::Right);
        of(most)?;
        let refused = of(most + 1).err().ok_or("accepted")?.to_string();
        assert!(refused.contains(&format!("context is {most}")), "{refused}");
    }
    Ok(())
}

/// With packed weights and in half precision, results are close to those in f32.
#[test]
fn every_encoder_can_be_held_small() -> Outcome {
    for name in encoders()? {
        let (io, rows) = recorded(&name)?;
        let expected = of_row(&io["last"], 0, &rows);
        let spread = expected.std(false).double_value(&[]);
        let of = |weights: Weights, kind| -> Outcome<f64> {
            let config = DecoderConfig::open(&folder(&name))?;
            let model = Decoder::from_weights(config, &weights, kind, Device::Cpu)?;
            let found = last(&model, &rows, PaddingSide::Left)?.remove(0);
            assert_eq!((found.kind(), model.kind()), (kind, kind));
            let off = (found.to_kind(Kind::Float) - &expected).square().mean(Kind::Double).sqrt();
            Ok(off.double_value(&[])) // NaN fails below
        };
        let open = || Weights::open(&folder(&name));
        for (off, allowed) in [
            (of(open()?.held_as(WeightStorage::Int8), Kind::Float)?, 0.1),
            (of(open()?, Kind::BFloat16)?, 0.1),
        ] {
            assert!(off < allowed * spread, "{name}: off by {off} of {spread}");
        }
    }
    Ok(())
}

#[test]
fn fields_that_say_something_else_are_refused_by_name() -> Outcome {
    for (name, field, value) in [
        ("bert", "position_embedding_type", json!("relative_key")),
        ("bert", "is_decoder", json!(true)),
        ("bert", "hidden_act", json!("relu")),
        ("bert", "num_attention_heads", json!(5)),
        ("bert", "num_key_value_heads", json!(2)),
        ("bert", "rope_theta", json!(5.0)),
        ("bert", "type_vocab_size", json!(-1)),
        ("bert", "max_position_embeddings", json!(0)),
        ("bert", "attention_of_tomorrow", json!(1)),
        ("roberta", "pad_token_id", json!(99)),
        ("roberta", "max_position_embeddings", json!(2)),
        ("modernbert", "local_attention", json!(0)),
        ("modernbert", "sliding_window", json!(4)),
        ("modernbert", "rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
        ("modernbert", "hidden_activation", json!("relu")),
    ] {
        let file = folder(name).join("config.json");
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
        config[field] = value;
        let refused = DecoderConfig::from_json(config, &file).err().ok_or("accepted")?.to_string();
        assert!(refused.contains(&format!("{field} is")), "{name} {field}: {refused}");
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct Text {
    text: Vec<String>,
    ids: Vec<i64>,
    types: Vec<i64>,
}

/// WordPiece and byte-pair encoding, with the special tokens around one text or two.
#[test]
fn texts_become_the_rows_that_they_are_in_transformers() -> Outcome {
    for name in ["bert", "roberta"] {
        let tokenizer = Tokenizer::open(&folder(name))?;
        let texts = serde_json::from_str::<serde_json::Value>(&oracle_text(&format!(
            "encoders/{name}/texts.json"
        ))?)?;
        let texts: Vec<Text> = serde_json::from_value(texts)?;
        for Text { text, ids, types } in texts {
            let row =
                tokenizer.encode_row(&text[0], text.get(1).map(String::as_str), usize::MAX)?;
            assert_eq!(row.input_ids, ids, "{name}: {text:?}");
            assert_eq!(row.prompt_length, ids.len(), "{name}: {text:?}");
            let found = row.token_types.unwrap_or_else(|| vec![0; ids.len()]);
            assert_eq!(found, types, "{name}: {text:?}");
        }
    }
    Ok(())
}

/// Oracle: tools/oracle/make_labels.py. One text or two, at lengths at which none, one or both are truncated.
#[test]
fn long_texts_are_cut_as_transformers_cuts_them() -> Outcome {
    #[derive(serde::Deserialize)]
    struct Cut {
        text: Vec<String>,
        max_length: usize,
        ids: Vec<i64>,
    }
    let oracle: BTreeMap<String, Vec<Cut>> =
        serde_json::from_str(&oracle_text("labels/cut_texts.json")?)?;
    for (name, cases) in oracle {
        let tokenizer = Tokenizer::open(&folder(&name))?;
        for Cut { text, max_length, ids } in cases {
            let second = text.get(1).map(String::as_str);
            let row = tokenizer.encode_row(&text[0], second, max_length)?;
            assert_eq!(row.input_ids, ids, "{name}: {text:?} within {max_length}");
        }
    }
    Ok(())
}
