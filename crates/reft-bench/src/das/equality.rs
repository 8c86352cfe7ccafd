use std::sync::atomic::AtomicBool;

use reft_models::{Component, FeedForward, Place, Site};
use reft_train::das::{HierarchicalEquality, NetworkWeights, Variable};
use reft_train::{
    Dataset, Example, Model, Outcome, ScheduleKind, Shuffle, Silent, TrainConfig, Trainer,
};
use serde::Deserialize;

use crate::das::options::DasOptions;
use crate::das::pairs::Pairs;
use crate::das::place::Part;
use crate::das::position::PositionName;
use crate::das::recipe::SearchDefaults;
use crate::das::search::{About, DasSearch};
use crate::das::searched::Searched;
use crate::error::{Error, Result};

/// Hierarchical equality, `(w = x) = (y = z)` on random vectors, and the plain network that is trained on it and searched: a task with a
/// known answer. A TOML file says all of it, as `recipes/das/hierarchical-equality.toml` does.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EqualityTask {
    /// What it is called.
    pub name: String,
    /// What it asks, in a sentence.
    #[serde(default)]
    pub description: String,
    /// The variable that is looked for.
    pub variable: EqualityVariable,
    /// The network.
    pub network: NetworkConfig,
    /// What a search takes unless the command says otherwise.
    #[serde(default)]
    pub search: SearchDefaults,
}

/// A variable of the causal model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EqualityVariable {
    /// `w = x`.
    Left,
    /// `y = z`.
    Right,
}

/// A plain network and its training.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Numbers of an object.
    pub object_size: usize,
    /// Hidden layers.
    pub hidden_layers: usize,
    /// Neurons of each.
    pub width: i64,
    /// Examples that it is trained on.
    pub examples: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Examples of a step.
    pub batch_size: usize,
    /// Learning rate of the first step; it falls to 0 on a line.
    pub lr: f64,
    /// Seed of objects, start and order: the network is the same whatever the search's seed is.
    pub seed: u64,
}

/// The trained network of a task, with counterfactuals to search it with.
pub struct EqualityNetwork<'a> {
    task: &'a EqualityTask,
    network: FeedForward,
    pairs: Pairs,
}

impl EqualityTask {
    /// Trains the network, a function of its seed, and draws counterfactuals for a search, of the options'.
    ///
    /// # Errors
    /// What the training refuses; [`Error::Interrupted`] if `stop` is set; [`Error::OptionValue`] for positions of which an input, one
    /// token, has none.
    pub fn train(&self, options: &DasOptions, stop: &AtomicBool) -> Result<EqualityNetwork<'_>> {
        let config = &self.network;
        for (option, number) in [
            ("hidden_layers", config.hidden_layers as i64),
            ("width", config.width),
            ("examples", config.examples as i64),
        ] {
            if number < 1 {
                let (found, expected) = (number.to_string(), "at least 1".to_owned());
                return Err(Error::OptionValue { option, found, expected });
            }
        }
        let mut task = HierarchicalEquality::new(config.object_size, config.seed)?;
        let examples = task.examples(config.examples, 1)?;
        let variable = match self.variable {
            EqualityVariable::Left => task.left,
            EqualityVariable::Right => task.right,
        };
        let pairs = draw(&mut task, variable, options)?;
        tch::manual_seed(config.seed as i64);
        let network = self.random(&task.inputs());
        self.train_network(&network, examples, stop)?;
        Ok(EqualityNetwork { task: self, network, pairs })
    }

    fn random(&self, inputs: &tch::Tensor) -> FeedForward {
        let NetworkConfig { hidden_layers, width, .. } = self.network;
        FeedForward::random(inputs, hidden_layers, width, HierarchicalEquality::CLASSES)
    }

    fn train_network(
        &self,
        network: &FeedForward,
        train: Vec<Example>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let dataset = Dataset { train, validation: Vec::new() };
        let config = TrainConfig {
            epochs: Some(self.network.epochs),
            batch_size: self.network.batch_size,
            lr: self.network.lr,
            schedule: ScheduleKind::Linear,
            shuffle: Shuffle::Plain,
            seed: self.network.seed,
            ..TrainConfig::default()
        };
        let mut weights = NetworkWeights::of(network);
        let outcome =
            Trainer::new(network, &mut weights, &dataset, config)?.run(&mut Silent, stop)?;
        weights.freeze();
        match outcome {
            Outcome::Finished(_) => Ok(()),
            Outcome::Interrupted(_) => Err(Error::Interrupted),
        }
    }
}

