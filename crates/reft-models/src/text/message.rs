use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation: its fields, in order, as a chat template sees them.
///
/// A null field counts as missing. `content` is a text, or a list of parts of type `text`, or missing: a reply may consist of tool
/// calls only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message(Map<String, Value>);

/// The names for a reply's reasoning; the first that is present counts.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Message {
    /// A message by `role` with a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let fields = [("role", role.into()), ("content", content.into())];
        let field = |(name, text): (&str, String)| (name.to_owned(), Value::String(text));
        Self(fields.into_iter().map(field).collect())
    }

    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text, the parts of a list joined; empty if there is none.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => {
                parts.iter().filter_map(|part| part["text"].as_str()).collect()
            }
            _ => String::new(),
        }
    }

    /// Its fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The first of its fields that a template does not mention in its source, and so cannot print.
    pub(crate) fn unmentioned(&self, source: &str) -> Option<&str> {
        let is_mentioned = |field: &str| match field {
            "role" | "content" | "weight" => true,
            field if REASONING.contains(&field) => {
                REASONING.iter().any(|name| source.contains(name))
            }
            field => source.contains(field),
        };
        self.0.keys().map(String::as_str).find(|field| !is_mentioned(field))
    }

    /// Whether the content is a list of parts.
    pub(crate) fn has_parts(&self) -> bool {
        self.0.get("content").is_some_and(Value::is_array)
    }

    /// The message with its content as one text, empty if there is no content.
    pub(crate) fn in_one_text(&self) -> Self {
        let mut fields = self.0.clone();
        fields.insert("content".to_owned(), self.text().into());
        Self(fields)
    }

    /// Its fields, with the reasoning under the names that templates use.
    pub(crate) fn with_reasoning(&self) -> Map<String, Value> {
        let Some(reasoning) = REASONING.iter().find_map(|name| self.0.get(*name)) else {
            return self.0.clone();
        };
        let mut fields = Map::new();
        fields.insert("thinking".to_owned(), reasoning.clone());
        fields.extend(self.0.clone());
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
        fields
    }
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        message.0
    }
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = String;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, String> {
        fields.retain(|_, value| !value.is_null());
        match fields.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => {
                return Err(format!("role is {other}, expected a text such as \"user\""));
            }
            None => return Err("a message has no role; give it one such as \"user\"".to_owned()),
        }
        match fields.get("content") {
            None | Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => parts.iter().try_for_each(check_part)?,
            Some(other) => {
                return Err(format!(
                    "content is {other}, expected a text, a list of parts, or null"
                ));
            }
        }
        match fields.get("tool_calls") {
            None | Some(Value::Array(_)) => Ok(Self(fields)),
            Some(other) => Err(format!("tool_calls is {other}, expected a list")),
        }
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match (part["type"].as_str(), &part["text"]) {
        (Some("text"), Value::String(_)) => Ok(()),
        (Some("text"), _) => Err("a part of type text has no text; give it one".to_owned()),
        (Some(other), _) => Err(format!(
            "a part of content is of type {other}, expected text; leave such parts out"
        )),
        (None, _) => Err("a part of content has no type, expected text".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_keep_their_order_and_null_is_none() -> serde_json::Result<()> {
        let given =
            json!({"tool_calls": null, "x": 1, "role": "user", "content": "hi", "name": null});
        let message: Message = serde_json::from_value(given)?;
        assert_eq!(serde_json::to_string(&message)?, r#"{"x":1,"role":"user","content":"hi"}"#);
        assert_eq!((message.role(), message.text().as_str()), ("user", "hi"));
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        assert_eq!(serde_json::from_value::<Message>(parts)?.text(), "ab");
        Ok(())
    }

    #[test]
    fn reasoning_stands_under_every_name_that_templates_ask_for() -> serde_json::Result<()> {
        let message: Message =
            serde_json::from_value(json!({"role": "assistant", "reasoning": "r", "content": "c"}))?;
        let fields = serde_json::to_string(&message.with_reasoning())?;
        let expected = r#"{"thinking":"r","role":"assistant","reasoning":"r","content":"c","reasoning_content":"r"}"#;
        assert_eq!(fields, expected);
        Ok(())
    }

    #[test]
    fn what_no_message_can_be_is_refused() {
        for (message, word) in [
            (json!({"content": "a"}), "no role"),
            (json!({"role": 1}), "role is 1"),
            (json!({"role": "user", "content": 3}), "content is 3"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "image_url"),
            (json!({"role": "user", "content": ["a"]}), "no type"),
            (json!({"role": "assistant", "tool_calls": "f()"}), "expected a list"),
        ] {
            let refused = serde_json::from_value::<Message>(message.clone());
            assert!(refused.is_err_and(|error| error.to_string().contains(word)), "{message}");
        }
    }
}
