//! A ReFT adapter on the tiny reference model: files, errors, and adapters that pyreft saved.

use std::collections::BTreeMap;
use std::path::Path;

use reft_core::{Activation, InterventionConfig, Method, Positions};
use reft_methods::{PyreftImport, ReftAdapter, ReftConfig, import_pyreft};
use reft_models::{
    Adapter, AdapterStack, BaseModel, Decoder, Error, Mode, Model, NoHooks, PaddingSide,
    load_safetensors, save_safetensors,
};
use tch::{Device, Kind, Tensor};

use crate::oracle::{
    self, Outcome, assert_logits, base_logits, difference, path, tensors, tiny_examples, tiny_llama,
};

/// Logits of the common batch with an adapter.
fn logits(decoder: &Decoder, adapter: &ReftAdapter, padding: PaddingSide) -> Outcome<Vec<Tensor>> {
    oracle::logits(decoder, &AdapterStack::one(adapter), &tiny_examples()?, padding)
}

fn config(method: Method, decoder: &Decoder) -> Result<ReftConfig, reft_core::Error> {
    let intervention = InterventionConfig {
        init: Some(reft_core::Init::Reference),
        ..InterventionConfig::new(method, 4)
    };
    let base_model = BaseModel::of(decoder.description(), "tiny_llama");
    let config = ReftConfig::new(&intervention, vec![1, 3], "f2+l2".parse()?, base_model);
    Ok(ReftConfig { share_weights: true, ..config })
}

fn saved_adapter(decoder: &Decoder, dir: &Path) -> Outcome<ReftAdapter> {
    tch::manual_seed(11);
    let adapter = ReftAdapter::new(config(Method::Loreft, decoder)?, decoder)?;
    adapter.save(dir)?;
    Ok(adapter)
}

#[test]
fn a_saved_adapter_gives_the_same_logits() -> Outcome {
    let decoder = tiny_llama()?;
    for &method in Method::ALL {
        for share_weights in [true, false] {
            let dir = tempfile::tempdir()?;
            tch::manual_seed(5);
            let config = ReftConfig { share_weights, ..config(method, &decoder)? };
            let adapter = ReftAdapter::new(config, &decoder)?;
            adapter.save(dir.path())?;
            let loaded = ReftAdapter::load(dir.path(), &decoder)?;
            assert_eq!(loaded.config(), adapter.config());
            let before = logits(&decoder, &adapter, PaddingSide::Right)?;
            let after = logits(&decoder, &loaded, PaddingSide::Right)?;
            let plain = base_logits(&decoder, &tiny_examples()?)?;
            assert!(difference(&before, &plain) > 1e-2, "{method}: no edit, no test");
            let off = difference(&before, &after);
            assert!(off == 0.0, "{method}, share_weights {share_weights}: {off:e}");
            // Further training starts from the same adapter, up to rounding.
            let trainable = loaded.into_trainable()?;
            assert!(!trainable.parameters().is_empty());
            let start = logits(&decoder, &trainable, PaddingSide::Right)?;
            let off = difference(&before, &start);
            assert!(off < 2e-5, "{method}, share_weights {share_weights}: {off:e}"); // f32, |logit| < 12
        }
    }
    Ok(())
}

/// Oracle: `reft_saved/*` are directories that pyreft 0.1.0 wrote, `*.logits.safetensors` the logits of the same adapters in Python.
#[test]
fn adapters_saved_by_pyreft_give_pyreft_logits() -> Outcome {
    let decoder = tiny_llama()?;
    let import = PyreftImport {
        positions: "f2+l2".parse()?,
        share_weights: true,
        act_fn: Activation::Linear,
        base_model: None,
    };
    for name in ["loreft", "noreft", "consreft", "lobireft", "direft", "nodireft"] {
        let adapter = import_pyreft(&path(&format!("reft_saved/{name}")), &import)?;
        let file = path(&format!("reft_saved/{name}.logits.safetensors"));
        let expected = load_safetensors(&file)?.remove("logits_before_save").ok_or("logits")?;
        let lengths = tiny_examples()?.into_iter().map(|example| example.length() as i64);
        let own = |(i, length)| expected.get(i as i64).narrow(0, 0, length);
        let expected: Vec<Tensor> = lengths.enumerate().map(own).collect();
        for padding in [PaddingSide::Right, PaddingSide::Left] {
            let off = difference(&logits(&decoder, &adapter, padding)?, &expected);
            assert!(off < 2e-5, "{name}, {padding:?}: {off:e}"); // f32, |logit| < 12
        }
    }
    Ok(())
}

