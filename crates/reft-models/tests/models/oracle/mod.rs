//! What the tests of this folder share: the recorded numbers of other implementations, and how closeness is asserted.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reft_models::{
    Component, Decoder, HookPoint, Hooks, Layout, Model, NoHooks, PaddingSide, Result, Row, Span,
    load_safetensors,
};
use tch::{Device, Kind, Tensor};

pub type Tensors = BTreeMap<String, Tensor>;

/// A file or directory of `tests/oracle` at the root of the repository.
pub fn path(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle")).join(name)
}

pub fn tensors(name: &str) -> Result<Tensors> {
    load_safetensors(&path(name))
}

pub fn json(name: &str) -> std::result::Result<serde_json::Value, Box<dyn std::error::Error>> {
    Ok(serde_json::from_str(&std::fs::read_to_string(path(name))?)?)
}

pub fn tiny_llama() -> Result<Decoder> {
    tch::set_num_threads(1); // tests run side by side already
    Decoder::open(&path("tiny_llama"), Kind::Float, Device::Cpu)
}

/// The demo model in f32.
pub fn smollm2() -> Result<Decoder> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/SmolLM2-135M-Instruct"));
    tch::set_num_threads(1);
    assert!(dir.exists(), "the demo model is not there: run `cargo xtask model`");
    Decoder::open(dir, Kind::Float, Device::Cpu)
}

/// The rows of a right-padded batch `[b, t]` with its mask: all of it is prompt.
pub fn rows(input_ids: &Tensor, attention_mask: &Tensor) -> Result<Vec<Row>> {
    let row = |i| {
        let length = attention_mask.select(0, i).sum(Kind::Int64).int64_value(&[]);
        Ok(Row::prompt(input_ids.select(0, i).narrow(0, 0, length).try_into()?))
    };
    (0..input_ids.size()[0]).map(row).collect()
}

/// The logits of every row's own tokens, `[t, v]` each.
pub fn logits(
    model: &dyn Model,
    rows: &[Row],
    padding: PaddingSide,
    hooks: &mut dyn Hooks,
) -> Result<Vec<Tensor>> {
    let layout = Layout::new(rows.to_vec(), padding)?;
    logits_of(model, &layout, hooks)
}

/// As [`logits`], for hooks that were made for a layout.
pub fn logits_of(model: &dyn Model, layout: &Layout, hooks: &mut dyn Hooks) -> Result<Vec<Tensor>> {
    let ids = layout.input_ids(model.device());
    let h = model.hidden_states(&ids, &layout.whole(), None, hooks)?;
    let logits = model.logits(&h);
    Ok((0..layout.batch_size()).map(|i| own_columns(layout, &logits, i)).collect())
}

/// What a tensor `[b, t, ..]` holds for the tokens of a row.
pub fn own_columns(layout: &Layout, x: &Tensor, row: usize) -> Tensor {
    let columns = layout.columns(row);
    x.select(0, row as i64).narrow(0, columns.start as i64, columns.len() as i64)
}

pub fn base_logits(model: &dyn Model, rows: &[Row], padding: PaddingSide) -> Result<Vec<Tensor>> {
    logits(model, rows, padding, &mut NoHooks)
}

/// Collects what flows past the points of the residual stream.
#[derive(Default)]
pub struct Collect {
    pub embeddings: Option<Tensor>,
    pub block_outputs: Vec<Tensor>,
}

impl Hooks for Collect {
    fn visit(&mut self, point: HookPoint, h: Tensor, _span: &Span) -> Result<Tensor> {
        match point {
            HookPoint::Embeddings => self.embeddings = Some(h.shallow_clone()),
            HookPoint::Residual(site) if site.component == Component::BlockOutput => {
                assert_eq!(site.layer, self.block_outputs.len());
                self.block_outputs.push(h.shallow_clone());
            }
            _ => {}
        }
        Ok(h)
    }
}

/// Fails with the largest difference, its index and both values if it is not within `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}: shape");
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let difference = (&found - &expected).abs().flatten(0, -1);
    let index = difference.argmax(0, false).int64_value(&[]);
    let at = |x: &Tensor| x.flatten(0, -1).double_value(&[index]);
    let largest = at(&difference);
    assert!(
        largest <= tolerance, // NaN fails
        "{what}: {} at flat index {index}, expected {} to {tolerance:e}: off by {largest:e}",
        at(&found),
        at(&expected),
    );
}
