use std::borrow::Cow;
use std::ops::Range;

use reft_core::declare_options;
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

/// Which of the assistant's turns in a conversation are learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Turns {
    /// The last one, which the conversation ends with.
    #[default]
    Last,
    /// Each, as an example of its own: the turns before it are its prompt, as in generation.
    All,
}

reft_core::names!(Turns, "choice of turns", reft_models::Error, { Last => "last", All => "all" });

declare_options! {
    /// The options of training and measuring on conversations.
    pub struct TurnOptions {
        /// Turns of a conversation to learn: last, or all turns of the assistant, each after the turns before it
        turns: Turns = Turns::Last, Text("TURNS") in "Data";
    }
}

/// Turns rows into tokens, in training as in inference.
///
/// A prompt has the same tokens whatever follows it. Plain prompts and completions are tokenised apart and joined. A conversation is
/// tokenised as a whole if its tokens begin with the prompt's, otherwise in two parts.
#[derive(Debug, Clone, Copy)]
pub struct TextEncoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The model's chat template, if it has one.
    pub chat_template: Option<&'a ChatTemplate>,
    /// Which template frames a row.
    pub template: Template,
    /// Which turns of a conversation are learned.
    pub turns: Turns,
}

/// A prompt and its completion, in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Turn {
    /// The prompt.
    pub prompt: Vec<i64>,
    /// The text of the turn, with its end.
    pub completion: Vec<i64>,
    /// For each token of the completion, whether it is learned.
    pub is_learned: Vec<bool>,
}

/// A row as a text: the prompt, and the completion.
enum Texts<'a> {
    Plain { prompt: String, completion: &'a str },
    Conversation(Conversation<'a>),
}

/// A conversation and the template for it.
struct Conversation<'a> {
    template: &'a ChatTemplate,
    messages: Cow<'a, [Message]>,
    tools: Option<&'a [serde_json::Value]>,
}

/// The error for a labelled text where a prompt and a completion are expected.
const LABELLED: &str =
    "the row is a labelled text, which an objective with a head learns; give prompt and completion";

impl Content {
    /// The content itself; of a preference, the preferred row's.
    pub fn first(&self) -> &Self {
        match self {
            Self::Preference { chosen, .. } => chosen,
            other => other,
        }
    }

    /// Its content as a conversation; `None` if it is tokens.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let (user, reply) = match self {
            Self::Completion { prompt, completion } => (prompt.clone(), completion),
            Self::Instruction { instruction, input, output, .. } => {
                (joined(instruction, input), output)
            }
            Self::Chat { messages, .. } => return Some(messages.clone()),
            Self::Preference { chosen, .. } => return chosen.messages(),
            Self::Tokens { .. } | Self::Labelled { .. } => return None,
        };
        Some(vec![Message::new("user", user), Message::new("assistant", reply.as_str())])
    }
}

