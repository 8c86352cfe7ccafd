//! Fields of files that other programs write. No field is skipped silently: each is applied, known to change no number, or refused by its
//! name.

use std::fmt::Write;

use serde_json::Value;

/// The fields that a reader of files knows.
#[derive(Debug, Clone, Copy)]
pub struct Fields {
    /// The file, as documentation calls it.
    pub file: &'static str,
    /// The fields in groups, which several readers may share.
    pub groups: &'static [&'static [Field]],
}

/// Fields of a file that are treated in the same way.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Their names.
    pub names: &'static [&'static str],
    /// How they are treated.
    pub fate: Fate,
    /// A note for the documentation; may be empty. Of a refused field, the advice.
    pub note: &'static str,
}

/// How a field is treated.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It takes effect.
    Applied,
    /// It changes no number.
    Neutral,
    /// It changes no number with values that pass the test; other values are refused.
    Only(fn(&Value) -> bool),
    /// It is refused unless it is null, false, or empty.
    Refused,
}

impl Field {
    /// Fields whose values take effect.
    pub const fn applied(names: &'static [&'static str]) -> Self {
        Self { names, fate: Fate::Applied, note: "" }
    }

    /// Fields that change no number.
    pub const fn neutral(names: &'static [&'static str], note: &'static str) -> Self {
        Self { names, fate: Fate::Neutral, note }
    }

    /// A field that is accepted with the values that `note` names.
    pub const fn only(
        names: &'static [&'static str],
        is_accepted: fn(&Value) -> bool,
        note: &'static str,
    ) -> Self {
        Self { names, fate: Fate::Only(is_accepted), note }
    }

    /// Fields that are refused, with advice.
    pub const fn refused(names: &'static [&'static str], note: &'static str) -> Self {
        Self { names, fate: Fate::Refused, note }
    }

    /// The same with a note.
    pub const fn with_note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

impl Fields {
    /// The entry of a field.
    pub fn find(&self, name: &str) -> Option<&'static Field> {
        self.groups.iter().copied().flatten().find(|field| field.names.contains(&name))
    }

    /// Checks fields that were found.
    ///
    /// # Errors
    /// The value found, the values expected and the advice, if a field has a value that is not applied, or is unknown and not empty.
    pub fn check<'a>(
        &self,
        found: impl IntoIterator<Item = (&'a String, &'a Value)>,
    ) -> Result<(), String> {
        for (name, value) in found {
            let refusal = match self.find(name) {
                Some(Field { fate: Fate::Applied | Fate::Neutral, .. }) => None,
                Some(Field { fate: Fate::Only(is_accepted), .. }) if is_accepted(value) => None,
                Some(Field { fate: Fate::Only(_), note, .. }) => Some(format!("expected {note}")),
                Some(Field { fate: Fate::Refused, note, .. }) => {
                    Some(format!("which is not applied here; {note}"))
                }
                None => Some(
                    "a field that this program does not know; remove it if it changes nothing"
                        .to_owned(),
                ),
            };
            if let Some(refusal) = refusal.filter(|_| !says_nothing(value)) {
                return Err(format!("{name} is {value}, {refusal}"));
            }
        }
        Ok(())
    }

    /// The fields as a table in Markdown.
    pub fn table(&self) -> String {
        let mut table = "| fields | what becomes of them |\n| --- | --- |\n".to_owned();
        for Field { names, fate, note } in self.groups.iter().copied().flatten() {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let (fate, comma) = match fate {
                Fate::Applied => ("applied", ": "),
                Fate::Neutral => ("changes no number", ": "),
                Fate::Only(_) => ("accepted where it is ", ""),
                Fate::Refused => ("refused", ": "),
            };
            let note = if note.is_empty() { String::new() } else { format!("{comma}{note}") };
            let fate = format!("{fate}{note}").replace('|', "\\|");
            writeln!(table, "| {} | {fate} |", names.join(", "))
                .expect("invariant: a string takes what is written");
        }
        table + "| any other | refused by its name, unless it is null, false or empty |\n"
    }
}

/// Whether a field has no content: null, false or empty.
pub fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FIELDS: Fields = Fields {
        file: "file.json",
        groups: &[
            &[Field::applied(&["size"]), Field::neutral(&["author"], "history")],
            &[
                Field::only(&["kind"], |value| value == "plain", "\"plain\""),
                Field::refused(&["twist"], "straighten it first"),
            ],
        ],
    };

    fn check(value: &Value) -> Result<(), String> {
        FIELDS.check(value.as_object().into_iter().flatten())
    }

    #[test]
    fn no_field_that_says_something_is_skipped() {
        assert_eq!(check(&json!({"size": 3, "author": "someone", "kind": "plain"})), Ok(()));
        assert_eq!(check(&json!({"twist": false, "kind": null, "tomorrow": []})), Ok(()));
        for (found, said) in [
            (json!({"kind": "odd"}), "kind is \"odd\", expected \"plain\""),
            (json!({"twist": 1}), "twist is 1, which is not applied here; straighten it first"),
            (json!({"tomorrow": 0}), "tomorrow is 0, a field that this program does not know"),
        ] {
            assert!(check(&found).is_err_and(|refusal| refusal.starts_with(said)), "{found}");
        }
    }

    #[test]
    fn tables_name_every_field() {
        let table = FIELDS.table();
        for row in [
            "| `size` | applied |",
            "| `author` | changes no number: history |",
            "| `kind` | accepted where it is \"plain\" |",
            "| `twist` | refused: straighten it first |",
        ] {
            assert!(table.lines().any(|line| line == row), "{row} in {table}");
        }
    }
}
