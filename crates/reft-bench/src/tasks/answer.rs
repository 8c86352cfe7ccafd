//! The answer in a reply: the rules by which choice and arithmetic tasks are scored.

use std::sync::LazyLock;

use regex::Regex;

/// Largest difference from the right number that counts as right.
pub(crate) const NUMBER_TOLERANCE: f64 = 1e-3;

/// The text after the last occurrence of `lead`, without blanks around it and one full stop at its end.
///
/// With the lead "the correct answer is" this is how pyreft and LLM-Adapters score the commonsense tasks.
pub(crate) fn after_lead<'a>(reply: &'a str, lead: &str) -> &'a str {
    let lead = lead.trim();
    let answer = match lead {
        "" => reply,
        lead => reply.rsplit_once(lead).map_or(reply, |(_, answer)| answer),
    };
    let answer = answer.trim();
    answer.strip_suffix('.').unwrap_or(answer).trim_end()
}

/// The last number of a text; commas in it are left out.
pub(crate) fn last_number(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"-?\d+\.?\d*").expect("invariant: the pattern of a number is valid")
    });
    let text = text.replace(',', "");
    NUMBER.find_iter(&text).last()?.as_str().trim_end_matches('.').parse().ok()
}

/// Whether the right answer of an arithmetic question is a letter, as in AQuA.
pub(crate) fn is_letter(answer: &str) -> bool {
    let mut chars = answer.chars();
    matches!((chars.next(), chars.next()), (Some('A'..='E'), None))
}

/// The answer of a reply to an arithmetic question, and whether it is right: the last number within [`NUMBER_TOLERANCE`], or, where the
/// answer is a letter, the first letter.
pub(crate) fn arithmetic(reply: &str, answer: &str) -> (String, bool) {
    if is_letter(answer) {
        let letter = reply.chars().find(|c| ('A'..='E').contains(c));
        return (letter.map(String::from).unwrap_or_default(), letter == answer.chars().next());
    }
    let found = last_number(reply);
    let is_right = found
        .zip(last_number(answer))
        .is_some_and(|(found, right)| (found - right).abs() <= NUMBER_TOLERANCE);
    (found.map(|number| number.to_string()).unwrap_or_default(), is_right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_after_the_last_lead() {
        let lead = "the correct answer is ";
        assert_eq!(after_lead("the correct answer is answer3", lead), "answer3");
        assert_eq!(
            after_lead("Is the correct answer is false? No: the correct answer is true .\n", lead),
            "true"
        );
        assert_eq!(after_lead(" answer1. ", lead), "answer1");
        assert_eq!(after_lead(" negative.\n", ""), "negative");
    }

    #[test]
    fn arithmetic_is_scored_by_the_last_number() {
        let right = |reply: &str, answer: &str| arithmetic(reply, answer).1;
        assert!(right("24 * 24 = 576 tiles. The answer is 576.", "576.0"));
        assert!(right("it is -1,234.5", "-1234.5"));
        assert!(right("so 1.8333", "1.8333333333333335"));
        assert!(!right("so 1.83", "1.8333333333333335"));
        assert!(!right("576, not 575", "576.0"));
        assert!(!right("none", "0"));
        assert_eq!(arithmetic("a 1,000.", "1000"), ("1000".to_owned(), true));
    }

    #[test]
    fn a_letter_is_scored_by_the_first_letter() {
        assert_eq!(arithmetic("\nso it is (D), not A", "D"), ("D".to_owned(), true));
        assert_eq!(arithmetic("\nso it is (D), not A", "A"), ("D".to_owned(), false));
        assert_eq!(arithmetic("12", "A"), (String::new(), false));
        assert!(!is_letter("F") && !is_letter("AB") && !is_letter(""));
    }
}
