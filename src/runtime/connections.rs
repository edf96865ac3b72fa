//! The one loop that serves HTTP/1.1, with or without TLS: a cap on
//! connections, time-outs for handshake and headers, and an end in good order.
//!
//! `axum::serve` has none of these limits, and every server of ours can be
//! reached from other namespaces.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::Request, response::Response};
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

/// What answers requests. Clones share everything.
pub trait Answer: Clone + Send + 'static {
    /// Answers one request.
    fn answer(self, request: Request) -> impl Future<Output = Response> + Send + 'static;
}

impl Answer for Router {
    fn answer(mut self, request: Request) -> impl Future<Output = Response> + Send + 'static {
        let answer = self.call(request);
        async move { answer.await.unwrap_or_else(|never| match never {}) }
    }
}

/// Serves until `shutdown`; then takes no new connection, lets requests under way
/// end within the grace and cuts off the rest.
pub async fn serve(listener: TcpListener, answer: impl Answer, options: ServerOptions, shutdown: CancellationToken) {
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
        let (transport, answer, shutdown) = (transport.clone(), answer.clone(), shutdown.clone());
        connections.spawn(async move {
            serve_stream(stream, transport, answer, shutdown).await;
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

async fn serve_stream(stream: TcpStream, transport: Transport, answer: impl Answer, shutdown: CancellationToken) {
    // Answers are small: waiting to fill a packet only delays them.
    stream.set_nodelay(true).ok();
    match transport {
        Transport::Plain => serve_connection(stream, answer, shutdown).await,
        Transport::Tls(configs) => {
            let Some(config) = configs.borrow().clone() else { return };
            match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => serve_connection(stream, answer, shutdown).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_elapsed) => tracing::debug!("a TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}"),
            }
        }
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Answer,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = answer.clone().answer(request.map(Body::new));
        async move { Ok::<_, Infallible>(answer.await) }
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

    struct Server {
        address: std::net::SocketAddr,
        shutdown: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(router: Router, connections_max: usize, grace: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let options = ServerOptions { transport: Transport::Plain, connections_max, grace };
        let task = tokio::spawn(serve(listener, router, options, shutdown.clone()));
        Server { address, shutdown, task }
    }

    async fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test]
    async fn a_connection_beyond_the_cap_waits_for_its_turn() {
        let (entered, mut order) = tokio::sync::mpsc::unbounded_channel();
        let handler = async move |uri: http::Uri| entered.send(uri.path().to_owned()).unwrap();
        let server = start(Router::new().fallback(handler), 1, Duration::ZERO).await;
        let first = TcpStream::connect(server.address).await.unwrap();
        let second = TcpStream::connect(server.address).await.unwrap();
        let late = tokio::spawn(exchange(second, b"GET /second HTTP/1.1\r\nconnection: close\r\n\r\n"));
        tokio::task::yield_now().await;
        exchange(first, b"GET /first HTTP/1.1\r\nconnection: close\r\n\r\n").await;
        late.await.unwrap();
        assert_eq!([order.recv().await.unwrap(), order.recv().await.unwrap()], ["/first", "/second"]);
    }

    #[tokio::test]
    async fn headers_beyond_the_limit_are_refused() {
        let server = start(Router::new().route("/", get(async || "hi")), 8, Duration::ZERO).await;
        let check = async |bytes: usize, expected: &str| {
            let request = format!("GET / HTTP/1.1\r\nconnection: close\r\na: {}\r\n\r\n", "x".repeat(bytes));
            let stream = TcpStream::connect(server.address).await.unwrap();
            let answer = exchange(stream, request.as_bytes()).await;
            assert!(answer.starts_with(expected), "{answer}");
        };
        check(HEADER_BYTES_MAX - 1_000, "HTTP/1.1 200").await;
        check(HEADER_BYTES_MAX + 1, "HTTP/1.1 431").await;
    }

    #[tokio::test]
    async fn a_request_under_way_ends_after_the_shutdown_and_one_that_hangs_is_cut_off() {
        let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (seen, wait) = (Arc::clone(&arrived), Arc::clone(&go_on));
        let handler = get(async move || {
            seen.notify_one();
            wait.notified().await;
            "done"
        });
        let router = Router::new().route("/", handler);
        let ends = start(router.clone(), 8, Duration::from_secs(60)).await;
        let answer = tokio::spawn(exchange(TcpStream::connect(ends.address).await.unwrap(), REQUEST));
        arrived.notified().await;
        ends.shutdown.cancel();
        go_on.notify_one();
        assert!(answer.await.unwrap().ends_with("done"));
        ends.task.await.unwrap();

        let hangs = start(router, 8, Duration::from_millis(1)).await;
        let answer = tokio::spawn(exchange(TcpStream::connect(hangs.address).await.unwrap(), REQUEST));
        arrived.notified().await;
        hangs.shutdown.cancel();
        hangs.task.await.unwrap();
        assert_eq!(answer.await.unwrap(), "");
    }
}
