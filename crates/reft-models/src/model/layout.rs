use std::ops::Range;

use tch::{Device, Tensor};

use crate::{Error, Result, send};

/// The side of the padding in the shorter rows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingSide {
    /// Before the tokens: rows end together.
    Left,
    /// After the tokens: rows begin together, and with causal attention no token sees padding.
    #[default]
    Right,
}

/// One row of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Row {
    /// Token ids: the prompt, then the response if there is one.
    pub input_ids: Vec<i64>,
    /// Number of prompt tokens; only these are edited.
    pub prompt_length: usize,
    /// Coordinates of the subspace that edits of this row may change; `None`: all of them.
    pub subspace: Option<Vec<i64>>,
    /// The type of each token, for models that have types (BERT: 1 in the second of two texts); `None`: 0 everywhere.
    pub token_types: Option<Vec<i64>>,
}

impl Row {
    /// A row that is a prompt and nothing else.
    pub fn prompt(input_ids: Vec<i64>) -> Self {
        Self { prompt_length: input_ids.len(), input_ids, ..Self::default() }
    }
}

/// The columns of the tokens of a padded batch.
///
/// A row is `[padding] virtual tokens, prompt, response [padding]`; virtual tokens (prompt tuning) are placeholders whose embeddings
/// a hook fills in. Only this type maps "token i of row j" to a column, so other code need not know the side of the padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    rows: Vec<Row>,
    starts: Vec<usize>, // column of each row's first token, virtual ones included
    width: usize,
    virtual_tokens: usize,
    /// For rows that continue from separate caches: the number of keys of each row.
    lengths: Option<Vec<usize>>,
}

impl Layout {
    /// The layout of rows, padded on one side to the longest.
    ///
    /// # Errors
    /// [`Error::EmptyBatch`] without rows or with an empty row; [`Error::PromptLength`] if a prompt is longer than its row;
    /// [`Error::TokenTypes`] if not every token of a row has a type.
    pub fn new(rows: Vec<Row>, padding: PaddingSide) -> Result<Self> {
        let aligned = match padding {
            PaddingSide::Left => rows.iter().map(|row| row.input_ids.len()).collect(),
            PaddingSide::Right => vec![0; rows.len()],
        };
        Self::aligned(rows, &aligned)
    }

    /// The layout in which token `tokens[i]` of row `i` has the same column for all rows; the length of a row stands for its end.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// If there is not one token for each row, or one is past its row's end.
    pub fn aligned(rows: Vec<Row>, tokens: &[usize]) -> Result<Self> {
        if rows.is_empty() || rows.iter().any(|row| row.input_ids.is_empty()) {
            return Err(Error::EmptyBatch);
        }
        for row in &rows {
            let (length, prompt_length) = (row.input_ids.len(), row.prompt_length);
            if prompt_length > length {
                return Err(Error::PromptLength { prompt_length, length });
            }
            if let Some(found) = row.token_types.as_ref().map(Vec::len).filter(|n| *n != length) {
                return Err(Error::TokenTypes { found, length });
            }
        }
        assert_eq!(rows.len(), tokens.len(), "one token for each row");
        let rest = |(row, token): (&Row, &usize)| {
            row.input_ids.len().checked_sub(*token).expect("a token of the row, or its end")
        };
        let column = tokens.iter().copied().max().unwrap_or(0);
        let width = column + rows.iter().zip(tokens).map(rest).max().unwrap_or(0);
        let starts = tokens.iter().map(|token| column - token).collect();
        Ok(Self { rows, starts, width, virtual_tokens: 0, lengths: None })
    }

    /// The layout of rows that continue by one token from their caches, with `lengths[i]` keys of row `i` from the first column on without gaps.
    /// [`Self::next`] is their pass. The rows hold the prompts, which are before the pass.
    ///
    /// # Panics
    /// If there is not one length for each row.
    pub fn going_on(rows: Vec<Row>, lengths: Vec<usize>) -> Self {
        assert_eq!(rows.len(), lengths.len(), "one length for each row");
        let prompts = rows.iter().map(|row| row.input_ids.len());
        let width = prompts.chain(lengths.iter().copied()).max().unwrap_or(0);
        Self { starts: vec![0; rows.len()], rows, width, virtual_tokens: 0, lengths: Some(lengths) }
    }

