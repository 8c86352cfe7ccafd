//! Chat templates: from messages to the prompt that a chat model was trained on.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, State};
use serde_json::{Map, Value as Json};

use crate::text::python::filters::add_filters;
use crate::text::python::methods::call_method;
use crate::text::python::operators::add_operators;
use crate::text::python::printed::printed;
use crate::text::python::source::{GENERATION, rewritten};
use crate::text::tokenizer_config::{TemplateField, TokenizerConfig};
use crate::{ChatVars, Error, Gguf, Message, Result, io_error};

/// A model's chat template: Jinja as transformers runs it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The templates' sources, to see which names they mention.
    sources: BTreeMap<String, Source>,
    variables: Map<String, Json>,
}

#[derive(Debug, Clone)]
struct Source {
    text: String,
    marks_replies: bool,
}

/// The template for conversations.
pub(crate) const DEFAULT: &str = "default";
/// The template for conversations with tools, if a model has two.
const TOOL_USE: &str = "tool_use";
/// Variables that every template gets.
const OWN: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// Marks around the text of `{% generation %}` blocks: Unicode noncharacters, which occur in no text.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];
/// The variable that says whether replies are marked.
const IS_MARKED: &str = "python_is_marked";

impl ChatTemplate {
    /// Opens the chat template of a model: a Hugging Face directory (`chat_template.jinja` and `additional_chat_templates`, or else those
    /// in `tokenizer_config.json`), or the metadata of a GGUF file. Of several, the one named `tool_use` serves conversations with tools,
    /// and the one named `default` the others.
    ///
    /// # Errors
    /// [`Error::NoChatTemplate`] if there is none, [`Error::ChatTemplate`] if it is not valid Jinja, [`Error::Io`] or
    /// [`Error::Json`] if a file cannot be read; those of [`Gguf::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let config = match path.is_file() {
            true => TokenizerConfig::of_gguf(&Gguf::open(path)?)?,
            false => TokenizerConfig::open(path)?,
        };
        let templates = sources_in(path, &config)?;
        if !templates.iter().any(|(name, _)| name == DEFAULT) {
            return Err(Error::NoChatTemplate(path.to_owned()));
        }
        Self::of(templates, config.named().collect())
    }

    /// Compiles a template; `special_tokens` are the variables, such as `bos_token`, that it may use.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if it is not valid Jinja.
    pub fn new(source: &str, special_tokens: Vec<(&'static str, String)>) -> Result<Self> {
        let named = special_tokens.into_iter().map(|(name, text)| (name.to_owned(), text));
        Self::of(vec![(DEFAULT.to_owned(), source.to_owned())], named.collect())
    }

    fn of(templates: Vec<(String, String)>, special_tokens: Vec<(String, String)>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_formatter(|out, _, value| {
            out.write_str(&printed(value)).map_err(minijinja::Error::from)
        });
        environment.set_unknown_method_callback(call_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter(GENERATION, marked);
        add_filters(&mut environment);
        add_operators(&mut environment);
        for (name, text) in special_tokens {
            environment.add_global(name, text);
        }
        let mut sources = BTreeMap::new();
        for (name, text) in templates {
            let (source, marks_replies) = rewritten(&text);
            environment.add_template_owned(name.clone(), source).map_err(template_error)?;
            sources.insert(name, Source { text, marks_replies });
        }
        Ok(Self { environment, sources, variables: Map::new() })
    }

    /// The template with values for its variables. They override special tokens of the same name.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] for a variable that every template gets.
    pub fn with_variables(mut self, variables: &ChatVars) -> Result<Self> {
        if let Some(own) = OWN.iter().find(|own| variables.0.contains_key(**own)) {
            let reason = format!(
                "{own} is no variable to be given: templates have it from the conversation; leave it out"
            );
            return Err(Error::ChatTemplate(reason));
        }
        for name in variables.0.keys() {
            if !self.sources.values().any(|source| source.text.contains(name.as_str())) {
                log::warn!("the chat template does not mention the variable {name}");
            }
        }
        self.variables.extend(variables.0.clone());
        Ok(self)
    }

    /// Writes the conversation as one prompt, ending with the opening of the assistant's turn if `add_generation_prompt`.
    ///
    /// The prompt spells out its special tokens: tokenise it without adding any.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the template refuses the messages, for instance their order of roles.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// As [`Self::render`], with the tools that the assistant may call, each as a JSON schema.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_with_tools(
        &self,
        messages: &[Message],
        tools: Option<&[Json]>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.run(messages, tools, add_generation_prompt, false)
    }

    /// The conversation as text, and the byte ranges that the template marks with `{% generation %}` as the assistant's words; `None` if it
    /// marks none.
    ///
    /// # Errors
    /// As [`Self::render`]; if a message has one of the marks' characters (U+FDD0, U+FDD1).
    pub fn render_marked(
        &self,
        messages: &[Message],
        tools: Option<&[Json]>,
    ) -> Result<(String, Option<Vec<Range<usize>>>)> {
        let plain = self.render_with_tools(messages, tools, false)?;
        if !self.source(tools).1.marks_replies {
            return Ok((plain, None));
        }
        let marked = self.run(messages, tools, false, true)?;
        let (mut text, mut marks, mut begin) = (String::new(), Vec::new(), 0);
        for c in marked.chars() {
            match MARKS.iter().position(|mark| *mark == c) {
                Some(0) => begin = text.len(),
                Some(_) => marks.push(begin..text.len()),
                None => text.push(c),
            }
        }
        if text != plain {
            let reason =
                "a message has the character U+FDD0 or U+FDD1, which is no letter; remove it";
            return Err(Error::ChatTemplate(reason.to_owned()));
        }
        Ok((text, Some(marks)))
    }

    /// Whether the template for conversations with tools mentions tools; otherwise it omits them.
    pub fn prints_tools(&self) -> bool {
        self.source(Some(&[])).1.text.contains("tools")
    }

    /// The template that serves a conversation.
    fn source(&self, tools: Option<&[Json]>) -> (&str, &Source) {
        let named = |name: &'static str| self.sources.get(name).map(|source| (name, source));
        let for_tools = tools.and_then(|_| named(TOOL_USE));
        for_tools.or_else(|| named(DEFAULT)).expect("invariant: every model has a default template")
    }

    fn run(
        &self,
        messages: &[Message],
        tools: Option<&[Json]>,
        add_generation_prompt: bool,
        is_marked: bool,
    ) -> Result<String> {
        let (name, source) = self.source(tools);
        for field in messages.iter().filter_map(|message| message.unmentioned(&source.text)) {
            log::warn!(
                "the chat template does not mention {field}, which messages have, and may not print it"
            );
        }
        if tools.is_some_and(|tools| !tools.is_empty()) && !self.prints_tools() {
            log::warn!("the chat template does not mention tools, and does not print them");
        }
        let text = self.run_on(name, messages, tools, add_generation_prompt, is_marked);
        let has_text =
            |message: &Message| message.fields().get("content").is_some_and(Json::is_string);
        match text {
            Ok(text) => {
                if messages.iter().any(Message::has_parts) && !source.text.contains("text") {
                    log::warn!(
                        "the chat template does not look into parts of content, and prints them as they are; give the content as one text"
                    );
                }
                Ok(text)
            }
            // a template may support only messages whose content is a text
            Err(_) if !messages.iter().all(has_text) => {
                let in_text: Vec<Message> = messages.iter().map(Message::in_one_text).collect();
                let again = self.run_on(name, &in_text, tools, add_generation_prompt, is_marked);
                let Ok(again) = again else { return text };
                log::warn!(
                    "the chat template takes only messages whose content is a text: parts are joined, and where there is none it is empty"
                );
                Ok(again)
            }
            refused => refused,
        }
    }

    fn run_on(
        &self,
        name: &str,
        messages: &[Message],
        tools: Option<&[Json]>,
        add_generation_prompt: bool,
        is_marked: bool,
    ) -> Result<String> {
        let messages: Vec<_> = messages.iter().map(Message::with_reasoning).collect();
        let mut context: BTreeMap<&str, Value> = self
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), Value::from_serialize(value)))
            .collect();
        context.entry("documents").or_insert_with(|| Value::from(()));
        context.insert("messages", Value::from_serialize(messages));
        context.insert("tools", Value::from_serialize(tools));
        context.insert("add_generation_prompt", add_generation_prompt.into());
        context.insert(IS_MARKED, is_marked.into());
        let template = self.environment.get_template(name).map_err(template_error)?;
        template.render(context).map_err(template_error)
    }
}

