//! The internal API of a delivery pod: the controller has endpoints probed,
//! follows the index and reads counters. Paths and bodies are in [`crate::wire`].
//!
//! Every request is authenticated before anything of it is read but its head.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    metrics::{DeliveryMetrics, OutcomeLabel, RequestLabel},
    probe::Prober,
    slots::{PROBES_MAX, PROBES_PER_NAMESPACE_MAX, ProbeSlots},
};
use crate::{
    access::{Access, AccessError},
    routing::index::SharedIndex,
    runtime::{clock, problem::Problem, secret::SecretString},
    wire::{
        COUNTERS_PATH, DELIVERIES_PATH, INDEX_PATH, PROBE_PATH,
        deliveries::{DeliveriesPage, DeliveriesQuery},
        index_feed::{Counters, FeedPage, FeedQuery, POLL_SECONDS_MAX, StoreProblem},
        probe::{PROBE_REQUEST_BYTES_MAX, ProbeOutcome, ProbeRequest, ProbeResponse},
    },
};

/// Bytes of a request's body at most.
pub const BODY_BYTES_MAX: usize = PROBE_REQUEST_BYTES_MAX;
/// Time for the body of a request to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the store and the dispatcher of this pod tell the controller.
pub trait DeliveriesSource: Send + Sync + 'static {
    /// What changed after the query's revision; at most
    /// [`DELIVERIES_PAGE_MAX`](crate::wire::deliveries::DELIVERIES_PAGE_MAX)
    /// entries. From memory: it is asked every two seconds.
    fn page(&self, query: &DeliveriesQuery) -> DeliveriesPage;

    /// Id of the store, also of one that is not the recorded one.
    fn store_id(&self) -> String;
}

/// What is known of the store of this pod. The API is served before the store is
/// open: else nobody but the log would tell why it is not.
#[derive(Clone, Default)]
pub enum StoreState {
    /// It is being opened.
    #[default]
    Opening,
    /// The pod does not open what it found, until an admin helps.
    Refused(StoreProblem),
    /// It is open.
    Open(Arc<dyn DeliveriesSource>),
}

/// What the API works with. Cheap to clone.
#[derive(Clone)]
pub struct InternalApi {
    access: Access,
    index: Arc<SharedIndex>,
    prober: Prober,
    slots: ProbeSlots,
    metrics: DeliveryMetrics,
    shutdown: CancellationToken,
    store: watch::Receiver<StoreState>,
}

impl InternalApi {
    /// An API whose counts nobody scrapes. When `shutdown` is cancelled, waiting
    /// polls are answered.
    pub fn new(access: Access, index: Arc<SharedIndex>, prober: Prober, shutdown: CancellationToken) -> Self {
        Self::with_metrics(access, index, prober, DeliveryMetrics::unregistered(), shutdown)
    }

    pub(super) fn with_metrics(
        access: Access,
        index: Arc<SharedIndex>,
        prober: Prober,
        metrics: DeliveryMetrics,
        shutdown: CancellationToken,
    ) -> Self {
        let (_, store) = watch::channel(StoreState::Opening);
        Self { access, index, prober, slots: ProbeSlots::default(), metrics, shutdown, store }
    }

    /// The same API that tells of the store and, once it is open, of Deliveries.
    /// Before that, the route of Deliveries answers 503.
    #[must_use]
    pub fn with_store(self, store: watch::Receiver<StoreState>) -> Self {
        Self { store, ..self }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route(PROBE_PATH, post(probe))
            .route(INDEX_PATH, get(index))
            .route(COUNTERS_PATH, get(counters))
            .route(DELIVERIES_PATH, get(deliveries))
            .fallback(async || Problem::new(StatusCode::NOT_FOUND, "this path does not exist"))
            .method_not_allowed_fallback(async || {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method")
            })
            .layer(from_fn_with_state(self.clone(), authenticate))
            .with_state(self)
    }
}

async fn authenticate(State(api): State<InternalApi>, request: Request, next: Next) -> Response {
    let paths = [PROBE_PATH, INDEX_PATH, COUNTERS_PATH, DELIVERIES_PATH];
    let path = paths.into_iter().find(|path| *path == request.uri().path());
    let response = match check_caller(&api.access, request.headers()).await {
        Ok(()) => next.run(request).await,
        Err(error) => Problem::from(error).into_response(),
    };
    let label = RequestLabel { path: path.unwrap_or("other"), code: response.status().as_u16() };
    api.metrics.requests.get_or_create(&label).inc();
    response
}

