//! Helpers of the tests of this folder, in addition to `reft-test-support`: models, rows and the hidden states that hooks see.

use reft_models::{
    AdapterStack, Component, Decoder, HookPoint, Hooks, Model, PaddingSide, Result, Row, Span,
};
use reft_test_support::{Outcome, demo_model, oracle, own_tokens};
use tch::{Device, Kind, Tensor};

/// A model of `tests/oracle` in f32.
pub fn model(name: &str) -> Result<Decoder> {
    tch::set_num_threads(1); // tests run in parallel already
    Decoder::open(&oracle(name), Kind::Float, Device::Cpu)
}

pub fn tiny_llama() -> Result<Decoder> {
    model("tiny_llama")
}

/// The demo model in f32.
pub fn smollm2() -> Result<Decoder> {
    tch::set_num_threads(1);
    Decoder::open(&demo_model(), Kind::Float, Device::Cpu)
}

/// The rows of a right-padded batch `[b, t]` with its mask: all of it is prompt.
pub fn rows(input_ids: &Tensor, attention_mask: &Tensor) -> Outcome<Vec<Row>> {
    Ok(own_tokens(input_ids, attention_mask)?.into_iter().map(Row::prompt).collect())
}

pub fn base_logits(model: &dyn Model, rows: &[Row], padding: PaddingSide) -> Result<Vec<Tensor>> {
    AdapterStack::EMPTY.logits(model, rows.to_vec(), padding)
}

/// The hidden states at the points of the residual stream.
#[derive(Default)]
pub struct Flow {
    pub embeddings: Option<Tensor>,
    pub block_outputs: Vec<Tensor>,
}

impl Hooks for Flow {
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
