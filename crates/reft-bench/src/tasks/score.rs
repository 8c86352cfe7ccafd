use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reft_models::{Adapter, Decoder, GenerationConfig, Row, Tokenizer, generate_all};
use reft_train::{Example, evaluate};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tasks::answer::{after_lead, arithmetic};
use crate::tasks::likelihood::{best_next_tokens, log_probabilities};
use crate::tasks::question::{EncodedQuestion, LEAD};
use crate::tasks::task_config::{Metric, Scoring, TaskConfig, TaskKind};

/// How well a model does on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// What the value is.
    pub metric: Metric,
    /// Share of right answers, share of tokens recalled, or loss.
    pub value: f64,
    /// e to the loss, where the value is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Number of questions.
    pub questions: usize,
    /// Wall time.
    pub seconds: f64,
    /// What was answered to each question; empty where nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
}

/// What scoring needs besides model and questions.
#[derive(Debug, Clone, Copy)]
pub struct Scorer<'a> {
    /// The task.
    pub task: &'a TaskConfig,
    /// Turns generated tokens into text, and knows the end tokens. Tasks `lm` and `memorise` do without.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Questions computed at once.
    pub batch_size: usize,
    /// Asks the work to end.
    pub stop: &'a AtomicBool,
}

impl Scorer<'_> {
    /// Scores a model with any number of adapters on questions.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; what the model or an adapter refuses.
    pub fn score(
        &self,
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        questions: &[EncodedQuestion],
    ) -> Result<Score> {
        let started = Instant::now();
        let mut perplexity = None;
        let (value, answers) = match (self.task.kind, self.task.scoring()) {
            (TaskKind::Lm, _) => {
                let examples: Vec<Example> =
                    questions.iter().map(|question| question.example.clone()).collect();
                let report = evaluate(decoder, adapters, &examples, self.batch_size, None)?;
                perplexity = Some(report.perplexity);
                (report.loss, Vec::new())
            }
            (TaskKind::Memorise, _) => (self.recall(decoder, adapters, questions)?, Vec::new()),
            (TaskKind::Arithmetic, _) => {
                let judge =
                    |reply: &str, question: &EncodedQuestion| arithmetic(reply, &question.answer);
                self.generated(decoder, adapters, questions, judge)?
            }
            (_, Scoring::ExactMatch) => {
                let lead = self.lead();
                let judge = |reply: &str, question: &EncodedQuestion| {
                    let found = after_lead(reply, &lead);
                    (found.to_owned(), found == after_lead(&question.answer, ""))
                };
                self.generated(decoder, adapters, questions, judge)?
            }
            (_, Scoring::LogProbability | Scoring::NextToken) => {
                let best = self.most_probable(decoder, adapters, questions)?;
                let answers = questions.iter().zip(best).map(|(q, i)| q.choices[i].0.clone());
                let answers: Vec<String> = answers.collect();
                let right = questions.iter().zip(&answers).filter(|(q, a)| q.answer == **a).count();
                (right as f64 / questions.len() as f64, answers)
            }
        };
        Ok(Score {
            metric: self.task.kind.metric(),
            value,
            perplexity,
            questions: questions.len(),
            seconds: started.elapsed().as_secs_f64(),
            answers,
        })
    }

    /// What stands before the answer in a reply.
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
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        questions: &[EncodedQuestion],
    ) -> Result<Vec<usize>> {
        if self.task.scoring() == Scoring::NextToken {
            let asked = |question: &EncodedQuestion| {
                let tokens = question.choices.iter().map(|(_, tokens)| tokens[0]).collect();
                (question.with_completion(&[]), tokens)
            };
            let asked: Vec<(Example, Vec<i64>)> = questions.iter().map(asked).collect();
            return best_next_tokens(decoder, adapters, &asked, self.batch_size);
        }
        let of_one = |question: &EncodedQuestion| {
            let choices = question.choices.iter();
            choices.map(|(_, tokens)| question.with_completion(tokens)).collect::<Vec<_>>()
        };
        let examples: Vec<Example> = questions.iter().flat_map(of_one).collect();
        let mut scores =
            log_probabilities(decoder, adapters, &examples, self.batch_size)?.into_iter();
        let best_of = |question: &EncodedQuestion| {
            let own: Vec<f64> = scores.by_ref().take(question.choices.len()).collect();
            let best = (0..own.len()).reduce(|best, i| if own[i] > own[best] { i } else { best });
            best.expect("invariant: a question of such a task has choices")
        };
        Ok(questions.iter().map(best_of).collect())
    }

    /// Share of right answers, and the answers, of generated replies.
    fn generated(
        &self,
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        questions: &[EncodedQuestion],
        judge: impl Fn(&str, &EncodedQuestion) -> (String, bool),
    ) -> Result<(f64, Vec<String>)> {
        let tokenizer = self.tokenizer.ok_or_else(|| reft_models::Error::Adapter {
            reason: "the model has no tokenizer, and the task's answers are text".to_owned(),
        })?;
        let max_new_tokens = self.task.max_new_tokens.unwrap_or(match self.task.kind {
            TaskKind::Commonsense => 32,
            TaskKind::Arithmetic => 512,
            _ => longest_choice(questions),
        });
        let stop_ids = tokenizer.eos_ids().to_vec();
        let config = GenerationConfig { max_new_tokens, stop_ids, ..GenerationConfig::default() };
        let rows: Vec<Row> = questions.iter().map(|question| question.prompt()).collect();
        let replies =
            generate_all(decoder, adapters, &rows, self.batch_size, &config, &mut |_, _| {
                self.go_on()
            })?;
        self.check_stop()?;
        let (mut right, mut answers) = (0, Vec::with_capacity(questions.len()));
        for (reply, question) in replies.iter().zip(questions) {
            let (answer, is_right) = judge(&tokenizer.decode(reply.text_ids(), true)?, question);
            right += usize::from(is_right);
            answers.push(answer);
        }
        Ok((right as f64 / questions.len() as f64, answers))
    }

    /// Share of all completions' tokens that greedy generation gives back before its first wrong one; end tokens do not count.
    fn recall(
        &self,
        decoder: &Decoder,
        adapters: &[&dyn Adapter],
        questions: &[EncodedQuestion],
    ) -> Result<f64> {
        let eos_ids = self.tokenizer.map_or(&[][..], Tokenizer::eos_ids);
        let text = |question: &'_ EncodedQuestion| -> Vec<i64> {
            let tokens = question.completion();
            let ends = tokens.last().is_some_and(|last| eos_ids.contains(last));
            tokens[..tokens.len() - usize::from(ends)].to_vec()
        };
        let (mut recalled, mut all) = (0, 0);
        for question in questions {
            let expected = text(question);
            let config = GenerationConfig {
                max_new_tokens: expected.len().max(1),
                ..GenerationConfig::default()
            };
            let rows = [question.prompt()];
            let replies =
                generate_all(decoder, adapters, &rows, 1, &config, &mut |_, _| self.go_on())?;
            self.check_stop()?;
            let pairs = replies[0].ids.iter().zip(&expected);
            recalled += pairs.take_while(|(found, right)| found == right).count();
            all += expected.len();
        }
        Ok(recalled as f64 / all.max(1) as f64)
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}

fn longest_choice(questions: &[EncodedQuestion]) -> usize {
    let lengths = questions.iter().flat_map(|q| q.choices.iter().map(|(_, tokens)| tokens.len()));
    lengths.max().unwrap_or(1)
}
