//! The head that a run trains beside its adapter, and its labels.

use std::path::Path;

use anyhow::{Context, Result, bail};
use reft_methods::{has_head, read_head};
use reft_models::{Decoder, ModelDescription, TaskHead, TaskHeadForm, Weights};
use reft_train::{Labels, ObjectiveDeclaration, Record, Told, seed_of};

use crate::terminal::note;

/// A head to be trained.
pub struct TrainHead {
    /// The labels that it learns.
    pub labels: Labels,
    /// The head.
    pub head: TaskHead,
}

/// Checks that a model fits an objective: it predicts next tokens, or its head can be trained.
///
/// # Errors
/// If it does not fit.
pub fn check_model(objective: &ObjectiveDeclaration, model: &ModelDescription) -> Result<()> {
    let Some(told) = objective.told else {
        return Ok(model.check_predicts("reft train")?);
    };
    let family = &model.model_type;
    if model.task_head == TaskHeadForm::Other {
        bail!(
            "objective {objective} trains a head, and the head of {family} is not computed; take a decoder, BERT, RoBERTa or DistilBERT"
        );
    }
    if told == Told::Reward && !model.is_causal {
        bail!(
            "objective reward reads the end of a reply, and {family} is an encoder, whose head reads the first token; take a decoder"
        );
    }
    Ok(())
}

impl TrainHead {
    /// The head of a run: the head of the adapter to start from, else a new head with an output for each class of the rows. `None` if the
    /// objective trains no head.
    ///
    /// # Errors
    /// If labels cannot be learned, or a head does not fit the model or the objective.
    pub fn of<'r>(
        objective: &ObjectiveDeclaration,
        model: (&Path, &Decoder),
        start: Option<&Path>,
        rows: impl IntoIterator<Item = &'r Record>,
        seed: u64,
    ) -> Result<Option<Self>> {
        let (Some(told), (path, decoder)) = (objective.told, model) else {
            if let Some(dir) = start.filter(|dir| has_head(dir).is_ok_and(|has_one| has_one)) {
                note(format!(
                    "warning: {} has a head, which objective {objective} does not train",
                    dir.display()
                ));
            }
            return Ok(None);
        };
        let weights = Weights::open(path)?;
        if let Some(dir) = start
            && let Some(head) = read_head(dir, decoder, &weights)
                .with_context(|| format!("cannot start from adapter {}", dir.display()))?
        {
            return Ok(Some(Self { labels: Labels::of_head(told, &head), head }));
        }
        let labels = Labels::of_rows(told, rows)?;
        tch::manual_seed(seed_of(&[seed, HEAD]) as i64); // the start is independent of the adapter
        let head = TaskHead::new(decoder, &weights, labels.n_outputs(), labels.classes().to_vec())?;
        Ok(Some(Self { labels, head }))
    }
}

/// Stream of a seed's random numbers for the start of a head.
const HEAD: u64 = 17;
