//! The store: the durable home of events, Deliveries and attempts.
//!
//! This module is the contract; `sqlite` keeps it on one disk. It is shaped so
//! that a replicated engine fits behind it: partitions that are gained and lost,
//! positions that are opaque, answers that may be [`StoreError::Fenced`]. What
//! every store must do is held by the conformance suite in `tests/it/store`.
//!
//! # States of a Delivery
//! Each change is compare-and-set on `tries`, the attempts that were used up.
//!
//! | state | where | leaves by |
//! |---|---|---|
//! | Unrouted | event and a fan-out scan | a step of the scan → Owed |
//! | Owed | `owed` | sent (in memory) → Delivered, Waiting, Parked or Dead |
//! | Waiting | `retry` | due and sent → Delivered, Waiting or Dead |
//! | Parked | `parked`: behind a blocked ordering key | the key is free → sent in order |
//! | Delivered | no row but attempts | a Replay → Owed, or Parked |
//! | Dead | `dead` | a Replay → Owed, or Parked; its card deleted → Dismissed; retention |
//!
//! *Held* (unverified, suspended, Gone, circuit open, no secret, 429) is a flag
//! of the Webhook, not of its Deliveries: holding a million writes no row.
//!
//! # Order
//! A Delivery has an ordering key if its Webhook was ordered when it was routed.
//! Of one hook and key, live routing makes Deliveries visible in the order of
//! their events: an event is not routed while an older one of its key waits for
//! its fan-out. What is parked is older than what is owed: a Replay parks what it
//! re-opens for a hook that is ordered, so that it comes before what was blocked
//! meanwhile, whenever the process ends.

mod accept;
mod delivery;
mod identity;
mod news;
mod register;
mod replay;
pub mod sqlite;

use futures::future::BoxFuture;
use tokio::sync::watch;

pub use accept::*;
pub use delivery::*;
pub use identity::*;
pub use news::*;
pub use register::*;
pub use replay::*;

use crate::event::{Pos, StoreTime};

