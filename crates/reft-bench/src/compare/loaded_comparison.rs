use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use reft_core::Positions;
use reft_methods::{Methods, POSITIONS, SHARE_WEIGHTS, options_of, read_head, resolve};
use reft_models::{
    ChatTemplate, ContextLimit, Decoder, DecoderConfig, ModelDescription, Row, TaskHead, Tokenizer,
    TrainedText, Weights, read_text, resolve_model, weights_digest,
};
use reft_train::{
    Dataset, Encoding, Example, IGNORE_INDEX, Labels, Metric, ObjectiveDeclaration, Sequence,
    TextEncoder, Turns, read_records, seed_of,
};
use tch::Device;

use crate::compare::plan::{ComparisonPlan, check_weights, version_in};
use crate::tasks::question::{
    EncodedQuestion, Question, cut, encode_labelled, encode_questions, read_questions,
};
use crate::tasks::score::{check_context, examples};
use crate::{
    CompareConfig, DataConfig, DataFacts, Error, Leakage, Machine, MethodEntry, PartFacts, Result,
    TaskConfig, TaskKind,
};

/// A comparison as it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The configuration in force.
    pub config: CompareConfig,
    /// The task.
    pub task: TaskConfig,
    /// How rows of the training file are read, if not as rows of the test files.
    pub train_task: Option<TaskConfig>,
}

/// A comparison with all files but the model's weights read, tokenised and checked before training starts.
#[derive(Debug)]
pub struct LoadedComparison {
    /// The work to be done.
    pub plan: ComparisonPlan,
    pub(crate) methods: Vec<Methods>,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// How the texts that adapters are trained on are framed.
    pub(crate) trained_text: Option<TrainedText>,
    pub(crate) dataset: Dataset,
    pub(crate) validation: Vec<EncodedQuestion>,
    pub(crate) tests: Vec<Vec<EncodedQuestion>>,
    pub(crate) neutral: Option<Vec<Example>>,
    /// Rows that are to be answered as before.
    pub(crate) replay: Option<Vec<Example>>,
    /// The labels that a head learns, if the task trains a head.
    pub(crate) labels: Option<Labels>,
    model: PathBuf,
    device: Device,
}

/// Makes rows of a task's texts; `None` without a tokenizer.
fn text_encoder<'a>(
    task: &TaskConfig,
    tokenizer: Option<&'a Tokenizer>,
    chat_template: Option<&'a ChatTemplate>,
) -> Option<TextEncoder<'a>> {
    let (template, turns) = (task.template, Turns::Last);
    Some(TextEncoder { tokenizer: tokenizer?, chat_template, template, turns })
}

impl LoadedComparison {
    /// Reads and checks everything that a comparison needs, except for the model's weights.
    ///
    /// If there is a comparison in `output`, this is a continuation of it.
    ///
    /// # Errors
    /// If the model, the tokenizer, a method or the data cannot be used; the error names file and line where it can.
    pub fn new(
        comparison: Comparison,
        command: &str,
        output: &Path,
        device: Device,
    ) -> Result<Self> {
        let version = version_in(&output.join(ComparisonPlan::FILE_NAME))?;
        let version = version.unwrap_or(ComparisonPlan::FORMAT_VERSION);
        Self::of_version(version, comparison, command, device)
    }

