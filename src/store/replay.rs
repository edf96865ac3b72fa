//! Replays, limits and totals.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;

use super::HookId;
use crate::event::Pos;

/// Which Replay: a second one of the same identity never runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplayIdentity {
    /// UID of the namespace.
    pub namespace_uid: Arc<str>,
    /// Name of the Replay.
    pub name: Arc<str>,
    /// Hash of its spec without `cancel`.
    pub spec_hash: Arc<str>,
}

/// A Replay to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayOrder {
    /// Its identity.
    pub identity: ReplayIdentity,
    /// Of which Webhook.
    pub hook: HookId,
    /// What of it.
    pub what: ReplayWhat,
    /// Deliveries that are re-opened a second at most; none: no limit.
    pub per_second: Option<u32>,
    /// Count only.
    pub is_dry_run: bool,
}

/// What a Replay re-opens: delivered, dead and dismissed ones; what is pending
/// already is matched and left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayWhat {
    /// Every dead Delivery of the Webhook, with or without a card.
    AllDead,
    /// These dead Deliveries.
    Dead(Vec<Pos>),
    /// These events, whatever became of them; also those that were never routed
    /// to this Webhook if a Subscription of it wants them.
    Events(Vec<Pos>),
    /// Events accepted in [since, until) by wall time that a present
    /// Subscription of the Webhook wants.
    Range {
        /// From.
        since: Timestamp,
        /// To; none: until now.
        until: Option<Timestamp>,
    },
}

/// How a Replay stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayRun {
    /// The order was known already when it was given.
    pub is_known: bool,
    /// Where it is.
    pub state: ReplayState,
    /// Deliveries that matched so far.
    pub matched: u64,
    /// Of them: re-opened.
    pub reopened: u64,
    /// Of the re-opened: delivered, dead or discarded again.
    pub done: u64,
    /// Of the done: dead again.
    pub dead: u64,
    /// Wall time of its begin, milliseconds since 1970.
    pub begun_ms: i64,
}

/// Where a Replay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayState {
    /// Re-opens Deliveries.
    Running,
    /// Everything is re-opened and not all of it has ended.
    Sending,
    /// Everything that matched has ended.
    Complete,
    /// Ended by somebody.
    Cancelled,
}

/// Limits and retention; changeable while the store runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes that the database may have on disk.
    pub size_bytes: u64,
    /// Bytes of one namespace's events; none: no limit of its own.
    pub namespace_bytes: Option<u64>,
    /// How long events are kept whose Deliveries have all ended.
    pub retention_age: Duration,
    /// How many bytes of events are kept at most; none: what fits.
    pub retention_bytes: Option<u64>,
    /// How long dead Deliveries are kept.
    pub dead_age: Duration,
    /// How long publishers' ids are remembered.
    pub deduplication: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            size_bytes: 10 << 30,
            namespace_bytes: None,
            retention_age: Duration::from_secs(7 * 24 * 3600),
            retention_bytes: None,
            dead_age: Duration::from_secs(30 * 24 * 3600),
            deduplication: Duration::from_secs(3600),
        }
    }
}

/// What a store holds in all: accepted = delivered + dead + discarded + pending,
/// over Deliveries.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Totals {
    /// Events in the store.
    pub events: u64,
    /// Deliveries that were ever routed.
    pub routed: u64,
    /// Deliveries that were delivered.
    pub delivered: u64,
    /// Dead ones, dismissed ones not among them.
    pub dead: u64,
    /// Owed, waiting and parked ones, counted one by one.
    pub pending: u64,
    /// Discarded ones by reason, in the order of [`DiscardReason::ALL`].
    pub discarded: [u64; 4],
}
