//! Accepting connections, and coming to an end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use millrace_core::limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::Service;

use self::reader::Bounded;
use super::{Api, Local, Peer, Stage};
use crate::broker::{Broker, Catalog};
use crate::tls;
use crate::worker::Revision;

mod reader;

/// Pause after a connection could not be accepted, for example because the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` completes; then lets the requests under way come to their end, as far as they do within the
/// configured time. From then on the API says that it is draining, and requests that wait for records are answered.
///
/// Dropping the future closes all connections at once; what was published is durable or was not acknowledged.
pub async fn serve<B: Broker + Catalog, R: Revision>(
    listener: TcpListener,
    api: Api<B, R>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let router = super::router(Arc::clone(&api.shared));
    let graceful = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                report(ended);
                continue;
            }
            accepted = accept(&listener, &free) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let connection = Connection { peer, router: router.clone(), watcher: graceful.watcher() };
                let (tls, stage) = (api.shared.tls.clone(), api.shared.stage.subscribe());
                connections.spawn(connection.serve(stream, tls, stage, permit));
            }
            Err(error) => {
                tracing::warn!(%error, "A connection could not be accepted; it is tried again.");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    api.shared.begin_to_drain();
    let end = Instant::now() + api.shared.drain;
    if tokio::time::timeout_at(end, graceful.shutdown()).await.is_err() {
        let open = connections.len();
        tracing::warn!(open, "Some requests did not come to their end in time; their connections are closed.");
    }
    connections.shutdown().await;
    // Those whose clients gave up.
    let mut changing = api.shared.changing.subscribe();
    if tokio::time::timeout_at(end, changing.wait_for(|changes| *changes == 0)).await.is_err() {
        tracing::warn!("Something that was begun to be changed did not come to its end in time.");
    }
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

/// Waits for a connection and for room to serve it; beyond the bound connections wait in the kernel.
async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> std::io::Result<Accepted> {
    let permit = Arc::clone(free).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "A connection ended with a panic; please report it.");
    }
}

struct Connection {
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
}

impl Connection {
    async fn serve(
        self,
        stream: TcpStream,
        tls: Option<Arc<tls::Identity>>,
        mut stage: watch::Receiver<Stage>,
        _permit: OwnedSemaphorePermit,
    ) {
        let peer = self.peer;
        // Answers are small and whole: waiting for more to send only delays them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "Nagle's algorithm could not be switched off.");
        }
        let local = Local(stream.local_addr().ok().map(|address| address.ip()));
        let Some(tls) = tls else { return self.answer(stream, local).await };
        // Nothing was asked yet, so that whoever is slow now must not hold up the end.
        let agreed = tokio::select! {
            biased;
            _ = stage.wait_for(|stage| *stage == Stage::Draining) => return,
            agreed = tls.accept(stream) => agreed,
        };
        match agreed {
            Ok(stream) => self.answer(stream, local).await,
            Err(error) => tracing::debug!(%peer, %error, "A connection was closed, since TLS was not agreed on."),
        }
    }

    /// Answers the requests that come in on a stream.
    async fn answer<S: AsyncRead + AsyncWrite + Unpin + 'static>(self, stream: S, local: Local) {
        let Self { peer, router, watcher } = self;
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(local);
            request.extensions_mut().insert(Peer(peer));
            router.clone().call(request)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::REQUEST_READ_TIMEOUT)
            .max_buf_size(limits::CONNECTION_BUFFER_MAX_BYTES)
            .serve_connection(TokioIo::new(Bounded::new(stream)), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%peer, %error, "A connection ended early.");
        }
    }
}
