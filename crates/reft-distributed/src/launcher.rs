//! The launchers of processes, and the variables by which each tells a process its number.

use reft_train::Share;

use crate::{Error, Result};

/// Where a launcher says how many of the processes run on one machine.
enum Here {
    /// The number of processes of the run on this machine.
    Processes(&'static str),
    /// The number of machines of the run.
    Machines(&'static str),
}

struct Launcher {
    name: &'static str,
    /// If one of these variables is set, the launcher started this process.
    marks: &'static [&'static str],
    rank: &'static str,
    world: &'static str,
    /// The process's number among the processes on its machine.
    local_rank: &'static str,
    here: Here,
    /// Launchers that may start this launcher: their variables then describe the launcher, not this process.
    hides: &'static [&'static str],
}

const TORCHRUN: &str = "torchrun";
const OPEN_MPI: &str = "mpirun (Open MPI)";
const MPICH: &str = "mpirun (MPICH)";
const SRUN: &str = "srun";

/// Slurm sets `SLURM_PROCID` in a batch script too. Only tasks that `srun` started have the step's number of tasks.
const LAUNCHERS: [Launcher; 4] = [
    Launcher {
        name: TORCHRUN,
        marks: &["RANK", "WORLD_SIZE"],
        rank: "RANK",
        world: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        here: Here::Processes("LOCAL_WORLD_SIZE"),
        hides: &[],
    },
    Launcher {
        name: OPEN_MPI,
        marks: &["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
        rank: "OMPI_COMM_WORLD_RANK",
        world: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        here: Here::Processes("OMPI_COMM_WORLD_LOCAL_SIZE"),
        hides: &[SRUN],
    },
    Launcher {
        name: MPICH,
        marks: &["PMI_RANK", "PMI_SIZE"],
        rank: "PMI_RANK",
        world: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        here: Here::Processes("MPI_LOCALNRANKS"),
        hides: &[SRUN],
    },
    Launcher {
        name: SRUN,
        marks: &["SLURM_STEP_NUM_TASKS"],
        rank: "SLURM_PROCID",
        world: "SLURM_STEP_NUM_TASKS",
        local_rank: "SLURM_LOCALID",
        here: Here::Machines("SLURM_STEP_NUM_NODES"),
        hides: &[],
    },
];

/// Set by torchrun, but not by users who set torch's variables by hand. torchrun's processes may run below any other launcher.
const ELASTIC: &str = "TORCHELASTIC_RUN_ID";

/// The launchers' variables for this process.
pub(crate) struct Found {
    pub(crate) share: Share,
    /// Whether the place comes from torch's own variables, which include an address and a port.
    pub(crate) is_torch: bool,
    /// Whether it comes from srun: then Slurm's list of machines is the list of the processes' machines.
    pub(crate) is_srun: bool,
    /// The process's number among the processes on this machine.
    pub(crate) local_rank: Option<usize>,
    /// Number of the run's processes on this machine; 1 if unknown.
    pub(crate) here: usize,
}

/// The place that launchers give this process, if one started it.
pub(crate) fn find(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Found>> {
    let is_set = |name: &&str| variable(name).is_some();
    let mut found: Vec<&Launcher> =
        LAUNCHERS.iter().filter(|launcher| launcher.marks.iter().any(is_set)).collect();
    if variable(ELASTIC).is_some() && found.first().is_some_and(|first| first.name == TORCHRUN) {
        found.truncate(1);
    }
    let hidden: Vec<&str> = found.iter().flat_map(|launcher| launcher.hides).copied().collect();
    found.retain(|launcher| !hidden.contains(&launcher.name));
    let Some(launcher) = found.first() else { return Ok(None) };
    let first = numbers(launcher, variable)?;
    for other in &found[1..] {
        let others = numbers(other, variable)?;
        if others != first {
            let says = |launcher: &Launcher, (rank, world): (usize, usize)| {
                format!("{}={rank} and {}={world}", launcher.rank, launcher.world)
            };
            return Err(Error::Environment {
                found: format!(
                    "{} ({}) contradict {} ({})",
                    says(launcher, first),
                    launcher.name,
                    says(other, others),
                    other.name
                ),
                advice: format!("unset those of {} or of {}", launcher.name, other.name),
            });
        }
    }
    let (rank, world) = first;
    let mut here = 1;
    for launcher in &found {
        let (Here::Processes(name) | Here::Machines(name)) = launcher.here;
        let Some(count) = variable(name) else { continue };
        let count = number::<usize>(name, &count)?;
        here = here.max(match launcher.here {
            Here::Processes(_) => count,
            Here::Machines(_) if count == 1 => world,
            Here::Machines(_) => 1, // the number per machine is unknown
        });
    }
    let local_rank = found.iter().find_map(|l| Some((l.local_rank, variable(l.local_rank)?)));
    let local_rank = local_rank.map(|(name, value)| number(name, &value)).transpose()?;
    let share = Share::new(rank, world).map_err(|_| Error::Environment {
        found: format!("{}={rank} and {}={world}", launcher.rank, launcher.world),
        advice: format!("{} counts from 0 to below {}", launcher.rank, launcher.world),
    })?;
    let is = |name| launcher.name == name;
    Ok(Some(Found { share, is_torch: is(TORCHRUN), is_srun: is(SRUN), local_rank, here }))
}

/// Rank and world as one launcher gives them.
fn numbers(
    launcher: &Launcher,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(usize, usize)> {
    let set = |name: &str, other: &str| {
        variable(name).ok_or_else(|| Error::Environment {
            found: format!("{other} is set and {name} is not"),
            advice: format!("set both as {} does, or neither", launcher.name),
        })
    };
    let rank = number(launcher.rank, &set(launcher.rank, launcher.world)?)?;
    let world = number(launcher.world, &set(launcher.world, launcher.rank)?)?;
    Ok((rank, world))
}

/// The number that a variable holds.
pub(crate) fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| Error::Environment {
        found: format!("{name} is {value:?}"),
        advice: "give it a whole number that is in range".to_owned(),
    })
}
