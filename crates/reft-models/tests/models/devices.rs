//! A model in parts gives the same results as in one piece, bit for bit, wherever it is cut.

use std::path::{Path, PathBuf};

use reft_models::{
    Component, Decoder, Error, KvCache, Layout, Model, NoHooks, PaddingSide, Place, Placement, Row,
    Site, Span, TokenAt, collect,
};
use reft_test_support::{Outcome, oracle};
use tch::{Device, Kind, Tensor, no_grad};

use crate::oracle::Flow;

fn parts(blocks: &[usize]) -> reft_models::Result<Placement> {
    let of_cpu: Vec<(Device, usize)> = blocks.iter().map(|n| (Device::Cpu, *n)).collect();
    Placement::of_blocks(&of_cpu)
}

fn open(path: &Path, placement: impl Into<Placement>) -> Outcome<Decoder> {
    tch::set_num_threads(1);
    Ok(Decoder::open(path, Kind::Float, placement)?)
}

/// Every tiny model: tied and untied embeddings, encoders, learned positions, windows, prefixes of names.
fn families() -> Outcome<Vec<PathBuf>> {
    let mut found = vec![oracle("tiny_llama")];
    for folder in ["families", "more_families", "encoders"] {
        for entry in std::fs::read_dir(oracle(folder))? {
            found.push(entry?.path());
        }
    }
    found.retain(|path| path.join("config.json").is_file());
    Ok(found)
}

fn rows() -> Vec<Row> {
    let row = |n: i64, first: i64| Row::prompt((0..n).map(|i| 3 + (first + 7 * i) % 25).collect());
    vec![row(9, 1), row(5, 2), row(12, 3)]
}

/// Embeddings, the output of each block, and final hidden states; then the same for tokens after a cache.
fn seen(model: &Decoder) -> Outcome<Vec<Tensor>> {
    let mut all = Vec::new();
    for padding in [PaddingSide::Left, PaddingSide::Right] {
        let layout = Layout::new(rows(), padding)?;
        let mut flow = Flow::default();
        all.push(no_grad(|| model.whole_pass(&layout, &mut flow))?);
        all.extend(flow.embeddings);
        all.extend(flow.block_outputs);
    }
    let description = model.description();
    if description.is_causal {
        let layout = Layout::new(rows(), PaddingSide::Left)?;
        let mut cache: KvCache = model.kv_cache(3, 12);
        let ids = layout.input_ids(model.device());
        for columns in [0..7, 7..12] {
            let own = ids.narrow(1, columns.start as i64, columns.len() as i64);
            let span = Span { layout: &layout, columns };
            let h = no_grad(|| model.hidden_states(&own, &span, Some(&mut cache), &mut NoHooks))?;
            all.push(model.logits(&h));
        }
    }
    Ok(all)
}

#[test]
fn every_family_is_the_same_in_parts() -> Outcome {
    let families = families()?;
    assert!(families.len() > 20, "{families:?}");
    for path in families {
        let whole = open(&path, Device::Cpu)?;
        let expected = seen(&whole)?;
        let blocks = whole.description().num_hidden_layers;
        for first in 1..blocks {
            let cut = open(&path, parts(&[first, blocks - first])?)?;
            assert_eq!(cut.placement().parts(), 2);
            assert_eq!(seen(&cut)?, expected, "{} cut at {first}", path.display());
        }
        let each = open(&path, parts(&vec![1; blocks])?)?;
        assert_eq!(seen(&each)?, expected, "{} in {blocks} parts", path.display());
    }
    Ok(())
}

#[test]
fn a_source_run_brings_what_it_keeps_together() -> Outcome {
    let path = oracle("tiny_llama");
    let found = |model: &Decoder| -> Outcome<Vec<Tensor>> {
        let layout = Layout::new(rows(), PaddingSide::Right)?;
        let site = |layer, component| Place::whole(Site { layer, component });
        let token = TokenAt { row: 1, token: 4 };
        let wanted = [site(0, Component::BlockOutput), site(3, Component::MlpOutput)]
            .map(|place| (place, vec![token]));
        Ok(collect(model, &reft_models::AdapterStack::EMPTY, &layout, wanted.to_vec())?)
    };
    let whole = found(&open(&path, Device::Cpu)?)?;
    assert_eq!(found(&open(&path, parts(&[1, 3])?)?)?, whole);
    Ok(())
}

#[test]
fn more_blocks_than_there_are_cannot_be_placed() -> Outcome {
    let path = oracle("tiny_llama");
    let refused = Decoder::open(&path, Kind::Float, parts(&[4, 1])?);
    let Err(Error::Placement { reason }) = refused else { panic!("it is placed") };
    assert!(reason.contains("expected 4 blocks in all"), "{reason}");
    Ok(())
}