/// The sources of a model's templates by name.
pub(crate) fn sources_in(path: &Path, config: &TokenizerConfig) -> Result<Vec<(String, String)>> {
    let templates = files(path)?;
    if !templates.is_empty() {
        return Ok(templates);
    }
    Ok(match config.chat_template()? {
        Some(TemplateField::One(source)) => vec![(DEFAULT.to_owned(), source)],
        Some(TemplateField::Named(named)) => {
            named.into_iter().map(|one| (one.name, one.template)).collect()
        }
        None => Vec::new(),
    })
}

/// The templates in separate files, by name.
fn files(directory: &Path) -> Result<Vec<(String, String)>> {
    let read = |name: String, path: &Path| {
        fs::read_to_string(path).map(|source| (name, source)).map_err(io_error("read", path))
    };
    let mut templates = Vec::new();
    let default = directory.join("chat_template.jinja");
    if default.is_file() {
        templates.push(read(DEFAULT.to_owned(), &default)?);
    }
    let further = directory.join("additional_chat_templates");
    if further.is_dir() {
        for file in fs::read_dir(&further).map_err(io_error("read", &further))? {
            let path = file.map_err(io_error("read", &further))?.path();
            if path.extension().is_some_and(|extension| extension == "jinja") {
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                templates.push(read(name, &path)?);
            }
        }
    }
    Ok(templates)
}

/// The body of a `{% generation %}` block (the assistant's words), between marks if replies are marked.
fn marked(state: &State, body: String) -> String {
    let is_marked = state.lookup(IS_MARKED).is_some_and(|is_marked| is_marked.is_true());
    if is_marked { format!("{}{body}{}", MARKS[0], MARKS[1]) } else { body }
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

fn template_error(failed: minijinja::Error) -> Error {
    Error::ChatTemplate(failed.to_string())
}
