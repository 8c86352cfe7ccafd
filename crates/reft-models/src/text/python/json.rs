use std::fmt::Write;

use minijinja::Error;
use minijinja::value::{Rest, Value, ValueKind};

use crate::text::python::arguments::{Arguments, refused};
use crate::text::python::printed::float;

/// transformers' `tojson`: Python's `json.dumps` without HTML escapes and, unless `ensure_ascii` is set, without escapes of letters.
pub(crate) fn to_json(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match args.value(1) {
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        _ => args.integer(1)?.map(|width| " ".repeat(width.clamp(0, 64) as usize)),
    };
    let (mut item, mut key) = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let separators: Option<Vec<Value>> = args
        .value(2)
        .map(|separators| Ok::<_, Error>(separators.try_iter()?.collect()))
        .transpose()?;
    if let Some(separators) = &separators {
        let both = match &separators[..] {
            [item, key] => item.as_str().zip(key.as_str()),
            _ => None,
        };
        (item, key) = both.ok_or_else(|| refused("separators: expected two texts"))?;
    }
    let style = Style {
        ensure_ascii: args.is_true(0),
        sort_keys: args.is_true(3),
        indent,
        item_separator: item,
        key_separator: key,
    };
    let mut json = String::new();
    style.write(value, 0, &mut json)?;
    Ok(Value::from(json))
}

struct Style<'a> {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item_separator: &'a str,
    key_separator: &'a str,
}

impl Style<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::String => self.write_text(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_all(items, ['[', ']'], depth, out, |item, out| {
                    self.write(&item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_all(keys, ['{', '}'], depth, out, |key, out| {
                    match key.kind() {
                        ValueKind::String => {
                            self.write_text(key.as_str().unwrap_or_default(), out);
                        }
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            self.write_text(&plain(&key)?, out);
                        }
                        other => return Err(refused(format!("a {other} is no key of JSON"))),
                    }
                    out.push_str(self.key_separator);
                    self.write(&value.get_item(&key)?, depth + 1, out)
                })?;
            }
            _ => out.push_str(&plain(value)?),
        }
        Ok(())
    }

    fn write_all(
        &self,
        items: Vec<Value>,
        [open, close]: [char; 2],
        depth: usize,
        out: &mut String,
        write: impl Fn(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let is_empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                out.push_str(self.item_separator);
            }
            self.new_line(depth + 1, out);
            write(item, out)?;
        }
        if !is_empty {
            self.new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_text(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").expect("invariant: a string takes all");
                    }
                }
                _ => out.push(c),
            }
        }
        out.push('"');
    }
}

/// The JSON of a scalar that is not a text.
fn plain(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => match f64::try_from(value.clone())? {
            x if x.is_nan() => "NaN".to_owned(),
            x if x.is_infinite() => float(x).replace("inf", "Infinity"),
            x => float(x),
        },
        other => return Err(refused(format!("a value of type {other} has no form in JSON"))),
    })
}
