//! Prompts as tokens.

use reft_models::{ChatTemplate, ChatVars, Tokenizer, TrainedText};

use crate::api::error::ApiError;
use crate::api::request::{Prompt, Wanted};
use crate::worker::generation::Used;

/// The tokenizer and templates of a model.
#[derive(Debug)]
pub struct ServedText {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub chat_template: Option<ChatTemplate>,
    /// Variables of the chat template. They override the variables that an adapter was trained with.
    pub chat_vars: ChatVars,
}

impl ServedText {
    /// The tokens of a request's prompts.
    ///
    /// # Errors
    /// Errors of the chat template and the tokenizer.
    pub(crate) fn tokens(&self, wanted: &Wanted) -> Result<Vec<Vec<i64>>, ApiError> {
        wanted.prompts.iter().map(|prompt| self.of_one(prompt, &wanted.adapters)).collect()
    }

    fn of_one(&self, prompt: &Prompt, adapters: &[Used]) -> Result<Vec<i64>, ApiError> {
        let refused = |error: reft_models::Error| ApiError::invalid(error.to_string());
        let (ids, field) = match prompt {
            Prompt::Tokens(ids) => (ids.clone(), "prompt"),
            Prompt::Text { text, is_framed } => {
                (self.tokenizer.encode(text, *is_framed).map_err(refused)?, "prompt")
            }
            Prompt::Chat { messages, tools, variables, opens_reply } => {
                let template = self.chat_template.as_ref().ok_or_else(|| {
                    ApiError::invalid("the model has no chat template; use /v1/completions")
                })?;
                if tools.is_some() && !template.prints_tools() {
                    let message = "the model's chat template does not print tools; leave them out";
                    return Err(ApiError::invalid(message).of_field("tools"));
                }
                let variables =
                    trained_variables(adapters).overlaid(&self.chat_vars).overlaid(variables);
                let template = template.clone().with_variables(&variables).map_err(refused)?;
                let text = template.render_with_tools(messages, tools.as_deref(), *opens_reply);
                let text = text.map_err(|error| refused(error).of_field("messages"))?;
                (self.tokenizer.encode(&text, false).map_err(refused)?, "messages")
            }
        };
        if ids.is_empty() {
            return Err(ApiError::invalid("the prompt has no token").of_field(field));
        }
        Ok(ids)
    }
}

/// The variables of the chat template that adapters were trained with; empty if they disagree.
fn trained_variables(adapters: &[Used]) -> ChatVars {
    let mut texts = adapters.iter().filter_map(|used| used.generation.trained.as_ref());
    let first = texts.next();
    let is_same = |text: &TrainedText| Some(&text.chat_vars) == first.map(|first| &first.chat_vars);
    match first {
        Some(first) if texts.all(is_same) => first.chat_vars.clone(),
        _ => ChatVars::default(),
    }
}
