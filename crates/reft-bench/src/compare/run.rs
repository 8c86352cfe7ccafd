use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use reft_models::{Adapter, Decoder, GenerationConfig, Row, atomic_directory, generate_all};
use reft_train::{Outcome, Plan as TrainPlan, Progress, StepStats, TrainConfig, Trainer, evaluate};

use crate::compare::cell::{Cell, CellResult, TestResult};
use crate::compare::machine::peak_memory;
use crate::compare::plan::{Plan, choose_rate};
use crate::compare::prepared::Prepared;
use crate::error::{Error, Result, io_error};
use crate::registry::{load_adapter, trainable_parameters};
use crate::report::Report;
use crate::tasks::{EncodedQuestion, Scorer};

/// Runs every cell that is not finished, and writes the report after each method: `report.json`, `report.md`, `report.html`.
///
/// `run` runs a cell, best in a process of its own, so that its peak memory is its own; `say` hears what is going on.
///
/// # Errors
/// What `run` returns; a cell that `run` left unfinished; [`Error::Interrupted`].
pub fn run_comparison(
    prepared: &Prepared,
    output: &Path,
    run: &mut dyn FnMut(&Cell) -> Result<()>,
    say: &mut dyn FnMut(&str),
) -> Result<Report> {
    let plan = &prepared.plan;
    std::fs::create_dir_all(output).map_err(io_error("create", output))?;
    plan.write(output)?;
    let total = 1 + plan
        .config
        .method
        .iter()
        .map(|m| m.lr.len() + plan.config.seeds.len() - 1)
        .sum::<usize>();
    let mut done = 0;
    let mut finish = |cell: &Cell, counts: bool| -> Result<CellResult> {
        done += usize::from(counts);
        let name = cell.name(plan);
        match (cell.is_done(plan, output)?, counts) {
            (true, true) => say(&format!("[{done}/{total}] {name}: finished before")),
            (true, false) => {}
            (false, _) => {
                let what = if counts { "" } else { ": test" };
                say(&format!("[{done}/{total}] {name}{what}"));
                run(cell)?;
            }
        }
        cell.result(plan, output)?.ok_or_else(|| Error::File {
            path: cell.directory(plan, output),
            reason: "the cell was run and left no result".to_owned(),
        })
    };
    finish(&Cell::BASE, true)?;
    for method in 0..plan.config.method.len() {
        let tuning = plan.tuning(method);
        let results = tuning.iter().map(|cell| finish(cell, true)).collect::<Result<Vec<_>>>()?;
        let higher_is_better = plan.task.kind.metric().higher_is_better();
        if let Some(choice) = choose_rate(&results, higher_is_better) {
            for (i, cell) in plan.chosen(method, choice.lr).iter().enumerate() {
                finish(cell, i > 0)?;
            }
            prune(plan, method, choice.lr, output)?;
        }
        Report::collect(output)?.write(output)?;
    }
    let report = Report::collect(output)?;
    report.write(output)?;
    Ok(report)
}

/// Removes the adapters of rates that were not chosen, and fully fine-tuned weights, which are as large as the model.
fn prune(plan: &Plan, method: usize, lr: f64, output: &Path) -> Result<()> {
    let is_full = plan.config.method[method].method.contains("full");
    let cells = plan.tuning(method).into_iter().chain(plan.chosen(method, lr));
    for cell in cells.filter(|cell| is_full || cell.lr != lr) {
        remove(&cell.directory(plan, output).join(ADAPTER))?;
    }
    Ok(())
}

const ADAPTER: &str = "adapter";

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", directory)(error))
        }
        _ => Ok(()),
    }
}

/// Trains and measures a cell, as far as that is not done, and writes its `cell.json`.
///
/// # Errors
/// [`Error::Interrupted`]; what model, method or files refuse. A loss that is no number is a result, not an error.
pub fn run_cell(
    prepared: &Prepared,
    cell: &Cell,
    output: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let plan = &prepared.plan;
    let directory = cell.directory(plan, output);
    std::fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
    let adapter_directory = directory.join(ADAPTER);
    let decoder = prepared.open_decoder()?;
    let known = cell.result(plan, output)?;
    let known = known.filter(|_| cell.method.is_none() || adapter_directory.exists());
    let scorer = Scorer {
        task: &plan.task,
        tokenizer: prepared.tokenizer.as_ref(),
        batch_size: plan.config.eval_batch_size,
        stop,
    };
    let (mut result, adapter) = match (known, cell.method) {
        (Some(result), None) => (result, None),
        (Some(result), Some(_)) => (result, Some(load_adapter(&adapter_directory, &decoder)?)),
        (None, None) => {
            let mut result = CellResult::of(cell, plan);
            measure_validation(&mut result, prepared, &scorer, &decoder, &[])?;
            (result, None)
        }
        (None, Some(method)) => {
            remove(&adapter_directory)?;
            tch::manual_seed(cell.seed as i64);
            let mut adapter = prepared.methods[method].build(&decoder, &plan.config.model)?;
            let mut result = CellResult::of(cell, plan);
            result.trainable_parameters = trainable_parameters(&*adapter);
            let factor = plan.config.method[method].rotation_lr_factor;
            let config = plan.config.train.train_config(cell.lr, factor, cell.seed);
            train(&mut result, prepared, &decoder, &mut *adapter, config, progress, stop)?;
            if result.diverged.is_none() {
                measure_validation(&mut result, prepared, &scorer, &decoder, &[&*adapter])?;
                atomic_directory::<Error>(&adapter_directory, |dir| Ok(adapter.save(dir)?))?;
                result.adapter_bytes = size_of(&adapter_directory)?;
            }
            (result, Some(adapter))
        }
    };
    result.write(&directory)?;
    if cell.test && result.test.is_none() && result.diverged.is_none() {
        let adapters: Vec<&dyn Adapter> = adapter.iter().map(|adapter| &**adapter).collect();
        result.test = Some(measure_test(prepared, &scorer, &decoder, &adapters)?);
        result.write(&directory)?;
    }
    Ok(())
}