impl TextEncoder<'_> {
    /// Tokens of a row's prompt, and of its completion with its end token. The completion of a conversation is its last turn.
    ///
    /// # Errors
    /// [`crate::Error::Refused`] if the template has no place for such a row, or the tokenizer no end token; [`crate::Error::Example`] if
    /// the chat template or the tokenizer refuses.
    pub fn encode(&self, record: &Record) -> Result<(Vec<i64>, Vec<i64>)> {
        if let Content::Tokens { input_ids, prompt_length, .. } = &record.content {
            let (prompt, completion) = split(record, input_ids, *prompt_length)?;
            return Ok((prompt.to_vec(), completion.to_vec()));
        }
        let turns = Self { turns: Turns::Last, ..*self }.turns(record)?;
        let Turn { prompt, completion, .. } = turns.into_iter().next_back().unwrap_or_default();
        Ok((prompt, completion))
    }

    /// Tokens of a row's prompt. The completion may be anything.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn prompt(&self, record: &Record) -> Result<Vec<i64>> {
        if let Content::Tokens { input_ids, prompt_length, .. } = &record.content {
            return Ok(split(record, input_ids, *prompt_length)?.0.to_vec());
        }
        match self.texts(record)? {
            Texts::Plain { prompt, .. } => self.tokens(record, &prompt, true),
            Texts::Conversation(conversation) => {
                let at = conversation.last_turn(record)?;
                let prompt = conversation.prompt(record, at, true)?;
                self.tokens(record, &prompt, false)
            }
        }
    }

    /// The learned turns of a row, in tokens: one, or several with [`Turns::All`].
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn turns(&self, record: &Record) -> Result<Vec<Turn>> {
        match self.texts(record)? {
            Texts::Plain { prompt, completion } => {
                let prompt = self.tokens(record, &prompt, true)?;
                let mut completion = self.tokens(record, completion, false)?;
                completion.push(self.end(record)?);
                let is_learned = vec![true; completion.len()];
                Ok(vec![Turn { prompt, completion, is_learned }])
            }
            Texts::Conversation(conversation) => {
                let last = conversation.last_turn(record)?;
                let is_skipped = |message: &Message| {
                    message
                        .fields()
                        .get("weight")
                        .is_some_and(|weight| weight.as_f64() == Some(0.0))
                };
                let turns: Vec<usize> = match self.turns {
                    Turns::Last => vec![last],
                    Turns::All => (1..=last)
                        .filter(|at| conversation.messages[*at].role() == ASSISTANT)
                        .collect(),
                };
                let learned = turns.iter().filter(|at| !is_skipped(&conversation.messages[**at]));
                let learned: Vec<Turn> = learned
                    .map(|at| self.turn(record, &conversation, *at))
                    .collect::<Result<_>>()?;
                if learned.is_empty() {
                    return Err(record.refused(
                        "the weight of each turn to be learned is 0; raise one, or drop the row",
                    ));
                }
                Ok(learned)
            }
        }
    }

    /// The template that frames rows. `auto` becomes the template of their forms if all have the same. `None` if no row is framed.
    pub fn in_force<'r>(&self, rows: impl IntoIterator<Item = &'r Record>) -> Option<Template> {
        let of_row = |record: &Record| match record.content.first() {
            Content::Tokens { .. } | Content::Preference { .. } | Content::Labelled { .. } => None,
            _ if self.template != Template::Auto => Some(self.template),
            Content::Completion { .. } => Some(Template::Plain),
            Content::Instruction { .. } if self.chat_template.is_none() => Some(Template::Alpaca),
            Content::Instruction { .. } | Content::Chat { .. } => Some(Template::Chat),
        };
        let same = |one, other| if one == other { one } else { Template::Auto };
        rows.into_iter().filter_map(of_row).reduce(same)
    }

    /// Tokens of a user's question, framed as the prompt of a training row: [`Content::Instruction`] by the template in force.
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
        self.prompt(&Record::new("prompt", content))
    }

    fn tokens(&self, record: &Record, text: &str, add_special_tokens: bool) -> Result<Vec<i64>> {
        let tokens = self.tokenizer.encode(text, add_special_tokens);
        tokens.map_err(|error| record.failed(error))
    }

    /// The end token of texts that no template ends.
    fn end(&self, record: &Record) -> Result<i64> {
        self.tokenizer.eos_id().ok_or_else(|| {
            record.refused(
                "the tokenizer has no end token; name one as eos_token in tokenizer_config.json",
            )
        })
    }

    fn texts<'a>(&'a self, record: &'a Record) -> Result<Texts<'a>> {
        let (instruction, input, completion) = match &record.content {
            Content::Chat { messages, tools } => {
                let messages = Cow::Borrowed(messages.as_slice());
                return self.conversation(record, messages, tools.as_deref());
            }
            Content::Completion { prompt, completion } => (prompt, "", completion),
            Content::Instruction { instruction, input, output, .. } => {
                (instruction, input.as_str(), output)
            }
            Content::Tokens { .. } => return Err(record.refused("tokens have no template")),
            Content::Labelled { .. } => return Err(record.refused(LABELLED)),
            Content::Preference { .. } => {
                return Err(record.refused(
                    "the row has two replies, which an objective of preferences learns; give one",
                ));
            }
        };
        let is_verbatim = matches!(record.content, Content::Completion { .. });
        let prompt = match self.template {
            Template::Auto if is_verbatim => instruction.clone(),
            Template::Auto if self.chat_template.is_none() => alpaca(instruction, input),
            Template::Alpaca => alpaca(instruction, input),
            Template::Plain => joined(instruction, input),
            Template::Auto | Template::Chat => {
                let messages = record.content.messages().unwrap_or_default();
                return self.conversation(record, messages.into(), None);
            }
        };
        Ok(Texts::Plain { prompt, completion })
    }

    fn conversation<'a>(
        &'a self,
        record: &Record,
        messages: Cow<'a, [Message]>,
        tools: Option<&'a [serde_json::Value]>,
    ) -> Result<Texts<'a>> {
        if !matches!(self.template, Template::Auto | Template::Chat) {
            return Err(record.refused(
                "a conversation needs template chat; alpaca and plain have no place for it",
            ));
        }
        let template = self.chat_template.ok_or_else(|| {
            record.refused(
                "the tokenizer has no chat template; use template alpaca or plain, and rows without messages",
            )
        })?;
        Ok(Texts::Conversation(Conversation { template, messages, tools }))
    }

    /// A turn of a conversation in tokens: its prompt, and the text that the template prints after that prompt.
    fn turn(&self, record: &Record, conversation: &Conversation, at: usize) -> Result<Turn> {
        let (mut text, start, marks) = conversation.turn(record, at)?;
        // Text after the turn's end token is never generated. A turn without an end token gets the tokenizer's.
        let end = text.trim_end().len().max(start);
        let is_ended = self.tokenizer.ends_with_special(&text[start..end]);
        let said = conversation.messages[at].text();
        let said = if text[start..].starts_with(&said) { said.len() } else { 0 };
        text.truncate(if is_ended { end } else { end.max(start + said) });
        let prompt = self.tokens(record, &text[..start], false)?;
        let places = |text: &str| {
            self.tokenizer.encode_with_places(text).map_err(|error| record.failed(error))
        };
        let mut tokens = places(&text)?;
        let begins = tokens.iter().map(|(id, _)| id).take(prompt.len()).eq(&prompt);
        let offset = if begins {
            tokens.drain(..prompt.len());
            0
        } else {
            tokens = places(&text[start..])?;
            start
        };
        let marks = marks.map(|mut marks| {
            marks.retain(|mark| mark.end > start);
            marks
        });
        let is_marked = |place: &Range<usize>| match &marks {
            Some(marks) if !marks.is_empty() => marks
                .iter()
                .any(|mark| mark.start < place.end + offset && place.start + offset < mark.end),
            _ => true,
        };
        let mut is_learned: Vec<bool> = tokens.iter().map(|(_, place)| is_marked(place)).collect();
        let mut completion: Vec<i64> = tokens.into_iter().map(|(id, _)| id).collect();
        if !is_ended {
            completion.push(self.end(record)?);
            is_learned.push(true);
        }
        Ok(Turn { prompt, completion, is_learned })
    }
}

