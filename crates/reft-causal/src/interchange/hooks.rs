use reft_core::Interchange;
use reft_models::{Cut, Error, HookPoint, Hooks, Layout, Place, Result, Span, TokenAt, send};
use tch::Tensor;

/// Hidden states of source runs that are put into a base run at one place.
#[derive(Debug)]
pub struct Swap<'a> {
    /// Where.
    pub place: Place,
    /// The base's tokens.
    pub tokens: Vec<TokenAt>,
    /// The source's hidden states, `[m, d]`: one row for each token.
    pub source: Tensor,
    /// Combines the hidden states of base and source.
    pub interchange: Box<dyn Interchange + 'a>,
}

/// The hooks of a base run: the swaps of one batch.
///
/// There may be several swaps at one place, for instance two sources that each set their coordinates of one subspace: each swap edits the
/// result of the swap before it.
#[derive(Debug)]
pub struct InterchangeHooks<'a> {
    swaps: Vec<Swap<'a>>,
}

impl<'a> InterchangeHooks<'a> {
    /// Hooks that make the swaps.
    ///
    /// # Errors
    /// [`Error::NoSuchToken`] if a row does not have a token; [`Error::Sources`] unless there is a source for every token.
    pub fn new(swaps: Vec<Swap<'a>>, layout: &Layout) -> Result<Self> {
        for swap in &swaps {
            TokenAt::check(&swap.tokens, layout)?;
            let (tokens, sources) =
                (swap.tokens.len(), swap.source.size().first().map_or(0, |&m| m as usize));
            if tokens != sources {
                return Err(Error::Sources { place: swap.place.clone(), tokens, sources });
            }
        }
        Ok(Self { swaps })
    }
}

impl Hooks for InterchangeHooks<'_> {
    fn visit(&mut self, point: HookPoint, mut h: Tensor, span: &Span) -> Result<Tensor> {
        for swap in self.swaps.iter().filter(|swap| Some(swap.place.site) == point.place()) {
            let (which, indices) = TokenAt::in_span(&swap.tokens, span);
            if which.is_empty() {
                continue;
            }
            let index = |indices: &[i64]| send(&Tensor::from_slice(indices), h.device());
            let (which, indices) = (index(&which), index(&indices));
            let rows = h.flatten(0, 1); // [b·t, width]
            let selected = rows.index_select(0, &indices); // [m, width]
            let base = swap.place.read(&selected)?; // [m, d]
            let source = swap.source.to_device(h.device()).index_select(0, &which);
            let edited = swap.interchange.intervene(&base, &source)?;
            let edited = swap.place.replace(&selected, edited);
            h = rows.index_copy(0, &indices, &edited).view_as(&h);
        }
        Ok(h)
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        for Swap { tokens, source, .. } in &mut self.swaps {
            let moved = |(i, at): (usize, &TokenAt)| {
                let row = rows.iter().position(|&row| row == at.row)?;
                Some((TokenAt { row, ..*at }, i as i64))
            };
            let (kept, which): (Vec<TokenAt>, Vec<i64>) =
                tokens.iter().enumerate().filter_map(moved).unzip();
            *source = source.index_select(0, &send(&Tensor::from_slice(&which), source.device()));
            *tokens = kept;
        }
    }

    fn cut(&mut self) -> Vec<Cut> {
        let tensors = self.swaps.iter_mut().flat_map(|swap| swap.interchange.tensors_mut());
        tensors.filter_map(Cut::of).collect()
    }
}
