use std::path::PathBuf;

use reft_core::LARGEST_COUNT;
use reft_methods::{Error as MethodError, MethodOptions, Methods, resolve};
use reft_models::{
    Adapter, ContextLimit, Decoder, DecoderConfig, Dose, Model, ModelDescription, Reach, Row,
    WeightStorage, Weights, read_json,
};
use reft_train::{Example, IGNORE_INDEX, Learner};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::{FloorAdapter, Precision, Result};

/// The name of the frozen floor among methods.
pub const FLOOR: &str = "floor";

/// A case to time: one method on batches of one shape. It is plain data, to be passed to a separate process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingCase {
    /// Model directory or GGUF file; with `random_weights` a `config.json` or its directory.
    pub model: PathBuf,
    /// Whether weights are random.
    pub random_weights: bool,
    /// Kind of the frozen model's numbers.
    pub kind: Precision,
    /// How the frozen model's matrices are stored in memory.
    pub weights: WeightStorage,
    /// Whether hidden states are rounded to eight bits: [`Weights::int8_products`].
    pub int8_products: bool,
    /// [`FLOOR`], or a method's name.
    pub method: String,
    /// Options of several methods; this method takes its own.
    pub options: MethodOptions,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Prompt tokens of a row.
    pub prompt_length: usize,
    /// Tokens of a row after its prompt, all of them labels.
    pub response_length: usize,
    /// Steps whose time counts.
    pub steps: usize,
    /// Whether the frozen model's part of the rows is kept.
    pub reuse: bool,
    /// Whether each block is recomputed in the backward instead of keeping its activations.
    pub checkpoint_activations: bool,
    /// Tokens to generate after each prompt; 0: no generation is timed.
    pub new_tokens: usize,
}

impl TimingCase {
    /// The configuration of the model, read without its weights.
    ///
    /// # Errors
    /// If the configuration is missing or is not a decoder's.
    pub fn model_config(&self) -> Result<DecoderConfig> {
        if !self.random_weights || self.model.is_dir() {
            return Ok(DecoderConfig::open(&self.model)?);
        }
        Ok(DecoderConfig::from_json(read_json(&self.model)?, &self.model)?)
    }

    /// Checks everything against the model before its weights are read.
    ///
    /// # Errors
    /// [`MethodError::OptionValue`] for an invalid size, [`MethodError::UnknownMethod`], errors of the method and of
    /// [`ModelDescription::check_predicts`].
    pub fn check(&self, model: &ModelDescription) -> Result<()> {
        model.check_predicts("a step of training on next tokens")?;
        at_least("batch_size", self.batch_size, 1)?;
        at_least("prompt_length", self.prompt_length, 1)?;
        at_least("response_length", self.response_length, 1)?;
        at_least("steps", self.steps, 1)?;
        if self.new_tokens == 1 {
            at_least("generate", 1, 2)?; // the prefill makes the first token, so a decode step needs two
        }
        let taken = self.methods(model)?.map_or(0, |methods| methods.context_taken());
        let context = ContextLimit::new(model, taken);
        let length = self.prompt_length.saturating_add(self.response_length.max(self.new_tokens));
        if length > context.room() {
            let found = format!("{}, with what follows it {length}", self.prompt_length);
            let beside = match taken {
                0 => String::new(),
                n => format!(" less {n} virtual tokens or tokens of a prefix"),
            };
            let (room, limit) = (context.room(), context.limit);
            let expected =
                format!("at most {room} tokens together, the model's context of {limit}{beside}");
            return Err(refused("prompt_length", found, expected));
        }
        let methods = self.methods(model)?;
        if self.is_packed() && methods.is_some_and(|methods| methods.has("full")) {
            let expected = "dense: full fine-tuning changes every number".to_owned();
            return Err(refused("weights", self.weights.to_string(), expected));
        }
        Ok(())
    }

    /// Whether matrices are held as packed blocks (GGUF's, or int8 and int4).
    pub(crate) fn is_packed(&self) -> bool {
        match self.weights {
            WeightStorage::Dense => false,
            WeightStorage::AsStored => self.model.is_file() && !self.random_weights,
            WeightStorage::Int8 | WeightStorage::Int4 => true,
        }
    }