const ASSISTANT: &str = "assistant";

impl Conversation<'_> {
    /// The index of the last message, an assistant's.
    fn last_turn(&self, record: &Record) -> Result<usize> {
        let last = self.messages.len().saturating_sub(1);
        let is_reply = self.messages.last().is_some_and(|last| last.role() == ASSISTANT);
        if is_reply && last > 0 {
            return Ok(last);
        }
        Err(record
            .refused("the last of the messages must be the assistant's, after at least one other"))
    }

    /// The text before a turn; `with_opening` adds the opening of the turn.
    fn prompt(&self, record: &Record, at: usize, with_opening: bool) -> Result<String> {
        let prompt =
            self.template.render_with_tools(&self.messages[..at], self.tools, with_opening);
        prompt.map_err(|error| record.failed(error))
    }

    /// The conversation up to the end of a turn, the byte where the turn begins, and the bytes that the template marks as the assistant's.
    fn turn(&self, record: &Record, at: usize) -> Result<(String, usize, Option<Marks>)> {
        let whole = self.template.render_marked(&self.messages[..=at], self.tools);
        let (whole, marks) = whole.map_err(|error| record.failed(error))?;
        let prompt = self.prompt(record, at, true)?;
        if whole.starts_with(&prompt) {
            return Ok((whole, prompt.len(), marks));
        }
        let common = prompt.char_indices().zip(whole.chars());
        let common = common.take_while(|((_, a), b)| a == b).last();
        let start = common.map_or(0, |((at, c), _)| at + c.len_utf8());
        if start >= self.prompt(record, at, false)?.len() {
            let opening = &prompt[start..];
            log::warn!(
                "the chat template opens a reply with {opening:?}, which it does not print for replies in the data: prompts are trained without it; a variable of the template (chat_vars) may change that"
            );
            return Ok((whole, start, marks));
        }
        // the template prints earlier turns differently once the reply follows: keep the prompt as in generation
        let said = self.messages[at].text();
        let ends: Vec<usize> = prompt.char_indices().rev().map(|(at, _)| at).take(TAIL).collect();
        let behind = |end: &usize| {
            let tail = &prompt[*end..];
            let reply = whole.rfind(tail)? + tail.len();
            Some(reply).filter(|reply| whole[*reply..].contains(said.trim()))
        };
        let reply = ends.get(LEAST..).and_then(|ends| ends.iter().rev().find_map(behind));
        let Some(reply) = reply else {
            return Err(record.refused(format!(
                "the chat template prints the turns before message {} otherwise once it follows; leave out earlier turns, or use another template",
                at + 1
            )));
        };
        log::warn!(
            "the chat template prints the turns before a reply otherwise once the reply is there (a system message, say): prompts are trained as they are in generation"
        );
        let moved = |at: usize| at - reply + prompt.len();
        let marks = marks.map(|marks| {
            let marks = marks.into_iter().filter(|mark| mark.end > reply);
            marks.map(|mark| moved(mark.start.max(reply))..moved(mark.end)).collect()
        });
        let start = prompt.len();
        Ok((prompt + &whole[reply..], start, marks))
    }
}

