use std::time::Duration;

use reft_train::Share;

use crate::launcher::number;
use crate::{Error, Found, Loss, Result, find};

/// How long a process waits for another one unless [`TIME_LIMIT`] says otherwise: as long as PyTorch's groups do.
const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Seconds that a process waits for another one.
const TIME_LIMIT: &str = "REFT_TIME_LIMIT";

/// The variable that names the file into which a process writes why it failed, for its launcher to tell: JSON with a `message`, as torchrun
/// reads it.
pub const ERROR_FILE: &str = "TORCHELASTIC_ERROR_FILE";

/// PyTorch's default port of the store.
const DEFAULT_PORT: u16 = 29500;

/// The process's place in a run: its number, and where the processes meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessPlace {
    /// Its part of the run.
    pub share: Share,
    /// The process's number among the run's processes on its machine, if the launcher says it.
    pub local_rank: Option<usize>,
    /// Number of processes of the run on its machine; 1 if the launcher does not say it.
    pub here: usize,
    /// Name or address of the machine where the store is.
    pub address: String,
    /// The store's port.
    pub port: u16,
    /// Who serves the store.
    pub store: StoreHost,
    /// The prefix of every key of the run: the store may be older than this attempt.
    pub prefix: String,
    /// How long a process waits for the others.
    pub time_limit: Duration,
}

/// Who serves the store of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreHost {
    /// The first process of the run.
    First,
    /// The launcher.
    Launcher,
}

