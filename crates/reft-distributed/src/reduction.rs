use std::cell::RefCell;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::Device;

use crate::engine::{Communicator, Nccl};
use crate::{Keeper, ProcessPlace, Result, Store};

/// Library that sums and broadcasts tensors on a GPU. Tensors on a CPU always go by Gloo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reduction {
    /// NCCL if every process has NCCL and its own GPU, else Gloo.
    #[default]
    Auto,
    /// Gloo, through the host.
    Gloo,
    /// NCCL, from GPU to GPU.
    Nccl,
}

reft_core::names!(Reduction, "way to sum on a GPU", crate::Error, {
    Auto => "auto",
    Gloo => "gloo",
    Nccl => "nccl",
});

/// The reason why a process on a CPU has no NCCL.
const ON_CPU: &str = "it computes on a CPU, where Gloo sums; leave out --reduce";

/// How long a GPU is polled without a pause.
const IMPATIENT: Duration = Duration::from_millis(2);

/// The pause between polls after that.
const PAUSE: Duration = Duration::from_micros(100);

/// The offer of a process: its GPU.
struct Offer {
    /// The GPU's identity if NCCL can be used, else the reason why not.
    gpu: Result<String, String>,
}

impl Offer {
    fn of(nccl: &Result<Arc<Nccl>, String>, device: Device) -> Self {
        let gpu = match (nccl, device) {
            (Ok(nccl), Device::Cuda(index)) => nccl.identity(index),
            (Err(reason), Device::Cuda(_)) => Err(reason.clone()),
            _ => Err(ON_CPU.to_owned()),
        };
        Self { gpu }
    }

    fn told(&self) -> String {
        match &self.gpu {
            Ok(gpu) => json!({ "gpu": gpu }).to_string(),
            Err(reason) => json!({ "reason": reason }).to_string(),
        }
    }

    fn heard(text: &str) -> Self {
        let value: Value = serde_json::from_str(text).unwrap_or_default();
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Self { gpu: field("gpu").ok_or_else(|| field("reason").unwrap_or_default()) }
    }
}

/// The reason why NCCL cannot connect these processes; `None` if it can.
fn obstacle(offers: &[Offer]) -> Option<String> {
    let refused = offers.iter().enumerate().find_map(|(rank, offer)| {
        offer.gpu.as_ref().err().map(|reason| format!("rank {rank}: {reason}"))
    });
    let same = || {
        let shares = |rank: usize| {
            (0..rank)
                .find(|other| offers[*other].gpu.as_ref().ok() == offers[rank].gpu.as_ref().ok())
        };
        let (other, rank) = (0..offers.len()).find_map(|rank| Some((shares(rank)?, rank)))?;
        Some(format!("ranks {other} and {rank} are on one GPU, and NCCL wants one for each"))
    };
    refused.or_else(same)
}

/// NCCL's connections, if this run has them.
#[derive(Debug, Default)]
pub(crate) struct GpuGroup(RefCell<Option<Communicator>>);

