//! A reply while it is generated: tokens become text, up to the stop text.

use reft_models::{Finish, ReplyText, TokenLogprobs, Tokenizer};
use tokio::sync::mpsc;

use crate::api::error::ApiError;
use crate::worker::job::{NewToken, Over, Piece};

/// The newest part of a reply.
#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) choice: usize,
    pub(crate) text: String,
    /// The text's tokens with their log-probabilities, if asked for.
    pub(crate) tokens: Vec<ToldToken>,
    /// Why the reply ends here, if it does.
    pub(crate) finish: Option<&'static str>,
}

/// A token and how likely it was.
#[derive(Debug)]
pub(crate) struct ToldToken {
    pub(crate) id: i64,
    pub(crate) logprobs: TokenLogprobs,
}

/// The replies to a request.
pub(crate) struct Replies<'a> {
    pieces: mpsc::Receiver<Piece>,
    choices: Vec<Choice<'a>>,
    /// Tokens that were generated.
    pub(crate) generated: usize,
}

struct Choice<'a> {
    /// `None` when the reply is over.
    text: Option<ReplyText<'a>>,
    is_over: Over,
    /// Tokens whose text is held back because it may begin a stop text.
    held: Vec<ToldToken>,
}

impl<'a> Replies<'a> {
    /// The replies before their first tokens.
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        stop_ids: &'a [i64],
        stop: &'a [String],
        pieces: mpsc::Receiver<Piece>,
        over: Vec<Over>,
    ) -> Self {
        let choice = |is_over| Choice {
            text: Some(ReplyText::new(tokenizer, stop_ids, stop)),
            is_over,
            held: Vec::new(),
        };
        Self { pieces, choices: over.into_iter().map(choice).collect(), generated: 0 }
    }

    /// The next part; `None` if all replies have ended.
    ///
    /// # Errors
    /// The reason why one of the replies failed.
    pub(crate) async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        while self.choices.iter().any(|choice| choice.text.is_some()) {
            let Some(Piece { choice, what }) = self.pieces.recv().await else {
                return Err(ApiError::shutting_down());
            };
            let token = what?;
            let Some(own) = self.choices.get_mut(choice).filter(|own| own.text.is_some()) else {
                continue; // the token was computed after the reply's end
            };
            self.generated += 1;
            let (text, tokens, finish) = own.push(token)?;
            if !text.is_empty() || !tokens.is_empty() || finish.is_some() {
                return Ok(Some(Delta { choice, text, tokens, finish }));
            }
        }
        Ok(None)
    }
}

impl Choice<'_> {
    /// Takes a token. Returns the text and tokens that are final now, and the reason of the reply's end.
    fn push(
        &mut self,
        token: NewToken,
    ) -> Result<(String, Vec<ToldToken>, Option<&'static str>), ApiError> {
        let failed = |error: reft_models::Error| {
            log::error!("a token has no text: {error}");
            ApiError::failed()
        };
        let Some(reply) = &mut self.text else { return Ok(Default::default()) };
        let mut text = reply.push(token.id).map_err(failed)?;
        if reply.is_over() {
            self.is_over.set();
            self.text = None;
            return Ok((text, Vec::new(), Some("stop"))); // tokens of the stop text are not reported
        }
        let is_end = token.finish == Some(Finish::Stop);
        if let Some(logprobs) = token.logprobs.filter(|_| !is_end) {
            self.held.push(ToldToken { id: token.id, logprobs });
        }
        let finish = match token.finish {
            Some(Finish::Length) => Some("length"),
            Some(Finish::Stop | Finish::Cancelled) => Some("stop"),
            None => None,
        };
        if finish.is_some() {
            text +=
                &self.text.take().map_or(Ok(String::new()), ReplyText::finish).map_err(failed)?;
        }
        let holds_back = self.text.as_ref().is_some_and(ReplyText::holds_back);
        let tokens = if holds_back { Vec::new() } else { std::mem::take(&mut self.held) };
        Ok((text, tokens, finish))
    }
}