/// The reply is found after the longest matching end of the prompt, of at most `TAIL` and more than `LEAST` characters.
const TAIL: usize = 64;
const LEAST: usize = 4;

/// Ranges of bytes.
type Marks = Vec<Range<usize>>;

/// Splits a row of tokens into prompt and completion.
fn split<'a>(
    record: &Record,
    input_ids: &'a [i64],
    prompt_length: usize,
) -> Result<(&'a [i64], &'a [i64])> {
    input_ids
        .split_at_checked(prompt_length)
        .ok_or_else(|| record.refused("prompt_length is past the end of input_ids"))
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

    fn encoder<'a>(
        tokenizer: &'a Tokenizer,
        chat_template: Option<&'a ChatTemplate>,
        template: Template,
    ) -> TextEncoder<'a> {
        TextEncoder { tokenizer, chat_template, template, turns: Turns::Last }
    }

    fn record(content: Content) -> Record {
        Record::new("it", content)
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
        let encoder = encoder(&tokenizer, chat_template, template);
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
        let encoder = encoder(&tokenizer, None, Template::Auto);
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
        let conversation = Content::Chat { messages, tools: None };
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
    fn the_template_in_force_is_that_of_all_rows() -> TestResult {
        let tokenizer = tokenizer(true)?;
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        let tokens = Content::Tokens { input_ids: vec![3], prompt_length: 1, labels: None };
        let in_force = |template, chat_template, contents: &[&Content]| {
            let rows: Vec<Record> = contents.iter().map(|&c| record(c.clone())).collect();
            encoder(&tokenizer, chat_template, template).in_force(&rows)
        };
        let (asked, plain) = (instruction(""), completion("a", "b"));
        assert_eq!(in_force(Template::Auto, Some(&chat), &[&asked, &tokens]), Some(Template::Chat));
        assert_eq!(in_force(Template::Auto, None, &[&asked]), Some(Template::Alpaca));
        assert_eq!(in_force(Template::Auto, Some(&chat), &[&plain]), Some(Template::Plain));
        assert_eq!(in_force(Template::Auto, Some(&chat), &[&plain, &asked]), Some(Template::Auto));
        assert_eq!(in_force(Template::Chat, Some(&chat), &[&plain]), Some(Template::Chat));
        assert_eq!(in_force(Template::Auto, Some(&chat), &[&tokens]), None);
        Ok(())
    }

    #[test]
    fn a_prompt_is_framed_as_in_training() -> TestResult {
        let tokenizer = tokenizer(true)?;
        let chat = ChatTemplate::new(CHAT, Vec::new())?;
        for template in [Template::Auto, Template::Alpaca, Template::Plain] {
            let encoder = encoder(&tokenizer, Some(&chat), template);
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
            Content::Chat { messages, tools: None }
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
            let encoder = encoder(tokenizer, chat_template, template);
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
