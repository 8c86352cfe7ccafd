use rayon::prelude::*;
use reft_models::Row;

use crate::{
    Content, Error, Example, IGNORE_INDEX, LabelledText, Record, Result, Sequence, TextEncoder,
    Turn, Turns,
};

/// How rows become tokens.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// The model's tokenizer and template. It may be left out if every row holds tokens.
    pub text: Option<TextEncoder<'a>>,
    /// Number of tokens of the vocabulary.
    pub vocab_size: i64,
    /// Longest sequence in tokens: a longer one is cut at its end.
    pub max_length: usize,
}

/// The error for a row of text without a tokenizer.
const NO_TOKENIZER: &str = "the row holds text and the model has no tokenizer; give input_ids";

impl Encoding<'_> {
    /// Makes examples of rows, in parallel: one per row, or one per assistant turn with [`Turns::All`]. The example of a preference has two
    /// sequences.
    ///
    /// # Errors
    /// The error of the first row that fails, with its id: as [`Self::sequence`]; [`Error::NoLabel`] without a label; [`Error::NoTarget`] if
    /// no label is left after the cut.
    pub fn examples(&self, records: &[Record]) -> Result<Vec<Example>> {
        self.each(records).into_iter().collect() // the first error in the file's order, whatever thread found one first
    }

    /// Every example, or its row's error.
    pub(crate) fn each(&self, records: &[Record]) -> Vec<Result<Example>> {
        let examples: Vec<Vec<_>> = records.par_iter().map(|record| self.of(record)).collect();
        examples.into_iter().flatten().collect()
    }

    /// A labelled text, or labelled tokens, as a sequence without targets: all of it is the prompt. Texts keep their closing special tokens
    /// when cut; tokens are cut at their end.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Example`].
    pub(crate) fn labelled(&self, record: &Record, text: &LabelledText) -> Result<Sequence> {
        let (input_ids, mut token_types) = match (text, &self.text) {
            (LabelledText::Tokens { input_ids, token_types }, _) => {
                (input_ids.clone(), token_types.clone())
            }
            (LabelledText::Text { text, text_pair }, Some(encoder)) => {
                let encode =
                    encoder.tokenizer.encode_row(text, text_pair.as_deref(), self.max_length);
                let row = encode.map_err(|source| record.failed(source))?;
                (row.input_ids, row.token_types)
            }
            (LabelledText::Text { .. }, None) => return Err(record.refused(NO_TOKENIZER)),
        };
        let n = input_ids.len();
        if n == 0 {
            return Err(record.refused("it has no token; give a text, or leave the row out"));
        }
        if let Some(types) = token_types.as_mut() {
            if types.len() != n {
                let found = types.len();
                let reason =
                    format!("it has {found} token_type_ids for {n} input_ids; give one each");
                return Err(record.refused(reason));
            }
            types.truncate(self.max_length);
        }
        let (mut sequence, _) = self.cut(record, input_ids, n, None)?;
        sequence.row.token_types = token_types;
        Ok(sequence)
    }

    /// The example of a preference: both sequences, the preferred one first.
    pub(crate) fn pair(&self, record: &Record, contents: [&Content; 2]) -> Result<Example> {
        let mut of_pair = Vec::with_capacity(contents.len());
        for content in contents {
            let text = self.text.map(|text| TextEncoder { turns: Turns::Last, ..text });
            let own = Self { text, ..*self }.sequences(&record.with(content.clone()))?;
            let (sequence, length) =
                own.into_iter().next_back().expect("invariant: a row is one sequence at least");
            if sequence.predicting().is_empty() {
                return Err(Error::without_label(&record.id, length, self.max_length));
            }
            of_pair.push(sequence);
        }
        Ok(Example { id: record.id.clone(), sequences: of_pair, value: None })
    }

    /// The examples of a row.
    fn of(&self, record: &Record) -> Vec<Result<Example>> {
        if let Content::Preference { chosen, rejected } = &record.content {
            return vec![self.pair(record, [chosen, rejected])];
        }
        let sequences = match self.sequences(record) {
            Ok(sequences) => sequences,
            Err(refused) => return vec![Err(refused)],
        };
        let is_one = sequences.len() == 1;
        let example = |(i, (Sequence { row, labels }, length)): (usize, (Sequence, usize))| {
            let id = &record.id;
            let id = if is_one { id.clone() } else { format!("{id}, turn {}", i + 1) };
            // no token precedes the first one, so it cannot be predicted
            if labels.iter().skip(1).all(|&label| label == IGNORE_INDEX) {
                return Err(Error::without_label(&id, length, self.max_length));
            }
            Ok(Example::of(id, row, labels))
        };
        sequences.into_iter().enumerate().map(example).collect()
    }

    /// The tokens and labels of a row. Of a conversation, the last turn is learned.
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Example`].
    pub fn sequence(&self, record: &Record) -> Result<Sequence> {
        let text = self.text.map(|text| TextEncoder { turns: Turns::Last, ..text });
        let sequences = Self { text, ..*self }.sequences(record)?;
        let last = sequences.into_iter().next_back();
        Ok(last.expect("invariant: a row is one sequence at least").0)
    }

    /// The sequences of a row, each with its length before the cut.
    fn sequences(&self, record: &Record) -> Result<Vec<(Sequence, usize)>> {
        let turns = match (&record.content, &self.text) {
            (Content::Labelled { .. }, _) => {
                return Err(
                    record.refused("the row is labelled, and there is no head to learn the label")
                );
            }
            (Content::Tokens { input_ids, prompt_length, labels }, _) => {
                let labels = labels.clone();
                return Ok(vec![self.cut(record, input_ids.clone(), *prompt_length, labels)?]);
            }
            (_, Some(text)) => text.turns(record)?,
            (_, None) => {
                return Err(record.refused(NO_TOKENIZER));
            }
        };
        let sequence = |Turn { prompt, completion, is_learned }: Turn| {
            let learned = completion.iter().zip(is_learned);
            let learned = learned.map(|(id, is)| if is { *id } else { IGNORE_INDEX });
            let labels = prompt.iter().map(|_| IGNORE_INDEX).chain(learned).collect();
            let prompt_length = prompt.len();
            self.cut(record, [prompt, completion].concat(), prompt_length, Some(labels))
        };
        turns.into_iter().map(sequence).collect()
    }

    /// Tokens as a sequence, and their number before the cut.
    fn cut(
        &self,
        record: &Record,
        mut input_ids: Vec<i64>,
        prompt_length: usize,
        labels: Option<Vec<i64>>,
    ) -> Result<(Sequence, usize)> {
        let (length, vocab_size) = (input_ids.len(), self.vocab_size);
        if prompt_length > length {
            let reason = format!("prompt_length {prompt_length} is past its {length} tokens");
            return Err(record.refused(reason));
        }
        let mut labels = labels.unwrap_or_else(|| {
            let prompt = std::iter::repeat_n(IGNORE_INDEX, prompt_length);
            prompt.chain(input_ids[prompt_length..].iter().copied()).collect()
        });
        if labels.len() != length {
            let found = labels.len();
            let reason = format!("it has {found} labels for {length} input_ids; give one each");
            return Err(record.refused(reason));
        }
        let targets = labels.iter().filter(|&&label| label != IGNORE_INDEX);
        let mut tokens = input_ids.iter().chain(targets);
        if let Some(&token) = tokens.find(|token| !(0..vocab_size).contains(*token)) {
            let last = vocab_size - 1;
            return Err(record.refused(format!(
                "token id {token} is not in the vocabulary of {vocab_size} (ids 0..={last})"
            )));
        }
        input_ids.truncate(self.max_length);
        labels.truncate(self.max_length);
        let prompt_length = prompt_length.min(input_ids.len());
        let subspace = record.subspace.clone();
        let row = Row { input_ids, prompt_length, subspace, ..Row::default() };
        Ok((Sequence { row, labels }, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input_ids: &[i64], prompt_length: usize, labels: Option<&[i64]>) -> Record {
        let content = Content::Tokens {
            input_ids: input_ids.to_vec(),
            prompt_length,
            labels: labels.map(<[_]>::to_vec),
        };
        Record { id: "it".to_owned(), content, subspace: Some(vec![1]) }
    }

    fn one(record: Record, max_length: usize) -> Result<Example> {
        let encoding = Encoding { text: None, vocab_size: 100, max_length };
        Ok(encoding.examples(&[record])?.remove(0))
    }

    #[test]
    fn tokens_are_taken_as_they_are() -> Result<()> {
        let example = one(tokens(&[5, 6, 7, 8], 2, None), 512)?;
        assert_eq!(example.labels(), [-100, -100, 7, 8]);
        let subspace = Some(vec![1]);
        let row = Row { input_ids: vec![5, 6, 7, 8], prompt_length: 2, subspace, ..Row::default() };
        assert_eq!((example.id.as_str(), example.row()), ("it", &row));
        let example = one(tokens(&[5, 6, 7, 8], 2, Some(&[-100, -100, -100, 3])), 512)?;
        assert_eq!(example.labels(), [-100, -100, -100, 3]);
        Ok(())
    }

    #[test]
    fn what_is_too_long_is_cut_at_its_end() -> Result<()> {
        let example = one(tokens(&[5, 6, 7, 8], 2, None), 3)?;
        assert_eq!(example.row().input_ids, [5, 6, 7]);
        assert_eq!(example.labels(), [-100, -100, 7]);
        Ok(())
    }

    #[test]
    fn impossible_examples_are_refused_by_id() {
        let cut = one(tokens(&[5, 6, 7, 8], 2, None), 2);
        assert!(
            matches!(&cut, Err(Error::NoTarget { id, length: 4, max_length: 2 }) if id == "it"),
            "{cut:?}"
        );
        for record in
            [tokens(&[5, 6, 7, 8], 4, None), tokens(&[5, 6, 7, 8], 0, Some(&[5, -100, -100, -100]))]
        {
            for max_length in [4, 512] {
                let whole = one(record.clone(), max_length); // nothing is cut
                assert!(
                    matches!(&whole, Err(Error::NoLabel { id, length: 4 }) if id == "it"),
                    "{whole:?}"
                );
            }
        }
        let text = Content::Completion { prompt: "a".into(), completion: "b".into() };
        let text = Record::new("it", text);
        for (record, words) in [
            (tokens(&[5, 100, 7], 1, None), "token id 100 is not in the vocabulary of 100"),
            (tokens(&[5, 6, 7], 1, Some(&[-100, -1, 7])), "token id -1"),
            (tokens(&[5, 6], 3, None), "prompt_length 3 is past its 2 tokens"),
            (tokens(&[5, 6, 7], 1, Some(&[-100, 6])), "2 labels for 3 input_ids"),
            (text, "no tokenizer"),
        ] {
            let refused = one(record, 512);
            assert!(
                matches!(&refused, Err(Error::Refused { id, reason }) if id == "it" && reason.contains(words)),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_sequence_needs_no_label() -> Result<()> {
        let encoding = Encoding { text: None, vocab_size: 100, max_length: 3 };
        let sequence = encoding.sequence(&tokens(&[5, 6, 7, 8], 4, None))?;
        assert_eq!((sequence.row.input_ids, sequence.labels), (vec![5, 6, 7], vec![-100; 3]));
        Ok(())
    }

    #[test]
    fn the_first_bad_row_is_the_one_reported() {
        let mut records = vec![tokens(&[5, 6, 7], 1, None); 500];
        for i in [499, 137, 300] {
            records[i] = tokens(&[5, 6, 100 + i as i64], 1, None);
        }
        let encoding = Encoding { text: None, vocab_size: 100, max_length: 512 };
        let refused = encoding.examples(&records);
        assert!(
            matches!(&refused, Err(Error::Refused { reason, .. }) if reason.contains("token id 237")),
            "{refused:?}"
        );
    }
}
