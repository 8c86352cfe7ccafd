use tch::{Device, Tensor};

use crate::transformer::norm::Norm;
use crate::{ContextLimit, Error, Layout, LearnedPositions, Result, Span, Weight, send};

/// Makes the input of the first block: embeddings of tokens, and a family's additions.
#[derive(Debug)]
pub(crate) struct Embeddings {
    pub(crate) tokens: Weight, // [v, d]
    /// Factor of embeddings from the table.
    pub(crate) token_scale: f64,
    /// Factor of all embeddings, also of virtual tokens.
    pub(crate) scale: f64,
    pub(crate) positions: Option<(LearnedPositions, Tensor)>, // [rows, d]
    pub(crate) token_types: Option<Tensor>,                   // [types, d]
    pub(crate) norm: Option<Norm>,
}

impl Embeddings {
    /// Embeddings `[b, t, d]` of tokens `[b, t]`, as hooks see them.
    pub(crate) fn of_tokens(&self, input_ids: &Tensor) -> Tensor {
        let embeddings = self.tokens.rows_at(input_ids);
        if self.token_scale == 1.0 { embeddings } else { embeddings * self.token_scale }
    }

    /// The input of the first block, from the embeddings `[b, t, d]` after the hooks, of a span after a prefix.
    pub(crate) fn block_input(&self, h: Tensor, span: &Span, prefix: usize) -> Result<Tensor> {
        let scaled = if self.scale == 1.0 { h } else { h * self.scale };
        let typed = match &self.token_types {
            Some(types) => scaled + types_of(span, types)?,
            None => scaled,
        };
        let placed = match &self.positions {
            Some((positions, table)) => {
                positions.check(span, prefix)?;
                let rows = positions.of_span(span, prefix, table.device());
                typed + Tensor::embedding(table, &rows, -1, false, false)
            }
            None => typed,
        };
        Ok(match &self.norm {
            Some(norm) => norm.forward(&placed),
            None => placed,
        })
    }
}

/// Embeddings of the types of a span's tokens, broadcastable to `[b, t, d]`.
fn types_of(span: &Span, table: &Tensor) -> Result<Tensor> {
    let layout = span.layout;
    if layout.rows().iter().all(|row| row.token_types.is_none()) {
        return Ok(table.narrow(0, 0, 1).unsqueeze(0)); // [1, 1, d]
    }
    let types = table.size()[0];
    let mut ids = Vec::with_capacity(layout.batch_size() * span.width());
    for row in 0..layout.batch_size() {
        let of_row = layout.rows()[row].token_types.as_deref().unwrap_or_default();
        for column in span.columns.clone() {
            let own = token_at(layout, row, column).and_then(|token| of_row.get(token));
            match own.copied().unwrap_or(0) {
                id if (0..types).contains(&id) => ids.push(id),
                id => return Err(Error::TokenType { row, id, types }),
            }
        }
    }
    let ids = Tensor::from_slice(&ids).view([layout.batch_size() as i64, -1]);
    Ok(Tensor::embedding(table, &send(&ids, table.device()), -1, false, false))
}

/// The index of the row's own token in a column, if there is one.
fn token_at(layout: &Layout, row: usize, column: usize) -> Option<usize> {
    let token = column.checked_sub(layout.column(row, 0))?;
    Some(token).filter(|token| *token < layout.rows()[row].input_ids.len())
}

impl LearnedPositions {
    /// Number of positions of a text.
    pub(crate) fn context(self) -> i64 {
        self.rows - self.first
    }

    /// Checks that the table has a row for every token.
    fn check(self, span: &Span, prefix: usize) -> Result<()> {
        let before = prefix + span.layout.virtual_tokens();
        let limit = ContextLimit { limit: self.context() as usize, before, new_tokens: 0 };
        let rows = span.layout.rows().iter().enumerate();
        limit.check(rows.map(|(i, row)| (format!("row {i}"), row.input_ids.len())))
    }

    /// The rows of the table `[b, t]` for the tokens of a span after a prefix. The rows of padding are unused.
    fn of_span(self, span: &Span, prefix: usize, device: Device) -> Tensor {
        let layout = span.layout;
        let mut ids = Vec::with_capacity(layout.batch_size() * span.width());
        for row in 0..layout.batch_size() {
            let own = layout.columns(row);
            let mut next = self.first + prefix as i64;
            for column in 0..span.columns.end {
                let token = token_at(layout, row, column);
                let id = token.map(|token| layout.rows()[row].input_ids[token]);
                let is_counted = id.is_none() || id != self.uncounted;
                let position = if is_counted { next } else { self.first - 1 };
                next += i64::from(own.contains(&column) && is_counted);
                if span.columns.contains(&column) {
                    ids.push(position.min(self.rows - 1));
                }
            }
        }
        let ids = Tensor::from_slice(&ids).view([layout.batch_size() as i64, -1]);
        send(&ids, device)
    }
}