impl CellResult {
    /// A cell before it is run.
    fn of(cell: &Cell, plan: &Plan) -> Self {
        Self {
            identity: cell.identity(plan),
            lr: cell.lr,
            seed: cell.seed,
            diverged: None,
            steps: 0,
            trainable_parameters: 0,
            adapter_bytes: 0,
            train_seconds: 0.0,
            train_tokens: 0,
            peak_memory_bytes: None,
            losses: Vec::new(),
            validation: None,
            validation_loss: None,
            test: None,
        }
    }
}

/// Notes what a training run does, and tells another of it.
struct Recorder<'a> {
    result: &'a mut CellResult,
    progress: &'a mut dyn Progress,
}

impl Progress for Recorder<'_> {
    fn started(&mut self, plan: &TrainPlan) {
        self.progress.started(plan);
    }

    fn step(&mut self, stats: &StepStats) {
        self.result.steps = stats.step;
        self.result.losses.push(stats.loss);
        self.result.train_seconds += stats.seconds;
        self.result.train_tokens += stats.tokens;
        self.progress.step(stats);
    }

    fn warned(&mut self, warning: &str) {
        self.progress.warned(warning);
    }

    fn overflowed(&mut self, step: usize, loss_scale: f64) {
        self.progress.overflowed(step, loss_scale);
    }
}

fn train(
    result: &mut CellResult,
    prepared: &Prepared,
    decoder: &Decoder,
    adapter: &mut dyn Adapter,
    config: TrainConfig,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let mut trainer = Trainer::new(decoder, adapter, &prepared.dataset, config)?;
    if let Some(loss) = prepared.plan.config.train.stop_at_loss {
        trainer = trainer.stopping_at(loss);
    }
    let outcome = trainer.run(&mut Recorder { result, progress }, stop);
    match outcome {
        Ok(Outcome::Finished(_)) => {}
        Ok(Outcome::Interrupted(_)) => return Err(Error::Interrupted),
        Err(error @ (reft_train::Error::NotFinite { .. } | reft_train::Error::Overflow { .. })) => {
            result.diverged = Some(error.to_string())
        }
        Err(error) => return Err(error.into()),
    }
    result.peak_memory_bytes = peak_memory();
    Ok(())
}

fn measure_validation(
    result: &mut CellResult,
    prepared: &Prepared,
    scorer: &Scorer,
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
) -> Result<()> {
    let questions = &prepared.validation;
    result.validation = Some(scorer.score(decoder, adapters, questions)?);
    let examples: Vec<_> = questions.iter().map(|question| question.example.clone()).collect();
    let report = evaluate(decoder, adapters, &examples, scorer.batch_size, None)?;
    result.validation_loss = Some(report.loss);
    Ok(())
}

fn measure_test(
    prepared: &Prepared,
    scorer: &Scorer,
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
) -> Result<TestResult> {
    let scores = prepared.tests.iter().map(|test| scorer.score(decoder, adapters, test));
    let scores = scores.collect::<Result<_>>()?;
    let neutral_loss = match &prepared.neutral {
        Some(windows) => Some(evaluate(decoder, adapters, windows, scorer.batch_size, None)?.loss),
        None => None,
    };
    let generation_tokens_per_second = generation_speed(&prepared.tests[0], decoder, adapters)?;
    Ok(TestResult { scores, neutral_loss, generation_tokens_per_second })
}

/// Prompts and tokens that the speed of generation is measured on.
const SPEED: (usize, usize) = (8, 32);

fn generation_speed(
    questions: &[EncodedQuestion],
    decoder: &Decoder,
    adapters: &[&dyn Adapter],
) -> Result<Option<f64>> {
    let prompts = questions.iter().map(EncodedQuestion::prompt);
    let rows: Vec<Row> = prompts.filter(|row| row.prompt_length > 0).take(SPEED.0).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let config = GenerationConfig { max_new_tokens: SPEED.1, ..GenerationConfig::default() };
    let mut go_on = |_: usize, _: i64| std::ops::ControlFlow::Continue(());
    let started = Instant::now();
    let replies = generate_all(decoder, adapters, &rows, SPEED.0, &config, &mut go_on)?;
    let tokens: usize = replies.iter().map(|reply| reply.ids.len()).sum();
    Ok(Some(tokens as f64 / started.elapsed().as_secs_f64()))
}

/// Size of all files below a directory, in bytes.
fn size_of(directory: &Path) -> Result<u64> {
    let fail = |error| io_error("read", directory)(error);
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        bytes += match path.is_dir() {
            true => size_of(&path)?,
            false => path.metadata().map_err(fail)?.len(),
        };
    }
    Ok(bytes)
}