    /// The pass of the token after the tokens that rows have in their caches.
    pub fn next(&self) -> Span<'_> {
        Span { layout: self, columns: self.width..self.width + 1 }
    }

    /// The rows, without the layout.
    pub(crate) fn into_rows(self) -> Vec<Row> {
        self.rows
    }

    /// The number of keys of each row, if the rows continue from separate caches.
    pub(crate) fn lengths(&self) -> Option<&[usize]> {
        self.lengths.as_deref()
    }

    /// The layout of some of the rows, in the given order and in the same columns, for a batch that continues without the others.
    pub fn keep_rows(&self, rows: &[usize]) -> Self {
        let starts = rows.iter().map(|&row| self.starts[row]).collect();
        let lengths = self.lengths.as_ref();
        let lengths = lengths.map(|all| rows.iter().map(|&row| all[row]).collect());
        let rows = rows.iter().map(|&row| self.rows[row].clone()).collect();
        Self { rows, starts, lengths, ..*self }
    }

    /// The same layout with every row's subspace restricted to these coordinates.
    pub fn with_subspace(&self, coordinates: &[i64]) -> Self {
        let mut layout = self.clone();
        layout.rows.iter_mut().for_each(|row| row.subspace = Some(coordinates.to_vec()));
        layout
    }

    /// Puts `n` virtual tokens before every row's prompt.
    pub fn with_virtual_tokens(mut self, n: usize) -> Self {
        self.width = self.width - self.virtual_tokens + n;
        self.virtual_tokens = n;
        self
    }

    /// Number of rows `b`.
    pub fn batch_size(&self) -> usize {
        self.rows.len()
    }

    /// Number of columns `t`: virtual tokens and the longest row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Number of virtual tokens before each prompt.
    pub fn virtual_tokens(&self) -> usize {
        self.virtual_tokens
    }

    /// The columns that hold tokens of a row, virtual ones included.
    pub fn columns(&self, row: usize) -> Range<usize> {
        let start = self.starts[row];
        start..start + self.virtual_tokens + self.rows[row].input_ids.len()
    }

    /// The part of a tensor `[b, t, ..]` over the batch's columns that belongs to a row's tokens, virtual ones included: `[n, ..]`.
    pub fn own(&self, x: &Tensor, row: usize) -> Tensor {
        let columns = self.columns(row);
        x.select(0, row as i64).narrow(0, columns.start as i64, columns.len() as i64)
    }

    /// The column of token `token` (0 = first prompt token) of a row.
    pub fn column(&self, row: usize, token: usize) -> usize {
        self.columns(row).start + self.virtual_tokens + token
    }

    /// Whether every row begins in the first column.
    pub fn is_left_aligned(&self) -> bool {
        self.starts.iter().all(|&start| start == 0)
    }

    /// Whether all rows have the same length.
    pub fn is_unpadded(&self) -> bool {
        self.rows.iter().all(|row| row.input_ids.len() + self.virtual_tokens == self.width)
    }

    /// Position of a column within a row, 0 for its first token; columns past the width are tokens generated after the row's own.
    fn position(&self, row: usize, column: usize) -> usize {
        let columns = self.columns(row);
        if let Some(lengths) = &self.lengths {
            return lengths[row] + column.saturating_sub(self.width);
        }
        if column < self.width {
            column.saturating_sub(columns.start)
        } else {
            columns.len() + column - self.width
        }
    }

    /// The padded token ids `[b, t]`; padding and virtual tokens are 0.
    pub fn input_ids(&self, device: Device) -> Tensor {
        let mut ids = vec![0i64; self.rows.len() * self.width];
        for (i, row) in self.rows.iter().enumerate() {
            let start = i * self.width + self.column(i, 0);
            ids[start..start + row.input_ids.len()].copy_from_slice(&row.input_ids);
        }
        send(&Tensor::from_slice(&ids).view([self.rows.len() as i64, -1]), device)
    }

    /// The whole batch as one pass.
    pub fn whole(&self) -> Span<'_> {
        Span { layout: self, columns: 0..self.width }
    }
}

/// The columns of a batch that one forward computes; earlier ones are in its cache.
#[derive(Debug, Clone)]
pub struct Span<'a> {
    /// The batch.
    pub layout: &'a Layout,
    /// The columns computed now. Columns past the layout's width are tokens generated since.
    pub columns: Range<usize>,
}

