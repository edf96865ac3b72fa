//! From a URI to a connection: resolve, judge every address, dial exactly those,
//! look who answered, then TLS.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tower_service::Service;

use super::resolver::{ADDRESSES_MAX, RESOLVE_TIMEOUT, Resolve, ResolveError};
use crate::{
    policy::egress::{AddressRefusal, EgressPolicy, destination::pods_of},
    runtime::clock,
};

/// Time for a TCP connection, over all addresses of a name together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the TLS handshake.
pub const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be open while one returns to its pool: beyond them it is
/// closed after its request, so no more than these can be idle.
pub const POOLED_CONNECTIONS_MAX: usize = 2048;

/// Why there is no connection. For operators.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URI has no host: a mistake of ours, since a destination has one.
    #[error("the destination has no host")]
    NoHost,
    /// The name has no addresses that we accept.
    #[error("the name cannot be resolved")]
    Resolve(#[source] ResolveError),
    /// One of the addresses is forbidden, so none is dialed.
    #[error("the destination is not allowed")]
    Forbidden(#[source] AddressRefusal),
    /// There is nothing to dial.
    #[error("there is no address to dial")]
    NoAddress,
    /// The connection leads to someone who was not dialed.
    #[error("dialed the vetted addresses and reached {0}")]
    Peer(SocketAddr),
    /// No address took the connection; the last one's error.
    #[error("cannot connect to {address}")]
    Dial {
        /// The address that was dialed last.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No address took the connection in time.
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    TimedOut,
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The TLS handshake did not end.
    #[error("no TLS handshake within {TLS_TIMEOUT:?}")]
    TlsTimedOut,
}

/// Resolves and judges; never dials.
#[derive(Clone)]
pub struct Guard {
    policy: Arc<EgressPolicy>,
    resolver: Arc<dyn Resolve>,
}

impl Guard {
    /// Judges by these rules what this resolver answers.
    pub fn new(policy: Arc<EgressPolicy>, resolver: Arc<dyn Resolve>) -> Self {
        Self { policy, resolver }
    }

    /// The addresses to dial for a URI: those of the Pods that its authority
    /// carries, the literal address, or all addresses of the name. One forbidden
    /// address refuses all: a name that leads inside and outside is no accident.
    ///
    /// # Errors
    /// [`ConnectError`]; nothing may be dialed then.
    pub async fn vet(&self, uri: &Uri) -> Result<Vec<SocketAddr>, ConnectError> {
        let (Some(authority), Some(host), Some(port)) = (uri.authority(), uri.host(), port_of(uri)) else {
            return Err(ConnectError::NoHost);
        };
        let addresses = if let Some(pods) = pods_of(authority) {
            for pod in &pods {
                self.policy.judge_pod(pod.ip(), pod.port()).map_err(ConnectError::Forbidden)?;
            }
            pods
        } else {
            let addresses = self.addresses(host).await?;
            for address in &addresses {
                self.policy.judge(*address, port).map_err(ConnectError::Forbidden)?;
            }
            addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect()
        };
        if addresses.is_empty() { Err(ConnectError::NoAddress) } else { Ok(addresses) }
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ConnectError> {
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = literal.parse() {
            return Ok(vec![address]);
        }
        let answer = timeout(RESOLVE_TIMEOUT, self.resolver.resolve(host)).await;
        let addresses = answer.unwrap_or(Err(ResolveError::TimedOut)).map_err(ConnectError::Resolve)?;
        if addresses.len() > ADDRESSES_MAX {
            return Err(ConnectError::Resolve(ResolveError::TooMany(addresses.len())));
        }
        Ok(addresses)
    }
}

fn port_of(uri: &Uri) -> Option<u16> {
    uri.port_u16().or(match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    })
}

/// Counts the connections of all clients of a process.
#[derive(Clone, Debug, Default)]
pub struct OpenConnections(Arc<AtomicUsize>);

impl OpenConnections {
    /// How many are open now.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether so many are open that none is kept for later.
    pub(super) fn is_crowded(&self) -> bool {
        self.count() > POOLED_CONNECTIONS_MAX
    }

    fn open(&self) -> OpenConnection {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.0.clone())
    }
}

/// One open connection; dropping it closes the account.
struct OpenConnection(Arc<AtomicUsize>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Dials what the [`Guard`] vetted, and nothing else.
#[derive(Clone)]
pub struct Dialer {
    guard: Guard,
    open: OpenConnections,
}

impl Dialer {
    /// Dials by this guard.
    pub fn new(guard: Guard, open: OpenConnections) -> Self {
        Self { guard, open }
    }

    async fn dial(self, uri: Uri) -> Result<VettedStream, ConnectError> {
        let mut addresses = self.guard.vet(&uri).await?;
        if uri.authority().and_then(pods_of).is_some() {
            spread(&mut addresses, clock::chance());
        }
        let stream = connect(&addresses).await?;
        let peer = stream.peer_addr().map_err(|source| ConnectError::Dial { address: addresses[0], source })?;
        if !addresses.contains(&peer) {
            return Err(ConnectError::Peer(peer));
        }
        // An answer is waited for after each request, so delay gains nothing.
        stream.set_nodelay(true).map_err(|source| ConnectError::Dial { address: peer, source })?;
        Ok(VettedStream { io: TokioIo::new(stream), _account: self.open.open() })
    }
}

/// Begins with another Pod each time, so that connections spread over them.
fn spread(addresses: &mut [SocketAddr], chance: f64) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "chance is in [0, 1)")]
    let first = (chance * addresses.len() as f64) as usize;
    addresses.rotate_left(first.min(addresses.len()));
}

