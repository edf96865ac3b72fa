//! What a store knows of Webhooks and Subscriptions.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;

use super::{HookId, SubId};
use crate::event::{Pos, StoreTime};

/// What the store tells its router.
#[derive(Clone, Debug, PartialEq)]
pub enum RouteChange {
    /// A Webhook is known under this number.
    Hook {
        /// Its number.
        id: HookId,
        /// What was registered.
        hook: HookDefinition,
    },
    /// A Subscription is served from this position on.
    Sub {
        /// Its number.
        id: SubId,
        /// The number of its Webhook.
        hook: HookId,
        /// Positions from here on are routed live.
        live_from: Pos,
        /// What was registered.
        sub: SubDefinition,
    },
    /// A Webhook gets nothing more.
    HookGone(HookId),
    /// A Subscription matches nothing more.
    SubGone(SubId),
}

/// A change of what the store knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Register {
    /// A Webhook exists, by (namespace UID, name). One that was gone takes its
    /// backlog up again.
    Hook(HookDefinition),
    /// A Subscription exists, by its UID. Its Webhook must be known, gone or not;
    /// it may be another one than before.
    Sub(SubDefinition),
    /// A Webhook is gone. What is owed to it is kept for [`GONE_KEEP`]. Its
    /// Subscriptions stay known and bring nothing until it comes back.
    HookGone {
        /// UID of the namespace.
        namespace_uid: Arc<str>,
        /// Its name.
        name: Arc<str>,
    },
    /// A Subscription is gone. What it brought stays owed. Not for one that is
    /// merely not served, because its generation cannot be used or its namespace
    /// moved to another pool: its document says so, and it stays known.
    SubGone {
        /// Its UID.
        uid: Arc<str>,
    },
    /// A namespace is gone: its data is purged, `discarded: NamespaceDeleted`.
    NamespaceGone {
        /// Its UID.
        uid: Arc<str>,
    },
}

/// How long the backlog of a Webhook that is gone waits for a namesake.
pub const GONE_KEEP: Duration = Duration::from_secs(24 * 3600);

/// A Webhook as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct HookDefinition {
    /// Name of the namespace.
    pub namespace: Arc<str>,
    /// UID of the namespace.
    pub namespace_uid: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// UID of the object.
    pub uid: Arc<str>,
    /// How long an event is owed, in milliseconds.
    pub max_age_ms: i64,
    /// Deliveries with the same key go one after the other.
    pub is_ordered: bool,
    /// The object in a form that [`Partition::known`](super::Partition::known)
    /// gives back, so that the pod works while the API server is away. Never a
    /// Secret's value.
    pub document: Arc<str>,
}

/// A Subscription as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct SubDefinition {
    /// UID of the namespace.
    pub namespace_uid: Arc<str>,
    /// Name of the Webhook that gets the events.
    pub webhook: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// UID of the object.
    pub uid: Arc<str>,
    /// When the object was made.
    pub created: Timestamp,
    /// From when on events are owed, when it is seen for the first time.
    pub from: From,
    /// The object, as in [`HookDefinition::document`].
    pub document: Arc<str>,
}

/// From when on events are owed to a Subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Events accepted since this wall time.
    Time(Timestamp),
    /// As far as retention reaches.
    Earliest,
}

/// What became of a [`Register`], in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registered {
    /// The Webhook's number.
    Hook(HookId),
    /// The Subscription's number, and from where on it is served live.
    Sub {
        /// Its number.
        id: SubId,
        /// Positions from here on are routed live.
        live_from: Pos,
    },
    /// The Subscription names no Webhook that is known.
    NoSuchWebhook,
    /// Nothing to give back.
    Done,
}

/// Everything that a store knows of Webhooks and Subscriptions at its start.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Known {
    /// Webhooks.
    pub hooks: Vec<KnownHook>,
    /// Subscriptions that are not gone.
    pub subs: Vec<KnownSub>,
}

/// A namespace of which the store keeps something.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KnownNamespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its UID.
    pub uid: Arc<str>,
}

/// A Webhook that the store knows.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownHook {
    /// Its number.
    pub id: HookId,
    /// What was registered last.
    pub hook: HookDefinition,
    /// Since when it is gone.
    pub gone_at: Option<StoreTime>,
    /// What was noted about it.
    pub notes: HookNotes,
    /// Deliveries that are neither delivered nor dead nor discarded.
    pub pending: u64,
}

/// A Subscription that the store knows.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownSub {
    /// Its number.
    pub id: SubId,
    /// Number of its Webhook.
    pub hook: HookId,
    /// Positions from here on are routed live.
    pub live_from: Pos,
    /// What was registered last.
    pub sub: SubDefinition,
}

/// Something to remember about a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookNote {
    /// The circuit, in the dispatcher's own words; none: closed.
    Circuit(Option<Arc<str>>),
    /// The endpoint said 410 at this wall time: verifications from before are
    /// worth nothing.
    Withdrawn(Timestamp),
    /// 429: nothing is sent until then.
    HeldUntil(Option<StoreTime>),
}

/// What is remembered about a hook.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HookNotes {
    /// See [`HookNote::Circuit`].
    pub circuit: Option<Arc<str>>,
    /// See [`HookNote::Withdrawn`].
    pub withdrawn: Option<Timestamp>,
    /// See [`HookNote::HeldUntil`].
    pub held_until: Option<StoreTime>,
}
