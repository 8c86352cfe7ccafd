use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::{Error, Result};
use crate::{as_text, names};

/// Which prompt tokens are edited: the first `p` and the last `s`, written `f{p}+l{s}`, or `all` of them.
///
/// Only tokens of the prompt count; a response is never edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Positions {
    first: usize,
    last: usize,
}

/// The rule for prompts with fewer tokens than the positions ask for.
///
/// `n` is the number of prompt tokens, `p` and `s` the first and last tokens asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PositionRule {
    /// Wu et al. 2024, appendix: only if `n < p + s`, `p ← min(p, ⌊n/2⌋)` and `s ← min(s, ⌈n/2⌉)`.
    #[default]
    Paper,
    /// pyreft's rule: `p ← min(p, ⌊n/2⌋)` and `s ← min(s, ⌊n/2⌋)`, always.
    Pyreft,
}

names!(PositionRule, "position rule", Error, { Paper => "paper", Pyreft => "pyreft" });

/// Which tokens of the prompt an intervention edits: files call the first tokens "prefix" and the last "suffix".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenGroup {
    /// First and last tokens: one intervention per layer (`share_weights`).
    FirstAndLast,
    /// The first tokens only.
    First,
    /// The last tokens only.
    Last,
}

names!(TokenGroup, "token group", Error, { FirstAndLast => "tied", First => "prefix", Last => "suffix" });

/// Positions of one prompt: token indices counted from its first token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptPositions {
    first: Range<usize>,
    last: Range<usize>,
}

impl Positions {
    /// Every token of the prompt, however long it is.
    pub const ALL: Self = Self { first: usize::MAX, last: 0 };

    /// The first `first` and the last `last` prompt tokens.
    ///
    /// # Errors
    /// [`Error::Positions`] if both are 0: nothing would be edited.
    pub fn new(first: usize, last: usize) -> Result<Self> {
        if first == 0 && last == 0 {
            let why = "at least one token must be edited";
            return Err(Error::Positions { found: format!("f{first}+l{last}"), why });
        }
        Ok(Self { first, last })
    }

    /// Whether every token of the prompt is edited; the tokens then form one group.
    pub fn is_all(self) -> bool {
        self == Self::ALL
    }

    /// Number of first tokens asked for.
    pub fn first(self) -> usize {
        self.first
    }

    /// Number of last tokens asked for.
    pub fn last(self) -> usize {
        self.last
    }

    /// The groups that interventions are made for: one if tied, else one per non-empty end.
    pub fn groups(self, share_weights: bool) -> Vec<TokenGroup> {
        if share_weights || self.is_all() {
            return vec![TokenGroup::FirstAndLast];
        }
        let first = (self.first > 0).then_some(TokenGroup::First);
        let last = (self.last > 0).then_some(TokenGroup::Last);
        first.into_iter().chain(last).collect()
    }

    /// Token indices in a prompt of `n` tokens. The two groups never overlap.
    pub fn in_prompt(self, n: usize, rule: PositionRule) -> PromptPositions {
        let (p, s) = match rule {
            _ if self.is_all() => (n, 0),
            PositionRule::Paper if n >= self.first.saturating_add(self.last) => {
                (self.first, self.last)
            }
            PositionRule::Paper => (self.first.min(n / 2), self.last.min(n.div_ceil(2))),
            PositionRule::Pyreft => (self.first.min(n / 2), self.last.min(n / 2)),
        };
        PromptPositions { first: 0..p, last: n - s..n }
    }
}

impl PromptPositions {
    /// The token indices of a group, ascending.
    pub fn group(&self, group: TokenGroup) -> impl Iterator<Item = usize> + use<> {
        let (first, last) = match group {
            TokenGroup::FirstAndLast => (self.first.clone(), self.last.clone()),
            TokenGroup::First => (self.first.clone(), 0..0),
            TokenGroup::Last => (0..0, self.last.clone()),
        };
        first.chain(last)
    }
}

/// How [`Positions::ALL`] is written.
const ALL: &str = "all";

impl FromStr for Positions {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        if s == ALL {
            return Ok(Self::ALL);
        }
        let error = |why| Error::Positions { found: s.to_owned(), why };
        let (mut first, mut last) = (None, None);
        for part in s.split('+') {
            let end = match part.chars().next() {
                Some('f') => &mut first,
                Some('l') => &mut last,
                _ => return Err(error("each part begins with f or l")),
            };
            let digits = &part[1..];
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(error("a whole number follows f or l"));
            }
            let count: u32 = digits.parse().map_err(|_| error("the number is too large"))?;
            if end.replace(count as usize).is_some() {
                return Err(error("f and l may stand once each"));
            }
        }
        let (first, last) = (first.unwrap_or(0), last.unwrap_or(0));
        Self::new(first, last).map_err(|_| error("at least one token must be edited"))
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            _ if self.is_all() => write!(f, "{ALL}"),
            (first, 0) => write!(f, "f{first}"),
            (0, last) => write!(f, "l{last}"),
            (first, last) => write!(f, "f{first}+l{last}"),
        }
    }
}

