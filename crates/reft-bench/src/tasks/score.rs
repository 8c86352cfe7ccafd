use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_models::{ContextLimit, Generated, GenerationConfig, Row, Tokenizer, generate};
use reft_train::{Error as TrainError, Example, Learner, Metric};
use serde::{Deserialize, Serialize};

use crate::tasks::answer::{after_lead, arithmetic};
use crate::tasks::likelihood::{best_next_tokens, log_probabilities};
use crate::tasks::question::{EncodedQuestion, LEAD};
use crate::{Error, Result, Scoring, TaskConfig, TaskKind};

/// How well a model does on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The metric of the value.
    pub metric: Metric,
    /// Share of right answers, share of tokens recalled, or loss.
    pub value: f64,
    /// `exp(loss)`, if the value is a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// For pairs: the mean of `log p(chosen) − log p(rejected)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Number of questions.
    pub questions: usize,
    /// Wall time.
    pub seconds: f64,
    /// The answer to each question; empty where nothing is answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
}

/// The settings of scoring, apart from model and questions.
#[derive(Debug, Clone, Copy)]
pub struct Scorer<'a> {
    /// The task.
    pub task: &'a TaskConfig,
    /// Turns generated tokens into text, and knows the end tokens. Tasks `lm` and `memorise` do not need it.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Questions computed at once.
    pub batch_size: usize,
    /// Asks the work to end.
    pub stop: &'a AtomicBool,
}

/// Checks that questions fit into a model's context together with the completion, the longest choice, or the generated tokens.
///
/// # Errors
/// [`reft_models::Error::ContextFull`] with the questions that are too long.
pub(crate) fn check_context(
    task: &TaskConfig,
    questions: &[EncodedQuestion],
    context: ContextLimit,
) -> Result<()> {
    let (context, length): (_, fn(&EncodedQuestion) -> usize) =
        match generated_tokens(task, questions) {
            Some(n) => (context.generating(n), |question| question.example.row().prompt_length),
            None if task.kind == TaskKind::Choice || task.kind == TaskKind::Commonsense => {
                (context, |question| {
                    question.example.row().prompt_length + question.longest_choice()
                })
            }
            None => (context, |question| question.example.length()),
        };
    Ok(context.check(questions.iter().map(|question| (&question.example.id, length(question))))?)
}

/// Tokens that are generated for each question, if the task scores generated replies.
fn generated_tokens(task: &TaskConfig, questions: &[EncodedQuestion]) -> Option<usize> {
    let usual = match (task.kind, task.scoring()) {
        (TaskKind::Arithmetic, _) => 512,
        (TaskKind::Lm | TaskKind::Memorise | TaskKind::Preference, _) => return None,
        (kind, _) if kind.told().is_some() => return None,
        (_, Scoring::LogProbability | Scoring::NextToken) => return None,
        (TaskKind::Commonsense, Scoring::ExactMatch) => 32,
        (_, Scoring::ExactMatch) => {
            questions.iter().map(EncodedQuestion::longest_choice).max().unwrap_or(1)
        }
    };
    Some(task.max_new_tokens.unwrap_or(usual))
}

