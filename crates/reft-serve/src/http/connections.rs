//! Connections and their time limits.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_io_timeout::TimeoutStream;

use crate::http::routes::routes;
use crate::http::shared::{Phase, Shared};

/// The pause after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers all connections until no new requests are taken, then waits for the requests in flight.
///
/// A connection that has not sent the header of a request after [`idle`](crate::ServeOptions::idle) is closed. So is one that takes
/// nothing of its answer for [`time`](crate::ServeOptions::time).
pub(crate) async fn answer_all(listener: TcpListener, shared: &Arc<Shared>) {
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(shared.options.idle);
    let routes = routes(shared);
    let open = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.reach(Phase::Stopping) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!("a connection is not accepted: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // small parts of a stream are sent at once
        if let Err(error) = stream.set_nodelay(true) {
            log::warn!("a connection may be slow: {error}");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(shared.options.time));
        let service = TowerToHyperService::new(routes.clone());
        let connection = protocol.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = open.watch(connection);
        // a broken connection or a protocol error affects only its own client
        tokio::spawn(
            async move { connection.await.unwrap_or_else(|error| log::debug!("{error}")) },
        );
    }
    drop(listener);
    open.shutdown().await;
}