as_text!(Positions);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn indices(positions: &str, n: usize, rule: PositionRule) -> Vec<usize> {
        let positions: Positions = positions.parse().unwrap();
        positions.in_prompt(n, rule).group(TokenGroup::FirstAndLast).collect()
    }

    #[test]
    fn short_prompts_follow_the_paper() {
        assert_eq!(indices("f2+l3", 9, PositionRule::Paper), [0, 1, 6, 7, 8]);
        assert_eq!(indices("f2+l3", 5, PositionRule::Paper), [0, 1, 2, 3, 4]);
        assert_eq!(indices("f2+l3", 3, PositionRule::Paper), [0, 1, 2]);
        assert_eq!(indices("f7+l7", 1, PositionRule::Paper), [0]);
        assert_eq!(indices("f7+l7", 0, PositionRule::Paper), [0usize; 0]);
        assert_eq!(indices("l1", 1, PositionRule::Paper), [0]);
    }

    #[test]
    fn all_is_every_token_in_one_group() {
        for (n, rule) in
            [(0, PositionRule::Paper), (1, PositionRule::Pyreft), (9, PositionRule::Paper)]
        {
            assert_eq!(indices("all", n, rule), (0..n).collect::<Vec<_>>());
        }
        for tied in [true, false] {
            assert_eq!(Positions::ALL.groups(tied), [TokenGroup::FirstAndLast]);
        }
        assert_eq!("all".parse::<Positions>().unwrap().to_string(), "all");
        assert!(!"f7+l7".parse::<Positions>().unwrap().is_all());
    }

    #[test]
    fn pyreft_halves_even_where_there_is_room() {
        assert_eq!(indices("l5", 6, PositionRule::Pyreft), [3, 4, 5]);
        assert_eq!(indices("l1", 1, PositionRule::Pyreft), [0usize; 0]);
    }

    /// Oracle: `pyreft.dataset.get_intervention_locations`, whose surplus slots hold −1 (pad mode "first") or the index
    /// after the prompt ("last"). Without them its locations are ours.
    #[test]
    fn pyreft_rule_equals_pyreft() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/oracle/positions.json");
        let table: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let rows = table["rows"].as_array().ok_or("no rows")?;
        let mut compared = 0;
        for row in rows {
            let n = row[0].as_u64().ok_or("length")? as usize;
            let positions: Positions = row[1].as_str().ok_or("positions")?.parse()?;
            let share_weights = row[2].as_bool().ok_or("share_weights")?;
            let Some(interventions) = row[4].as_array() else {
                panic!("the oracle recorded an error: {row}");
            };
            let groups = positions.groups(share_weights);
            let resolved = positions.in_prompt(n, PositionRule::Pyreft);
            for (i, locations) in interventions.iter().enumerate() {
                // without shared weights, pyreft lists all interventions of one group, then all of the other
                let group = groups[i * groups.len() / interventions.len()];
                let theirs: Vec<usize> = locations
                    .as_array()
                    .ok_or("locations")?
                    .iter()
                    .filter_map(|x| x.as_i64())
                    .filter(|&x| x >= 0 && x < n as i64)
                    .map(|x| x as usize)
                    .collect();
                let ours: Vec<usize> = resolved.group(group).collect();
                assert_eq!(ours, theirs, "{row}, intervention {i}");
                compared += 1;
            }
        }
        assert_eq!(compared, 9 * 10 * 2 * 2 * 4);
        Ok(())
    }

    #[test]
    fn malformed_positions_are_errors() {
        for bad in [
            "",
            "abc",
            "f",
            "l",
            "f0",
            "f0+l0",
            "f-1",
            "f1+",
            "+l1",
            "f1+f2",
            "7",
            "f1l1",
            "F1",
            "f1 + l1",
            "f٣",
            "f99999999999999999999",
            "l1.5",
            "f+1",
        ] {
            assert!(
                matches!(bad.parse::<Positions>(), Err(Error::Positions { found, .. }) if found == bad),
                "{bad:?} was accepted"
            );
        }
    }

    proptest! {
        #[test]
        fn any_string_is_parsed_or_refused(s in "\\PC*") {
            if let Ok(positions) = s.parse::<Positions>() {
                prop_assert_eq!(positions.to_string().parse::<Positions>().unwrap(), positions);
            }
        }

        #[test]
        fn positions_lie_in_the_prompt_once(first in 0usize..20, last in 0usize..20, n in 0usize..40, pyreft: bool) {
            prop_assume!(first + last > 0);
            let positions = Positions::new(first, last).unwrap();
            let rule = if pyreft { PositionRule::Pyreft } else { PositionRule::Paper };
            let resolved = positions.in_prompt(n, rule);
            let indices: Vec<_> = resolved.group(TokenGroup::FirstAndLast).collect();
            prop_assert!(indices.windows(2).all(|w| w[0] < w[1]), "{:?}", indices);
            prop_assert!(indices.iter().all(|&i| i < n));
            let apart: Vec<_> = resolved
                .group(TokenGroup::First)
                .chain(resolved.group(TokenGroup::Last))
                .collect();
            prop_assert_eq!(indices, apart);
        }
    }
}
