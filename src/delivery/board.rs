//! What the controller asks of Deliveries: counters of the store and health of
//! endpoints, put together by a task and served from memory.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use tokio::time::{MissedTickBehavior, interval};

use super::{cards::Cards, directory::Directory, internal_api::DeliveriesSource};
use crate::{
    api::Reason,
    dispatch::{DispatcherHandle, HealthView, HookHealth},
    store::{HookId, Partition, StoreError, Tally, TallyRevision},
    wire::deliveries::{DELIVERIES_PAGE_MAX, DeliveriesEntry, DeliveriesHealth, DeliveriesPage, DeliveriesQuery},
};

/// Time between two looks at counters and health.
const PERIOD: Duration = Duration::from_secs(2);

/// The board. Clones are the same one.
#[derive(Clone)]
pub(super) struct Board {
    instance: Arc<str>,
    store_id: Arc<str>,
    directory: Arc<dyn Directory>,
    cards: Cards,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    by_hook: HashMap<HookId, Line>,
    by_revision: BTreeMap<u64, HookId>,
}

#[derive(Default)]
struct Line {
    revision: u64,
    tally: Tally,
    health: Option<HookHealth>,
}

impl Board {
    /// An empty board of a start of the pod.
    pub(super) fn new(instance: &str, store_id: &str, directory: Arc<dyn Directory>, cards: Cards) -> Self {
        Self { instance: instance.into(), store_id: store_id.into(), directory, cards, inner: Arc::default() }
    }

    /// Follows counters and health until the store fails; drop the future to end.
    ///
    /// # Errors
    /// What the store said.
    pub(super) async fn follow(
        &self,
        store: Arc<dyn Partition>,
        dispatcher: DispatcherHandle,
    ) -> Result<(), StoreError> {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut tallies, mut health) = (TallyRevision::default(), 0);
        loop {
            ticks.tick().await;
            loop {
                let page = store.tallies(tallies, DELIVERIES_PAGE_MAX).await?;
                tallies = page.revision;
                let mut inner = self.inner();
                page.tallies.into_iter().for_each(|tally| inner.change(tally.hook, |line| line.tally = tally));
                if !page.more {
                    break;
                }
            }
            loop {
                let page = dispatcher.health(health, DELIVERIES_PAGE_MAX);
                health = page.revision;
                let mut inner = self.inner();
                page.entries.into_iter().for_each(|new| inner.change(new.hook, |line| line.health = Some(new)));
                if !page.more {
                    break;
                }
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Changes do not panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, hook: HookId, line: &Line) -> Option<DeliveriesEntry> {
        let info = self.directory.hook(hook)?;
        let tally = &line.tally;
        let cards = self.cards.of_hook(hook) as u64;
        Some(DeliveriesEntry {
            namespace: info.namespace.to_string(),
            name: info.name.to_string(),
            uid: info.uid.to_string(),
            delivered: tally.delivered,
            failed: tally.failed,
            pending: tally.pending,
            dead_letters: tally.dead,
            overflow: tally.dead.saturating_sub(cards),
            last_time: (tally.last_ms > 0).then(|| to_second(Timestamp::from_millisecond(tally.last_ms).ok())).flatten(),
            last_status_code: (tally.last_code > 0).then_some(tally.last_code),
            health: health(line),
            gone_since: line.health.as_ref().filter(|health| is_gone(&health.view)).and_then(|h| to_second(Some(h.since))),
        })
    }
}

impl Inner {
    fn change(&mut self, hook: HookId, change: impl FnOnce(&mut Line)) {
        self.revision += 1;
        let line = self.by_hook.entry(hook).or_default();
        self.by_revision.remove(&line.revision);
        line.revision = self.revision;
        change(line);
        self.by_revision.insert(self.revision, hook);
    }
}

/// Times of the API have whole seconds.
fn to_second(time: Option<Timestamp>) -> Option<Time> {
    Timestamp::from_second(time?.as_second()).ok().map(Time)
}

fn is_gone(view: &HealthView) -> bool {
    matches!(view, HealthView::Held(hold) if hold.reason == Reason::Gone)
}

/// What holds a Webhook by its own wish, or before it was verified, says nothing
/// of its endpoint: other conditions show that.
fn says_nothing(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Suspended
            | Reason::Unverified
            | Reason::VerificationPending
            | Reason::VerificationFailed
            | Reason::VerificationExpired
            | Reason::PodsStarting
    )
}

