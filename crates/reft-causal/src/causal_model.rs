use std::fmt;

use rand::SeedableRng;
use rand::rngs::StdRng;
use reft_train::seed_of;

use crate::{Error, Result};

/// A causal model: variables that are given, and variables that are functions of others.
///
/// A function names its parents by their handles, so they exist before it and the model has no cycle.
///
/// ```
/// use reft_causal::CausalModel;
///
/// # fn main() -> reft_causal::Result<()> {
/// // (a + b) · c
/// let mut model = CausalModel::<i64>::new();
/// let (a, b, c) = (model.input("a"), model.input("b"), model.input("c"));
/// let sum = model.function("a + b", &[a, b], |v| v[0] + v[1])?;
/// let product = model.function("(a + b) · c", &[sum, c], |v| v[0] * v[1])?;
/// assert_eq!(model.run(&[1, 2, 10])?[product], 30);
/// // the same with the sum as it is for a = 3, b = 4
/// let counterfactual = model.counterfactual(vec![1, 2, 10], vec![(sum, vec![3, 4, 0])], product)?;
/// assert_eq!(counterfactual.expected, 70);
/// # Ok(())
/// # }
/// ```
pub struct CausalModel<V> {
    variables: Vec<(String, Mechanism<V>)>,
    inputs: usize,
}

/// How a variable gets its value.
enum Mechanism<V> {
    Input(usize),
    Function { parents: Vec<Variable>, function: Function<V> },
}

type Function<V> = Box<dyn Fn(&[V]) -> V + Send + Sync>;

/// A variable of a [`CausalModel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Variable(usize);

/// The value of every variable in one run of a [`CausalModel`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<V>(Vec<V>);

impl<V> std::ops::Index<Variable> for Setting<V> {
    type Output = V;

    fn index(&self, variable: Variable) -> &V {
        &self.0[variable.0]
    }
}

/// A base input, the source inputs of the swapped variables, and the causal model's answer with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterfactual<V> {
    /// The base's inputs.
    pub base: Vec<V>,
    /// The swapped variables, each with the inputs of the source that it takes its value from.
    pub sources: Vec<(Variable, Vec<V>)>,
    /// The output with the variables swapped.
    pub expected: V,
    /// The output of the base alone.
    pub unchanged: V,
}

impl<V> Default for CausalModel<V> {
    fn default() -> Self {
        Self { variables: Vec::new(), inputs: 0 }
    }
}

impl<V> fmt::Debug for CausalModel<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.iter().map(|(name, _)| name)).finish()
    }
}

impl<V: Clone> CausalModel<V> {
    /// A model without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// A variable that is given; inputs are given in the order they are made in.
    pub fn input(&mut self, name: &str) -> Variable {
        let mechanism = Mechanism::Input(self.inputs);
        self.inputs += 1;
        self.add(name, mechanism)
    }

    /// A variable that is a function of others, in their order.
    ///
    /// # Errors
    /// [`Error::UnknownVariable`] if a parent is a variable of another model.
    pub fn function(
        &mut self,
        name: &str,
        parents: &[Variable],
        function: impl Fn(&[V]) -> V + Send + Sync + 'static,
    ) -> Result<Variable> {
        self.check(parents.iter().copied())?;
        let (parents, function) = (parents.to_vec(), Box::new(function));
        Ok(self.add(name, Mechanism::Function { parents, function }))
    }

    /// The variable's name.
    pub fn name(&self, variable: Variable) -> &str {
        &self.variables[variable.0].0
    }

    /// Every variable's value for these inputs.
    ///
    /// # Errors
    /// [`Error::InputCount`].
    pub fn run(&self, inputs: &[V]) -> Result<Setting<V>> {
        self.run_with(inputs, &[])
    }

    /// Computes the model's answer when variables take their values from source inputs.
    ///
    /// # Errors
    /// [`Error::InputCount`]; [`Error::UnknownVariable`].
    pub fn counterfactual(
        &self,
        base: Vec<V>,
        sources: Vec<(Variable, Vec<V>)>,
        output: Variable,
    ) -> Result<Counterfactual<V>> {
        self.check(sources.iter().map(|(variable, _)| *variable).chain([output]))?;
        let value = |(variable, inputs): &(Variable, Vec<V>)| {
            Ok((*variable, self.run(inputs)?[*variable].clone()))
        };
        let values = sources.iter().map(value).collect::<Result<Vec<_>>>()?;
        let expected = self.run_with(&base, &values)?[output].clone();
        let unchanged = self.run(&base)?[output].clone();
        Ok(Counterfactual { base, sources, expected, unchanged })
    }

    /// `n` counterfactuals, determined by the seed. They swap the lists of variables in `swapped` in turn. `sample` draws the inputs of the
    /// base and of each source.
    ///
    /// # Errors
    /// As [`Self::counterfactual`]; [`Error::UnknownVariable`] also if `swapped` is empty.
    pub fn draw(
        &self,
        n: usize,
        output: Variable,
        swapped: &[&[Variable]],
        seed: u64,
        mut sample: impl FnMut(&mut StdRng) -> Vec<V>,
    ) -> Result<Vec<Counterfactual<V>>> {
        let mut rng = StdRng::seed_from_u64(seed_of(&[seed]));
        let mut turns = swapped.iter().cycle();
        let mut drawn = Vec::with_capacity(n);
        for _ in 0..n {
            let unknown = || Error::UnknownVariable { index: 0, variables: self.variables.len() };
            let variables = turns.next().ok_or_else(unknown)?;
            let base = sample(&mut rng);
            let sources = variables.iter().map(|&variable| (variable, sample(&mut rng)));
            drawn.push(self.counterfactual(base, sources.collect(), output)?);
        }
        Ok(drawn)
    }

    fn run_with(&self, inputs: &[V], fixed: &[(Variable, V)]) -> Result<Setting<V>> {
        if inputs.len() != self.inputs {
            return Err(Error::InputCount { expected: self.inputs, found: inputs.len() });
        }
        let mut values: Vec<V> = Vec::with_capacity(self.variables.len());
        for (i, (_, mechanism)) in self.variables.iter().enumerate() {
            let fixed = fixed.iter().find(|(variable, _)| variable.0 == i);
            values.push(match (fixed, mechanism) {
                (Some((_, value)), _) => value.clone(),
                (None, Mechanism::Input(place)) => inputs[*place].clone(),
                (None, Mechanism::Function { parents, function }) => {
                    let of_parents: Vec<V> = parents.iter().map(|p| values[p.0].clone()).collect();
                    function(&of_parents)
                }
            });
        }
        Ok(Setting(values))
    }

    fn check(&self, variables: impl IntoIterator<Item = Variable>) -> Result<()> {
        let known = self.variables.len();
        match variables.into_iter().find(|variable| variable.0 >= known) {
            Some(Variable(index)) => Err(Error::UnknownVariable { index, variables: known }),
            None => Ok(()),
        }
    }

    fn add(&mut self, name: &str, mechanism: Mechanism<V>) -> Variable {
        self.variables.push((name.to_owned(), mechanism));
        Variable(self.variables.len() - 1)
    }
}
