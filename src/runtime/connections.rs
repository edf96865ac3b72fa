//! The one loop that serves HTTP/1.1, with or without TLS: a cap on
//! connections, time-outs for handshake and headers, and an end in good order.
//!
//! `axum::serve` has none of these limits, and every server of ours can be
//! reached from other namespaces.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// Time for a TLS handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the headers of a request, and for an idle connection.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers of a request, in bytes, beyond which the answer is 431.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Pause after a connection could not be accepted, for lack of file
/// descriptors mostly: trying on at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What secures a connection.
#[derive(Clone, Debug)]
pub enum Transport {
    /// Plain HTTP.
    Plain,
    /// TLS with the newest configuration of the channel; while there is none,
    /// connections are closed.
    Tls(watch::Receiver<Option<Arc<rustls::ServerConfig>>>),
}

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// What secures its connections.
    pub transport: Transport,
    /// Connections at a time; more wait in the system's queue.
    pub connections_max: usize,
    /// Time for requests under way to end after the shutdown began.
    pub grace: Duration,
}

/// Serves `router` until `shutdown`; then takes no new connection, lets requests
/// under way end within the grace and cuts off the rest.
pub async fn serve_router(listener: TcpListener, router: Router, options: ServerOptions, shutdown: CancellationToken) {
    let ServerOptions { transport, connections_max, grace } = options;
    let permits = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, permit)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (transport, router, shutdown) = (transport.clone(), router.clone(), shutdown.clone());
        connections.spawn(async move {
            serve_stream(stream, transport, router, shutdown).await;
            drop(permit);
        });
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(grace, all_ended).await.is_err() {
        tracing::warn!("requests did not end within {grace:?} after the shutdown began; they are cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _peer)) => Some((stream, permit)),
        Err(error) => {
            tracing::debug!(%error, "a connection could not be accepted");
            None
        }
    }
}

async fn serve_stream(stream: TcpStream, transport: Transport, router: Router, shutdown: CancellationToken) {
    // Answers are small: waiting to fill a packet only delays them.
    stream.set_nodelay(true).ok();
    match transport {
        Transport::Plain => serve_connection(stream, router, shutdown).await,
        Transport::Tls(configs) => {
            let Some(config) = configs.borrow().clone() else { return };
            match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(stream, router, shutdown).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_elapsed) => tracing::debug!("a TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = router.clone().call(request.map(Body::new));
        async move { answer.await as Result<Response, Infallible> }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
