use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use reft_models::{ContextLimit, Engine, EngineOptions, Event, Model, Request, Row};
use tokio::sync::mpsc::error::TrySendError;

use crate::api::error::ApiError;
use crate::error::{Error, Result};
use crate::worker::counts::Counts;
use crate::worker::generation::Generation;
use crate::worker::job::{Command, Edits, Job, Measurement, NewToken, Piece};
use crate::worker::loaded::LoadedAdapters;

/// How the worker computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerOptions {
    pub(crate) engine: EngineOptions,
    /// Most bytes of adapters that no request uses.
    pub(crate) adapter_bytes: usize,
    /// Called when there has been nothing to do for [`REST`].
    pub(crate) at_rest: fn(),
}

/// Idle time after which the worker calls [`WorkerOptions::at_rest`].
const REST: Duration = Duration::from_secs(1);

/// Executes commands on this thread, which owns all tensors, until all senders are gone. Calls `is_ready` when the first adapters are
/// loaded.
///
/// # Errors
/// If the model cannot generate, or one of the first adapters cannot be used.
pub(crate) fn work(
    model: &dyn Model,
    options: WorkerOptions,
    first: &[Arc<Generation>],
    commands: &Receiver<Command>,
    counts: &Counts,
    is_ready: impl FnOnce(),
) -> Result<()> {
    let engine = Engine::new(model, options.engine)?;
    let mut adapters = LoadedAdapters::new(options.adapter_bytes);
    for generation in first {
        let read = adapters.get(model, generation);
        read.map_err(|refused| Error::Adapter(refused.message))?;
        adapters.make_room();
    }
    is_ready();
    let mut worker = Worker { model, options, engine, adapters, jobs: HashMap::new(), counts };
    loop {
        if worker.engine.is_idle() {
            worker.tell_counts();
            let next = commands.recv_timeout(REST).or_else(|_| {
                (options.at_rest)(); // also called at the server's end, which does no harm
                commands.recv()
            });
            match next {
                Ok(command) => worker.act_on(command),
                Err(_) => return Ok(()),
            }
        }
        loop {
            match commands.try_recv() {
                Ok(command) => worker.act_on(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        worker.give_up_what_nobody_wants();
        worker.step()?;
        worker.tell_counts();
    }
}

struct Worker<'a> {
    model: &'a dyn Model,
    options: WorkerOptions,
    engine: Engine<'a>,
    adapters: LoadedAdapters,
    /// The jobs by the engine's ids.
    jobs: HashMap<u64, Running>,
    counts: &'a Counts,
}

/// A job in the engine.
struct Running {
    job: Job,
    /// When it came, or had its last token.
    since: Instant,
    is_begun: bool,
}

impl Worker<'_> {
    fn act_on(&mut self, command: Command) {
        match command {
            Command::Generate(jobs) => jobs.into_iter().for_each(|job| self.begin(job)),
            Command::Measure(measurement) => self.measure(measurement),
            Command::Load(generation, answer) => {
                let loaded = self.adapters.get(self.model, &generation).map(drop);
                self.adapters.make_room();
                // the client may have gone
                let _ = answer.send(loaded);
            }
            Command::Forget(generation) => self.adapters.forget(&generation),
        }
    }

    fn begin(&mut self, job: Job) {
        let submitted = self.adapters.stack(self.model, &job.adapters).and_then(|adapters| {
            let row = Row::prompt(job.prompt.clone());
            let (mut config, stream) = (job.config.clone(), job.choice as u64);
            if job.is_length_free {
                let context = ContextLimit::of(self.model.description(), &adapters);
                let left = context.room().saturating_sub(job.prompt.len()).max(1);
                config.max_new_tokens = config.max_new_tokens.min(left);
            }
            let submitted = self.engine.submit(Request { row, adapters, config, stream });
            submitted.map_err(|refused| ApiError::refused(&refused))
        });
        match submitted {
            Ok(id) => {
                self.counts.prompt_tokens.increment(job.prompt.len() as u64);
                for used in &job.adapters {
                    self.counts.adapter_request(&used.generation.name);
                }
                let since = job.came;
                self.jobs.insert(id, Running { job, since, is_begun: false });
            }
            Err(error) => fail(&job, error),
        }
    }

    /// Measures a prompt's edits between two steps. The replies in flight wait meanwhile.
    fn measure(&mut self, Measurement { prompt, adapters: used, answer, .. }: Measurement) {
        if answer.is_closed() {
            return;
        }
        let edits = self.adapters.stack(self.model, &used).and_then(|stack| {
            let measured = unless_it_panics(|| stack.edit_sizes(self.model, Row::prompt(prompt)));
            let measured = measured.map_err(|panic| {
                log::error!("edits could not be measured: {panic}");
                ApiError::failed()
            });
            let sizes = measured?.map_err(|refused| ApiError::refused(&refused))?;
            let subspaces = self.adapters.subspaces(self.model, &used)?;
            Ok(Edits { sizes, subspaces })
        });
        self.adapters.make_room();
        // the client may have gone
        let _ = answer.send(edits);
    }

    /// Cancels replies that need no more tokens, and replies whose client has gone.
    fn give_up_what_nobody_wants(&mut self) {
        let engine = &mut self.engine;
        self.jobs.retain(|id, Running { job, .. }| {
            let is_wanted = !job.is_over.is_set() && !job.reply.is_closed();
            if !is_wanted {
                engine.cancel(*id);
            }
            is_wanted
        });
    }

    fn step(&mut self) -> Result<()> {
        let error = match unless_it_panics(|| self.engine.step()) {
            Ok(Ok(events)) => {
                events.into_iter().for_each(|event| self.tell(event));
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic,
        };
        log::error!("a step of the model failed, and the replies in flight with it: {error}");
        for (_, Running { job, .. }) in self.jobs.drain() {
            fail(&job, ApiError::failed());
        }
        self.engine = Engine::new(self.model, self.options.engine)?;
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        let (id, what) = match event {
            Event::Token { id, token, logprobs, finish } => {
                (id, Ok(NewToken { id: token, logprobs, finish }))
            }
            Event::Failed { id, error } => (id, Err(error)),
        };
        let Some(running) = self.jobs.get_mut(&id) else { return };
        let what = what.map_err(|error| {
            log::error!("a reply failed: {error}");
            ApiError::failed()
        });
        let job = &running.job;
        if what.is_ok() {
            let seconds = running.since.elapsed().as_secs_f64();
            let of = match running.is_begun {
                true => &self.counts.next_token,
                false => &self.counts.first_token,
            };
            of.record(seconds);
            (running.since, running.is_begun) = (Instant::now(), true);
            self.counts.generated_tokens.increment(1);
            for used in &job.adapters {
                self.counts.adapter_token(&used.generation.name);
            }
        }
        let is_last = what.as_ref().map_or(true, |token| token.finish.is_some());
        let (choice, reply) = (job.choice, job.reply.clone());
        if is_last {
            self.jobs.remove(&id); // its place is free before the client learns of the end
            self.adapters.make_room();
        }
        let sent = reply.try_send(Piece { choice, what });
        if let Err(TrySendError::Closed(_) | TrySendError::Full(_)) = &sent
            && self.jobs.remove(&id).is_some()
        {
            self.engine.cancel(id); // the channel has room for a whole reply, so the client has gone
            self.adapters.make_room();
        }
    }

    fn tell_counts(&self) {
        let (waiting, in_flight) = self.engine.requests();
        self.counts.waiting.set(waiting as f64);
        self.counts.in_flight.set(in_flight as f64);
        let (reused, kept) = self.engine.prefixes();
        self.counts.reused_tokens.absolute(reused);
        self.counts.kept_tokens.set(kept as f64);
        self.counts.kv_bytes.set(self.engine.cached_bytes() as f64);
        let (adapters, bytes) = self.adapters.size();
        self.counts.adapters.set(adapters as f64);
        self.counts.adapter_bytes.set(bytes as f64);
    }
}

/// The result of a computation, or the message of its panic. libtorch panics where a tensor cannot be made, mostly for want of memory.
fn unless_it_panics<T>(act: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("").to_owned()
    })
}

