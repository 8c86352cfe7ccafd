use std::fmt::Write;

use crate::escape;

/// Writes a table of texts, line ends and all: a column for each head.
///
/// # Errors
/// If `out` cannot be written to; a string always can.
pub fn texts(out: &mut String, heads: &[&str], rows: &[Vec<String>]) -> std::fmt::Result {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let heads = cells("th", &mut heads.iter().copied());
    writeln!(
        out,
        "<div class=\"scroll\"><table class=\"texts\"><thead><tr>{heads}</tr></thead><tbody>"
    )?;
    for row in rows {
        writeln!(out, "<tr>{}</tr>", cells("td", &mut row.iter().map(String::as_str)))?;
    }
    writeln!(out, "</tbody></table></div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_keep_their_lines_and_cannot_become_markup() -> std::fmt::Result {
        let mut out = String::new();
        texts(&mut out, &["prompt", "reply"], &[vec!["a\n b".into(), "<b>".into()]])?;
        assert!(out.contains("<th>prompt</th><th>reply</th>"), "{out}");
        assert!(out.contains("<td>a\n b</td><td>&lt;b&gt;</td>"), "{out}");
        Ok(())
    }
}
