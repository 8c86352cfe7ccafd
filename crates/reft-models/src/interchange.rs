//! Interchange interventions on a model: hidden states are collected from source runs and put into a base run.

use reft_core::Interchange;
use tch::Tensor;

use crate::decoder::Decoder;
use crate::hooks::{Cut, Hooks};
use crate::layout::{Layout, Span};
use crate::linear::Linear;
use crate::place::Place;
use crate::send::send;
use crate::site::Site;
use crate::{Error, Result};

/// A token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenAt {
    /// The row.
    pub row: usize,
    /// The token of the row, 0 for its first.
    pub token: usize,
}

impl TokenAt {
    /// The same token of each of the first `rows` rows.
    pub fn every_row(rows: usize, token: usize) -> Vec<Self> {
        (0..rows).map(|row| Self { row, token }).collect()
    }
}

/// The hooks of a source run: they keep the hidden states of chosen tokens at chosen places, and nothing else of the run.
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
    /// Hooks that keep the tokens named at each place, any number per row.
    ///
    /// # Errors
    /// [`Error::NoSuchToken`] if a row does not have the token.
    pub fn new(wanted: Vec<(Place, Vec<TokenAt>)>, layout: &Layout) -> Result<Self> {
        for (_, tokens) in &wanted {
            check_tokens(tokens, layout)?;
        }
        let wanted = wanted.into_iter();
        let wanted = wanted.map(|(place, tokens)| Wanted { place, tokens, seen: Vec::new() });
        Ok(Self { wanted: wanted.collect() })
    }

    /// The hidden states of each place, `[m, d]`, one row for each of its tokens in the order they were named in.
    ///
    /// # Errors
    /// [`Error::NotReached`] if the run did not come to a place.
    pub fn finish(self) -> Result<Vec<Tensor>> {
        self.wanted.into_iter().map(Wanted::finish).collect()
    }

    fn see(&mut self, site: Site, h: &Tensor, span: &Span) -> Result<()> {
        for wanted in self.wanted.iter_mut().filter(|wanted| wanted.place.site == site) {
            let (which, indices) = in_span(&wanted.tokens, span);
            if !which.is_empty() {
                let indices = send(&Tensor::from_slice(&indices), h.device());
                let found = flat(h).index_select(0, &indices);
                wanted.seen.push((which, wanted.place.read(&found)?));
            }
        }
        Ok(())
    }
}

impl Wanted {
    fn finish(self) -> Result<Tensor> {
        let (which, found): (Vec<Vec<i64>>, Vec<Tensor>) = self.seen.into_iter().unzip();
        let which = which.concat();
        if which.len() != self.tokens.len() || which.is_empty() {
            return Err(Error::NotReached { place: self.place });
        }
        let mut order = vec![0i64; which.len()];
        for (at, &token) in which.iter().enumerate() {
            order[token as usize] = at as i64;
        }
        let found = Tensor::cat(&found, 0);
        Ok(found.index_select(0, &send(&Tensor::from_slice(&order), found.device())))
    }
}

impl Hooks for Collect {
    fn visit(&mut self, site: Site, h: Tensor, span: &Span) -> Result<Tensor> {
        self.see(site, &h, span)?;
        Ok(h)
    }

    fn projection_input(&mut self, site: Site, x: Tensor, span: &Span) -> Result<Tensor> {
        if Place::whole(site).is_projection_input() {
            self.see(site, &x, span)?;
        }
        Ok(x)
    }

    fn projection_output(
        &mut self,
        site: Site,
        _linear: &Linear,
        _x: &Tensor,
        y: Tensor,
        span: &Span,
    ) -> Result<Tensor> {
        if !Place::whole(site).is_projection_input() {
            self.see(site, &y, span)?;
        }
        Ok(y)
    }
}

/// Hidden states of source runs that are put into a base run at one place.
#[derive(Debug)]
pub struct Swap<'a> {
    /// Where.
    pub place: Place,
    /// The base's tokens.
    pub tokens: Vec<TokenAt>,
    /// The source's hidden states, `[m, d]`: one row for each token.
    pub source: Tensor,
    /// What of them is put in.
    pub interchange: Box<dyn Interchange + 'a>,
}

