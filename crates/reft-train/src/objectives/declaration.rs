use std::collections::BTreeMap;
use std::fmt::{self, Display};

use reft_models::{AdapterStack, Site, TaskHead};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tch::Tensor;

use crate::{
    Encoding, Error, Example, Labels, Metric, OBJECTIVES, Objective, ObjectiveOptions, ReadRows,
    Record, Result, Told, read_labelled, read_preferences, read_records,
};

/// The declaration of an objective. It says which rows a run reads, how they become examples, which options apply, and how the objective is
/// built from the run's adapters, head and reference.
pub struct ObjectiveDeclaration {
    /// Its name in files and on the command line.
    pub name: &'static str,
    /// The rows that it takes.
    pub rows: RowKind,
    /// The kind of the output that its head learns, if it trains one.
    pub told: Option<Told>,
    /// Whether it compares with a run that [`ReferenceRun`](crate::ReferenceRun) names.
    pub compares: bool,
    /// The names of its own [`ObjectiveOptions`]. Options that no objective names belong to all objectives.
    pub options: &'static [&'static str],
    /// The metrics of held-out examples beside the loss, the usual one first.
    pub metrics: &'static [Metric],
    /// Makes every example of some rows, or a row's error. The labels are its head's.
    pub each: EachExample,
    /// Checks all examples together, for faults that no single example shows.
    pub check: fn(&[Example]) -> Result<()>,
    /// Makes the objective; the error names a missing part.
    pub build: BuildObjective,
}

/// Makes every example of some rows, or a row's error.
pub type EachExample = fn(&[Record], &Encoding, Option<&Labels>) -> Vec<Result<Example>>;

/// Makes an objective of a run's parts.
pub type BuildObjective = for<'a> fn(&'a Ingredients<'a>) -> Result<Box<dyn Objective + 'a>>;

/// The parts of a run that an objective may be built of.
pub struct Ingredients<'a> {
    /// The options.
    pub options: &'a ObjectiveOptions,
    /// The adapters that are trained.
    pub stack: AdapterStack<'a>,
    /// The run to compare with: the plain model's, or an adapter's.
    pub reference: AdapterStack<'a>,
    /// The head that is trained.
    pub head: Option<&'a TaskHead>,
}

impl Ingredients<'_> {
    /// The directions that are trained, which an objective reads or adds by itself.
    ///
    /// # Errors
    /// [`reft_core::Error::OptionValue`] unless there is one adapter, and it adds directions to hidden states.
    pub(crate) fn directions(&self, objective: &str) -> Result<BTreeMap<Site, Tensor>> {
        let found = match self.stack.entries() {
            [one] => one.adapter.directions(),
            _ => None,
        };
        found.ok_or_else(|| {
            let found = format!("{}, and {objective} trains directions", self.stack.method());
            let expected = "steering with edit add";
            Error::Core(reft_core::Error::OptionValue { option: "method", found, expected })
        })
    }
}

/// The rows that an objective takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Prompts with replies, conversations, or texts: rows with next tokens.
    Replies,
    /// A prompt with two replies, of which one was chosen.
    Pairs,
    /// Texts with a label, taken as they stand.
    Labelled,
}

impl RowKind {
    /// The function that reads such rows.
    pub fn reader(self) -> ReadRows {
        match self {
            Self::Replies => read_records,
            Self::Pairs => read_preferences,
            Self::Labelled => read_labelled,
        }
    }
}

impl ObjectiveDeclaration {
    /// The objective of a name.
    ///
    /// # Errors
    /// [`reft_core::Error::UnknownName`], which lists the objectives.
    pub fn of(name: &str) -> Result<&'static Self> {
        let found = OBJECTIVES.iter().find(|objective| objective.name == name);
        found.copied().ok_or_else(|| {
            let accepted: Vec<&str> = OBJECTIVES.iter().map(|objective| objective.name).collect();
            let (what, found) = ("objective", name.to_owned());
            let accepted = accepted.join(", ");
            Error::Core(reft_core::Error::UnknownName { what, found, accepted })
        })
    }

    /// The examples of rows. With a head, `labels` are the head's.
    ///
    /// # Errors
    /// The error of the first row that cannot be used, with its id.
    pub fn examples(
        &self,
        records: &[Record],
        encoding: &Encoding,
        labels: Option<&Labels>,
    ) -> Result<Vec<Example>> {
        (self.each)(records, encoding, labels).into_iter().collect()
    }

    /// [`Self::examples`] without examples whose labels are all cut off, and the number of these.
    ///
    /// # Errors
    /// As [`Self::examples`].
    pub fn fitting(
        &self,
        records: &[Record],
        encoding: &Encoding,
        labels: Option<&Labels>,
    ) -> Result<(Vec<Example>, usize)> {
        let (mut examples, mut left_out) = (Vec::with_capacity(records.len()), 0);
        for example in (self.each)(records, encoding, labels) {
            match example {
                Ok(example) => examples.push(example),
                Err(Error::NoTarget { .. }) => left_out += 1,
                Err(other) => return Err(other),
            }
        }
        Ok((examples, left_out))
    }

    /// Whether it trains one of two replies to be likelier.
    pub fn prefers(&self) -> bool {
        self.rows == RowKind::Pairs && self.told.is_none()
    }
}

impl fmt::Debug for ObjectiveDeclaration {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Display for ObjectiveDeclaration {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for ObjectiveDeclaration {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for ObjectiveDeclaration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

impl<'de> Deserialize<'de> for &'static ObjectiveDeclaration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        ObjectiveDeclaration::of(&name).map_err(serde::de::Error::custom)
    }
}
