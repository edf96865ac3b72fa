//! The server: from a request to the store and back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State, rejection::PathRejection},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::{Bytes, BytesMut};
use futures::future::Either;
use http_body_util::BodyExt;
use k8s_openapi::jiff::Timestamp;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Authentication, IngestMetrics, IngestSettings,
    answer::{Receipt, ReceivedEvent, Refusal},
    intake::{Intake, Place},
    openapi,
    parse::{self, Format, Parsed, ParsedEvent},
    rate::Buckets,
};
use crate::{
    access::publish::{PublishAccess, Publisher},
    routing::index::{Responsibility, SharedIndex},
    runtime::{
        clock,
        connections::{self, Answer, ServerOptions, Transport},
        problem::Problem,
    },
    store::{AcceptError, Accepted, Ingest, NewEvent, Space},
};

/// Path of publishing, as the router knows it.
pub(super) const EVENTS_PATH: &str = "/v1/namespaces/{namespace}/events";
/// Path of the description of the API.
pub(super) const OPENAPI_PATH: &str = "/openapi.json";
/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Time for requests under way to be answered after the shutdown began.
pub const GRACE: Duration = Duration::from_secs(10);
/// Time for a body to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the store to accept.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Types of a batch that the API server is asked about at most, if the publisher
/// has no right to publish all.
pub const TYPES_ASKED_MAX: usize = 32;
/// Bytes of a namespace's name at most (RFC 1123).
const NAMESPACE_BYTES_MAX: usize = 63;

/// What ingest works with.
pub struct IngestParts {
    /// Where events go.
    pub store: Arc<dyn Ingest>,
    /// Which namespace is whose.
    pub namespaces: Arc<SharedIndex>,
    /// Who may publish.
    pub access: PublishAccess,
    /// The newest settings.
    pub settings: watch::Receiver<IngestSettings>,
    /// What is counted.
    pub metrics: IngestMetrics,
    /// Tells the host name of the ingest Service of a pool.
    pub service_of: Box<dyn Fn(&str) -> String + Send + Sync>,
}

/// The API. Cheap to clone.
#[derive(Clone)]
pub struct IngestApi(Arc<Inner>);

struct Inner {
    parts: IngestParts,
    intake: Intake,
    buckets: Buckets,
}

/// A namespace of this pool.
struct Home {
    name: Arc<str>,
    uid: Arc<str>,
}

/// Who publishes.
enum Caller {
    /// Somebody who may publish every type in the namespace.
    Anything,
    /// Somebody whose right depends on the types.
    SomeTypes(Publisher),
}

impl IngestApi {
    /// An API of these parts.
    pub fn new(parts: IngestParts) -> Self {
        Self(Arc::new(Inner { parts, intake: Intake::default(), buckets: Buckets::default() }))
    }

    /// The way in.
    pub fn door(self) -> Door {
        Door { router: self.clone().router(), api: self }
    }

    fn router(self) -> Router {
        Router::new()
            .route(EVENTS_PATH, post(publish))
            .route(OPENAPI_PATH, get(openapi::serve))
            .fallback(async || Problem::new(StatusCode::NOT_FOUND, "this path does not exist"))
            .method_not_allowed_fallback(async || {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method")
            })
            .with_state(self)
    }
}

/// Serves the API over plain HTTP until `shutdown`; then takes no new connection
/// and answers what is under way within [`GRACE`].
pub async fn serve(listener: TcpListener, api: IngestApi, shutdown: CancellationToken) {
    let options = ServerOptions { transport: Transport::Plain, connections_max: CONNECTIONS_MAX, grace: GRACE };
    connections::serve(listener, api.door(), options, shutdown).await;
}

/// The way in. Publishing, which is what nearly every request does, needs no
/// router: that takes a twentieth of the time of an event.
#[derive(Clone)]
pub struct Door {
    api: IngestApi,
    router: Router,
}

impl Answer for Door {
    fn answer(self, request: Request) -> impl Future<Output = Response> + Send + 'static {
        let namespace = (request.method() == Method::POST).then(|| namespace_in(request.uri().path())).flatten();
        match namespace.map(str::to_owned) {
            Some(namespace) => Either::Left(self.api.publish(namespace, request)),
            None => Either::Right(self.router.answer(request)),
        }
    }
}

/// The namespace in a path of publishing; none in any other path, and none if it is
/// not written as a name: the router decodes it then.
fn namespace_in(path: &str) -> Option<&str> {
    let (before, after) = EVENTS_PATH.split_once("{namespace}")?;
    path.strip_prefix(before)?.strip_suffix(after).filter(|namespace| is_name(namespace))
}

