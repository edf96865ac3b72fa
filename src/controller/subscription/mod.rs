//! Subscription: gather → plan → status. It needs nothing but what the caches
//! hold, so gathering is a few look-ups.

pub mod plan;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use kube::Resource;
use kube_runtime::controller::Action;

use self::plan::{Facts, Plan, plan};
use super::{
    cache::Cached,
    context::{Context, ReconcileError},
    key::ObjectKey,
    webhook::{desk::Written, status},
};
use crate::{
    api::{Subscription, SubscriptionStatus},
    runtime::clock,
    wire::index_feed::FeedKind,
};

/// Statuses that were written and that the watch has not brought back yet.
#[derive(Default)]
pub struct WrittenStatuses(Mutex<HashMap<ObjectKey, Written<SubscriptionStatus>>>);

impl WrittenStatuses {
    fn newest(&self, key: &ObjectKey, version: Option<&str>) -> Option<SubscriptionStatus> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(key) {
            Some(written) if written.is_ahead_of(version) => Some(written.status.clone()),
            Some(_) => all.remove(key).and(None),
            None => None,
        }
    }

    fn keep(&self, key: &ObjectKey, written: Written<SubscriptionStatus>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), written);
    }

    /// Forgets a Subscription that is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Forgets what a reconcile kept after its Subscription was gone.
    pub fn sweep(&self, exists: impl Fn(&ObjectKey) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| exists(key));
    }
}

/// One reconcile of a Subscription.
///
/// # Errors
/// If the object cannot be read, or the API server did not take the status.
pub async fn reconcile(cached: Arc<Cached<Subscription>>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let meta = cached.meta();
    if meta.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let key = ObjectKey::of(cached.as_ref());
    let uid = meta.uid.clone().unwrap_or_default();
    let generation = cached.generation().unwrap_or_default();
    let mut subscription = cached.object()?;
    if let Some(newest) = context.written.newest(&key, meta.resource_version.as_deref()) {
        subscription.status = Some(newest);
    }
    let webhook = ObjectKey::new(&key.namespace, &subscription.spec.webhook_ref.name);
    let pool = context.views.pool_of(&key.namespace);
    let facts = Facts {
        generation,
        webhook: context.views.webhook(&webhook),
        indexed: context.feeds.indexed(&pool, FeedKind::Subscription, &key, &uid, generation),
        now: clock::now(),
    };
    match plan(&subscription, &facts) {
        Plan::Settled => {}
        Plan::Hold(wait) => return Ok(Action::requeue(wait)),
        Plan::Write(wanted) => {
            let made = status::write::<Subscription>(&context.client, &key, &uid, &wanted).await?;
            let seen = meta.resource_version.clone();
            context.written.keep(&key, Written { seen, made, status: wanted });
            tracing::debug!(namespace = %key.namespace, subscription = %key.name, "wrote status");
        }
    }
    Ok(Action::await_change())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_was_kept_too_late_is_swept_and_others_stay() {
        let all = WrittenStatuses::default();
        let (gone, here) = (ObjectKey::new("n", "gone"), ObjectKey::new("n", "here"));
        for key in [&gone, &here] {
            all.keep(key, Written { seen: None, made: Some("7".into()), status: SubscriptionStatus::default() });
        }
        all.sweep(|key| *key == here);
        assert!(all.newest(&gone, Some("1")).is_none() && all.newest(&here, Some("1")).is_some());
    }
}
