use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use reft_core::{AlignmentSet, Annealing, GateKind, Interchange, Parameter, SubspaceInterchange};
use reft_models::{
    Adapter, Error, Hooks, InterchangeHooks, Layout, Mode, Place, Reach, Result, Row, Swap,
    TokenAt, save_safetensors, send,
};
use tch::Tensor;

use crate::das::source_states::{SourceToken, source_states};
use crate::model::Model;

/// What is thought to hold the variables.
#[derive(Debug)]
pub enum Alignment {
    /// Coordinates of a rotation: learned ones, or random ones if it is not trained.
    Rotated(AlignmentSet),
    /// Coordinates of the hidden states as they are.
    Neurons,
    /// Coordinates of given subspaces.
    Fixed(Vec<SubspaceInterchange>),
}

/// The swaps of one variable, one entry for each of its counterfactuals.
#[derive(Debug)]
pub struct VariableSwap {
    /// Where the variable is thought to be.
    pub place: Place,
    /// Which of the alignments of an [`AlignmentSet`] it uses. Variables that share one should have coordinates of their own.
    pub alignment: usize,
    /// Its coordinates in the rotation, or its neurons.
    pub coordinates: Range<i64>,
    /// The number of its first counterfactual: it does nothing in those before it, and those behind its last.
    pub first: usize,
    /// The base's token that is edited; `None` where the counterfactual does not swap the variable.
    pub tokens: Vec<Option<usize>>,
    /// The sources' hidden states at the place, `[n, d]`.
    pub sources: Tensor,
}

/// Distributed alignment search (Geiger et al. 2023, arXiv:2303.02536) as an adapter: a base run with the variables' coordinates taken
/// from source runs, trained to answer as the causal model does.
///
/// Rows name their counterfactual ([`Row::counterfactual`]); rows that name none are run as they are. The sources' hidden states were
/// computed before: the model is frozen, so they are the same in every step.
#[derive(Debug)]
pub struct AlignmentAdapter {
    alignment: Alignment,
    swaps: Vec<VariableSwap>,
    annealing: Annealing,
    penalty_weight: f64,
    is_side_by_side: bool,
}

impl AlignmentAdapter {
    /// Name of the tensors' file.
    pub const FILE_NAME: &str = "alignment.safetensors";

    /// An adapter of swaps, which are made in their order.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a swap has not as many tokens as sources, or does not fit the alignments.
    pub fn new(alignment: Alignment, swaps: Vec<VariableSwap>) -> Result<Self> {
        for (i, swap) in swaps.iter().enumerate() {
            let refuse =
                |reason: String| Err(Error::Adapter { reason: format!("swap {i}: {reason}") });
            let (tokens, sources) = (swap.tokens.len(), swap.sources.size());
            let &[n, d] = &sources[..] else {
                return refuse(format!("sources have shape {sources:?}, expected [n, d]"));
            };
            if n != tokens as i64 {
                return refuse(format!(
                    "{tokens} tokens and {n} sources; give one of each for a counterfactual"
                ));
            }
            // number of alignments, and of the one that it uses hidden size and rank
            let (alignments, hidden_size, available) = match &alignment {
                Alignment::Neurons => (usize::MAX, d, d),
                Alignment::Rotated(set) => (set.len() as usize, set.hidden_size(), set.rank()),
                Alignment::Fixed(fixed) => {
                    let own = fixed.get(swap.alignment).map(|fixed| fixed.columns().size());
                    let own = own.unwrap_or_default();
                    (fixed.len(), own.first().map_or(d, |d| *d), own.last().map_or(0, |r| *r))
                }
            };
            if swap.alignment >= alignments {
                let i = swap.alignment;
                return refuse(format!("there is no alignment {i}, there are {alignments}"));
            }
            if hidden_size != d {
                return refuse(format!(
                    "hidden states have size {d}, the rotations are of size {hidden_size}"
                ));
            }
            let Range { start, end } = swap.coordinates;
            if start < 0 || start >= end || end > available {
                return refuse(format!("coordinates {start}..{end} are not within 0..{available}"));
            }
        }
        let (annealing, penalty_weight) = (Annealing::default(), 1.0);
        Ok(Self { alignment, swaps, annealing, penalty_weight, is_side_by_side: false })
    }

