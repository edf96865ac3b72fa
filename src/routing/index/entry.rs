//! Webhooks and Subscriptions in the slim form that the index keeps.
//!
//! A typed object costs about 3 KiB in memory, most of it conditions, messages
//! and managed fields. What routing and delivery ask for fits into a fraction.

use std::{fmt, sync::Arc};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde::{Deserialize, Serialize};

use super::{intern::Interner, pattern::EventPattern};
use crate::{
    api::{
        RELOAD_ANNOTATION, Subscription, Webhook,
        subscription_rules::{self, SubscriptionError},
        webhook::{
            Dialect, Scheme, ServiceRef, VerificationMethod, VerificationState, VerificationStatus, WebhookSpec,
        },
    },
    policy::{delivery::DeliverySettings, sending::SendingSpec},
};

/// Characters of the annotation [`RELOAD_ANNOTATION`] that are told apart at most.
const RELOAD_CHARS_MAX: usize = 256;

/// A Webhook in the index.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookEntry {
    /// Name of the object.
    pub name: Arc<str>,
    /// UID of the object.
    pub uid: Arc<str>,
    /// Generation of the spec.
    pub generation: i64,
    /// Where the endpoint is.
    pub endpoint: EndpointSource,
    /// What the receiver speaks.
    pub dialect: Dialect,
    /// How the endpoint proves that it wants events.
    pub method: VerificationMethod,
    /// Nothing is sent. Events are owed all the same.
    pub suspended: bool,
    /// What the controller wrote about the verification. Worth nothing before
    /// the fingerprint has been computed again.
    pub verification: VerificationEntry,
    /// How it wants to be delivered to. Equal settings share their memory.
    pub settings: Arc<DeliverySettings>,
    /// How requests to it are made. Plain ones share their memory.
    pub sending: Arc<SendingSpec>,
    /// The annotation [`RELOAD_ANNOTATION`]: with another value everything that
    /// was read of its Secrets is stale, and a pause that it asked for is over.
    pub reload: Option<Box<str>>,
}

impl WebhookEntry {
    /// The status of the verification, as a fingerprint is checked against it.
    pub fn verification_status(&self) -> VerificationStatus {
        let VerificationEntry { state, fingerprint, verified_time, valid_until } = &self.verification;
        VerificationStatus {
            state: *state,
            fingerprint: fingerprint.as_deref().map(Into::into),
            verified_time: verified_time.map(Time),
            valid_until: valid_until.map(Time),
            ..VerificationStatus::default()
        }
    }
}

/// Where an endpoint is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EndpointSource {
    /// A URL as the user wrote it.
    Url(Box<str>),
    /// A key of a Secret of the same namespace.
    UrlFrom {
        /// Name of the Secret.
        secret: Box<str>,
        /// Key in it.
        key: Box<str>,
    },
    /// A Service of the same namespace.
    Service(Box<ServiceEndpoint>),
}

/// An endpoint behind a Service of the same namespace.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// Name of the Service.
    pub name: Box<str>,
    /// Number of its port.
    pub port: u16,
    /// Path and query.
    pub path: Box<str>,
    /// http or https.
    pub scheme: Scheme,
}

impl EndpointSource {
    /// The endpoint in full, as a fingerprint binds it; none if only a Secret
    /// tells it. May be a secret all the same.
    pub fn identity(&self) -> Option<Box<str>> {
        match self {
            Self::Url(url) => Some(url.clone()),
            Self::UrlFrom { .. } => None,
            Self::Service(service) => Some(service.to_ref().identity().into()),
        }
    }
}

impl ServiceEndpoint {
    fn to_ref(&self) -> ServiceRef {
        ServiceRef {
            name: self.name.to_string(),
            port: self.port.into(),
            path: Some(self.path.to_string()),
            scheme: Some(self.scheme),
        }
    }
}

/// Not derived: URLs and paths may hold secrets.
impl fmt::Debug for EndpointSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(_) => f.write_str("Url"),
            Self::UrlFrom { secret, key } => write!(f, "UrlFrom({secret}, {key})"),
            Self::Service(service) => write!(f, "Service({}:{})", service.name, service.port),
        }
    }
}

/// The verification as the status tells it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationEntry {
    /// The state.
    pub state: VerificationState,
    /// The MAC that proves the rest.
    pub fingerprint: Option<Box<str>>,
    /// Since when the endpoint is verified.
    pub verified_time: Option<Timestamp>,
    /// Until when.
    pub valid_until: Option<Timestamp>,
}

/// A Subscription in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionEntry {
    /// Name of the object.
    pub name: Arc<str>,
    /// UID of the object.
    pub uid: Arc<str>,
    /// Generation of the spec.
    pub generation: i64,
    /// When the object was made: the oldest Subscription shapes a Delivery.
    pub created: Timestamp,
    /// Name of the Webhook that gets the events.
    pub webhook: Box<str>,
    /// Which types of events.
    pub events: Box<[EventPattern]>,
    /// Only events of this source.
    pub source: Option<Box<str>>,
    /// From when on.
    pub start: Start,
    /// No new events.
    pub suspended: bool,
}

