use crate::{DecodeStream, Result, Tokenizer};

/// Decodes a reply piece by piece, up to a stop text.
#[derive(Debug)]
pub struct ReplyText<'a> {
    decoder: DecodeStream<'a>,
    stop_ids: &'a [i64],
    stop: StopText<'a>,
}

impl<'a> ReplyText<'a> {
    /// Before the first token.
    pub fn new(tokenizer: &'a Tokenizer, stop_ids: &'a [i64], stop: &'a [String]) -> Self {
        let stop = StopText { stops: stop, held: String::new(), is_over: false };
        Self { decoder: tokenizer.decode_stream(true), stop_ids, stop }
    }

    /// Takes a token; returns the text that can no longer change.
    ///
    /// # Errors
    /// If the token has no text.
    pub fn push(&mut self, id: i64) -> Result<String> {
        if self.stop_ids.contains(&id) {
            return Ok(String::new());
        }
        let piece = self.decoder.push(id)?.unwrap_or_default();
        Ok(self.stop.push(&piece))
    }

    /// Whether a stop text has occurred.
    pub fn is_over(&self) -> bool {
        self.stop.is_over
    }

    /// Whether text is held back that may be the beginning of a stop text.
    pub fn holds_back(&self) -> bool {
        !self.stop.held.is_empty()
    }

    /// The remaining text after the last token.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(mut self) -> Result<String> {
        let rest = self.decoder.finish()?.unwrap_or_default();
        Ok(self.stop.push(&rest) + &self.stop.held)
    }
}

/// Cuts a text that arrives in pieces before the first stop text.
#[derive(Debug)]
struct StopText<'a> {
    stops: &'a [String],
    /// Text that may be the beginning of a stop text.
    held: String,
    is_over: bool,
}

impl StopText<'_> {
    fn push(&mut self, piece: &str) -> String {
        if self.is_over {
            return String::new();
        }
        self.held += piece;
        let stops = || self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(end) = stops().filter_map(|stop| self.held.find(stop)).min() {
            self.is_over = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let may_begin = |start: &usize| {
            let tail = &self.held[*start..];
            stops().any(|stop| stop.starts_with(tail))
        };
        let starts = self.held.char_indices().map(|(start, _)| start);
        let certain = starts.into_iter().find(may_begin).unwrap_or(self.held.len());
        self.held.drain(..certain).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text given out for each piece, and the text held at the end.
    fn given(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut text = StopText { stops: &stops, held: String::new(), is_over: false };
        let given = pieces.iter().map(|piece| text.push(piece)).collect();
        (given, text.held, text.is_over)
    }

    #[test]
    fn text_is_given_out_at_once_if_it_cannot_begin_a_stop() {
        let (pieces, held, is_over) = given(&["END"], &["a ", "b", "E"]);
        assert_eq!(
            (pieces, held.as_str(), is_over),
            (vec!["a ".into(), "b".into(), String::new()], "E", false)
        );
    }

    #[test]
    fn a_stop_over_several_pieces_is_cut_out_with_what_follows() {
        let (pieces, held, is_over) = given(&["END", "###"], &["é E", "N", "D of ###", "more"]);
        assert_eq!(pieces, ["é ", "", "", ""]);
        assert_eq!((held.as_str(), is_over), ("", true));
    }

    #[test]
    fn a_false_beginning_is_given_out_later() {
        let (pieces, held, is_over) = given(&["aab"], &["a", "a", "a", "c"]);
        assert_eq!(pieces.concat(), "aaac");
        assert_eq!((held.as_str(), is_over), ("", false));
    }
}