/// Oracle: `reft_square/saved` is a rotation of rank 64 saved by pyreft 0.1.0; torch parametrises it by a matrix exponential.
#[test]
fn a_square_rotation_saved_by_pyreft_is_that_rotation() -> Outcome {
    let (decoder, d) = (tiny_llama()?, 64);
    let import = PyreftImport {
        positions: "f2+l2".parse()?,
        share_weights: true,
        act_fn: Activation::Linear,
        base_model: None,
    };
    let adapter = import_pyreft(&path("reft_square/saved"), &import)?;
    assert_eq!(adapter.config().low_rank_dimension, d);
    let expected = tensors("reft_square/logits.safetensors")?.remove("logits").ok_or("logits")?;
    assert_logits("square", &logits(&decoder, &adapter, PaddingSide::Right)?, &expected);
    Ok(())
}

#[test]
fn a_pyreft_directory_with_other_positions_is_refused() -> Outcome {
    let import = PyreftImport {
        positions: "f2+l2".parse()?,
        share_weights: false,
        act_fn: Activation::Linear,
        base_model: None,
    };
    let refused = import_pyreft(&path("reft_saved/loreft"), &import);
    assert!(
        matches!(&refused, Err(Error::Format { reason, .. }) if reason.contains("give --share-weights")),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn every_wrong_tensor_is_named() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    saved_adapter(&decoder, dir.path())?;
    let file = dir.path().join(ReftAdapter::FILE_NAME);
    let mut tensors: BTreeMap<String, Tensor> = load_safetensors(&file)?;
    let rotation = tensors.remove("layers.1.block_output.tied.rotation").ok_or("rotation")?;
    tensors.insert("layers.2.block_output.tied.rotation".into(), rotation);
    let misshapen = "layers.3.block_output.tied.learned_source.bias";
    tensors.insert(misshapen.into(), Tensor::zeros([5], (Kind::Float, Device::Cpu)));
    let tensors: Vec<_> = tensors.into_iter().collect();
    save_safetensors(&file, &tensors, None)?;
    match ReftAdapter::load(dir.path(), &decoder) {
        Err(Error::WeightMismatch { missing, unexpected, misshapen: shapes, .. }) => {
            assert_eq!(missing, ["layers.1.block_output.tied.rotation"]);
            assert_eq!(unexpected, ["layers.2.block_output.tied.rotation"]);
            assert_eq!(shapes, [(misshapen.to_owned(), vec![5], vec![4])]);
        }
        other => panic!("{other:?}"),
    }
    Ok(())
}

#[test]
fn a_rotation_that_is_none_is_refused() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    saved_adapter(&decoder, dir.path())?;
    let file = dir.path().join(ReftAdapter::FILE_NAME);
    for value in [0.0, f64::NAN] {
        let mut tensors = load_safetensors(&file)?;
        let rotation = tensors.get_mut("layers.1.block_output.tied.rotation").ok_or("rotation")?;
        let _ = rotation.fill_(value);
        let tensors: Vec<_> = tensors.into_iter().collect();
        save_safetensors(&file, &tensors, None)?;
        let refused = ReftAdapter::load(dir.path(), &decoder);
        let Err(Error::Core(reft_core::Error::NotOrthonormal { .. })) = refused else {
            panic!("{refused:?}");
        };
    }
    Ok(())
}

