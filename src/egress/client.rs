//! One request, one answer, within a budget.

use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
    },
};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};

use super::{
    connector::{Connector, Dialer, Guard, OpenConnections},
    error::{EgressError, Failure},
    pool::{LinkError, Outgoing, Pool},
    resolver::Resolve,
    tls::{self, TlsError},
};
use crate::{
    policy::egress::{Destination, EgressPolicy},
    wire::probe::TlsMaterial,
};

/// Bytes of an answer's headers at most.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Headers of an answer at most.
pub const HEADERS_MAX: usize = 100;
/// Clients with TLS settings of their own that are kept.
pub const TLS_CLIENTS_MAX: usize = 256;
/// Clients for the public authorities that are kept, one a tenant.
pub const PLAIN_CLIENTS_MAX: usize = 4096;

/// The buffer of a connection: the headers and room for a status line. hyper
/// gives up when it is full without a whole head in it.
const BUFFER_BYTES: usize = HEADER_BYTES_MAX + 1024;
/// Bytes of a header line beside its name and value: colon, space, line break.
const LINE_BYTES: usize = 4;
/// What every request says of its sender.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("posthorn/", env!("CARGO_PKG_VERSION")));
/// An answer is read as it comes, so it must not come compressed.
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");
/// Headers that frame the message: the client sets them, nobody else.
const FRAMING: [HeaderName; 8] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, TE, TRAILER, UPGRADE, EXPECT];

/// What to send.
#[derive(Clone)]
pub struct EgressRequest {
    /// The method.
    pub method: Method,
    /// Headers beside those that the client sets: Host, Content-Length,
    /// User-Agent and Accept-Encoding.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Bytes,
}

impl EgressRequest {
    /// A request from texts.
    ///
    /// # Errors
    /// [`InvalidRequest`] if the method or a header cannot be sent.
    pub fn parse<'a>(
        method: &str,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        body: impl Into<Bytes>,
    ) -> Result<Self, InvalidRequest> {
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| InvalidRequest::Method)?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = HeaderName::try_from(name).map_err(|_| InvalidRequest::HeaderName)?;
            let parsed = HeaderValue::try_from(value);
            let mut value = parsed.map_err(|_| InvalidRequest::HeaderValue { name: name.as_str().to_owned() })?;
            value.set_sensitive(true);
            map.append(name, value);
        }
        Ok(Self { method, headers: map, body: body.into() })
    }
}

/// What cannot be made a request. Fit for a tenant; values are never repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Not a method of HTTP.
    #[error("the method of the request is none that HTTP has")]
    Method,
    /// Not a header name.
    #[error("the name of a header is none that HTTP allows")]
    HeaderName,
    /// Not a header value.
    #[error("the value of the header {name} has characters that HTTP does not allow")]
    HeaderValue {
        /// Its name.
        name: String,
    },
}

/// Headers and body may be secrets.
impl fmt::Debug for EgressRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressRequest({} {} headers {} bytes)", self.method, self.headers.len(), self.body.len())
    }
}

/// How much an exchange may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Wall time from the first look-up to the end of the answer's body.
    pub total: Duration,
    /// Bytes of the answer's body that are read; then the connection is closed.
    pub body_bytes_max: usize,
}

/// What came back.
#[derive(Clone)]
pub struct EgressAnswer {
    /// The status code, whatever it is: a redirect is an answer like others.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as it came, up to the budget.
    pub body: Bytes,
    /// Whether the body was longer than the budget.
    pub body_truncated: bool,
}

/// An answer may repeat the secrets that it was sent.
impl fmt::Debug for EgressAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressAnswer({} {} headers {} bytes)", self.status, self.headers.len(), self.body.len())
    }
}

/// Sends requests under one policy with one set of TLS settings. Cheap to clone;
/// clones share their connections.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

/// How far an exchange has come.
#[derive(Clone, Copy)]
enum Phase {
    Connect,
    Answer,
    Body,
}

impl Client {
    fn new(connector: Connector, open: OpenConnections) -> Self {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(BUFFER_BYTES).max_headers(HEADERS_MAX);
        Self { pool: Pool::new(connector, builder, open) }
    }

