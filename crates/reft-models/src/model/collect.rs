use tch::Tensor;

use crate::{
    AdapterStack, Error, HookPoint, Hooks, Layout, Mode, Model, Place, Result, Span, send,
};

/// A token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenAt {
    /// The row.
    pub row: usize,
    /// The token of the row, 0 for its first.
    pub token: usize,
}

impl TokenAt {
    /// Checks that a layout has these tokens.
    ///
    /// # Errors
    /// [`Error::NoSuchToken`].
    pub fn check(tokens: &[Self], layout: &Layout) -> Result<()> {
        for &Self { row, token } in tokens {
            let length = layout.rows().get(row).map(|row| row.input_ids.len());
            if length.is_none_or(|length| token >= length) {
                return Err(Error::NoSuchToken { row, token, length: length.unwrap_or(0) });
            }
        }
        Ok(())
    }

    /// The tokens that a pass computes, by their indices in `tokens`, and their flat indices in the pass.
    pub fn in_span(tokens: &[Self], span: &Span) -> (Vec<i64>, Vec<i64>) {
        let tokens = tokens.iter().enumerate();
        tokens.filter_map(|(i, at)| Some((i as i64, span.flat_index(at.row, at.token)?))).unzip()
    }
}

/// The hooks of a source run: they keep only the hidden states of chosen tokens at chosen places.
#[derive(Debug)]
pub struct Collect {
    wanted: Vec<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    place: Place,
    tokens: Vec<TokenAt>,
    seen: Vec<(Vec<i64>, Tensor)>, // which of the tokens, and their hidden states [m, d]: one entry per pass
}

impl Collect {
    /// Hooks that keep the given tokens at each place, any number per row.
    ///
    /// # Errors
    /// [`Error::NoSuchToken`] if a row does not have the token.
    pub fn new(wanted: Vec<(Place, Vec<TokenAt>)>, layout: &Layout) -> Result<Self> {
        for (_, tokens) in &wanted {
            TokenAt::check(tokens, layout)?;
        }
        let wanted = wanted.into_iter();
        let wanted = wanted.map(|(place, tokens)| Wanted { place, tokens, seen: Vec::new() });
        Ok(Self { wanted: wanted.collect() })
    }

    /// The hidden states of each place, `[m, d]`, one row for each of its tokens in the given order.
    ///
    /// # Errors
    /// [`Error::NotReached`] if the run did not reach a place.
    pub fn finish(self) -> Result<Vec<Tensor>> {
        self.wanted.into_iter().map(Wanted::finish).collect()
    }
}

impl Wanted {
    fn finish(self) -> Result<Tensor> {
        let (which, found): (Vec<Vec<i64>>, Vec<Tensor>) = self.seen.into_iter().unzip();
        let which = which.concat();
        if which.len() != self.tokens.len() || which.is_empty() {
            return Err(Error::NotReached(self.place));
        }
        let order = Tensor::from_slice(&which).argsort(0, false); // the index of each token among those found
        let found = Tensor::cat(&found, 0);
        Ok(found.index_select(0, &send(&order, found.device())))
    }
}

impl Hooks for Collect {
    fn visit(&mut self, point: HookPoint, h: Tensor, span: &Span) -> Result<Tensor> {
        for wanted in self.wanted.iter_mut().filter(|w| Some(w.place.site) == point.place()) {
            let (which, indices) = TokenAt::in_span(&wanted.tokens, span);
            if !which.is_empty() {
                let indices = send(&Tensor::from_slice(&indices), h.device());
                let found = h.flatten(0, 1).index_select(0, &indices);
                wanted.seen.push((which, wanted.place.read(&found)?));
            }
        }
        Ok(h)
    }
}

/// A source run: hidden states of chosen tokens at chosen places, `[m, d]` each on [`Model::device`] and without gradient, after the edits of
/// the adapters ([`AdapterStack::EMPTY`]: the plain model's).
///
/// The model runs only up to the last place, and only the requested hidden states are kept.
///
/// # Errors
/// [`Error::NoSuchLayer`], [`Error::Coordinates`], [`Error::NoSuchToken`], or [`Error::NotReached`] if the model has no such site; errors
/// of an adapter.
pub fn collect(
    model: &dyn Model,
    adapters: &AdapterStack,
    layout: &Layout,
    wanted: Vec<(Place, Vec<TokenAt>)>,
) -> Result<Vec<Tensor>> {
    for (place, _) in &wanted {
        model.description().size_of(place)?;
    }
    let (layers, home) = (model.description().num_hidden_layers, model.device());
    let highest = wanted.iter().map(|(place, _)| place.site.stage()).max().unwrap_or(0);
    let _guard = tch::no_grad_guard();
    let layout = adapters.layout(layout.clone());
    let mut collect = Collect::new(wanted, &layout)?;
    let mut hooks = adapters.hooks(&layout, Mode::Eval)?;
    hooks.0.push(Box::new(&mut collect)); // last: it sees the adapters' output
    let span = layout.whole();
    let forward = model.forward(&span, hooks.prefix_length());
    let embeddings = forward.embed(&layout.input_ids(model.device()));
    let h = forward.run(0..layers.min(highest + 1), embeddings, None, &mut hooks)?;
    if highest == layers {
        let _normed = forward.finish(h, &mut hooks)?;
    }
    drop(hooks);
    let found = collect.finish()?.into_iter();
    Ok(found.map(|own| if own.device() == home { own } else { own.to_device(home) }).collect())
}