async fn publish(
    State(api): State<IngestApi>,
    namespace: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response {
    // What cannot be decoded is the name of no namespace.
    let namespace = namespace.map(|Path(namespace)| namespace).unwrap_or_default();
    api.publish(namespace, request).await
}

impl IngestApi {
    async fn publish(self, namespace: String, request: Request) -> Response {
        let metrics = &self.0.parts.metrics;
        let started = clock::monotonic();
        let _under_way = UnderWay::new(metrics);
        let (head, body) = request.into_parts();
        let answer = match self.0.take_in(&namespace, &head.headers, body).await {
            Ok(receipt) => receipt.into_response(),
            Err(refusal) => {
                let reason = refusal.reason();
                let response = refusal.into_response();
                metrics.refused(reason, response.status().as_u16());
                response
            }
        };
        metrics.seconds.observe(started.elapsed().as_secs_f64());
        answer
    }
}

impl Inner {
    /// # Flow
    /// Who calls, and what he may → whose namespace, and is there room → the body
    /// → the events → may he publish these types → the rate → the store. Who may
    /// not publish in a namespace learns nothing of it.
    async fn take_in(&self, namespace: &str, headers: &HeaderMap, body: Body) -> Result<Receipt, Refusal> {
        let settings = *self.parts.settings.borrow();
        let now = clock::now();
        let caller = self.identify(namespace, headers, settings, now).await?;
        let early = match &caller {
            Caller::Anything => Some(self.home(namespace, settings)?),
            Caller::SomeTypes(_) => None,
        };
        let format = Format::of(headers).map_err(Refusal::Rejected)?;
        let owner = early.as_ref().map_or_else(|| namespace.into(), |home| Arc::clone(&home.name));
        let mut place = self.intake.enter(owner).map_err(Refusal::Crowded)?;
        let body = read_body(headers, body, format.body_bytes_max(), &mut place).await?;
        self.parts.metrics.bytes.inc_by(body.len() as u64);

        let parsed = parse::parse(format, headers, namespace, &body).map_err(Refusal::Rejected)?;
        drop(body);
        let home = match (early, caller) {
            (Some(home), _) => home,
            (None, Caller::SomeTypes(publisher)) => {
                self.check_types(&publisher, namespace, &parsed, settings, now).await?;
                self.home(namespace, settings)?
            }
            (None, Caller::Anything) => self.home(namespace, settings)?,
        };
        if let Some(rate) = settings.rate {
            let taken = self.buckets.take(&home.uid, rate, parsed.events.len(), clock::monotonic());
            taken.map_err(|wait| Refusal::Rate { wait })?;
        }
        self.accept(home, parsed).await
    }

    /// Who calls, and whether he may publish everything in the namespace.
    async fn identify(
        &self,
        namespace: &str,
        headers: &HeaderMap,
        settings: IngestSettings,
        now: Timestamp,
    ) -> Result<Caller, Refusal> {
        match settings.authentication {
            Authentication::None if is_name(namespace) => return Ok(Caller::Anything),
            Authentication::None => return Err(Refusal::BadNamespace),
            Authentication::Token => {}
        }
        let (access, grace) = (&self.parts.access, settings.outage_grace);
        let publisher = access.authenticate(bearer(headers)?, grace, now).await.map_err(Refusal::Access)?;
        if !is_name(namespace) {
            return Err(Refusal::BadNamespace);
        }
        let may_all = access.may_publish(&publisher, namespace, None, grace, now).await.map_err(Refusal::Access)?;
        Ok(if may_all { Caller::Anything } else { Caller::SomeTypes(publisher) })
    }

    /// The namespace, if it is of this pool and may hand in more now.
    fn home(&self, namespace: &str, settings: IngestSettings) -> Result<Home, Refusal> {
        let home = match self.parts.namespaces.read(|index| index.responsibility(namespace)) {
            Responsibility::Ours { name, uid } => Home { name, uid },
            Responsibility::Other(pool) => {
                let service = (self.parts.service_of)(&pool);
                return Err(Refusal::OtherPool { namespace: namespace.to_owned(), pool, service });
            }
            Responsibility::Unknown => return Err(Refusal::NoNamespace { namespace: namespace.to_owned() }),
            Responsibility::NotListed => return Err(Refusal::NotListed),
        };
        if let Some(rate) = settings.rate {
            self.buckets.peek(&home.uid, rate, clock::monotonic()).map_err(|wait| Refusal::Rate { wait })?;
        }
        match self.parts.store.space(&home.uid) {
            Space::Free => Ok(home),
            space => Err(Refusal::Full(space)),
        }
    }

    /// Asks for each type of a publisher who may not publish all.
    async fn check_types(
        &self,
        publisher: &Publisher,
        namespace: &str,
        parsed: &Parsed,
        settings: IngestSettings,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut first_of = BTreeMap::<&str, usize>::new();
        for (index, event) in parsed.events.iter().enumerate() {
            first_of.entry(&event.head.event_type).or_insert(index);
        }
        if first_of.len() > TYPES_ASKED_MAX {
            return Err(Refusal::TooManyTypes);
        }
        let (access, grace) = (&self.parts.access, settings.outage_grace);
        let asked = first_of.into_iter().map(async |(event_type, index)| {
            let may = access.may_publish(publisher, namespace, Some(event_type), grace, now).await;
            may.map(|may| {
                (!may).then(|| parsed.places.field(index, "type", format!("the type {event_type} is not allowed")))
            })
        });
        let answers = futures::future::try_join_all(asked).await.map_err(Refusal::Access)?;
        let types: Vec<_> = answers.into_iter().flatten().collect();
        // An empty batch needs the right to publish something; nobody can tell.
        if types.is_empty() && !parsed.events.is_empty() {
            return Ok(());
        }
        let (username, namespace) = (publisher.username().to_owned(), namespace.to_owned());
        Err(Refusal::NotAllowed { username, namespace, types })
    }

    async fn accept(&self, home: Home, parsed: Parsed) -> Result<Receipt, Refusal> {
        let Parsed { events, places } = parsed;
        if events.is_empty() {
            return Ok(Receipt { events: Vec::new() });
        }
        let (Home { name, uid }, count) = (home, events.len());
        let to_new = |ParsedEvent { head, data }| NewEvent {
            namespace: Arc::clone(&name),
            namespace_uid: Arc::clone(&uid),
            head,
            data,
        };
        let accept = self.parts.store.accept(events.into_iter().map(to_new).collect());
        let verdicts = match timeout(ACCEPT_TIMEOUT, accept).await {
            Ok(Ok(verdicts)) if verdicts.len() == count => verdicts,
            Ok(Ok(verdicts)) => {
                tracing::error!(events = count, verdicts = verdicts.len(), "the store broke its contract");
                return Err(Refusal::Store(AcceptError::Unknown));
            }
            Ok(Err(error)) => return Err(Refusal::Store(error)),
            Err(_elapsed) => return Err(Refusal::StoreTimeout),
        };
        self.count(&verdicts);
        let is_conflict = |verdict: &Accepted| matches!(verdict, Accepted::Conflict(_));
        let conflicts: Vec<_> = verdicts.iter().enumerate().filter(|(_, v)| is_conflict(v)).map(|(i, _)| i).collect();
        let events = verdicts.into_iter().map(ReceivedEvent::from).collect();
        if conflicts.is_empty() {
            return Ok(Receipt { events });
        }
        let errors = conflicts
            .into_iter()
            .map(|index| places.field(index, "id", "was given before to an event with other content".to_owned()))
            .collect();
        Err(Refusal::Conflict { errors, events })
    }

    fn count(&self, verdicts: &[Accepted]) {
        let (mut accepted, mut duplicate, mut conflict) = (0, 0, 0);
        for verdict in verdicts {
            match verdict {
                Accepted::New(_) => accepted += 1,
                Accepted::Duplicate(_) => duplicate += 1,
                Accepted::Conflict(_) => conflict += 1,
            }
        }
        let metrics = &self.parts.metrics;
        let counts = [(&metrics.accepted, accepted), (&metrics.duplicate, duplicate), (&metrics.conflict, conflict)];
        for (counter, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            counter.inc_by(count);
        }
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let value = headers.get(header::AUTHORIZATION).ok_or(Refusal::NoToken)?;
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Refusal::NoToken)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim_ascii()) } else { Err(Refusal::NoToken) }
}

