//! Replies in OpenAI's shapes.

use reft_models::Tokenizer;
use serde_json::{Map, Value, json};

use crate::api::reply::{Delta, ToldToken};
use crate::api::request::Endpoint;

/// The fields that all parts of a reply have in common.
pub(crate) struct Shape<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) id: &'a str,
    pub(crate) created: i64,
    pub(crate) model: &'a str,
    pub(crate) tokenizer: &'a Tokenizer,
    /// Whether parts have the tokens and their log-probabilities.
    pub(crate) has_logprobs: bool,
    /// Whether the last part of a stream has the usage.
    pub(crate) has_usage: bool,
}

/// A reply that is sent as a whole.
#[derive(Default)]
pub(crate) struct Whole {
    text: String,
    tokens: Vec<ToldToken>,
    finish: Option<&'static str>,
}

impl Whole {
    pub(crate) fn add(&mut self, delta: Delta) {
        self.text += &delta.text;
        self.tokens.extend(delta.tokens);
        self.finish = delta.finish;
    }
}

/// The numbers of tokens of a reply.
pub(crate) fn usage(prompt: usize, generated: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated})
}

impl Shape<'_> {
    /// The whole replies.
    pub(crate) fn whole(&self, choices: Vec<Whole>, usage: Value) -> Value {
        let choice = |(index, Whole { text, tokens, finish }): (usize, Whole)| {
            let logprobs = self.logprobs(&tokens, 0);
            match self.endpoint {
                Endpoint::Chat => {
                    let message = json!({"role": "assistant", "content": text, "refusal": null});
                    json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
                }
                Endpoint::Completion => {
                    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
                }
            }
        };
        let choices: Vec<Value> = choices.into_iter().enumerate().map(choice).collect();
        let mut whole = self.envelope(match self.endpoint {
            Endpoint::Chat => "chat.completion",
            Endpoint::Completion => "text_completion",
        });
        whole["choices"] = choices.into();
        whole["usage"] = usage;
        whole
    }

    /// The first part of a chat's stream, which says who speaks.
    pub(crate) fn opening(&self, choice: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (self.endpoint == Endpoint::Chat).then(|| {
            self.part(
                json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": null}),
            )
        })
    }

    /// A part of a stream; `offset`: characters of the reply before it.
    pub(crate) fn delta(&self, delta: &Delta, offset: usize) -> Value {
        let Delta { choice, text, tokens, finish } = delta;
        let logprobs = self.logprobs(tokens, offset);
        self.part(match self.endpoint {
            Endpoint::Chat => {
                let content = if text.is_empty() && tokens.is_empty() {
                    json!({})
                } else {
                    json!({"content": text})
                };
                json!({"index": choice, "delta": content, "logprobs": logprobs, "finish_reason": finish})
            }
            Endpoint::Completion => {
                json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
        })
    }

    /// The last part of a stream, with the usage.
    pub(crate) fn closing(&self, usage: Value) -> Value {
        let mut part = self.envelope(self.part_name());
        part["choices"] = json!([]);
        part["usage"] = usage;
        part
    }

    /// Characters that tokens stand for.
    pub(crate) fn characters(&self, tokens: &[ToldToken]) -> usize {
        tokens.iter().map(|token| self.text(token.id).chars().count()).sum()
    }

    fn part(&self, choice: Value) -> Value {
        let mut part = self.envelope(self.part_name());
        part["choices"] = json!([choice]);
        if self.has_usage {
            part["usage"] = Value::Null;
        }
        part
    }

    fn part_name(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        }
    }

    fn envelope(&self, object: &str) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model})
    }

    fn logprobs(&self, tokens: &[ToldToken], mut offset: usize) -> Value {
        if !self.has_logprobs || (tokens.is_empty() && self.endpoint == Endpoint::Chat) {
            return Value::Null;
        }
        let told = |id: i64, logprob: f32| {
            let text = self.text(id);
            let bytes =
                (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.as_bytes().to_vec());
            json!({"token": text, "logprob": logprob, "bytes": bytes})
        };
        match self.endpoint {
            Endpoint::Chat => {
                let token = |ToldToken { id, logprobs }: &ToldToken| {
                    let top = logprobs.top.iter().map(|(id, logprob)| told(*id, *logprob));
                    let mut all = told(*id, logprobs.logprob);
                    all["top_logprobs"] = top.collect();
                    all
                };
                json!({"content": tokens.iter().map(token).collect::<Vec<_>>(), "refusal": null})
            }
            Endpoint::Completion => {
                let (mut texts, mut own, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
                for ToldToken { id, logprobs } in tokens {
                    let text = self.text(*id);
                    offsets.push(offset);
                    offset += text.chars().count();
                    texts.push(text);
                    own.push(logprobs.logprob);
                    let entry = |(id, logprob): &(i64, f32)| (self.text(*id), json!(logprob));
                    top.push(logprobs.top.iter().map(entry).collect::<Map<String, Value>>());
                }
                json!({"tokens": texts, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets})
            }
        }
    }

    fn text(&self, id: i64) -> String {
        self.tokenizer.decode(&[id], false).unwrap_or_default()
    }
}