/// Tries the addresses in order. Each gets an equal share of the time that is
/// left, so that a dead first address does not use up the budget of the others.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let mut last = ConnectError::NoAddress;
    for (index, address) in addresses.iter().enumerate() {
        let left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        last = match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(source)) => ConnectError::Dial { address: *address, source },
            Err(_) => ConnectError::TimedOut,
        };
    }
    Err(last)
}

impl Service<Uri> for Dialer {
    type Response = VettedStream;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<VettedStream, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().dial(uri))
    }
}

/// [`Dialer`] and TLS, with one type of error and a budget of time.
#[derive(Clone)]
pub struct Connector(HttpsConnector<Dialer>);

impl Connector {
    /// TLS by this configuration over connections of this dialer. The name that
    /// the certificate must bear is the URI's host.
    pub fn new(dialer: Dialer, tls: Arc<rustls::ClientConfig>) -> Self {
        Self((dialer, tls).into())
    }

    /// A connection to the host of a URI.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub(super) async fn connect(&self, uri: Uri) -> Result<MaybeHttpsStream<VettedStream>, ConnectError> {
        // The parts before TLS have budgets of their own, so if this one is
        // exceeded it is TLS that does not end.
        let deadline = Instant::now() + RESOLVE_TIMEOUT + CONNECT_TIMEOUT + TLS_TIMEOUT;
        // `Dialer` is always ready, and `HttpsConnector` adds nothing to that.
        match timeout_at(deadline, self.0.clone().call(uri)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(match error.downcast::<ConnectError>() {
                Ok(error) => *error,
                Err(error) => ConnectError::Tls(error),
            }),
            Err(_) => Err(ConnectError::TlsTimedOut),
        }
    }
}

/// A connection to an address that was vetted.
pub struct VettedStream {
    io: TokioIo<TcpStream>,
    _account: OpenConnection,
}

impl Connection for VettedStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for VettedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for VettedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_crowded_while_more_connections_are_open_than_may_be_kept() {
        let open = OpenConnections::default();
        let mut accounts: Vec<_> = (0..POOLED_CONNECTIONS_MAX).map(|_| open.open()).collect();
        assert!(!open.is_crowded());
        accounts.push(open.open());
        assert!(open.is_crowded());
        accounts.pop();
        assert!(!open.is_crowded());
        drop(accounts);
        assert_eq!(open.count(), 0);
    }

    #[test]
    fn chance_decides_which_pod_is_first_and_none_is_lost() {
        let pods: [SocketAddr; 3] = [1, 2, 3].map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
        for (chance, first) in [(0.0, 0), (0.33, 0), (0.34, 1), (0.67, 2), (0.999_999, 2)] {
            let mut spreaded = pods;
            spread(&mut spreaded, chance);
            assert_eq!(spreaded[0], pods[first], "{chance}");
            spreaded.sort_unstable();
            assert_eq!(spreaded, pods);
        }
        spread(&mut [], 0.5);
    }
}
