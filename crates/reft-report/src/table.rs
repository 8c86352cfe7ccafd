use std::fmt::Write;

use crate::escape::escape;

/// The head of a column of a `<table class="sortable">`: pressed, it sorts the table.
pub fn column_head(name: &str) -> String {
    format!("<th scope=\"col\"><button type=\"button\">{}</button></th>", escape(name))
}

/// Writes a row of a table: texts, each with the number that it is sorted by. A dot of `colour` stands before the first, and the second is bold if it `is_best`.
///
/// # Errors
/// If `out` cannot be written to; a string always can.
pub fn table_row(
    out: &mut String,
    cells: &[(String, Option<f64>)],
    colour: Option<usize>,
    is_best: bool,
) -> std::fmt::Result {
    write!(out, "<tr>")?;
    for (i, (text, value)) in cells.iter().enumerate() {
        let text = escape(text);
        if i == 0 {
            let dot = colour.map_or("--soft".to_owned(), |colour| format!("--c{colour}"));
            write!(
                out,
                "<td><span class=\"dot\" style=\"background:var({dot})\"></span>{text}</td>"
            )?;
            continue;
        }
        let class = if i == 1 && is_best { " class=\"best\"" } else { "" };
        let value = value.map_or(String::new(), |value| value.to_string());
        write!(out, "<td{class} data-value=\"{value}\">{text}</td>")?;
    }
    writeln!(out, "</tr>")
}
