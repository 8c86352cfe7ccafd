use tch::{Kind, Tensor};

/// The gate of boundless distributed alignment search (Wu et al. 2023, arXiv:2305.08809): a learned number of coordinates.
///
/// `mᵢ = σ(i/T) σ((β d − i)/T)` for `i = 0 … d−1`: coordinates before the boundary `β d` are open, those after it closed, the softer
/// the higher the temperature `T`.
///
/// # Shapes
/// `boundary` `β` and `temperature` `T`: `[]`, differentiable; result `[d]`.
pub fn boundary_gate(boundary: &Tensor, temperature: &Tensor, hidden_size: i64) -> Tensor {
    let i = Tensor::arange(hidden_size, (Kind::Float, boundary.device()));
    let before = (boundary * hidden_size as f64 - &i) / temperature;
    (i / temperature).sigmoid() * before.sigmoid()
}

/// A gate of its own for every coordinate: `mᵢ = σ(aᵢ/T)`.
///
/// # Shapes
/// `mask` `a`: `[d]`, `temperature` `T`: `[]`, both differentiable; result `[d]`.
pub fn sigmoid_gate(mask: &Tensor, temperature: &Tensor) -> Tensor {
    (mask / temperature).sigmoid()
}

/// How the temperature of a learned gate falls while it is trained, on a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Annealing {
    /// Temperature of the first step.
    pub from: f64,
    /// Temperature of the last step.
    pub to: f64,
}

impl Annealing {
    /// The temperature after a share of the steps, 0 to 1.
    pub fn at(self, share: f64) -> f64 {
        let share = share.clamp(0.0, 1.0);
        self.from * (1.0 - share) + self.to * share
    }
}

impl Default for Annealing {
    /// 50 to 0.1, as boundless search has it.
    fn default() -> Self {
        Self { from: 50.0, to: 0.1 }
    }
}
