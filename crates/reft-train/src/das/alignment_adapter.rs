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
}

/// The swaps of one variable, one entry for each counterfactual.
#[derive(Debug)]
pub struct VariableSwap {
    /// Where the variable is thought to be.
    pub place: Place,
    /// Which of the alignments of an [`AlignmentSet`] it uses. Variables that share one should have coordinates of their own.
    pub alignment: usize,
    /// Its coordinates in the rotation, or its neurons.
    pub coordinates: Range<i64>,
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
}

impl AlignmentAdapter {
    /// Name of the tensors' file.
    pub const FILE_NAME: &str = "alignment.safetensors";

    /// An adapter of swaps, which are made in their order.
    ///
    /// # Errors
    /// [`Error::Adapter`] if the swaps are not of one number of counterfactuals, or do not fit the alignments.
    pub fn new(alignment: Alignment, swaps: Vec<VariableSwap>) -> Result<Self> {
        let counterfactuals = swaps.first().map_or(0, |swap| swap.tokens.len());
        for (i, swap) in swaps.iter().enumerate() {
            let refuse =
                |reason: String| Err(Error::Adapter { reason: format!("swap {i}: {reason}") });
            let (tokens, sources) = (swap.tokens.len(), swap.sources.size());
            let &[n, d] = &sources[..] else {
                return refuse(format!("sources have shape {sources:?}, expected [n, d]"));
            };
            if tokens != counterfactuals || n != tokens as i64 {
                return refuse(format!(
                    "{tokens} tokens and {n} sources for {counterfactuals} counterfactuals; give one each"
                ));
            }
            let available = match &alignment {
                Alignment::Neurons => d,
                Alignment::Rotated(set) if set.hidden_size() != d => {
                    return refuse(format!(
                        "hidden states have size {d}, the rotations are of size {}",
                        set.hidden_size()
                    ));
                }
                Alignment::Rotated(set) if swap.alignment as i64 >= set.len() => {
                    return refuse(format!(
                        "there is no alignment {}, there are {}",
                        swap.alignment,
                        set.len()
                    ));
                }
                Alignment::Rotated(set) => set.rank(),
            };
            let Range { start, end } = swap.coordinates;
            if start < 0 || start >= end || end > available {
                return refuse(format!("coordinates {start}..{end} are not within 0..{available}"));
            }
        }
        Ok(Self { alignment, swaps, annealing: Annealing::default(), penalty_weight: 1.0 })
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
            Alignment::Neurons => Vec::new(),
        };
        let of_swap = |swap: &VariableSwap| {
            let coordinates = swap.coordinates.clone();
            Ok(match &self.alignment {
                Alignment::Rotated(_) => rotated[swap.alignment].coordinates(coordinates)?,
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
        Ok(Self { place, alignment, coordinates, tokens, sources })
    }

    /// The rows of a batch that swap the variable: their tokens, and their counterfactuals.
    fn in_batch(&self, layout: &Layout) -> Result<(Vec<TokenAt>, Vec<i64>)> {
        let (mut tokens, mut sources) = (Vec::new(), Vec::new());
        for (row, Row { counterfactual, .. }) in layout.rows().iter().enumerate() {
            let Some(counterfactual) = *counterfactual else { continue };
            let Some(token) = self.tokens.get(counterfactual) else {
                let n = self.tokens.len();
                let reason =
                    format!("row {row} names counterfactual {counterfactual}, there are {n}");
                return Err(Error::Adapter { reason });
            };
            if let Some(token) = *token {
                tokens.push(TokenAt { row, token });
                sources.push(counterfactual as i64);
            }
        }
        Ok((tokens, sources))
    }
}

impl Adapter for AlignmentAdapter {
    fn method(&self) -> &str {
        match &self.alignment {
            Alignment::Rotated(set) => set.method().name(),
            Alignment::Neurons => "neurons",
        }
    }

    fn parameters(&self) -> Vec<Parameter> {
        match &self.alignment {
            Alignment::Rotated(set) => set.parameters(),
            Alignment::Neurons => Vec::new(),
        }
    }

    fn hooks<'a>(&'a self, layout: &'a Layout, mode: Mode) -> Result<Box<dyn Hooks + 'a>> {
        let gates = match mode {
            Mode::Train => GateKind::Soft,
            Mode::Eval => GateKind::Hard,
        };
        let mut swaps = Vec::new();
        for (swap, interchange) in self.swaps.iter().zip(self.interchanges(gates)?) {
            let (tokens, sources) = swap.in_batch(layout)?;
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

    fn begin_step(&mut self, share: f64) {
        if let Alignment::Rotated(set) = &mut self.alignment {
            set.set_temperature(self.annealing.at(share));
        }
    }

    fn penalty(&self) -> Option<Tensor> {
        match &self.alignment {
            Alignment::Rotated(set) => Some(set.penalty()? * self.penalty_weight),
            Alignment::Neurons => None,
        }
    }

    fn reach(&self, row: &Row) -> Reach {
        let token = |swap: &VariableSwap| *swap.tokens.get(row.counterfactual?)?;
        let first = self.swaps.iter().filter_map(token).min().unwrap_or(row.input_ids.len());
        Reach::of_sites(self.swaps.iter().map(|swap| swap.place.site), first)
    }

    fn state(&self) -> BTreeMap<String, Tensor> {
        match &self.alignment {
            Alignment::Rotated(set) => set.state(),
            Alignment::Neurons => BTreeMap::new(),
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
        if let Alignment::Rotated(set) = &self.alignment {
            for (i, interchange) in set.interchanges(GateKind::Hard).iter().enumerate() {
                let rotation = interchange.columns().detach().contiguous();
                tensors.push((format!("{i}.rotation"), rotation)); // Rᵀ [d, r]
                let gate =
                    interchange.gate().map(|gate| (format!("{i}.gate"), gate.shallow_clone()));
                tensors.extend(gate); // [r]
            }
        }
        save_safetensors(&dir.join(Self::FILE_NAME), &tensors, None)
    }
}
