use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use reft_models::Model;
use tokio::runtime::{Builder, Runtime};

use crate::api::catalogue::Catalogue;
use crate::api::prompt::ServedText;
use crate::api::request::Defaults;
use crate::error::{Error, Result};
use crate::http::connections::answer_all;
use crate::http::shared::{Phase, Ready, Shared, now_and_then};
use crate::options::ServeOptions;
use crate::worker::counts::Counts;
use crate::worker::job::Command;
use crate::worker::run::{WorkerOptions, work};

/// A server that listens. It answers that it is loading until [`Self::serve`] is called.
pub struct Server {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    http: JoinHandle<()>,
}

/// Ends a server.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

/// Threads that handle HTTP; other threads tokenize prompts and generate.
const HTTP_THREADS: usize = 2;
/// Most threads that tokenize prompts; no more than the machine has cores. They stay: a thread that ends leaves freed memory behind, which
/// the next thread does not reuse at once.
const READING_THREADS: usize = 4;
/// How long a thread stays without work.
const STAY: Duration = Duration::from_secs(86_400);
/// Most commands in addition to the queue's requests: loading and unloading of adapters.
const OTHER_COMMANDS: usize = 64;
/// How long clients may take to receive the error at the server's end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often measured values are sorted into the histograms.
const TIDYING: Duration = Duration::from_secs(5);

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// [`Error::NoKey`] for an address that other machines reach without a key; unusable names of adapters, directories and ports.
    pub fn bind(options: ServeOptions) -> Result<Self> {
        if !options.host.is_loopback() && options.keys.is_none() {
            return Err(Error::NoKey(options.host));
        }
        let adapters_dir = options.adapters_dir.as_deref();
        let catalogue = Catalogue::new(&options.model_name, &options.adapters, adapters_dir)?;
        let counts = Counts::new()?;
        let asked = SocketAddr::new(options.host, options.port);
        let listen = |source| Error::Listen { address: asked, source };
        let listener = TcpListener::bind(asked).map_err(listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (sender, commands) = sync_channel(options.room() + OTHER_COMMANDS);
        let shared = Arc::new(Shared::new(options, address, catalogue, counts, sender));
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let before_waiting = shared.options.before_waiting;
        let runtime = Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS)
            .max_blocking_threads(cores.min(READING_THREADS))
            .thread_keep_alive(STAY)
            .thread_name("reft-http")
            .on_thread_park(move || now_and_then(before_waiting))
            .enable_io()
            .enable_time()
            .build()?;
        let own = Arc::clone(&shared);
        let http = std::thread::Builder::new().name("reft-serve".to_owned());
        let http = http.spawn(move || speak(runtime, listener, &own))?;
        Ok(Self { shared, commands, http })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// A handle that ends the server, from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Answers requests until it is stopped. It calls `is_ready` when it begins to answer. All tensors stay on this thread.
    ///
    /// # Errors
    /// If the model cannot generate, or an adapter that was named at the start cannot be used.
    pub fn serve(self, model: &dyn Model, text: ServedText, is_ready: impl FnOnce()) -> Result<()> {
        let Self { shared, commands, http } = self;
        let options = &shared.options;
        let stop_ids = text.tokenizer.eos_ids().to_vec();
        let defaults = Defaults { reply_tokens: options.reply_tokens, stop_ids };
        let worker = WorkerOptions {
            engine: options.engine,
            adapter_bytes: options.adapter_bytes,
            at_rest: options.at_rest,
        };
        let first = shared.catalogue.given();
        let worked = work(model, worker, &first, &commands, &shared.counts, || {
            let is_new = shared.text.set(Ready { text, defaults }).is_ok();
            debug_assert!(is_new, "invariant: a server serves once");
            shared.enter(Phase::Ready);
            is_ready();
        });
        if worked.is_err() {
            shared.enter(Phase::Ended);
        }
        drop(commands);
        http.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked
    }
}

impl Stopper {
    /// Takes no new requests. Requests in flight finish within [`ServeOptions::grace`], or get an error.
    pub fn stop(&self) {
        self.0.enter(Phase::Stopping);
    }
}

/// Answers until the server is stopped.
fn speak(runtime: Runtime, listener: TcpListener, shared: &Arc<Shared>) {
    runtime.block_on(async {
        let upkeep = async {
            loop {
                tokio::time::sleep(TIDYING).await;
                shared.counts.tidy_up();
            }
        };
        let over = async {
            shared.reach(Phase::Stopping).await;
            tokio::select! {
                () = tokio::time::sleep(shared.options.grace) => {}
                () = shared.reach(Phase::Ended) => {}
            }
            shared.enter(Phase::Ended);
            tokio::time::sleep(LAST_WORDS).await;
        };
        let answering = async {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return log::error!("cannot listen: {error}"),
            };
            answer_all(listener, shared).await;
        };
        tokio::select! {
            () = upkeep => {}
            () = over => {}
            () = answering => {}
        }
    });
    shared.enter(Phase::Ended);
    shared.hang_up();
    runtime.shutdown_timeout(LAST_WORDS);
}