    /// As [`Self::new`], with the version of the files that are written.
    pub(crate) fn of_version(
        format_version: u32,
        comparison: Comparison,
        command: &str,
        device: Device,
    ) -> Result<Self> {
        let Comparison { config, task, train_task } = comparison;
        let training = train_task.as_ref().unwrap_or(&task);
        if training.kind != task.kind {
            let (found, expected) = (training.kind.name(), task.kind.name());
            let reason = format!(
                "train_task is of type {found}, task of {expected}; they must be of one type"
            );
            return Err(Error::File { path: config.train_task.unwrap_or_default(), reason });
        }
        let model = resolve_model(&config.model)?;
        let description = DecoderConfig::open(&model)?.describe();
        let told = task.kind.told();
        if told.is_none() || config.neutral.is_some() {
            description.check_predicts("a comparison on next tokens")?;
        }
        let methods = config.method.iter();
        let methods = methods.map(|entry| resolve_entry(entry, format_version, &description));
        let methods: Vec<Methods> = methods.collect::<Result<_>>()?;
        check_objective(&config, &task, &methods)?;
        let has_tokenizer = model.is_file() || model.join("tokenizer.json").exists();
        let tokenizer = has_tokenizer.then(|| Tokenizer::open(&model)).transpose()?;
        let chat_template = match ChatTemplate::open(&model) {
            Err(reft_models::Error::NoChatTemplate { .. }) => None,
            template => Some(template?),
        };
        let parts = Parts::read(&config, &task, training)?;
        let records = || parts.train.questions.iter().map(|question| &question.record);
        let labels = told.map(|told| Labels::of_rows(told, records())).transpose()?;
        let max_length = config.train.options.max_length;
        let chat_of = |task: &TaskConfig| {
            let with_variables =
                |template: &ChatTemplate| template.clone().with_variables(&task.chat_vars);
            chat_template.as_ref().map(with_variables).transpose()
        };
        let encode = |task: &TaskConfig, part: &Part| {
            let chat_template = chat_of(task)?;
            let text = text_encoder(task, tokenizer.as_ref(), chat_template.as_ref());
            let vocab_size = description.vocab_size;
            let encoding = Encoding { text, vocab_size, max_length };
            match &labels {
                Some(labels) => encode_labelled(labels, &part.questions, &encoding),
                None => encode_questions(task, &part.questions, &encoding), // not cut to max_length
            }
        };
        let mut train = encode(training, &parts.train)?;
        if training.learn_prompt {
            train.iter_mut().for_each(|question| question.example.label_all());
        }
        let training_chat = chat_of(training)?;
        let in_training = text_encoder(training, tokenizer.as_ref(), training_chat.as_ref());
        let in_force = in_training.and_then(|encoder| encoder.in_force(records()));
        let trained_text = in_force.map(|template| TrainedText {
            template: template.to_string(),
            chat_vars: training.chat_vars.clone(),
        });
        let validation_task = if config.data.validation.is_some() { &task } else { training };
        let validation = encode(validation_task, &parts.validation)?;
        let tests = parts.tests.iter().map(|part| encode(&task, part));
        let tests = tests.collect::<Result<Vec<_>>>()?;
        let contexts = methods.iter().map(Methods::context_taken).chain([0]);
        let contexts: Vec<ContextLimit> =
            contexts.map(|n| ContextLimit::new(&description, n)).collect();
        let room = contexts.iter().map(|context| context.room()).min().unwrap_or(0);
        let is_longer = |q: &&EncodedQuestion| q.example.length() > max_length;
        let neutral = config.neutral.as_ref();
        let neutral = neutral.map(|path| windows(path, tokenizer.as_ref(), room)).transpose()?;
        let replay = config.replay.as_ref().map(|path| -> Result<Vec<Example>> {
            let records = read_records(path, None)?;
            let text = in_training;
            let encoding = Encoding { text, vocab_size: description.vocab_size, max_length };
            Ok(encoding.examples(&records)?)
        });
        let replay = replay.transpose()?;
        if config.objective.kl_weight.is_some() {
            description.check_predicts("a divergence of next tokens")?;
            if labels.is_some() && replay.is_none() {
                let reason = "kl_weight keeps next tokens as they are, and labelled rows have none; name rows that have some as replay";
                let path = PathBuf::from(&config.name);
                return Err(Error::File { path, reason: reason.to_owned() });
            }
        }
        let test_questions: Vec<&[Question]> =
            parts.tests.iter().map(|part| part.questions.as_slice()).collect();
        let data = DataFacts {
            train: parts.train.facts(&train),
            validation: parts.validation.facts(&validation),
            test: parts.tests.iter().zip(&tests).map(|(part, test)| part.facts(test)).collect(),
            cut: train.iter().filter(is_longer).count(),
            leakage: Leakage::between(
                &parts.train.questions,
                &parts.validation.questions,
                &test_questions,
            ),
            neutral: config.neutral.as_ref().zip(neutral.as_ref()).map(|(path, windows)| {
                let windows: Vec<_> = windows.iter().map(|window| (window, "")).collect();
                PartFacts::of(path, windows.len(), &windows)
            }),
            replay: config.replay.as_ref().zip(replay.as_ref()).map(|(path, rows)| {
                let rows: Vec<_> = rows.iter().map(|row| (row, "")).collect();
                PartFacts::of(path, rows.len(), &rows)
            }),
        };
        let train = train.into_iter().map(|question| match labels {
            Some(_) => Ok(question.example), // encode_labelled has cut it
            None => cut_to(question.example, max_length),
        });
        let choosing = config.train.options.best.is_some(); // otherwise the adapter after the last step is kept
        let dataset = Dataset {
            train: train.collect::<Result<_>>()?,
            validation: if choosing { examples(&validation) } else { Vec::new() },
        };
        for context in contexts {
            let validated = validation.iter().map(|question| &question.example);
            let examples = dataset.train.iter().chain(validated);
            context.check(examples.map(|example| (&example.id, example.length())))?;
            check_context(&task, &validation, context)?;
            tests.iter().try_for_each(|test| check_context(&task, test, context))?;
        }
        let plan = ComparisonPlan {
            format_version,
            command: command.to_owned(),
            config,
            task,
            train_task,
            data,
            base_parameters: description.parameters(),
            weights: Some(weights_digest(&model)?),
            machine: Machine::here(device),
        };
        Ok(Self {
            plan,
            methods,
            tokenizer,
            trained_text,
            dataset,
            validation,
            tests,
            neutral,
            replay,
            labels,
            model,
            device,
        })
    }

