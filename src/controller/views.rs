//! Small excerpts of the cluster that reconciles ask again and again, each kept
//! in step with a watch: which pool a namespace has, what a pool allows, how
//! each Webhook stands, which Subscriptions a Webhook has.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta};
use kube_runtime::watcher::Event;

use super::{cache::Cached, key::ObjectKey, mirror::Mirror};
use crate::api::{
    ConditionType, DEFAULT_POOL, DeliveryPool, DeliveryPoolSpec, POOL_LABEL, Subscription, Webhook, condition,
};

/// What a Subscription needs to know of its Webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookFacts {
    /// Whether its endpoint is verified.
    pub is_verified: bool,
}

/// All excerpts.
#[derive(Default)]
pub struct Views {
    namespaces: Mutex<Mirror<Box<str>>>,
    /// None for a pool that cannot be read: what it allows is not known.
    pools: Mutex<Mirror<Option<Arc<DeliveryPoolSpec>>>>,
    webhooks: Mutex<Mirror<WebhookFacts>>,
    subscriptions: Mutex<References>,
}

/// Which Webhook each Subscription names, and the other way round.
#[derive(Default)]
struct References {
    webhook_of: Mirror<Box<str>>,
    subscriptions_of: HashMap<ObjectKey, BTreeSet<Box<str>>>,
}

impl Views {
    /// The name of a namespace's pool.
    pub fn pool_of(&self, namespace: &str) -> String {
        let key = ObjectKey::new("", namespace);
        lock(&self.namespaces).get(&key).map_or_else(|| DEFAULT_POOL.to_owned(), |pool| pool.to_string())
    }

    /// The spec of a pool.
    pub fn pool(&self, name: &str) -> Option<Arc<DeliveryPoolSpec>> {
        lock(&self.pools).get(&ObjectKey::new("", name)).cloned().flatten()
    }

    /// How a Webhook stands.
    pub fn webhook(&self, key: &ObjectKey) -> Option<WebhookFacts> {
        lock(&self.webhooks).get(key).cloned()
    }

    /// The Subscriptions that name a Webhook.
    pub fn subscriptions_of(&self, webhook: &ObjectKey) -> Vec<ObjectKey> {
        let references = lock(&self.subscriptions);
        let names = references.subscriptions_of.get(webhook).into_iter().flatten();
        names.map(|name| ObjectKey::new(&webhook.namespace, name)).collect()
    }

    /// Takes in an event of namespaces with the pool label. Returns the namespaces
    /// whose pool changed.
    pub fn on_namespace(&self, event: &Event<PartialObjectMeta<Namespace>>) -> Vec<Box<str>> {
        let changed = lock(&self.namespaces)
            .on(event, |namespace| namespace.labels().get(POOL_LABEL).map_or(DEFAULT_POOL, |pool| pool).into());
        changed.into_iter().map(|(key, _)| key.name).collect()
    }

    /// Takes in an event of pools. Returns those that changed, and whether each
    /// still exists.
    pub fn on_pool(&self, event: &Event<Cached<DeliveryPool>>) -> Vec<(Box<str>, bool)> {
        let mut pools = lock(&self.pools);
        let changed = pools.on(event, |pool| pool.object().ok().map(|pool| Arc::new(pool.spec)));
        changed.into_iter().map(|(key, _)| (key.name.clone(), pools.get(&key).is_some())).collect()
    }

    /// Takes in an event of Webhooks. Returns those whose facts changed, and
    /// whether each still exists.
    pub fn on_webhook(&self, event: &Event<Cached<Webhook>>) -> Vec<(ObjectKey, bool)> {
        let mut webhooks = lock(&self.webhooks);
        let changed = webhooks.on(event, facts);
        changed.into_iter().map(|(key, _)| (key.clone(), webhooks.get(&key).is_some())).collect()
    }

    /// Takes in an event of Subscriptions. Returns those that are gone.
    pub fn on_subscription(&self, event: &Event<Cached<Subscription>>) -> Vec<ObjectKey> {
        lock(&self.subscriptions).on(event)
    }
}

impl References {
    fn on(&mut self, event: &Event<Cached<Subscription>>) -> Vec<ObjectKey> {
        let mut gone = Vec::new();
        let webhook_name = |cached: &Cached<Subscription>| {
            cached.object().map(|subscription| subscription.spec.webhook_ref.name.into_boxed_str()).unwrap_or_default()
        };
        for (key, old) in self.webhook_of.on(event, webhook_name) {
            if let Some(old) = old {
                self.unlink(&ObjectKey::new(&key.namespace, &old), &key.name);
            }
            match self.webhook_of.get(&key) {
                Some(webhook) => {
                    let webhook = ObjectKey::new(&key.namespace, webhook);
                    self.subscriptions_of.entry(webhook).or_default().insert(key.name);
                }
                None => gone.push(key),
            }
        }
        gone
    }

    fn unlink(&mut self, webhook: &ObjectKey, subscription: &str) {
        if let Some(names) = self.subscriptions_of.get_mut(webhook) {
            names.remove(subscription);
            if names.is_empty() {
                self.subscriptions_of.remove(webhook);
            }
        }
    }
}

fn facts(cached: &Cached<Webhook>) -> WebhookFacts {
    let status = cached.object().ok().and_then(|webhook| webhook.status);
    let conditions = status.map(|status| status.conditions).unwrap_or_default();
    WebhookFacts { is_verified: condition::is_true(&conditions, ConditionType::Verified) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A mirror takes in an event without a place to panic at.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn subscription(name: &str, webhook: &str) -> Cached<Subscription> {
        serde_json::from_value(json!({
            "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription",
            "metadata": { "namespace": "n", "name": name },
            "spec": { "webhookRef": { "name": webhook }, "events": [] }
        }))
        .unwrap()
    }

    fn names(views: &Views, webhook: &str) -> Vec<String> {
        views.subscriptions_of(&ObjectKey::new("n", webhook)).iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn a_webhook_knows_its_subscriptions_as_they_come_move_and_go() {
        let views = Views::default();
        for (name, webhook) in [("a", "x"), ("b", "x"), ("c", "y")] {
            views.on_subscription(&Event::Apply(subscription(name, webhook)));
        }
        assert_eq!((names(&views, "x"), names(&views, "y")), (vec!["a".into(), "b".into()], vec!["c".into()]));
        views.on_subscription(&Event::Apply(subscription("b", "y")));
        views.on_subscription(&Event::Delete(subscription("c", "y")));
        assert_eq!((names(&views, "x"), names(&views, "y")), (vec!["a".into()], vec!["b".into()]));
        views.on_subscription(&Event::Delete(subscription("a", "x")));
        assert!(!lock(&views.subscriptions).subscriptions_of.contains_key(&ObjectKey::new("n", "x")));
    }

    #[test]
    fn a_namespace_has_the_pool_of_its_label_else_the_default_one() {
        let namespace = |labels: serde_json::Value| -> PartialObjectMeta<Namespace> {
            serde_json::from_value(json!({ "metadata": { "name": "n", "labels": labels } })).unwrap()
        };
        let views = Views::default();
        assert_eq!(views.pool_of("n"), "default");
        assert_eq!(views.on_namespace(&Event::Apply(namespace(json!({ "posthorn.dev/pool": "eu" })))), ["n".into()]);
        assert_eq!(views.pool_of("n"), "eu");
        views.on_namespace(&Event::Delete(namespace(json!({}))));
        assert_eq!(views.pool_of("n"), "default");
    }
}
