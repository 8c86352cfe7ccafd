use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use reft_train::{Reduce, Share};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor, no_grad};

use crate::engine::Communicator;
use crate::keeper::{look, wait_for_all};
use crate::reduction::GpuGroup;
use crate::{
    Error, Group, Keeper, Loss, ProcessPlace, Reduction, Result, Store, StoreHost, libtorch_version,
};

/// How long to wait for the store's answer about lost processes.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The pause between attempts to connect to an address.
const RETRY: Duration = Duration::from_millis(20);

/// Kinds that tensors may have, and the kind in which each travels: half precision is summed in f32 and rounded once.
const KINDS: [(Kind, &str, Kind); 5] = [
    (Kind::Float, "f32", Kind::Float),
    (Kind::BFloat16, "bf16", Kind::Float),
    (Kind::Half, "f16", Kind::Float),
    (Kind::Double, "f64", Kind::Double),
    (Kind::Int64, "i64", Kind::Int64),
];

/// The processes of a run, connected with each other by Gloo, and their GPUs by NCCL.
///
/// Every process calls the same functions in the same order with tensors of the same shapes. A difference is found before anything is sent,
/// and is an error on all processes. If a process is lost, all others get an error. After an error the group cannot be used any more.
#[derive(Debug)]
pub struct ProcessGroup {
    place: ProcessPlace,
    /// `None` after an error.
    group: RefCell<Option<Group>>,
    gpus: GpuGroup,
    /// It is dropped before the store, which other processes may still read.
    keeper: Keeper,
    /// A second connection to the store, because a call on the first may hang.
    spare: RefCell<Option<Store>>,
    store: Store,
    /// Number of operations until now.
    operations: Cell<u64>,
}

impl ProcessGroup {
    /// Waits for all processes of the run, compares their options, and connects them.
    ///
    /// `facts` are names and values that must be the same on all of them; the program's version is always one.
    ///
    /// # Errors
    /// [`Error::Lost`] if a process does not come within the place's time limit, [`Error::Disagreement`] if a fact differs,
    /// [`Error::Unsupported`] on a platform without process groups.
    pub fn join(place: &ProcessPlace, facts: &[(&str, String)]) -> Result<Self> {
        if cfg!(not(process_groups)) {
            return Err(Error::Unsupported);
        }
        let ProcessPlace { share, time_limit, .. } = *place;
        let unreached = |reason: String| match place.store {
            StoreHost::First if !share.is_first() => {
                let limit = time_limit.as_secs_f64();
                let what =
                    format!("did not come within {limit} s to {}:{}", place.address, place.port);
                place.lost(Loss { ranks: vec![0], what }, reason)
            }
            _ => Error::Engine { reason },
        };
        let ProcessPlace { address, port, prefix, .. } = place;
        if !place.serves() {
            reachable(address, *port, time_limit).map_err(unreached)?;
        }
        let store = Store::connect(address, *port, place.serves(), prefix, time_limit)
            .map_err(unreached)?;
        let again = || store.again().map_err(unreached);
        let keeper = Keeper::start(again()?, place);
        let spare = RefCell::new(Some(again()?));
        let (group, operations) = (RefCell::new(None), Cell::new(0));
        let joined = Self {
            place: place.clone(),
            group,
            gpus: GpuGroup::default(),
            keeper,
            spare,
            store,
            operations,
        };
        if let Some(loss) = joined.said(wait_for_all(&joined.store, share, time_limit))? {
            let reason = "start all of them, with the same address and port".to_owned();
            return Err(place.lost(loss, reason));
        }
        let own = [
            ("the program's version", env!("CARGO_PKG_VERSION").to_owned()),
            ("libtorch's version", libtorch_version()),
            ("the number of processes", share.world().to_string()),
        ];
        let facts = facts.iter().cloned().chain(own);
        joined.compare("start", facts.map(|(name, value)| (name.to_owned(), value)))?;
        let connected = Group::connect(
            &joined.store,
            share.rank(),
            share.world(),
            place.own_address(),
            time_limit,
        );
        *joined.group.borrow_mut() = Some(joined.said(connected)?);
        joined.barrier()?; // no process may leave while another one still connects
        Ok(joined)
    }

    /// Connects the GPUs of all processes by NCCL if asked to and possible; `device` is this process's device. Either all processes call it
    /// with the same `wanted`, or none. Returns the name of the library that sums GPU tensors, with the reason if it is not NCCL.
    ///
    /// # Errors
    /// [`Error::Gpus`] with the reason and advice if NCCL is required and not available; [`Error::Lost`].
    pub fn connect_gpus(&self, wanted: Reduction, device: Device) -> Result<String> {
        let run = (&self.place, &self.store, &self.keeper);
        let chosen = self.said(self.gpus.connect(run, wanted, device))?;
        chosen.map_err(|reason| Error::Gpus { reason })
    }

