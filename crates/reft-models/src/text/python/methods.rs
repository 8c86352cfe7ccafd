use minijinja::value::{Value, ValueKind};
use minijinja::{Error, FormatStyle, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::text::python::arguments::{Arguments, refused};
use crate::text::python::operators::as_printed;
use crate::text::python::tuple::Tuple;
use crate::text::python::widths::{bounded, check_format};

/// Python's methods of texts, lists and maps. Methods that a template must not call, such as changes of a list, are unknown.
pub(crate) fn call_method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let done = match value.kind() {
        ValueKind::String => of_text(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(value, method, args)?,
        ValueKind::Map => of_map(value, method, args)?,
        _ => None,
    };
    let printed = || args.iter().map(as_printed).collect::<Vec<_>>();
    match (done, method) {
        (Some(done), _) => Ok(done),
        (None, "format") => {
            check_format(FormatStyle::StrFormat, value.as_str().unwrap_or_default())?;
            unknown_method_callback(state, value, method, &printed())
        }
        (None, _) => unknown_method_callback(state, value, method, args),
    }
}

fn of_map(map: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let names = || Arguments::of(args, []).map(|_| ());
    let keys = || map.try_iter();
    Ok(Some(match method {
        "keys" => names().and_then(|()| keys()).map(Value::from_iter)?,
        "values" => {
            names()?;
            keys()?.map(|key| map.get_item(&key)).collect::<Result<Vec<_>, _>>()?.into()
        }
        "items" => {
            names()?;
            let pair = |key: Value| Ok::<_, Error>(Tuple::of([key.clone(), map.get_item(&key)?]));
            keys()?.map(pair).collect::<Result<Vec<_>, _>>()?.into()
        }
        "copy" => {
            names()?;
            map.clone()
        }
        _ => return Ok(None),
    }))
}

fn of_list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let wanted = || {
        let args = Arguments::of(args, ["value"])?;
        Ok::<_, Error>(args.value(0).cloned().unwrap_or_else(|| Value::from(())))
    };
    Ok(Some(match method {
        "copy" => list.clone(),
        "count" => {
            let wanted = wanted()?;
            list.try_iter()?.filter(|item| *item == wanted).count().into()
        }
        "index" => {
            let wanted = wanted()?;
            let place = list.try_iter()?.position(|item| item == wanted);
            place.ok_or_else(|| refused(format!("{wanted:?} is not in the list")))?.into()
        }
        _ => return Ok(None),
    }))
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let none = || Arguments::of(args, []).map(|_| ());
    let one = |name| Arguments::of(args, [name]);
    let all = |is: fn(char) -> bool| none().map(|()| !text.is_empty() && text.chars().all(is));
    Ok(Some(match method {
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "partition" => parts(text, one("sep")?.needed_text(0)?, false)?,
        "rpartition" => parts(text, one("sep")?.needed_text(0)?, true)?,
        "removeprefix" => {
            let args = one("prefix")?;
            text.strip_prefix(args.needed_text(0)?).unwrap_or(text).into()
        }
        "removesuffix" => {
            let args = one("suffix")?;
            text.strip_suffix(args.needed_text(0)?).unwrap_or(text).into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let args = Arguments::of(args, ["sub", "start", "end"])?;
            let wanted = args.needed_text(0)?;
            let (part, before) = within(text, &args, 1)?;
            let from_end = method.starts_with('r');
            let place = if from_end { part.rfind(wanted) } else { part.find(wanted) };
            match place.map(|place| part[..place].chars().count() + before) {
                Some(place) => place.into(),
                None if method.ends_with("find") => Value::from(-1),
                None => return Err(refused(format!("{wanted:?} is not in the text"))),
            }
        }
        "count" => {
            let args = Arguments::of(args, ["sub", "start", "end"])?;
            within(text, &args, 1)?.0.matches(args.needed_text(0)?).count().into()
        }
        "startswith" | "endswith" => {
            let args = Arguments::of(args, ["prefix", "start", "end"])?;
            let part = within(text, &args, 1)?.0;
            let is = |wanted: &Value| match (wanted.as_str(), method) {
                (Some(wanted), "startswith") => Ok(part.starts_with(wanted)),
                (Some(wanted), _) => Ok(part.ends_with(wanted)),
                (None, _) => Err(refused(format!("{method}: expected a text or several"))),
            };
            match args.value(0).filter(|wanted| wanted.as_str().is_none()) {
                Some(several) => {
                    let each: Vec<bool> =
                        several.try_iter()?.map(|one| is(&one)).collect::<Result<_, _>>()?;
                    each.contains(&true).into()
                }
                None => is(args.value(0).unwrap_or(&Value::UNDEFINED))?.into(),
            }
        }
        "splitlines" => {
            let keeps_ends = one("keepends")?.is_true(0);
            let line = |(line, end): (&str, usize)| match keeps_ends {
                true => Value::from(line),
                false => Value::from(&line[..end]),
            };
            lines(text).into_iter().map(line).collect()
        }
        "join" => {
            let args = one("iterable")?;
            let items = args.value(0).map(Value::try_iter).transpose()?;
            let items: Vec<Value> = items.into_iter().flatten().collect();
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            texts.ok_or_else(|| refused("join: expected texts alone"))?.join(text).into()
        }
        "title" => none().map(|()| title(text).into())?,
        "swapcase" => {
            none()?;
            let swap = |c: char| -> Vec<char> {
                if c.is_uppercase() {
                    c.to_lowercase().collect()
                } else {
                    c.to_uppercase().collect()
                }
            };
            text.chars().flat_map(swap).collect::<String>().into()
        }
        "casefold" => none().map(|()| text.to_lowercase().replace('ß', "ss").into())?,
        "ljust" | "rjust" | "center" => {
            let args = Arguments::of(args, ["width", "fillchar"])?;
            let fill = args.text(1)?.unwrap_or(" ");
            let missing = missing(text, args.integer(0)?)?;
            let left = match method {
                "ljust" => 0,
                "rjust" => missing,
                // Python puts the odd one to the left of an odd width
                _ => missing / 2 + (missing & (missing + text.chars().count()) & 1),
            };
            format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)).into()
        }
        "zfill" => {
            let zeros = "0".repeat(missing(text, one("width")?.integer(0)?)?);
            let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
            format!("{}{zeros}{digits}", &text[..text.len() - digits.len()]).into()
        }
        "isspace" => all(char::is_whitespace)?.into(),
        "isalpha" => all(char::is_alphabetic)?.into(),
        "isalnum" => all(char::is_alphanumeric)?.into(),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric)?.into(),
        "islower" => none()
            .map(|()| {
                text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
            })?
            .into(),
        "isupper" => none()
            .map(|()| {
                text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
            })?
            .into(),
        _ => return Ok(None),
    }))
}

