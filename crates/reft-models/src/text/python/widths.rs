//! Bounds on widths and counts in templates: an arbitrarily wide text could exhaust the memory or crash the program.

use minijinja::{Error, FormatStyle};

use crate::text::python::arguments::refused;

/// Largest width, precision or count: more than any prompt needs.
const WIDEST: i64 = 65_535;

/// A width or a count that is not below 0.
///
/// # Errors
/// If it is past [`WIDEST`].
pub(crate) fn bounded(n: i64) -> Result<usize, Error> {
    if n > WIDEST {
        return Err(refused(format!("a width or count of {n}, expected at most {WIDEST}")));
    }
    Ok(n.max(0) as usize)
}

/// Checks the widths and precisions of a format such as `%-8s` or `{:>8.2f}`.
///
/// # Errors
/// If one is past [`WIDEST`].
pub(crate) fn check_format(style: FormatStyle, format: &str) -> Result<(), Error> {
    let starts = if matches!(style, FormatStyle::Printf) { '%' } else { '{' };
    for specification in format.split(starts).skip(1) {
        let specification = match style {
            FormatStyle::Printf => {
                let behind_name = match specification.strip_prefix('(') {
                    Some(named) => named.split_once(')').map_or("", |(_, rest)| rest),
                    None => specification,
                };
                let is_of_it = |c: char| c.is_ascii_digit() || "#-+ .".contains(c);
                behind_name.split(|c| !is_of_it(c)).next().unwrap_or_default()
            }
            _ => specification.split('}').next().unwrap_or_default(),
        };
        for digits in specification.split(|c: char| !c.is_ascii_digit()) {
            if !digits.is_empty() {
                bounded(digits.parse().unwrap_or(i64::MAX))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_formats_are_bounded_and_other_digits_are_not() {
        let is_fine = |style, format| check_format(style, format).is_ok();
        for format in ["%5s|%-5s|%05d %.2f %%", "100000 %s 99999999999", "%(n999999)s", "%"] {
            assert!(is_fine(FormatStyle::Printf, format), "{format}");
        }
        for format in ["%55555555555s", "%(n)70000s", "%.99999f", "%s %-0 99999999999999999999d"] {
            assert!(!is_fine(FormatStyle::Printf, format), "{format}");
        }
        for format in ["{:>8.2f} {0} {a}", "70000 {}", "{:65535}"] {
            assert!(is_fine(FormatStyle::StrFormat, format), "{format}");
        }
        for format in ["{:>70000}", "{a:.99999f}", "{:99999999999999999999}"] {
            assert!(!is_fine(FormatStyle::StrFormat, format), "{format}");
        }
    }
}
