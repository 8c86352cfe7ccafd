//! Jinja2's filters and tests where minijinja's differ or are missing.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, FormatStyle, State, filters, format_filter};

use crate::text::python::arguments::{Arguments, refused};
use crate::text::python::json::to_json;
use crate::text::python::methods::{call_method, lines};
use crate::text::python::printed::printed;
use crate::text::python::tuple::Tuple;
use crate::text::python::widths::{bounded, check_format};

/// Adds the filters and tests to the environment.
pub(crate) fn add_filters(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("string", |value: &Value| printed(value));
    environment.add_filter("join", join);
    environment.add_filter("truncate", truncate);
    environment.add_filter("indent", indent);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("replace", replace);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("sum", sum);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    environment.add_filter("batch", batch);
    environment.add_filter("slice", slice);
    environment.add_filter("format", |format: &str, values: Rest<Value>| {
        check_format(FormatStyle::Printf, format)?;
        format_filter(FormatStyle::Printf, format, &values.0)
    });
    environment.add_filter("center", |state: &State, value: &Value, width: Option<i64>| {
        call_method(state, &printed(value).into(), "center", &[width.unwrap_or(80).into()])
    });
    environment.add_filter("trim", |value: &Value, chars: Option<String>| {
        let text = printed(value);
        match chars {
            Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
            None => text.trim().to_owned(),
        }
    });
    environment.add_filter("upper", |value: &Value| printed(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| printed(value).to_lowercase());
    environment.add_filter("wordcount", |value: &Value| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        printed(value).split(|c| !is_word(c)).filter(|word| !word.is_empty()).count()
    });
    // texts, lists, tuples and maps have a length and can be indexed; an undefined value counts as an empty list
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), String | Seq | Iterable | Map | Undefined)
    });
    environment.add_test("iterable", |value: &Value| {
        value.kind() == ValueKind::String || (!value.is_none() && value.try_iter().is_ok())
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("integer", |value: &Value| {
        value.kind() == ValueKind::Number && value.is_integer()
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}

fn batch(state: &State, value: Value, n: i64, fill: Option<Value>) -> Result<Value, Error> {
    filters::batch(state, value, bounded(n)?, fill)
}

fn slice(state: &State, value: Value, n: i64, fill: Option<Value>) -> Result<Value, Error> {
    filters::slice(state, value, bounded(n)?, fill)
}

fn join(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["d", "attribute"])?;
    let attribute = args.value(1);
    let part = |item: Value| match attribute {
        Some(attribute) => item.get_item(attribute).map(|item| printed(&item)),
        None => Ok(printed(&item)),
    };
    let parts = value.try_iter()?.map(part).collect::<Result<Vec<_>, _>>()?;
    Ok(parts.join(&args.value(0).map(printed).unwrap_or_default()).into())
}

fn truncate(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["length", "killwords", "end", "leeway"])?;
    let (text, end) = (printed(value), args.text(2)?.unwrap_or("..."));
    let length = args.integer(0)?.unwrap_or(255);
    let (leeway, end_length) = (args.integer(3)?.unwrap_or(5), end.chars().count() as i64);
    if length < end_length || leeway < 0 {
        return Err(refused(format!("truncate: expected a length of at least {end_length}")));
    }
    if text.chars().count() as i64 <= length.saturating_add(leeway) {
        return Ok(text.into());
    }
    let kept: String = text.chars().take((length - end_length) as usize).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if !args.is_true(1) => words,
        _ => &kept,
    };
    Ok(format!("{kept}{end}").into())
}

fn indent(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["width", "first", "blank"])?;
    let width = match args.value(0).and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => " ".repeat(bounded(args.integer(0)?.unwrap_or(4))?),
    };
    let text = printed(value) + "\n";
    let mut indented = String::new();
    for (i, (line, end)) in lines(&text).into_iter().enumerate() {
        if i > 0 {
            indented.push('\n');
        }
        let is_indented = if i == 0 { args.is_true(1) } else { args.is_true(2) || end > 0 };
        if is_indented {
            indented.push_str(&width);
        }
        indented.push_str(&line[..end]);
    }
    Ok(indented.into())
}

fn default(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let default = args.0.first().filter(|first| !first.is_kwargs()).cloned();
    let args = Arguments::of(&args.0, ["default_value", "boolean"])?;
    let is_taken = !value.is_undefined() && (value.is_true() || !args.is_true(1));
    let default = default.or_else(|| args.value(0).cloned());
    Ok(if is_taken { value.clone() } else { default.unwrap_or_else(|| "".into()) })
}