    /// Reads everything again from the plan in `output`: for a cell that runs in its own process.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::File`] if the data have changed.
    pub fn from_plan(output: &Path, device: Device) -> Result<Self> {
        let plan = ComparisonPlan::read(output)?;
        let ComparisonPlan { config, task, train_task, command, .. } = plan.clone();
        let comparison = Comparison { config, task, train_task };
        let again = Self::of_version(plan.format_version, comparison, &command, device)?;
        check_weights(output, &plan, &again.plan)?;
        if again.plan.data != plan.data {
            let path = output.join(ComparisonPlan::FILE_NAME);
            let reason = "the data have changed since the comparison was planned; start it again with its command".to_owned();
            return Err(Error::File { path, reason });
        }
        Ok(again)
    }

    /// The head of a run before its first step, if the task trains a head. It depends on the seed only, not on the adapter's random numbers.
    pub(crate) fn new_head(&self, model: &Decoder, seed: u64) -> Result<Option<TaskHead>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        tch::manual_seed(seed_of(&[seed, HEAD]) as i64);
        let (k, classes) = (labels.n_outputs(), labels.classes().to_vec());
        Ok(Some(TaskHead::new(model, &Weights::open(&self.model)?, k, classes)?))
    }

    /// The head beside an adapter of a run.
    pub(crate) fn read_head(&self, model: &Decoder, directory: &Path) -> Result<Option<TaskHead>> {
        Ok(read_head(directory, model, &Weights::open(&self.model)?)?)
    }

    pub(crate) fn open_model(&self) -> Result<Decoder> {
        Ok(Decoder::open(&self.model, self.plan.config.kind.kind(), self.device)?)
    }
}

/// Selects the random stream of a seed for a head's initial weights.
const HEAD: u64 = 17;

/// The methods of an entry, with the defaults of the comparison's format version.
fn resolve_entry(
    entry: &MethodEntry,
    format_version: u32,
    model: &ModelDescription,
) -> Result<Methods> {
    let mut options = entry.options.clone();
    let declared = options_of(&entry.method)?;
    // the defaults of format version 1
    if format_version == 1 && declared.contains(&&SHARE_WEIGHTS) {
        if options.get::<bool>(&SHARE_WEIGHTS).is_none() {
            options = options.with(&SHARE_WEIGHTS, true);
        }
        if options.get::<Positions>(&POSITIONS).is_none() {
            options = options.with(&POSITIONS, "f7+l7");
        }
    }
    Ok(resolve(&entry.method, &options, model)?)
}

/// Checks that the objective fits the task's rows, and that every method can learn it.
fn check_objective(config: &CompareConfig, task: &TaskConfig, methods: &[Methods]) -> Result<()> {
    let refuse = |reason: String| Err(Error::File { path: PathBuf::from(&config.name), reason });
    let (own, kind) = (config.objective.objective, task.kind);
    if own.prefers() != (kind == TaskKind::Preference) {
        return refuse(format!(
            "objective is {own} and the task of type {kind}; a task of type preference is learned by dpo, ipo, orpo or simpo below [objective], and no other is"
        ));
    }
    if own.compares && methods.iter().any(|method| method.has("full")) {
        return refuse(format!(
            "objective {own} compares with the frozen model, and method full leaves none; leave full out, or take simpo or orpo"
        ));
    }
    let learned = learned(config, task);
    Metric::check_best(config.train.options.best, learned.metrics, learned.name)?;
    Ok(())
}

