use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_bench::Error;
use reft_distributed::Reduction;
use reft_methods::{adapter_bytes, trained_text};
use reft_models::{AdapterStack, ChatOptions, DirectoryLock, Model, TrainedText, weights_digest};
use reft_train::{
    ColumnOptions, Dataset, Encoding, Example, Ingredients, KeepingClose, Learner, Listeners,
    Metric, ObjectiveOptions, Outcome, Part, Plan, Progress, Record, Summary, Template, Trainer,
    TurnOptions, WEIGHTS_DIGEST,
};
use serde_json::{Map, json};
use toml::Table;

use crate::machine::{Devices, KindChoice, MachineOptions};
use crate::model::{
    FileRows, Framing, ModelText, adapter_directory, model_name, open_config, open_decoder,
};
use crate::options::{Flags, in_flags};
use crate::terminal::{
    TrainProgress, bytes, counted, duration, grouped, note, output, share, stop_flag,
};
use crate::train::card::Card;
use crate::train::config_file;
use crate::train::defaults::{say_what_suits_classes, with_length, with_rate, with_validation};
use crate::train::directory::{self, TrainDirectory};
use crate::train::first_example;
use crate::train::head::{self, TrainHead};
use crate::train::method::TrainMethod;
use crate::train::processes::{Processes, follow, launch};
use crate::train::replay;
use crate::train::run_options::{RunOptions, TrainFlags, needed, part, table};
use crate::train::watch::options::{Log, WatchOptions};
use crate::train::watch::page::RunPage;
use crate::train::watch::samples::Samples;
use crate::train::watch::tensorboard::EventFile;

