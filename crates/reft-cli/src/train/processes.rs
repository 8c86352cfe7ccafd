use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use reft_distributed::{Place, ProcessGroup};
use reft_models::AdapterStack;
use reft_train::{Silent, Trainer};
use tch::{Kind, Tensor};
use toml::Table;

use crate::terminal::say_nothing;

/// Options that processes of one run may differ in: where a process computes and where it keeps what, not what.
const OWN: [&str; 9] = [
    "threads",
    "device",
    "tf32",
    "reuse_memory",
    "reuse_dir",
    "model",
    "data",
    "validation_data",
    "init_adapter",
];

/// The processes of a run, if a launcher has started several: `torchrun`, `srun` or `mpirun`.
pub struct Processes(Option<Place>);

impl Processes {
    /// What the launcher says. Of several processes only the first says anything, but for errors.
    ///
    /// # Errors
    /// If it says it by halves.
    pub fn find() -> Result<Self> {
        let found = Self(Place::from_environment()?);
        if !found.is_first() {
            say_nothing();
        }
        Ok(found)
    }

    /// Whether this process does what is done once.
    pub fn is_first(&self) -> bool {
        self.0.as_ref().is_none_or(|place| place.share.is_first())
    }

    /// Meets the others, if there are any, once it is clear that all do the same run: options, data and model, and what is trained begins as
    /// the first process has it.
    ///
    /// # Errors
    /// If a process does not come, or differs.
    pub fn join(
        &self,
        options: &Table,
        contents: [(&'static str, String); 2],
        adapters: &AdapterStack,
    ) -> Result<Option<ProcessGroup>> {
        let Some(place) = &self.0 else { return Ok(None) };
        let options = options.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        let named: BTreeMap<&str, String> =
            options.map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let facts: Vec<(&str, String)> = named.into_iter().chain(contents).collect();
        let group = ProcessGroup::join(place, &facts)?;
        // full fine-tuning begins with the model's weights, in their own kind, whose digest was compared
        let trained = adapters.parameters().into_iter().map(|parameter| parameter.tensor);
        let mut trained: Vec<Tensor> =
            trained.filter(|tensor| tensor.kind() == Kind::Float).collect();
        group.broadcast(&mut trained)?;
        Ok(Some(group))
    }
}

/// The run of a process that is not the first: it reads what an earlier run has written, and writes nothing. The first one takes no step before
/// all have read.
///
/// # Errors
/// What the trainer refuses, and the loss of a process.
pub fn follow(trainer: Trainer, resumed: Option<&Path>, stop: &AtomicBool) -> Result<()> {
    let mut trainer = match resumed {
        Some(directory) => trainer.resuming_in(directory)?,
        None => trainer,
    };
    trainer.run(&mut Silent, stop)?;
    Ok(())
}
