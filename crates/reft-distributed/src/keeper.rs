use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use reft_train::Share;
use serde_json::{Value, json};

use crate::{ProcessPlace, Store, StoreHost};

/// How often a process increments its counter in the store.
const BEAT: Duration = Duration::from_millis(50);

/// A process counts as silent if its counter stays the same for this long.
const LOOK: Duration = Duration::from_millis(500);

/// How long the process that serves the store stays alive so that the others can read it.
const LINGER: Duration = Duration::from_secs(1);

/// The store's key for a loss: all processes report the loss that was written first.
const LOSS: &str = "loss";

/// The loss of processes of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Empty for the launcher.
    pub(crate) ranks: Vec<usize>,
    pub(crate) what: String,
}

impl Loss {
    /// The loss if the store does not answer: the process that serves it; `None` if this process serves it.
    pub(crate) fn of_store(place: &ProcessPlace) -> Option<Self> {
        let ranks = match place.store {
            StoreHost::First => vec![0],
            StoreHost::Launcher => Vec::new(),
        };
        let what = "cannot be reached any more, and with it the store of the run".to_owned();
        (!place.serves()).then_some(Self { ranks, what })
    }
}

/// A thread that increments this process's counter in the store, also during computations, and reads the losses that others have written.
#[derive(Debug)]
pub(crate) struct Keeper {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
    loss: Arc<Mutex<Option<Loss>>>,
}

impl Keeper {
    pub(crate) fn start(store: Store, place: &ProcessPlace) -> Self {
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let loss = Arc::new(Mutex::new(None));
        let (found, place) = (Arc::clone(&loss), place.clone());
        thread::spawn(move || {
            if keep(&store, &place, &stopped, &found).is_err() {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                *found = found.take().or_else(|| Loss::of_store(&place));
            }
            drop(end);
        });
        Self { stop: Some(stop), ended, loss }
    }

    /// The loss that another process has found.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The store never answers if its process is stopped, so the wait has a limit.
        let _ = self.ended.recv_timeout(LINGER * 2);
    }
}

fn keep(
    store: &Store,
    place: &ProcessPlace,
    stopped: &Receiver<()>,
    found: &Mutex<Option<Loss>>,
) -> Result<(), String> {
    let share = place.share;
    loop {
        store.add(&beat(share.rank()), 1)?;
        if let Some(loss) = written(store)? {
            *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(loss);
        }
        if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    store.add(&left(share.rank()), 1)?;
    let deadline = Instant::now() + LINGER;
    while place.serves() && Instant::now() < deadline {
        if counters(store, share, left)?.iter().all(|count| *count > 0) {
            break;
        }
        thread::sleep(BEAT / 5);
    }
    Ok(())
}

/// Waits until all processes have connected. Processes that are missing at the end of `limit` are lost.
pub(crate) fn wait_for_all(
    store: &Store,
    share: Share,
    limit: Duration,
) -> Result<Option<Loss>, String> {
    let deadline = Instant::now() + limit;
    loop {
        let missing = ranks(&counters(store, share, beat)?, |count| count == 0);
        if missing.is_empty() {
            return Ok(None);
        }
        if let Some(loss) = written(store)? {
            return Ok(Some(loss));
        }
        if Instant::now() >= deadline {
            let what = format!("did not come within {} s", limit.as_secs_f64());
            return write(store, Loss { ranks: missing, what }).map(Some);
        }
        thread::sleep(BEAT / 5);
    }
}

/// Finds the lost processes after an error; `None` if all are alive. The loss is written to the store for the others.
pub(crate) fn look(store: &Store, share: Share) -> Result<Option<Loss>, String> {
    if let Some(loss) = written(store)? {
        return Ok(Some(loss));
    }
    let before = counters(store, share, beat)?;
    thread::sleep(LOOK);
    let after = counters(store, share, beat)?;
    let departures = counters(store, share, left)?;
    // read last: a process that leaves because of a loss writes the loss first
    if let Some(loss) = written(store)? {
        return Ok(Some(loss));
    }
    let others = |ranks: Vec<usize>| -> Vec<usize> {
        ranks.into_iter().filter(|rank| *rank != share.rank()).collect()
    };
    let gone = others(ranks(&departures, |count| count > 0));
    let moved: Vec<i64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
    let silent = others(ranks(&moved, |beats| beats == 0));
    let loss = match (gone.is_empty(), silent.is_empty()) {
        (false, _) => Loss { ranks: gone, what: "ended before the others".to_owned() },
        (true, false) => {
            let what = "say nothing any more: they were killed, stopped or cut off";
            Loss { ranks: silent, what: what.to_owned() }
        }
        (true, true) => return Ok(None),
    };
    write(store, loss).map(Some)
}

/// Writes a loss to the store for the others.
fn write(store: &Store, loss: Loss) -> Result<Loss, String> {
    store.set(&format!("{LOSS}/which"), &json!([loss.ranks, loss.what]).to_string())?;
    store.add(LOSS, 1)?;
    Ok(loss)
}

/// The loss that a process has found and written.
fn written(store: &Store) -> Result<Option<Loss>, String> {
    if store.add(LOSS, 0)? == 0 {
        return Ok(None);
    }
    let text = store.get(&format!("{LOSS}/which"), LOOK)?;
    let which: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let numbers = which[0].as_array().into_iter().flatten().filter_map(Value::as_u64);
    let ranks = numbers.filter_map(|rank| usize::try_from(rank).ok()).collect();
    Ok(Some(Loss { ranks, what: which[1].as_str().unwrap_or_default().to_owned() }))
}

fn beat(rank: usize) -> String {
    format!("beat/{rank}")
}

fn left(rank: usize) -> String {
    format!("left/{rank}")
}

fn counters(store: &Store, share: Share, key: fn(usize) -> String) -> Result<Vec<i64>, String> {
    (0..share.world()).map(|rank| store.add(&key(rank), 0)).collect()
}

fn ranks(counts: &[i64], wanted: fn(i64) -> bool) -> Vec<usize> {
    let of = |(rank, count): (usize, &i64)| wanted(*count).then_some(rank);
    counts.iter().enumerate().filter_map(of).collect()
}
