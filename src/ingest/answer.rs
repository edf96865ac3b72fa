//! What a publisher is told: the receipt of a 202, or a problem.

use std::{sync::Arc, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    intake::{BODIES_BYTES_MAX, BODIES_PER_NAMESPACE_BYTES_MAX, Crowded, REQUESTS_MAX, REQUESTS_PER_NAMESPACE_MAX},
    parse::Rejection,
    server::{ACCEPT_TIMEOUT, BODY_TIMEOUT, TYPES_ASKED_MAX},
};
use crate::{
    access::AccessError,
    runtime::problem::{FieldError, Problem},
    store::{AcceptError, Accepted, Space},
    wire::PUBLISH_AUDIENCE,
};

/// When to come back when the reason is a shortage that others cause.
const RETRY_AFTER_CROWDED: Duration = Duration::from_secs(1);
/// When to come back when somebody must be back first: the API server, the store.
const RETRY_AFTER_AWAY: Duration = Duration::from_secs(5);

/// What a 202 says: one entry an event, in the order of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Receipt {
    /// The events.
    pub events: Vec<ReceivedEvent>,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ReceivedEvent {
    /// Posthorn's id of the event: the same in every delivery of it.
    #[schemars(regex(pattern = r"^evt_[0-9A-HJKMNP-TV-Z]{26}$"))]
    pub id: String,
    /// The event was accepted before, with the same content: this is its id.
    #[serde(skip_serializing_if = "is_false")]
    pub duplicate: bool,
    /// The publisher's id was used before for an event with other content: this
    /// is the id of that one. The event of the request was not accepted.
    #[serde(skip_serializing_if = "is_false")]
    pub conflict: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl From<Accepted> for ReceivedEvent {
    fn from(accepted: Accepted) -> Self {
        let (id, duplicate, conflict) = match accepted {
            Accepted::New(id) => (id, false, false),
            Accepted::Duplicate(id) => (id, true, false),
            Accepted::Conflict(id) => (id, false, true),
        };
        Self { id: id.to_string(), duplicate, conflict }
    }
}

impl IntoResponse for Receipt {
    fn into_response(self) -> Response {
        (StatusCode::ACCEPTED, axum::Json(self)).into_response()
    }
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No token.
    NoToken,
    /// Who calls, or what he may, is not known, or cannot be.
    Access(AccessError),
    /// He may not publish in the namespace: not at all, or not these types.
    NotAllowed { username: String, namespace: String, types: Vec<FieldError> },
    /// Too many types to ask for each.
    TooManyTypes,
    /// The path holds what cannot be the name of a namespace.
    BadNamespace,
    /// There is no such namespace.
    NoNamespace { namespace: String },
    /// It belongs to another pool, whose Service this is.
    OtherPool { namespace: String, pool: Arc<str>, service: String },
    /// Namespaces were not listed yet.
    NotListed,
    /// The request cannot be used.
    Rejected(Rejection),
    /// The body is longer than may be.
    BodyTooLong { bytes_max: usize },
    /// The body did not come in time.
    BodyTimeout,
    /// The connection ended within the body.
    BodyBroken,
    /// Too much is under way.
    Crowded(Crowded),
    /// The namespace hands in more than it may.
    Rate { wait: Duration },
    /// No room.
    Full(Space),
    /// The store did not accept.
    Store(AcceptError),
    /// The store did not answer.
    StoreTimeout,
    /// Some ids were used before for other content.
    Conflict { errors: Vec<FieldError>, events: Vec<ReceivedEvent> },
}

impl Refusal {
    /// The word in metrics.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::NoToken | Self::Access(AccessError::NoUsableToken | AccessError::Refused) => "Unauthenticated",
            Self::Access(AccessError::NotAllowed) | Self::NotAllowed { .. } | Self::TooManyTypes => "NotAllowed",
            Self::Access(AccessError::Unavailable) => "ApiServerAway",
            Self::BadNamespace | Self::NoNamespace { .. } => "NoNamespace",
            Self::OtherPool { .. } => "OtherPool",
            Self::NotListed => "NotListed",
            Self::Rejected(Rejection::MediaType(_)) => "MediaType",
            Self::Rejected(Rejection::TooLarge(_)) | Self::BodyTooLong { .. } => "TooLarge",
            Self::Rejected(Rejection::Invalid(_)) => "Invalid",
            Self::BodyTimeout => "BodyTimeout",
            Self::BodyBroken => "BodyBroken",
            Self::Crowded(Crowded::Namespace) => "NamespaceCrowded",
            Self::Crowded(Crowded::Pod) => "PodCrowded",
            Self::Rate { .. } => "RateLimited",
            Self::Full(Space::NamespaceFull) => "NamespaceFull",
            Self::Full(_) | Self::Store(AcceptError::Full) => "StoreFull",
            Self::Store(AcceptError::Busy { .. }) => "StoreBusy",
            Self::Store(AcceptError::NotStored) => "NotStored",
            Self::Store(AcceptError::Unknown) | Self::StoreTimeout => "Unknown",
            Self::Conflict { .. } => "Conflict",
        }
    }

    pub(super) fn into_problem(self) -> Problem {
        match self {
            Self::NoToken | Self::Access(_) | Self::NotAllowed { .. } | Self::TooManyTypes => self.access_problem(),
            Self::Crowded(_) | Self::Rate { .. } | Self::Full(_) => self.limit_problem(),
            Self::Store(_) | Self::StoreTimeout | Self::Conflict { .. } => self.store_problem(),
            other => other.request_problem(),
        }
    }

    fn access_problem(self) -> Problem {
        const INVALID_TOKEN: &str = "Bearer error=\"invalid_token\"";
        match self {
            Self::Access(AccessError::NoUsableToken) => problem(
                StatusCode::UNAUTHORIZED,
                format!(
                    "the token is malformed, over, or not for the audience {PUBLISH_AUDIENCE}: send a ServiceAccount \
                     token of this cluster that was made for that audience"
                ),
            )
            .challenge(INVALID_TOKEN),
            Self::Access(AccessError::Refused) => problem(
                StatusCode::UNAUTHORIZED,
                format!(
                    "the API server does not accept the token for the audience {PUBLISH_AUDIENCE}: its Pod or \
                     ServiceAccount may be gone, so request a new one"
                ),
            )
            .challenge(INVALID_TOKEN),
            Self::Access(AccessError::Unavailable) => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "the API server cannot be asked about the publisher now: send the request again later",
            )
            .retry_after(RETRY_AFTER_AWAY),
            Self::NotAllowed { username, namespace, types } => problem(
                StatusCode::FORBIDDEN,
                format!(
                    "{username} may not publish these events in the namespace {namespace}: a Role there must grant \
                     create on eventtypes/events of the API group posthorn.dev, for all names or for the type"
                ),
            )
            .errors(types),
            Self::TooManyTypes => problem(
                StatusCode::FORBIDDEN,
                format!(
                    "the publisher has no right to publish all types, and the batch has more than {TYPES_ASKED_MAX} \
                     different ones: send smaller batches"
                ),
            ),
            _ => problem(
                StatusCode::UNAUTHORIZED,
                format!(
                    "the request has no token: send the header Authorization with Bearer and a ServiceAccount token \
                     of the audience {PUBLISH_AUDIENCE}"
                ),
            ),
        }
    }

    fn limit_problem(self) -> Problem {
        match self {
            Self::Crowded(Crowded::Namespace) => kind(
                StatusCode::TOO_MANY_REQUESTS,
                "urn:posthorn:problem:namespace-busy",
                "The namespace has too much under way",
                format!(
                    "{REQUESTS_PER_NAMESPACE_MAX} requests or {BODIES_PER_NAMESPACE_BYTES_MAX} bytes of the \
                     namespace are under way: send less at a time"
                ),
            )
            .retry_after(RETRY_AFTER_CROWDED),
            Self::Rate { wait } => kind(
                StatusCode::TOO_MANY_REQUESTS,
                "urn:posthorn:problem:rate-limited",
                "The namespace is over its rate of events",
                "the namespace hands in more events than its DeliveryPool allows: send them again later",
            )
            .retry_after(wait),
            Self::Full(Space::NamespaceFull) => kind(
                StatusCode::INSUFFICIENT_STORAGE,
                "urn:posthorn:problem:namespace-full",
                "The namespace has used up its share of the store",
                "nothing was accepted: the store has no room for the namespace until events of it are delivered or \
                 expire, or its DeliveryPool allows it more",
            ),
            Self::Full(_) => full(),
            _ => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                format!(
                    "{REQUESTS_MAX} requests or {BODIES_BYTES_MAX} bytes are under way in all: send the request again"
                ),
            )
            .retry_after(RETRY_AFTER_CROWDED),
        }
    }

    fn store_problem(self) -> Problem {
        match self {
            Self::Store(AcceptError::Busy { retry_after }) => kind(
                StatusCode::TOO_MANY_REQUESTS,
                "urn:posthorn:problem:store-busy",
                "The store is behind",
                "nothing was accepted, because more events wait for the store than may: send them again later",
            )
            .retry_after(retry_after),
            Self::Store(AcceptError::Full) => full(),
            Self::Store(AcceptError::NotStored) => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "nothing was accepted, because the store does not take events now: send them again later",
            )
            .retry_after(RETRY_AFTER_AWAY),
            Self::Conflict { errors, events } => {
                let count = errors.len();
                kind(
                    StatusCode::CONFLICT,
                    "urn:posthorn:problem:id-conflict",
                    "An id was used before",
                    format!(
                        "{count} of {} events were not accepted, because the publisher gave their id and source \
                         before to events with other content: give a new event a new id; the other events were \
                         accepted",
                        events.len()
                    ),
                )
                .errors(errors)
                // Texts and booleans: they always serialize.
                .member("events", serde_json::to_value(events).unwrap_or_default())
            }
            other => {
                let detail = match other {
                    Self::StoreTimeout => format!("the store did not answer within {ACCEPT_TIMEOUT:?}"),
                    _ => "the store failed".to_owned(),
                };
                let detail = format!(
                    "{detail}, so it is not known whether the events were accepted: send them again, with the same \
                     ids if they have any"
                );
                problem(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_AFTER_AWAY)
            }
        }
    }

    fn request_problem(self) -> Problem {
        match self {
            Self::BadNamespace => problem(
                StatusCode::NOT_FOUND,
                "the path must name a namespace: /v1/namespaces/ and its name and /events",
            ),
            Self::NoNamespace { namespace } => {
                problem(StatusCode::NOT_FOUND, format!("there is no namespace {namespace} in this cluster"))
            }
            Self::OtherPool { namespace, pool, service } => kind(
                StatusCode::MISDIRECTED_REQUEST,
                "urn:posthorn:problem:other-pool",
                "Another DeliveryPool is responsible",
                format!(
                    "the namespace {namespace} belongs to the DeliveryPool {pool}: send its events to the Service \
                     http://{service}"
                ),
            ),
            Self::NotListed => problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "this pod does not know the namespaces of the cluster yet: send the request again",
            ),
            Self::Rejected(Rejection::MediaType(error)) => {
                problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body is of a kind that is not taken; see errors")
                    .errors(vec![error])
            }
            Self::Rejected(Rejection::TooLarge(error)) => {
                let detail = error.detail.clone();
                problem(StatusCode::PAYLOAD_TOO_LARGE, detail).errors(vec![error])
            }
            Self::Rejected(Rejection::Invalid(errors)) => kind(
                StatusCode::BAD_REQUEST,
                "urn:posthorn:problem:invalid-event",
                "The request has an event that cannot be accepted",
                "nothing was accepted; errors says what is wrong where",
            )
            .errors(errors),
            Self::BodyTooLong { bytes_max } => problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is longer than {bytes_max} bytes: send smaller events, or fewer at a time"),
            ),
            Self::BodyTimeout => problem(
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not arrive within {BODY_TIMEOUT:?}: nothing was accepted"),
            ),
            _ => problem(StatusCode::BAD_REQUEST, "the body ended early: nothing was accepted"),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let is_compressed = matches!(
            &self,
            Self::Rejected(Rejection::MediaType(error)) if error.header.as_deref() == Some("content-encoding")
        );
        let mut response = self.into_problem().into_response();
        if is_compressed {
            // RFC 9110 §12.5.3: which codings are taken.
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }
}

fn problem(status: StatusCode, detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(status, detail)
}

fn kind(
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: impl Into<std::borrow::Cow<'static, str>>,
) -> Problem {
    Problem::new(status, detail).kind(kind, title)
}

fn full() -> Problem {
    kind(
        StatusCode::INSUFFICIENT_STORAGE,
        "urn:posthorn:problem:store-full",
        "The store is nearly full",
        "nothing was accepted: the store of the DeliveryPool has no room until events are delivered or expire, its \
         volume has room again, or it is made larger",
    )
}
