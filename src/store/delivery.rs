//! Deliveries: what is owed, how attempts end, what is dead.

use k8s_openapi::jiff::Timestamp;

use super::{AttemptId, EventSummary, HookId, OrderKey, SubId, TallyRevision};
use crate::event::{Pos, StoreTime};

/// An owed, waiting or parked Delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwedRow {
    /// Position of its event.
    pub pos: Pos,
    /// The Subscription that shapes it.
    pub sub: SubId,
    /// Its ordering key, if the Webhook was ordered when it was routed.
    pub key: Option<OrderKey>,
    /// Attempts that were used up.
    pub tries: u16,
    /// In which shape the first attempt sent it: kept for every later one.
    /// None before the first.
    pub shape: Option<u8>,
}

/// Owed Deliveries of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct OwedPage {
    /// In the order of their positions.
    pub rows: Vec<OwedRow>,
    /// Every owed row of the hook up to here is in this page or before it. With
    /// fewer rows than asked for: the last position that was committed.
    pub covered: Pos,
}

/// Due Deliveries of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct WaitingPage {
    /// Earliest due first.
    pub rows: Vec<OwedRow>,
    /// When the next one behind these is due.
    pub next_due: Option<StoreTime>,
}

/// An ordering key that is blocked, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockedKey {
    /// The key.
    pub key: OrderKey,
    /// A Delivery of it waits for its retry.
    pub is_waiting: bool,
    /// The first Delivery that is parked behind it.
    pub parked: Option<Pos>,
    /// Its first Delivery that is dead and not dismissed, if dead ones block.
    pub dead: Option<Pos>,
}

/// How an attempt ended, and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The Webhook.
    pub hook: HookId,
    /// The event.
    pub pos: Pos,
    /// Attempts that were used up before this one: compare-and-set.
    pub tries: u16,
    /// The attempt, if there was one. It uses up a try unless `next` is
    /// [`Next::Back`].
    pub attempt: Option<Attempt>,
    /// What follows.
    pub next: Next,
}

/// What follows an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Delivered.
    Done,
    /// Again at this time.
    At(StoreTime),
    /// Given up.
    Dead(DeadReason),
    /// Behind a blocked key: from owed to parked. No attempt was made.
    Park,
    /// As it was: an attempt that used up no try (a probe of an open circuit).
    Back,
}

/// Why a Delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Every attempt of the schedule failed.
    Exhausted,
    /// The answer is one of those that are not worth a retry (`deadOn`).
    DeadOn,
    /// Owed for longer than `maxAge`.
    Expired,
    /// The backlog of the Webhook was full.
    BacklogFull,
    /// The event was damaged on disk.
    Corrupt,
    /// The event cannot be brought into the form that the Webhook wants.
    Unrenderable,
}

impl DeadReason {
    /// All of them, in the order of their numbers in the store.
    pub const ALL: [Self; 6] =
        [Self::Exhausted, Self::DeadOn, Self::Expired, Self::BacklogFull, Self::Corrupt, Self::Unrenderable];

    /// The word in `reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "Exhausted",
            Self::DeadOn => "DeadOn",
            Self::Expired => "Expired",
            Self::BacklogFull => "BacklogFull",
            Self::Corrupt => "Corrupt",
            Self::Unrenderable => "Unrenderable",
        }
    }
}

/// Why a Delivery ended that was neither delivered nor is kept as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscardReason {
    /// Its namespace is gone.
    NamespaceDeleted,
    /// Its Webhook has been gone for longer than [`GONE_KEEP`].
    WebhookDeleted,
    /// Its card was deleted by somebody.
    Dismissed,
    /// A dead Delivery whose time was over.
    Retention,
}

impl DiscardReason {
    /// All of them, in the order of their numbers in the store.
    pub const ALL: [Self; 4] = [Self::NamespaceDeleted, Self::WebhookDeleted, Self::Dismissed, Self::Retention];

    /// The word in metrics and texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NamespaceDeleted => "NamespaceDeleted",
            Self::WebhookDeleted => "WebhookDeleted",
            Self::Dismissed => "Dismissed",
            Self::Retention => "Retention",
        }
    }
}

