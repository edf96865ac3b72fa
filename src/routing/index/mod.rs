//! The index: what a delivery pod knows of the namespaces, Webhooks and
//! Subscriptions of its pool.
//!
//! Pure: `apply_…`, `delete…` and listings bring the cluster's state in;
//! [`Index::matches`] and [`Index::page`] bring it out. It knows no client and
//! no clock.
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
mod pattern;
mod shared;

use std::{collections::BTreeMap, sync::Arc};

pub use entry::{
    CompileError, EndpointSource, ServiceEndpoint, Start, SubscriptionEntry, VerificationEntry, WebhookEntry,
};
pub use feed::TOMBSTONES_MAX;
pub use pattern::EventPattern;
pub use shared::SharedIndex;

use entry::{Identity, compile_subscription, compile_webhook};
use feed::{Feed, ObjectKey, State};
use intern::Interner;
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
    settings: Interner<DeliverySettings>,
}

/// An event goes to this Webhook.
#[derive(Clone, Debug, PartialEq)]
pub struct Match {
    /// The Webhook.
    pub webhook: Arc<WebhookEntry>,
    /// The Subscriptions that matched, oldest first: the first one shapes the
    /// Delivery.
    pub subscriptions: Vec<Arc<SubscriptionEntry>>,
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
    uid: Box<str>,
    ours: bool,
    listing: u32,
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
    /// An empty index of a pool. `instance` is random, so that followers notice
    /// a new start.
    pub fn new(pool: &str, instance: &str) -> Self {
        Self {
            pool: pool.into(),
            namespaces: BTreeMap::new(),
            listings: Default::default(),
            feed: Feed::new(instance),
            settings: Interner::default(),
        }
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
            self.feed.bump();
        }
    }

    /// Whether every kind has been listed at least once.
    pub fn synced(&self) -> bool {
        self.listings.iter().all(|listing| listing.complete)
    }

    /// A namespace exists. `pool` is the value of its label
    /// [`crate::api::POOL_LABEL`].
    pub fn apply_namespace(&mut self, name: &str, uid: &str, pool: Option<&str>) {
        let ours = pool.unwrap_or(DEFAULT_POOL) == &*self.pool;
        let listing = self.listings[WatchedKind::Namespace as usize].number;
        let name = self.intern(name);
        let slot = self.namespaces.entry(Arc::clone(&name)).or_default();
        let was_ours = slot.is_ours();
        slot.facts = Some(NamespaceFacts { uid: uid.into(), ours, listing });
        if was_ours != ours {
            slot.record_all(&name, &mut self.feed);
        }
    }

    /// A namespace is gone. Objects seen in it stay parked until their own
    /// watches tell that they are gone.
    pub fn delete_namespace(&mut self, name: &str) {
        let Some(name) = self.known(name) else { return };
        let Some(slot) = self.namespaces.get_mut(&name) else { return };
        let was_ours = slot.is_ours();
        slot.facts = None;
        if was_ours {
            slot.record_all(&name, &mut self.feed);
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
        if let Some((name, uid)) = removed.filter(|_| ours) {
            self.feed.record(ObjectKey { kind, namespace: Arc::clone(&namespace), name }, uid, State::Gone);
        }
        self.drop_if_empty(&namespace);
    }

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
    pub fn namespace_uid(&self, namespace: &str) -> Option<&str> {
        let facts = self.namespaces.get(namespace)?.facts.as_ref()?;
        facts.ours.then_some(&*facts.uid)
    }

    /// The feed's answer to a follower.
    pub fn page(&self, query: &FeedQuery) -> FeedPage {
        self.feed.page(query, self.synced())
    }

    /// This start of the pod, as the feed names it.
    pub fn instance(&self) -> &str {
        self.feed.instance()
    }

    /// Number of the last change.
    pub fn revision(&self) -> u64 {
        self.feed.revision()
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
        let changed = objects.remove(&name).is_none_or(|old| !old.same_to_followers(&new));
        if ours && changed {
            let key = ObjectKey { kind, namespace, name: Arc::clone(&name) };
            self.feed.record(key, Arc::clone(&new.uid), new.state());
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

impl NamespaceSlot {
    fn is_ours(&self) -> bool {
        self.facts.as_ref().is_some_and(|facts| facts.ours)
    }

    fn is_empty(&self) -> bool {
        self.facts.is_none() && self.webhooks.is_empty() && self.subscriptions.is_empty()
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
}
