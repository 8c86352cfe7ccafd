//! The fields of a request, read and checked.

use reft_models::{ChatVars, GenerationConfig, Message};
use serde_json::{Map, Value};

use crate::api::catalogue::Catalogue;
use crate::api::error::ApiError;
use crate::api::fields::{CHAT_FIELDS, COMPLETION_FIELDS, check};
use crate::worker::generation::{Generation, Used};

/// Which of the two ways to ask for a reply was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completion,
}

impl Endpoint {
    /// The endpoint of a body: a chat has messages.
    ///
    /// # Errors
    /// If it is no object.
    pub(crate) fn of(body: &[u8]) -> Result<Self, ApiError> {
        let is_chat = object(body)?.contains_key("messages");
        Ok(if is_chat { Self::Chat } else { Self::Completion })
    }
}

/// A valid request.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) endpoint: Endpoint,
    /// The name that it was asked under.
    pub(crate) model: String,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) adapters: Vec<Used>,
    pub(crate) config: GenerationConfig,
    /// Whether the request gives no length, so that the context's end may shorten the reply.
    pub(crate) is_length_free: bool,
    pub(crate) stop: Vec<String>,
    /// Replies to each prompt.
    pub(crate) n: usize,
    pub(crate) is_stream: bool,
    pub(crate) has_usage: bool,
}

/// A prompt as it was given.
#[derive(Debug)]
pub(crate) enum Prompt {
    Chat {
        messages: Vec<Message>,
        tools: Option<Vec<Value>>,
        variables: ChatVars,
        /// Whether the assistant's turn is opened.
        opens_reply: bool,
    },
    Text {
        text: String,
        /// Whether the tokenizer adds its special tokens.
        is_framed: bool,
    },
    Tokens(Vec<i64>),
}

/// The server's defaults for fields that a request leaves out.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    pub(crate) reply_tokens: usize,
    pub(crate) stop_ids: Vec<i64>,
}

/// OpenAI's default of `/v1/completions`.
const COMPLETION_TOKENS: usize = 16;
const MOST_CHOICES: usize = 128;
const MOST_STOPS: usize = 16;
const MOST_LOGPROBS: usize = 20;

impl Wanted {
    /// Reads a request.
    ///
    /// # Errors
    /// The first field that is invalid or not supported, by its name.
    pub(crate) fn read(
        endpoint: Endpoint,
        body: &[u8],
        catalogue: &Catalogue,
        defaults: &Defaults,
    ) -> Result<Self, ApiError> {
        let body = object(body)?;
        let fields = match endpoint {
            Endpoint::Chat => &CHAT_FIELDS,
            Endpoint::Completion => &COMPLETION_FIELDS,
        };
        check(fields, &body)?;
        let body = Body(body);
        let model = body.text("model")?.ok_or_else(|| {
            ApiError::invalid("model is missing; give the base model's name or an adapter's")
                .of_field("model")
        })?;
        let adapters = body.adapters(&model, catalogue)?;
        let logprobs = match endpoint {
            Endpoint::Chat => {
                let top = body.count("top_logprobs")?;
                match body.flag("logprobs")? {
                    true => Some(top.unwrap_or(0)),
                    false if top.is_some_and(|top| top > 0) => {
                        return Err(body.wrong("top_logprobs", "logprobs: true beside it"));
                    }
                    false => None,
                }
            }
            Endpoint::Completion => body.count("logprobs")?,
        };
        if logprobs.is_some_and(|top| top > MOST_LOGPROBS) {
            let field = if endpoint == Endpoint::Chat { "top_logprobs" } else { "logprobs" };
            return Err(body.wrong(field, "a number from 0 to 20"));
        }
        let most = match endpoint {
            Endpoint::Chat => defaults.reply_tokens,
            Endpoint::Completion => COMPLETION_TOKENS,
        };
        let asked = body.count("max_completion_tokens")?.or(body.count("max_tokens")?);
        let config = GenerationConfig {
            max_new_tokens: asked.unwrap_or(most),
            temperature: body.number("temperature")?.unwrap_or(1.0),
            top_p: body.number("top_p")?.unwrap_or(1.0),
            top_k: body.top_k()?,
            repetition_penalty: body.number("repetition_penalty")?.unwrap_or(1.0),
            frequency_penalty: body.number("frequency_penalty")?.unwrap_or(0.0),
            presence_penalty: body.number("presence_penalty")?.unwrap_or(0.0),
            no_repeat_ngram_size: body.count("no_repeat_ngram_size")?.filter(|n| *n > 0),
            seed: body.seed()?.unwrap_or_else(rand::random),
            stop_ids: match body.flag("ignore_eos")? {
                true => Vec::new(),
                false => defaults.stop_ids.clone(),
            },
            logprobs,
            // not a field of requests: the server chooses `deterministic`
            ..GenerationConfig::default()
        };
        config.check().map_err(|refused| ApiError::refused(&refused))?;
        let n = body.count("n")?.unwrap_or(1);
        if !(1..=MOST_CHOICES).contains(&n) {
            return Err(body.wrong("n", "a number from 1 to 128"));
        }
        let prompts = match endpoint {
            Endpoint::Chat => vec![body.chat()?],
            Endpoint::Completion => body.prompts()?,
        };
        Ok(Self {
            endpoint,
            prompts,
            adapters,
            config,
            is_length_free: asked.is_none(),
            n,
            stop: body.stop()?,
            is_stream: body.flag("stream")?,
            has_usage: body.includes_usage()?,
            model,
        })
    }

