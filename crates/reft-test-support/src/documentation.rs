use std::path::Path;

use crate::Outcome;

/// Compares the text between the marks of a page of `docs/` with the expected text; writes it there if `REFT_WRITE_DOCS` is set.
///
/// # Errors
/// The page cannot be read or written, or lacks the marks.
///
/// # Panics
/// The texts differ.
pub fn check_page(page: &str, mark: &str, expected: &str) -> Outcome {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs")).join(page);
    let (begin, end) = (format!("<!-- {mark}: begin -->\n"), format!("<!-- {mark}: end -->"));
    let text = std::fs::read_to_string(&path)?;
    let missing = || format!("docs/{page} has no place for its tables");
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (found, after) = rest.split_once(&end).ok_or_else(missing)?;
    if std::env::var_os("REFT_WRITE_DOCS").is_some() {
        return Ok(std::fs::write(path, [before, &begin, expected, &end, after].concat())?);
    }
    let advice = "run REFT_WRITE_DOCS=1 cargo test --workspace --test documentation";
    assert!(found == expected, "the tables in docs/{page} are not those of the code; {advice}");
    Ok(())
}
