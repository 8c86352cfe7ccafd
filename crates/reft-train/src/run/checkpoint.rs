use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use reft_models::{
    atomic_directory, io_error, is_partial, load_safetensors, plain_reason, save_safetensors,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Tensor;

use crate::{Error, LossScaler, Metric, Result, TrainConfig};

/// Everything that a run needs to resume bit for bit.
///
/// A checkpoint is a directory `checkpoint/step-00000100` of the run's directory. It is written under another name and renamed,
/// and older ones are removed only then: whenever the program ends, the newest one there is whole.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) state: RunState,
    pub(crate) adapter: BTreeMap<String, Tensor>,
    pub(crate) optimizer: BTreeMap<String, Tensor>,
    /// The best adapter so far.
    pub(crate) best: Option<Rc<BTreeMap<String, Tensor>>>,
}

/// The part of a checkpoint that is not tensors. Order of the examples and random numbers follow from seed and step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunState {
    pub(crate) format_version: u32,
    /// Optimizer steps taken.
    pub(crate) step: usize,
    pub(crate) scaler: LossScaler,
    /// Loss of the last step; absent in files of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loss: Option<f64>,
    /// Whether cached activations are computed in groups; absent if none were.
    #[serde(default)]
    pub(crate) rows_side_by_side: Option<bool>,
    pub(crate) best: Option<Best>,
    /// Options, data and model: a run resumes only with the same.
    pub(crate) identity: Map<String, Value>,
}

/// The step with the best adapter on held-out examples, by loss or by another metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps taken before that validation.
    pub step: usize,
    /// Its validation loss.
    pub validation_loss: f64,
    /// The metric that it was chosen by, if not the loss, and its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_by: Option<(Metric, f64)>,
}

impl Best {
    /// The metric that it was chosen by, and its value.
    pub fn metric(&self) -> (Metric, f64) {
        self.chosen_by.unwrap_or((Metric::Loss, self.validation_loss))
    }

    /// Whether it is better than another one, which was chosen by the same.
    pub(crate) fn is_better(&self, than: &Self) -> bool {
        let ((metric, value), (_, other)) = (self.metric(), than.metric());
        metric.is_better(value, other)
    }
}

impl std::fmt::Display for Best {
    /// `accuracy 0.9120 after step 40`; the loss stands without a name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.metric() {
            (Metric::Loss, loss) => write!(f, "{loss:.4}")?,
            (metric, value) => write!(f, "{} {value:.4}", metric.title())?,
        }
        write!(f, " after step {}", self.step)
    }
}

pub(crate) const FORMAT_VERSION: u32 = 1;

/// The name of a run's fact that holds the digest of its model's weights.
pub const WEIGHTS_DIGEST: &str = "weights_digest";

/// Directory of the checkpoints inside a run's directory.
pub(crate) const CHECKPOINTS: &str = "checkpoint";

const STATE: &str = "trainer.json";
const ADAPTER: &str = "adapter.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const BEST: &str = "best.safetensors";

impl Checkpoint {
    /// Writes the checkpoint into a run's directory, then removes the older ones. Returns its directory.
    pub(crate) fn save(&self, run: &Path) -> Result<PathBuf> {
        let checkpoints = run.join(CHECKPOINTS);
        let path = checkpoints.join(format!("step-{:08}", self.state.step));
        atomic_directory::<Error>(&path, |dir| {
            save(&dir.join(ADAPTER), &self.adapter)?;
            save(&dir.join(OPTIMIZER), &self.optimizer)?;
            if let Some(best) = &self.best {
                save(&dir.join(BEST), best)?;
            }
            let state = serde_json::to_string_pretty(&self.state)
                .expect("invariant: the state is texts and finite numbers");
            let file = dir.join(STATE);
            std::fs::write(&file, state).map_err(io_error("write", &file))?;
            Ok(())
        })?;
        for entry in entries(&checkpoints)? {
            let is_ours = is_partial(&entry) || step_of(&entry).is_some();
            if is_ours && entry != path {
                std::fs::remove_dir_all(&entry).map_err(io_error("remove", &entry))?;
            }
        }
        Ok(path)
    }

    /// Reads the newest checkpoint of a run's directory, if there is one.
    pub(crate) fn load_newest(run: &Path) -> Result<Option<Self>> {
        let checkpoints = run.join(CHECKPOINTS);
        if !checkpoints.exists() {
            return Ok(None);
        }
        let newest = entries(&checkpoints)?
            .into_iter()
            .filter_map(|path| Some((step_of(&path)?, path)))
            .max_by_key(|(step, _)| *step);
        newest.map(|(step, path)| Self::load(&path, step)).transpose()
    }

