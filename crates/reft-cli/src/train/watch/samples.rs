use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use reft_bench::{SampleReply, TrainingRun};
use reft_models::{AdapterStack, GenerationConfig, Model, Row, Tokenizer, generate, write_text};
use reft_train::{Plan, Progress, StepStats, TextEncoder};

use crate::generation::prompts::prompt_record;
use crate::terminal::note;
use crate::train::watch::options::WatchOptions;

/// Writes replies to sample prompts during a run. They are greedy, so they use none of the run's random numbers.
pub struct Samples<'a> {
    model: &'a dyn Model,
    stack: AdapterStack<'a>,
    tokenizer: &'a Tokenizer,
    config: GenerationConfig,
    prompts: Vec<(String, Row)>,
    every: usize,
    file: PathBuf,
    /// Number of steps of the run, and the step of the last replies.
    steps: usize,
    done: Option<usize>,
    has_failed: bool,
}

impl<'a> Samples<'a> {
    /// Frames the sample prompts like the training rows. `None` without prompts.
    ///
    /// # Errors
    /// If a prompt cannot be framed, or does not fit into the model's context.
    pub fn new(
        options: &WatchOptions,
        model: &'a dyn Model,
        stack: AdapterStack<'a>,
        text: Option<TextEncoder<'a>>,
        directory: &Path,
    ) -> Result<Option<Self>> {
        if options.sample_prompt.0.is_empty() {
            return Ok(None);
        }
        let Some(text) = text else {
            bail!("--sample-prompt is text, and the model has no tokenizer; leave it out");
        };
        let row = |prompt: &String| -> Result<(String, Row)> {
            let ids = text.prompt(&prompt_record("--sample-prompt", prompt))?;
            Ok((prompt.clone(), Row::prompt(ids)))
        };
        let prompts = options.sample_prompt.0.iter().map(row).collect::<Result<Vec<_>>>()?;
        let tokenizer = text.tokenizer;
        let config = GenerationConfig {
            max_new_tokens: options.sample_tokens,
            ..GenerationConfig::of(tokenizer)
        };
        Ok(Some(Self {
            model,
            stack,
            tokenizer,
            config,
            prompts,
            every: options.sample_every,
            file: directory.join(TrainingRun::SAMPLES),
            steps: 0,
            done: None,
            has_failed: false,
        }))
    }

    /// Writes the replies after a step, or of the base model if `step` is `None`.
    fn write(&mut self, step: Option<usize>) -> Result<()> {
        let stack = if step.is_some() { &self.stack } else { &AdapterStack::EMPTY };
        let rows: Vec<Row> = self.prompts.iter().map(|(_, row)| row.clone()).collect();
        let on_token = &mut |_row: usize, _id: i64| ControlFlow::Continue(());
        let generated = generate(self.model, stack, &rows, &self.config, on_token)?;
        let mut lines = String::new();
        for ((prompt, _), generated) in self.prompts.iter().zip(generated) {
            let reply = self.tokenizer.decode(generated.text_ids(), true)?.trim().to_owned();
            if let Some(step) = step {
                note(format!("step {step}: {prompt:?} → {reply:?}"));
            }
            let row = SampleReply { step, prompt: prompt.clone(), reply };
            lines += &(serde_json::to_string(&row)? + "\n");
        }
        let file = OpenOptions::new().append(true).create(true).open(&self.file);
        let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
        written.with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Writes the replies. An error prints a warning and does not end the run.
    fn try_to_write(&mut self, step: Option<usize>) {
        if self.has_failed {
            return;
        }
        if let Err(error) = self.write(step) {
            self.has_failed = true;
            note(format!("warning: no replies to sample prompts: {error:#}"));
        }
    }
}

/// The rows of a file of replies that belong to steps up to `step`.
fn kept(text: &str, step: usize) -> String {
    let belongs = |line: &&str| {
        let row = serde_json::from_str::<SampleReply>(line);
        line.ends_with('\n') && row.is_ok_and(|row| row.step.is_none_or(|of| of <= step))
    };
    text.split_inclusive('\n').filter(belongs).collect()
}

impl Progress for Samples<'_> {
    fn started(&mut self, plan: &Plan) {
        self.steps = plan.steps;
        if self.every == 0 {
            self.every = plan.steps_per_epoch;
        }
        let before = fs::read_to_string(&self.file).unwrap_or_default();
        let before = if plan.done > 0 { kept(&before, plan.done) } else { String::new() };
        if let Err(error) = write_text(&self.file, &before) {
            note(format!("warning: no replies to sample prompts: {error}"));
            self.has_failed = true;
        } else if before.is_empty() {
            self.try_to_write(None);
        }
    }

    fn step(&mut self, stats: &StepStats) {
        let step = stats.step;
        if (step.is_multiple_of(self.every) || step == self.steps) && self.done != Some(step) {
            self.done = Some(step);
            self.try_to_write(Some(step));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_on_keeps_the_replies_up_to_the_step() -> Result<()> {
        let row = |step, reply: &str| -> Result<String> {
            let row = SampleReply { step, prompt: "p".to_owned(), reply: reply.to_owned() };
            Ok(serde_json::to_string(&row)? + "\n")
        };
        let rows = [row(None, "base")?, row(Some(2), "two")?, row(Some(4), "four")?];
        let text = rows.concat() + "{\"step\":2,\"pro";
        assert_eq!(kept(&text, 3), rows[..2].concat());
        assert_eq!(kept(&text, 4), rows.concat());
        Ok(())
    }
}
