use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use reft_models::Tokenizer;
use reft_train::{Example, IGNORE_INDEX};

use crate::terminal::{is_silent, visible};

/// Prints the first example on stderr as it is trained: its text, the learned part (or `told`, the label for a head), and the edited
/// tokens.
///
/// # Errors
/// If a token has no text.
pub fn say(
    example: &Example,
    tokenizer: Option<&Tokenizer>,
    edited: &BTreeSet<usize>,
    told: Option<String>,
) -> Result<()> {
    if is_silent() {
        return Ok(());
    }
    let stderr = io::stderr();
    let in_colour = stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let marks = if in_colour { &COLOURS } else { &PLAIN };
    let text = shown(&pieces(example, tokenizer, edited)?, marks);
    let edits =
        if edited.is_empty() { String::new() } else { format!(", {}", marks.on("edited", EDITED)) };
    let learned =
        told.map_or_else(|| marks.on("learned", LEARNED), |told| visible(&told).into_owned());
    // a closed stderr is ignored
    let _ = writeln!(
        stderr.lock(),
        "the first example, {}, {learned}{edits}:\n{text}",
        visible(&example.id)
    );
    Ok(())
}

/// The roles of a token, as bits.
const LEARNED: u8 = 1;
const EDITED: u8 = 2;

/// The marks around learned text and around edited text.
struct Marks {
    learned: [&'static str; 2],
    edited: [&'static str; 2],
}

const COLOURS: Marks =
    Marks { learned: ["\u{1b}[32m", "\u{1b}[39m"], edited: ["\u{1b}[7m", "\u{1b}[27m"] };
const PLAIN: Marks = Marks { learned: ["«", "»"], edited: ["‹", "›"] };

impl Marks {
    /// A text with the marks of its tokens' roles.
    fn on(&self, text: &str, fate: u8) -> String {
        let text = if fate & EDITED == 0 { text.to_owned() } else { self.edited.join(text) };
        if fate & LEARNED == 0 { text } else { self.learned.join(&text) }
    }
}

/// Longest example in tokens that is shown whole. Of a longer one, half as many tokens are shown at each end.
const LONGEST: usize = 400;

/// The text of an example in pieces, each of tokens with the same roles.
fn pieces(
    example: &Example,
    tokenizer: Option<&Tokenizer>,
    edited: &BTreeSet<usize>,
) -> Result<Vec<(String, u8)>> {
    let (ids, labels) = (&example.row().input_ids, example.labels());
    let left_out = if ids.len() > LONGEST { LONGEST / 2..ids.len() - LONGEST / 2 } else { 0..0 };
    let mut pieces: Vec<(String, u8)> = Vec::new();
    let mut stream = tokenizer.map(|tokenizer| tokenizer.decode_stream(false));
    let mut fate = 0; // roles of the tokens that are not decoded yet
    for (i, (id, label)) in ids.iter().zip(labels).enumerate() {
        let text = match &mut stream {
            Some(stream) => stream.push(*id)?,
            None => Some(format!("{id} ")),
        };
        fate |= if *label == IGNORE_INDEX { 0 } else { LEARNED };
        fate |= if edited.contains(&i) { EDITED } else { 0 };
        if i == left_out.start && !left_out.is_empty() {
            pieces.push((format!(" … {} tokens … ", left_out.len()), 0));
        }
        let Some(text) = text else { continue };
        let fate = std::mem::take(&mut fate);
        if left_out.contains(&i) {
            continue;
        }
        match pieces.last_mut() {
            Some((own, of)) if *of == fate => *own += &text,
            _ => pieces.push((text, fate)),
        }
    }
    let rest = stream.map(|stream| stream.finish()).transpose()?.flatten();
    pieces.extend(rest.map(|text| (text, fate)));
    Ok(pieces)
}

fn shown(pieces: &[(String, u8)], marks: &Marks) -> String {
    pieces.iter().map(|(text, fate)| marks.on(&visible(text), *fate)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_models::Row;

    fn example(n: i64) -> Example {
        let row = Row { input_ids: (0..n).collect(), prompt_length: 4, ..Row::default() };
        Example::of("it", row, (0..n).map(|i| if i < 4 { IGNORE_INDEX } else { i }).collect())
    }

    #[test]
    fn tokens_of_like_fate_stand_between_marks() -> Result<()> {
        let pieces = pieces(&example(7), None, &[0, 3, 4].into())?;
        assert_eq!(shown(&pieces, &PLAIN), "‹0 ›1 2 ‹3 ›«‹4 ›»«5 6 »");
        let coloured = "\u{1b}[7m0 \u{1b}[27m1 2 \u{1b}[7m3 \u{1b}[27m\u{1b}[32m\u{1b}[7m4 \u{1b}[27m\u{1b}[39m\u{1b}[32m5 6 \u{1b}[39m";
        assert_eq!(shown(&pieces, &COLOURS), coloured);
        Ok(())
    }

    #[test]
    fn the_middle_of_a_long_example_is_left_out() -> Result<()> {
        let shown = shown(&pieces(&example(1000), None, &[].into())?, &PLAIN);
        assert!(shown.starts_with("0 1 2 3 «4 5 "), "{shown}");
        assert!(shown.contains("199 » … 600 tokens … «800 "), "{shown}");
        assert!(shown.ends_with(" 999 »"), "{shown}");
        Ok(())
    }

    #[test]
    fn what_would_control_a_terminal_is_made_visible() {
        let pieces = [("a\u{1b}[2J".to_owned(), LEARNED)];
        assert_eq!(shown(&pieces, &PLAIN), "«a\\u001b[2J»");
    }
}