/// Train an adapter on a frozen model: ReFT, LoRA and the other methods
///
/// The output directory receives the adapter, the options in force (`train.toml`, which --config can read), a row per step (`metrics.jsonl`)
/// and checkpoints. If PEFT has the method, PEFT can read the adapter. An option that the method does not have is an error. Ctrl-C finishes
/// the step and saves a checkpoint; --resume continues as if the run had not been stopped.
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
    options: Flags<TrainFlags>,
    /// File of options in TOML, named like the flags with _ for -; flags on the command line win
    #[arg(long, value_name = "FILE.toml", help_heading = "Input and output")]
    config: Option<PathBuf>,
    /// Continue the run in the output directory, with the options of that run
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
pub fn run(args: &TrainArgs) -> Result<()> {
    let asked = asked(args)?;
    let mut group = Processes::find()?;
    if !group.were_launched() {
        let (given, _) = with_saved(args, asked.clone())?;
        let RunOptions { processes, reduce, .. } = part(&given)?;
        if let Some(world) = processes.filter(|n| *n > 1) {
            return launch(world, given.contains_key("threads"));
        }
        if reduce == Reduction::Nccl {
            group = Processes::alone()?;
        }
    }
    let processes = group;
    // held from the first look into the output directory to the end of the run
    let _lock = if processes.is_first() { locked(&asked)? } else { None };
    let (given, saved) = with_saved(args, asked)?;
    let given = with_kind(given, saved.as_ref())?;
    let run: RunOptions = part(&given)?;
    processes.check(run.processes)?;
    let machine: MachineOptions = part(&given)?;
    let machine = MachineOptions { device: processes.devices(machine.device)?, ..machine };
    let model = needed(&run.model, "model")?;
    let (data, output) = (needed(&run.data, "data")?, needed(&run.output, "output")?);
    let config = run.train_config(&given)?;
    let objective_options = run.objective(&given)?;
    if processes.is_first() && directory::holds_run(&output)? && !args.resume && !args.overwrite {
        let output = output.display();
        bail!(
            "{output} holds a training run already; go on with it with --resume, remove it with --overwrite, or name another directory"
        );
    }
    let columns: ColumnOptions = part(&given)?;
    let kind = objective_options.objective;
    Metric::check_best(config.best, kind.metrics, kind.name).map_err(in_flags)?;
    let read_rows = kind.rows.reader();
    let sources = data.read(columns.columns.as_ref(), read_rows)?;
    let (path, shape) = open_config(&model)?;
    let shape = shape.describe();
    head::check_model(kind, &shape)?;
    let (turns, chat): (TurnOptions, ChatOptions) = (part(&given)?, part(&given)?);
    let start = run.init_adapter.as_deref().map(adapter_directory).transpose()?;
    let before = start.as_deref().map(trained_text).transpose()?.flatten();
    let asked = given.contains_key("template").then_some(run.template);
    let Framing { template, chat } = Framing::of(before.as_ref(), asked, &chat, &[])?;
    let run = RunOptions { template, ..run };
    let text = ModelText::open(&path, &chat)?;
    let method = TrainMethod::of(&run, &given, &shape, text.tokenizer.as_ref())?;

    let stop =
        stop_flag("stopping after this step; a checkpoint will be saved (again: stop at once)")?;
    let threads = machine.set_up()?;
    let (_, decoder) = open_decoder(&model, &machine)?;
    let digest = weights_digest(&path)?;
    let facts = Map::from_iter([(WEIGHTS_DIGEST.to_owned(), digest.clone().into())]);
    let encoding = Encoding {
        text: text.encoder(run.template, turns.turns),
        vocab_size: shape.vocab_size,
        max_length: config.max_length,
    };
    let rows = || sources.iter().flat_map(|(_, records)| records);
    let head = TrainHead::of(kind, (&path, &decoder), start.as_deref(), rows(), config.seed)?;
    let examples_of = |records: &[Record], file: &Path| {
        let rows = FileRows { records, file, labels: head.as_ref().map(|head| &head.labels) };
        let mut examples = rows.examples(kind, &encoding, run.drop_too_long)?;
        if run.learn_prompt {
            examples.iter_mut().for_each(Example::label_all);
        }
        if let Some(n) = run.response_tokens {
            examples.iter_mut().for_each(|example| example.keep_labels(n));
        }
        Ok::<_, anyhow::Error>(examples)
    };
    let weighted = sources
        .iter()
        .map(|(source, records)| Ok((examples_of(records, &source.path)?, source.weight)));
    let weighted = weighted.collect::<Result<Vec<_>>>()?;
    let n = weighted.iter().map(|(examples, _)| examples.len()).sum();
    let config = with_validation(config, &run, &given, n);
    let mut dataset = Dataset::weighted(weighted, config.validation, config.seed)?;
    let config = with_length(config, dataset.train.len(), processes.world());
    if let Some(file) = &run.validation_data {
        let records = read_rows(file, columns.columns.as_ref())?;
        dataset.validation = examples_of(&records, file)?;
    }
    (kind.check)(&dataset.train)?;
    say_what_suits_classes(&given, &dataset.train);
    let asked = [
        ("patience", config.patience.map(|patience| patience.to_string())),
        ("best", config.best.map(|metric| metric.to_string())),
    ];
    let asked = asked.into_iter().find_map(|(flag, asked)| Some((flag, asked?)));
    if let (Some((flag, asked)), true) = (asked, dataset.validation.is_empty()) {
        bail!(
            "--{flag} is {asked}, and no examples are held out; hold some out with --validation, or name a file of them with --validation-data"
        );
    }
    let base_model = model_name(&model, &path);
    let mut adapters = method.adapters(config.seed, &decoder, &base_model)?;
    let config = with_rate(config, &given, &AdapterStack::of_boxed(&adapters)?.method())?;
    if let Some(head) = &head {
        adapters[0].keep_head(&head.head);
    }
    let in_force = encoding.text.and_then(|encoder| encoder.in_force(rows()));
    if let Some(in_force) = in_force {
        note(said_of(in_force, run.template, text.chat_template.is_some()));
        let ChatOptions { chat_vars } = chat.clone();
        let text = TrainedText { template: in_force.to_string(), chat_vars };
        adapters.iter_mut().for_each(|adapter| adapter.keep_trained_text(text.clone()));
    }
    let first = &dataset.train[0];
    let edited = method.edited(first.row().prompt_length);
    let told = head.as_ref().map(|head| head.labels.said(first));
    first_example::say(first, text.tokenizer.as_ref(), &edited, told)?;
    let replay = run.replay.as_deref().map(|file| {
        replay::read(file, columns.columns.as_ref(), &encoding, &decoder, &objective_options)
    });
    let replay = replay.transpose()?;
    let reference = method.reference(&objective_options, &decoder)?;
    let ingredients = Ingredients {
        options: &objective_options,
        stack: AdapterStack::of_boxed(&adapters)?,
        reference: AdapterStack::of_boxed(&reference)?,
        head: head.as_ref().map(|head| &head.head),
    };
    let task = (kind.build)(&ingredients).map_err(in_flags)?;
    let task = &*task;
    let part_kept = if replay.is_some() { Part::Replay } else { Part::Task };
    let keeping = objective_options
        .kl_weight
        .map(|weight| KeepingClose::new(task, weight, objective_options.kl_top_k, part_kept));
    let objective = keeping.as_ref().map_or(task, |keeping| keeping);
    let learner = Learner::new(&decoder, &AdapterStack::of_boxed(&adapters)?, objective);

    let device = Devices::of(decoder.placement().devices());
    let machine = MachineOptions { device, threads: Some(threads), ..machine };
    let of_rows = [table(&columns)?, table(&turns)?, table(&chat)?];
    let watch: WatchOptions = part(&given)?;
    let of_run = [table(&run)?, table(&watch)?];
    let mut parts = vec![table(&config)?, table(&machine)?, method.resolved(&run)?];
    if objective_options != ObjectiveOptions::default() {
        parts.push(table(&objective_options)?);
    }
    let mut resolved: Table = of_run.into_iter().chain(parts).chain(of_rows).flatten().collect();
    resolved.retain(|name, _| !["no_shuffle", "reuse"].contains(&name)); // saved as `shuffle` and `no_reuse`
    if let Some(saved) = &saved {
        directory::check_same(saved, &resolved)?;
    } else if args.resume {
        note(format!("nothing to resume in {}: starting anew", output.display()));
    }
    let contents = [("the data", dataset.digest()), ("the model's weights", digest)];
    let stack = AdapterStack::of_boxed(&adapters)?;
    let sums = (run.reduce, decoder.device());
    let group = processes.join(&resolved, contents, (&stack, objective), sums)?;
    let mut trainer = Trainer::new(&learner, &dataset, config)?;
    if let Some(replay) = &replay {
        trainer = trainer.replaying(replay, objective_options.replay_batch_size)?;
    }
    if let Some(group) = &group {
        trainer = trainer.sharing(group.share(), group);
    }
    let trainer = trainer.keeping(run.reuse(processes.here())).with_facts(facts);
    if !processes.is_first() {
        return follow(trainer, args.resume.then_some(output.as_path()), stop);
    }
    let notes = [
        format!("reft {}, tch 0.24, libtorch 2.11", env!("CARGO_PKG_VERSION")),
        format!("Computed as: {}.", trainer.describe_kinds()),
        "Use it again with: reft train --config train.toml --output DIR".to_owned(),
    ];
    let prepare = || TrainDirectory::prepare(&output, args.overwrite, &resolved, &notes);
    let (mut trainer, directory) = match (args.resume, &saved) {
        // resumed first, so that an error of the trainer leaves the saved options unchanged
        (true, Some(_)) => (trainer.resuming_in(&output)?, prepare()?),
        (true, None) => {
            let directory = prepare()?;
            (trainer.resuming_in(&output)?, directory)
        }
        (false, _) => {
            let directory = prepare()?;
            (trainer.starting_in(&output)?, directory)
        }
    };
    if let Some(saved) = &saved {
        say_longer(saved, &resolved, &trainer.plan());
    }
    let mut progress = TrainProgress::new();
    let mut page = RunPage::new(&output);
    let mut samples = Samples::new(&watch, &decoder, stack, encoding.text, &output)?;
    let mut events = watch.log.map(|Log::Tensorboard| EventFile::create(&output)).transpose()?;
    let mut listeners: Vec<&mut dyn Progress> = vec![&mut progress];
    listeners.extend(samples.as_mut().map(|samples| samples as &mut dyn Progress));
    listeners.extend(events.as_mut().map(|events| events as &mut dyn Progress));
    listeners.push(&mut page);
    let outcome = trainer.run(&mut Listeners(listeners), stop);
    progress.close();
    let outcome = outcome.with_context(|| directory.after_failure())?;
    let page = RunPage::write(&output)?;
    note(format!("page: {}", page.display()));
    if matches!(outcome, Outcome::Finished(_)) {
        let card = Card {
            base_model: &base_model,
            license: run.license.as_deref(),
            data_digest: &dataset.digest(),
            template: in_force.map(|template| template.to_string()),
            examples: (dataset.train.len(), dataset.validation.len()),
            plan: &trainer.plan(),
            objective: kind,
        };
        card.write(&output)?;
    }
    report(args, &output, &directory, &progress, &outcome)
}

