//! Events on their way in, and what routing asks of them.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;

use super::{HookId, SubId};
use crate::event::{Event, EventHead, EventId};

/// An event to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// Name of the namespace.
    pub namespace: Arc<str>,
    /// UID of the namespace.
    pub namespace_uid: Arc<str>,
    /// What the publisher said about it.
    pub head: EventHead,
    /// The data; at most [`crate::event::EVENT_BYTES_MAX`].
    pub data: bytes::Bytes,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Accepted under this id.
    New(EventId),
    /// Accepted before, with the same content, under this id.
    Duplicate(EventId),
    /// The publisher gave this id before, with other content. Not accepted.
    Conflict(EventId),
}

/// Why a batch was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcceptError {
    /// More waits than may; nothing was stored. 429.
    #[error("the store is behind; try again after {} s", retry_after.as_secs())]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// No room for this namespace, or in all; nothing was stored. 507.
    #[error("the store has no room left")]
    Full,
    /// Nothing was stored. 503.
    #[error("the store did not take the event")]
    NotStored,
    /// It may be stored or not, for instance because a sync failed. 503.
    #[error("the store cannot tell whether it has the event")]
    Unknown,
}

/// Whether there is room for more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// There is.
    Free,
    /// The namespace has used up its share.
    NamespaceFull,
    /// The store is nearly full.
    StoreFull,
}

/// What routing asks of an event.
#[derive(Clone, Copy, Debug)]
pub struct RouteKey<'a> {
    /// UID of its namespace.
    pub namespace_uid: &'a str,
    /// Its type.
    pub event_type: &'a str,
    /// Its source.
    pub source: &'a str,
}

/// An event goes to this hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The Webhook.
    pub hook: HookId,
    /// The oldest Subscription that matched.
    pub sub: SubId,
    /// Deliveries with the same key go one after the other.
    pub is_ordered: bool,
}

/// What stands at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredEvent {
    /// The event.
    Event(Arc<Event>),
    /// Its checksum does not fit: it cannot be delivered.
    Corrupt,
    /// Nothing.
    Missing,
}

/// An event without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSummary {
    /// Its id.
    pub id: EventId,
    /// Its type.
    pub event_type: Box<str>,
    /// The publisher's id.
    pub given_id: Option<Box<str>>,
    /// Its source.
    pub source: Box<str>,
    /// Wall time of the accept.
    pub accepted: Timestamp,
    /// Bytes of its data.
    pub data_bytes: u64,
    /// SHA-256 of its data.
    pub data_sha256: [u8; 32],
}