fn replace(value: &Value, args: Rest<Value>) -> Result<String, Error> {
    let args = Arguments::of(&args.0, ["old", "new", "count"])?;
    let text =
        |place| args.value(place).map(printed).ok_or_else(|| refused("replace what by what?"));
    let (value, old, new) = (printed(value), text(0)?, text(1)?);
    Ok(match args.integer(2)?.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => value.replacen(&old, &new, count),
        None => value.replace(&old, &new),
    })
}

fn length(value: &Value) -> Result<usize, Error> {
    let kind = value.kind();
    let length = if kind == ValueKind::Undefined { Some(0) } else { value.len() };
    match length {
        Some(length) => Ok(length),
        None if kind == ValueKind::Iterable => Ok(value.try_iter()?.count()),
        None => Err(refused(format!("a value of type {kind} has no length"))),
    }
}

fn items(value: &Value) -> Result<Value, Error> {
    let pair = |key: Value| Ok(Tuple::of([key.clone(), value.get_item(&key)?]));
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => {
            value.try_iter()?.map(pair).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        other => Err(refused(format!("items: expected a map, found {other}"))),
    }
}

fn dictsort(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["case_sensitive", "by", "reverse"])?;
    let place = match args.text(1)?.unwrap_or("key") {
        "key" => 0,
        "value" => 1,
        other => return Err(refused(format!("dictsort: by is {other}, expected key or value"))),
    };
    let by = |pair: &Value| {
        let sorted = pair.get_item_by_index(place).unwrap_or_default();
        match sorted.as_str() {
            Some(text) if !args.is_true(0) => text.to_lowercase().into(),
            _ => sorted,
        }
    };
    let mut pairs: Vec<Value> = items(value)?.try_iter()?.collect();
    pairs.sort_by(|a, b| if args.is_true(2) { by(b).cmp(&by(a)) } else { by(a).cmp(&by(b)) });
    Ok(pairs.into())
}

fn sum(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["attribute", "start"])?;
    let mut summands = vec![args.value(1).cloned().unwrap_or_else(|| 0.into())];
    for item in value.try_iter()? {
        summands.push(match args.value(0) {
            Some(attribute) => item.get_item(attribute)?,
            None => item,
        });
    }
    if summands.iter().all(Value::is_integer) {
        let sum = summands.into_iter().map(i64::try_from).sum::<Result<i64, _>>()?;
        return Ok(sum.into());
    }
    Ok(summands.into_iter().map(f64::try_from).sum::<Result<f64, _>>()?.into())
}

fn int(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["default", "base"])?;
    let base = args.integer(1)?.unwrap_or(10).clamp(2, 36) as u32;
    let int = match value.as_str().map(|text| text.trim().replace('_', "")) {
        Some(text) => {
            let prefixed = match base {
                16 => text.trim_start_matches("0x").trim_start_matches("0X"),
                8 => text.trim_start_matches("0o"),
                2 => text.trim_start_matches("0b"),
                _ => &text,
            };
            let float = || text.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x as i64);
            i64::from_str_radix(prefixed, base).ok().or_else(float)
        }
        None if value.kind() == ValueKind::Bool => Some(value.is_true().into()),
        None if value.is_integer() => return Ok(value.clone()),
        None => f64::try_from(value.clone()).ok().map(|x| x as i64),
    };
    Ok(int.map_or_else(|| args.value(0).cloned().unwrap_or_else(|| 0.into()), Value::from))
}

fn float(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["default"])?;
    let float = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(float.map_or_else(|| args.value(0).cloned().unwrap_or_else(|| 0.0.into()), Value::from))
}

fn round(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["precision", "method"])?;
    let precision = args.integer(0)?.unwrap_or(0);
    let (x, method) = (f64::try_from(value.clone())?, args.text(1)?.unwrap_or("common"));
    let scale = 10f64.powi(precision as i32);
    Ok(match method {
        "common" if value.is_integer() && precision >= 0 => value.clone(),
        // the exact value decides, and a tie goes to the even digit
        "common" if precision >= 0 => {
            format!("{x:.0$}", precision.min(300) as usize).parse::<f64>().unwrap_or(x).into()
        }
        "common" => ((x * scale).round_ties_even() / scale).into(),
        "ceil" => ((x * scale).ceil() / scale).into(),
        "floor" => ((x * scale).floor() / scale).into(),
        other => return Err(refused(format!("round: {other} is none of common, ceil, floor"))),
    })
}