/// RFC 1123, as the API server holds it for namespaces.
fn is_name(namespace: &str) -> bool {
    let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAMESPACE_BYTES_MAX).contains(&namespace.len())
        && namespace.bytes().all(is_inner)
        && !namespace.starts_with('-')
        && !namespace.ends_with('-')
}

/// Reads a body as long as there is room for it.
async fn read_body(headers: &HeaderMap, body: Body, bytes_max: usize, place: &mut Place) -> Result<Bytes, Refusal> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| usize::try_from(bytes).is_ok_and(|bytes| bytes > bytes_max)) {
        return Err(Refusal::BodyTooLong { bytes_max });
    }
    timeout(BODY_TIMEOUT, collect(body, bytes_max, place)).await.unwrap_or(Err(Refusal::BodyTimeout))
}

/// Room is taken as bytes arrive: who announces much and sends nothing takes none.
async fn collect(mut body: Body, bytes_max: usize, place: &mut Place) -> Result<Bytes, Refusal> {
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_broken| Refusal::BodyBroken)?.into_data() else { continue };
        if first.len().saturating_add(rest.len()).saturating_add(data.len()) > bytes_max {
            return Err(Refusal::BodyTooLong { bytes_max });
        }
        place.grow(data.len()).map_err(Refusal::Crowded)?;
        if first.is_empty() && rest.is_empty() {
            first = data;
            continue;
        }
        if rest.is_empty() {
            rest.extend_from_slice(&std::mem::take(&mut first));
        }
        rest.extend_from_slice(&data);
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

/// Counts a request for as long as it lives, also if its caller goes away.
struct UnderWay<'a>(&'a IngestMetrics);

impl<'a> UnderWay<'a> {
    fn new(metrics: &'a IngestMetrics) -> Self {
        metrics.under_way.inc();
        Self(metrics)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.dec();
    }
}
