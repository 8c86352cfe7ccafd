use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use reft_models::{Claim, DirectoryLock, is_partial};
pub use reft_report::{counted, grouped};
use serde::Serialize;

/// Prints a line, and flushes stdout.
///
/// # Errors
/// If stdout is closed or full.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    piece(&format!("{}\n", text.as_ref()))
}

/// Prints a piece of text, such as a part of a reply, and flushes stdout. On a terminal, control characters are escaped.
///
/// # Errors
/// If stdout is closed or full.
pub fn piece(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let text = if stdout.is_terminal() { visible(text) } else { text.into() };
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.context("cannot write to stdout")
}

/// Prints a result for a script: one JSON document.
///
/// # Errors
/// If stdout is closed or full.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).context("cannot write the result as JSON")?)
}

/// Prints a result, for a script or for people.
///
/// # Errors
/// If stdout is closed or full.
pub fn result(
    in_json: bool,
    value: &impl Serialize,
    for_people: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if in_json { json(value) } else { for_people() }
}

/// Whether an output directory holds a `what` already: its `file` starts with `beginning`. Traces of killed programs are ignored.
///
/// # Errors
/// If it holds something else, or cannot be read.
pub fn holds(directory: &Path, what: &str, (file, beginning): (&str, &str)) -> Result<bool> {
    let name = directory.display();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        entries => entries.with_context(|| format!("cannot write into {name}"))?,
    };
    if fs::read_to_string(directory.join(file)).is_ok_and(|text| text.starts_with(beginning)) {
        return Ok(true);
    }
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {name}"))?.path();
        let other = path.file_name().unwrap_or_default();
        // a file that is being written, and the claim of a process that began the same work a moment ago
        let is_trace = is_partial(&path) || Claim::is_of_one_of_several(&path);
        if !is_trace && other != DirectoryLock::FILE_NAME {
            let other = other.display();
            bail!(
                "{name} is not empty and no {what} with {file} (it holds {other}); name another directory"
            );
        }
    }
    Ok(false)
}

/// Prints a note on stderr, unless another process of the run prints the same.
pub fn note(text: impl AsRef<str>) {
    if !is_silent() {
        say(text);
    }
}

/// Prints a line on stderr, in every process of a run. Control characters are escaped, because names, messages of other libraries and texts
/// of files may contain them. A closed stderr is ignored.
pub fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", visible(text.as_ref()));
}

static SILENT: AtomicBool = AtomicBool::new(false);

/// Turns notes off, because another process of the run prints the same.
pub fn say_nothing() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Whether another process prints for this one.
pub fn is_silent() -> bool {
    SILENT.load(Ordering::Relaxed)
}

/// A text with its control characters, except newlines and tabs, escaped as in JSON: `\u001b`.
pub fn visible(text: &str) -> Cow<'_, str> {
    let controls = |c: char| c.is_control() && !"\n\t".contains(c);
    if !text.contains(controls) {
        return text.into();
    }
    let shown = |c: char| if controls(c) { format!("\\u{:04x}", u32::from(c)) } else { c.into() };
    text.chars().map(shown).collect()
}

/// A bar of `n` steps on stderr; `template` lays out the text beside it.
pub fn bar(n: usize, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(n as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Rows of a table: names and values.
pub type Rows = Vec<(String, String)>;

/// Prints a table of names and values, with the values aligned.
///
/// # Errors
/// If stdout is closed or full.
pub fn table(rows: &[(impl AsRef<str>, String)]) -> Result<()> {
    let width = rows.iter().map(|(name, _)| name.as_ref().len()).max().unwrap_or(0);
    for (name, value) in rows {
        let value = value.replace('\n', &format!("\n{:width$}  ", ""));
        line(format!("{:width$}  {value}", name.as_ref()))?;
    }
    Ok(())
}

/// A share in percent, with two significant digits: `0.0053 %`.
pub fn percent(part: i64, whole: i64) -> String {
    reft_report::percent(100.0 * part as f64 / whole as f64)
}

/// A part of a model's parameters: `65,552 of 1,235,814,400 (0.0053 %)`.
pub fn share(part: i64, whole: i64) -> String {
    format!("{} of {} ({})", grouped(part), grouped(whole), percent(part, whole))
}

/// Formats a number of bytes with its unit: `18.4 kB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut size = n as f64;
    let mut unit = 0;
    while size >= 999.5 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// The command line as it was given, for the report.
pub fn command() -> String {
    let quoted = |word: String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./+=:,".contains(c);
        if word.chars().all(is_plain) { word } else { format!("'{word}'") }
    };
    let words = std::env::args().skip(1).map(quoted);
    std::iter::once("reft".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Prints a report, and says where its page is.
pub fn show(in_json: bool, report: &impl Serialize, markdown: &str, page: &Path) -> Result<()> {
    result(in_json, report, || {
        piece(markdown)?;
        note(format!("report: {}", page.display()));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_control_a_terminal_is_made_visible() {
        assert_eq!(visible("two lines\n\tand é 漢\n"), "two lines\n\tand é 漢\n");
        assert_eq!(
            visible("\u{1b}]0;title\u{7}\r\u{8}\u{7f}\u{9b}2J"),
            "\\u001b]0;title\\u0007\\u000d\\u0008\\u007f\\u009b2J"
        );
    }

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        let numbers = [0, 12, 999, 1_000, 65_552, 1_235_814_400, -1_000];
        let texts = ["0", "12", "999", "1,000", "65,552", "1,235,814,400", "-1,000"];
        assert_eq!(numbers.map(grouped), texts);
    }

    #[test]
    fn shares_keep_two_digits_that_mean_something() {
        assert_eq!(percent(65_552, 1_235_814_400), "0.0053 %");
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(1, 1), "100 %");
        assert_eq!(percent(0, 10), "0 %");
    }

    #[test]
    fn sizes_change_their_unit_when_rounding_reaches_it() {
        let sizes = [999, 1_000, 18_432, 999_999, 97_999_999].map(bytes);
        assert_eq!(sizes, ["999 B", "1.0 kB", "18.4 kB", "1.0 MB", "98.0 MB"]);
    }
}
