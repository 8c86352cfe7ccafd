//! `reft train`: an adapter learns from examples.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use reft_models::{DecoderConfig, resolve_model};
use reft_train::{Dataset, Outcome, Summary, Template, TextEncoder, Trainer, read_records};
use serde_json::json;

use crate::config_file;
use crate::examples::ExampleOptions;
use crate::failure::INTERRUPTED;
use crate::interrupt;
use crate::machine::{DeviceChoice, set_tf32, set_threads};
use crate::model::{open_chat_template, open_decoder, open_tokenizer};
use crate::output::{self, bytes, grouped, note, percent};
use crate::train_directory::{self, Existing, TrainDirectory};
use crate::train_method::TrainMethod;
use crate::train_options::TrainOptions;
use crate::train_plan::{self, Inputs};
use crate::train_progress::{TrainProgress, duration};

/// Train an adapter on a frozen model: ReFT, LoRA and the other methods
///
/// Writes the adapter (LoRA, DoRA, prefix, prompt and (IA)³ as PEFT reads them), the options in force (`train.toml`, which --config
/// takes again), a row per step (`metrics.jsonl`) and checkpoints into the output directory. An option that the method does not have
/// is an error. Ctrl-C finishes the step and saves a
/// checkpoint; --resume goes on as if nothing had been.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft train --model models/SmolLM2-135M-Instruct --data examples/emoji.jsonl --output runs/emoji \\
      --layers 15 --rank 4 --positions l1 --batch-size 10 --lr 4e-3 --max-steps 100
  reft train --model models/SmolLM2-135M-Instruct --data examples/emoji.jsonl --output runs/lora \\
      --method lora --rank 8 --alpha 16 --target-modules q_proj,v_proj --max-steps 100
  reft train --config recipes/commonsense.toml --model meta-llama/Llama-3.2-1B --data train.json --output runs/commonsense
  reft train --resume --output runs/commonsense")]
pub struct TrainArgs {
    #[command(flatten)]
    options: TrainOptions,
    /// Options in TOML, named as the flags with _ for -; flags win
    #[arg(long, value_name = "FILE.toml", help_heading = "Input and output")]
    config: Option<PathBuf>,
    /// Go on with the run in the output directory; its options hold
    #[arg(long, conflicts_with = "overwrite", help_heading = "Input and output")]
    resume: bool,
    /// Remove the run in the output directory first
    #[arg(long, help_heading = "Input and output")]
    overwrite: bool,
    /// Print the result as JSON
    #[arg(long, help_heading = "Input and output")]
    json: bool,
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    let existing = match (args.resume, args.overwrite) {
        (true, _) => Existing::Resume,
        (_, true) => Existing::Overwrite,
        _ => Existing::Refuse,
    };
    let (options, saved) = options(args)?;
    let inputs = train_plan::inputs(&options)?;
    let config = train_plan::train_config(&options)?;
    train_directory::check(&inputs.output, existing)?;
    let records = read_records(&inputs.data)?;
    let path = resolve_model(&inputs.model)?;
    let shape = DecoderConfig::open(&path)
        .with_context(|| format!("cannot load model {}", inputs.model))?;
    let tokenizer = open_tokenizer(&path)?;
    let method = TrainMethod::of(&options, &shape, tokenizer.as_ref())?;

    let stop = interrupt::stop_flag(
        "stopping after this step; a checkpoint will be saved (again: stop at once)",
    )?;
    let threads = set_threads(options.threads)?;
    set_tf32(options.tf32.unwrap_or(false))?;
    let (kind, weights, device) = train_plan::machine(&options);
    let (path, decoder) = open_decoder(&inputs.model, kind, weights, device)?;
    let chat_template = open_chat_template(&path)?;
    let encoder = tokenizer.as_ref().map(|tokenizer| TextEncoder {
        tokenizer,
        chat_template: chat_template.as_ref(),
        template: options.template.unwrap_or(Template::Auto),
    });
    let examples = ExampleOptions {
        encoder,
        vocab_size: shape.vocab_size,
        max_length: config.max_length,
        drop_too_long: options.drop_too_long.unwrap_or(false),
    };
    let examples = examples.examples(&records, &inputs.data)?;
    let dataset = Dataset::split(examples, config.validation, config.seed)?;
    let mut adapter = method.adapter(config.seed, &decoder, &inputs.model)?;