async fn check_caller(access: &Access, headers: &HeaderMap) -> Result<(), AccessError> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or(AccessError::NoUsableToken)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(AccessError::NoUsableToken);
    }
    access.check(&SecretString::from(token), clock::now()).await
}

async fn probe(State(api): State<InternalApi>, body: Body) -> Result<Json<ProbeResponse>, Problem> {
    let body = read_body(body).await?;
    let request = parse_request(&body)?;
    check_responsible(&api.index, &request.namespace)?;
    let _slot = api.slots.take(&request.namespace).ok_or_else(|| {
        Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{PROBES_MAX} probes in all or {PROBES_PER_NAMESPACE_MAX} of this namespace are under way"),
        )
    })?;
    let probed = api.prober.probe(&request).await;
    let response = probed.map_err(|error| Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    let outcome = match &response.outcome {
        ProbeOutcome::Answer(_) => "Answered",
        ProbeOutcome::Failure { reason, .. } => reason.as_str(),
    };
    api.metrics.probes.get_or_create(&OutcomeLabel { outcome }).inc();
    api.metrics.probes_total.inc();
    api.metrics.probe_seconds.observe(Duration::from_millis(response.duration_ms).as_secs_f64());
    Ok(Json(response))
}

/// A pod probes only for namespaces of its pool: another pool has other rules of
/// egress.
fn check_responsible(index: &SharedIndex, namespace: &str) -> Result<(), Problem> {
    let (synced, ours) = index.read(|index| (index.synced(), index.namespace_uid(namespace).is_some()));
    if ours {
        Ok(())
    } else if synced {
        Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            format!("this pod's pool is not responsible for the namespace {namespace}"),
        ))
    } else {
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the index of this pod is not complete yet"))
    }
}

async fn read_body(body: Body) -> Result<Bytes, Problem> {
    match timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {BODY_BYTES_MAX} bytes")))
        }
        Ok(Err(_broken)) => Err(Problem::new(StatusCode::BAD_REQUEST, "the body ended early")),
        Err(_elapsed) => {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not arrive within {BODY_TIMEOUT:?}")))
        }
    }
}

/// What the parser says is left out but for the place: it may repeat a secret.
fn parse_request(body: &[u8]) -> Result<ProbeRequest, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::new(StatusCode::BAD_REQUEST, format!("the body is no probe request: line {line}, column {column}"))
    })
}

async fn index(
    State(api): State<InternalApi>,
    query: Result<Query<FeedQuery>, QueryRejection>,
) -> Result<Json<FeedPage>, Problem> {
    let Query(query) = query.map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "the query has other parts than instance and a number after")
    })?;
    let _follower = Follower::new(&api.metrics.followers);
    let give_up = async {
        tokio::select! {
            () = sleep(Duration::from_secs(POLL_SECONDS_MAX)) => {}
            () = api.shutdown.cancelled() => {}
        }
    };
    Ok(Json(api.index.page_or_wait(&query, give_up).await))
}

async fn deliveries(
    State(api): State<InternalApi>,
    query: Result<Query<DeliveriesQuery>, QueryRejection>,
) -> Result<Json<DeliveriesPage>, Problem> {
    let Query(query) = query.map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "the query has other parts than instance and a number after")
    })?;
    let StoreState::Open(source) = api.store.borrow().clone() else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the store of this pod is not open; its counters and its log say why",
        ));
    };
    Ok(Json(source.page(&query)))
}

async fn counters(State(api): State<InternalApi>) -> Json<Counters> {
    let probes = api.metrics.probes_total.get();
    let (store_id, store_problem) = match &*api.store.borrow() {
        StoreState::Opening => (None, None),
        StoreState::Refused(problem) => (None, Some(problem.clone())),
        StoreState::Open(source) => (Some(source.store_id()), None),
    };
    Json(api.index.read(|index| {
        let counts = index.counts();
        Counters {
            instance: index.instance().to_owned(),
            revision: index.revision(),
            webhooks: counts.webhooks,
            subscriptions: counts.subscriptions,
            probes,
            store_id,
            store_problem,
        }
    }))
}

/// Counts a waiting poll for as long as it lives, also if its caller goes away.
struct Follower<'a>(&'a Gauge);

impl<'a> Follower<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
