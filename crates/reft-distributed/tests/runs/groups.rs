//! Groups of processes: sharing, and the loss of a process.

use std::thread;
use std::time::{Duration, Instant};

use reft_distributed::{Error, ProcessGroup, ProcessPlace, Reduction};
use reft_test_support::Outcome;
use reft_train::Reduce;
use tch::{Device, Kind, Tensor};

use crate::process::{LIMIT, Process, port, run, say};

/// The part of a process that one of the tests below has started.
pub fn act(act: &str, group: &ProcessGroup) -> Outcome {
    let (rank, world) = (group.share().rank(), group.share().world());
    let stand_still = || thread::sleep(Duration::from_secs(60)); // until it is killed or stopped
    let done = match act {
        "share" => return share(group),
        "fail" => {
            if rank + 1 == world {
                stand_still();
            }
            let lost = group.sum(&mut [Tensor::from_slice(&[1.0f32])]);
            let reduce: &dyn Reduce = group;
            let again = reduce.sum(&mut [Tensor::from_slice(&[1.0f32])]);
            assert!(matches!(again, Err(reft_train::Error::Reduction { .. })), "{again:?}");
            lost
        }
        "fail first" => {
            if rank == 0 {
                stand_still();
            }
            group.barrier()
        }
        "leave" if rank == 1 => return Ok(()),
        "leave" => group.barrier(),
        "shapes" => {
            group.sum(&mut [Tensor::zeros([2 + rank as i64, 3], (Kind::Float, Device::Cpu))])
        }
        "order" if rank == 0 => group.barrier(),
        "order" => group.broadcast(&mut []),
        other => return Err(format!("nobody does {other:?}").into()),
    };
    say(done.map_or_else(|error| error.to_string(), |()| "no error".to_owned()));
    Ok(())
}

/// Tensors of several kinds and shapes are summed and broadcast in one call, in place.
fn share(group: &ProcessGroup) -> Outcome {
    let (rank, world) = (group.share().rank() as f64, group.share().world() as f64);
    let total = world * (world + 1.0) / 2.0; // of rank + 1
    let own = |kind| (Tensor::arange(6, (kind, Device::Cpu)) + 0.1) * (rank + 1.0);
    let mut tensors = [
        own(Kind::Float).reshape([2, 3]),
        own(Kind::Double),
        own(Kind::Float).reshape([3, 2]).tr(),
        Tensor::from_slice(&[rank as i64]),
        Tensor::zeros([0, 4], (Kind::Float, Device::Cpu)),
    ];
    group.sum(&mut tensors)?;
    for (tensor, tolerance) in [(&tensors[0], 1e-6), (&tensors[1], 1e-14)] {
        let sum = (Tensor::arange(6, (Kind::Double, Device::Cpu)) + 0.1) * total;
        let difference = (tensor.to_kind(Kind::Double).reshape([-1]) - sum).abs().max();
        assert!(difference.double_value(&[]) < tolerance * 6.0 * total, "{difference}");
    }
    let difference = (tensors[2].tr().reshape([2, 3]) - &tensors[0]).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "one that is not contiguous: {difference}"); // f32, summed in another order
    assert_eq!(tensors[3].int64_value(&[0]), (world * (world - 1.0) / 2.0) as i64);
    let mut start = [own(Kind::Double), own(Kind::Float)];
    group.broadcast(&mut start)?;
    let first = Tensor::arange(6, (Kind::Double, Device::Cpu)) + 0.1;
    assert_eq!(start[0], first, "that of rank 0");
    // summed in f32 and rounded once: 256 + world, where bf16 counts in twos and 256 + 1 would stay 256
    let is_first = if group.share().is_first() { 256.0 } else { 1.0 };
    for kind in [Kind::BFloat16, Kind::Half] {
        let mut few = [Tensor::from(is_first).to_kind(kind)];
        group.sum(&mut few)?;
        let whole = Tensor::from(256.0 + world - 1.0).to_kind(kind);
        assert_eq!((few[0].kind(), few[0].double_value(&[])), (kind, whole.double_value(&[])));
    }
    let other = group.sum(&mut [Tensor::zeros([2], (Kind::Int8, Device::Cpu))]);
    assert!(matches!(other, Err(Error::Kind { .. })), "{other:?}");
    group.barrier()?;
    say(format!("{:?}", Vec::<f64>::try_from(&tensors[1])?));
    Ok(())
}

#[test]
fn two_and_four_processes_sum_and_broadcast() -> Outcome {
    for world in [2, 4] {
        let (mut processes, mut sums) = (run("share", world)?, Vec::new());
        for process in &mut processes {
            assert_eq!(process.says()?, "here");
            sums.push(process.says()?);
            assert!(process.child.wait()?.success());
        }
        assert!(sums.iter().all(|sum| *sum == sums[0]), "bit for bit the same: {sums:?}");
    }
    Ok(())
}

