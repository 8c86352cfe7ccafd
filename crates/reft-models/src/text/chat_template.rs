//! Chat templates: from messages to the prompt that a chat model was trained on.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::text::tokenizer_config::{SpecialToken, TemplateField, TokenizerConfig, read_optional};
use crate::{Error, Gguf, Result, io_error};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What `role` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template: Jinja as transformers runs it.
#[derive(Debug)]
pub struct ChatTemplate(Environment<'static>);

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Opens the chat template of a model: a Hugging Face directory (`chat_template.jinja`, or else the template in
    /// `tokenizer_config.json`; of several, the one named `default`), or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] if there is none, [`Error::ChatTemplate`] if it is not valid Jinja, [`Error::Io`] or
    /// [`Error::Json`] if a file cannot be read; those of [`Gguf::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let mut config = match path.is_file() {
            true => TokenizerConfig::of_gguf(&Gguf::open(path)?)?,
            false => read_optional(&path.join("tokenizer_config.json"))?,
        };
        let file = path.join("chat_template.jinja");
        if file.is_file() {
            let source = fs::read_to_string(&file).map_err(io_error("read", &file))?;
            config.chat_template = Some(TemplateField::One(source));
        }
        let source = match config.chat_template {
            Some(TemplateField::One(source)) => Some(source),
            Some(TemplateField::Named(templates)) => {
                templates.into_iter().find(|one| one.name == "default").map(|one| one.template)
            }
            None => None,
        };
        let source = source.ok_or_else(|| Error::NoChatTemplate(path.to_owned()))?;
        let tokens = [
            ("bos_token", config.bos_token),
            ("eos_token", config.eos_token),
            ("unk_token", config.unk_token),
            ("pad_token", config.pad_token),
        ];
        let text =
            |(name, token): (_, Option<SpecialToken>)| Some((name, token?.text().to_owned()));
        Self::new(&source, tokens.into_iter().filter_map(text).collect())
    }

    /// Compiles a template; `special_tokens` are the variables, such as `bos_token`, that it may use.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it is not valid Jinja.
    pub fn new(source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        for (name, text) in special_tokens {
            environment.add_global(name, text);
        }
        let source = without_generation_tags(source);
        environment.add_template_owned(NAME, source).map_err(template_error)?;
        Ok(Self(environment))
    }

    /// Writes the conversation as one prompt, ending with the opening of the assistant's turn if `add_generation_prompt`.
    ///
    /// The prompt spells out its special tokens: tokenise it without adding any.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the template refuses the messages, for instance their order of roles.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let context = context! { messages, add_generation_prompt, tools => (), documents => () };
        let template = self.0.get_template(NAME).map_err(template_error)?;
        template.render(context).map_err(template_error)
    }
}

/// transformers' `{% generation %}` marks the assistant's words and prints nothing itself: an `if` that is always true.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_matches(['{', '%', '-', '+', '}']).trim();
        text.push_str(&match word {
            "generation" => tag.replace(word, "if true"),
            "endgeneration" => tag.replace(word, "endif"),
            _ => tag.to_owned(),
        });
        rest = after;
    }
    text.push_str(rest);
    text
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time now, in C's notation.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let failed = |failed| format!("strftime_now({format:?}): {failed}");
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error: jiff::Error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, failed(error))
    })
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`. minijinja's own escapes for HTML, which a prompt must not.
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    let refused = |failed: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, failed.to_string())
    };
    written.map_err(refused)?;
    Ok(Value::from_safe_string(String::from_utf8(bytes).expect("invariant: JSON is UTF-8")))
}

/// JSON on one line with a space after each comma and colon, as Python writes it.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

fn template_error(failed: minijinja::Error) -> Error {
    Error::ChatTemplate(failed.to_string())
}