impl Scorer<'_> {
    /// Scores a model with its adapters on questions.
    ///
    /// # Errors
    /// [`reft_models::Error::ContextFull`] before the first question is computed; [`Error::Interrupted`]; [`TrainError::EvaluationNotFinite`] with
    /// the questions; errors of the model or an adapter.
    pub fn score(&self, learner: &Learner, questions: &[EncodedQuestion]) -> Result<Score> {
        learner.model.description().check_predicts("a score")?;
        if self.task.kind.told().is_some() {
            let reason =
                format!("task {} is one for a head; score it by HeadScorer", self.task.kind);
            return Err(reft_models::Error::Adapter { reason }.into());
        }
        let context = ContextLimit::of(learner.model.description(), &learner.stack);
        check_context(self.task, questions, context)?;
        let started = Instant::now();
        let (mut perplexity, mut margin) = (None, None);
        let (value, answers) = match (self.task.kind, self.task.scoring()) {
            (TaskKind::Lm, _) => {
                let report = learner.evaluate(&examples(questions), self.batch_size, None)?;
                perplexity = Some(report.perplexity);
                (report.loss, Vec::new())
            }
            (TaskKind::Memorise, _) => (self.recall(learner, questions)?, Vec::new()),
            (TaskKind::Preference, _) => {
                let margins = self.margins(learner, questions)?;
                let n = margins.len() as f64;
                margin = Some(margins.iter().sum::<f64>() / n);
                let right = margins.iter().filter(|margin| **margin > 0.0).count();
                (right as f64 / n, margins.iter().map(f64::to_string).collect())
            }
            (TaskKind::Arithmetic, _) => {
                let judge =
                    |reply: &str, question: &EncodedQuestion| arithmetic(reply, &question.answer);
                self.generated(learner, questions, judge)?
            }
            (_, Scoring::ExactMatch) => {
                let lead = self.lead();
                let judge = |reply: &str, question: &EncodedQuestion| {
                    let found = after_lead(reply, &lead);
                    (found.to_owned(), found == after_lead(&question.answer, ""))
                };
                self.generated(learner, questions, judge)?
            }
            (_, Scoring::LogProbability | Scoring::NextToken) => {
                let best = self.most_probable(learner, questions)?;
                let answers = questions.iter().zip(best).map(|(q, i)| q.choices[i].0.clone());
                let answers: Vec<String> = answers.collect();
                let right = questions.iter().zip(&answers).filter(|(q, a)| q.answer == **a).count();
                (right as f64 / questions.len() as f64, answers)
            }
        };
        Ok(Score {
            metric: self.task.metric(),
            value,
            perplexity,
            margin,
            questions: questions.len(),
            seconds: started.elapsed().as_secs_f64(),
            answers,
        })
    }

    /// For each pair `log p(chosen) − log p(rejected)`, summed over the replies' tokens.
    fn margins(&self, learner: &Learner, questions: &[EncodedQuestion]) -> Result<Vec<f64>> {
        let sequences = questions.iter().flat_map(|question| &question.example.sequences);
        let rows: Vec<Row> = sequences.map(|sequence| sequence.row.clone()).collect();
        let (model, stack) = (learner.model, &learner.stack);
        let log_p = log_probabilities(model, stack, &rows, self.batch_size)?;
        let margin = |(question, pair): (&EncodedQuestion, &[f64])| match pair[0] - pair[1] {
            margin if margin.is_finite() => Ok(margin),
            value => {
                let ids = vec![question.example.id.clone()];
                Err(TrainError::EvaluationNotFinite { value, ids }.into())
            }
        };
        questions.iter().zip(log_p.chunks_exact(2)).map(margin).collect()
    }

    /// The words before the answer in a reply.
    fn lead(&self) -> String {
        match (&self.task.completion, self.task.kind) {
            (Some(completion), _) => {
                let before = completion.split("{answer}").next().unwrap_or_default();
                before.rsplit('}').next().unwrap_or_default().trim().to_owned()
            }
            (None, TaskKind::Commonsense) => LEAD.to_owned(),
            (None, _) => String::new(),
        }
    }

    fn most_probable(
        &self,
        learner: &Learner,
        questions: &[EncodedQuestion],
    ) -> Result<Vec<usize>> {
        let (model, stack) = (learner.model, &learner.stack);
        let chosen = |(question, best): (&EncodedQuestion, Option<usize>)| {
            let ids = || vec![question.example.id.clone()];
            best.ok_or_else(|| {
                TrainError::EvaluationNotFinite { value: f64::NAN, ids: ids() }.into()
            })
        };
        if self.task.scoring() == Scoring::NextToken {
            let prompts: Vec<Row> = questions.iter().map(EncodedQuestion::prompt).collect();
            let first = |(_, tokens): &(String, Vec<i64>)| tokens[0];
            let choices = questions.iter().map(|q| q.choices.iter().map(first).collect());
            let choices: Vec<Vec<i64>> = choices.collect();
            let best = best_next_tokens(model, stack, &prompts, &choices, self.batch_size)?;
            return questions.iter().zip(best).map(chosen).collect();
        }
        let of_one = |question: &EncodedQuestion| {
            let choices = question.choices.iter();
            choices.map(|(_, tokens)| question.with_completion(tokens)).collect::<Vec<_>>()
        };
        let rows: Vec<Row> = questions.iter().flat_map(of_one).collect();
        let mut scores = log_probabilities(model, stack, &rows, self.batch_size)?.into_iter();
        let best_of = |question: &EncodedQuestion| {
            let own: Vec<f64> = scores.by_ref().take(question.choices.len()).collect();
            let best = (0..own.len()).reduce(|best, i| if own[i] > own[best] { i } else { best });
            chosen((question, best.filter(|_| own.iter().all(|log_p| !log_p.is_nan()))))
        };
        questions.iter().map(best_of).collect()
    }

    /// Share of right answers, and the answers, of generated replies.
    fn generated(
        &self,
        learner: &Learner,
        questions: &[EncodedQuestion],
        judge: impl Fn(&str, &EncodedQuestion) -> (String, bool),
    ) -> Result<(f64, Vec<String>)> {
        let tokenizer = self.tokenizer.ok_or_else(|| reft_models::Error::Adapter {
            reason: "the model has no tokenizer, and the task's answers are text".to_owned(),
        })?;
        let max_new_tokens = generated_tokens(self.task, questions)
            .expect("invariant: only tasks that are scored by what is generated come here");
        let config = GenerationConfig { max_new_tokens, ..GenerationConfig::of(tokenizer) };
        let replies = self.replies(learner, questions, config)?;
        let (mut right, mut answers) = (0, Vec::with_capacity(questions.len()));
        for (reply, question) in replies.iter().zip(questions) {
            let (answer, is_right) = judge(&tokenizer.decode(reply.text_ids(), true)?, question);
            right += usize::from(is_right);
            answers.push(answer);
        }
        Ok((right as f64 / questions.len() as f64, answers))
    }

    /// Share of all completions' tokens that greedy generation reproduces before its first wrong token; end tokens do not count.
    fn recall(&self, learner: &Learner, questions: &[EncodedQuestion]) -> Result<f64> {
        let eos_ids = self.tokenizer.map_or(&[][..], Tokenizer::eos_ids);
        let (mut recalled, mut all) = (0, 0);
        for question in questions {
            let expected = match question.completion() {
                [text @ .., last] if eos_ids.contains(last) => text,
                text => text,
            };
            let max_new_tokens = expected.len().max(1);
            let config = GenerationConfig { max_new_tokens, ..GenerationConfig::default() };
            let replies = self.replies(learner, std::slice::from_ref(question), config)?;
            let pairs = replies[0].ids.iter().zip(expected);
            recalled += pairs.take_while(|(found, right)| found == right).count();
            all += expected.len();
        }
        Ok(recalled as f64 / all.max(1) as f64)
    }

    fn replies(
        &self,
        learner: &Learner,
        questions: &[EncodedQuestion],
        config: GenerationConfig,
    ) -> Result<Vec<Generated>> {
        let is_stopped = || self.stop.load(Ordering::Relaxed);
        let mut go_on = |_: usize, _: i64| match is_stopped() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let config = GenerationConfig { batch_size: Some(self.batch_size), ..config };
        let rows: Vec<Row> = questions.iter().map(EncodedQuestion::prompt).collect();
        let (model, stack) = (learner.model, &learner.stack);
        let replies = generate(model, stack, &rows, &config, &mut go_on)?;
        if is_stopped() { Err(Error::Interrupted) } else { Ok(replies) }
    }
}

/// The questions as training examples.
pub(crate) fn examples(questions: &[EncodedQuestion]) -> Vec<Example> {
    questions.iter().map(|question| question.example.clone()).collect()
}