#[test]
fn configurations_that_cannot_be_are_refused() -> Outcome {
    let decoder = tiny_llama()?;
    let good = config(Method::Loreft, &decoder)?;
    let base = good.base_model.clone();
    let bad = [
        ReftConfig { layers: vec![], ..good.clone() },
        ReftConfig { layers: vec![1, 1], ..good.clone() },
        ReftConfig { layers: vec![3, 1], ..good.clone() },
        ReftConfig { layers: vec![4], ..good.clone() },
        ReftConfig { format_version: 2, ..good.clone() },
        ReftConfig { component: reft_models::Component::Query, ..good.clone() },
        ReftConfig { base_model: BaseModel { hidden_size: 32, ..base.clone() }, ..good.clone() },
        ReftConfig {
            base_model: BaseModel { vocab_size: Some(9), ..base.clone() },
            ..good.clone()
        },
        // without a recorded base model, the layers are checked against the given model
        ReftConfig {
            layers: vec![4],
            base_model: BaseModel { num_hidden_layers: None, ..base },
            ..good.clone()
        },
    ];
    for config in bad {
        let refused = ReftAdapter::new(config.clone(), &decoder);
        assert!(matches!(refused, Err(Error::Adapter { .. })), "{config:?}: {refused:?}");
    }
    for low_rank_dimension in [0, 65] {
        let refused = ReftAdapter::new(ReftConfig { low_rank_dimension, ..good.clone() }, &decoder);
        assert!(
            matches!(refused, Err(Error::Core(reft_core::Error::Rank { hidden_size: 64, .. }))),
            "{refused:?}"
        );
    }
    Ok(())
}

#[test]
fn unknown_fields_and_broken_json_name_their_line() -> Outcome {
    let decoder = tiny_llama()?;
    let dir = tempfile::tempdir()?;
    saved_adapter(&decoder, dir.path())?;
    let path = dir.path().join(ReftConfig::FILE_NAME);
    let text = std::fs::read_to_string(&path)?;
    for broken in [
        text.replacen("\"method\"", "\"metod\"", 1),
        text.replacen("\"loreft\"", "\"lowreft\"", 1),
        text.replacen("\"f2+l2\"", "\"f2*l2\"", 1),
        text.replacen("\"block_output\"", "\"block\"", 1),
        text[..text.len() / 2].to_owned(),
    ] {
        std::fs::write(&path, &broken)?;
        match ReftAdapter::load(dir.path(), &decoder) {
            Err(Error::Json { source, .. }) => assert!(source.line() > 0, "{source}"),
            other => panic!("{other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_row_may_keep_part_of_the_subspace_as_it_is() -> Outcome {
    let decoder = tiny_llama()?;
    let adapter = ReftAdapter::new(config(Method::Loreft, &decoder)?, &decoder)?;
    let mut rows: Vec<_> = tiny_examples()?.iter().map(|example| example.row().clone()).collect();
    rows[1].subspace = Some(vec![]);
    let layout = reft_models::Layout::new(rows.clone(), PaddingSide::Right)?;
    let _guard = tch::no_grad_guard();
    let mut hooks = adapter.hooks(&layout, Mode::Eval)?;
    let ids = layout.input_ids(Device::Cpu);
    let edited = decoder.hidden_states(&ids, &layout.whole(), None, hooks.as_mut())?;
    let plain = decoder.hidden_states(&ids, &layout.whole(), None, &mut NoHooks)?;
    let difference = |row| (edited.get(row) - plain.get(row)).abs().max().double_value(&[]);
    assert!(difference(0) > 1e-2);
    assert!(difference(1) < 1e-5, "row 1 may change nothing: {}", difference(1)); // h + 0·Rᵀ

    rows[2].subspace = Some(vec![0, 4]);
    let layout = reft_models::Layout::new(rows, PaddingSide::Right)?;
    let refused = adapter.hooks(&layout, Mode::Eval).err();
    assert!(
        matches!(refused, Some(Error::Core(reft_core::Error::Subspace { index: 4, rank: 4 }))),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn positions_are_those_of_the_prompt() -> Outcome {
    let decoder = tiny_llama()?;
    let positions: Positions = "l1".parse()?;
    let config = ReftConfig { positions, layers: vec![3], ..config(Method::Loreft, &decoder)? };
    let adapter = ReftAdapter::new(config, &decoder)?;
    let edited = logits(&decoder, &adapter, PaddingSide::Left)?;
    let examples = tiny_examples()?;
    let stack = AdapterStack::EMPTY;
    let plain = oracle::logits(&decoder, &stack, &examples, PaddingSide::Left)?;
    for (row, (edited, plain)) in edited.iter().zip(&plain).enumerate() {
        // At the last layer, an edit changes only its own token.
        let changed = (edited - plain).abs().amax([-1i64].as_slice(), false);
        for token in 0..examples[row].length() {
            let changed = changed.double_value(&[token as i64]);
            let is_edited = token == examples[row].row().prompt_length - 1;
            assert!(
                if is_edited { changed > 1e-2 } else { changed == 0.0 },
                "row {row}, token {token}: {changed}"
            );
        }
    }
    Ok(())
}
