use std::collections::BTreeMap;

/// A text with `{column}` where a row's text goes; `{{` and `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextTemplate {
    /// Each column, and the text before it.
    columns: Vec<(String, String)>,
    /// The text behind the last of them.
    end: String,
}

impl TextTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// The fault, in words.
    pub fn parse(source: &str) -> Result<Self, String> {
        let (mut columns, mut text, mut rest) = (Vec::new(), String::new(), source);
        while let Some(at) = rest.find(['{', '}']) {
            text += &rest[..at];
            let (brace, after) = rest[at..].split_at(1);
            rest = if let Some(after) = after.strip_prefix(brace) {
                text += brace;
                after
            } else if brace == "}" {
                return Err("a } has no {; write }} for a brace".to_owned());
            } else {
                let no_end = || format!("{{{after} has no }}; write {{{{ for a brace");
                let (name, after) = after.split_once('}').ok_or_else(no_end)?;
                if name.is_empty() {
                    return Err("{} names no column; write {{}} for braces".to_owned());
                }
                columns.push((name.to_owned(), std::mem::take(&mut text)));
                after
            };
        }
        Ok(Self { columns, end: text + rest })
    }

    /// The columns that it names.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// The text of a row.
    ///
    /// # Errors
    /// The missing column, and the row's columns.
    pub fn render(&self, fields: &BTreeMap<String, String>) -> Result<String, String> {
        Ok(self.render_with_ends(fields)?.text)
    }

    /// The text of a row, and where in it each column's own text ends.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_with_ends(
        &self,
        fields: &BTreeMap<String, String>,
    ) -> Result<Rendered<'_>, String> {
        let (mut text, mut ends) = (String::new(), Vec::new());
        for (name, before) in &self.columns {
            text += before;
            text += column(fields, name)?;
            ends.push((name.as_str(), text.len()));
        }
        Ok(Rendered { text: text + &self.end, ends })
    }
}

/// A row's text, and the byte of it at which each column's text ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered<'a> {
    /// The text.
    pub text: String,
    /// Each column, and the byte after its text.
    pub ends: Vec<(&'a str, usize)>,
}

/// A column of a row.
///
/// # Errors
/// The missing column, and the row's columns.
pub fn column<'a>(fields: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, String> {
    fields.get(name).map(String::as_str).ok_or_else(|| {
        let columns: Vec<&str> = fields.keys().map(String::as_str).collect();
        format!("the row has no column {name:?}; it has {}", columns.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_take_the_place_of_their_names() -> Result<(), String> {
        let template = TextTemplate::parse("{{{a}}} of {b b}.")?;
        let fields = [("a", "1"), ("b b", "{c}")].map(|(name, text)| (name.into(), text.into()));
        assert_eq!(template.render(&fields.into())?, "{1} of {c}.");
        assert_eq!(template.columns().collect::<Vec<_>>(), ["a", "b b"]);
        let refused = template.render(&[("a".to_owned(), "1".to_owned())].into());
        assert_eq!(refused, Err("the row has no column \"b b\"; it has a".to_owned()));
        Ok(())
    }

    #[test]
    fn braces_that_do_not_match_are_refused() {
        for wrong in ["{a", "a}", "{}", "{{a}"] {
            assert!(TextTemplate::parse(wrong).is_err(), "{wrong}");
        }
    }
}