/// Prints a note if a resumed run has another length, with the learning rate that it continues at.
fn say_longer(saved: &Table, now: &Table, plan: &Plan) {
    if ["epochs", "max_steps"].iter().any(|length| saved.get(*length) != now.get(*length)) {
        let (schedule, lr) = (&now["schedule"], plan.lr);
        note(format!(
            "the run now has {}; its learning rate, on schedule {schedule} of all of them, goes on at {lr:.3e}",
            counted(plan.steps, "step")
        ));
    }
}

/// A message about the rows' frame, its reason, and the flag that changes it.
fn said_of(in_force: Template, asked: Template, has_chat_template: bool) -> String {
    let (what, other) = match in_force {
        Template::Auto => ("rows of several forms, each in its own way", "chat, alpaca or plain"),
        Template::Plain if has_chat_template => ("text as it stands", "chat"),
        Template::Plain => ("text as it stands", "alpaca"),
        Template::Chat => ("framed by the model's chat template", "plain"),
        Template::Alpaca => ("Alpaca's frame", "plain"),
    };
    let why = if asked == Template::Auto { ", by the rows' form" } else { "" };
    format!("template {in_force}: {what}{why} (--template {other} changes it)")
}

/// The options of the command line and of its `--config` file.
fn asked(args: &TrainArgs) -> Result<Table> {
    let file = args.config.as_deref().map(config_file::read).transpose()?.unwrap_or_default();
    Ok(config_file::overlaid(&file, &args.options.0.0))
}