    fn load(path: &Path, step: usize) -> Result<Self> {
        let broken = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
        let file = path.join(STATE);
        let text = std::fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let state: RunState = serde_json::from_str(&text)
            .map_err(|error| plain_reason(&error))
            .map_err(|reason| broken(format!("{STATE} is not what belongs there: {reason}")))?;
        if state.format_version != FORMAT_VERSION {
            let found = state.format_version;
            return Err(broken(format!("format_version is {found}, expected {FORMAT_VERSION}")));
        }
        if state.step != step {
            let found = state.step;
            return Err(broken(format!("step is {found}, the directory's name says {step}")));
        }
        let best = state.best.map(|_| load_safetensors(&path.join(BEST))).transpose()?;
        Ok(Self {
            adapter: load_safetensors(&path.join(ADAPTER))?,
            optimizer: load_safetensors(&path.join(OPTIMIZER))?,
            best: best.map(Rc::new),
            state,
        })
    }
}

/// The options that say how long a run is. It can be made longer, so they are compared on their own.
const LENGTH: [&str; 2] = ["epochs", "max_steps"];

impl RunState {
    /// Epochs or steps that the run was begun with.
    pub(crate) fn length(&self) -> (Option<usize>, Option<usize>) {
        let [epochs, max_steps] =
            LENGTH.map(|name| self.identity.get(name).and_then(Value::as_u64).map(|n| n as usize));
        (epochs, max_steps)
    }

    /// Checks that a run is the saved one. An option missing in the checkpoint counts as its default. A checkpoint without a digest of
    /// weights is taken to have today's weights, with a warning.
    ///
    /// # Errors
    /// [`Error::ResumeMismatch`] with the first difference.
    pub(crate) fn check_identity(&self, now: &Map<String, Value>) -> Result<()> {
        let defaults = json!(TrainConfig::default());
        let names =
            self.identity.keys().chain(now.keys()).filter(|name| !LENGTH.contains(&name.as_str()));
        let print = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
        for name in names {
            let saved = self.identity.get(name).or_else(|| defaults.get(name));
            let now = now.get(name);
            if let (WEIGHTS_DIGEST, None, Some(now)) = (name.as_str(), saved, now) {
                log::warn!(
                    "the run was begun by a version that did not note its model's weights; today's are taken for them ({now})"
                );
                continue;
            }
            if saved != now {
                return Err(Error::ResumeMismatch {
                    field: name.clone(),
                    saved: print(saved),
                    now: print(now),
                });
            }
        }
        Ok(())
    }
}

