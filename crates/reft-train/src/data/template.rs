use reft_models::{ChatTemplate, Message, Tokenizer};

use crate::{Content, Record, Result};

/// How a row becomes the text of a prompt and of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

reft_core::names!(Template, "template", reft_models::Error, {
    Auto => "auto", Chat => "chat", Alpaca => "alpaca", Plain => "plain",
});

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

impl Content {
    /// What it says, as a conversation; `None` if it is tokens.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let (user, reply) = match self {
            Self::Completion { prompt, completion } => (prompt.clone(), completion),
            Self::Instruction { instruction, input, output, .. } => {
                (joined(instruction, input), output)
            }
            Self::Chat { messages } => return Some(messages.clone()),
            Self::Tokens { .. } => return None,
        };
        Some(vec![Message::new("user", user), Message::new("assistant", reply.as_str())])
    }
}

impl TextEncoder<'_> {
    /// Tokens of a row's prompt, and of its completion with the end token.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] if the template has no place for such a row, or the tokenizer no end token; [`crate::Error::Example`] if
    /// the chat template or the tokenizer refuses.
    pub fn encode(&self, record: &Record) -> Result<(Vec<i64>, Vec<i64>)> {
        if let Content::Tokens { input_ids, prompt_length, .. } = &record.content {
            let (prompt, completion) = input_ids
                .split_at_checked(*prompt_length)
                .ok_or_else(|| record.refused("prompt_length is past the end of input_ids"))?;
            return Ok((prompt.to_vec(), completion.to_vec()));
        }
        let texts = self.texts(record)?;
        let encode = |text: &str, add_special_tokens| {
            let tokens = self.tokenizer.encode(text, add_special_tokens);
            tokens.map_err(|error| record.failed(error))
        };
        let prompt = encode(&texts.prompt, texts.add_special_tokens)?;
        let mut completion = encode(&texts.completion, false)?;
        let end = self.tokenizer.eos_id();
        completion.push(end.ok_or_else(|| {
            record.refused(
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

    fn texts(&self, record: &Record) -> Result<Texts> {
        let (instruction, input, output) = match &record.content {
            Content::Chat { messages } => return self.conversation(record, messages),
            Content::Completion { prompt, completion } => (prompt, "", completion),
            Content::Instruction { instruction, input, output, .. } => {
                (instruction, input.as_str(), output)
            }
            Content::Tokens { .. } => return Err(record.refused("tokens have no template")),
        };
        let is_verbatim = matches!(record.content, Content::Completion { .. });
        let prompt = match self.template {
            Template::Auto if is_verbatim => instruction.clone(),
            Template::Auto if self.chat_template.is_none() => alpaca(instruction, input),
            Template::Alpaca => alpaca(instruction, input),
            Template::Plain => joined(instruction, input),
            Template::Auto | Template::Chat => {
                let messages = record.content.messages().unwrap_or_default();
                return self.conversation(record, &messages);
            }
        };
        Ok(Texts { prompt, completion: output.clone(), add_special_tokens: true })
    }

    /// The last message is the completion, the others are the prompt.
    fn conversation(&self, record: &Record, messages: &[Message]) -> Result<Texts> {
        if !matches!(self.template, Template::Auto | Template::Chat) {
            return Err(record.refused(
                "a conversation needs template chat; alpaca and plain have no place for it",
            ));
        }
        let chat_template = self.chat_template.ok_or_else(|| {
            record.refused(
                "the tokenizer has no chat template; use template alpaca or plain, and rows without messages",
            )
        })?;
        let last = messages.split_last();
        let last = last.filter(|(reply, prompt)| reply.role == "assistant" && !prompt.is_empty());
        let (reply, prompt) = last.ok_or_else(|| {
            record.refused(
                "the last of the messages must be the assistant's, after at least one other",
            )
        })?;
        let prompt = chat_template.render(prompt, true).map_err(|error| record.failed(error))?;
        Ok(Texts { prompt, completion: reply.content.clone(), add_special_tokens: false })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    type TestResult = std::result::Result<(), Box<dyn std::error::Error>>;

    /// A byte-pair tokenizer of single letters that merges "a" and "b", with begin and end tokens.
    fn tokenizer(with_end: bool) -> std::result::Result<Tokenizer, Box<dyn std::error::Error>> {
        let letters = "abcdefghijklmnopqrstuvwxyzABDIRW .,:#<>|\n".chars();
        let mut vocab: serde_json::Map<String, serde_json::Value> =
            ["<s>", "</s>", "ab"].iter().zip(0..).map(|(s, i)| ((*s).into(), i.into())).collect();
        vocab.extend(letters.zip(3..).map(|(c, i)| (c.to_string(), i.into())));
        let special = |id: i64, content: &str| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>")],
            "normalizer": null,
            "pre_tokenizer": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "decoder": null,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                "merges": [["a", "b"]]},
        });
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("tokenizer.json"), json.to_string())?;
        let config = if with_end { r#"{"eos_token": "</s>"}"# } else { "{}" };
        std::fs::write(directory.path().join("tokenizer_config.json"), config)?;
        Ok(Tokenizer::open(directory.path())?)
    }

    const CHAT: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}<assistant>{% endif %}";

    fn record(content: Content) -> Record {
        Record { id: "it".into(), content, subspace: None }
    }

    fn completion(prompt: &str, completion: &str) -> Content {
        Content::Completion { prompt: prompt.into(), completion: completion.into() }
    }

    fn instruction(input: &str) -> Content {
        let text = |s: &str| s.to_owned();
        Content::Instruction {
            instruction: text("do"),
            input: text(input),
            output: text("c"),
            answer: None,
        }
    }

    /// Prompt and completion as text, with every special token spelled out.
    fn texts(
        content: &Content,
        template: Template,
        chat_template: Option<&ChatTemplate>,
    ) -> std::result::Result<(String, String), Box<dyn std::error::Error>> {
        let tokenizer = tokenizer(true)?;
        let encoder = TextEncoder { tokenizer: &tokenizer, chat_template, template };
        let (prompt, completion) = encoder.encode(&record(content.clone()))?;
        // the tokenizer has no decoder, so tokens come apart
        let text = |ids: &[i64]| -> reft_models::Result<String> {
            ids.iter().map(|id| tokenizer.decode(&[*id], false)).collect()
        };
        Ok((text(&prompt)?, text(&completion)?))
    }

    #[test]
    fn prompt_and_completion_are_tokenised_apart_with_one_begin_and_one_end() -> TestResult {
        let tokenizer = tokenizer(true)?;
        let encoder =
            TextEncoder { tokenizer: &tokenizer, chat_template: None, template: Template::Auto };
        let (a, b, merged) = (3, 4, 2);
        let (prompt, end) = encoder.encode(&record(completion("ca", "b")))?;
        assert_eq!((prompt, end), (vec![0, 5, a], vec![b, 1])); // not "c", "ab"
        assert_eq!(tokenizer.encode("cab", true)?, [0, 5, merged]);
        Ok(())
    }

    #[test]
    fn auto_frames_each_form_as_it_is_meant() -> TestResult {
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        let messages = vec![
            Message::new("system", "be"),
            Message::new("user", "hi"),
            Message::new("assistant", "yo"),
            Message::new("user", "so"),
            Message::new("assistant", "c"),
        ];
        let conversation = Content::Chat { messages };
        let end = |s: &str| format!("{s}</s>");
        let both = |prompt: &str, completion: &str| (prompt.to_owned(), end(completion));
        assert_eq!(
            texts(&conversation, Template::Auto, Some(&chat))?,
            both("<system>be\n<user>hi\n<assistant>yo\n<user>so\n<assistant>", "c")
        );
        assert_eq!(
            texts(&instruction("it"), Template::Auto, Some(&chat))?,
            both("<user>do\n\nit\n<assistant>", "c")
        );
        assert_eq!(texts(&completion("a", "c"), Template::Auto, Some(&chat))?, both("<s>a", "c"));
        let (prompt, _) = texts(&instruction(""), Template::Auto, None)?;
        assert_eq!(prompt, format!("<s>{}", alpaca("do", "")));
        assert!(
            prompt.ends_with("request.\n\n### Instruction:\ndo\n\n### Response:\n"),
            "{prompt}"
        );
        Ok(())
    }

    #[test]
    fn a_template_that_is_named_is_used() -> TestResult {
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        let prompt = |content: &Content, template| -> std::result::Result<String, _> {
            texts(content, template, Some(&chat)).map(|(prompt, _)| prompt)
        };
        assert_eq!(prompt(&completion("a", "c"), Template::Chat)?, "<user>a\n<assistant>");
        assert_eq!(prompt(&instruction("it"), Template::Plain)?, "<s>do\n\nit");
        let framed = prompt(&instruction("it"), Template::Alpaca)?;
        assert!(
            framed.ends_with("### Instruction:\ndo\n\n### Input:\nit\n\n### Response:\n"),
            "{framed}"
        );
        assert!(framed.contains("paired with an input"), "{framed}");
        Ok(())
    }

    #[test]
    fn a_prompt_is_framed_as_in_training() -> TestResult {
        let tokenizer = tokenizer(true)?;
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        for template in [Template::Auto, Template::Alpaca, Template::Plain] {
            let encoder =
                TextEncoder { tokenizer: &tokenizer, chat_template: Some(&chat), template };
            let (prompt, _) = encoder.encode(&record(instruction("")))?;
            assert_eq!(encoder.encode_prompt("do")?, prompt);
        }
        Ok(())
    }

    #[test]
    fn rows_without_a_place_in_the_template_are_refused_by_id() -> TestResult {
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        let (tokenizer, endless) = (tokenizer(true)?, tokenizer(false)?);
        let turns = |roles: &[&str]| {
            let messages = roles.iter().map(|role| Message::new(*role, "a")).collect();
            Content::Chat { messages }
        };
        let whole = turns(&["user", "assistant"]);
        for (content, template, chat_template, tokenizer, word) in [
            (turns(&["user"]), Template::Auto, Some(&chat), &tokenizer, "last of the messages"),
            (
                turns(&["assistant"]),
                Template::Auto,
                Some(&chat),
                &tokenizer,
                "last of the messages",
            ),
            (turns(&[]), Template::Auto, Some(&chat), &tokenizer, "last of the messages"),
            (whole.clone(), Template::Auto, None, &tokenizer, "no chat template"),
            (instruction(""), Template::Chat, None, &tokenizer, "no chat template"),
            (whole, Template::Alpaca, Some(&chat), &tokenizer, "needs template chat"),
            (completion("a", "b"), Template::Auto, None, &endless, "no end token"),
        ] {
            let encoder = TextEncoder { tokenizer, chat_template, template };
            let refused = encoder.encode(&record(content));
            assert!(
                matches!(&refused, Err(Error::Refused { id, reason }) if id == "it" && reason.contains(word)),
                "{refused:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn an_unknown_template_is_refused() {
        assert!(matches!("alpaca".parse(), Ok(Template::Alpaca)));
        let refused = "llama".parse::<Template>().map_err(|error| error.to_string());
        let words = "unknown template \"llama\"; use one of auto, chat, alpaca, plain";
        assert_eq!(refused, Err(words.to_owned()));
    }
}