/// What a call to the store brings.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Which Webhooks get an event. Lives inside the store, beside the one that
/// gives out positions, so that a Subscription takes effect at an exact place.
pub trait Router: Send {
    /// Adds the targets of an event, in the order of their hooks, to `targets`:
    /// those behind `after`, at most `limit`. Only Subscriptions with `live_from`
    /// ≤ `pos` count, and one target a hook. True if there are more.
    fn route(&self, pos: Pos, event: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool;

    /// Whether this Subscription wants an event, whatever its `live_from`: for
    /// backfill and replay by time.
    fn wants(&self, sub: SubId, event: RouteKey<'_>) -> bool;

    /// Hooks and Subscriptions changed; called when the change is durable, before
    /// the next position is given out.
    fn apply(&mut self, changes: &[RouteChange]);
}

/// Takes events in.
pub trait Ingest: Send + Sync {
    /// Returns when all of the batch and its routing are on stable storage, one
    /// verdict an event in the order given. The batch is accepted as a whole or
    /// not at all; a conflict of one event leaves the others accepted.
    ///
    /// # Errors
    /// [`AcceptError`].
    fn accept(&self, events: Vec<NewEvent>) -> BoxFuture<'_, Result<Vec<Accepted>, AcceptError>>;

    /// How full the store is, for the namespace first: asked before a body is read.
    fn space(&self, namespace_uid: &str) -> Space;
}

/// Keeps the Deliveries of a partition. Any call may answer
/// [`StoreError::Fenced`]: the partition is another's now, and everything of it
/// is dropped without another attempt.
///
/// # Guarantees
/// What an answer of [`owed`](Self::owed), [`waiting`](Self::waiting),
/// [`blocked_keys`](Self::blocked_keys) or [`parked`](Self::parked) shows of a
/// change that [`News::Late`], [`News::Added`] or [`News::Changed`] tells of was
/// told before the answer is given. Whoever takes news before answers misses no row
/// at a position that he has read past, and takes nothing for the first of its key
/// because an older one has died.
pub trait Partition: Send + Sync {
    /// Makes hooks and Subscriptions known, or gone; durable when it returns.
    ///
    /// # Guarantees
    /// A Subscription seen for the first time at position S durably gets
    /// `from` (by its `start`) and `live_from = S`, and a scan over [from, S):
    /// no gap and no double. A known UID keeps what it has; its other fields are
    /// brought up to date. Changes take effect in the order given.
    fn register(&self, changes: Vec<Register>) -> Answer<'_, Vec<Registered>>;

    /// Every hook and Subscription that is known, as at the start.
    fn known(&self) -> Answer<'_, Known>;

    /// Every namespace of which anything is kept, be it events alone, in the order
    /// of their UIDs; those that are gone are not among them.
    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>>;

    /// Owed Deliveries of a hook behind `after`, in order. Reads what is durable.
    fn owed(&self, hook: HookId, after: Pos, limit: usize) -> Answer<'_, OwedPage>;

    /// Deliveries of a hook whose retry is due, earliest first.
    fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> Answer<'_, WaitingPage>;

    /// Ordering keys of a hook that are blocked, each once, at most `limit`: those
    /// with a Delivery that waits first, then those with parked ones, then, if
    /// `dead_blocks`, those with dead ones alone. All of one moment.
    fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Answer<'_, Vec<BlockedKey>>;

    /// Parked Deliveries of a key, in order.
    fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Answer<'_, Vec<OwedRow>>;

    /// The events at these positions, in the order asked for.
    fn bodies(&self, positions: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>>;

    /// Takes outcomes of attempts and enqueues them; [`Partition::recorded`]
    /// tells when they are durable. Compare-and-set on `tries`: an outcome that
    /// does not fit is ignored. Never blocks.
    fn record(&self, outcomes: Vec<Outcome>) -> RecordTicket;

    /// The last ticket whose outcomes are durable. It may stand still for long, as
    /// while a disk is full: whoever records bounds what is not durable.
    fn recorded(&self) -> watch::Receiver<RecordTicket>;

    /// Keeps a note on a hook (circuit, withdrawal); durable when it returns.
    fn note(&self, hook: HookId, note: HookNote) -> Answer<'_, ()>;

    /// Counters and circuit of hooks with traffic since `after`, oldest change
    /// first, at most `limit`.
    fn tallies(&self, after: TallyRevision, limit: usize) -> Answer<'_, TallyPage>;

    /// Dead Deliveries that want a card, or have one: of all hooks if none is
    /// given, behind `after`.
    fn cards(&self, query: CardQuery) -> Answer<'_, Vec<DeadRow>>;

    /// Notes what became of cards. [`CardState::Dismissed`] ends a Delivery as
    /// discarded.
    fn mark_cards(&self, marks: Vec<CardMark>) -> Answer<'_, ()>;

    /// Starts a Replay, or tells of the one with this identity: once per
    /// namespace, name and spec hash.
    fn replay(&self, order: ReplayOrder) -> Answer<'_, ReplayRun>;

    /// Where a Replay is; none if it was never begun or is forgotten (90 d).
    fn replay_run(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>>;

    /// Ends a Replay: what it has not re-opened stays as it is.
    fn cancel_replay(&self, identity: ReplayIdentity) -> Answer<'_, Option<ReplayRun>>;

    /// Limits and retention of the pool; from the next transaction on.
    fn configure(&self, limits: StoreLimits);

    /// The store's time.
    fn store_now(&self) -> StoreTime;

    /// Makes everything durable and ends. What was not recorded stays owed.
    fn close(&self) -> Answer<'_, ()>;
}

/// Questions apart from the hot path.
pub trait History: Send + Sync {
    /// Attempts of a hook, newest first, older than `before`.
    fn attempts(&self, hook: HookId, before: Option<AttemptId>, limit: usize) -> Answer<'_, Vec<AttemptRow>>;

    /// Attempts of one event, oldest first, at most `limit`.
    fn attempts_of(&self, pos: Pos, limit: usize) -> Answer<'_, Vec<AttemptRow>>;

    /// Where every Delivery of an event is.
    fn states_of(&self, pos: Pos) -> Answer<'_, Vec<(HookId, DeliveryState)>>;

    /// What the store holds in all: the oracle of the fault tests. Slow.
    fn totals(&self) -> Answer<'_, Totals>;
}

/// Targets of an event that are written with it; with more, a scan writes them.
pub const INLINE_TARGETS_MAX: usize = 64;
