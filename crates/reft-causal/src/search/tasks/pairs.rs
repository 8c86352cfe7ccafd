use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::rngs::StdRng;
use reft_models::{Row, Tokenizer};
use reft_train::{Example, IGNORE_INDEX, Rendered, TextTemplate};

use crate::search::tasks::das_task::{DasTask, TaskModel};
use crate::{Counterfactual, Error, PositionName, Result};

/// Counterfactuals of a task as tokens: bases with the answers that the causal model expects, and their sources.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pairs {
    /// The bases, with the expected answer behind the prompt.
    pub(crate) bases: Vec<Example>,
    /// The answer of each base by itself.
    pub(crate) own_answers: Vec<i64>,
    /// The sources' prompts.
    pub(crate) sources: Vec<Row>,
    /// The value that the variable has in each source.
    pub(crate) values: Vec<String>,
    /// For each position, the token of every base and of every source.
    pub(crate) tokens: Vec<(Vec<usize>, Vec<usize>)>,
    /// Every answer that occurs.
    pub(crate) answers: Vec<i64>,
    /// The first pair in words.
    pub(crate) example: String,
    /// Texts of base and source of each pair, and the number of their template; empty for a task without texts.
    pub(crate) texts: Vec<PairTexts>,
    /// The templates.
    pub(crate) templates: Vec<String>,
    /// Texts of the answers.
    pub(crate) answer_texts: BTreeMap<i64, String>,
}

/// A pair in words.
#[derive(Debug, Clone)]
pub(crate) struct PairTexts {
    pub(crate) base: String,
    pub(crate) source: String,
    pub(crate) template: usize,
}

/// A prompt as tokens.
struct Prompt {
    text: String,
    input_ids: Vec<i64>,
    slot_ends: Vec<(String, usize)>,
}

/// Draws `n` pairs, determined by the seed. A larger `n` only adds pairs at the end.
///
/// # Errors
/// If an answer is not one token, a slot does not end where a token does, or a prompt does not have a position.
pub(crate) fn draw_pairs(
    task: &DasTask,
    tokenizer: &Tokenizer,
    positions: &[PositionName],
    n: usize,
    seed: u64,
) -> Result<Pairs> {
    let refuse = |reason: String| Error::DasTask { task: task.name.clone(), reason };
    let TaskModel { model, searched, answer } = task.model().map_err(refuse)?;
    let templates = task.parsed_templates().map_err(refuse)?;
    // a base and its source have the same template
    let mut chosen = Vec::with_capacity(n);
    let mut is_base = true;
    let sample = |rng: &mut StdRng| {
        if is_base {
            chosen.push(rng.random_range(0..templates.len()));
        }
        is_base = !is_base;
        task.draw(rng)
    };
    let drawn = model.draw(n, answer, &[&[searched]], seed, sample)?;
    let tokens = positions.iter().map(|_| (Vec::new(), Vec::new())).collect();
    let mut pairs = Pairs { tokens, templates: task.templates.clone(), ..Pairs::default() };
    let mut answers = BTreeSet::new();
    for (i, (drawn, template)) in drawn.iter().zip(chosen).enumerate() {
        let Counterfactual { base, sources, expected, unchanged } = drawn;
        let source = &sources[0].1;
        let prompt = |inputs| prompt(task, &templates[template], inputs, tokenizer);
        let (base, source_prompt) = (prompt(base)?, prompt(source)?);
        for (position, tokens) in positions.iter().zip(&mut pairs.tokens) {
            tokens.0.push(base.token(position, task)?);
            tokens.1.push(source_prompt.token(position, task)?);
        }
        let [target, own] = [expected, unchanged].map(|value| answer_token(task, value, tokenizer));
        let (target, own) = (target?, own?);
        for (token, value) in [(target, expected), (own, unchanged)] {
            answers.insert(token);
            pairs.answer_texts.entry(token).or_insert_with(|| task.answer_text(value));
        }
        if i == 0 {
            let text = |value| task.answer_text(value);
            pairs.example = format!(
                "base `{}`, source `{}`: the answer is `{}`, and `{}` with {} from the source",
                base.text,
                source_prompt.text,
                text(unchanged),
                text(expected),
                task.variable
            );
        }
        pairs.values.push(model.run(source)?[searched].clone());
        pairs.own_answers.push(own);
        let (text, source) = (base.text.clone(), source_prompt.text.clone());
        pairs.texts.push(PairTexts { base: text, source, template });
        pairs.sources.push(Row::prompt(source_prompt.input_ids));
        pairs.bases.push(example(i, base.input_ids, target));
    }
    pairs.answers = answers.into_iter().collect();
    Ok(pairs)
}

fn prompt(
    task: &DasTask,
    template: &TextTemplate,
    inputs: &[String],
    tokenizer: &Tokenizer,
) -> Result<Prompt> {
    let refuse = |reason: String| Error::DasTask { task: task.name.clone(), reason };
    let fields = task.fields(inputs);
    let Rendered { text, ends } = template.render_with_ends(&fields).map_err(refuse)?;
    let input_ids = tokenizer.encode(&text, true)?;
    let mut slot_ends = Vec::with_capacity(ends.len());
    for (slot, end) in ends {
        let before = tokenizer.encode(&text[..end], true)?;
        // the tokenizer may add an end token to both texts, so only their common prefix counts
        let shared = before.iter().zip(&input_ids).take_while(|(a, b)| a == b).count();
        let length = tokenizer.encode(&text[..end], false)?.len();
        if shared < length || shared == 0 {
            return Err(refuse(format!(
                "{{{slot}}} does not end where a token does in {text:?}; put a space behind it"
            )));
        }
        slot_ends.push((slot.to_owned(), shared - 1));
    }
    Ok(Prompt { text, input_ids, slot_ends })
}

impl Prompt {
    fn token(&self, position: &PositionName, task: &DasTask) -> Result<usize> {
        let length = self.input_ids.len();
        position.token(length, &self.slot_ends).ok_or_else(|| Error::DasTask {
            task: task.name.clone(),
            reason: format!(
                "{:?} has no position {position}: it has {length} tokens and the slots {}",
                self.text,
                self.slot_ends.iter().map(|(slot, _)| slot.as_str()).collect::<Vec<_>>().join(", ")
            ),
        })
    }
}

fn answer_token(task: &DasTask, value: &str, tokenizer: &Tokenizer) -> Result<i64> {
    let text = task.answer_text(value);
    match tokenizer.encode(&text, false)?[..] {
        [token] => Ok(token),
        ref tokens => Err(Error::DasTask {
            task: task.name.clone(),
            reason: format!(
                "the answer {text:?} is {} tokens of this model, expected 1; choose another word",
                tokens.len()
            ),
        }),
    }
}

fn example(number: usize, prompt: Vec<i64>, answer: i64) -> Example {
    let prompt_length = prompt.len();
    let mut labels = vec![IGNORE_INDEX; prompt_length];
    labels.push(answer);
    let input_ids = [prompt, vec![answer]].concat();
    let row = Row { input_ids, prompt_length, ..Row::default() };
    Example::of(number.to_string(), row, labels)
}