impl SubscriptionEntry {
    /// Whether a new event of this type and source is for this Subscription.
    pub fn matches(&self, event_type: &str, source: &str) -> bool {
        !self.suspended
            && self.source.as_deref().is_none_or(|wanted| wanted == source)
            && self.events.iter().any(|pattern| pattern.matches(event_type))
    }
}

/// From when on events are owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Start {
    /// Since the endpoint was verified.
    Verification,
    /// Since the Subscription was made.
    Now,
    /// As far as retention reaches.
    Earliest,
    /// Since this time.
    At(Timestamp),
}

/// Why this version cannot use a generation of an object, for its status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The API server's schema allows what this version cannot parse. What the
    /// parser said is left out: it may repeat a URL.
    #[error(
        "the delivery pods cannot read this object: their version of Posthorn is older than its schema. Update them"
    )]
    Unreadable,
    /// None of the three ways to name an endpoint, or several.
    #[error("spec names no endpoint, or several. Set exactly one of url, urlFrom and serviceRef")]
    Endpoint,
    /// The port is none.
    #[error("spec.serviceRef.port is {0}. It must be from 1 to 65535")]
    ServicePort(i32),
    /// The Subscription breaks a rule of its schema: it may be older than the rule.
    #[error(transparent)]
    Subscription(#[from] SubscriptionError),
}

/// What the API server says of every object, and the index needs.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
}

pub(super) fn compile_webhook(
    id: &Identity,
    webhook: &Webhook,
    settings: &mut Interner<DeliverySettings>,
) -> Result<WebhookEntry, CompileError> {
    let verification = webhook.status.as_ref().and_then(|status| status.verification.as_ref());
    Ok(WebhookEntry {
        name: Arc::clone(&id.name),
        uid: Arc::clone(&id.uid),
        generation: id.generation,
        endpoint: endpoint(&webhook.spec)?,
        dialect: webhook.spec.effective_dialect(),
        method: webhook.spec.effective_method(),
        suspended: webhook.spec.is_suspended(),
        verification: verification.map_or_else(VerificationEntry::default, |v| VerificationEntry {
            state: v.state,
            fingerprint: v.fingerprint.as_deref().map(Into::into),
            verified_time: v.verified_time.as_ref().map(|time| time.0),
            valid_until: v.valid_until.as_ref().map(|time| time.0),
        }),
        settings: settings.share(DeliverySettings::compile(&webhook.spec)),
        sending: SendingSpec::compile(&webhook.spec),
        reload: reload(webhook),
    })
}

/// A value that is too long is cut: what is kept tells two values apart well
/// enough, and an annotation may have 256 KiB.
fn reload(webhook: &Webhook) -> Option<Box<str>> {
    let value = webhook.metadata.annotations.as_ref()?.get(RELOAD_ANNOTATION)?;
    Some(value.chars().take(RELOAD_CHARS_MAX).collect::<String>().into())
}

fn endpoint(spec: &WebhookSpec) -> Result<EndpointSource, CompileError> {
    match (&spec.url, &spec.url_from, &spec.service_ref) {
        (Some(url), None, None) => Ok(EndpointSource::Url(url.as_str().into())),
        (None, Some(from), None) => {
            Ok(EndpointSource::UrlFrom { secret: from.name.as_str().into(), key: from.key.as_str().into() })
        }
        (None, None, Some(service)) => Ok(EndpointSource::Service(Box::new(ServiceEndpoint {
            name: service.name.as_str().into(),
            port: u16::try_from(service.port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or(CompileError::ServicePort(service.port))?,
            path: service.path.as_deref().unwrap_or("/").into(),
            scheme: service.scheme.unwrap_or(Scheme::Http),
        }))),
        _ => Err(CompileError::Endpoint),
    }
}

pub(super) fn compile_subscription(
    id: &Identity,
    subscription: &Subscription,
) -> Result<SubscriptionEntry, CompileError> {
    let spec = &subscription.spec;
    subscription_rules::check(spec)?;
    let created = subscription.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Ok(SubscriptionEntry {
        name: Arc::clone(&id.name),
        uid: Arc::clone(&id.uid),
        generation: id.generation,
        created,
        webhook: spec.webhook_ref.name.as_str().into(),
        events: spec
            .events
            .iter()
            // The check above refused what is no pattern.
            .filter_map(|text| EventPattern::parse(text))
            .collect(),
        source: spec.source.as_deref().map(Into::into),
        start: start(spec.start.as_deref())?,
        suspended: spec.suspend.unwrap_or(false),
    })
}

fn start(text: Option<&str>) -> Result<Start, CompileError> {
    match text {
        None | Some("Verification") => Ok(Start::Verification),
        Some("Now") => Ok(Start::Now),
        Some("Earliest") => Ok(Start::Earliest),
        Some(time) => time.parse().map(Start::At).map_err(|_| SubscriptionError::BadStart.into()),
    }
}