fn save(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let tensors: Vec<_> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    Ok(save_safetensors(path, &tensors, None)?)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> std::io::Result<Vec<PathBuf>> {
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    Ok(read().map_err(io_error("read", directory))?)
}

fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn checkpoint(step: usize) -> Checkpoint {
        let tensors = |x: f64| {
            let tensor = Tensor::full([2, 3], x, (Kind::Float, Device::Cpu));
            BTreeMap::from([("rotation.raw".to_owned(), tensor)])
        };
        let Value::Object(identity) = json!({"lr": 0.005, "seed": 1}) else { unreachable!() };
        let best = Some(Best {
            step: 1,
            validation_loss: 0.1 + 0.2,
            chosen_by: Some((Metric::F1, 0.1 + 0.7)),
        });
        let scaler = LossScaler::disabled();
        let rows_side_by_side = Some(true);
        let state = RunState {
            format_version: FORMAT_VERSION,
            step,
            scaler,
            loss: None,
            rows_side_by_side,
            best,
            identity,
        };
        let best = Some(Rc::new(tensors(-0.5)));
        Checkpoint { state, adapter: tensors(step as f64), optimizer: tensors(0.25), best }
    }

    #[test]
    fn the_newest_checkpoint_comes_back_and_replaces_the_others() -> Result<()> {
        let run = tempfile::tempdir().map_err(io_error("create", Path::new("temporary")))?;
        assert!(Checkpoint::load_newest(run.path())?.is_none());
        checkpoint(9).save(run.path())?;
        let left_behind = run.path().join(CHECKPOINTS).join(".partial-abc");
        std::fs::create_dir(&left_behind).map_err(io_error("create", &left_behind))?;
        assert_eq!(checkpoint(10).save(run.path())?, run.path().join("checkpoint/step-00000010"));
        assert_eq!(entries(&run.path().join(CHECKPOINTS))?.len(), 1);

        let saved = checkpoint(10);
        let loaded = Checkpoint::load_newest(run.path())?;
        let Some(loaded) = loaded else { panic!("no checkpoint") };
        assert_eq!(loaded.state, saved.state);
        assert_eq!(loaded.adapter, saved.adapter);
        assert_eq!(loaded.optimizer, saved.optimizer);
        assert_eq!(loaded.best, saved.best);
        Ok(())
    }

    /// Between the renaming and the removal both are there, and a temporary one may be: the newest whole one counts.
    #[test]
    fn a_kill_at_any_moment_leaves_a_whole_checkpoint() -> Result<()> {
        let run = tempfile::tempdir().map_err(io_error("create", Path::new("temporary")))?;
        checkpoint(9).save(run.path())?;
        let newer = tempfile::tempdir().map_err(io_error("create", Path::new("temporary")))?;
        let newer = checkpoint(10).save(newer.path())?;
        let half = run.path().join("checkpoint/.partial-1");
        std::fs::create_dir(&half).map_err(io_error("create", &half))?;
        let step = |run: &Path| -> Result<Option<usize>> {
            Ok(Checkpoint::load_newest(run)?.map(|checkpoint| checkpoint.state.step))
        };
        assert_eq!(step(run.path())?, Some(9));
        let place = run.path().join("checkpoint/step-00000010");
        std::fs::rename(&newer, &place).map_err(io_error("rename", &newer))?;
        assert_eq!(step(run.path())?, Some(10));
        Ok(())
    }

    #[test]
    fn another_run_is_refused_by_the_field_that_differs() {
        let state = checkpoint(3).state;
        let differs = |now: Value| {
            let Value::Object(now) = now else { unreachable!() };
            match state.check_identity(&now) {
                Err(Error::ResumeMismatch { field, saved, now }) => Some((field, saved, now)),
                Ok(()) => None,
                Err(other) => panic!("{other}"),
            }
        };
        let mismatch = |a: &str, b: &str, c: &str| Some((a.into(), b.into(), c.into()));
        assert_eq!(differs(json!({"lr": 0.005, "seed": 1})), None);
        assert_eq!(differs(json!({"lr": 0.004, "seed": 1})), mismatch("lr", "0.005", "0.004"));
        assert_eq!(differs(json!({"lr": 0.005})), mismatch("seed", "1", "not set"));
        let later = |factor: f64| json!({"lr": 0.005, "seed": 1, "rotation_lr_factor": factor});
        assert_eq!(differs(later(1.0)), None);
        let noted = |digest: &str| json!({"lr": 0.005, "seed": 1, WEIGHTS_DIGEST: digest});
        assert_eq!(differs(noted("a")), None); // the run is older than digests
        let of = |digest: &str| match noted(digest) {
            Value::Object(identity) => RunState { identity, ..state.clone() },
            _ => unreachable!(),
        };
        let Value::Object(other) = noted("b") else { unreachable!() };
        let refused = |digest: &str| match of(digest).check_identity(&other) {
            Err(Error::ResumeMismatch { field, saved, now }) => Some((field, saved, now)),
            other => other.map_or_else(|error| panic!("{error}"), |()| None),
        };
        assert_eq!(refused("b"), None);
        assert_eq!(refused("a"), mismatch(WEIGHTS_DIGEST, "\"a\"", "\"b\""));
        assert_eq!(differs(later(2.0)), mismatch("rotation_lr_factor", "1.0", "2.0"));
        // the length of a run may change: the trainer checks it
        assert_eq!(differs(json!({"lr": 0.005, "seed": 1, "epochs": 2})), None);
    }

    #[test]
    fn a_damaged_checkpoint_is_refused() -> std::result::Result<(), Box<dyn std::error::Error>> {
        let run = tempfile::tempdir()?;
        let path = checkpoint(4).save(run.path())?;
        let state = path.join(STATE);
        let text = std::fs::read_to_string(&state)?;
        for (bad, word) in [
            (text.replace("\"step\": 4", "\"step\": 5"), "step is 5"),
            (text.replace("\"format_version\": 1", "\"format_version\": 2"), "format_version is 2"),
            (text.replace("\"scaler\"", "\"sealer\""), "sealer"),
        ] {
            std::fs::write(&state, bad)?;
            let refused = Checkpoint::load_newest(run.path());
            assert!(
                matches!(&refused, Err(Error::Checkpoint { reason, .. }) if reason.contains(word)),
                "{refused:?}"
            );
        }
        std::fs::write(&state, text)?;
        let adapter = path.join(ADAPTER);
        let bytes = std::fs::read(&adapter)?;
        std::fs::write(&adapter, &bytes[..bytes.len() - 3])?;
        assert!(matches!(
            Checkpoint::load_newest(run.path()),
            Err(Error::Model(reft_models::Error::Safetensors { .. }))
        ));
        Ok(())
    }
}
