//! Asks a pool's pod what became of its Deliveries, every two seconds.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Deliveries;
use crate::{
    controller::{backoff::Backoff, pods::PodClient},
    runtime::clock,
    wire::deliveries::DeliveriesPage,
};

/// Time between two polls: a transition is told this late at most.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait after a failed poll.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Told of every page of a pool.
pub type OnDeliveries = Arc<dyn Fn(&str, DeliveriesPage) + Send + Sync>;

/// Polls a pool for ever.
pub async fn poll(pool: String, deliveries: Deliveries, pods: PodClient, on_page: OnDeliveries) {
    let mut backoff = Backoff::new(POLL_INTERVAL, BACKOFF_MAX);
    loop {
        match pods.deliveries(&pool, &deliveries.query(&pool)).await {
            Ok(page) => {
                backoff.reset();
                let is_last = !page.more || page.entries.is_empty();
                on_page(&pool, page);
                if is_last {
                    sleep(POLL_INTERVAL).await;
                }
            }
            Err(error) => {
                // The index feed tells of a pod that is away; it is the same pod.
                tracing::debug!(pool, %error, "a poll of the pool's Deliveries failed");
                sleep(backoff.next(clock::chance())).await;
            }
        }
    }
}