    /// The methods of the case; `None` for the frozen floor.
    pub(crate) fn methods(&self, model: &ModelDescription) -> Result<Option<Methods>> {
        if self.method == FLOOR {
            return Ok(None);
        }
        let options = self.options.of_method(&self.method)?;
        Ok(Some(resolve(&self.method, &options, model)?))
    }

    pub(crate) fn decoder(&self, config: DecoderConfig, device: Device) -> Result<Decoder> {
        let weights = match self.random_weights {
            true => Weights::random(&config.describe().tensors),
            false => Weights::open(&self.model)?,
        };
        let weights = weights.held_as(self.weights).int8_products(self.int8_products);
        Ok(Decoder::from_weights(config, &weights, self.kind.kind(), device)?)
    }

    pub(crate) fn adapters(&self, model: &dyn Model) -> Result<Vec<Box<dyn Adapter>>> {
        Ok(match self.methods(model.description())? {
            None => vec![Box::new(FloorAdapter::new(model.device()))],
            Some(methods) => methods.build(model, "timed")?,
        })
    }

    /// The first stage and token of a row that the method edits or a label is predicted from, and whether everything before them is cached.
    pub(crate) fn reach(&self, learner: &Learner) -> (Reach, bool) {
        let row = self.examples(1, learner.model.description().vocab_size).swap_remove(0);
        let reach = learner.reach(Dose::WHOLE, row.row(), self.prompt_length - 1);
        let is_any = reach.stage > 0 || reach.token > 0;
        (reach, self.reuse && learner.stack.virtual_tokens() == 0 && is_any)
    }

    /// The rows of some batches, the same for every method: all tokens differ from row to row and none is padding.
    pub(crate) fn examples(&self, batches: usize, vocab_size: i64) -> Vec<Example> {
        (0..batches * self.batch_size)
            .map(|row| {
                let width = self.prompt_length + self.response_length;
                let input_ids: Vec<i64> = (0..width).map(|t| token(row, t, vocab_size)).collect();
                let mut labels = vec![IGNORE_INDEX; self.prompt_length];
                labels.extend(&input_ids[self.prompt_length..]);
                let row = Row { input_ids, prompt_length: self.prompt_length, ..Row::default() };
                Example::of("timed", row, labels)
            })
            .collect()
    }
}

/// A pseudo-random token. `tools/rivals` makes the same tokens, so that both sides of a comparison compute the same rows.
fn token(row: usize, t: usize, vocab_size: i64) -> i64 {
    let place = (row as u64).wrapping_mul(1_000_003) + t as u64 + 1;
    let place = place.wrapping_mul(2_654_435_761); // Knuth's multiplicative hash
    ((place >> 8) & 0xff_ffff) as i64 % vocab_size
}

fn at_least(option: &'static str, found: usize, least: usize) -> Result<()> {
    if (least..=LARGEST_COUNT).contains(&found) {
        return Ok(());
    }
    Err(refused(option, found.to_string(), format!("at least {least} and at most {LARGEST_COUNT}")))
}

pub(super) fn refused(option: &'static str, found: String, expected: String) -> crate::Error {
    MethodError::OptionValue { option, found, expected }.into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_of_all_rows_differ_and_are_in_the_vocabulary() {
        let (rows, width, vocab_size) = (40, 128, 49_152);
        let row = |row: usize| (0..width).map(|t| token(row, t, vocab_size)).collect::<Vec<_>>();
        let rows: HashSet<Vec<i64>> = (0..rows).map(row).collect();
        assert_eq!(rows.len(), 40);
        let tokens: HashSet<i64> = rows.into_iter().flatten().collect();
        assert!(tokens.iter().all(|token| (0..vocab_size).contains(token)));
        assert!(tokens.len() > 4_500, "{} of 5120 are distinct", tokens.len()); // 49,152·(1 − e^(−5120/49152)) = 4,862 if random
    }

    #[test]
    fn the_first_tokens_are_those_that_the_rivals_compute() {
        assert_eq!(
            (0..3).map(|t| token(0, t, 49_152)).collect::<Vec<_>>(),
            [46_969, 28_403, 26_221]
        );
    }
}
