//! Joins ReFT adapters: edits at one place are composed, and their composition is an edit again.

use std::collections::BTreeSet;
use std::path::Path;

use reft_core::{
    Activation, InterventionConfig, InterventionSet, InterventionTensors, Method as EditMethod,
    PositionRule, Positions, TokenGroup,
};
use reft_models::{Adapter, Error, Site};
use tch::{Device, Kind, Tensor};

use crate::{Joined, Joint, ReftAdapter, ReftConfig, Result};

/// `h + Dᵀ(E h + e)`: the form of every edit with a linear source, in f64.
struct AffineEdit {
    directions: Tensor, // D [r, d]
    weight: Tensor,     // E [r, d]
    bias: Tensor,       // e [r]
}

impl AffineEdit {
    /// The edit of an intervention's tensors, at a strength.
    fn of(method: EditMethod, tensors: &InterventionTensors, strength: f64) -> Self {
        let tensor = |name: &str| tensors.get(name).map(|tensor| tensor.to_kind(Kind::Double));
        let rotation = tensor("rotation").map(|columns| columns.tr()); // R [r, d]
        let directions = rotation.or_else(|| tensor("proj_layer.weight"));
        let directions = directions.expect("invariant: every edit has directions");
        let source = tensor("learned_source.weight");
        let mut weight = source.unwrap_or_else(|| directions.zeros_like());
        let mut bias = tensor("learned_source.bias").expect("invariant: every edit has a bias");
        if method.replaces() {
            weight -= &directions;
        }
        if let Some(c) = tensor("proj_layer.bias") {
            bias -= c;
        }
        Self { directions, weight: weight * strength, bias: bias * strength }
    }

    /// This edit, and then another on its output.
    fn then(self, next: Self) -> Self {
        // E₂(h + D₁ᵀ(E₁ h + e₁)) + e₂ = (E₂ + E₂D₁ᵀE₁) h + E₂D₁ᵀe₁ + e₂
        let seen = next.weight.matmul(&self.directions.tr()); // E₂ D₁ᵀ [r₂, r₁]
        let weight = &next.weight + seen.matmul(&self.weight);
        let bias = &next.bias + seen.mv(&self.bias);
        Self {
            directions: Tensor::cat(&[self.directions, next.directions], 0),
            weight: Tensor::cat(&[self.weight, weight], 0),
            bias: Tensor::cat(&[self.bias, bias], 0),
        }
    }

    fn rank(&self) -> i64 {
        self.bias.size()[0]
    }

    /// The tensors of an equivalent intervention, with a given method and rank.
    fn tensors(&self, method: EditMethod, rank: i64) -> InterventionTensors {
        let filled = |x: &Tensor| {
            let mut shape = x.size();
            shape[0] = (rank - shape[0]).max(0);
            Tensor::cat(&[x, &Tensor::zeros(shape, (Kind::Double, Device::Cpu))], 0)
        };
        let [directions, weight, bias] = [&self.directions, &self.weight, &self.bias].map(filled);
        let mut tensors: Vec<(&str, Tensor)> = Vec::new();
        let (directions, weight, bias) = if method.has_rotation() {
            // Dᵀ = Q U with orthonormal columns Q, so Dᵀ(E h + e) = Q (U E h + U e)
            let (q, upper) = Tensor::linalg_qr(&directions.tr(), "reduced");
            tensors.push(("rotation", q.shallow_clone()));
            (q.tr(), upper.matmul(&weight), upper.mv(&bias))
        } else {
            tensors.push(("proj_layer.weight", directions.shallow_clone()));
            (directions, weight, bias)
        };
        if method.has_affine_source() {
            let source = if method.replaces() { weight + directions } else { weight };
            tensors.push(("learned_source.weight", source));
        }
        tensors.push(("learned_source.bias", bias));
        let kept = |(name, tensor): (&str, Tensor)| {
            (name.to_owned(), tensor.to_kind(Kind::Float).contiguous())
        };
        tensors.into_iter().map(kept).collect()
    }
}

/// The edits of an adapter in the stack.
struct StackedEdits {
    config: ReftConfig,
    edits: Vec<((Site, TokenGroup), InterventionTensors)>,
    strength: f64,
}

impl StackedEdits {
    /// Its edit at a site, for first tokens, last tokens or both.
    fn at(&self, site: Site, group: TokenGroup) -> Option<AffineEdit> {
        let has_tokens = match group {
            TokenGroup::First => self.config.positions.first() > 0,
            TokenGroup::Last => self.config.positions.last() > 0,
            TokenGroup::FirstAndLast => true,
        };
        let is_of_it = |own: TokenGroup| own == group || own == TokenGroup::FirstAndLast;
        let mut edits = self.edits.iter().filter(|_| has_tokens);
        let (_, tensors) = edits.find(|((own, of), _)| *own == site && is_of_it(*of))?;
        Some(AffineEdit::of(self.config.method, tensors, self.strength))
    }
}

