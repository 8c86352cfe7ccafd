use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reft_methods::{adapter_bytes, load_adapters, numel};
use reft_models::{
    AdapterStack, ContextLimit, GenerationConfig, Row, TaskHead, atomic_directory, generate,
    io_error,
};
use reft_train::{
    Error as TrainError, Ingredients, KeepingClose, Learner, NextToken, Outcome, Part,
    Plan as TrainPlan, Progress, StepStats, TrainConfig, Trainer,
};

use crate::compare::loaded_comparison::learned;
use crate::compare::sharing::{begin, steps, take_free};
use crate::machine::peak_memory;
use crate::tasks::score::{Scorer, examples};
use crate::{
    Cell, CellResult, EncodedQuestion, Error, HeadScorer, LoadedComparison, Report, Result, Score,
    TestResult,
};

/// How often the cells of other processes are checked.
const LOOK: Duration = Duration::from_millis(300);

/// Runs every cell that is not finished, and writes the report after each method: `report.json`, `report.md`, `report.html`.
///
/// `run` runs a cell, best in its own process, so that the measured peak memory is the cell's; `say` receives lines of progress. Several
/// processes may run one comparison: each claims a free cell, and each returns only when all cells are finished.
///
/// # Errors
/// The error of `run`; a cell that `run` left unfinished; [`reft_models::Error::InUse`] if another comparison is being run in `output`;
/// [`Error::Interrupted`] if `stop` is set while other processes are waited for.
pub fn run_comparison(
    loaded: &LoadedComparison,
    output: &Path,
    run: &mut dyn FnMut(&Cell) -> Result<()>,
    say: &mut dyn FnMut(&str),
    stop: &AtomicBool,
) -> Result<Report> {
    let plan = &loaded.plan;
    begin(plan, output)?;
    let total = plan.cells();
    for (i, step) in steps(plan, output)?.iter().filter(|step| step.is_counted()).enumerate() {
        say(&format!("[{}/{total}] {}: finished before", i + 1, step.cell.name(plan)));
    }
    let mut is_waiting = false;
    loop {
        let steps = steps(plan, output)?;
        if steps.iter().all(|step| step.is_done) {
            break;
        }
        let Some((step, claim)) = take_free(&steps, plan, output)? else {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            if !is_waiting {
                let left = steps.iter().filter(|step| !step.is_done);
                let names: Vec<String> = left.map(|step| step.cell.name(plan)).collect();
                say(&format!("waiting for other processes: they are at {}", names.join(", ")));
            }
            is_waiting = true;
            thread::sleep(LOOK);
            continue;
        };
        is_waiting = false;
        let (cell, name) = (step.cell, step.cell.name(plan));
        let what = if step.is_new { "" } else { ": test" };
        let done = steps.iter().filter(|step| step.is_counted()).count();
        say(&format!("[{}/{total}] {name}{what}", done + usize::from(step.is_new)));
        run(&cell)?;
        if !cell.is_done(plan, output)? {
            let reason = "the cell was run and left no result".to_owned();
            return Err(Error::File { path: cell.directory(plan, output), reason });
        }
        drop(claim);
        if let Some(method) = cell.method {
            end_of_method(loaded, method, output)?;
        }
    }
    let report = Report::collect(output)?;
    report.write(output)?;
    Ok(report)
}

/// If a method is finished: removes its files that are not needed any more, and writes the report.
fn end_of_method(loaded: &LoadedComparison, method: usize, output: &Path) -> Result<()> {
    let plan = &loaded.plan;
    let steps = steps(plan, output)?;
    if steps.iter().any(|step| step.cell.method == Some(method) && !step.is_done) {
        return Ok(());
    }
    let chosen =
        steps.iter().map(|step| step.cell).find(|cell| cell.method == Some(method) && cell.test);
    if let Some(chosen) = chosen {
        prune(loaded, method, chosen.lr, output)?;
    }
    Report::collect(output)?.write(output)
}

/// Removes the adapters of rates that were not chosen, and fully fine-tuned weights, which are as large as the model.
fn prune(loaded: &LoadedComparison, method: usize, lr: f64, output: &Path) -> Result<()> {
    let (plan, is_full) = (&loaded.plan, loaded.methods[method].has("full"));
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
            Err(io_error("remove", directory)(error).into())
        }
        _ => Ok(()),
    }
}