/// The objective. A task for a head has the name of the head's objective; other tasks name theirs in `[objective]`.
pub(crate) fn learned(config: &CompareConfig, task: &TaskConfig) -> &'static ObjectiveDeclaration {
    let of_task = ObjectiveDeclaration::of(task.kind.name());
    of_task.ok().filter(|objective| objective.told.is_some()).unwrap_or(config.objective.objective)
}

/// Rows drawn from a file.
struct Part {
    file: PathBuf,
    available: usize,
    questions: Vec<Question>,
}

impl Part {
    fn facts(&self, encoded: &[EncodedQuestion]) -> PartFacts {
        let used: Vec<_> = encoded.iter().map(|q| (&q.example, q.answer.as_str())).collect();
        PartFacts::of(&self.file, self.available, &used)
    }
}

struct Parts {
    train: Part,
    validation: Part,
    tests: Vec<Part>,
}

impl Parts {
    fn read(config: &CompareConfig, task: &TaskConfig, training: &TaskConfig) -> Result<Self> {
        let data = &config.data;
        let file = data.path(&data.train);
        let mut rest = shuffled(read_questions(training, &file, data.columns.as_ref())?, data.seed);
        let available = rest.len();
        let held_out = if data.validation.is_none() { data.validation_size } else { 0 };
        let n = data.train_size.unwrap_or(available.saturating_sub(held_out));
        if n == 0 || n + held_out > available {
            let reason = format!(
                "{available} rows, expected {} to train on and {held_out} to hold out; lower train_size or validation_size",
                n.max(1)
            );
            return Err(Error::File { path: file, reason });
        }
        let mut held = rest.split_off(n);
        held.truncate(held_out);
        let train = Part { file: file.clone(), available, questions: rest };
        let validation = match &data.validation {
            Some(path) => drawn(task, data, path, Some(data.validation_size))?,
            None => Part { file, available, questions: held },
        };
        let test = |path: &PathBuf| drawn(task, data, path, data.test_size);
        let tests = data.test.iter().map(test).collect::<Result<_>>()?;
        Ok(Self { train, validation, tests })
    }
}

fn drawn(task: &TaskConfig, data: &DataConfig, path: &Path, size: Option<usize>) -> Result<Part> {
    let file = data.path(path);
    let questions = read_questions(task, &file, data.columns.as_ref())?;
    let mut questions = shuffled(questions, data.seed);
    let available = questions.len();
    let size = size.unwrap_or(available);
    if size > available {
        let reason =
            format!("{available} rows, {size} are wanted; lower validation_size or test_size");
        return Err(Error::File { path: file, reason });
    }
    questions.truncate(size);
    Ok(Part { file, available, questions })
}

fn shuffled(mut questions: Vec<Question>, seed: u64) -> Vec<Question> {
    questions.shuffle(&mut StdRng::seed_from_u64(seed));
    questions
}

fn cut_to(mut example: Example, max_length: usize) -> Result<Example> {
    let length = example.length();
    cut(&mut example, max_length);
    let is_empty = |own: &Sequence| own.labels.iter().skip(1).all(|&label| label == IGNORE_INDEX);
    if example.sequences.iter().any(is_empty) {
        return Err(reft_train::Error::without_label(example.id, length, max_length).into());
    }
    Ok(example)
}

/// Tokens of a window of the neutral text; a quarter of them are its prompt, where methods edit.
const WINDOW: usize = 128;
/// The most windows of the neutral text that are used.
const WINDOWS: usize = 32;

fn windows(path: &Path, tokenizer: Option<&Tokenizer>, room: usize) -> Result<Vec<Example>> {
    let refuse = |reason: String| Error::File { path: path.to_owned(), reason };
    let text = read_text(path)?;
    let tokenizer = tokenizer
        .ok_or_else(|| refuse("a neutral text needs a model with a tokenizer".to_owned()))?;
    let tokens = tokenizer.encode(text.trim(), false)?;
    let width = WINDOW.min(room).max(1);
    let window = |(i, tokens): (usize, &[i64])| {
        let prompt_length = width / 4;
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&tokens[prompt_length..]);
        let row = Row { input_ids: tokens.to_vec(), prompt_length, ..Row::default() };
        Example::of(format!("window {} of {}", i + 1, path.display()), row, labels)
    };
    let windows: Vec<Example> =
        tokens.chunks_exact(width).take(WINDOWS).enumerate().map(window).collect();
    if windows.is_empty() {
        let found = tokens.len();
        return Err(refuse(format!(
            "{found} tokens, expected at least {width}; give a longer text"
        )));
    }
    Ok(windows)
}