    /// This process's part of the run.
    pub fn share(&self) -> Share {
        self.place.share
    }

    /// Replaces each tensor, in place, by its sum over all processes: one message for all tensors of a kind.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Disagreement`] if the tensors differ in number, shape or kind, [`Error::Kind`].
    pub fn sum(&self, tensors: &mut [Tensor]) -> Result<()> {
        self.share_out("sum", tensors, Group::sum, Communicator::sum)
    }

    /// Replaces each tensor, in place, by the first process's, which must have the same shape.
    ///
    /// # Errors
    /// As [`Self::sum`].
    pub fn broadcast(&self, tensors: &mut [Tensor]) -> Result<()> {
        self.share_out("broadcast", tensors, Group::broadcast, Communicator::broadcast)
    }

    /// Waits until every process calls it.
    ///
    /// # Errors
    /// [`Error::Lost`]; [`Error::Disagreement`] if another process calls another operation.
    pub fn barrier(&self) -> Result<()> {
        self.check_alike("barrier", &[]).map(drop)
    }

    fn share_out(
        &self,
        name: &str,
        tensors: &mut [Tensor],
        on_host: fn(&Group, &mut Tensor) -> Result<(), String>,
        on_gpus: fn(&Communicator, &mut Tensor) -> Result<(), String>,
    ) -> Result<()> {
        if let Some(other) =
            tensors.iter().find(|t| KINDS.iter().all(|(kind, ..)| *kind != t.kind()))
        {
            return Err(Error::Kind { found: format!("{:?}", other.kind()) });
        }
        let on_a_gpu = self.check_alike(name, tensors)?;
        // all tensors go the same way, since other processes may have the same tensors on other devices
        let gpu = self.gpus.device().filter(|_| on_a_gpu);
        for (kind, _, travels) in KINDS {
            let own = tensors.iter_mut().filter(|t| t.kind() == kind && t.numel() > 0).collect();
            match gpu {
                Some(gpu) => in_one_message(own, (travels, gpu), |bucket| {
                    let shared = |gpus: &Communicator| on_gpus(gpus, bucket);
                    let limit = self.place.time_limit;
                    self.said(self.gpus.share_out(&self.keeper, limit, shared))
                })?,
                None => in_one_message(own, (travels, Device::Cpu), |bucket| {
                    self.with_group(|group| on_host(group, bucket))
                })?,
            }
        }
        Ok(())
    }

    /// Checks that every process calls the same operation: Gloo aborts a process if a message has an unexpected size. Returns whether any
    /// process has a tensor on a GPU.
    fn check_alike(&self, name: &str, tensors: &[Tensor]) -> Result<bool> {
        let shapes: Vec<String> = tensors.iter().map(describe).collect();
        let operation = format!("{name} of {} tensors: {}", tensors.len(), shapes.join(", "));
        let number = self.operations.replace(self.operations.get() + 1);
        let hash = Sha256::digest(format!("{number} {operation}"));
        let own = hash.iter().take(7).fold(0i64, |all, byte| all << 8 | i64::from(*byte));
        let on_a_gpu = tensors.iter().any(|t| t.device().is_cuda());
        let mut ends = Tensor::from_slice(&[own, -own, on_a_gpu.into()]);
        self.with_group(|group| group.largest(&mut ends))?;
        // The largest hash and the negated smallest hash are both this process's own only if all hashes are equal.
        if ends.int64_value(&[0]) == own && ends.int64_value(&[1]) == -own {
            return Ok(ends.int64_value(&[2]) > 0);
        }
        let what = "what they share";
        self.compare(&format!("operation {number}"), [(what.to_owned(), operation)])?;
        Err(Error::Engine { reason: format!("operation {number} is another one elsewhere") })
    }

