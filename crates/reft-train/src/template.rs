use std::str::FromStr;

use reft_models::{ChatTemplate, Message, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::data::{Content, Record};
use crate::{Error, Result};

/// How a row becomes the text of a prompt and of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// Conversations and instructions by the model's chat template, instructions by [`Self::Alpaca`] if it has none;
    /// prompt and completion as they are.
    #[default]
    Auto,
    /// The model's chat template; an instruction or a prompt is the user's message.
    Chat,
    /// The frame that Alpaca was trained with; a prompt is an instruction without input.
    Alpaca,
    /// Text as it is; an instruction's input follows after an empty line.
    Plain,
}

impl FromStr for Template {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "auto" => Ok(Self::Auto),
            "chat" => Ok(Self::Chat),
            "alpaca" => Ok(Self::Alpaca),
            "plain" => Ok(Self::Plain),
            _ => Err(Error::UnknownTemplate { found: s.to_owned() }),
        }
    }
}

/// Turns rows into tokens, in training as in inference.
///
/// Prompt and completion are tokenised apart and joined, so that a prompt has the same tokens whatever follows it.
#[derive(Debug, Clone, Copy)]
pub struct TextEncoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template, if it has one.
    pub chat_template: Option<&'a ChatTemplate>,
    /// Which template frames a row.
    pub template: Template,
}

/// The two texts of a row, before tokenisation.
struct Texts {
    prompt: String,
    completion: String,
    /// Whether the tokenizer adds its own begin token; a chat template writes it itself.
    add_special_tokens: bool,
}

impl TextEncoder<'_> {
    /// Tokens of a row's prompt, and of its completion with the end token.
    ///
    /// # Errors
    /// [`Error::Template`] if the template has no place for such a row, or the tokenizer no end token; [`Error::Example`] if
    /// the chat template or the tokenizer refuses.
    pub fn encode(&self, record: &Record) -> Result<(Vec<i64>, Vec<i64>)> {
        let failed = |source| Error::Example { id: record.id.clone(), source: Box::new(source) };
        let refused =
            |reason: &str| Error::Template { id: record.id.clone(), reason: reason.into() };
        if let Content::Tokens { input_ids, prompt_length, .. } = &record.content {
            let (prompt, completion) = input_ids
                .split_at_checked(*prompt_length)
                .ok_or_else(|| refused("prompt_length is past the end of input_ids"))?;
            return Ok((prompt.to_vec(), completion.to_vec()));
        }
        let texts = match self.texts(&record.content) {
            Ok(texts) => texts,
            Err(TextsError::Refused(reason)) => return Err(refused(reason)),
            Err(TextsError::Chat(source)) => return Err(failed(source)),
        };
        let prompt =
            self.tokenizer.encode(&texts.prompt, texts.add_special_tokens).map_err(failed)?;
        let mut completion = self.tokenizer.encode(&texts.completion, false).map_err(failed)?;
        let end = self.tokenizer.eos_id();
        completion.push(end.ok_or_else(|| {
            refused(
                "the tokenizer has no end token; name one as eos_token in tokenizer_config.json",
            )
        })?);
        Ok((prompt, completion))
    }

    /// Tokens of what a user asks, framed as the prompt of a training row: [`Content::Instruction`] by the template in force.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_prompt(&self, instruction: &str) -> Result<Vec<i64>> {
        let content = Content::Instruction {
            instruction: instruction.to_owned(),
            input: String::new(),
            output: String::new(),
            answer: None,
        };
        let record = Record { id: "prompt".to_owned(), content, subspace: None };
        Ok(self.encode(&record)?.0)
    }

    fn texts(&self, content: &Content) -> std::result::Result<Texts, TextsError> {
        let plain = |prompt: String, completion: &str| Texts {
            prompt,
            completion: completion.to_owned(),
            add_special_tokens: true,
        };
        let (instruction, input, output) = match content {
            Content::Chat(messages) => return self.conversation(messages),
            Content::Completion { prompt, completion } => (prompt, "", completion),
            Content::Instruction { instruction, input, output, .. } => {
                (instruction, input.as_str(), output)
            }
            Content::Tokens { .. } => return Err(TextsError::Refused("tokens have no template")),
        };
        let is_verbatim = matches!(content, Content::Completion { .. });
        match self.template {
            Template::Auto if is_verbatim => Ok(plain(instruction.clone(), output)),
            Template::Auto if self.chat_template.is_none() => {
                Ok(plain(alpaca(instruction, input), output))
            }
            Template::Alpaca => Ok(plain(alpaca(instruction, input), output)),
            Template::Plain => Ok(plain(joined(instruction, input), output)),
            Template::Auto | Template::Chat => self.conversation(&[
                Message::new("user", joined(instruction, input)),
                Message::new("assistant", output.as_str()),
            ]),
        }
    }

    /// The last message is the completion, the others are the prompt.
    fn conversation(&self, messages: &[Message]) -> std::result::Result<Texts, TextsError> {
        if !matches!(self.template, Template::Auto | Template::Chat) {
            return Err(TextsError::Refused(
                "a conversation needs template chat; alpaca and plain have no place for it",
            ));
        }
        let chat_template = self.chat_template.ok_or(TextsError::Refused(
            "the tokenizer has no chat template; use template alpaca or plain, and rows without messages",
        ))?;
        let (last, prompt) = match messages.split_last() {
            Some((last, prompt)) if last.role == "assistant" && !prompt.is_empty() => {
                (last, prompt)
            }
            _ => {
                return Err(TextsError::Refused(
                    "the last of the messages must be the assistant's, after at least one other",
                ));
            }
        };
        let prompt = chat_template.render(prompt, true).map_err(TextsError::Chat)?;
        Ok(Texts { prompt, completion: last.content.clone(), add_special_tokens: false })
    }
}

enum TextsError {
    Refused(&'static str),
    Chat(reft_models::Error),
}

fn joined(instruction: &str, input: &str) -> String {
    if input.is_empty() { instruction.to_owned() } else { format!("{instruction}\n\n{input}") }
}

/// The prompt of Stanford Alpaca (Taori et al. 2023).
fn alpaca(instruction: &str, input: &str) -> String {
    if input.is_empty() {
        return format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\n{instruction}\n\n### Response:\n"
        );
    }
    format!(
        "Below is an instruction that describes a task, paired with an input that provides further context. \
         Write a response that appropriately completes the request.\n\n\
         ### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
}