fn draw(
    task: &mut HierarchicalEquality,
    variable: Variable,
    options: &DasOptions,
) -> Result<Pairs> {
    for name in &options.positions {
        let position = name.parse::<PositionName>();
        if !position.is_ok_and(|position| position.token(1, &[]) == Some(0)) {
            let expected = "last, as an input of the network is one token".to_owned();
            return Err(Error::OptionValue { option: "position", found: name.clone(), expected });
        }
    }
    let n = options.train_pairs + options.test_pairs;
    let drawn = task.counterfactuals(n, &[&[variable]], options.seed)?;
    let mut pairs = Pairs {
        bases: Vec::with_capacity(n),
        own_answers: Vec::with_capacity(n),
        sources: Vec::with_capacity(n),
        values: Vec::with_capacity(n),
        tokens: vec![(vec![0; n], vec![0; n]); options.positions.len()],
        answers: (0..HierarchicalEquality::CLASSES).collect(),
        example: String::new(),
    };
    for (i, counterfactual) in drawn.iter().enumerate() {
        let value =
            |inputs: &[u64]| -> Result<u64> { Ok(task.causal_model().run(inputs)?[variable]) };
        let (own, of_source) = (value(&counterfactual.base)?, value(&counterfactual.sources[0].1)?);
        if i == 0 {
            pairs.example = format!(
                "a base whose {} is {own}, and a source whose {0} is {of_source}: the answer is {}, and {} with the source's",
                task.causal_model().name(variable),
                counterfactual.unchanged,
                counterfactual.expected
            );
        }
        pairs.values.push(of_source.to_string());
        pairs.own_answers.push(counterfactual.unchanged as i64);
        let source = task.source(counterfactual, variable);
        pairs.sources.push(source.expect("invariant: every counterfactual swaps the variable").row);
        pairs.bases.push(task.base(i, counterfactual));
    }
    Ok(pairs)
}

impl<'a> DasSearch<'a> {
    /// A search of the network of a task.
    ///
    /// # Errors
    /// [`Error::OptionValue`] for an option that cannot be.
    pub fn of_network(
        options: DasOptions,
        network: &'a EqualityNetwork,
        command: String,
    ) -> Result<Self> {
        let EqualityTask { name, description, variable, .. } = network.task;
        let about = About {
            name: name.clone(),
            description: description.clone(),
            variable: match variable {
                EqualityVariable::Left => "w = x".to_owned(),
                EqualityVariable::Right => "y = z".to_owned(),
            },
            identity: format!("{:?}", network.task),
        };
        let draw = || Ok(network.pairs.clone());
        let names = (network.model().describe(), command);
        Self::with_pairs(options, about, network, draw, names)
    }
}

impl Searched for EqualityNetwork<'_> {
    fn model(&self) -> &dyn Model {
        &self.network
    }

    fn layers(&self) -> usize {
        self.task.network.hidden_layers
    }

    fn place(&self, layer: usize, part: Part) -> Result<(Place, i64)> {
        let NetworkConfig { object_size, width, .. } = self.task.network;
        let size = match part {
            Part::Component(Component::BlockOutput) => width,
            Part::Component(Component::BlockInput) if layer == 0 => 4 * object_size as i64,
            Part::Component(Component::BlockInput) => width,
            Part::Component(_) | Part::Head(_) => {
                let expected = "block_input or block_output: a plain network has no other";
                let (option, found) = ("site", part.to_string());
                return Err(Error::OptionValue { option, found, expected: expected.to_owned() });
            }
        };
        let component = match part {
            Part::Component(component) => component,
            Part::Head(_) => unreachable!("invariant: refused above"),
        };
        Ok((Place::whole(Site { layer, component }), size))
    }

    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>> {
        tch::manual_seed(self.task.network.seed.wrapping_add(1).wrapping_add(seed) as i64); // not where the network began
        let network = self.task.random(self.network.inputs());
        Ok(Box::new(EqualityNetwork { task: self.task, network, pairs: self.pairs.clone() }))
    }
}
