//! Operators of Python's texts, lists and tuples, as filters and a function; `source.rs` rewrites templates to use them.

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, FormatStyle, format_filter};

use crate::text::python::arguments::{Arguments, refused};
use crate::text::python::printed::printed;
use crate::text::python::tuple::Tuple;
use crate::text::python::widths::check_format;

pub(crate) const PRINTED: &str = "python_printed";
pub(crate) const REMAINDER: &str = "python_remainder";
pub(crate) const SLICE: &str = "python_slice";
pub(crate) const TUPLE: &str = "python_tuple";

/// Adds the operators to the environment.
pub(crate) fn add_operators(environment: &mut Environment<'static>) {
    environment.add_filter(PRINTED, |value: &Value| printed(value));
    environment.add_filter(REMAINDER, remainder);
    environment.add_filter(SLICE, slice);
    environment.add_function(TUPLE, |items: Rest<Value>| Tuple::of(items.0));
}

/// A value in a form that formatting prints as Python does: lists, tuples and maps become their text.
pub(crate) fn as_printed(value: &Value) -> Value {
    match value.kind() {
        _ if value.is_kwargs() => value.clone(),
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => printed(value).into(),
        _ => value.clone(),
    }
}

/// `value % other`: for a text, formats it with the values.
fn remainder(value: &Value, others: Rest<Value>) -> Result<Value, Error> {
    if let Some(format) = value.as_str() {
        let values = match &others.0[..] {
            [tuple] if tuple.downcast_object_ref::<Tuple>().is_some() => {
                tuple.try_iter()?.map(|value| as_printed(&value)).collect()
            }
            // a map's entries are inserted by name
            [map] if map.kind() == ValueKind::Map && format.contains("%(") => vec![map.clone()],
            values => values.iter().map(as_printed).collect::<Vec<_>>(),
        };
        check_format(FormatStyle::Printf, format)?;
        return format_filter(FormatStyle::Printf, format, &values).map(Value::from);
    }
    let [other] = &others.0[..] else {
        return Err(refused("% takes several values only behind a text"));
    };
    if let (Ok(a), Ok(b)) = (i64::try_from(value.clone()), i64::try_from(other.clone()))
        && value.is_integer()
        && other.is_integer()
    {
        let remainder =
            a.checked_rem(b).ok_or_else(|| refused(format!("{a} % {b} has no value")))?;
        let is_off = remainder != 0 && (remainder < 0) != (b < 0);
        return Ok(Value::from(if is_off { remainder + b } else { remainder }));
    }
    let (a, b) = (f64::try_from(value.clone())?, f64::try_from(other.clone())?);
    if b == 0.0 {
        return Err(refused(format!("{a} % {b} has no value")));
    }
    Ok(Value::from(a - b * (a / b).floor()))
}

/// `value[start:stop:step]`.
fn slice(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let args = Arguments::of(&args.0, ["start", "stop", "step"])?;
    let items: Vec<Value> = match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().chars().map(Value::from).collect(),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.collect(),
        other => return Err(refused(format!("a value of type {other} has no slices"))),
    };
    let (length, step) = (items.len() as i64, args.integer(2)?.unwrap_or(1));
    if step == 0 {
        return Err(refused("the step of a slice is 0"));
    }
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |given: Option<i64>, or: i64| match given {
        Some(place) if place < 0 => place.saturating_add(length).max(lowest),
        Some(place) => place.min(highest),
        None => or,
    };
    let ends = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (mut at, stop) = (place(args.integer(0)?, ends.0), place(args.integer(1)?, ends.1));
    let mut taken = Vec::new();
    while if step > 0 { at < stop } else { at > stop } {
        taken.push(items[at as usize].clone());
        at = at.saturating_add(step);
    }
    Ok(match value.kind() {
        ValueKind::String => taken.iter().filter_map(Value::as_str).collect::<String>().into(),
        _ if value.downcast_object_ref::<Tuple>().is_some() => Tuple::of(taken),
        _ => Value::from(taken),
    })
}