/// Sends a job's client the error, if it is still connected.
fn fail(job: &Job, error: ApiError) {
    let _ = job.reply.try_send(Piece { choice: job.choice, what: Err(error) });
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use reft_models::Decoder;
    use reft_test_support::{Outcome, oracle};
    use tch::{Device, Kind};

    use super::*;

    static RESTS: AtomicUsize = AtomicUsize::new(0);

    /// The worker rests once after each piece of work, and never while there is work.
    #[test]
    fn a_worker_rests_once_when_nothing_is_left() -> Outcome {
        let model = Decoder::open(&oracle("tiny_llama"), Kind::Float, Device::Cpu)?;
        let at_rest = || {
            RESTS.fetch_add(1, Ordering::Relaxed);
        };
        let options = WorkerOptions { engine: EngineOptions::default(), adapter_bytes: 0, at_rest };
        let (sender, commands) = mpsc::sync_channel(1);
        let rests = std::thread::spawn(move || -> Vec<usize> {
            let mut rests = Vec::new();
            for pause in [REST / 4, REST / 4, 3 * REST, 2 * REST] {
                std::thread::sleep(pause);
                rests.push(RESTS.load(Ordering::Relaxed));
                let nobody = Generation::unread("nobody", PathBuf::new());
                // if the worker has ended, the counts show it
                let _ = sender.send(Command::Forget(Arc::new(nobody)));
            }
            rests
        });
        work(&model, options, &[], &commands, &Counts::new()?, || {})?;
        let rests = rests.join().map_err(|_| "the sender panicked")?;
        assert_eq!(rests, [0, 0, 1, 2]);
        Ok(())
    }
}
