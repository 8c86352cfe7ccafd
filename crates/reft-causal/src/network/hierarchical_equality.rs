use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reft_models::Row;
use reft_train::{Example, IGNORE_INDEX, seed_of};
use tch::{Device, Tensor};

use crate::{CausalModel, Counterfactual, Result, SourceToken, Variable, refuse};

/// The textbook task `(w = x) = (y = z)` on four objects (Geiger et al. 2023, arXiv:2303.02536): its causal model, its inputs, and
/// counterfactuals whose answers are known.
///
/// An object is a random vector of `object_size` numbers in `[−1, 1)`; every input has new objects. Inputs become rows of a table, for
/// [`FeedForward`](crate::FeedForward), and a row of data is the token that names its input.
#[derive(Debug)]
pub struct HierarchicalEquality {
    causal_model: CausalModel<u64>,
    /// `w = x`.
    pub left: Variable,
    /// `y = z`.
    pub right: Variable,
    /// `(w = x) = (y = z)`, 1 or 0: the class.
    pub output: Variable,
    object_size: usize,
    seed: u64,
    objects: u64,
    table: Vec<f32>,
}

impl HierarchicalEquality {
    /// Number of answers: no and yes.
    pub const CLASSES: i64 = 2;

    /// The task with objects of a size, drawn from a seed.
    ///
    /// # Errors
    /// [`Error::OptionValue`](crate::Error::OptionValue) if `object_size` is 0.
    pub fn new(object_size: usize, seed: u64) -> Result<Self> {
        if object_size == 0 {
            return refuse("object_size", "0", "a number of at least 1");
        }
        let mut model = CausalModel::new();
        let [w, x, y, z] = ["w", "x", "y", "z"].map(|name| model.input(name));
        let equal = |v: &[u64]| u64::from(v[0] == v[1]);
        let left = model.function("w = x", &[w, x], equal)?;
        let right = model.function("y = z", &[y, z], equal)?;
        let output = model.function("(w = x) = (y = z)", &[left, right], equal)?;
        let (objects, table) = (0, Vec::new());
        Ok(Self { causal_model: model, left, right, output, object_size, seed, objects, table })
    }

    /// The causal model; its values are objects, and 0 or 1.
    pub fn causal_model(&self) -> &CausalModel<u64> {
        &self.causal_model
    }

    /// The inputs so far, `[n, 4·object_size]`.
    pub fn inputs(&self) -> Tensor {
        let width = 4 * self.object_size as i64;
        Tensor::from_slice(&self.table).view([-1, width]).to_device(Device::Cpu)
    }

    /// `n` new inputs with their answers. Each pair of objects is equal half of the time.
    ///
    /// # Errors
    /// Errors of [`CausalModel::run`], which this task's own model does not cause.
    pub fn examples(&mut self, n: usize, seed: u64) -> Result<Vec<Example>> {
        let mut rng = StdRng::seed_from_u64(seed_of(&[self.seed, seed]));
        let mut examples = Vec::with_capacity(n);
        for i in 0..n {
            let objects = draw(&mut rng, &mut self.objects);
            let class = self.causal_model.run(&objects)?[self.output];
            let row = self.row(&objects);
            examples.push(example(i, row, class));
        }
        Ok(examples)
    }

    /// `n` new counterfactuals, which take turns in the variables that are swapped.
    ///
    /// # Errors
    /// [`Error::UnknownVariable`](crate::Error::UnknownVariable) if `swapped` is empty.
    pub fn counterfactuals(
        &mut self,
        n: usize,
        swapped: &[&[Variable]],
        seed: u64,
    ) -> Result<Vec<Counterfactual<u64>>> {
        let mut objects = self.objects;
        let sample = |rng: &mut StdRng| draw(rng, &mut objects);
        let drawn = self.causal_model.draw(n, self.output, swapped, seed, sample)?;
        self.objects = objects;
        Ok(drawn)
    }

    /// The base of a counterfactual as a row of data, with the answer that the causal model expects.
    pub fn base(&mut self, number: usize, counterfactual: &Counterfactual<u64>) -> Example {
        let row = self.row(&counterfactual.base);
        example(number, row, counterfactual.expected)
    }

    /// The source of a variable, if the counterfactual swaps it.
    pub fn source(
        &mut self,
        counterfactual: &Counterfactual<u64>,
        variable: Variable,
    ) -> Option<SourceToken> {
        let (_, objects) =
            counterfactual.sources.iter().find(|(swapped, _)| *swapped == variable)?;
        Some(SourceToken { row: Row::prompt(vec![self.row(objects)]), token: 0 })
    }

    /// Adds an input to the table and returns its token.
    fn row(&mut self, objects: &[u64]) -> i64 {
        let width = 4 * self.object_size;
        let row = self.table.len() / width;
        for &object in objects {
            let mut rng = StdRng::seed_from_u64(seed_of(&[self.seed, u64::MAX, object]));
            self.table.extend((0..self.object_size).map(|_| rng.random_range(-1.0f32..1.0)));
        }
        row as i64
    }
}

/// Draws four objects; each pair is two new objects, or one new object twice.
fn draw(rng: &mut StdRng, objects: &mut u64) -> Vec<u64> {
    let mut new = || {
        *objects += 1;
        *objects
    };
    let mut pair = || {
        let first = new();
        [first, if rng.random_bool(0.5) { first } else { new() }]
    };
    [pair(), pair()].concat()
}

fn example(number: usize, row: i64, class: u64) -> Example {
    let class = class as i64;
    let row = Row { input_ids: vec![row, class], prompt_length: 1, ..Row::default() };
    Example::of(number.to_string(), row, vec![IGNORE_INDEX, class])
}
