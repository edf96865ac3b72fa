//! What every reconcile shares, and what can go wrong in one.

use std::time::Duration;

use futures::{Stream, stream};
use kube::{Client, Resource};
use kube_runtime::{
    controller::Action,
    reflector::{ObjectRef, Store},
};
use tokio::sync::mpsc;

use super::{
    backoff,
    cache::{Cached, Unreadable},
    deliveries::Deliveries,
    events::EventWriter,
    feed::Feeds,
    key::ObjectKey,
    made_secrets::MadeSecrets,
    metrics::Metrics,
    prober::Prober,
    subscription::WrittenStatuses,
    views::Views,
    webhook::desk::Desks,
};
use crate::{
    api::{Subscription, Webhook},
    verify::fingerprint::FingerprintKey,
};

/// Time for one reconcile: more than any of its calls may take.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(60);
/// First wait after a failed reconcile.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Longest wait after a failed reconcile.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What every reconcile shares.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Posthorn's own namespace.
    pub namespace: String,
    /// The key of fingerprints.
    pub fingerprint_key: FingerprintKey,
    /// All Webhooks.
    pub webhooks: Store<Cached<Webhook>>,
    /// Excerpts of the cluster.
    pub views: Views,
    /// What the pools' indexes have.
    pub feeds: Feeds,
    /// What the pods told of Deliveries.
    pub deliveries: Deliveries,
    /// Sends probes.
    pub prober: Prober,
    /// What is remembered of each Webhook.
    pub desks: Desks,
    /// Statuses of Subscriptions on their way back.
    pub written: WrittenStatuses,
    /// Webhooks with a made Secret.
    pub made: MadeSecrets,
    /// Writes Events.
    pub events: EventWriter,
    /// Counts.
    pub metrics: Metrics,
    /// Wakes reconciles.
    pub triggers: Triggers,
    /// Failures in a row of each object's reconcile.
    pub failures: Failures,
}

/// Wakes reconciles by the name of the object. What it holds is bounded by the
/// number of objects: the queues behind it are drained all the time, and know
/// each object once.
#[derive(Clone)]
pub struct Triggers {
    webhooks: mpsc::UnboundedSender<ObjectRef<Cached<Webhook>>>,
    subscriptions: mpsc::UnboundedSender<ObjectRef<Cached<Subscription>>>,
}

/// The other ends of [`Triggers`].
pub struct TriggerStreams {
    /// Webhooks to reconcile.
    pub webhooks: mpsc::UnboundedReceiver<ObjectRef<Cached<Webhook>>>,
    /// Subscriptions to reconcile.
    pub subscriptions: mpsc::UnboundedReceiver<ObjectRef<Cached<Subscription>>>,
}

impl Triggers {
    /// Both ends.
    pub fn new() -> (Self, TriggerStreams) {
        let (webhooks, woken_webhooks) = mpsc::unbounded_channel();
        let (subscriptions, woken_subscriptions) = mpsc::unbounded_channel();
        (
            Self { webhooks, subscriptions },
            TriggerStreams { webhooks: woken_webhooks, subscriptions: woken_subscriptions },
        )
    }

    /// Wakes a Webhook.
    pub fn webhook(&self, key: &ObjectKey) {
        // The other end is gone only when the controller ends.
        self.webhooks.send(key.object_ref()).ok();
    }

    /// Wakes a Subscription.
    pub fn subscription(&self, key: &ObjectKey) {
        self.subscriptions.send(key.object_ref()).ok();
    }
}

/// The receiving end as a stream.
pub fn stream_of<T: Send + 'static>(receiver: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|item| (item, receiver)))
}

/// Why a reconcile did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The object does not fit its type.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The API server refused or did not answer.
    #[error("the API server refused or did not answer")]
    Api(#[from] Box<kube::Error>),
    /// It took longer than all its time-outs together.
    #[error("the reconcile took longer than {} s", RECONCILE_TIMEOUT.as_secs())]
    TimedOut,
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// What to do after a failed reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: the object is gone, or must change first.
    Await,
    /// Try again, later each time.
    Retry,
}