    /// Sends a request and reads the answer.
    ///
    /// # Flow
    /// A pooled connection or a new one → the request → the head of the answer →
    /// at most `body_bytes_max` of its body. A longer body is cut and its
    /// connection closed, not drained. Dropping the future ends everything.
    ///
    /// # Guarantees
    /// Ends within `budgets.total`. Reads no more than [`HEADER_BYTES_MAX`] and
    /// `budgets.body_bytes_max` into memory. Sends nothing to an address that the
    /// policy does not allow. Sends the request once; only one that was never
    /// written, because its pooled connection was closed, is put on another.
    ///
    /// # Errors
    /// [`EgressError`] if there is no complete answer.
    pub async fn send(
        &self,
        destination: &Destination,
        request: EgressRequest,
        budgets: Budgets,
    ) -> Result<EgressAnswer, EgressError> {
        let deadline = Instant::now() + budgets.total;
        let request = assemble(destination, request)?;
        let mut phase = Phase::Connect;
        let exchange = self.exchange(destination, request, budgets.body_bytes_max, &mut phase);
        if let Ok(ended) = timeout_at(deadline, exchange).await {
            return ended;
        }
        let failure = match phase {
            Phase::Connect => Failure::ConnectTimedOut,
            Phase::Answer => Failure::AnswerTimedOut(budgets.total),
            Phase::Body => Failure::BodyTimedOut(budgets.total),
        };
        Err(EgressError::new(destination.host(), failure))
    }

    async fn exchange(
        &self,
        destination: &Destination,
        mut request: Outgoing,
        body_bytes_max: usize,
        phase: &mut Phase,
    ) -> Result<EgressAnswer, EgressError> {
        let (host, uri) = (destination.host(), destination.uri());
        let (mut link, answer) = loop {
            let idle = self.pool.idle(uri).await;
            let is_used = idle.is_some();
            let mut link = match idle {
                Some(link) => link,
                None => self.pool.connect(uri.clone()).await.map_err(|error| match error {
                    LinkError::Connect(error) => EgressError::from_connect(host, error),
                    LinkError::Http(error) => EgressError::from_exchange(host, error),
                })?,
            };
            *phase = Phase::Answer;
            match link.send(request).await {
                Ok(answer) => break (link, answer),
                Err(mut error) => match error.take_message().filter(|_| is_used) {
                    // Closed by the other side since it was used last.
                    Some(unsent) => (request, *phase) = (unsent, Phase::Connect),
                    None => return Err(EgressError::from_exchange(host, error.into_error())),
                },
            }
        };
        let (head, body) = answer.into_parts();
        if header_bytes(&head.headers) > HEADER_BYTES_MAX {
            return Err(EgressError::new(host, Failure::HeadersTooLong));
        }
        *phase = Phase::Body;
        let body = link.beside(read_body(body, body_bytes_max)).await;
        let (body, body_truncated) = body.map_err(|error| EgressError::from_exchange(host, error))?;
        if !body_truncated {
            self.pool.give_back(uri, link).await;
        }
        Ok(EgressAnswer { status: head.status, headers: head.headers, body, body_truncated })
    }
}

fn assemble(destination: &Destination, request: EgressRequest) -> Result<Outgoing, EgressError> {
    let EgressRequest { method, headers, body } = request;
    if FRAMING.iter().any(|name| headers.contains_key(name)) {
        return Err(EgressError::new(destination.host(), Failure::Header));
    }
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    // Origin form (RFC 9112 §3.2.1): the host stands in its header.
    *request.uri_mut() = destination.uri().path_and_query().cloned().map(Uri::from).unwrap_or_default();
    *request.headers_mut() = headers;
    let headers = request.headers_mut();
    headers.insert(HOST, destination.host_header().clone());
    headers.insert(ACCEPT_ENCODING, IDENTITY);
    headers.entry(USER_AGENT).or_insert(AGENT);
    Ok(request)
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + LINE_BYTES).sum()
}

/// Reads at most so many bytes, and whether there are more.
async fn read_body(mut body: Incoming, bytes_max: usize) -> Result<(Bytes, bool), hyper::Error> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame?.into_data() else { continue };
        let room = bytes_max - first.len() - all.len();
        let is_too_long = data.len() > room;
        data.truncate(room);
        if all.is_empty() && first.is_empty() {
            // Most answers come in one piece, which needs no copy.
            first = data;
        } else {
            all.reserve(data.len());
            all.extend_from_slice(&data);
        }
        if is_too_long {
            return Ok((join(first, all), true));
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok((join(first, all), false))
}

fn join(first: Bytes, rest: BytesMut) -> Bytes {
    if rest.is_empty() {
        return first;
    }
    let mut all = BytesMut::with_capacity(first.len() + rest.len());
    all.extend_from_slice(&first);
    all.extend_from_slice(&rest);
    all.freeze()
}

