/// An error that keeps a server from starting, or ends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Other machines could use the server without a key.
    #[error(
        "host {0} lets other machines use the server, and there is no key; give one by --api-key-file or REFT_API_KEY, or use --host 127.0.0.1"
    )]
    NoKey(std::net::IpAddr),
    /// A key that is too short, or no key.
    #[error("an API key has {found} characters, expected at least {expected}; give one key a line")]
    ShortKey {
        /// Characters of the shortest.
        found: usize,
        /// The fewest that a key may have.
        expected: usize,
    },
    /// An adapter that was named at the start cannot be used.
    #[error("{0}")]
    Adapter(String),
    /// The server cannot listen on its address.
    #[error("cannot listen on {address}: {source}; is another server there? use another --port")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A thread or its runtime cannot be started.
    #[error("cannot start the server: {0}")]
    Start(#[from] std::io::Error),
    /// Two adapters have one name, or a name is invalid.
    #[error("adapter name {name:?} {reason}")]
    AdapterName {
        /// The name.
        name: String,
        /// The fault.
        reason: &'static str,
    },
    /// A directory that cannot be used.
    #[error("cannot use {what} {path}: {reason}")]
    Directory {
        /// Its purpose.
        what: &'static str,
        /// Where.
        path: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// The exporter of metrics fails.
    #[error("cannot count: {0}")]
    Metrics(String),
    /// The model fails.
    #[error(transparent)]
    Model(#[from] reft_models::Error),
    /// An adapter fails.
    #[error(transparent)]
    Method(#[from] reft_methods::Error),
}

/// A result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
