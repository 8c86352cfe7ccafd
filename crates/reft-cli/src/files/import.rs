use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reft_core::{Activation, Positions};
use reft_methods::{PyreftImport, import_control_vector, import_pyreft};
use reft_models::{Adapter, BaseModel, ControlVector, atomic_directory, convert_gguf};

use crate::model::{model_name, open_config};
use crate::terminal::{note, output};

/// Turn an adapter saved by pyreft, a control vector, or a model in a GGUF file, into a directory that reft reads
///
/// An adapter becomes `reft_config.json` and `reft_model.safetensors`. Pickles are read as data; no code in them is run. The adapter's
/// positions follow pyreft's rule, so the adapter computes the same as in pyreft. A GGUF file becomes a Hugging Face directory with f32
/// weights, tokenizer and chat template.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  reft import --from pyreft saved/ --positions f7+l7 --share-weights --model models/llama --output adapter
  reft import --from gguf SmolLM2-135M-Instruct.Q4_1.gguf --output models/SmolLM2-135M-Instruct
  reft import --from control-vector happy.gguf --model models/SmolLM2-135M-Instruct --output directions/happy")]
pub struct ImportArgs {
    /// Directory (pyreft) or file (gguf, control-vector) to read
    #[arg(value_name = "PATH")]
    source: PathBuf,
    /// Format: `pyreft` = a directory that pyreft's save wrote, `gguf` = a model in one file, `control-vector` = one of llama.cpp or repeng
    #[arg(long, value_name = "FORMAT", hide_possible_values = true, value_parser = ["pyreft", "gguf", "control-vector"])]
    from: String,
    /// Directory to write; new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,

    /// Prompt positions that the adapter was trained to edit; `f7+l7` = the first 7 and the last 7 tokens
    #[arg(long, value_name = "POSITIONS", help_heading = "pyreft")]
    positions: Option<Positions>,
    /// First and last positions share one intervention per layer, instead of having one each
    #[arg(long, help_heading = "pyreft")]
    share_weights: bool,
    /// Activation of the learned source: linear, relu, gelu, silu, tanh or sigmoid [default: linear]
    #[arg(long, value_name = "NAME", help_heading = "pyreft")]
    act_fn: Option<Activation>,
    /// Base model of the adapter or control vector; without it, only the hidden size is checked later
    #[arg(long, value_name = "DIR", help_heading = "pyreft")]
    model: Option<String>,
}

/// Runs the command.
pub fn run(args: &ImportArgs) -> Result<()> {
    let imported = match args.from.as_str() {
        "gguf" => gguf(args),
        "control-vector" => control_vector(args),
        _ => pyreft(args),
    };
    let what = imported.with_context(|| format!("cannot import {}", args.source.display()))?;
    output::line(format!("{what} is in {}", args.output.display()))
}

/// Refuses flags of pyreft's adapters.
fn check_flags(args: &ImportArgs, takes_model: bool) -> Result<()> {
    let given = [
        ("--positions", args.positions.is_some()),
        ("--share-weights", args.share_weights),
        ("--act-fn", args.act_fn.is_some()),
        ("--model", args.model.is_some() && !takes_model),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        bail!("{flag} belongs to --from pyreft; leave it out with --from {}", args.from);
    }
    Ok(())
}

fn control_vector(args: &ImportArgs) -> Result<String> {
    check_flags(args, true)?;
    let vector = ControlVector::read(&args.source)?;
    let model =
        args.model.as_deref().map(|model| Ok::<_, anyhow::Error>((model, open_config(model)?)));
    let model = model
        .transpose()?
        .map(|(named, (path, config))| (config.describe(), model_name(named, &path)));
    if let (Some(hint), Some((model, _))) = (&vector.model_hint, &model)
        && *hint != model.model_type
    {
        note(format!(
            "the file says that it was made for a model of the type {hint}, this one is {}",
            model.model_type
        ));
    }
    let model = model.as_ref().map(|(model, name)| (model, name.as_str()));
    atomic_directory(&args.output, |temporary| import_control_vector(&vector, model, temporary))?;
    let n = vector.directions.len();
    Ok(format!("the control vector ({n} directions)"))
}

fn gguf(args: &ImportArgs) -> Result<String> {
    check_flags(args, false)?;
    convert_gguf(&args.source, &args.output)?;
    Ok("the model".to_owned())
}

fn pyreft(args: &ImportArgs) -> Result<String> {
    let positions = args.positions.ok_or_else(|| {
        anyhow!("--positions is missing: pyreft does not save it; give the ones that the adapter was trained with, such as f7+l7")
    })?;
    let base_model = |model: &str| -> Result<BaseModel> {
        Ok(BaseModel::of(&open_config(model)?.1.describe(), model))
    };
    let import = PyreftImport {
        positions,
        share_weights: args.share_weights,
        act_fn: args.act_fn.unwrap_or_default(),
        base_model: args.model.as_deref().map(base_model).transpose()?,
    };
    let adapter = import_pyreft(&args.source, &import)?;
    atomic_directory(&args.output, |temporary| adapter.save(temporary))?;
    if args.model.is_none() {
        let d = adapter.config().base_model.hidden_size;
        note(format!(
            "the adapter does not name its base model: with any model of hidden size {d} it will run; import it with --model to have family, layers and vocabulary checked too"
        ));
    }
    let (method, n) = (adapter.method(), adapter.interventions().len());
    Ok(format!("the adapter ({method}, {n} interventions)"))
}