/// The hooks of a base run: the swaps of one batch.
///
/// Several swaps may meet at one place, for instance two sources that each bring their coordinates of one subspace: each sees what the
/// one before it left.
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
            check_tokens(&swap.tokens, layout)?;
            let (tokens, sources) =
                (swap.tokens.len(), swap.source.size().first().map_or(0, |&m| m as usize));
            if tokens != sources {
                return Err(Error::Sources { place: swap.place.clone(), tokens, sources });
            }
        }
        Ok(Self { swaps })
    }

    fn swap(&self, site: Site, h: Tensor, span: &Span) -> Result<Tensor> {
        let mut h = h;
        for swap in self.swaps.iter().filter(|swap| swap.place.site == site) {
            let (which, indices) = in_span(&swap.tokens, span);
            if which.is_empty() {
                continue;
            }
            let index = |indices: &[i64]| send(&Tensor::from_slice(indices), h.device());
            let (which, indices) = (index(&which), index(&indices));
            let rows = flat(&h);
            let selected = rows.index_select(0, &indices); // [m, width]
            let base = swap.place.read(&selected)?; // [m, d]
            let source = swap.source.to_device(h.device()).index_select(0, &which);
            let edited = swap.interchange.intervene(&base, &source)?;
            let edited = swap.place.replace(&selected, edited);
            h = rows.index_copy(0, &indices, &edited).view_as(&h);
        }
        Ok(h)
    }
}

impl Hooks for InterchangeHooks<'_> {
    fn visit(&mut self, site: Site, h: Tensor, span: &Span) -> Result<Tensor> {
        self.swap(site, h, span)
    }

    fn projection_input(&mut self, site: Site, x: Tensor, span: &Span) -> Result<Tensor> {
        if Place::whole(site).is_projection_input() { self.swap(site, x, span) } else { Ok(x) }
    }

    fn projection_output(
        &mut self,
        site: Site,
        _linear: &Linear,
        _x: &Tensor,
        y: Tensor,
        span: &Span,
    ) -> Result<Tensor> {
        if Place::whole(site).is_projection_input() { Ok(y) } else { self.swap(site, y, span) }
    }

    fn cut(&mut self) -> Vec<Cut> {
        let tensors = self.swaps.iter_mut().flat_map(|swap| swap.interchange.tensors_mut());
        tensors.filter_map(Cut::of).collect()
    }
}

impl Decoder {
    /// A source run: hidden states of chosen tokens at chosen places, `[m, d]` each and without gradient.
    ///
    /// The model is run no further up than the highest place, and only what is asked for is kept.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::Coordinates`] or [`Error::NoSuchToken`].
    pub fn collect(
        &self,
        layout: &Layout,
        wanted: Vec<(Place, Vec<TokenAt>)>,
    ) -> Result<Vec<Tensor>> {
        for (place, _) in &wanted {
            place.size_in(self.config())?;
        }
        let layers = self.config().num_hidden_layers;
        let highest = wanted.iter().map(|(place, _)| place.site.stage()).max().unwrap_or(0);
        let mut collect = Collect::new(wanted, layout)?;
        let _guard = tch::no_grad_guard();
        let forward = self.forward(&layout.whole(), 0);
        let embeddings = forward.embed(&layout.input_ids(self.device()));
        let h = forward.run(0..layers.min(highest + 1), embeddings, None, &mut collect)?;
        if highest == layers {
            let _normed = forward.finish(h, &mut collect)?;
        }
        collect.finish()
    }
}

/// Which of the tokens a pass computes, and their flat indices in it.
fn in_span(tokens: &[TokenAt], span: &Span) -> (Vec<i64>, Vec<i64>) {
    let tokens = tokens.iter().enumerate();
    tokens.filter_map(|(i, at)| Some((i as i64, span.flat_index(at.row, at.token)?))).unzip()
}

/// `[b, t, d]` as `[b·t, d]`.
fn flat(h: &Tensor) -> Tensor {
    h.flatten(0, 1)
}

fn check_tokens(tokens: &[TokenAt], layout: &Layout) -> Result<()> {
    for &TokenAt { row, token } in tokens {
        let length = layout.rows().get(row).map_or(0, |row| row.input_ids.len());
        if token >= length {
            return Err(Error::NoSuchToken { row, token, length });
        }
    }
    Ok(())
}
