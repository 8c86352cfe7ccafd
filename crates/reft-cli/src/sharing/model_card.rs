//! The parts that every model card has: the front matter for the hub, and how the adapter is used.

use std::fmt::Write as _;

/// Name of the card's file.
pub const CARD: &str = "README.md";

/// The facts of a card.
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
    /// The front matter of the card. A base model without a hub name, such as a directory, is left out.
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

/// Splits a card into the fields of its front matter, and the rest from the closing `---` on.
fn parts(card: &str) -> Option<(&str, &str)> {
    let rest = card.strip_prefix("---\n")?;
    let end = rest.find("\n---")?;
    Some((&rest[..end + 1], &rest[end + 1..]))
}

/// The licence that a card names.
pub fn license_of(card: &str) -> Option<&str> {
    let (front, _) = parts(card)?;
    let own = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    Some(own.trim().trim_matches(['"', '\''])).filter(|own| !own.is_empty())
}

/// Adds a licence to a card that names none.
pub fn with_license(card: &str, license: &str) -> String {
    match parts(card) {
        Some((front, rest)) => {
            let others = front.lines().filter(|line| !line.starts_with("license:"));
            let others: String = others.map(|line| format!("{line}\n")).collect();
            format!("---\n{others}license: {license}\n{rest}")
        }
        None => format!("---\nlicense: {license}\n---\n\n{card}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_found_and_added_in_the_front_matter_alone() {
        assert_eq!(license_of("---\ntags:\n- a\nlicense: \"mit\"\n---\n# x\n"), Some("mit"));
        for without in
            ["# x\nlicense: mit\n", "---\ntags:\n- a\n---\nlicense: mit\n", "---\nlicense:\n---\n"]
        {
            assert_eq!(license_of(without), None, "{without}");
            let with = with_license(without, "apache-2.0");
            assert_eq!(license_of(&with), Some("apache-2.0"), "{with}");
            assert_eq!(with.matches("\n---\n").count(), 1, "{with}");
        }
        let front = FrontMatter {
            base_model: "org/base",
            is_of_peft: true,
            license: Some("mit"),
            method: "lora",
        };
        assert_eq!(license_of(&front.text()), Some("mit"));
    }
}