/// Number of characters that a text lacks to reach a width.
fn missing(text: &str, width: Option<i64>) -> Result<usize, Error> {
    Ok(bounded(width.unwrap_or(0))?.saturating_sub(text.chars().count()))
}

/// The part of a text between the character indices in two arguments, and the number of characters before it.
fn within<'a, const N: usize>(
    text: &'a str,
    args: &Arguments<N>,
    start: usize,
) -> Result<(&'a str, usize), Error> {
    let length = text.chars().count() as i64;
    let place = |given: Option<i64>, or: i64| match given {
        Some(place) if place < 0 => place.saturating_add(length).max(0),
        Some(place) => place.min(length),
        None => or,
    };
    let (start, end) = (place(args.integer(start)?, 0), place(args.integer(start + 1)?, length));
    let byte =
        |place: i64| text.char_indices().nth(place as usize).map_or(text.len(), |(byte, _)| byte);
    let start = start.min(end);
    Ok((&text[byte(start)..byte(end)], start as usize))
}

fn parts(text: &str, separator: &str, from_end: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(refused("partition: the separator is empty"));
    }
    let parts = if from_end { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match (parts, from_end) {
        (Some((before, after)), _) => [before, separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Tuple::of(parts.map(Value::from)))
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(args, ["sep", "maxsplit"])?;
    let most = args.integer(1)?.and_then(|most| usize::try_from(most).ok());
    let most = most.map_or(usize::MAX, |most| most.saturating_add(1));
    let parts: Vec<&str> = match (args.text(0)?, from_end) {
        (Some(""), _) => return Err(refused("split: the separator is empty")),
        (Some(separator), false) => text.splitn(most, separator).collect(),
        (Some(separator), true) => text.rsplitn(most, separator).collect(),
        (None, _) => words(text, most, from_end),
    };
    let in_order = |parts: Vec<&str>| parts.into_iter().map(Value::from).collect();
    Ok(if from_end { in_order(parts.into_iter().rev().collect()) } else { in_order(parts) })
}

/// Splits a text at whitespace from one end, at most `most` times; the last part is the rest, with the whitespace at its far end.
fn words(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), text);
    loop {
        rest = if from_end { rest.trim_end() } else { rest.trim_start() };
        let blank = match from_end {
            true => rest.rfind(char::is_whitespace),
            false => rest.find(char::is_whitespace),
        };
        match blank.filter(|_| words.len() + 1 < most) {
            Some(blank) if from_end => {
                words.push(rest[blank..].trim_start());
                rest = &rest[..blank];
            }
            Some(blank) => {
                words.push(&rest[..blank]);
                rest = &rest[blank..];
            }
            None => {
                words.extend(Some(rest).filter(|rest| !rest.is_empty()));
                return words;
            }
        }
    }
}

/// The lines of a text with their ends, and where each line's end begins.
pub(crate) fn lines(text: &str) -> Vec<(&str, usize)> {
    const ENDS: [char; 10] = [
        '\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}',
        '\u{2029}',
    ];
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let end = rest.find(ENDS).unwrap_or(rest.len());
        let next = match rest[end..].strip_prefix("\r\n") {
            Some(_) => end + 2,
            None => end + rest[end..].chars().next().map_or(0, char::len_utf8),
        };
        let (line, after) = rest.split_at(next);
        lines.push((line, end));
        rest = after;
    }
    lines
}

fn title(text: &str) -> String {
    let mut title = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            title.extend(c.to_lowercase());
        } else {
            title.extend(c.to_uppercase());
        }
        is_inside = c.is_lowercase() || c.is_uppercase();
    }
    title
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_kept_in_what_is_not_split() {
        // CPython 3.12: " a  b c ".split(None, 1), .rsplit(None, 1), .split()
        assert_eq!(words(" a  b c ", 2, false), ["a", "b c "]);
        assert_eq!(words(" a  b c ", 2, true), ["c", " a  b"]);
        assert_eq!(words(" a  b c ", usize::MAX, false), ["a", "b", "c"]);
        assert_eq!(words(" a ", 1, false), ["a "]);
        assert_eq!(words("  ", 5, false), [""; 0]);
    }
}
