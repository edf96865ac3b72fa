//! What a store counts, from the start of the process on. Counted when the
//! transaction is committed.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use super::{effects::Effects, volume::VolumeRoom};
use crate::{
    runtime::metrics::MetricsRegistry,
    store::{DeadReason, DiscardReason},
};

/// Why a Delivery ended without being delivered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    /// The word of a [`DeadReason`] or [`DiscardReason`].
    reason: &'static str,
}

/// The counts of a store. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct StoreMetrics {
    events_removed: Counter,
    volume_full: Gauge,
    routed: Counter,
    delivered: Counter,
    dead: Family<ReasonLabel, Counter>,
    discarded: Family<ReasonLabel, Counter>,
}

impl StoreMetrics {
    /// Counts that a scrape shows.
    pub fn register(registry: &mut MetricsRegistry) -> Self {
        let metrics = Self::default();
        registry.register(
            "store_events_removed",
            "Events that retention or the end of their namespace removed",
            metrics.events_removed.clone(),
        );
        registry.register(
            "store_volume_full",
            "1 while the volume has no room for more events, whoever filled it",
            metrics.volume_full.clone(),
        );
        registry.register("deliveries_routed", "Deliveries that became owed", metrics.routed.clone());
        registry.register("deliveries_delivered", "Deliveries that were delivered", metrics.delivered.clone());
        registry.register("deliveries_dead", "Deliveries that became dead letters, by reason", metrics.dead.clone());
        registry.register(
            "deliveries_discarded",
            "Deliveries that ended without being delivered or kept, by reason",
            metrics.discarded.clone(),
        );
        metrics
    }

    pub(super) fn look_at(&self, room: VolumeRoom) {
        self.volume_full.set(i64::from(!room.for_events));
    }

    pub(super) fn committed(&self, effects: &Effects) {
        let count = |counter: &Counter, change: i64| {
            counter.inc_by(u64::try_from(change).unwrap_or_default());
        };
        count(&self.events_removed, effects.events_removed);
        count(&self.routed, effects.totals.routed);
        count(&self.delivered, effects.totals.delivered);
        for (reason, change) in DeadReason::ALL.into_iter().zip(effects.died).filter(|(_, change)| *change > 0) {
            count(&self.dead.get_or_create(&ReasonLabel { reason: reason.as_str() }), change);
        }
        let discarded = DiscardReason::ALL.into_iter().zip(effects.totals.discarded);
        for (reason, change) in discarded.filter(|(_, change)| *change > 0) {
            count(&self.discarded.get_or_create(&ReasonLabel { reason: reason.as_str() }), change);
        }
    }
}