impl GpuGroup {
    /// Connects the GPUs of all processes if asked to and possible. Returns the name of the library that sums GPU tensors, or the reason why
    /// NCCL is required but not available.
    pub(crate) fn connect(
        &self,
        (place, store, keeper): (&ProcessPlace, &Store, &Keeper),
        wanted: Reduction,
        device: Device,
    ) -> Result<Result<String, String>, String> {
        let ProcessPlace { share, time_limit, .. } = *place;
        let nccl = match (wanted, device) {
            (Reduction::Gloo, _) => Err("it is not wanted".to_owned()),
            (_, Device::Cuda(_)) => Nccl::open().map(Arc::new),
            _ => Err(ON_CPU.to_owned()),
        };
        let key = |rank: usize| format!("nccl/{rank}");
        store.set(&key(share.rank()), &Offer::of(&nccl, device).told())?;
        let heard = |rank| Ok(Offer::heard(&store.get(&key(rank), time_limit)?));
        let offers = (0..share.world()).map(heard).collect::<Result<Vec<Offer>, String>>()?;
        let nccl = match (nccl, obstacle(&offers), wanted) {
            (Ok(nccl), None, _) => nccl,
            (_, reason, Reduction::Nccl) => {
                return Ok(Err(reason.unwrap_or_default()));
            }
            (_, _, Reduction::Gloo) => return Ok(Ok("Gloo".to_owned())),
            (_, reason, Reduction::Auto) => {
                return Ok(Ok(format!("Gloo, without NCCL: {}", reason.unwrap_or_default())));
            }
        };
        let Device::Cuda(index) = device else { return Ok(Ok("Gloo".to_owned())) };
        if share.is_first() {
            store.set("nccl/id", &nccl.unique_id()?)?;
        }
        let id = store.get("nccl/id", time_limit)?;
        let (made, result) = mpsc::channel();
        thread::spawn(move || {
            let _ = made.send(nccl.connect(&id, (share.rank(), share.world()), index)); // the receiver may be gone
        });
        let deadline = Instant::now() + time_limit;
        let connected = loop {
            match result.recv_timeout(Duration::from_millis(50)) {
                Ok(connected) => break connected?,
                Err(_) if keeper.loss().is_some() => return Err("NCCL did not connect".to_owned()),
                Err(_) if Instant::now() >= deadline => {
                    let seconds = time_limit.as_secs_f64();
                    return Err(format!("NCCL did not connect within {seconds} s"));
                }
                Err(_) => {}
            }
        };
        *self.0.borrow_mut() = Some(connected);
        Ok(Ok("NCCL".to_owned()))
    }

    /// The GPU whose tensors it shares; `None` without NCCL.
    pub(crate) fn device(&self) -> Option<Device> {
        self.0.borrow().as_ref().map(Communicator::device)
    }

    /// Shares a tensor on its GPU, and waits until that is done or a process is lost.
    pub(crate) fn share_out(
        &self,
        keeper: &Keeper,
        limit: Duration,
        act: impl FnOnce(&Communicator) -> Result<(), String>,
    ) -> Result<(), String> {
        let begun = Instant::now();
        let done = match &*self.0.borrow() {
            None => Err("NCCL has failed before".to_owned()),
            Some(communicator) => act(communicator).and_then(|()| {
                while !communicator.is_done()? {
                    if keeper.loss().is_some() || begun.elapsed() > limit {
                        return Err("the GPUs' sum does not come to its end".to_owned());
                    }
                    if begun.elapsed() > IMPATIENT {
                        thread::sleep(PAUSE);
                    }
                }
                Ok(())
            }),
        };
        if done.is_err()
            && let Some(communicator) = self.0.borrow_mut().take()
        {
            communicator.abort(); // otherwise the GPU would wait for a lost process for ever
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_used_where_every_process_has_a_gpu_of_its_own() {
        let gpu = |name: &str| Offer::heard(&Offer { gpu: Ok(name.to_owned()) }.told());
        let none = Offer::heard(&Offer { gpu: Err("no library".to_owned()) }.told());
        assert_eq!(obstacle(&[gpu("a"), gpu("b")]), None);
        assert_eq!(obstacle(&[gpu("a")]), None);
        let told = obstacle(&[gpu("a"), gpu("b"), gpu("a")]).unwrap_or_default();
        assert!(told.starts_with("ranks 0 and 2 are on one GPU"), "{told}");
        assert_eq!(obstacle(&[gpu("a"), none]), Some("rank 1: no library".to_owned()));
        assert_eq!("nccl".parse::<Reduction>().ok(), Some(Reduction::Nccl));
        assert!(
            "mpi".parse::<Reduction>().is_err_and(|e| e.to_string().contains("auto, gloo, nccl"))
        );
    }

    #[test]
    fn what_nobody_understands_is_no_gpu() {
        assert_eq!(obstacle(&[Offer::heard("{")]), Some("rank 0: ".to_owned()));
    }
}