    /// Replies that are to be generated.
    pub(crate) fn choices(&self) -> usize {
        self.n * self.prompts.len()
    }
}

/// A body that is an object.
///
/// # Errors
/// If the body is not an object.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(_) => Err(ApiError::invalid("the body is JSON, and no object; send {\"model\": …}")),
        Err(error) => Err(ApiError::invalid(format!("the body is no JSON: {error}"))),
    }
}

/// The fields of a request. A null field counts as missing.
pub(crate) struct Body(pub(crate) Map<String, Value>);

impl Body {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// The error of a field that is not as expected.
    fn wrong(&self, name: &str, expected: &str) -> ApiError {
        let mut found = self.get(name).map_or("null".to_owned(), Value::to_string);
        if found.chars().count() > 80 {
            found = found.chars().take(80).chain("…".chars()).collect();
        }
        ApiError::invalid(format!("{name} is {found}, expected {expected}")).of_field(name)
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.get(name)
            .map(|value| text(value).ok_or_else(|| self.wrong(name, "a text")))
            .transpose()
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        let Some(value) = self.get(name) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(name, "true or false"))
    }

    /// A flag that defaults to true.
    fn unless_false(&self, name: &str) -> Result<bool, ApiError> {
        self.get(name).map_or(Ok(true), |_| self.flag(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ApiError> {
        let number = |value: &Value| value.as_f64().ok_or_else(|| self.wrong(name, "a number"));
        self.get(name).map(number).transpose()
    }

    fn count(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| self.wrong(name, "a whole number"))
    }

    /// 0 and −1 mean all tokens, as in other servers.
    fn top_k(&self) -> Result<Option<usize>, ApiError> {
        match self.get("top_k").and_then(Value::as_i64) {
            Some(-1 | 0) => Ok(None),
            _ => self.count("top_k"),
        }
    }

    fn seed(&self) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get("seed") else { return Ok(None) };
        let seed = value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned));
        seed.map(Some).ok_or_else(|| self.wrong("seed", "a whole number"))
    }

    fn stop(&self) -> Result<Vec<String>, ApiError> {
        let expected = "a text or up to 16 texts, none of them empty";
        let wrong = || self.wrong("stop", expected);
        let stops: Vec<String> = match self.get("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => {
                let texts = stops.iter().map(|stop| stop.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(wrong)?
            }
            Some(_) => return Err(wrong()),
        };
        if stops.len() > MOST_STOPS || stops.iter().any(String::is_empty) {
            return Err(wrong());
        }
        Ok(stops)
    }

    fn includes_usage(&self) -> Result<bool, ApiError> {
        let Some(value) = self.get("stream_options") else { return Ok(false) };
        let wrong =
            || self.wrong("stream_options", "{\"include_usage\": true}, beside stream: true");
        let options =
            value.as_object().filter(|_| self.0.get("stream") == Some(&Value::Bool(true)));
        let options = options.ok_or_else(wrong)?;
        let is_known =
            |name: &String| ["include_usage", "include_obfuscation"].contains(&name.as_str());
        match options.get("include_usage") {
            _ if !options.keys().all(is_known) => Err(wrong()),
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(wrong),
        }
    }

    /// The conversation of a chat.
    fn chat(&self) -> Result<Prompt, ApiError> {
        let wrong = |reason: String| ApiError::invalid(reason).of_field("messages");
        let messages = match self.get("messages") {
            Some(Value::Array(messages)) if !messages.is_empty() => messages,
            _ => return Err(self.wrong("messages", "a list of messages, at least one")),
        };
        let message = |(i, message): (usize, &Value)| {
            serde_json::from_value::<Message>(message.clone())
                .map_err(|error| wrong(format!("messages[{i}]: {error}")))
        };
        let messages = messages.iter().enumerate().map(message).collect::<Result<_, _>>()?;
        let tools = match self.get("tools") {
            _ if self.get("tool_choice").is_some_and(|choice| choice == "none") => None,
            None => None,
            Some(Value::Array(tools)) if tools.is_empty() => None,
            Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Some(tools.clone()),
            Some(_) => return Err(self.wrong("tools", "a list of tools")),
        };
        let variables = match self.get("chat_template_kwargs") {
            None => ChatVars::default(),
            Some(Value::Object(variables)) => ChatVars(variables.clone()),
            Some(_) => return Err(self.wrong("chat_template_kwargs", "an object")),
        };
        let opens_reply = self.unless_false("add_generation_prompt")?;
        Ok(Prompt::Chat { messages, tools, variables, opens_reply })
    }

    /// The prompts of a completion.
    fn prompts(&self) -> Result<Vec<Prompt>, ApiError> {
        let wrong = || {
            let expected = "a text, a list of texts, a list of token ids, or a list of such lists";
            self.wrong("prompt", expected)
        };
        let tokens = |list: &[Value]| -> Option<Prompt> {
            list.iter().map(Value::as_i64).collect::<Option<_>>().map(Prompt::Tokens)
        };
        let is_framed = self.unless_false("add_special_tokens")?;
        let text = |text: &String| Prompt::Text { text: text.clone(), is_framed };
        match self.get("prompt") {
            Some(Value::String(prompt)) => Ok(vec![text(prompt)]),
            Some(Value::Array(list)) => match list.first() {
                Some(Value::Number(_)) => Ok(vec![tokens(list).ok_or_else(wrong)?]),
                Some(Value::String(_) | Value::Array(_)) if list.len() <= MOST_CHOICES => {
                    let prompt = |value: &Value| match value {
                        Value::String(prompt) => Some(text(prompt)),
                        Value::Array(list) => tokens(list),
                        _ => None,
                    };
                    list.iter().map(prompt).collect::<Option<_>>().ok_or_else(wrong)
                }
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        }
    }

    /// The adapters that `model` or `reft` names, then the directions of `reft`.
    fn adapters(&self, model: &str, catalogue: &Catalogue) -> Result<Vec<Used>, ApiError> {
        let form = "{\"adapters\": [{\"name\": \"…\", \"strength\": 1, \"subspace\": [0, 1]}], \"steer\": [{\"direction\": \"…\", \"strength\": 1}]}";
        let wrong = || self.wrong("reft", form);
        let mut used = Vec::new();
        if model != catalogue.base() {
            let generation = catalogue.find(model)?;
            used.push(Used { generation, strength: 1.0, subspace: None });
        }
        let Some(reft) = self.get("reft") else { return Ok(used) };
        let reft = with_keys(reft, &["adapters", "steer"]).ok_or_else(wrong)?;
        let list = |name: &str| match reft.get(name) {
            None | Some(Value::Null) => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(_) => Err(wrong()),
        };
        let (adapters, directions) = (list("adapters")?, list("steer")?);
        if !used.is_empty() && !adapters.is_empty() {
            let message = format!(
                "model names the adapter {model}, and reft names adapters too; use the base model's name {:?}",
                catalogue.base()
            );
            return Err(ApiError::invalid(message).of_field("reft.adapters"));
        }
        let one = |entry: &Map<String, Value>, named: &str| -> Result<Used, ApiError> {
            let given = |name: &str| entry.get(name).filter(|value| !value.is_null());
            let name = given(named).and_then(Value::as_str).ok_or_else(wrong)?;
            let strength = given("strength").map_or(Some(1.0), Value::as_f64).ok_or_else(wrong)?;
            let coordinates = |value: &Value| {
                let list = value.as_array().filter(|list| !list.is_empty())?;
                list.iter().map(Value::as_i64).collect::<Option<Vec<_>>>()
            };
            let subspace =
                given("subspace").map(|value| coordinates(value).ok_or_else(wrong)).transpose()?;
            Ok(Used { generation: catalogue.find(name)?, strength, subspace })
        };
        for entry in adapters {
            let entry = with_keys(entry, &["name", "strength", "subspace"]).ok_or_else(wrong)?;
            used.push(one(entry, "name").map_err(|error| error.of_field("reft.adapters"))?);
        }
        for entry in directions {
            let entry = with_keys(entry, &["direction", "strength"]).ok_or_else(wrong)?;
            let direction =
                one(entry, "direction").map_err(|error| error.of_field("reft.steer"))?;
            let Generation { name, only_steers, .. } = &*direction.generation;
            if !only_steers {
                let message = format!(
                    "{name:?} is an adapter that does more than add directions; name it as the model or in reft.adapters"
                );
                return Err(ApiError::invalid(message).of_field("reft.steer"));
            }
            used.push(direction);
        }
        Ok(used)
    }
}

/// An object that has no other keys than these.
fn with_keys<'v>(value: &'v Value, keys: &[&str]) -> Option<&'v Map<String, Value>> {
    value.as_object().filter(|object| object.keys().all(|key| keys.contains(&key.as_str())))
}