impl Span<'_> {
    /// Number of columns.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Number of tokens of a row at the end of the pass: its own, virtual ones included, and those generated since.
    pub(crate) fn row_length(&self, row: usize) -> usize {
        let generated = self.columns.end.saturating_sub(self.layout.width());
        let before = self.layout.lengths.as_ref().map(|lengths| lengths[row]);
        before.unwrap_or_else(|| self.layout.columns(row).len()) + generated
    }

    /// Index into the pass's tokens, flattened to `[b·t, ..]`, of token `token` of a row; `None` if another pass computes it.
    pub fn flat_index(&self, row: usize, token: usize) -> Option<i64> {
        self.flat_column(row, self.layout.column(row, token))
    }

    /// Indices of the virtual tokens of all rows, as [`Self::flat_index`]: row by row.
    pub fn virtual_indices(&self) -> Vec<i64> {
        let of_row = |row| {
            let columns = self.layout.columns(row).take(self.layout.virtual_tokens);
            columns.filter_map(move |column| self.flat_column(row, column))
        };
        (0..self.layout.batch_size()).flat_map(of_row).collect()
    }

    /// Position of each column of the pass within its row, `[b, t]`: 0 for the first token, and for padding before it.
    pub fn position_ids(&self, device: Device) -> Tensor {
        let of_row = |row| {
            let columns = self.columns.clone();
            columns.map(move |column| self.layout.position(row, column) as i64)
        };
        let ids: Vec<i64> = (0..self.layout.batch_size()).flat_map(of_row).collect();
        send(&Tensor::from_slice(&ids).view([self.layout.batch_size() as i64, -1]), device)
    }

    /// Index into the pass's tokens, as [`Self::flat_index`], of a column of a row.
    pub fn flat_column(&self, row: usize, column: usize) -> Option<i64> {
        let offset = self.columns.contains(&column).then(|| column - self.columns.start)?;
        Some((row * self.width() + offset) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(length: usize, prompt_length: usize) -> Row {
        let input_ids = (1..=length as i64).collect();
        Row { input_ids, prompt_length, ..Row::default() }
    }

    #[test]
    fn both_sides_give_every_token_the_same_id_and_position() -> Result<()> {
        for padding in [PaddingSide::Left, PaddingSide::Right] {
            let layout = Layout::new(vec![row(5, 2), row(3, 3)], padding)?.with_virtual_tokens(2);
            assert_eq!(layout.width(), 7);
            let ids = layout.input_ids(Device::Cpu);
            let positions = layout.whole().position_ids(Device::Cpu);
            for (i, row) in layout.rows().iter().enumerate() {
                for (token, &id) in row.input_ids.iter().enumerate() {
                    let at = [i as i64, layout.column(i, token) as i64];
                    assert_eq!(ids.int64_value(&at), id);
                    assert_eq!(positions.int64_value(&at), token as i64 + 2);
                }
            }
            assert_eq!([layout.columns(0).len(), layout.columns(1).len()], [7, 5]);
        }
        Ok(())
    }

    #[test]
    fn rows_can_be_aligned_at_any_token() -> Result<()> {
        let layout = Layout::aligned(vec![row(5, 2), row(3, 3), row(4, 4)], &[1, 3, 2])?;
        assert_eq!(layout.width(), 3 + 4);
        let columns: Vec<_> = (0..3).map(|row| layout.columns(row)).collect();
        assert_eq!(columns, [2..7, 0..3, 1..5]);
        assert_eq!([layout.column(0, 1), layout.column(2, 2)], [3, 3]);
        let positions = layout.whole().position_ids(Device::Cpu);
        assert_eq!(positions.int64_value(&[0, 3]), 1);
        assert_eq!(positions.int64_value(&[2, 3]), 2);
        Ok(())
    }

    #[test]
    fn a_span_knows_only_its_own_columns() -> Result<()> {
        let layout = Layout::new(vec![row(5, 2), row(3, 3)], PaddingSide::Left)?;
        let span = Span { layout: &layout, columns: 2..5 };
        assert_eq!(span.flat_index(0, 1), None);
        assert_eq!(span.flat_index(0, 2), Some(0));
        assert_eq!(span.flat_index(1, 0), Some(3)); // row 1 begins in column 2
        Ok(())
    }

    #[test]
    fn impossible_rows_are_refused() {
        assert!(matches!(Layout::new(vec![], PaddingSide::Left), Err(Error::EmptyBatch)));
        assert!(matches!(Layout::new(vec![row(0, 0)], PaddingSide::Left), Err(Error::EmptyBatch)));
        assert!(matches!(
            Layout::new(vec![row(3, 4)], PaddingSide::Left),
            Err(Error::PromptLength { prompt_length: 4, length: 3 })
        ));
    }
}
