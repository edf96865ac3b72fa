//! Fills an index with what a store remembers, before the API server answers:
//! a pod that starts while it is away routes and delivers all the same.
//!
//! What is restored counts as not seen in any listing: the first complete
//! listing of a kind takes away what is not in it. What a watch brought first is
//! newer and stays.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::{
    Index, NamespaceFacts, Slot, WatchedKind,
    document::{DocumentError, Standing, SubscriptionFacts, read_subscription, read_webhook},
    feed::{ObjectKey, State},
};
use crate::wire::index_feed::FeedKind;

/// A namespace of which a store keeps something.
#[derive(Clone, Copy, Debug)]
pub struct NamespaceRecord<'a> {
    /// Its name.
    pub name: &'a Arc<str>,
    /// Its UID.
    pub uid: &'a Arc<str>,
}

/// An object that a store keeps.
#[derive(Clone, Copy, Debug)]
pub struct ObjectRecord<'a> {
    /// Its namespace.
    pub namespace: NamespaceRecord<'a>,
    /// Its name.
    pub name: &'a Arc<str>,
    /// Its UID.
    pub uid: &'a Arc<str>,
    /// Its document.
    pub document: &'a str,
}

impl Index {
    /// Whether anything was restored.
    pub fn is_restored(&self) -> bool {
        self.is_restored
    }

    /// Whether there is anything to route and deliver with: everything was
    /// listed and recorded, or a store remembered something.
    pub fn is_usable(&self) -> bool {
        self.is_restored || self.is_complete()
    }

    /// Whether everything was listed, and recorded if this index is
    /// [recorded](Self::recorded).
    pub fn is_complete(&self) -> bool {
        self.journal.as_ref().map_or(self.synced(), super::Journal::told_synced)
    }

    /// Takes over a Webhook that a store keeps, and its namespace. Its record is
    /// durable, so the feed tells it at once.
    ///
    /// # Errors
    /// The document cannot be used; the Webhook is known when it was listed.
    pub fn restore_webhook(&mut self, record: ObjectRecord<'_>) -> Result<(), DocumentError> {
        let restored = read_webhook(record.name, record.uid, record.document, &mut self.settings)?;
        if let Some(entry) = restored.entry {
            let slot = self.restored_slot(WatchedKind::Webhook, record.uid, entry.generation, entry);
            self.restore_object(FeedKind::Webhook, record, &restored.standing, slot, |slot| &mut slot.webhooks);
        }
        Ok(())
    }

    /// Takes over a Subscription that a store keeps, and its namespace.
    ///
    /// # Errors
    /// The document cannot be used; the Subscription is known when it was listed.
    pub fn restore_subscription(
        &mut self,
        record: ObjectRecord<'_>,
        created: Timestamp,
        webhook: &str,
    ) -> Result<(), DocumentError> {
        let facts = SubscriptionFacts { name: record.name, uid: record.uid, created, webhook };
        let restored = read_subscription(facts, record.document)?;
        if let Some(entry) = restored.entry {
            let slot = self.restored_slot(WatchedKind::Subscription, record.uid, entry.generation, entry);
            let (kind, standing) = (FeedKind::Subscription, restored.standing);
            self.restore_object(kind, record, &standing, slot, |slot| &mut slot.subscriptions);
        }
        Ok(())
    }

    fn restored_slot<T>(&self, kind: WatchedKind, uid: &Arc<str>, generation: i64, entry: T) -> Slot<T> {
        let listing = self.unseen_listing(kind);
        Slot { listing, uid: Arc::clone(uid), generation, content: Ok(Arc::new(entry)) }
    }

    /// A number that no listing to come has.
    fn unseen_listing(&self, kind: WatchedKind) -> u32 {
        self.listings[kind as usize].number.wrapping_sub(1)
    }

    fn restore_object<T>(
        &mut self,
        kind: FeedKind,
        record: ObjectRecord<'_>,
        standing: &Standing,
        slot: Slot<T>,
        objects: impl FnOnce(&mut super::NamespaceSlot) -> &mut std::collections::BTreeMap<Arc<str>, Slot<T>>,
    ) {
        self.restore_namespace(record.namespace, standing);
        let watched = match kind {
            FeedKind::Webhook => WatchedKind::Webhook,
            FeedKind::Subscription => WatchedKind::Subscription,
        };
        if self.listings[watched as usize].complete {
            return;
        }
        let namespace = self.intern(record.namespace.name);
        let namespace_slot = self.namespaces.entry(Arc::clone(&namespace)).or_default();
        // The data of a namespace that was made anew under its name is not its.
        let is_same = namespace_slot.facts.as_ref().is_some_and(|facts| facts.uid == *record.namespace.uid);
        let ours = is_same && namespace_slot.is_ours();
        let objects = objects(namespace_slot);
        if !is_same || objects.contains_key(record.name) {
            self.drop_if_empty(&namespace);
            return;
        }
        let (state, uid) = (State::Used(slot.generation), Arc::clone(&slot.uid));
        objects.insert(Arc::clone(record.name), slot);
        self.is_restored = true;
        let is_served = !matches!(standing, Standing::Moved(_));
        let key = ObjectKey { kind, namespace: Arc::clone(&namespace), name: Arc::clone(record.name) };
        let Some(journal) = &mut self.journal else { return };
        journal.wake();
        if is_served != ours {
            // A watch knows better whose the namespace is, or the pod ended in
            // the middle of a move.
            journal.mark_object(key);
            journal.mark_namespace(&namespace);
            if let Some(facts) = namespace_slot.facts.as_mut() {
                facts.is_recorded = false;
            }
        } else if ours {
            self.feed.record(key, uid, state);
        }
    }

    /// Everything was restored: namespaces come behind their objects in what has to be recorded.
    pub fn end_restore(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.namespaces_last();
        }
    }

    fn restore_namespace(&mut self, record: NamespaceRecord<'_>, standing: &Standing) {
        if self.listings[WatchedKind::Namespace as usize].complete {
            return;
        }
        let listing = self.unseen_listing(WatchedKind::Namespace);
        let other_pool = match standing {
            Standing::Served | Standing::Refused => None,
            Standing::Moved(pool) => Some((&**pool).into()),
        };
        let name = self.intern(record.name);
        let slot = self.namespaces.entry(name).or_default();
        if slot.facts.is_none() {
            let uid = Arc::clone(record.uid);
            slot.facts = Some(NamespaceFacts { uid, other_pool, listing, is_recorded: true });
        }
    }
}
