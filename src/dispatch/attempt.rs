//! What the dispatcher and the sender say to each other.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;

use crate::{
    api::Reason,
    event::Event,
    policy::delivery::DeliverySettings,
    routing::index::WebhookEntry,
    store::{AttemptDetail, HookId, HookNotes},
};

/// Makes attempts. Signs, dials, reads the answer; decides nothing about what
/// follows.
pub trait AttemptSender: Send + Sync + 'static {
    /// One attempt. Ends within the time-out of the Webhook and never panics.
    fn attempt(&self, job: AttemptJob) -> BoxFuture<'static, AttemptReport>;
}

/// An attempt to make.
#[derive(Clone, Debug)]
pub struct AttemptJob {
    /// The Webhook's number in the store.
    pub hook: HookId,
    /// Namespace of the Webhook.
    pub namespace: Arc<str>,
    /// The Webhook as the index has it now.
    pub webhook: Arc<WebhookEntry>,
    /// Verifications from before this time are worth nothing: the endpoint said
    /// 410 then.
    pub withdrawn: Option<Timestamp>,
    /// The event.
    pub event: Arc<Event>,
    /// In which shape the first attempt sent it; none: this is the first.
    pub shape: Option<u8>,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct AttemptReport {
    /// Wall time of its start.
    pub at: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// In which shape it was sent.
    pub shape: u8,
    /// How it ended.
    pub end: AttemptEnd,
    /// What may be kept of request and answer.
    pub detail: Option<Box<AttemptDetail>>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptEnd {
    /// The endpoint answered in full.
    Answered {
        /// Its status code.
        code: u16,
        /// What it said about trying again, counted from now.
        retry_after: Option<Duration>,
    },
    /// No complete answer.
    Failed {
        /// Why, in one word.
        reason: Reason,
        /// What kind of failure that is.
        kind: FailureKind,
    },
    /// Nothing was sent and no try is used up: the Webhook is held.
    NotSent(Hold),
    /// The event cannot be brought into the form that the Webhook wants.
    Unrenderable,
}

/// What a failure tells of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The endpoint, whatever the event: time-outs, connection and TLS errors.
    Endpoint,
    /// This event, or our own rules.
    Other,
}

/// Why nothing is sent to a Webhook though something is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Why, in one word: `Unverified`, `Suspended`, `Gone`, `SecretNotFound`, …
    pub reason: Reason,
    /// Why, in a sentence fit for a status; never a secret, a path, an address.
    pub message: Arc<str>,
    /// Ask again after this time; none: when the Webhook changes.
    pub retry_after: Option<Duration>,
}

/// A Webhook as the dispatcher is told of it.
#[derive(Clone, Debug)]
pub struct HookView {
    /// Its number in the store.
    pub id: HookId,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The Webhook; none if it is gone: nothing is sent.
    pub webhook: Option<Arc<WebhookEntry>>,
    /// How it wants to be delivered to.
    pub settings: Arc<DeliverySettings>,
    /// What the store remembers of it.
    pub notes: HookNotes,
    /// Something may be owed already: read the store.
    pub has_backlog: bool,
}

/// How an endpoint does, for the condition `Healthy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookHealth {
    /// The Webhook's number in the store.
    pub hook: HookId,
    /// How it does.
    pub view: HealthView,
    /// Since when (wall time).
    pub since: Timestamp,
}

/// How an endpoint does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthView {
    /// The last attempt succeeded, or failures are few.
    Healthy,
    /// The circuit is open, or the endpoint asked for a pause.
    Failing {
        /// Why, in one word.
        reason: Reason,
        /// Why, in a sentence.
        message: Arc<str>,
    },
    /// Held for another reason than failures.
    Held(Hold),
}