/// Joins ReFT adapters of one component with linear sources.
pub(crate) fn join(joint: &Joint, output: &Path) -> Result<Joined> {
    let refuse = |reason: String| -> Result<Joined> { Err(Error::Adapter { reason }.into()) };
    joint.takes_no_rank("ReFT")?;
    let mut stacked = Vec::with_capacity(joint.parts.len());
    for part in &joint.parts {
        let adapter = ReftAdapter::load_alone(&part.directory)?;
        let config = adapter.config().clone();
        let edits = config.sites().into_iter().zip(adapter.interventions().tensors()).collect();
        stacked.push(StackedEdits { config, edits, strength: part.strength });
    }
    let configs: Vec<&ReftConfig> = stacked.iter().map(|own| &own.config).collect();
    let first = configs[0];
    for own in &configs {
        if own.component != first.component {
            return refuse(format!(
                "the adapters edit {} and {}, and the file of one adapter has one component; use them as a stack",
                first.component, own.component
            ));
        }
        if own.position_rule != first.position_rule {
            return refuse(format!(
                "the adapters count positions by the rules {} and {}, and one adapter has one rule; use them as a stack",
                first.position_rule, own.position_rule
            ));
        }
        if let Some(bound) = own.max_edit_norm {
            return refuse(format!(
                "an adapter's edits are bounded (max_edit_norm {bound}), and bounded edits do not add up to one; use them as a stack"
            ));
        }
        if own.act_fn != Activation::Linear {
            return refuse(format!(
                "an adapter's learned source has the activation {}, and only linear edits add up to one; use them as a stack",
                own.act_fn
            ));
        }
    }
    let positions = common_positions(&configs)?;
    let same_positions = configs.iter().all(|own| own.positions == positions);
    let share_weights = same_positions && configs.iter().all(|own| own.share_weights);
    let layers: BTreeSet<usize> = configs.iter().flat_map(|own| own.layers.clone()).collect();

    let mut methods = configs.iter().map(|own| own.method);
    let is_same = methods.all(|method| method == first.method);
    // LoReFT expresses any linear edit of a subspace; two constants put into subspaces do not sum to a third
    let method = match first.method {
        EditMethod::Consreft => EditMethod::Loreft,
        method if is_same => method,
        _ => EditMethod::Loreft,
    };
    let mut config = ReftConfig {
        component: first.component,
        position_rule: first.position_rule,
        share_weights,
        ..ReftConfig::new(
            &InterventionConfig::new(method, 1),
            layers.into_iter().collect(),
            positions,
            first.base_model.clone(),
        )
    };
    let at_place = |(site, group)| -> Option<AffineEdit> {
        stacked.iter().filter_map(|own| own.at(site, group)).reduce(AffineEdit::then)
    };
    let edits: Vec<Option<AffineEdit>> = config.sites().into_iter().map(at_place).collect();
    let hidden_size = first.base_model.hidden_size;
    let rank = edits.iter().flatten().map(AffineEdit::rank).max().unwrap_or(1);
    config.low_rank_dimension = rank.min(hidden_size);
    let nothing = || {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Double, Device::Cpu));
        let [directions, weight] = [(); 2].map(|()| zeros(&[1, hidden_size]));
        AffineEdit { directions, weight, bias: zeros(&[1]) }
    };
    let tensors = |edit: Option<AffineEdit>| {
        edit.unwrap_or_else(nothing).tensors(method, config.low_rank_dimension)
    };
    let tensors: Vec<InterventionTensors> = edits.into_iter().map(tensors).collect();
    let set =
        InterventionSet::from_tensors(config.intervention(), hidden_size, &tensors, Device::Cpu)?;
    let parameters = tensors.iter().flat_map(|own| own.values()).map(|t| t.numel() as i64).sum();
    let mut adapter = ReftAdapter::from_interventions(config, set)?;
    if let Some(text) = &joint.text {
        adapter.keep_trained_text(text.clone());
    }
    adapter.save(output)?;
    let mut notes = Vec::new();
    if !same_positions && first.position_rule == PositionRule::Paper {
        notes.push(format!(
            "one adapter counts first and last tokens together: prompts of fewer than {} tokens are edited at other places than by the stack",
            positions.first() + positions.last()
        ));
    }
    Ok(Joined { method: method.to_string(), parameters, modules: Vec::new(), notes })
}

/// The common positions: the number of first and of last tokens that the adapters edit. Adapters may edit none at one end.
fn common_positions(configs: &[&ReftConfig]) -> Result<Positions> {
    type Count = fn(Positions) -> usize;
    let ends: [(Count, &str); 2] = [(Positions::first, "first"), (Positions::last, "last")];
    let mut counts = [0; 2];
    if configs.iter().all(|own| own.positions.is_all()) {
        return Ok(Positions::ALL);
    }
    if configs.iter().any(|own| own.positions.is_all()) {
        let reason = "one adapter edits all of a prompt's tokens and another one some of them; use them as a stack";
        return Err(Error::Adapter { reason: reason.into() }.into());
    }
    for ((count, end), common) in ends.into_iter().zip(&mut counts) {
        let found: BTreeSet<usize> =
            configs.iter().map(|own| count(own.positions)).filter(|count| *count > 0).collect();
        if found.len() > 1 {
            let found: Vec<String> = found.iter().map(usize::to_string).collect();
            let reason = format!(
                "the adapters edit {} {end} tokens, and one adapter has one edit for all of its {end} tokens; use them as a stack",
                found.join(" and ")
            );
            return Err(Error::Adapter { reason }.into());
        }
        *common = found.first().copied().unwrap_or(0);
    }
    Ok(Positions::new(counts[0], counts[1])?)
}
