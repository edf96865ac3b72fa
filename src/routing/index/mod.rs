//! The index: what a delivery pod knows of the namespaces, Webhooks and
//! Subscriptions of its pool.
//!
//! Pure: `apply_…`, `delete…` and listings bring the cluster's state in;
//! [`Index::matches`], [`Index::take_changes`] and [`Index::page`] bring it out.
//! It knows no client and no clock.
//!
//! The index *holds* the objects of the namespaces that picked this pool; only
//! they match and show in the feed. Objects of other namespaces are *parked* in
//! the same slim form. The three kinds come on three watches in any order: a
//! Webhook may be seen before its namespace, and a namespace may change its pool
//! when its objects are long listed. With them parked, holding is decided by the
//! present state alone and never needs to ask the API server again.

pub mod document;
mod entry;
mod feed;
mod intern;
mod journal;
mod pattern;
mod query;
mod restore;
mod shared;

use std::{collections::BTreeMap, sync::Arc};

pub use entry::{
    CompileError, EndpointSource, ServiceEndpoint, Start, SubscriptionEntry, VerificationEntry, WebhookEntry,
};
pub use feed::TOMBSTONES_MAX;
pub use journal::{Change, Changes, Home, Object, Seen};
pub use pattern::EventPattern;
pub use query::{Counts, Match, Responsibility};
pub use restore::{NamespaceRecord, ObjectRecord};
pub use shared::SharedIndex;

use entry::{Identity, compile_subscription, compile_webhook};
use feed::{Feed, ObjectKey, State};
use intern::Interner;
use journal::Journal;
use kube::api::ObjectMeta;

use crate::{
    api::{DEFAULT_POOL, Subscription, Webhook},
    policy::delivery::DeliverySettings,
    wire::index_feed::{FeedKind, FeedPage, FeedQuery},
};

/// The kinds that the index is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WatchedKind {
    /// Namespaces: which pool is responsible for them.
    Namespace,
    /// Webhooks.
    Webhook,
    /// Subscriptions.
    Subscription,
}

/// The index of one pool.
#[derive(Debug)]
pub struct Index {
    pool: Box<str>,
    namespaces: BTreeMap<Arc<str>, NamespaceSlot>,
    /// By [`WatchedKind`].
    listings: [Listing; 3],
    feed: Feed,
    /// What has to be recorded before the feed tells it; none: nothing has to.
    journal: Option<Journal>,
    settings: Interner<DeliverySettings>,
    is_restored: bool,
}

/// Number of the present listing of a kind, and whether one was ever complete.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    number: u32,
    complete: bool,
}

/// What is known of a namespace, and of objects in it.
#[derive(Debug, Default)]
struct NamespaceSlot {
    /// None while only objects of it were seen.
    facts: Option<NamespaceFacts>,
    webhooks: BTreeMap<Arc<str>, Slot<WebhookEntry>>,
    subscriptions: BTreeMap<Arc<str>, Slot<SubscriptionEntry>>,
}

#[derive(Debug, PartialEq, Eq)]
struct NamespaceFacts {
    uid: Arc<str>,
    /// The pool that is responsible for it if it is not this one.
    other_pool: Option<Arc<str>>,
    listing: u32,
    /// The store serves its objects. Events are taken only then: a namespace that
    /// comes back from another pool has objects that the store knows and does not
    /// serve.
    is_recorded: bool,
}

#[derive(Debug)]
struct Slot<T> {
    /// The listing in which the object was seen last.
    listing: u32,
    uid: Arc<str>,
    generation: i64,
    content: Result<Arc<T>, Arc<str>>,
}

impl Index {
    /// An empty index of a pool whose feed tells every change at once.
    /// `instance` is random, so that followers notice a new start.
    pub fn new(pool: &str, instance: &str) -> Self {
        Self {
            pool: pool.into(),
            namespaces: BTreeMap::new(),
            listings: Default::default(),
            feed: Feed::new(instance),
            journal: None,
            settings: Interner::default(),
            is_restored: false,
        }
    }

    /// An empty index of a pool whose feed tells a change only after it was
    /// [taken](Self::take_changes), recorded and [acknowledged](Self::acknowledge).
    pub fn recorded(pool: &str, instance: &str) -> Self {
        Self { journal: Some(Journal::default()), ..Self::new(pool, instance) }
    }

    /// A listing of a kind begins: until [`Index::end_list`] everything that
    /// exists is applied.
    pub fn begin_list(&mut self, kind: WatchedKind) {
        let listing = &mut self.listings[kind as usize];
        listing.number = listing.number.wrapping_add(1);
    }

