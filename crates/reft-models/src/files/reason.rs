//! Messages of JSON and TOML parsers in plain words, without the names of Rust types.

use std::fmt::{self, Display};

/// Why a JSON text is refused.
#[derive(Debug)]
pub struct JsonReason {
    reason: String,
    line: usize,
}

impl JsonReason {
    /// The line, counted from 1; 0 if the fault is on no line.
    pub fn line(&self) -> usize {
        self.line
    }
}

impl From<serde_json::Error> for JsonReason {
    fn from(error: serde_json::Error) -> Self {
        Self { reason: plain_reason(&error), line: error.line() }
    }
}

impl Display for JsonReason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for JsonReason {}

/// A parser's message with Rust types in plain words: `an integer` for `i64`, `named fields` for `struct Options`.
pub fn plain_reason(error: &impl Display) -> String {
    let reason = error.to_string().replacen("unknown variant `", "unknown name `", 1);
    if let Some((before, _)) = reason.split_once("data did not match any variant of untagged enum")
    {
        return format!("{before}the value has none of the forms that are expected here");
    }
    let Some((found, expected)) = reason.rsplit_once(", expected ") else { return reason };
    let (expected, place) = match expected.find(" at line ") {
        Some(at) => expected.split_at(at),
        None => (expected, ""),
    };
    format!("{}, expected {}{place}", plain_found(found), plain_expected(expected))
}

fn plain_expected(expected: &str) -> &str {
    let begins = |words: &[&str]| words.iter().any(|word| expected.starts_with(word));
    match expected {
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "an integer",
        "u8" => "an integer from 0 to 255",
        "u16" => "an integer from 0 to 65535",
        "u32" | "u64" | "u128" | "usize" => "an integer that is not negative",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" | "an array" => "a list",
        "a map" => "named fields",
        "option" => "a value or none",
        "unit" => "no value",
        "a character" => "a letter",
        "string or map" => "a name, or one name with its value",
        "string only" | "a borrowed string" | "variant identifier" | "field identifier"
        | "identifier" => "a name",
        _ if begins(&["a nonzero"]) => "an integer other than 0",
        _ if begins(&["struct ", "internally tagged ", "adjacently tagged "]) => "named fields",
        _ if begins(&["tuple ", "a tuple of size ", "an array of length "]) => "a list",
        _ if begins(&["enum ", "variant of enum "]) => "a name",
        _ if begins(&["unit "]) => "no value",
        _ => expected,
    }
}

fn plain_found(found: &str) -> String {
    const KINDS: [(&str, &str); 12] = [
        ("floating point ", "number "),
        ("boolean ", ""),
        ("character ", "letter "),
        ("sequence", "a list"),
        ("map", "named fields"),
        ("unit value", "no value"),
        ("unit variant", "a name"),
        ("Option value", "a value"),
        ("newtype struct", "a value"),
        ("newtype variant", "a name with its value"),
        ("tuple variant", "a name with its values"),
        ("struct variant", "a name with its fields"),
    ];
    for problem in ["invalid type: ", "invalid value: "] {
        let Some((before, what)) = found.split_once(problem) else { continue };
        if let Some((kind, plain)) = KINDS.iter().find(|(kind, _)| what.starts_with(kind)) {
            return format!("{before}{problem}{plain}{}", &what[kind.len()..]);
        }
    }
    found.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "it is only read into")]
    struct Options {
        rank: usize,
        rate: f64,
        small: u8,
        signed: i64,
        flag: bool,
        names: Vec<String>,
        pair: (i64, i64),
        inner: Option<Inner>,
        kind: Kind,
        either: Option<Either>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "it is only read into")]
    struct Inner {
        rank: usize,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "it is only read into")]
    enum Kind {
        Plain,
        With { rank: usize },
        Named(String),
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code, reason = "it is only read into")]
    enum Either {
        One(usize),
        Many(Vec<usize>),
    }

    fn said<T: DeserializeOwned + fmt::Debug>(text: &str) -> String {
        serde_json::from_str::<T>(text)
            .map_or_else(|error| plain_reason(&error), |x| format!("{x:?}"))
    }

    #[test]
    fn no_type_of_a_program_is_named() {
        for (field, value, expected) in [
            ("rank", "\"four\"", "string \"four\", expected an integer that is not negative"),
            ("rank", "-1", "integer `-1`, expected an integer that is not negative"),
            ("rank", "1.5", "number `1.5`, expected an integer that is not negative"),
            ("rate", "[1]", "a list, expected a number"),
            ("small", "256", "integer `256`, expected an integer from 0 to 255"),
            ("signed", "{}", "named fields, expected an integer"),
            ("flag", "1", "integer `1`, expected true or false"),
            ("names", "true", "`true`, expected a list"),
            ("pair", "7", "integer `7`, expected a list"),
            ("inner", "7", "integer `7`, expected named fields"),
            ("inner", "\", expected usize\"", "\", expected usize\", expected named fields"),
            ("kind", "{\"With\": 3}", "integer `3`, expected named fields"),
            ("either", "\"x\"", "the value has none of the forms that are expected here"),
        ] {
            let reason = said::<Options>(&format!("{{\"{field}\": {value}}}"));
            assert!(reason.contains(expected), "{field} = {value}: {reason}");
        }
        assert_eq!(said::<Vec<usize>>("[1, 2"), "EOF while parsing a list at line 1 column 5");
        let place = said::<Inner>("\n\n  7");
        assert_eq!(place, "invalid type: integer `7`, expected named fields at line 3 column 3");
        let variant = said::<Kind>("\"Other\"");
        assert!(variant.starts_with("unknown name `Other`, expected one of `Plain`"), "{variant}");
    }

    #[test]
    fn other_words_stay_as_they_are() {
        for reason in [
            "rank is 5, expected 1 to 4",
            "missing field `rank`",
            "unknown field `r`, expected `rank`",
        ] {
            assert_eq!(plain_reason(&reason), reason);
        }
    }
}
