use std::path::{Path, PathBuf};

use reft_methods::{MethodOptions, resolve};
use reft_models::{Key, ModelDescription, line_of, read_json};
use reft_train::Metric;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compare::config::{CompareConfig, ConfigFile, slug};
use crate::compare::plan::version_in;
use crate::fields::with_field;
use crate::{Comparison, Error, Result};

/// A grid of two values: the comparison is run once at each of its points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepConfig {
    /// The columns of the report's heat map.
    pub x: SweepAxis,
    /// Its rows.
    pub y: SweepAxis,
}

/// One value that is varied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepAxis {
    /// The field to set: a section (`options` of every method, `task`, `train` or `data`), a point, and a field of it.
    pub key: String,
    /// Its label in the report; by default the field's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The values to set.
    pub values: Vec<Value>,
    /// The values with `--quick`; by default all `values`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quick: Option<Vec<Value>>,
}

/// A point of the grid, with the comparison that is run there.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepPoint {
    /// Where it is.
    pub plan: PointPlan,
    /// The comparison, in which nothing is varied.
    pub comparison: Comparison,
}

/// The whole description of a sweep: its `sweep.json`. Each point has its own `plan.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SweepPlan {
    /// Version of the files of a sweep and of the comparisons at its points.
    pub format_version: u32,
    /// The command that began it.
    pub command: String,
    /// The configuration in force.
    pub config: CompareConfig,
    /// The two values that are varied.
    pub sweep: SweepConfig,
    /// The metric of the scores.
    pub metric: Metric,
    /// The points, row by row.
    pub points: Vec<PointPlan>,
}

/// A point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PointPlan {
    /// Index of the column.
    pub x: usize,
    /// Index of the row.
    pub y: usize,
    /// Its name: `layer 5, tokens 8`.
    pub name: String,
    /// The directory of its comparison, below the sweep's.
    pub directory: PathBuf,
}

impl SweepPlan {
    /// Name of the file.
    pub const FILE_NAME: &str = "sweep.json";

    /// Reads the plan of a sweep.
    ///
    /// # Errors
    /// If there is no plan, or another program wrote the file.
    pub fn read(output: &Path) -> Result<Self> {
        let path = output.join(Self::FILE_NAME);
        version_in(&path)?;
        Ok(read_json(&path)?)
    }
}

const SECTIONS: [&str; 4] = ["options", "task", "train", "data"];

impl SweepAxis {
    /// The axis's label in the report.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.target().1)
    }

    /// The values' labels in the report: `5` for 5 and for `[5]`.
    pub fn labels(&self) -> Vec<String> {
        self.values.iter().map(label).collect()
    }

    /// Section and field.
    fn target(&self) -> (&str, &str) {
        self.key.split_once('.').unwrap_or(("", &self.key))
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let (section, field) = self.target();
        if !SECTIONS.contains(&section) || field.is_empty() {
            let sections = SECTIONS.join(", ");
            let key = &self.key;
            return Some((
                "key",
                format!("key is {key:?}, expected one of {sections}, a point and a field"),
            ));
        }
        for (name, values) in [("values", Some(&self.values)), ("quick", self.quick.as_ref())] {
            let names: Vec<String> =
                values.into_iter().flatten().map(|value| slug(&label(value))).collect();
            if values.is_some() && names.is_empty() {
                return Some((name, format!("no {name}; give at least one")));
            }
            let twice = names.iter().enumerate().find(|(i, value)| names[..*i].contains(value));
            if let Some((_, value)) = twice {
                return Some((name, format!("{value} is there twice")));
            }
        }
        None
    }

    /// Sets the value in a comparison and its tasks.
    fn set(&self, value: &Value, comparison: &mut Comparison) -> Result<(), String> {
        let (section, field) = self.target();
        let Comparison { config, task, train_task } = comparison;
        match section {
            "options" => {
                for entry in &mut config.method {
                    let options: MethodOptions = with_field(&entry.options, field, value)?;
                    entry.options = options;
                }
            }
            "task" => {
                for task in std::iter::once(task).chain(train_task) {
                    *task = task.with(field, value)?;
                }
            }
            "train" => config.train = with_field(&config.train, field, value)?,
            _ => config.data = with_field(&config.data, field, value)?,
        }
        config.check().map_err(|(_, reason)| reason)
    }
}

impl SweepConfig {
    /// The first invalid value: axis, field, and the reason.
    pub(super) fn fault(&self) -> Option<(&'static str, &'static str, String)> {
        for (name, axis) in [("x", &self.x), ("y", &self.y)] {
            if let Some((field, reason)) = axis.fault() {
                return Some((name, field, reason));
            }
        }
        let is_one = self.x.key == self.y.key;
        is_one.then(|| ("y", "key", format!("both axes set {}; vary two values", self.x.key)))
    }

    /// The small version.
    pub(super) fn quick(&mut self) {
        for axis in [&mut self.x, &mut self.y] {
            if let Some(quick) = axis.quick.take() {
                axis.values = quick;
            }
        }
    }
}

/// A value as a text for people; a list without its brackets.
fn label(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(label).collect::<Vec<_>>().join(";"),
        other => other.to_string(),
    }
}

