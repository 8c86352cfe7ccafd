use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use reft_models::{ChatTemplate, Decoder, DecoderConfig, Row, Tokenizer, resolve_model};
use reft_train::{Dataset, Example, IGNORE_INDEX, TextEncoder};
use tch::Device;

use crate::compare::config::CompareConfig;
use crate::compare::facts::{DataFacts, PartFacts};
use crate::compare::leakage::Leakage;
use crate::compare::machine::Machine;
use crate::compare::plan::Plan;
use crate::error::{Error, Result, read_text};
use crate::method_config::MethodConfig;
use crate::tasks::{EncodedQuestion, Question, TaskConfig, encode_questions, read_questions};

/// A comparison with everything read, tokenised and checked: nothing of it is left to fail when training starts.
#[derive(Debug)]
pub struct Prepared {
    /// What is going to be done.
    pub plan: Plan,
    pub(crate) model: PathBuf,
    pub(crate) device: Device,
    pub(crate) methods: Vec<MethodConfig>,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) dataset: Dataset,
    pub(crate) validation: Vec<EncodedQuestion>,
    pub(crate) tests: Vec<Vec<EncodedQuestion>>,
    pub(crate) neutral: Option<Vec<Example>>,
}

impl Prepared {
    /// Reads and checks everything that a comparison needs, except for the model's weights.
    ///
    /// `train_task` says how rows of the training file are read, if otherwise than those of the test files.
    ///
    /// # Errors
    /// Whatever cannot be used: model, tokenizer, methods, data, with file and line where there is one.
    pub fn new(
        config: CompareConfig,
        task: TaskConfig,
        train_task: Option<TaskConfig>,
        command: String,
        device: Device,
    ) -> Result<Self> {
        let training = train_task.as_ref().unwrap_or(&task);
        if training.kind != task.kind {
            let (found, expected) = (training.kind, task.kind);
            let reason = format!(
                "train_task is of type {found:?}, task of {expected:?}; they must be of one type"
            );
            return Err(Error::File { path: config.train_task.unwrap_or_default(), reason });
        }
        let model = resolve_model(&config.model)?;
        let shape = DecoderConfig::open(&model)?;
        let methods = config.method.iter();
        let methods =
            methods.map(|entry| MethodConfig::resolve(&entry.method, &entry.options, &shape));
        let methods = methods.collect::<Result<_>>()?;
        let has_tokenizer = model.is_file() || model.join("tokenizer.json").exists();
        let tokenizer = has_tokenizer.then(|| Tokenizer::open(&model)).transpose()?;
        let chat_template = match ChatTemplate::open(&model) {
            Ok(template) => Some(template),
            Err(reft_models::Error::NoChatTemplate { .. }) => None,
            Err(other) => return Err(other.into()),
        };
        let parts = Parts::read(&config, &task, training)?;
        let context = shape.max_position_embeddings as usize;
        let encode = |task: &TaskConfig, part: &Part| {
            let encoder = tokenizer.as_ref().map(|tokenizer| TextEncoder {
                tokenizer,
                chat_template: chat_template.as_ref(),
                template: task.template,
            });
            encode_questions(task, &part.questions, encoder.as_ref(), shape.vocab_size, context)
        };
        let train = encode(training, &parts.train)?;
        let validation_task = if config.data.validation.is_some() { &task } else { training };
        let validation = encode(validation_task, &parts.validation)?;
        let tests = parts.tests.iter().map(|part| encode(&task, part));
        let tests = tests.collect::<Result<Vec<_>>>()?;
        let max_length = config.train.max_length;
        let cut = train.iter().filter(|q| q.example.row.input_ids.len() > max_length).count();
        let neutral = match &config.neutral {
            Some(path) => Some((path, windows(path, tokenizer.as_ref(), context)?)),
            None => None,
        };
        let test_questions: Vec<&[Question]> =
            parts.tests.iter().map(|part| part.questions.as_slice()).collect();
        let data = DataFacts {
            train: parts.train.facts(&train),
            validation: parts.validation.facts(&validation),
            test: parts.tests.iter().zip(&tests).map(|(part, test)| part.facts(test)).collect(),
            cut,
            leakage: Leakage::between(
                &parts.train.questions,
                &parts.validation.questions,
                &test_questions,
            ),
            neutral: neutral.as_ref().map(|(path, windows)| {
                let as_question = |example: &Example| EncodedQuestion {
                    example: example.clone(),
                    answer: String::new(),
                    choices: Vec::new(),
                };
                let windows: Vec<EncodedQuestion> = windows.iter().map(as_question).collect();
                PartFacts::of(path, windows.len(), &windows)
            }),
        };
        let dataset = Dataset {
            train: train.iter().map(|q| cut_to(&q.example, max_length)).collect::<Result<_>>()?,
            validation: Vec::new(),
        };
        let neutral = neutral.map(|(_, windows)| windows);
        let plan = Plan {
            format_version: Plan::FORMAT_VERSION,
            command,
            config,
            task,
            train_task,
            data,
            base_parameters: shape.parameters(),
            machine: Machine::here(device),
        };
        Ok(Self { plan, model, device, methods, tokenizer, dataset, validation, tests, neutral })
    }