/// Clients, and when each was asked for last, in calls.
struct Cache<K> {
    clients: HashMap<K, (Client, u64)>,
    calls: u64,
    clients_max: usize,
}

impl<K: Clone + Eq + Hash> Cache<K> {
    fn new(clients_max: usize) -> Self {
        Self { clients: HashMap::new(), calls: 0, clients_max }
    }

    fn get<Q>(&mut self, key: &Q) -> Option<Client>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.calls += 1;
        let (client, used) = self.clients.get_mut(key)?;
        *used = self.calls;
        Some(client.clone())
    }

    fn insert(&mut self, key: K, client: Client) {
        if self.clients.len() >= self.clients_max {
            let oldest = self.clients.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.clients.remove(&key));
        }
        self.clients.insert(key, (client, self.calls));
    }
}

/// The clients of a process under one policy: for each tenant one for the public
/// authorities, and one for each other set of TLS settings. Tenants share no
/// connection, even to one host: what an endpoint of one of them leaves on it
/// must not become the answer to another one's event.
pub struct Clients {
    guard: Guard,
    policy: Arc<EgressPolicy>,
    resolver: Arc<dyn Resolve>,
    roots: Arc<RootCertStore>,
    open: OpenConnections,
    /// For the public authorities.
    config: Arc<ClientConfig>,
    plain: Mutex<Cache<Box<str>>>,
    /// By tenant and the hash of the TLS material.
    by_material: Mutex<Cache<(Box<str>, [u8; 32])>>,
}

impl Clients {
    /// Clients under a policy.
    ///
    /// # Errors
    /// [`TlsError::Versions`], a mistake of ours.
    pub fn new(
        policy: Arc<EgressPolicy>,
        resolver: Arc<dyn Resolve>,
        roots: Arc<RootCertStore>,
    ) -> Result<Self, TlsError> {
        Self::with_open(policy, resolver, roots, OpenConnections::default())
    }

    /// Clients under a new policy. They share nothing with these but resolver,
    /// authorities and the count of connections: a pooled connection that the new
    /// policy forbids is never used again.
    ///
    /// # Errors
    /// [`TlsError::Versions`], a mistake of ours.
    pub fn renew(&self, policy: Arc<EgressPolicy>) -> Result<Self, TlsError> {
        Self::with_open(policy, self.resolver.clone(), self.roots.clone(), self.open.clone())
    }

    fn with_open(
        policy: Arc<EgressPolicy>,
        resolver: Arc<dyn Resolve>,
        roots: Arc<RootCertStore>,
        open: OpenConnections,
    ) -> Result<Self, TlsError> {
        let guard = Guard::new(policy.clone(), resolver.clone());
        let config = Arc::new(tls::configure(None, &roots)?);
        let plain = Mutex::new(Cache::new(PLAIN_CLIENTS_MAX));
        let by_material = Mutex::new(Cache::new(TLS_CLIENTS_MAX));
        Ok(Self { guard, policy, resolver, roots, open, config, plain, by_material })
    }

    /// The policy.
    pub fn policy(&self) -> &EgressPolicy {
        &self.policy
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.open.count()
    }

    /// The client of a tenant for these TLS settings; none means the public
    /// authorities. Beyond [`PLAIN_CLIENTS_MAX`] and [`TLS_CLIENTS_MAX`] the one
    /// that was used longest ago is forgotten.
    ///
    /// # Errors
    /// [`TlsError`] if the settings cannot be used.
    pub fn client(&self, tenant: &str, material: Option<&TlsMaterial>) -> Result<Client, TlsError> {
        let Some(material) = material else {
            let mut cache = lock(&self.plain);
            if let Some(client) = cache.get(tenant) {
                return Ok(client);
            }
            let client = self.connect_by(Arc::clone(&self.config));
            cache.insert(tenant.into(), client.clone());
            return Ok(client);
        };
        let key = (Box::from(tenant), tls::fingerprint(material));
        let mut cache = lock(&self.by_material);
        if let Some(client) = cache.get(&key) {
            return Ok(client);
        }
        let client = self.connect_by(Arc::new(tls::configure(Some(material), &self.roots)?));
        cache.insert(key, client.clone());
        Ok(client)
    }

    fn connect_by(&self, config: Arc<ClientConfig>) -> Client {
        let dialer = Dialer::new(self.guard.clone(), self.open.clone());
        Client::new(Connector::new(dialer, config), self.open.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves the map whole: every change is one operation.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
