use reft_core::declare_options;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Values of a chat template's variables, such as `enable_thinking`, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChatVars(pub Map<String, Value>);

declare_options! {
    /// The options of everything that renders a chat template.
    pub struct ChatOptions {
        /// Variable of the chat template, such as enable_thinking=false; a value in JSON is read as JSON. Give it several times for several
        /// variables
        #[serde(skip_serializing_if = "ChatVars::is_empty")]
        chat_vars: ChatVars = ChatVars::default(), Table("NAME=VALUE") in "Data";
    }
}

impl ChatVars {
    /// Whether there are no variables.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// These variables, overridden by those of `above`.
    pub fn overlaid(&self, above: &Self) -> Self {
        let mut variables = self.0.clone();
        variables.extend(above.0.clone());
        Self(variables)
    }
}