    /// Compares named values with the values of all other processes.
    fn compare(
        &self,
        occasion: &str,
        facts: impl IntoIterator<Item = (String, String)>,
    ) -> Result<()> {
        let own: Map<String, Value> =
            facts.into_iter().map(|(name, value)| (name, value.into())).collect();
        let ProcessPlace { share, time_limit, .. } = self.place;
        let key = |rank: usize| format!("facts/{occasion}/{rank}");
        self.said(self.store.set(&key(share.rank()), &Value::Object(own.clone()).to_string()))?;
        let mut others = Vec::new();
        for rank in (0..share.world()).filter(|rank| *rank != share.rank()) {
            let text = self.said(self.store.get(&key(rank), time_limit))?;
            let facts: Map<String, Value> = serde_json::from_str(&text)
                .map_err(|error| Error::Engine { reason: format!("rank {rank}: {error}") })?;
            others.push((rank, facts));
        }
        for (other, facts) in others {
            let names = own.keys().chain(facts.keys().filter(|name| !own.contains_key(*name)));
            for name in names {
                let value = |facts: &Map<String, Value>| {
                    facts.get(name).and_then(Value::as_str).unwrap_or("nothing").to_owned()
                };
                if own.get(name) != facts.get(name) {
                    return Err(Error::Disagreement {
                        what: name.clone(),
                        rank: share.rank(),
                        own: value(&own),
                        other,
                        others: value(&facts),
                    });
                }
            }
        }
        Ok(())
    }

    fn with_group(&self, act: impl FnOnce(&Group) -> Result<(), String>) -> Result<()> {
        let done = match &*self.group.borrow() {
            // another process has found a loss, or this process's keeper has
            Some(_) if self.keeper.loss().is_some() => Err("the run cannot go on".to_owned()),
            Some(group) => act(group),
            None => Err("something failed before, and nothing can be shared since".to_owned()),
        };
        self.said(done)
    }

    /// Turns a message of libtorch into an error, which names the lost processes if there are any.
    fn said<T>(&self, result: Result<T, String>) -> Result<T> {
        let reason = match result {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        // Dropping the group tells the processes that wait for this one at once.
        drop(self.group.borrow_mut().take());
        Err(match self.keeper.loss().or_else(|| self.find_lost()) {
            Some(loss) => self.place.lost(loss, reason),
            None => Error::Engine { reason },
        })
    }

    /// Finds the lost processes. The store never answers if its process is stopped, so a thread asks it and is abandoned after [`PATIENCE`].
    fn find_lost(&self) -> Option<Loss> {
        let (store, share) = (self.spare.borrow_mut().take()?, self.place.share);
        let (answer, answered) = mpsc::channel();
        thread::spawn(move || {
            let _ = answer.send(look(&store, share)); // the receiver may be gone
        });
        match answered.recv_timeout(PATIENCE) {
            Ok(Ok(loss)) => loss,
            _ => self.keeper.loss().or_else(|| Loss::of_store(&self.place)),
        }
    }
}

impl Reduce for ProcessGroup {
    fn sum(&self, tensors: &mut [Tensor]) -> reft_train::Result<()> {
        let summed = ProcessGroup::sum(self, tensors);
        summed.map_err(|error| reft_train::Error::Reduction { reason: Box::new(error) })
    }
}

/// Waits until a process listens at an address. libtorch's own wait may take more than twice the limit.
fn reachable(address: &str, port: u16, limit: Duration) -> Result<(), String> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(RETRY);
        let tried = (address, port).to_socket_addrs().and_then(|mut places| {
            let first = places.next().ok_or(ErrorKind::AddrNotAvailable)?;
            TcpStream::connect_timeout(&first, left)
        });
        match tried {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
            Err(_) => thread::sleep(RETRY),
        }
    }
}

/// Shares tensors in one message of kind `travels` on `device`.
fn in_one_message(
    tensors: Vec<&mut Tensor>,
    (travels, device): (Kind, Device),
    share_out: impl FnOnce(&mut Tensor) -> Result<()>,
) -> Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    let own = tensors[0].device();
    let is_together = tensors.iter().all(|t| t.device() == own);
    let flat = |t: &&mut Tensor| {
        let flat = t.detach().reshape([-1]);
        if is_together { flat } else { flat.to_device(device) }
    };
    let flat: Vec<Tensor> = tensors.iter().map(flat).collect();
    let mut bucket = Tensor::cat(&flat, 0).to_kind(travels).to_device(device).contiguous();
    share_out(&mut bucket)?;
    let sizes: Vec<i64> = flat.iter().map(|t| t.numel() as i64).collect();
    for (tensor, part) in tensors.into_iter().zip(bucket.split_with_sizes(&sizes, 0)) {
        no_grad(|| tensor.copy_(&part.view_as(tensor)));
    }
    Ok(())
}

/// "f32 [2, 3]".
fn describe(tensor: &Tensor) -> String {
    let known = KINDS.iter().find(|(kind, ..)| *kind == tensor.kind());
    format!("{} {:?}", known.map_or("?", |(_, name, _)| name), tensor.size())
}