    /// Says that the alignments of the set know nothing of each other: no row is swapped by two of them
    /// ([`SideBySide`](crate::das::SideBySide)).
    pub fn side_by_side(self) -> Self {
        Self { is_side_by_side: true, ..self }
    }

    /// Sets how learned gates cool, and the weight of what they cost.
    pub fn with_gates(self, annealing: Annealing, penalty_weight: f64) -> Self {
        Self { annealing, penalty_weight, ..self }
    }

    /// What is thought to hold the variables.
    pub fn alignment(&self) -> &Alignment {
        &self.alignment
    }

    /// The intervention of every swap, with the present numbers: the orthonormal map is evaluated once.
    fn interchanges(&self, gates: GateKind) -> Result<Vec<SubspaceInterchange>> {
        let rotated = match &self.alignment {
            Alignment::Rotated(set) => set.interchanges(gates),
            Alignment::Neurons | Alignment::Fixed(_) => Vec::new(),
        };
        let of_swap = |swap: &VariableSwap| {
            let coordinates = swap.coordinates.clone();
            Ok(match &self.alignment {
                Alignment::Rotated(_) => rotated[swap.alignment].coordinates(coordinates)?,
                Alignment::Fixed(fixed) => fixed[swap.alignment].coordinates(coordinates)?,
                Alignment::Neurons => {
                    let (d, device) = (swap.sources.size()[1], swap.sources.device());
                    SubspaceInterchange::neurons(d, coordinates, device)?
                }
            })
        };
        self.swaps.iter().map(of_swap).collect()
    }
}

impl VariableSwap {
    /// Runs the sources of a variable. For each counterfactual that swaps it: the base's token, and the source's.
    ///
    /// # Errors
    /// What [`source_states`] refuses.
    pub fn collect(
        model: &dyn Model,
        place: Place,
        (alignment, coordinates): (usize, Range<i64>),
        counterfactuals: Vec<Option<(usize, SourceToken)>>,
        batch_size: usize,
    ) -> crate::Result<Self> {
        let n = counterfactuals.len() as i64;
        let tokens = counterfactuals.iter().map(|c| c.as_ref().map(|(token, _)| *token)).collect();
        let numbered = counterfactuals.into_iter().enumerate();
        let (numbers, sources): (Vec<i64>, Vec<SourceToken>) =
            numbered.filter_map(|(i, c)| Some((i as i64, c?.1))).unzip();
        let (rows, tokens_of_sources): (Vec<Row>, Vec<usize>) =
            sources.into_iter().map(|source| (source.row, source.token)).unzip();
        let wanted = (place.clone(), tokens_of_sources);
        let found = source_states(model, &rows, std::slice::from_ref(&wanted), batch_size)?;
        let found = &found[0]; // [swapped, d]
        let numbers = Tensor::from_slice(&numbers).to_device(found.device());
        let nothing = Tensor::zeros([n, found.size()[1]], (found.kind(), found.device()));
        let sources = nothing.index_copy(0, &numbers, found);
        Ok(Self { place, alignment, coordinates, first: 0, tokens, sources })
    }

    /// The rows of a batch that swap the variable: their tokens, and their counterfactuals.
    fn in_batch(&self, layout: &Layout) -> (Vec<TokenAt>, Vec<i64>) {
        let (mut tokens, mut sources) = (Vec::new(), Vec::new());
        for (i, row) in layout.rows().iter().enumerate() {
            if let Some(token) = self.token(row) {
                tokens.push(TokenAt { row: i, token });
                sources.extend(row.counterfactual.map(|number| (number - self.first) as i64));
            }
        }
        (tokens, sources)
    }

