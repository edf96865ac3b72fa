//! What the delivery pods tell of their Deliveries, on its way into the status of
//! Webhooks: asked for by polling, written within a budget.
//!
//! A pod that does not answer unsettles nothing: what a status says stands until
//! something else is told.

pub mod poller;
pub mod schedule;
pub mod told;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use self::{schedule::Schedule, told::Told};
use super::key::ObjectKey;
use crate::{
    api::WebhookStatus,
    wire::deliveries::{DeliveriesEntry, DeliveriesPage, DeliveriesQuery},
};

/// What is known of the Deliveries of all pools. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// What each pool is asked for next.
    queries: HashMap<String, DeliveriesQuery>,
    schedule: Schedule,
}

impl Deliveries {
    /// What to ask a pool for next.
    pub fn query(&self, pool: &str) -> DeliveriesQuery {
        self.lock().queries.get(pool).cloned().unwrap_or_default()
    }

    /// Takes in a page of a pool. `is_of_pool` says whether the pool is responsible
    /// for a namespace: one that drains what it owes is not asked for its counters.
    pub fn apply(
        &self,
        pool: &str,
        page: DeliveriesPage,
        is_of_pool: impl Fn(&str) -> bool,
        status: impl Fn(&ObjectKey) -> Option<WebhookStatus>,
        now: Instant,
    ) {
        let DeliveriesPage { instance, revision, more: _, entries } = page;
        let mut state = self.lock();
        state.queries.insert(pool.to_owned(), DeliveriesQuery { instance, after: revision });
        for entry in entries.into_iter().filter(|entry| is_of_pool(&entry.namespace)) {
            let key = ObjectKey::new(&entry.namespace, &entry.name);
            let told = || status(&key).as_ref().map(Told::of_status).unwrap_or_default();
            state.schedule.offer(key.clone(), entry, told, now);
        }
    }

    /// The Webhooks whose status may be written now.
    pub fn release(&self, now: Instant) -> Vec<ObjectKey> {
        self.lock().schedule.release(now)
    }

    /// What may be written of a Webhook; none while nobody knows.
    pub fn released(&self, key: &ObjectKey, uid: &str) -> Option<Arc<DeliveriesEntry>> {
        self.lock().schedule.released(key, uid)
    }

    /// Forgets a Webhook that is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.lock().schedule.forget(key);
    }

    /// Forgets the Webhooks that do not exist.
    pub fn sweep(&self, exists: impl Fn(&ObjectKey) -> bool) {
        self.lock().schedule.sweep(exists);
    }

    /// Asks everything anew of a pool: namespaces came to it, and what it told of
    /// them before was left out.
    pub fn forget_pool(&self, pool: &str) {
        self.lock().queries.remove(pool);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A page is taken in without a place to panic at.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        told::tests::{entry, failing},
        *,
    };
    use crate::runtime::clock;

    fn page(instance: &str, revision: u64, entries: Vec<DeliveriesEntry>) -> DeliveriesPage {
        DeliveriesPage { instance: instance.into(), revision, more: false, entries }
    }

    #[test]
    fn a_pool_is_asked_for_what_came_after_its_last_page() {
        let deliveries = Deliveries::default();
        assert_eq!(deliveries.query("eu"), DeliveriesQuery::default());
        deliveries.apply("eu", page("one", 7, Vec::new()), |_| true, |_| None, clock::monotonic());
        assert_eq!(deliveries.query("eu"), DeliveriesQuery { instance: "one".into(), after: 7 });
        assert_eq!(deliveries.query("us"), DeliveriesQuery::default());
        deliveries.forget_pool("eu");
        assert_eq!(deliveries.query("eu"), DeliveriesQuery::default());
    }

    #[test]
    fn a_pool_that_is_not_responsible_is_not_believed() {
        let (deliveries, now) = (Deliveries::default(), clock::monotonic());
        deliveries.apply("old", page("one", 1, vec![failing("a", 1)]), |_| false, |_| None, now);
        assert!(deliveries.release(now).is_empty());
    }

    #[test]
    fn a_pod_that_restarted_tells_everything_again_and_nothing_is_written_for_it() {
        let (deliveries, now) = (Deliveries::default(), clock::monotonic());
        for (n, instance) in ["one", "two"].into_iter().enumerate() {
            let at = now + Duration::from_secs(60 * n as u64);
            deliveries.apply("eu", page(instance, 1, vec![entry("a", 1)]), |_| true, |_| None, at);
            let expected = if n == 0 { 1 } else { 0 };
            assert_eq!(deliveries.release(at + Duration::from_secs(30)).len(), expected, "{instance}");
        }
    }
}