impl ReconcileError {
    /// What to do about it.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Unreadable(_) => Remedy::Await,
            Self::Api(error) => match error.as_ref() {
                // The object went while it was worked on. Its namesake wakes us itself.
                kube::Error::Api(status) if status.code == 404 => Remedy::Await,
                _ => Remedy::Retry,
            },
            Self::TimedOut => Remedy::Retry,
        }
    }

    /// A word for metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::TimedOut => "timed_out",
            Self::Api(error) => match error.as_ref() {
                kube::Error::Api(status) => match status.code {
                    404 => "not_found",
                    409 => "conflict",
                    429 => "throttled",
                    500..=599 => "server_error",
                    _ => "refused",
                },
                _ => "no_answer",
            },
        }
    }
}

/// Failures in a row, by object.
#[derive(Default)]
pub struct Failures(std::sync::Mutex<std::collections::HashMap<(&'static str, ObjectKey), u32>>);

impl Failures {
    /// Counts one more and returns the wait before the next try.
    pub fn count(&self, kind: &'static str, key: &ObjectKey, chance: f64) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let failures = all.entry((kind, key.clone())).or_default();
        let wait = backoff::wait(RETRY_FIRST, RETRY_MAX, *failures, chance);
        *failures = failures.saturating_add(1);
        wait
    }

    /// It worked, or the object is gone.
    pub fn clear(&self, kind: &'static str, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&(kind, key.clone()));
    }

    /// Forgets those of a kind that do not exist: a reconcile may fail after its object went.
    pub fn sweep(&self, kind: &'static str, exists: impl Fn(&ObjectKey) -> bool) {
        let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|(of, key), _| *of != kind || exists(key));
    }
}

/// What the queue does after a failed reconcile.
pub fn error_policy<K: Resource>(
    kind: &'static str,
    object: &K,
    error: &ReconcileError,
    context: &Context,
    chance: f64,
) -> Action {
    let key = ObjectKey::of(object);
    match error.remedy() {
        Remedy::Await => {
            context.failures.clear(kind, &key);
            Action::await_change()
        }
        Remedy::Retry => Action::requeue(context.failures.count(kind, &key, chance)),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16) -> ReconcileError {
        kube::Error::Api(Status { code, ..Status::default() }.boxed()).into()
    }

    #[test]
    fn what_may_pass_is_tried_again_and_what_must_change_is_awaited() {
        for code in [409, 429, 500, 503, 504] {
            assert_eq!(api(code).remedy(), Remedy::Retry, "{code}");
        }
        assert_eq!(ReconcileError::TimedOut.remedy(), Remedy::Retry);
        assert_eq!(api(404).remedy(), Remedy::Await);
    }

    #[test]
    fn waits_grow_to_a_minute_for_each_object_by_itself() {
        let (failures, a, b) = (Failures::default(), ObjectKey::new("n", "a"), ObjectKey::new("n", "b"));
        let waits: Vec<_> = (0..7).map(|_| failures.count("Webhook", &a, 0.0).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(failures.count("Webhook", &b, 0.0).as_secs(), 2);
        assert_eq!(failures.count("Subscription", &a, 0.0).as_secs(), 2);
        failures.clear("Webhook", &a);
        assert_eq!(failures.count("Webhook", &a, 1.0).as_secs(), 1);
    }

    #[test]
    fn failures_of_what_is_gone_are_swept_by_kind() {
        let (failures, a, b) = (Failures::default(), ObjectKey::new("n", "a"), ObjectKey::new("n", "b"));
        for (kind, key) in [("Webhook", &a), ("Webhook", &b), ("Subscription", &a)] {
            failures.count(kind, key, 0.0);
        }
        failures.sweep("Webhook", |key| *key == b);
        let left = |kind, key| failures.0.lock().unwrap().contains_key(&(kind, ObjectKey::clone(key)));
        assert_eq!([left("Webhook", &a), left("Webhook", &b), left("Subscription", &a)], [false, true, true]);
    }
}
