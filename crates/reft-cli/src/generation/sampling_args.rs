use clap::Args;
use reft_models::{GenerationConfig, Tokenizer};

/// How tokens are chosen, and when a reply ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub struct SamplingArgs {
    /// Most tokens of a reply
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_new_tokens: usize,
    /// 0 = always the best token (greedy), above 0 = draw, the wilder the higher
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw only from the N best tokens [default: from all]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw only from the best tokens that together have this probability, above 0 to 1
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f64,
    /// Makes tokens that have occurred less likely; 1 = no penalty
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// No N tokens in a row may occur twice [default: they may]
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
    /// Text that ends a reply and is not part of it; give it several times for several
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// The options for a model with this tokenizer, whose end tokens end a reply.
    ///
    /// # Errors
    /// If a value means nothing.
    pub fn config(&self, tokenizer: Option<&Tokenizer>) -> reft_models::Result<GenerationConfig> {
        let config = GenerationConfig {
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            stop_ids: tokenizer.map_or_else(Vec::new, |tokenizer| tokenizer.eos_ids().to_vec()),
            seed: self.seed,
            ..GenerationConfig::default()
        };
        config.check()?;
        Ok(config)
    }
}