fn output_of(asked: &Table) -> Option<&str> {
    asked.get("output").and_then(toml::Value::as_str)
}

/// Locks the output directory, if one is named. A second run there would mix its files with this run's.
fn locked(asked: &Table) -> Result<Option<DirectoryLock>> {
    let output = output_of(asked).map(Path::new);
    Ok(output.map(DirectoryLock::take).transpose()?)
}

/// The options in force, and the options of the run to be resumed, if there is one.
fn with_saved(args: &TrainArgs, asked: Table) -> Result<(Table, Option<Table>)> {
    let Some(output) = output_of(&asked).filter(|_| args.resume) else { return Ok((asked, None)) };
    let saved = directory::options_of_run(Path::new(output))?;
    let below = saved.clone().unwrap_or_default();
    Ok((config_file::overlaid(&below, &asked), saved))
}

/// Replaces kind `auto` by this machine's kind, which is saved. A resumed run keeps its saved kind.
fn with_kind(mut given: Table, saved: Option<&Table>) -> Result<Table> {
    let machine: MachineOptions = part(&given)?;
    if machine.kind == KindChoice::Auto {
        let own = saved.map(part::<MachineOptions>).transpose()?.map(|machine| machine.kind);
        let kind = match own {
            Some(own) => own,
            None => KindChoice::Is(machine.kind.resolve(&machine.device.resolve()?)),
        };
        given.insert("kind".to_owned(), kind.to_string().into());
    }
    Ok(given)
}

fn report(
    args: &TrainArgs,
    output: &Path,
    directory: &TrainDirectory,
    progress: &TrainProgress,
    outcome: &Outcome,
) -> Result<()> {
    let (summary, is_finished) = match outcome {
        Outcome::Finished(summary) => (summary, true),
        Outcome::Interrupted(summary) => (summary, false),
    };
    let adapter_bytes = if is_finished { Some(adapter_bytes(output)?) } else { None };
    let (first, plan) = (directory.first_loss(), progress.plan.as_ref());
    let json = json!({
        "output": output,
        "finished": is_finished,
        "steps": summary.steps,
        "loss_first": first,
        "loss_last": progress.loss,
        "best": summary.best,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        "tokens_per_second": progress.tokens_per_second(),
        "trainable_parameters": plan.map(Plan::of_adapters),
        "head_parameters": plan.map(|plan| plan.of_objective).filter(|n| *n > 0),
        "base_parameters": plan.map(|plan| plan.total),
        "adapter_bytes": adapter_bytes,
    });
    let (steps, output) = (summary.steps, output.display());
    output::result(args.json, &json, || {
        let Some(size) = adapter_bytes else { return Ok(()) };
        let mut rows = rows(first, progress, summary);
        rows.push(("adapter", format!("{} in {output}", bytes(size))));
        output::table(&rows)
    })?;
    if is_finished {
        return Ok(());
    }
    let said = format!(
        "interrupted after step {steps}; a checkpoint is saved, go on with: reft train --resume --output {output}"
    );
    Err(Error::Interrupted).context(said)
}

fn rows(
    first: Option<f64>,
    progress: &TrainProgress,
    summary: &Summary,
) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let (Some(first), Some(last)) = (first, progress.loss) {
        rows.push((
            "loss",
            format!("{first:.4} → {last:.4} in {}", counted(summary.steps, "step")),
        ));
        let speed = grouped(progress.tokens_per_second() as i64);
        rows.push(("time", format!("{}, {speed} tokens/s", duration(progress.seconds))));
    } else {
        let said = "had been taken; --epochs or --max-steps makes the run longer";
        rows.push(("loss", format!("all of {} {said}", counted(summary.steps, "step"))));
    }
    if let Some(best) = summary.best {
        rows.push(("validation", format!("{best}, which is kept")));
    }
    if let Some(plan) = &progress.plan {
        rows.push(("trainable", share(plan.of_adapters() as i64, plan.total as i64)));
        if plan.of_objective > 0 {
            rows.push((
                "head",
                format!("{} numbers beside these", grouped(plan.of_objective as i64)),
            ));
        }
    }
    rows
}
