use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use reft_models::resolve_model;
use serde_json::json;

use crate::generation::prompts::lines;
use crate::interpret::prompt_tokens::{PromptTokens, text_of};
use crate::terminal::output;

/// Show the tokens of a text as a model sees it
///
/// Each token is shown with its id, its index from the front (0, 1, …) and its index from the end (−1, −2, …). As positions, f3 edits the
/// tokens 0 to 2, and l1 edits the token −1.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft tokenize --model models/SmolLM2-135M-Instruct --text 'Alice lost the book'
  reft tokenize --model models/SmolLM2-135M-Instruct --text 'Who are you?' --chat")]
pub struct TokenizeArgs {
    /// Model: a Hugging Face directory, a GGUF file, or a hub name such as org/name; its weights are not read
    #[arg(long, value_name = "DIR")]
    model: String,
    /// Text to tokenize
    #[arg(long, value_name = "TEXT", required_unless_present = "input", conflicts_with = "input")]
    text: Option<String>,
    /// File of texts, one per line
    #[arg(long, value_name = "FILE.txt")]
    input: Option<PathBuf>,
    /// The text is a user's message: the model's chat template frames it
    #[arg(long)]
    chat: bool,
    /// Print ids and texts as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    let path = resolve_model(&args.model)?;
    let text = text_of(&path)?;
    let texts = match (&args.text, &args.input) {
        (Some(text), _) => vec![text.clone()],
        (None, Some(file)) => lines(file)?.into_iter().map(|(_, line)| line).collect(),
        (None, None) => bail!("--text or --input is needed"),
    };
    let tokens = texts.iter().map(|line| PromptTokens::of(line, &text, args.chat));
    let tokens = tokens.collect::<Result<Vec<_>>>()?;
    let rows = tokens.iter().zip(&texts);
    let rows =
        rows.map(|(tokens, text)| json!({"text": text, "ids": tokens.ids, "tokens": tokens.texts}));
    output::result(args.json, &rows.collect::<Vec<_>>(), || {
        for (i, PromptTokens { ids, texts }) in tokens.iter().enumerate() {
            if i > 0 {
                output::line("")?;
            }
            let n = ids.len();
            output::line(format!("{:>5} {:>6} {:>8}  token", "place", "", "id"))?;
            for (at, (id, text)) in ids.iter().zip(texts).enumerate() {
                let from_end = format!("−{}", n - at);
                output::line(format!("{at:>5} {from_end:>6} {id:>8}  {text:?}"))?;
            }
        }
        Ok(())
    })
}
