use std::fmt;
use std::str::FromStr;

/// A token of a prompt by name: `subject` (the last token of a slot's word), `subject+1`, `last`, `last-2`, or `3` (counted from 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionName {
    name: String,
    anchor: Anchor,
    offset: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Anchor {
    First,
    Last,
    Slot(String),
}

impl PositionName {
    /// The slot that it names, if it names one.
    pub fn slot(&self) -> Option<&str> {
        match &self.anchor {
            Anchor::Slot(name) => Some(name),
            Anchor::First | Anchor::Last => None,
        }
    }

    /// The token of a prompt of `length` tokens whose slots end with the tokens given; `None` if there is no such token.
    pub(crate) fn token(&self, length: usize, slot_ends: &[(String, usize)]) -> Option<usize> {
        let anchor = match &self.anchor {
            Anchor::First => 0,
            Anchor::Last => length.checked_sub(1)?,
            Anchor::Slot(name) => slot_ends.iter().find(|(slot, _)| slot == name)?.1,
        };
        let token = usize::try_from(anchor as i64 + self.offset).ok()?;
        (token < length).then_some(token)
    }
}

impl FromStr for PositionName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let is_number = s.starts_with(|c: char| c.is_ascii_digit());
        if let Some(offset) = s.parse::<u32>().ok().filter(|_| is_number) {
            return Ok(Self { name: s.to_owned(), anchor: Anchor::First, offset: offset.into() });
        }
        let (name, offset) = match s.rfind(['+', '-']) {
            Some(at) if s[at + 1..].parse::<u32>().is_ok() => (&s[..at], s[at..].parse()),
            _ => (s, Ok(0)),
        };
        let offset = offset.map_err(|_| format!("{s:?} is no position"))?;
        if name.is_empty() {
            return Err(format!(
                "{s:?} is no position; use a slot's name, last, a number, or one of these with +1 or -1 behind it"
            ));
        }
        let anchor = if name == "last" { Anchor::Last } else { Anchor::Slot(name.to_owned()) };
        Ok(Self { name: s.to_owned(), anchor, offset })
    }
}

impl fmt::Display for PositionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_name_tokens_from_either_end_and_from_slots() -> Result<(), String> {
        let slots = [("subject".to_owned(), 2), ("a-b".to_owned(), 5)];
        for (name, token) in [
            ("subject", Some(2)),
            ("subject+1", Some(3)),
            ("subject-2", Some(0)),
            ("subject-3", None),
            ("a-b", Some(5)),
            ("a-b-1", Some(4)),
            ("last", Some(6)),
            ("last-6", Some(0)),
            ("last-7", None),
            ("last+1", None),
            ("4", Some(4)),
            ("7", None),
            ("other", None),
        ] {
            let position: PositionName = name.parse()?;
            assert_eq!(position.token(7, &slots), token, "{name}");
            assert_eq!(position.to_string(), name);
        }
        for wrong in ["", "+1", "-1"] {
            assert!(wrong.parse::<PositionName>().is_err(), "{wrong:?}");
        }
        Ok(())
    }
}
