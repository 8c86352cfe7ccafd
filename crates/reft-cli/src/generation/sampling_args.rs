use clap::Args;
use reft_models::{ChatOptions, GenerationConfig, Tokenizer};

use crate::options::{Declared, FlagGroup, Flags};

/// How tokens are chosen, and when a reply ends.
#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
pub struct SamplingArgs {
    #[command(flatten)]
    config: Flags<GenerationConfig>,
    /// Text that ends a reply and is not part of it; give it several times for several texts
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl FlagGroup for ChatOptions {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

impl FlagGroup for GenerationConfig {
    fn declared() -> Vec<Declared> {
        Declared::of::<Self>()
    }
}

impl SamplingArgs {
    /// The options for a model with this tokenizer, whose end tokens end a reply.
    ///
    /// # Errors
    /// If an option's value is invalid.
    pub fn config(&self, tokenizer: Option<&Tokenizer>) -> reft_models::Result<GenerationConfig> {
        let stop_ids = tokenizer.map_or_else(Vec::new, |tokenizer| tokenizer.eos_ids().to_vec());
        let config = GenerationConfig { stop_ids, ..self.config.0.clone() };
        config.check()?;
        Ok(config)
    }
}