    /// A listing is complete: what was not applied since it began is gone.
    pub fn end_list(&mut self, kind: WatchedKind) {
        let current = self.listings[kind as usize].number;
        let mut unseen = Vec::new();
        for (namespace, slot) in &self.namespaces {
            let mut note = |name: &Arc<str>, listing: u32| {
                if listing != current {
                    unseen.push((Arc::clone(namespace), Arc::clone(name)));
                }
            };
            match kind {
                WatchedKind::Namespace => slot.facts.iter().for_each(|facts| note(namespace, facts.listing)),
                WatchedKind::Webhook => slot.webhooks.iter().for_each(|(name, s)| note(name, s.listing)),
                WatchedKind::Subscription => slot.subscriptions.iter().for_each(|(name, s)| note(name, s.listing)),
            }
        }
        for (namespace, name) in unseen {
            match kind {
                WatchedKind::Namespace => self.delete_namespace(&namespace),
                WatchedKind::Webhook => self.delete(FeedKind::Webhook, &namespace, &name),
                WatchedKind::Subscription => self.delete(FeedKind::Subscription, &namespace, &name),
            }
        }
        let was_synced = self.synced();
        self.listings[kind as usize].complete = true;
        if self.synced() && !was_synced {
            match &mut self.journal {
                Some(journal) => journal.wake(),
                None => self.feed.bump(),
            }
        }
    }

    /// Whether every kind has been listed at least once.
    pub fn synced(&self) -> bool {
        self.listings.iter().all(|listing| listing.complete)
    }

    /// A namespace exists. `pool` is the value of its label
    /// [`crate::api::POOL_LABEL`].
    pub fn apply_namespace(&mut self, name: &str, uid: &str, pool: Option<&str>) {
        let other_pool = Some(pool.unwrap_or(DEFAULT_POOL)).filter(|pool| **pool != *self.pool).map(Into::into);
        let listing = self.listings[WatchedKind::Namespace as usize].number;
        let name = self.intern(name);
        let slot = self.namespaces.entry(Arc::clone(&name)).or_default();
        let old = slot.facts.take();
        let is_same = old.as_ref().is_some_and(|old| *old.uid == *uid && old.other_pool == other_pool);
        let is_recorded = self.journal.is_none() || (is_same && old.as_ref().is_some_and(|old| old.is_recorded));
        slot.facts = Some(NamespaceFacts { uid: uid.into(), other_pool, listing, is_recorded });
        let was_ours = old.is_some_and(|old| old.is_ours());
        match &mut self.journal {
            Some(journal) if !is_same => slot.mark_all(&name, journal),
            None if was_ours != slot.is_ours() => slot.record_all(&name, &mut self.feed),
            _ => {}
        }
    }

    /// A namespace is gone. Objects seen in it stay parked until their own
    /// watches tell that they are gone.
    pub fn delete_namespace(&mut self, name: &str) {
        let Some(name) = self.known(name) else { return };
        let Some(slot) = self.namespaces.get_mut(&name) else { return };
        let was_ours = slot.is_ours();
        let was_known = slot.facts.take().is_some();
        match &mut self.journal {
            Some(journal) if was_known => slot.mark_all(&name, journal),
            None if was_ours => slot.record_all(&name, &mut self.feed),
            _ => {}
        }
        self.drop_if_empty(&name);
    }

    /// A Webhook exists. An object without namespace or name is ignored: the API
    /// server has none.
    pub fn apply_webhook(&mut self, webhook: &Webhook) {
        let Some(id) = self.identity(&webhook.metadata) else { return };
        let entry = compile_webhook(&id, webhook, &mut self.settings);
        self.put(WatchedKind::Webhook, FeedKind::Webhook, id, entry, |slot| &mut slot.webhooks);
    }

    /// A Subscription exists.
    pub fn apply_subscription(&mut self, subscription: &Subscription) {
        let Some(id) = self.identity(&subscription.metadata) else { return };
        let entry = compile_subscription(&id, subscription);
        self.put(WatchedKind::Subscription, FeedKind::Subscription, id, entry, |slot| &mut slot.subscriptions);
    }

    /// An object exists that this version cannot parse.
    pub fn apply_unreadable(&mut self, kind: FeedKind, metadata: &ObjectMeta) {
        let Some(id) = self.identity(metadata) else { return };
        let error = CompileError::Unreadable;
        match kind {
            FeedKind::Webhook => self.put(WatchedKind::Webhook, kind, id, Err(error), |slot| &mut slot.webhooks),
            FeedKind::Subscription => {
                self.put(WatchedKind::Subscription, kind, id, Err(error), |slot| &mut slot.subscriptions);
            }
        }
    }

    /// A Webhook or Subscription is gone.
    pub fn delete(&mut self, kind: FeedKind, namespace: &str, name: &str) {
        let Some(namespace) = self.known(namespace) else { return };
        let Some(slot) = self.namespaces.get_mut(&namespace) else { return };
        let ours = slot.is_ours();
        let removed = match kind {
            FeedKind::Webhook => slot.webhooks.remove_entry(name).map(|(name, slot)| (name, slot.uid)),
            FeedKind::Subscription => slot.subscriptions.remove_entry(name).map(|(name, slot)| (name, slot.uid)),
        };
        if let Some((name, uid)) = removed {
            let key = ObjectKey { kind, namespace: Arc::clone(&namespace), name };
            match &mut self.journal {
                Some(journal) => journal.mark_object(key),
                None if ours => self.feed.record(key, uid, State::Gone),
                None => {}
            }
        }
        self.drop_if_empty(&namespace);
    }

