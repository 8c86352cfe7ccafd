use anyhow::Result;
use reft_models::{ChatOptions, TrainedText};
use reft_train::{Content, Record, Template};

use crate::terminal::note;

/// How the rows of a command are framed.
#[derive(Debug, Clone, PartialEq)]
pub struct Framing {
    /// The template.
    pub template: Template,
    /// The chat template's variables.
    pub chat: ChatOptions,
}

impl Framing {
    /// The template asked for, else the adapters' template, else the template for the rows' form. Prints a warning if the template differs from
    /// the adapters', and a note if it is the adapters'.
    ///
    /// # Errors
    /// If the adapters name a template that is unknown.
    pub fn of(
        trained: Option<&TrainedText>,
        asked: Option<Template>,
        chat: &ChatOptions,
        rows: &[Record],
    ) -> Result<Self> {
        let Some(trained) = trained else {
            return Ok(Self { template: asked.unwrap_or_default(), chat: chat.clone() });
        };
        let own: Template = trained.template.parse()?;
        let chat_vars = trained.chat_vars.overlaid(&chat.chat_vars);
        let template = asked.unwrap_or(own);
        if !rows.is_empty() && rows.iter().any(|row| !matches!(row.content, Content::Tokens { .. }))
        {
            if template == own && own != Template::Auto {
                note(format!("template {own}, as the adapter was trained; --template changes it"));
            } else if ![template, own].contains(&Template::Auto) {
                note(format!(
                    "warning: the adapter was trained with template {own}, and this is template {template}"
                ));
            }
        }
        if chat_vars != trained.chat_vars && !trained.chat_vars.is_empty() {
            note("warning: the adapter was trained with other variables of the chat template");
        }
        Ok(Self { template, chat: ChatOptions { chat_vars } })
    }
}

/// The framing that all adapters of a stack were trained with. If they differ, it prints a warning and returns `None`.
pub fn trained_together(texts: Vec<TrainedText>) -> Option<TrainedText> {
    let (first, others) = texts.split_first()?;
    let Some(other) = others.iter().find(|other| *other != first) else {
        return Some(first.clone());
    };
    note(format!(
        "warning: the adapters were trained with templates {} and {}, or with other variables of it; rows are framed by their form, --template says how",
        first.template, other.template
    ));
    None
}