    /// Reads everything again as a plan has it: for a cell in a process of its own.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::File`] if the data are not what they were.
    pub fn from_plan(output: &Path, device: Device) -> Result<Self> {
        let plan = Plan::read(output)?;
        let (config, command) = (plan.config.clone(), plan.command.clone());
        let again = Self::new(config, plan.task.clone(), plan.train_task.clone(), command, device)?;
        if again.plan.data != plan.data {
            let path = output.join(Plan::FILE_NAME);
            let reason = "the data have changed since the comparison was planned; start it again with its command".to_owned();
            return Err(Error::File { path, reason });
        }
        Ok(again)
    }

    pub(crate) fn open_decoder(&self) -> Result<Decoder> {
        Ok(Decoder::open(&self.model, self.plan.config.kind.kind(), self.device)?)
    }
}

/// Rows drawn from a file.
struct Part {
    file: PathBuf,
    available: usize,
    questions: Vec<Question>,
}

impl Part {
    fn facts(&self, encoded: &[EncodedQuestion]) -> PartFacts {
        PartFacts::of(&self.file, self.available, encoded)
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
        let mut rest = shuffled(read_questions(training, &file)?, data.seed);
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
            Some(path) => drawn(task, data.path(path), Some(data.validation_size), data.seed)?,
            None => Part { file, available, questions: held },
        };
        let test = |path: &PathBuf| drawn(task, data.path(path), data.test_size, data.seed);
        let tests = data.test.iter().map(test).collect::<Result<_>>()?;
        Ok(Self { train, validation, tests })
    }
}

fn drawn(task: &TaskConfig, file: PathBuf, size: Option<usize>, seed: u64) -> Result<Part> {
    let mut questions = shuffled(read_questions(task, &file)?, seed);
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

fn cut_to(example: &Example, max_length: usize) -> Result<Example> {
    let length = example.row.input_ids.len();
    let mut example = example.clone();
    example.row.input_ids.truncate(max_length);
    example.row.prompt_length = example.row.prompt_length.min(max_length);
    example.labels.truncate(max_length);
    if example.labels.iter().skip(1).all(|&label| label == IGNORE_INDEX) {
        return Err(reft_train::Error::NoTarget { id: example.id, length, max_length }.into());
    }
    Ok(example)
}

/// Tokens of a window of the neutral text; a quarter of them are its prompt, where methods edit.
const WINDOW: usize = 128;
/// Windows at most.
const WINDOWS: usize = 32;

fn windows(path: &Path, tokenizer: Option<&Tokenizer>, context: usize) -> Result<Vec<Example>> {
    let refuse = |reason: String| Error::File { path: path.to_owned(), reason };
    let text = read_text(path)?;
    let tokenizer = tokenizer
        .ok_or_else(|| refuse("a neutral text needs a model with a tokenizer".to_owned()))?;
    let tokens = tokenizer.encode(text.trim(), false)?;
    let width = WINDOW.min(context);
    let window = |(i, tokens): (usize, &[i64])| {
        let prompt_length = width / 4;
        let mut labels = vec![IGNORE_INDEX; prompt_length];
        labels.extend(&tokens[prompt_length..]);
        let row = Row { input_ids: tokens.to_vec(), prompt_length, ..Row::default() };
        Example { id: format!("window {} of {}", i + 1, path.display()), row, labels }
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
