//! What the index is asked.

use std::{collections::BTreeMap, sync::Arc};

use super::{Index, NamespaceFacts, SubscriptionEntry, WatchedKind, WebhookEntry};

/// An event goes to this Webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The Webhook.
    pub webhook: Arc<WebhookEntry>,
    /// The Subscriptions that matched, oldest first: the first one shapes the
    /// Delivery.
    pub subscriptions: Vec<Arc<SubscriptionEntry>>,
}

/// Whose a namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Responsibility {
    /// Of this pool.
    Ours {
        /// Its name; clones share one text.
        name: Arc<str>,
        /// Its UID: the identity of its data.
        uid: Arc<str>,
    },
    /// Of this other pool.
    Other(Arc<str>),
    /// There is no such namespace.
    Unknown,
    /// It cannot be told yet: the namespaces were not listed, or this one came to
    /// this pool a moment ago and the store does not serve it yet.
    NotListed,
}

/// How much the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// Namespaces of this pool.
    pub namespaces: u64,
    /// Webhooks that can be used.
    pub webhooks: u64,
    /// Subscriptions that can be used.
    pub subscriptions: u64,
    /// Webhooks and Subscriptions that cannot.
    pub refused: u64,
}

impl Index {
    /// The Webhooks of a namespace of this pool that get an event, by name. An
    /// event is for a Webhook once, however many Subscriptions match.
    pub fn matches(&self, namespace: &str, event_type: &str, source: &str) -> Vec<Match> {
        let Some(slot) = self.namespaces.get(namespace).filter(|slot| slot.is_ours()) else { return Vec::new() };
        let usable = slot.subscriptions.values().filter_map(|slot| slot.content.as_ref().ok());
        let mut by_webhook = BTreeMap::<&str, Vec<Arc<SubscriptionEntry>>>::new();
        for subscription in usable.filter(|subscription| subscription.matches(event_type, source)) {
            by_webhook.entry(&subscription.webhook).or_default().push(Arc::clone(subscription));
        }
        by_webhook
            .into_iter()
            .filter_map(|(name, mut subscriptions)| {
                let webhook = slot.webhooks.get(name)?.content.as_ref().ok()?;
                subscriptions.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
                Some(Match { webhook: Arc::clone(webhook), subscriptions })
            })
            .collect()
    }

    /// A Webhook that the index holds and can use.
    pub fn webhook(&self, namespace: &str, name: &str) -> Option<&Arc<WebhookEntry>> {
        let slot = self.namespaces.get(namespace).filter(|slot| slot.is_ours())?;
        slot.webhooks.get(name)?.content.as_ref().ok()
    }

    /// UID of a namespace of this pool: the identity of its data.
    pub fn namespace_uid(&self, namespace: &str) -> Option<&Arc<str>> {
        let facts = self.namespaces.get(namespace)?.facts.as_ref()?;
        facts.is_ours().then_some(&facts.uid)
    }

    /// Whose namespace this is.
    pub fn responsibility(&self, namespace: &str) -> Responsibility {
        let known = self.namespaces.get_key_value(namespace);
        match known.and_then(|(name, slot)| Some((name, slot.facts.as_ref()?))) {
            Some((_, NamespaceFacts { other_pool: Some(pool), .. })) => Responsibility::Other(Arc::clone(pool)),
            Some((_, NamespaceFacts { is_recorded: false, .. })) => Responsibility::NotListed,
            Some((name, facts)) => Responsibility::Ours { name: Arc::clone(name), uid: Arc::clone(&facts.uid) },
            None if self.listings[WatchedKind::Namespace as usize].complete => Responsibility::Unknown,
            None => Responsibility::NotListed,
        }
    }

    /// How much the index holds.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for slot in self.namespaces.values().filter(|slot| slot.is_ours()) {
            let webhooks = slot.webhooks.values().filter(|slot| slot.content.is_ok()).count();
            let subscriptions = slot.subscriptions.values().filter(|slot| slot.content.is_ok()).count();
            counts.namespaces += 1;
            counts.webhooks += webhooks as u64;
            counts.subscriptions += subscriptions as u64;
            counts.refused += (slot.webhooks.len() - webhooks + slot.subscriptions.len() - subscriptions) as u64;
        }
        counts
    }
}
