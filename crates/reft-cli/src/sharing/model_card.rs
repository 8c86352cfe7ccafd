//! The parts that every model card has: what the hub reads at its top, and how the adapter is used.

use std::fmt::Write as _;

/// Name of the card's file.
pub const CARD: &str = "README.md";

/// What a card tells the hub.
#[derive(Debug, Clone, Copy)]
pub struct FrontMatter<'a> {
    /// The base model by its hub name, or by the name of its directory.
    pub base_model: &'a str,
    /// Whether PEFT reads the adapter.
    pub is_of_peft: bool,
    /// The licence, as the hub names it.
    pub license: Option<&'a str>,
    /// The methods, joined with `+`.
    pub method: &'a str,
}

impl FrontMatter<'_> {
    /// The lines at the top of the card. A directory is no name that the hub knows, and is left out.
    pub fn text(&self) -> String {
        let mut out = String::from("---\n");
        if self.base_model.contains('/') {
            let _ = writeln!(out, "base_model: {}", self.base_model);
        }
        let library = if self.is_of_peft { "peft" } else { "reft" };
        let _ = writeln!(out, "library_name: {library}");
        if let Some(license) = self.license {
            let _ = writeln!(out, "license: {license}");
        }
        out += "tags:\n";
        for tag in ["reft"].into_iter().chain(self.method.split('+')) {
            let _ = writeln!(out, "- {tag}");
        }
        out + "---\n"
    }

    /// How the adapter of this name is used.
    pub fn use_it(&self, name: &str) -> String {
        let base = self.base_model;
        let mut out =
            format!("\n## Use it\n\n```\nreft chat --model {base} --adapter {name}\n```\n\n");
        if self.is_of_peft {
            let _ = write!(
                out,
                "With PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"{base}\")\nmodel = PeftModel.from_pretrained(model, \"{name}\")\n```\n\n"
            );
        }
        out
    }
}
