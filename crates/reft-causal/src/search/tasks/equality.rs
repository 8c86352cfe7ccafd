use std::sync::atomic::AtomicBool;

use reft_methods::{MethodOptions, resolve};
use reft_models::{AdapterStack, Component, Model, Place};
use reft_train::{Example, Learner, NextToken, ScheduleKind, Shuffle, TrainConfig};
use serde::Deserialize;

use crate::search::group::train_on;
use crate::{
    BaseRuns, ComponentOrHead, DasOptions, DasReport, DasSearch, FeedForward, HierarchicalEquality,
    Pairs, PositionName, Result, SearchDefaults, Searched, Variable, refuse,
};

/// Hierarchical equality, `(w = x) = (y = z)` on random vectors, and the plain network that is trained on it and searched: a task with a
/// known answer. A TOML file describes all of it, for instance `recipes/das/hierarchical-equality.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EqualityTask {
    /// Its name.
    pub name: String,
    /// Its question, in a sentence.
    #[serde(default)]
    pub description: String,
    /// The variable that is looked for.
    pub variable: EqualityVariable,
    /// The network.
    pub network: NetworkConfig,
    /// The defaults of its search.
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
    /// Seed of objects, start and order: the network does not depend on the search's seed.
    pub seed: u64,
}

/// The trained network of a task, with counterfactuals to search it with.
pub struct EqualityNetwork<'a> {
    task: &'a EqualityTask,
    network: FeedForward,
    pairs: Pairs,
}

impl EqualityTask {
    /// Trains the network from its own seed, and draws the counterfactuals of a search from the seed of the options.
    ///
    /// # Errors
    /// Errors of the training; [`Error::Interrupted`](crate::Error::Interrupted) if `stop` is set;
    /// [`Error::OptionValue`](crate::Error::OptionValue) for positions that an input of one token does not have.
    pub fn train(&self, options: &DasOptions, stop: &AtomicBool) -> Result<EqualityNetwork<'_>> {
        let config = &self.network;
        for (option, number) in [
            ("hidden_layers", config.hidden_layers as i64),
            ("width", config.width),
            ("examples", config.examples as i64),
        ] {
            if number < 1 {
                return refuse(option, number.to_string(), "at least 1");
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
        let config = TrainConfig {
            epochs: Some(self.network.epochs),
            batch_size: self.network.batch_size,
            lr: self.network.lr,
            schedule: ScheduleKind::Linear,
            shuffle: Shuffle::Plain,
            seed: self.network.seed,
            ..TrainConfig::default()
        };
        let full = resolve("full", &MethodOptions::default(), network.description())?;
        let weights = full.build(network, &self.name)?;
        let stack = AdapterStack::of_boxed(&weights)?;
        let trained = train_on(&Learner::new(network, &stack, &NextToken), train, config, stop);
        for weight in weights[0].parameters() {
            let _frozen = weight.tensor.set_requires_grad(false);
        }
        trained
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
            return refuse("position", name, "last, as an input of the network is one token");
        }
    }
    let n = options.train_pairs + options.test_pairs;
    let drawn = task.counterfactuals(n, &[&[variable]], options.seed)?;
    let mut pairs = Pairs {
        tokens: vec![(vec![0; n], vec![0; n]); options.positions.len()],
        answers: (0..HierarchicalEquality::CLASSES).collect(),
        ..Pairs::default()
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
    /// [`Error::OptionValue`](crate::Error::OptionValue) for an option with an invalid value.
    pub fn of_network(
        options: DasOptions,
        network: &'a EqualityNetwork,
        command: String,
    ) -> Result<Self> {
        let EqualityTask { name, description, variable, .. } = network.task;
        let variable = match variable {
            EqualityVariable::Left => "w = x",
            EqualityVariable::Right => "y = z",
        };
        let names = (network.network.describe(), command);
        let report = DasReport::empty(options, [name, description, variable], names);
        let draw = || Ok(network.pairs.clone());
        Self::with_pairs(report, format!("{:?}", network.task), network, draw)
    }
}

impl Searched for EqualityNetwork<'_> {
    fn model(&self) -> &dyn Model {
        &self.network
    }

    fn base_runs(&self) -> BaseRuns<'_> {
        BaseRuns::uncached(&self.network)
    }

    fn place(&self, layer: usize, of_layer: ComponentOrHead) -> Result<(Place, i64)> {
        use Component::{BlockInput, BlockOutput};
        let size = match of_layer {
            ComponentOrHead::Component(BlockInput) if layer == 0 => self.network.inputs().size()[1],
            ComponentOrHead::Component(BlockInput | BlockOutput) => self.task.network.width,
            ComponentOrHead::Component(_) | ComponentOrHead::Head(_) => {
                let expected = "block_input or block_output: a plain network has no other";
                return refuse("site", of_layer.to_string(), expected);
            }
        };
        Ok((of_layer.place(layer, 0), size))
    }

    fn untrained(&self, seed: u64) -> Result<Box<dyn Searched + '_>> {
        tch::manual_seed(self.task.network.seed.wrapping_add(1).wrapping_add(seed) as i64); // not the start of the trained network
        let network = self.task.random(self.network.inputs());
        Ok(Box::new(EqualityNetwork { task: self.task, network, pairs: self.pairs.clone() }))
    }
}
