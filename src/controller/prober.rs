//! Sends probes through the delivery pods: bounded, fair between namespaces,
//! and never in the time of a reconcile. A reconcile starts a probe and goes;
//! the outcome is left on the Webhook's desk and wakes the next reconcile.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::Semaphore;

use super::{
    metrics::Metrics,
    pods::{PodClient, PodError},
};
use crate::wire::probe::{ProbeOutcome, ProbeRequest, ProbeResponse};

/// Probes on their way at a time, over all namespaces.
pub const PROBES_MAX: usize = 256;
/// Probes on their way at a time in one namespace.
pub const PROBES_PER_NAMESPACE_MAX: usize = 8;

/// Sends probes in turns. Clones share the turns.
#[derive(Clone)]
pub struct Prober {
    pods: PodClient,
    turns: Turns,
    metrics: Metrics,
}

/// Whose turn it is: first come, first served within a namespace, and at most
/// [`PROBES_PER_NAMESPACE_MAX`] of a namespace stand in the common queue, so a
/// namespace with thousands of Webhooks delays another one's probe by no more
/// than its own share.
#[derive(Clone)]
struct Turns {
    all: Arc<Semaphore>,
    namespaces: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

impl Prober {
    /// A prober that asks these pods.
    pub fn new(pods: PodClient, metrics: Metrics) -> Self {
        Self { pods, turns: Turns::new(PROBES_MAX), metrics }
    }

    /// Waits for a turn, sends the probe, returns what came back.
    ///
    /// # Errors
    /// If the pod gave no usable answer.
    pub async fn send(&self, pool: &str, request: &ProbeRequest) -> Result<ProbeResponse, PodError> {
        let _in_flight = InFlight::new(&self.metrics);
        let answer = self.turns.run(&request.namespace, self.pods.probe(pool, request)).await;
        self.metrics.probed(match &answer {
            Ok(ProbeResponse { outcome: ProbeOutcome::Answer(_), .. }) => "answer",
            Ok(ProbeResponse { outcome: ProbeOutcome::Failure { .. }, .. }) => "failure",
            Err(_) => "no_pod",
        });
        answer
    }
}

/// Counts a probe as long as it lives, cancelled or not.
struct InFlight<'a>(&'a Metrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.probes_in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.probes_in_flight.dec();
    }
}

impl Turns {
    fn new(max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(max)), namespaces: Arc::default() }
    }

    async fn run<T>(&self, namespace: &str, work: impl Future<Output = T>) -> T {
        let own = self.of(namespace);
        // Neither semaphore is ever closed; without a permit the work would only be less bounded.
        let _own = own.acquire().await.ok();
        let _all = self.all.acquire().await.ok();
        work.await
    }

    fn of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = namespaces.get(namespace).and_then(Weak::upgrade) {
            return known;
        }
        namespaces.retain(|_, semaphore| semaphore.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(PROBES_PER_NAMESPACE_MAX));
        namespaces.insert(namespace.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{task::JoinSet, time::Instant};

    use super::*;

    /// Starts `busy` probes of one second in one namespace and one in another;
    /// tells after how many seconds that one ended, and when all had.
    async fn race(busy: usize, max: usize) -> (u64, u64) {
        let turns = Turns::new(max);
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for index in 0..=busy {
            let turns = turns.clone();
            tasks.spawn(async move {
                let namespace = if index == busy { "quiet" } else { "busy" };
                turns.run(namespace, async { tokio::time::sleep(Duration::from_secs(1)).await }).await;
                (namespace, start.elapsed().as_secs())
            });
        }
        let ended = tasks.join_all().await;
        let quiet = ended.iter().find(|(namespace, _)| *namespace == "quiet").unwrap().1;
        (quiet, ended.iter().map(|(_, seconds)| *seconds).max().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_namespace_keeps_to_its_share_and_does_not_delay_another_one() {
        assert_eq!(race(80, 256).await, (1, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn all_namespaces_together_keep_to_the_limit() {
        // 8 in the common queue before the quiet one, 4 at a time.
        assert_eq!(race(40, 4).await.0, 3);
    }
}