impl ConfigFile {
    /// The points of the sweep in `config`: this file's configuration with the command line's changes. Empty without a sweep.
    ///
    /// # Errors
    /// [`reft_models::Error::Line`] for a value that is invalid for its field, or does not fit a method or the model.
    pub fn points(
        &self,
        comparison: &Comparison,
        model: &ModelDescription,
    ) -> Result<Vec<SweepPoint>> {
        let Some(sweep) = &comparison.config.sweep else { return Ok(Vec::new()) };
        let mut fixed = comparison.clone();
        fixed.config.sweep = None;
        let mut points = Vec::new();
        for (y, row) in sweep.y.values.iter().enumerate() {
            for (x, column) in sweep.x.values.iter().enumerate() {
                let mut comparison = fixed.clone();
                for (axis_name, axis, value) in [("y", &sweep.y, row), ("x", &sweep.x, column)] {
                    let values = [Key::Name("sweep"), Key::Name(axis_name), Key::Name("values")];
                    let wrong = |reason| {
                        let reason = format!("{} = {}: {reason}", axis.key, label(value));
                        Error::line(&self.path, line_of(&self.text, &values), reason)
                    };
                    axis.set(value, &mut comparison).map_err(wrong)?;
                    for entry in &comparison.config.method {
                        resolve(&entry.method, &entry.options, model)
                            .map_err(|error| wrong(format!("{}: {error}", entry.label())))?;
                    }
                }
                let (row, column) = (label(row), label(column));
                let name = format!("{} {row}, {} {column}", sweep.y.name(), sweep.x.name());
                let directory = PathBuf::from("points").join(slug(&name.replace(',', "")));
                comparison.config.name = format!("{}: {name}", fixed.config.name);
                points.push(SweepPoint { plan: PointPlan { x, y, name, directory }, comparison });
            }
        }
        Ok(points)
    }
}

#[cfg(test)]
mod tests {
    use reft_methods::LAYERS;
    use reft_models::DecoderConfig;

    use super::*;
    use crate::error::line_refused;
    use crate::tasks::task_config::TaskConfig;

    const TEXT: &str = r#"model = "m"
task = "memorise"

[data]
train = "text.txt"
test = ["text.txt"]

[sweep.x]
key = "task.length"
name = "tokens"
values = [8, 16]
quick = [4]

[sweep.y]
key = "options.layers"
values = [[0], [1, 3]]

[[method]]
method = "loreft"
lr = [1e-2]
"#;

    fn points(text: &str, is_quick: bool) -> Result<Vec<SweepPoint>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oracle/tiny_llama");
        let file = ConfigFile::parse(text.to_owned(), Path::new("c.toml"))?;
        let task = TaskConfig::parse("type = \"memorise\"\nprompt = \"go\"", Path::new("t.toml"))?;
        let config = if is_quick { file.config.clone().quick() } else { file.config.clone() };
        let comparison = Comparison { config, task, train_task: None };
        file.points(&comparison, &DecoderConfig::open(&path)?.describe())
    }

    #[test]
    fn every_point_is_a_comparison_with_its_two_values() -> Result<()> {
        let points = points(TEXT, false)?;
        let SweepPoint { plan, comparison } = &points[3];
        assert_eq!((points.len(), plan.x, plan.y), (4, 1, 1));
        assert_eq!(plan.name, "layers 1;3, tokens 16");
        assert_eq!(plan.directory, Path::new("points/layers-1-3-tokens-16"));
        let config = &comparison.config;
        assert_eq!(config.method[0].options.get::<Vec<usize>>(&LAYERS), Some(vec![1, 3]));
        assert_eq!((comparison.task.length, config.sweep.is_none()), (Some(16), true));
        assert_eq!(points[1].plan.name, "layers 0, tokens 16");
        Ok(())
    }

    #[test]
    fn quick_has_its_own_values() -> Result<()> {
        let points = points(TEXT, true)?;
        let lengths: Vec<_> = points.iter().map(|point| point.comparison.task.length).collect();
        assert_eq!(lengths, [Some(4), Some(4)]);
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_named_with_its_line() {
        let refused =
            |from: &str, to: &str| line_refused(points(&TEXT.replacen(from, to, 1), false));
        let cases = [
            ("\"task.length\"", "\"length\"", 9, "expected one of options, task, train, data"),
            ("\"task.length\"", "\"model.kind\"", 9, "expected one of options"),
            ("[8, 16]", "[]", 11, "no values"),
            ("[8, 16]", "[8, 16, 8]", 11, "8 is there twice"),
            ("[8, 16]", "[8, 0]", 11, "task.length = 0: length is 0"),
            ("[8, 16]", "[\"long\"]", 11, "task.length = long: invalid type"),
            ("task.length", "task.lenght", 11, "task.lenght = 8: unknown field `lenght`"),
            ("[[0], [1, 3]]", "[[0], [4]]", 16, "options.layers = 4: loreft: "),
            ("options.layers", "options.alpha", 16, "options.alpha = 0: "),
            ("options.layers", "task.length", 15, "both axes set task.length"),
            ("quick = [4]", "quik = [4]", 12, "unknown field `quik`"),
        ];
        for (from, to, line, expected) in cases {
            let (found, reason) = refused(from, to);
            assert!(found == line && reason.contains(expected), "{to}: line {found}: {reason}");
        }
    }
}
