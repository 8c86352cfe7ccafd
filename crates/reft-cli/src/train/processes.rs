use std::collections::BTreeMap;
use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use reft_distributed::{Ended, Launch, ProcessGroup, ProcessPlace, Reduction};
use reft_models::AdapterStack;
use reft_train::{Objective, Silent, Trainer};
use tch::Device;
use toml::Table;

use crate::machine::Devices;
use crate::terminal::{INTERRUPTED, Told, note, on_signal, say_nothing};

/// Options that may differ between the processes of a run: devices, threads, memory and paths.
const OWN: [&str; 10] = [
    "processes",
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

/// The processes of a run, if a launcher (`torchrun`, `srun` or `mpirun`) has started several.
pub struct Processes(Option<ProcessPlace>);

impl Processes {
    /// Reads the launcher's variables. Of several processes only the first prints anything but errors.
    ///
    /// # Errors
    /// If the variables are incomplete or contradict each other.
    pub fn find() -> Result<Self> {
        let found = Self(ProcessPlace::from_environment()?);
        if !found.is_first() {
            say_nothing();
        }
        Ok(found)
    }

    /// A process group of one process, for a run that needs the code of several.
    ///
    /// # Errors
    /// If the time limit in the environment is no number.
    pub fn alone() -> Result<Self> {
        Ok(Self(Some(ProcessPlace::alone()?)))
    }

    /// Whether a launcher has started this process as one of several.
    pub fn were_launched(&self) -> bool {
        self.0.is_some()
    }

    /// Number of processes of the run.
    pub fn world(&self) -> usize {
        self.0.as_ref().map_or(1, |place| place.share.world())
    }

    /// Number of processes of the run on this machine, as far as known.
    pub fn here(&self) -> usize {
        self.0.as_ref().map_or(1, |place| place.here)
    }

    /// Checks that the number of processes is the number in `--processes`.
    ///
    /// # Errors
    /// If a launcher has started another number.
    pub fn check(&self, asked: Option<usize>) -> Result<()> {
        match asked {
            Some(asked) if self.were_launched() && asked != self.world() => bail!(
                "--processes is {asked}, and a launcher has started {}; leave out one of the two",
                self.world()
            ),
            _ => Ok(()),
        }
    }

    /// The devices of this process. With `auto`, each of several processes on a machine takes a GPU of its own, as far as there are enough.
    /// Several named devices are divided evenly.
    ///
    /// # Errors
    /// If the named devices cannot be shared out.
    pub fn devices(&self, asked: Devices) -> Result<Devices> {
        let Some(place) = &self.0 else { return Ok(asked) };
        match place.local_rank {
            Some(number) => asked.of_process(number, place.here),
            None => Ok(asked),
        }
    }

    /// Whether this process does the work that is done once per run, such as writing files.
    pub fn is_first(&self) -> bool {
        self.0.as_ref().is_none_or(|place| place.share.is_first())
    }

    /// Joins the process group, if there is one. Checks that all processes have the same options, data and model, and copies the first
    /// process's trained parameters to all.
    ///
    /// # Errors
    /// If a process does not join, or differs.
    pub fn join(
        &self,
        options: &Table,
        contents: [(&'static str, String); 2],
        (adapters, objective): (&AdapterStack, &dyn Objective),
        (reduce, device): (Reduction, Device),
    ) -> Result<Option<ProcessGroup>> {
        let Some(place) = &self.0 else { return Ok(None) };
        let options = options.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        let named: BTreeMap<&str, String> =
            options.map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let facts: Vec<(&str, String)> = named.into_iter().chain(contents).collect();
        let group = ProcessGroup::join(place, &facts)?;
        let sums = group.connect_gpus(reduce, device)?;
        if device.is_cuda() {
            note(format!("gradients of the processes are summed by {sums}"));
        }
        let mut start = adapters.state();
        for tensor in start.values_mut() {
            group.broadcast(std::slice::from_mut(tensor))?; // one by one: in full fine-tuning they are the whole model
        }
        adapters.load_state(&start)?;
        for own in objective.parameters() {
            let mut start = own.tensor.detach().copy();
            group.broadcast(std::slice::from_mut(&mut start))?;
            tch::no_grad(|| own.tensor.shallow_clone().copy_(&start));
        }
        Ok(Some(group))
    }
}

/// Runs the trainer in a process that is not the first. It reads the checkpoint to resume from, and writes nothing. The first process takes
/// no step before all have read.
///
/// # Errors
/// Errors of the trainer, and the loss of a process.
pub fn follow(trainer: Trainer, resumed: Option<&Path>, stop: &AtomicBool) -> Result<()> {
    let mut trainer = match resumed {
        Some(directory) => trainer.resuming_in(directory)?,
        None => trainer,
    };
    trainer.run(&mut Silent, stop)?;
    Ok(())
}

/// Starts the processes of a run with this process's command line, and waits for all to end. Only the first one prints notes and results.
///
/// # Errors
/// If one fails. Their messages have been printed then.
pub fn launch(world: usize, has_threads: bool) -> Result<()> {
    let launch = Launch::new(world).context("cannot begin a run with --processes")?;
    static REQUESTS: AtomicUsize = AtomicUsize::new(0);
    on_signal(|| {
        REQUESTS.fetch_add(1, Ordering::Relaxed);
    })?;
    let program = env::current_exe().context("cannot find this program's own file")?;
    let threads = (tch::get_num_threads() as usize / world).max(1);
    let command = |_| {
        let mut command = Command::new(&program);
        command.args(env::args_os().skip(1));
        if !has_threads {
            command.arg("--threads").arg(threads.to_string());
        }
        command
    };
    let ended = launch.run(command, &REQUESTS)?;
    told(&ended).iter().for_each(note);
    match code_of(&ended) {
        0 => Ok(()),
        code => Err(Told(code).into()),
    }
}

/// The exit code of a run: a failure's if one of its processes has failed.
fn code_of(ended: &[Ended]) -> u8 {
    let are = |codes: &[u8]| {
        ended.iter().all(|end| codes.iter().any(|code| end.code == Some((*code).into())))
    };
    match (are(&[0]), are(&[0, INTERRUPTED])) {
        (true, _) => 0,
        (_, true) => INTERRUPTED,
        _ => 1,
    }
}

/// The messages of failed processes, without the first process's: each text once, with its ranks.
fn told(ended: &[Ended]) -> Vec<String> {
    let mut texts: Vec<(Vec<usize>, String)> = Vec::new();
    let first = ended.first().and_then(|first| first.said.as_ref());
    for end in ended.iter().filter(|end| end.code != Some(0)) {
        let text = match &end.said {
            _ if end.code == Some(INTERRUPTED.into()) => continue,
            Some(text) if Some(text) == first => continue, // the first has printed it
            Some(text) => text.clone(),
            None if end.code.is_some() => continue, // another process reports the reason
            None => format!("error: it {}", end.how),
        };
        match texts.iter_mut().find(|(_, other)| *other == text) {
            Some((ranks, _)) => ranks.push(end.rank),
            None => texts.push((vec![end.rank], text)),
        }
    }
    let line = |(ranks, text): (Vec<usize>, String)| {
        let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
        let ending = if ranks.len() == 1 { "" } else { "s" };
        format!("rank{ending} {}: {text}", ranks.join(", "))
    };
    texts.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(rank: usize, code: Option<i32>, said: Option<&str>) -> Ended {
        let how = code
            .map_or("was ended by signal 9".to_owned(), |code| format!("ended with code {code}"));
        Ended { rank, code, said: said.map(str::to_owned), how }
    }

    #[test]
    fn each_failure_is_told_once() {
        let same = Some("error: no such file");
        assert!(told(&[end(0, Some(1), same), end(1, Some(1), same)]).is_empty());
        let stopped = [end(0, Some(130), None), end(1, Some(0), None)];
        assert!(told(&stopped).is_empty());
        assert_eq!((code_of(&stopped), code_of(&stopped[1..])), (130, 0));
        let killed = [
            end(0, Some(1), Some("error: rank 1 is gone")),
            end(1, None, None),
            end(2, Some(1), None),
        ];
        assert_eq!(told(&killed), ["rank 1: error: it was ended by signal 9"]);
        assert_eq!(code_of(&killed), 1);
        let memory = Some("error: memory ran out");
        let two = [
            end(0, Some(1), Some("error: elsewhere")),
            end(1, Some(1), memory),
            end(2, Some(1), memory),
        ];
        assert_eq!(told(&two), ["ranks 1, 2: error: memory ran out"]);
    }
}
