//! Connections that are kept for the next request.
//!
//! A connection has no task of its own: the request on it drives it
//! ([`Link::beside`]), and while it waits here nobody does. So each Delivery is
//! one task from its start to its end, and no two hand data to each other. Before a
//! connection is used again it is asked once whether it still stands, and a
//! keeper throws out those that ended or were idle for too long.
//!
//! (hyper-util's client gives each connection a task, and each request a channel
//! to it and a watch of its connecting; see docs/decisions/0012.)

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Authority};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_rustls::MaybeHttpsStream;
use tokio::time::{Instant, sleep};

use super::connector::{ConnectError, Connector, OpenConnections, VettedStream};

/// Time after which an idle connection is closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections to one host at most: the highest concurrency of a Webhook.
pub(super) const IDLE_PER_HOST_MAX: usize = 256;
/// How often the keeper looks for connections that ended or were idle for too long.
const KEEPER_EVERY: Duration = Duration::from_secs(5);

/// Where connections lead: only one to the very same place is used again.
type Place = (bool, Authority);

/// A request as it goes out.
pub(super) type Outgoing = Request<Full<Bytes>>;

/// Idle connections of one client, by place.
pub(super) struct Pool {
    connector: Connector,
    builder: http1::Builder,
    open: OpenConnections,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    links: HashMap<Place, Vec<(Link, Instant)>>,
    has_keeper: bool,
}

/// A connection, and the end of it that takes requests.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    /// None once it has ended.
    connection: Option<http1::Connection<MaybeHttpsStream<VettedStream>, Full<Bytes>>>,
}

/// Why a connection could not be had.
pub(super) enum LinkError {
    /// There is none.
    Connect(ConnectError),
    /// There is one, and HTTP cannot begin on it.
    Http(hyper::Error),
}

impl Pool {
    /// A pool of connections by this connector, whose answers are read as the builder says.
    pub(super) fn new(connector: Connector, builder: http1::Builder, open: OpenConnections) -> Arc<Self> {
        Arc::new(Self { connector, builder, open, idle: Mutex::default() })
    }

    /// An idle connection to the host of this URI that still stands, the one that
    /// was used last.
    pub(super) async fn idle(&self, uri: &Uri) -> Option<Link> {
        let place = place(uri)?;
        loop {
            // A place without connections is left to the keeper: most get one back.
            let (mut link, _) = self.lock().links.get_mut(&place)?.pop()?;
            if link.stands().await {
                return Some(link);
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(super) async fn connect(&self, uri: Uri) -> Result<Link, LinkError> {
        let stream = self.connector.connect(uri).await.map_err(LinkError::Connect)?;
        let (sender, connection) = self.builder.handshake(stream).await.map_err(LinkError::Http)?;
        Ok(Link { sender, connection: Some(connection) })
    }

    /// Takes a connection back whose answer was read to its end, to use it again
    /// if it can be used and there is room for it.
    pub(super) async fn give_back(self: &Arc<Self>, uri: &Uri, mut link: Link) {
        let Some(place) = place(uri) else { return };
        if self.open.is_crowded() || !link.stands().await {
            return;
        }
        let mut idle = self.lock();
        let links = idle.links.entry(place).or_default();
        if links.len() < IDLE_PER_HOST_MAX {
            links.push((link, Instant::now()));
        }
        if !idle.has_keeper {
            idle.has_keeper = true;
            tokio::spawn(keep(Arc::downgrade(self)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // A panic elsewhere leaves the map whole: every change is one operation.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None for a URI without a host, which no destination has.
fn place(uri: &Uri) -> Option<Place> {
    Some((uri.scheme_str() == Some("https"), uri.authority()?.clone()))
}

/// Throws out what ended or was idle for too long, until nothing is idle.
async fn keep(pool: Weak<Pool>) {
    loop {
        sleep(KEEPER_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        let now = Instant::now();
        let mut idle = pool.lock();
        idle.links.retain(|_, links| {
            links.retain_mut(|(link, since)| now.duration_since(*since) < IDLE_TIMEOUT && link.looks_open());
            !links.is_empty()
        });
        if idle.links.is_empty() {
            // Room for many hosts is given back with them.
            *idle = Idle::default();
            return;
        }
    }
}

impl Link {
    /// Sends a request and waits for the head of its answer. The request comes back
    /// if nothing of it was written.
    pub(super) async fn send(&mut self, request: Outgoing) -> Result<Response<Incoming>, TrySendError<Outgoing>> {
        let answer = self.sender.try_send_request(request);
        self.beside(answer).await
    }

    /// Drives the connection while something waits for what comes over it.
    pub(super) async fn beside<T>(&mut self, what: impl Future<Output = T>) -> T {
        let mut what = pin!(what);
        poll_fn(|context| {
            self.drive(context);
            what.as_mut().poll(context)
        })
        .await
    }

    /// How the connection ends reaches whoever waits for an answer on it.
    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(context).is_ready()
        {
            self.connection = None;
        }
    }

    /// Whether it can take a request. A connection that the other side closed, or on
    /// which something came that nobody asked for, cannot.
    async fn stands(&mut self) -> bool {
        poll_fn(|context| {
            self.drive(context);
            Poll::Ready(self.connection.is_some() && self.sender.is_ready())
        })
        .await
    }

    fn looks_open(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some()
    }
}
