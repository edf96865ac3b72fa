//! What a transaction will mean once it is durable: news for the dispatcher and
//! changes of counters. Collected while the transaction runs, applied after its
//! commit, dropped with it if it fails.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use rusqlite::Connection;

use super::rows::Epochs;
use crate::{
    event::{Pos, StoreTime},
    store::{DeadReason, DiscardReason, HookId, News, RouteChange, Router, StoreLimits},
};

/// Positions of one bucket: `bucket = seq >> BUCKET_SHIFT`.
pub(super) const BUCKET_SHIFT: u32 = 14;
/// Rows that one step of maintenance touches at most.
pub(super) const STEP_ROWS_MAX: usize = 256;

/// A transaction under way, for the parts that work inside it.
pub(super) struct Step<'a> {
    /// The writer's connection, inside a transaction.
    pub(super) tx: &'a Connection,
    /// Who routes.
    pub(super) router: &'a dyn Router,
    /// The store's time.
    pub(super) now: StoreTime,
    /// Wall time.
    pub(super) wall: Timestamp,
    /// Limits and retention.
    pub(super) limits: &'a StoreLimits,
    /// The next position that will be given out.
    pub(super) next: Pos,
    /// Epochs of the store, for the ids of events.
    pub(super) epochs: &'a Epochs,
    /// What it will mean.
    pub(super) effects: &'a mut Effects,
}

/// What a transaction will mean once it is durable.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// For the dispatcher.
    pub(super) news: Vec<News>,
    /// For the router.
    pub(super) routes: Vec<RouteChange>,
    /// UIDs of namespaces that are gone.
    pub(super) gone: Vec<Arc<str>>,
    /// Changes of the counters of hooks; several for one hook are added up.
    pub(super) deltas: Vec<TallyDelta>,
    /// Changes of the store's totals.
    pub(super) totals: TotalsDelta,
    /// Deliveries that became dead, by reason, in the order of [`DeadReason::ALL`].
    pub(super) died: [i64; DeadReason::ALL.len()],
    /// Events that were removed.
    pub(super) events_removed: i64,
    /// Bytes of events that were taken from `bucket_ns`, by number of namespace.
    pub(super) freed: Vec<(i64, u64)>,
}

/// The last attempt of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LastAttempt {
    /// Wall time of its start, milliseconds since 1970.
    pub(super) ms: i64,
    /// Status code of the answer; 0: none.
    pub(super) code: u16,
}

/// A change of a hook's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct TallyDelta {
    pub(super) hook: HookId,
    pub(super) delivered: i64,
    pub(super) failed: i64,
    pub(super) pending: i64,
    pub(super) dead: i64,
    pub(super) last: Option<LastAttempt>,
}

/// A change of the store's totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct TotalsDelta {
    pub(super) routed: i64,
    pub(super) delivered: i64,
    /// By reason, in the order of [`DiscardReason::ALL`].
    pub(super) discarded: [i64; DiscardReason::ALL.len()],
}

impl Effects {
    /// Whether there is news of rows at positions that were given out before.
    pub(super) fn tells_of_old_positions(&self) -> bool {
        self.news.iter().any(|news| matches!(news, News::Late { .. } | News::Added { .. } | News::Changed { .. }))
    }

    /// Counts Deliveries of a hook that ended as discarded.
    pub(super) fn discard(&mut self, reason: DiscardReason, count: i64) {
        self.totals.discarded[reason as usize] += count;
    }
}

/// What a step of maintenance left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is more to do at once: somebody waits for it.
    More,
    /// There is more to do, when others leave time for it.
    Spare,
    /// Nothing before this time, unless something changes.
    Idle(StoreTime),
}
