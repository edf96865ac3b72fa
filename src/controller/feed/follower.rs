//! Follows the index feed of every pool by long polling, and polls what became
//! of its Deliveries.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{task::AbortHandle, time::sleep};

use super::{Change, Feeds};
use crate::{
    controller::{
        backoff::Backoff,
        deliveries::{
            Deliveries,
            poller::{self, OnDeliveries},
        },
        metrics::Metrics,
        pods::PodClient,
    },
    runtime::clock,
};

/// First wait after a failed poll.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest wait after a failed poll: a pod that comes back is noticed this late.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Polls in a row that failed before it is worth a warning: a pod's restart takes some.
const FAILURES_BEFORE_WARNING: u32 = 5;

/// Told of every change of a pool's index.
pub type OnChange = Arc<dyn Fn(Change) + Send + Sync>;

/// Who is told what.
#[derive(Clone)]
pub struct Told {
    /// Of changes of an index.
    pub on_change: OnChange,
    /// Of what became of Deliveries.
    pub on_deliveries: OnDeliveries,
}

/// One task for each pool that there is: it follows the index, and polls what
/// became of Deliveries.
pub struct Followers {
    feeds: Feeds,
    deliveries: Deliveries,
    pods: PodClient,
    metrics: Metrics,
    told: Told,
    running: HashMap<String, AbortHandle>,
}

impl Followers {
    /// Followers of no pool yet.
    pub fn new(feeds: Feeds, deliveries: Deliveries, pods: PodClient, metrics: Metrics, told: Told) -> Self {
        Self { feeds, deliveries, pods, metrics, told, running: HashMap::new() }
    }

    /// Follows a pool, if that is not done already.
    pub fn follow(&mut self, pool: &str) {
        if self.running.contains_key(pool) {
            return;
        }
        let Told { on_change, on_deliveries } = self.told.clone();
        let follow = follow(pool.to_owned(), self.feeds.clone(), self.pods.clone(), self.metrics.clone(), on_change);
        let poll = poller::poll(pool.to_owned(), self.deliveries.clone(), self.pods.clone(), on_deliveries);
        let task = async { tokio::join!(follow, poll) };
        self.running.insert(pool.to_owned(), tokio::spawn(task).abort_handle());
    }

    /// Stops following a pool that is gone and forgets what it had.
    pub fn forget(&mut self, pool: &str) {
        if let Some(task) = self.running.remove(pool) {
            task.abort();
            self.feeds.forget(pool);
            self.deliveries.forget_pool(pool);
            self.metrics.forget_pool(pool);
        }
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        self.running.values().for_each(AbortHandle::abort);
    }
}

async fn follow(pool: String, feeds: Feeds, pods: PodClient, metrics: Metrics, on_change: OnChange) {
    let mut backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);
    let mut answered_at = clock::monotonic();
    loop {
        match pods.index(&pool, &feeds.query(&pool)).await {
            Ok(page) => {
                answered_at = clock::monotonic();
                backoff.reset();
                feeds.apply(&pool, page).into_iter().for_each(|change| on_change(change));
            }
            Err(error) => {
                let failures = backoff.failures();
                if failures == FAILURES_BEFORE_WARNING {
                    tracing::warn!(pool, %error, "the pool's index feed does not answer");
                } else {
                    tracing::debug!(pool, %error, failures, "a poll of the pool's index feed failed");
                }
                sleep(backoff.next(clock::chance())).await;
            }
        }
        metrics.feed_lag(&pool, clock::monotonic().saturating_duration_since(answered_at));
    }
}