    let device = DeviceChoice::of(decoder.device());
    let resolved = train_plan::resolved(&options, &config, &method, device, threads)?;
    if let Some(saved) = &saved {
        train_directory::check_same(saved, &resolved)?;
    } else if args.resume {
        note(&format!("nothing to resume in {}: starting anew", inputs.output.display()));
    }
    let trainer = Trainer::new(&decoder, &mut *adapter, &dataset, config)?
        .keeping(train_plan::reuse(&options));
    let notes = notes(&trainer.describe_kinds());
    let directory = TrainDirectory::prepare(&inputs.output, existing, &resolved, &notes)?;
    let mut trainer = match existing {
        Existing::Resume => trainer.resuming_in(&inputs.output)?,
        Existing::Refuse | Existing::Overwrite => trainer.starting_in(&inputs.output)?,
    };
    let mut progress = TrainProgress::new();
    let outcome = trainer.run(&mut progress, &stop);
    progress.close();
    let outcome = outcome.with_context(|| failed(&inputs, &directory))?;
    report(args, &inputs, &directory, &progress, &outcome)
}

/// The options in force, and those of the run to be resumed, if there is one.
fn options(args: &TrainArgs) -> Result<(TrainOptions, Option<TrainOptions>)> {
    let file = args.config.as_deref().map(config_file::read).transpose()?.unwrap_or_default();
    let asked = config_file::overlaid(&file, &args.options)?;
    let Some(output) = asked.output.as_deref().filter(|_| args.resume) else {
        return Ok((asked, None));
    };
    let saved = train_directory::options_of_run(output)?;
    let below = saved.clone().unwrap_or_default();
    Ok((config_file::overlaid(&below, &asked)?, saved))
}

/// What else is to be known of a run, for its `train.toml`.
fn notes(kinds: &str) -> Vec<String> {
    vec![
        format!("reft {}, tch 0.24, libtorch 2.11", env!("CARGO_PKG_VERSION")),
        format!("Computed as: {kinds}."),
        "Use it again with: reft train --config train.toml --output DIR".to_owned(),
    ]
}

fn failed(inputs: &Inputs, directory: &TrainDirectory) -> String {
    if directory.is_worth_keeping() {
        let output = inputs.output.display();
        return format!("training stopped; its newest checkpoint is in {output}");
    }
    "training failed; nothing was written".to_owned()
}

fn report(
    args: &TrainArgs,
    inputs: &Inputs,
    directory: &TrainDirectory,
    progress: &TrainProgress,
    outcome: &Outcome,
) -> Result<ExitCode> {
    let output = inputs.output.display();
    let (summary, is_finished) = match outcome {
        Outcome::Finished(summary) => (summary, true),
        Outcome::Interrupted(summary) => (summary, false),
    };
    let adapter_bytes = if is_finished { Some(directory.adapter_bytes()?) } else { None };
    if args.json {
        output::json(&result(directory, inputs, progress, summary, adapter_bytes))?;
    } else if let Some(size) = adapter_bytes {
        output::table(&rows(directory, inputs, progress, summary, size))?;
    }
    if is_finished {
        return Ok(ExitCode::SUCCESS);
    }
    note(&format!(
        "interrupted after step {}; a checkpoint is saved, go on with: reft train --resume --output {output}",
        summary.steps
    ));
    Ok(ExitCode::from(INTERRUPTED))
}

fn rows(
    directory: &TrainDirectory,
    inputs: &Inputs,
    progress: &TrainProgress,
    summary: &Summary,
    adapter_bytes: u64,
) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (directory.first_loss(), progress.loss) {
        rows.push(("loss", format!("{first:.4} → {last:.4} in {} steps", summary.steps)));
        let speed = grouped(progress.tokens_per_second() as i64);
        rows.push(("time", format!("{}, {speed} tokens/s", duration(progress.seconds))));
    } else {
        rows.push(("loss", format!("all {} steps had been taken", summary.steps)));
    }
    if let Some(best) = summary.best {
        let text = format!("{:.4} after step {}, which is kept", best.validation_loss, best.step);
        rows.push(("validation", text));
    }
    if let Some(plan) = progress.plan() {
        let (trainable, total) = (plan.trainable as i64, plan.total as i64);
        rows.push((
            "trainable",
            format!("{} of {} ({})", grouped(trainable), grouped(total), percent(trainable, total)),
        ));
    }
    rows.push(("adapter", format!("{} in {}", bytes(adapter_bytes), inputs.output.display())));
    rows
}

fn result(
    directory: &TrainDirectory,
    inputs: &Inputs,
    progress: &TrainProgress,
    summary: &Summary,
    adapter_bytes: Option<u64>,
) -> serde_json::Value {
    json!({
        "output": inputs.output,
        "finished": adapter_bytes.is_some(),
        "steps": summary.steps,
        "loss_first": directory.first_loss(),
        "loss_last": progress.loss,
        "best": summary.best,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens_per_second(),
        "trainable_parameters": progress.plan().map(|plan| plan.trainable),
        "base_parameters": progress.plan().map(|plan| plan.total),
        "adapter_bytes": adapter_bytes,
    })
}