fn health(line: &Line) -> DeliveriesHealth {
    let Some(HookHealth { view, since, .. }) = &line.health else { return DeliveriesHealth::Unknown };
    let failing = |reason: Reason, message: &str| DeliveriesHealth::Failing {
        reason,
        message: message.to_owned(),
        since: to_second(Some(*since)).unwrap_or(Time(*since)),
    };
    match view {
        HealthView::Healthy => DeliveriesHealth::Healthy,
        HealthView::Failing { reason, message } => failing(*reason, message),
        HealthView::Held(hold) if says_nothing(hold.reason) => DeliveriesHealth::Unknown,
        HealthView::Held(hold) => failing(hold.reason, &hold.message),
    }
}

impl DeliveriesSource for Board {
    fn page(&self, query: &DeliveriesQuery) -> DeliveriesPage {
        let inner = self.inner();
        let is_known = *query.instance == *self.instance && query.after <= inner.revision;
        let after = if is_known { query.after } else { 0 };
        let mut entries = Vec::new();
        let mut revision = after;
        let mut looked = 0;
        for (at, hook) in inner.by_revision.range(after + 1..).take(DELIVERIES_PAGE_MAX) {
            looked += 1;
            revision = *at;
            entries.extend(inner.by_hook.get(hook).and_then(|line| self.entry(*hook, line)));
        }
        let more = looked == DELIVERIES_PAGE_MAX && revision < inner.revision;
        DeliveriesPage { instance: self.instance.to_string(), revision, more, entries }
    }

    fn store_id(&self) -> String {
        self.store_id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{delivery::cards::tests_support::hook, delivery::directory::HookInfo, dispatch::Hold};

    struct Everyone;

    impl Directory for Everyone {
        fn hook(&self, id: HookId) -> Option<HookInfo> {
            (id.0 > 0).then(|| hook(id.0, &format!("w{}", id.0)))
        }

        fn find(&self, _: &str, _: &str) -> Option<HookInfo> {
            None
        }
    }

    fn board() -> Board {
        Board::new("instance", "store", Arc::new(Everyone), Cards::new("store", "default"))
    }

    fn tally(hook: i64, delivered: u64) -> Tally {
        Tally { hook: HookId(hook), delivered, dead: 3, last_ms: 1_795_000_000_500, last_code: 200, ..Tally::default() }
    }

    fn query(instance: &str, after: u64) -> DeliveriesQuery {
        DeliveriesQuery { instance: instance.to_owned(), after }
    }

    #[test]
    fn each_webhook_is_told_once_as_it_is_now_and_those_that_are_gone_are_not() {
        let board = board();
        for (hook, delivered) in [(1, 1), (2, 1), (-1, 1), (1, 2)] {
            board.inner().change(HookId(hook), |line| line.tally = tally(hook, delivered));
        }
        let page = board.page(&query("", 0));
        let told: Vec<_> = page.entries.iter().map(|entry| (entry.name.as_str(), entry.delivered)).collect();
        assert_eq!(told, [("w2", 1), ("w1", 2)]);
        assert_eq!((page.revision, page.more), (4, false));
        assert_eq!(page.entries[0].overflow, 3);
        assert_eq!(page.entries[0].last_time, Some(Time(Timestamp::from_second(1_795_000_000).unwrap())));
        assert!(board.page(&query("instance", 4)).entries.is_empty());
        assert_eq!(board.page(&query("instance", 3)).entries.len(), 1);
        assert_eq!(board.page(&query("another", 4)).entries.len(), 2);
        assert_eq!(board.page(&query("instance", 99)).entries.len(), 2);
    }

    #[test]
    fn a_page_has_a_limit_and_the_next_one_goes_on() {
        let board = board();
        let total = i64::try_from(DELIVERIES_PAGE_MAX).unwrap() + 1;
        (1..=total).for_each(|n| board.inner().change(HookId(n), |line| line.tally = tally(n, 1)));
        let first = board.page(&query("instance", 0));
        assert_eq!((first.entries.len(), first.more), (DELIVERIES_PAGE_MAX, true));
        let second = board.page(&query("instance", first.revision));
        assert_eq!((second.entries.len(), second.more), (1, false));
    }

    #[test]
    fn health_tells_of_the_endpoint_and_not_of_what_other_conditions_tell() {
        let since = Timestamp::from_second(1).unwrap();
        let line = |view| Line { health: Some(HookHealth { hook: HookId(1), view, since }), ..Line::default() };
        let held = |reason| HealthView::Held(Hold { reason, message: "m".into(), retry_after: None });
        assert_eq!(health(&Line::default()), DeliveriesHealth::Unknown);
        assert_eq!(health(&line(held(Reason::Suspended))), DeliveriesHealth::Unknown);
        assert!(matches!(health(&line(held(Reason::Gone))), DeliveriesHealth::Failing { reason: Reason::Gone, .. }));
        let board = board();
        board.inner().change(HookId(1), |l| *l = Line { revision: l.revision, ..line(held(Reason::Gone)) });
        assert_eq!(board.page(&query("", 0)).entries[0].gone_since, Some(Time(since)));
    }
}