/// Starts a run and sends one process a signal when all are connected. Returns the message of each other process and the seconds until then.
fn after_signal(act: &str, world: usize, to: usize, signal: &str) -> Outcome<Vec<(String, f64)>> {
    let processes = run(act, world)?;
    for process in &processes {
        assert_eq!(process.says()?, "here");
    }
    let started = Instant::now();
    processes[to].signal(signal)?;
    let others = processes.iter().enumerate().filter(|(rank, _)| *rank != to);
    others.map(|(_, process)| Ok((process.says()?, started.elapsed().as_secs_f64()))).collect()
}

#[test]
fn a_process_that_is_killed_is_an_error_on_the_others_within_a_second() -> Outcome {
    for world in [2, 4] {
        for (said, seconds) in after_signal("fail", world, world - 1, "-KILL")? {
            let named = format!("rank {} of {world} processes", world - 1);
            assert!(said.starts_with(&named) && said.contains("killed"), "{said}");
            assert!(seconds < 1.0, "{seconds} s: {said}");
        }
    }
    let lost = after_signal("fail first", 3, 0, "-KILL")?;
    for (said, seconds) in lost {
        assert!(said.starts_with("rank 0 of 3 processes"), "{said}");
        assert!(seconds < 1.0, "{seconds} s: {said}");
    }
    Ok(())
}

#[test]
fn a_process_that_is_stopped_is_an_error_at_the_time_limit() -> Outcome {
    for (act, world, to) in [("fail", 3, 2), ("fail first", 2, 0)] {
        for (said, seconds) in after_signal(act, world, to, "-STOP")? {
            assert!(said.starts_with(&format!("rank {to} of {world} processes")), "{said}");
            let limit = LIMIT as f64;
            assert!((limit * 0.75..limit + 2.0).contains(&seconds), "{seconds} s: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_process_that_never_comes_is_named_at_the_time_limit() -> Outcome {
    for absent in [1, 0] {
        let (port, started) = (port()?, Instant::now());
        let ranks = (0..3).filter(|rank| *rank != absent);
        let here: Vec<_> =
            ranks.map(|rank| Process::start("share", rank, 3, port)).collect::<Outcome<_>>()?;
        for process in &here {
            let said = process.says()?;
            assert!(said.starts_with(&format!("rank {absent} of 3 processes")), "{said}");
            assert!(said.contains("did not come within 2 s"), "{said}");
            let seconds = started.elapsed().as_secs_f64();
            // processes take their time to start on a machine that is busy
            assert!((LIMIT as f64..LIMIT as f64 + 10.0).contains(&seconds), "{seconds} s");
        }
    }
    Ok(())
}

#[test]
fn a_process_that_leaves_is_named() -> Outcome {
    let processes = run("leave", 3)?;
    for (rank, process) in processes.iter().enumerate() {
        assert_eq!(process.says()?, "here");
        if rank != 1 {
            let said = process.says()?;
            assert!(said.starts_with("rank 1 of 3 processes (counted from 0) ended"), "{said}");
        }
    }
    Ok(())
}

/// Without the check Gloo would abort a process from one of its threads.
#[test]
fn what_differs_is_refused_before_anything_is_sent() -> Outcome {
    let other_data = run("other data", 3)?;
    for (rank, process) in other_data.iter().enumerate() {
        let said = process.says()?;
        assert!(said.contains("do not agree on the data"), "{said}");
        assert!(said.contains(&format!("rank {rank} has {}", ["a", "b"][usize::from(rank == 1)])));
    }
    for (act, own) in [
        ("shapes", ["sum of 1 tensors: f32 [2, 3]", "sum of 1 tensors: f32 [3, 3]"]),
        ("order", ["barrier of 0 tensors", "broadcast of 0 tensors"]),
    ] {
        for (process, own) in run(act, 2)?.iter_mut().zip(own) {
            assert_eq!(process.says()?, "here");
            let said = process.says()?;
            assert!(
                said.contains("do not agree on what they share") && said.contains(own),
                "{said}"
            );
            assert!(process.child.wait()?.success(), "no process was ended");
        }
    }
    Ok(())
}

#[test]
fn a_process_alone_shares_with_itself_and_says_what_sums() -> Outcome {
    let group = ProcessGroup::join(&ProcessPlace::alone()?, &[])?;
    share(&group)?;
    assert_eq!(group.connect_gpus(Reduction::Gloo, Device::Cpu)?, "Gloo");
    let told = group.connect_gpus(Reduction::Auto, Device::Cpu)?;
    assert!(told.starts_with("Gloo, without NCCL: rank 0: it computes on a CPU"), "{told}");
    let refused = group.connect_gpus(Reduction::Nccl, Device::Cpu);
    let Err(Error::Gpus { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("leave out --reduce"), "{reason}");
    share(&group)
}