    /// The feed's answer to a follower.
    pub fn page(&self, query: &FeedQuery) -> FeedPage {
        self.feed.page(query, self.is_complete())
    }

    /// This start of the pod, as the feed names it.
    pub fn instance(&self) -> &str {
        self.feed.instance()
    }

    /// Number of the last change.
    pub fn revision(&self) -> u64 {
        self.feed.revision()
    }

    fn put<T: PartialEq>(
        &mut self,
        watched: WatchedKind,
        kind: FeedKind,
        id: Identity,
        entry: Result<T, CompileError>,
        objects: impl FnOnce(&mut NamespaceSlot) -> &mut BTreeMap<Arc<str>, Slot<T>>,
    ) {
        let Identity { namespace, name, uid, generation } = id;
        let listing = self.listings[watched as usize].number;
        let content = entry.map(Arc::new).map_err(|error| error.to_string().into());
        let new = Slot { listing, uid, generation, content };
        let namespace_slot = self.namespaces.entry(Arc::clone(&namespace)).or_default();
        let ours = namespace_slot.is_ours();
        let objects = objects(namespace_slot);
        // Removed first, so that key and entry share the new name's text.
        let old = objects.remove(&name);
        let key = || ObjectKey { kind, namespace, name: Arc::clone(&name) };
        match &mut self.journal {
            Some(journal) if old.as_ref().is_none_or(|old| old.differs(&new)) => journal.mark_object(key()),
            None if ours && old.as_ref().is_none_or(|old| !old.same_to_followers(&new)) => {
                self.feed.record(key(), Arc::clone(&new.uid), new.state());
            }
            _ => {}
        }
        objects.insert(name, new);
    }

    fn identity(&self, metadata: &ObjectMeta) -> Option<Identity> {
        Some(Identity {
            namespace: self.intern(metadata.namespace.as_deref()?),
            name: metadata.name.as_deref()?.into(),
            uid: metadata.uid.as_deref().unwrap_or_default().into(),
            generation: metadata.generation.unwrap_or_default(),
        })
    }

    /// The one copy of a namespace's name.
    fn intern(&self, namespace: &str) -> Arc<str> {
        self.known(namespace).unwrap_or_else(|| namespace.into())
    }

    fn known(&self, namespace: &str) -> Option<Arc<str>> {
        self.namespaces.get_key_value(namespace).map(|(name, _)| Arc::clone(name))
    }

    fn drop_if_empty(&mut self, namespace: &str) {
        if self.namespaces.get(namespace).is_some_and(NamespaceSlot::is_empty) {
            self.namespaces.remove(namespace);
        }
    }
}

impl NamespaceFacts {
    fn is_ours(&self) -> bool {
        self.other_pool.is_none()
    }
}

impl NamespaceSlot {
    fn is_ours(&self) -> bool {
        self.facts.as_ref().is_some_and(NamespaceFacts::is_ours)
    }

    fn is_empty(&self) -> bool {
        self.facts.is_none() && self.webhooks.is_empty() && self.subscriptions.is_empty()
    }

    /// Everything that is known of the namespace has to be recorded anew. The
    /// namespace comes last: when it is acknowledged, its objects are.
    fn mark_all(&self, namespace: &Arc<str>, journal: &mut Journal) {
        let key = |kind, name: &Arc<str>| ObjectKey { kind, namespace: Arc::clone(namespace), name: Arc::clone(name) };
        self.webhooks.keys().for_each(|name| journal.mark_object(key(FeedKind::Webhook, name)));
        self.subscriptions.keys().for_each(|name| journal.mark_object(key(FeedKind::Subscription, name)));
        journal.mark_namespace(namespace);
    }

    /// Tells followers that all objects came into the index, or left it.
    fn record_all(&self, namespace: &Arc<str>, feed: &mut Feed) {
        let ours = self.is_ours();
        let mut record = |kind, name: &Arc<str>, uid: &Arc<str>, state| {
            let key = ObjectKey { kind, namespace: Arc::clone(namespace), name: Arc::clone(name) };
            feed.record(key, Arc::clone(uid), if ours { state } else { State::Gone });
        };
        self.webhooks.iter().for_each(|(name, slot)| record(FeedKind::Webhook, name, &slot.uid, slot.state()));
        self.subscriptions
            .iter()
            .for_each(|(name, slot)| record(FeedKind::Subscription, name, &slot.uid, slot.state()));
    }
}

impl<T> Slot<T> {
    fn state(&self) -> State {
        match &self.content {
            Ok(_) => State::Used(self.generation),
            Err(error) => State::Refused(self.generation, Arc::clone(error)),
        }
    }

    /// Whether the feed would say the same: status writes are no news to it.
    fn same_to_followers(&self, other: &Self) -> bool {
        self.uid == other.uid && self.state() == other.state()
    }

    /// Whether the record of the object would be another one.
    fn differs(&self, other: &Self) -> bool
    where
        T: PartialEq,
    {
        (&self.uid, self.generation, &self.content) != (&other.uid, other.generation, &other.content)
    }
}