/// Trains and measures a cell, except for parts that are finished, and writes its `cell.json`.
///
/// # Errors
/// [`Error::Interrupted`]; errors of the model, the method and files. A loss that is not finite is a result, not an error.
pub fn run_cell(
    loaded: &LoadedComparison,
    cell: &Cell,
    output: &Path,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let plan = &loaded.plan;
    let directory = cell.directory(plan, output);
    std::fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
    let adapter_directory = directory.join(ADAPTER);
    let model = loaded.open_model()?;
    let known = cell.result(plan, output)?;
    let known = known.filter(|_| cell.method.is_none() || adapter_directory.exists());
    let mut adapters = match (cell.method, &known) {
        (None, _) => Vec::new(),
        (Some(_), Some(_)) => load_adapters(&adapter_directory, &model)?,
        (Some(method), None) => {
            remove(&adapter_directory)?;
            tch::manual_seed(cell.seed as i64);
            let mut adapters = loaded.methods[method].build(&model, &plan.config.model)?;
            if let Some(text) = &loaded.trained_text {
                adapters.iter_mut().for_each(|adapter| adapter.keep_trained_text(text.clone()));
            }
            adapters
        }
    };
    let head = match (&known, adapters.first_mut()) {
        (Some(_), Some(_)) => loaded.read_head(&model, &adapter_directory)?,
        (_, first) => {
            let head = loaded.new_head(&model, cell.seed)?;
            if let (Some(first), Some(head)) = (first, &head) {
                first.keep_head(head);
            }
            head
        }
    };
    let options = &plan.config.objective;
    let ingredients = Ingredients {
        options,
        stack: AdapterStack::of_boxed(&adapters)?,
        reference: AdapterStack::EMPTY,
        head: head.as_ref(),
    };
    let learned = (learned(&plan.config, &plan.task).build)(&ingredients)?;
    let learned = &*learned;
    let learner = Learner::new(&model, &AdapterStack::of_boxed(&adapters)?, learned);
    let scorer = Scorer {
        task: &plan.task,
        tokenizer: loaded.tokenizer.as_ref(),
        batch_size: plan.config.eval_batch_size,
        stop,
    };
    let scorer = CellScorer { scorer, head: head.as_ref() };
    let mut result = match known {
        Some(result) => result,
        None => {
            let (identity, lr, seed) = (cell.identity(plan), cell.lr, cell.seed);
            let mut result = CellResult { identity, lr, seed, ..CellResult::default() };
            if let Some(method) = cell.method {
                result.trainable_parameters = numel(&learner.stack.parameters()); // without the head
                let entry = &plan.config.method[method];
                let config = plan.config.train.train_config(entry, cell.lr, cell.seed);
                let recorder = Recorder { result: &mut result, progress };
                let part = if loaded.replay.is_some() { Part::Replay } else { Part::Task };
                let keeping = options
                    .kl_weight
                    .map(|weight| KeepingClose::new(learned, weight, options.kl_top_k, part));
                let objective = keeping.as_ref().map_or(learned, |keeping| keeping);
                let learner = Learner::new(&model, &learner.stack, objective);
                train(recorder, loaded, &learner, config, stop)?;
            }
            if result.diverged.is_none() {
                match validated(&scorer, &learner, &loaded.validation) {
                    Ok((score, loss)) => {
                        (result.validation, result.validation_loss) = (Some(score), Some(loss));
                    }
                    Err(Error::Train(error @ TrainError::EvaluationNotFinite { .. }))
                        if cell.method.is_some() =>
                    {
                        result.diverged = Some(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
            if result.diverged.is_none() && cell.method.is_some() {
                let save = |dir: &Path| Ok(learner.stack.save(dir)?);
                atomic_directory::<Error>(&adapter_directory, save)?;
                result.adapter_bytes = adapter_bytes(&adapter_directory)?;
            }
            result
        }
    };
    result.write(&directory)?;
    if cell.test && result.test.is_none() && result.diverged.is_none() {
        result.test = Some(measure_test(loaded, &scorer, &learner)?);
        result.write(&directory)?;
    }
    Ok(())
}

/// Scores a cell's model.
struct CellScorer<'a> {
    scorer: Scorer<'a>,
    head: Option<&'a TaskHead>,
}

impl CellScorer<'_> {
    fn score(&self, learner: &Learner, questions: &[EncodedQuestion]) -> Result<Score> {
        let Scorer { task, batch_size, .. } = self.scorer;
        match self.head.zip(task.kind.told()) {
            Some((head, told)) => {
                let (model, stack) = (learner.model, &learner.stack);
                let scorer = HeadScorer { model, stack, head, told, batch_size };
                scorer.of_task(task, questions)
            }
            None => self.scorer.score(learner, questions),
        }
    }
}

/// The task on the validation set, and the loss of its completions.
fn validated(
    scorer: &CellScorer,
    learner: &Learner,
    questions: &[EncodedQuestion],
) -> Result<(Score, f64)> {
    let score = scorer.score(learner, questions)?;
    let report = learner.evaluate(&examples(questions), scorer.scorer.batch_size, None)?;
    Ok((score, report.loss))
}

/// Records a training run, and passes its progress on.
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
    mut recorder: Recorder,
    loaded: &LoadedComparison,
    learner: &Learner,
    config: TrainConfig,
    stop: &AtomicBool,
) -> Result<()> {
    let mut trainer = Trainer::new(learner, &loaded.dataset, config)?;
    if let Some(replay) = &loaded.replay {
        trainer = trainer.replaying(replay, loaded.plan.config.objective.replay_batch_size)?;
    }
    match trainer.run(&mut recorder, stop) {
        Ok(Outcome::Finished(_)) => {}
        Ok(Outcome::Interrupted(_)) => return Err(Error::Interrupted),
        Err(error @ (TrainError::NotFinite { .. } | TrainError::Overflow { .. })) => {
            recorder.result.diverged = Some(error.to_string())
        }
        Err(error) => return Err(error.into()),
    }
    recorder.result.peak_memory_bytes = peak_memory();
    Ok(())
}

fn measure_test(
    loaded: &LoadedComparison,
    scorer: &CellScorer,
    learner: &Learner,
) -> Result<TestResult> {
    let scores = loaded.tests.iter().map(|test| scorer.score(learner, test));
    let scores = scores.collect::<Result<_>>()?;
    let predicting = Learner::new(learner.model, &learner.stack, &NextToken);
    let loss = |windows| predicting.evaluate(windows, scorer.scorer.batch_size, None);
    let neutral = loaded.neutral.as_deref().map(loss).transpose()?;
    let neutral_loss = neutral.map(|report| report.loss);
    let generation_tokens_per_second = match scorer.head {
        Some(_) => None, // nothing is generated
        None => generation_speed(&loaded.tests[0], learner)?,
    };
    Ok(TestResult { scores, neutral_loss, generation_tokens_per_second })
}

/// Prompts and tokens that the speed of generation is measured on.
const SPEED: (usize, usize) = (8, 32);

fn generation_speed(questions: &[EncodedQuestion], learner: &Learner) -> Result<Option<f64>> {
    let prompts = questions.iter().map(EncodedQuestion::prompt);
    let rows: Vec<Row> = prompts.filter(|row| row.prompt_length > 0).take(SPEED.0).collect();
    let (model, stack) = (learner.model, &learner.stack);
    let longest = rows.iter().map(|row| row.prompt_length).max().unwrap_or(0);
    let left = ContextLimit::of(model.description(), stack).room().saturating_sub(longest);
    if rows.is_empty() || left == 0 {
        return Ok(None);
    }
    let max_new_tokens = SPEED.1.min(left);
    let config = GenerationConfig { max_new_tokens, ..GenerationConfig::default() };
    let mut go_on = |_: usize, _: i64| std::ops::ControlFlow::Continue(());
    let started = Instant::now();
    let replies = generate(model, stack, &rows, &config, &mut go_on)?;
    let tokens: usize = replies.iter().map(|reply| reply.ids.len()).sum();
    Ok(Some(tokens as f64 / started.elapsed().as_secs_f64()))
}