/// One HTTP try.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Wall time of its start.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u32,
    /// Status code of the answer, if there was one.
    pub code: Option<u16>,
    /// Why it failed: the word of an [`crate::api::Reason`].
    pub error: Option<&'static str>,
    /// In which shape it was sent.
    pub shape: u8,
    /// What is kept of request and answer, if anything.
    pub detail: Option<Box<AttemptDetail>>,
}

/// What is kept of an attempt: no secrets, at most some KiB.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AttemptDetail {
    /// Headers of request and answer as text, a line each.
    pub head: Box<str>,
    /// The first KiB of the answer's body, if it is text.
    pub body: Box<str>,
}

/// An attempt as history shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRow {
    /// Its number.
    pub id: AttemptId,
    /// Whose.
    pub hook: HookId,
    /// Of which event.
    pub pos: Pos,
    /// Which one of the Delivery, from 1.
    pub number: u16,
    /// Wall time of its start, in milliseconds since 1970.
    pub at_ms: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: u32,
    /// Status code of the answer, if there was one.
    pub code: Option<u16>,
    /// Why it failed.
    pub error: Option<Box<str>>,
    /// Whether it delivered.
    pub is_ok: bool,
    /// What is kept of request and answer.
    pub detail: Option<AttemptDetail>,
}

/// Counters of a hook, since it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    /// The hook.
    pub hook: HookId,
    /// Deliveries that were delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Deliveries that are owed, wait or are parked.
    pub pending: u64,
    /// Deliveries that are dead and not dismissed, with or without a card.
    pub dead: u64,
    /// Wall time of the last attempt, in milliseconds since 1970; 0: none.
    pub last_ms: i64,
    /// Status code of its answer; 0: none came.
    pub last_code: u16,
}

/// Counters that changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TallyPage {
    /// The newest state of each hook that changed.
    pub tallies: Vec<Tally>,
    /// Ask again with this.
    pub revision: TallyRevision,
    /// More wait behind these.
    pub more: bool,
}

/// Where a Delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Owed.
    Owed,
    /// A retry is planned.
    Waiting(StoreTime),
    /// Behind a blocked key.
    Parked,
    /// Given up.
    Dead(DeadReason),
    /// Given up, and its card deleted.
    Dismissed,
    /// Delivered.
    Delivered,
}

/// What became of the card of a dead Delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CardState {
    /// It shall get one.
    Wanted,
    /// It has one.
    Made,
    /// There are as many as may be: it is counted only.
    Overflow,
    /// Somebody deleted it: the Delivery is discarded.
    Dismissed,
    /// Its time to live is over: the Delivery stays dead, without a card.
    Expired,
}

/// Which dead Deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardQuery {
    /// Of this hook; of all if none.
    pub hook: Option<HookId>,
    /// In this state of their card; in any if none.
    pub state: Option<CardState>,
    /// Behind this one.
    pub after: Option<(HookId, Pos)>,
    /// At most so many.
    pub limit: usize,
}

/// A dead Delivery.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadRow {
    /// Its Webhook.
    pub hook: HookId,
    /// Position of its event.
    pub pos: Pos,
    /// Its event, without data; none if it is damaged.
    pub event: Option<EventSummary>,
    /// Why it was given up.
    pub reason: DeadReason,
    /// Status code of the last answer.
    pub code: Option<u16>,
    /// Why the last attempt failed.
    pub error: Option<Box<str>>,
    /// Attempts that were used up.
    pub tries: u16,
    /// Wall time of the accept, milliseconds since 1970.
    pub first_ms: i64,
    /// Wall time at which it was given up, milliseconds since 1970.
    pub last_ms: i64,
    /// Store time at which it was given up.
    pub at: StoreTime,
    /// What became of its card.
    pub card: CardState,
}

/// What became of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardMark {
    /// The hook of the Delivery.
    pub hook: HookId,
    /// Its event.
    pub pos: Pos,
    /// The new state.
    pub state: CardState,
}
