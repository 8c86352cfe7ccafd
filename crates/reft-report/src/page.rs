use std::fmt::Write;

use crate::escape::{escape, inline};

/// Colours that the page's style has.
pub const COLOURS: usize = 10;

/// The page's style: light and dark, and narrow screens.
pub(crate) const STYLE: &str = include_str!("page.css");

/// Sorts a table by a column when its head is clicked, and shows only the section that a slider selects. Without it all sections are shown.
const SCRIPT: &str = include_str!("page.js");

/// A self-contained page: `body` writes its contents, facts stand before and after them, and `legend` explains the terms at the end.
///
/// A fact is a line of Markdown, of which only code in backticks is read. Facts that begin with `**` are warnings and stand first;
/// the first two of the others open the page, and all others are listed below it.
pub fn page(
    title: &str,
    facts: Vec<String>,
    legend: &str,
    body: impl FnOnce(&mut String) -> std::fmt::Result,
) -> String {
    let title = escape(title);
    let write = |out: &mut String| {
        writeln!(
            out,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>"
        )?;
        writeln!(out, "<h1>{title}</h1>")?;
        let (warnings, facts): (Vec<String>, Vec<String>) =
            facts.into_iter().partition(|line| line.starts_with("**"));
        for warning in warnings {
            let text = escape(&warning).replacen("**", "<b>", 1).replacen("**", "</b>", 1);
            writeln!(out, "<p class=\"warn\">{text}</p>")?;
        }
        if let Some(fact) = facts.get(1) {
            writeln!(out, "<p class=\"soft\">{}. {}.</p>", inline(&facts[0]), inline(fact))?;
        }
        body(out)?;
        writeln!(out, "<h2>How it was done</h2>\n<ul>")?;
        for fact in facts {
            writeln!(out, "<li>{}</li>", inline(&fact))?;
        }
        writeln!(out, "</ul>")?;
        writeln!(out, "<p class=\"soft\">{}</p>", escape(legend))?;
        writeln!(out, "</main>\n<script>{SCRIPT}</script>\n</body>\n</html>")
    };
    let mut page = String::new();
    write(&mut page).expect("invariant: writing to a string cannot fail");
    page
}