    /// The base's token that a row's counterfactual edits.
    fn token(&self, row: &Row) -> Option<usize> {
        *self.tokens.get(row.counterfactual?.checked_sub(self.first)?)?
    }
}

impl Adapter for AlignmentAdapter {
    fn method(&self) -> &str {
        match &self.alignment {
            Alignment::Rotated(set) => set.method().name(),
            Alignment::Neurons => "neurons",
            Alignment::Fixed(_) => "interchange",
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        match &self.alignment {
            Alignment::Rotated(set) => set.parameters(),
            Alignment::Neurons | Alignment::Fixed(_) => Vec::new(),
        }
    }

    fn hooks<'a>(&'a self, layout: &'a Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let gates = match mode {
            Mode::Train => GateKind::Soft,
            Mode::Eval => GateKind::Hard,
        };
        let known = self.swaps.iter().map(|swap| swap.first + swap.tokens.len()).max().unwrap_or(0);
        for (row, Row { counterfactual, .. }) in layout.rows().iter().enumerate() {
            if let Some(i) = counterfactual.filter(|&i| i >= known) {
                let reason = format!("row {row} names counterfactual {i}, there are {known}");
                return Err(Error::Adapter { reason });
            }
        }
        let mut swaps = Vec::new();
        for (swap, interchange) in self.swaps.iter().zip(self.interchanges(gates)?) {
            let (tokens, sources) = swap.in_batch(layout);
            let sources = send(&Tensor::from_slice(&sources), swap.sources.device());
            swaps.push(Swap {
                place: swap.place.clone(),
                tokens,
                source: swap.sources.index_select(0, &sources),
                interchange: Box::new(interchange) as Box<dyn Interchange>,
            });
        }
        Ok(Box::new(InterchangeHooks::new(swaps, layout)?))
    }

    fn parts(&self) -> i64 {
        match &self.alignment {
            Alignment::Rotated(set) if self.is_side_by_side => set.len(),
            _ => 1,
        }
    }

    fn begin_step(&mut self, share: f64) {
        if let Alignment::Rotated(set) = &mut self.alignment {
            set.set_temperature(self.annealing.at(share));
        }
    }

    fn penalty(&self) -> Option<Tensor> {
        match &self.alignment {
            Alignment::Rotated(set) => Some(set.penalty()? * self.penalty_weight),
            Alignment::Neurons | Alignment::Fixed(_) => None,
        }
    }

    fn reach(&self, row: &Row) -> Reach {
        let swaps = || self.swaps.iter().filter_map(|swap| Some((swap, swap.token(row)?)));
        let first = swaps().map(|(_, token)| token).min().unwrap_or(row.input_ids.len());
        Reach::of_sites(swaps().map(|(swap, _)| swap.place.site), first)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        match &self.alignment {
            Alignment::Rotated(set) => set.state(),
            Alignment::Neurons | Alignment::Fixed(_) => BTreeMap::new(),
        }
    }

    fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        if let Alignment::Rotated(set) = &mut self.alignment {
            set.load_state(state)?;
        }
        Ok(())
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        let rotated = match &self.alignment {
            Alignment::Rotated(set) => set.interchanges(GateKind::Hard),
            Alignment::Neurons | Alignment::Fixed(_) => Vec::new(),
        };
        let fixed = match &self.alignment {
            Alignment::Fixed(fixed) => &fixed[..],
            Alignment::Rotated(_) | Alignment::Neurons => &rotated,
        };
        for (i, interchange) in fixed.iter().enumerate() {
            let rotation = interchange.columns().detach().contiguous();
            tensors.push((format!("{i}.rotation"), rotation)); // Rᵀ [d, r]
            tensors.extend(interchange.gate().map(|m| (format!("{i}.gate"), m.shallow_clone()))); // [r]
        }
        save_safetensors(&dir.join(Self::FILE_NAME), &tensors, None)
    }
}