impl ProcessPlace {
    /// Reads the variables of `torchrun`, `srun` or `mpirun` (Open MPI, MPICH) for this process. `None` for a process that none of them
    /// started, or one alone.
    ///
    /// `MASTER_ADDR` and `MASTER_PORT` say where the processes meet. Without them it is this machine if all run here, under `srun` the first
    /// machine of the step, and a port of the job's number, or 29500. `REFT_TIME_LIMIT` is the time limit in seconds.
    ///
    /// # Errors
    /// [`Error::Environment`] if variables are incomplete, contradict each other or hold no number.
    pub fn from_environment() -> Result<Option<Self>> {
        Self::of(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// The place of a single process that still uses a process group: for testing the libraries that sum.
    ///
    /// # Errors
    /// If the time limit of the environment is no number.
    pub fn alone() -> Result<Self> {
        Ok(Self {
            share: Share::WHOLE,
            local_rank: None,
            here: 1,
            address: "127.0.0.1".to_owned(),
            port: 0, // any free port: no other process needs to know it
            store: StoreHost::First,
            prefix: "/alone".to_owned(),
            time_limit: time_limit(&|name| std::env::var(name).ok())?,
        })
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(found) = find(variable)? else { return Ok(None) };
        if found.share.world() == 1 {
            return Ok(None);
        }
        let by_launcher = variable("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        let attempt = variable("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned());
        Ok(Some(Self {
            share: found.share,
            local_rank: found.local_rank,
            here: found.here,
            address: address(&found, variable)?,
            port: port(&found, variable)?,
            store: if by_launcher { StoreHost::Launcher } else { StoreHost::First },
            prefix: format!("/worker/attempt_{attempt}"),
            time_limit: time_limit(variable)?,
        }))
    }

    /// Whether this process serves the store.
    pub(crate) fn serves(&self) -> bool {
        self.store == StoreHost::First && self.share.is_first()
    }

    /// The error of a lost process. The first of the remaining processes reports it.
    pub(crate) fn lost(&self, Loss { ranks, what }: Loss, reason: String) -> Error {
        let world = self.share.world();
        let first_left = (0..world).find(|rank| !ranks.contains(rank));
        let tells = first_left == Some(self.share.rank());
        Error::Lost { ranks, tells, world, what, reason }
    }

    /// The address at which others reach this process, if all run on one machine. `None` otherwise: libtorch then looks up the machine's name.
    pub(crate) fn own_address(&self) -> Option<&str> {
        let is_here = |address: &&str| *address == "localhost" || address.starts_with("127.");
        Some(self.address.as_str()).filter(is_here)
    }
}

/// How long a process waits for another one.
pub(crate) fn time_limit(variable: &dyn Fn(&str) -> Option<String>) -> Result<Duration> {
    let seconds = variable(TIME_LIMIT).map(|seconds| number(TIME_LIMIT, &seconds)).transpose()?;
    Ok(seconds.map_or(DEFAULT_TIME_LIMIT, Duration::from_secs))
}

fn address(found: &Found, variable: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    if let Some(address) = variable("MASTER_ADDR") {
        return Ok(address);
    }
    if found.here == found.share.world() && !found.is_torch {
        return Ok("127.0.0.1".to_owned());
    }
    let machines = variable("SLURM_STEP_NODELIST").filter(|_| found.is_srun);
    machines.as_deref().map(first_machine).ok_or_else(|| Error::Environment {
        found: format!("a run of {} processes without MASTER_ADDR", found.share.world()),
        advice: "set it, on all, to the machine of the process of rank 0".to_owned(),
    })
}

fn port(found: &Found, variable: &dyn Fn(&str) -> Option<String>) -> Result<u16> {
    if let Some(port) = variable("MASTER_PORT") {
        return number("MASTER_PORT", &port);
    }
    if found.is_torch {
        return Err(Error::Environment {
            found: "RANK and WORLD_SIZE are set and MASTER_PORT is not".to_owned(),
            advice: "set it, on all, to a free port of the machine of MASTER_ADDR".to_owned(),
        });
    }
    let Some(job) = variable("SLURM_JOB_ID") else { return Ok(DEFAULT_PORT) };
    let job: u64 = number("SLURM_JOB_ID", &job)?;
    // Below Linux's ports for outgoing connections, and different for jobs with neighbouring numbers.
    Ok(u16::try_from(20_000 + job % 10_000).unwrap_or(DEFAULT_PORT))
}

/// The first of a list of machines as Slurm writes them: `gpu[03-05,11],login` begins with `gpu03`.
fn first_machine(list: &str) -> String {
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(numbers) = rest.strip_prefix('[') else { return name.to_owned() };
    let end = numbers.find([',', '-', ']']).unwrap_or(numbers.len());
    let behind = numbers.split_once(']').map_or("", |(_, behind)| behind);
    let suffix = &behind[..behind.find([',', '[']).unwrap_or(behind.len())];
    format!("{name}{}{suffix}", &numbers[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Result<Option<ProcessPlace>> {
        ProcessPlace::of(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn known(variables: &[(&str, &str)]) -> (usize, usize, String, u16) {
        let place = place(variables).expect("it is whole").expect("there is one");
        (place.share.rank(), place.share.world(), place.address, place.port)
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        match place(variables) {
            Err(error @ Error::Environment { .. }) => error.to_string(),
            other => panic!("{variables:?}: {other:?}"),
        }
    }

    const TORCH: [(&str, &str); 4] =
        [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "node7"), ("MASTER_PORT", "1234")];
    const SLURM: [(&str, &str); 5] = [
        ("SLURM_PROCID", "5"),
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("SLURM_STEP_NUM_NODES", "2"),
        ("SLURM_STEP_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "1234567"),
    ];
    const OPEN_MPI: [(&str, &str); 3] = [
        ("OMPI_COMM_WORLD_RANK", "2"),
        ("OMPI_COMM_WORLD_SIZE", "3"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "3"),
    ];

    #[test]
    fn each_launcher_is_read() {
        assert_eq!(known(&TORCH), (1, 4, "node7".to_owned(), 1234));
        assert_eq!(known(&SLURM), (5, 8, "gpu03".to_owned(), 24567));
        assert_eq!(known(&OPEN_MPI), (2, 3, "127.0.0.1".to_owned(), 29500));
        let mpich = [("PMI_RANK", "0"), ("PMI_SIZE", "2"), ("MPI_LOCALNRANKS", "2")];
        assert_eq!(known(&mpich), (0, 2, "127.0.0.1".to_owned(), 29500));
        let one_machine = [
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_STEP_NUM_NODES", "1"),
            ("MASTER_PORT", "77"),
        ];
        assert_eq!(known(&one_machine), (1, 2, "127.0.0.1".to_owned(), 77));
    }

    #[test]
    fn a_process_alone_has_no_place() {
        assert_eq!(place(&[]).expect("it is whole"), None);
        assert_eq!(
            place(&[("MASTER_ADDR", "x"), ("MASTER_PORT", "1")]).expect("it is whole"),
            None
        );
        // in a batch script, which srun did not start
        assert_eq!(
            place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).expect("it is whole"),
            None
        );
        let one = [("RANK", "0"), ("WORLD_SIZE", "1")];
        assert_eq!(place(&one).expect("it is whole"), None);
    }

    /// A GPU is chosen by the number on the machine, and memory is divided among the processes there.
    #[test]
    fn a_process_knows_its_number_on_its_machine_where_the_launcher_says_it() {
        let local = |variables: &[(&str, &str)]| {
            let place = place(variables).expect("it is whole").expect("there is one");
            (place.local_rank, place.here)
        };
        assert_eq!(local(&TORCH), (None, 1));
        let torchrun = [("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        assert_eq!(local(&[&TORCH[..], &torchrun].concat()), (Some(1), 2));
        assert_eq!(local(&[&SLURM[..], &[("SLURM_LOCALID", "0")]].concat()), (Some(0), 1));
        assert_eq!(
            local(
                &[("OMPI_COMM_WORLD_LOCAL_RANK", "2")]
                    .iter()
                    .chain(&OPEN_MPI)
                    .copied()
                    .collect::<Vec<_>>()
            ),
            (Some(2), 3)
        );
        let mpich = [
            ("PMI_RANK", "0"),
            ("PMI_SIZE", "2"),
            ("MPI_LOCALNRANKS", "2"),
            ("MPI_LOCALRANKID", "0"),
        ];
        assert_eq!(local(&mpich), (Some(0), 2));
        let wrong = [&TORCH[..], &[("LOCAL_RANK", "first")]].concat();
        assert!(refused(&wrong).contains("LOCAL_RANK is \"first\""));
    }

    #[test]
    fn torchruns_store_is_its_own_and_its_keys_are_the_attempts() {
        let elastic = [
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("TORCHELASTIC_RUN_ID", "none"),
            ("REFT_TIME_LIMIT", "7"),
        ];
        let place = place(&[&TORCH[..], &elastic, &SLURM].concat())
            .expect("it is whole")
            .expect("there is one");
        assert_eq!((place.share.rank(), place.share.world()), (1, 4), "srun started torchrun");
        assert_eq!((place.store, place.serves()), (StoreHost::Launcher, false));
        assert_eq!(place.prefix, "/worker/attempt_2");
        assert_eq!(place.time_limit, Duration::from_secs(7));
    }

    #[test]
    fn by_hand_the_first_serves_the_store() {
        let first = [("RANK", "0"), TORCH[1], TORCH[2], TORCH[3]];
        let place = place(&first).expect("it is whole").expect("there is one");
        assert!(place.serves() && place.time_limit == DEFAULT_TIME_LIMIT, "{place:?}");
    }

    #[test]
    fn halves_and_contradictions_are_named() {
        for (left_out, named) in [(0, "RANK is not"), (1, "WORLD_SIZE is not"), (2, "MASTER_ADDR")]
        {
            let rest: Vec<_> = (0..4).filter(|i| *i != left_out).map(|i| TORCH[i]).collect();
            assert!(refused(&rest).contains(named), "{}", refused(&rest));
        }
        assert!(refused(&TORCH[..3]).contains("MASTER_PORT is not"));
        assert!(refused(&SLURM[1..]).contains("SLURM_PROCID is not"));
        let both = refused(&[&TORCH[..], &SLURM].concat());
        assert!(both.contains("RANK=1 and WORLD_SIZE=4"), "{both}");
        assert!(both.contains("SLURM_PROCID=5 and SLURM_STEP_NUM_TASKS=8"), "{both}");
        let beyond = refused(&[("RANK", "4"), TORCH[1], TORCH[2], TORCH[3]]);
        assert!(beyond.contains("RANK=4 and WORLD_SIZE=4"), "{beyond}");
        let no_number = refused(&[("RANK", "one"), TORCH[1], TORCH[2], TORCH[3]]);
        assert!(no_number.contains("RANK is \"one\""), "{no_number}");
        let far = refused(&[OPEN_MPI[0], OPEN_MPI[1], ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")]);
        assert!(far.contains("MASTER_ADDR"), "{far}");
    }

    #[test]
    fn what_agrees_may_be_said_twice_and_mpirun_hides_srun() {
        let torch = [("RANK", "5"), ("WORLD_SIZE", "8"), TORCH[2], TORCH[3]];
        assert_eq!(known(&[&torch[..], &SLURM].concat()), (5, 8, "node7".to_owned(), 1234));
        let mpirun = known(&[&OPEN_MPI[..], &SLURM].concat());
        assert_eq!((mpirun.0, mpirun.1), (2, 3));
    }

    #[test]
    fn the_first_of_slurms_machines() {
        for (list, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("gpu[03-05,11],login", "gpu03"),
            ("n[7]", "n7"),
            ("n[1-2]-x,m", "n1-x"),
        ] {
            assert_eq!(first_machine(list), first);
        }
    }
}
