use reft_core::names;

/// The tokens changed by a method that could change all of them.
///
/// With an adapter that acts on the prompt alone, the base model computes every generated token, also in a batch with other adapters. ReFT's
/// edits act in the same way. PEFT has no such adapters and would apply them to every token. So their `adapter_config.json` has a `peft_type`
/// that PEFT refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActsOn {
    /// Every token.
    #[default]
    All,
    /// The prompt's tokens.
    Prompt,
}

names!(ActsOn, "tokens", reft_core::Error, { All => "all", Prompt => "prompt" });

/// The end of the `peft_type` of a method that acts on the prompt alone.
const ON_PROMPT: &str = "_ON_PROMPT";

impl ActsOn {
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// The `peft_type` for these tokens, from the `peft_type` of PEFT's method.
    pub(crate) fn peft_type(self, of_all: &str) -> String {
        match self {
            Self::All => of_all.to_owned(),
            Self::Prompt => format!("{of_all}{ON_PROMPT}"),
        }
    }

    /// Splits the `peft_type` of a configuration into PEFT's own and the tokens that the adapter acts on.
    pub(crate) fn of_peft_type(found: &str) -> (&str, Self) {
        match found.strip_suffix(ON_PROMPT) {
            Some(of_all) => (of_all, Self::Prompt),
            None => (found, Self::All),
        }
    }
}
