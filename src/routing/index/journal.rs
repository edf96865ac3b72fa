//! What changed in the index and is not recorded in the store yet.
//!
//! One task, the registrar, takes changes, records them and acknowledges them;
//! then the feed tells them to its followers. So a controller never says that a
//! pod has a generation before that survives the pod: `kubectl wait` and then
//! publish misses nothing. A change carries what it saw, and exactly that is
//! told, whatever came since: what came since is a change of its own.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use super::{
    Index, NamespaceSlot, Slot, SubscriptionEntry, WebhookEntry,
    feed::{ObjectKey, State},
};
use crate::{runtime::pack::pack, wire::index_feed::FeedKind};

/// What has to be recorded.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Each once, in the order in which they changed first.
    queue: VecDeque<Touched>,
    queued: HashSet<Touched>,
    /// Grows with every change: wakes the registrar.
    marks: u64,
    /// Everything up to a complete index was acknowledged.
    told_synced: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Touched {
    Namespace(Arc<str>),
    Object(ObjectKey),
}

/// Changes to record.
#[derive(Debug, Default)]
pub struct Changes {
    /// Each object once, as it is now.
    pub changes: Vec<Change>,
    /// Every kind has been listed, and nothing is left behind these changes.
    pub is_complete: bool,
}

/// Something that came, changed or went.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A namespace; `home` is [`Home::Unknown`] if it is gone.
    Namespace {
        /// Its name.
        name: Arc<str>,
        /// Whose it is now.
        home: Home,
    },
    /// A Webhook.
    Webhook(Object<WebhookEntry>),
    /// A Subscription.
    Subscription(Object<SubscriptionEntry>),
}

/// An object of the index as it is, or was, at some time.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<T> {
    /// Name of its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Whose its namespace is.
    pub home: Home,
    /// What is known of it.
    pub seen: Seen<T>,
}

/// Which pool serves a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// The namespace does not exist, or was not seen yet.
    Unknown,
    /// This pool.
    Ours {
        /// UID of the namespace.
        uid: Arc<str>,
    },
    /// Another pool.
    Other {
        /// UID of the namespace.
        uid: Arc<str>,
        /// The pool.
        pool: Arc<str>,
    },
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen<T> {
    /// It does not exist any more.
    Gone,
    /// Its generation cannot be used.
    Refused {
        /// UID of the object.
        uid: Arc<str>,
        /// Generation of the spec.
        generation: i64,
        /// Why, in a sentence.
        error: Arc<str>,
    },
    /// It can be used.
    Used(Arc<T>),
}

impl Home {
    /// UID of the namespace, if it exists.
    pub fn uid(&self) -> Option<&Arc<str>> {
        match self {
            Self::Unknown => None,
            Self::Ours { uid } | Self::Other { uid, .. } => Some(uid),
        }
    }
}

impl Journal {
    pub(super) fn mark_namespace(&mut self, name: &Arc<str>) {
        self.mark(Touched::Namespace(Arc::clone(name)));
    }

    pub(super) fn mark_object(&mut self, key: ObjectKey) {
        self.mark(Touched::Object(key));
    }

    fn mark(&mut self, touched: Touched) {
        self.wake();
        if self.queued.insert(touched.clone()) {
            self.queue.push_back(touched);
        }
    }

    /// A namespace is acknowledged behind its objects, also if a watch told of it
    /// before they were restored.
    pub(super) fn namespaces_last(&mut self) {
        self.queue.make_contiguous().sort_by_key(|touched| matches!(touched, Touched::Namespace(_)));
    }

    /// News without a change: every kind was listed.
    pub(super) fn wake(&mut self) {
        self.marks += 1;
    }

    pub(super) fn told_synced(&self) -> bool {
        self.told_synced
    }

    fn take(&mut self, limit: usize) -> Vec<Touched> {
        let taken: Vec<_> = self.queue.drain(..limit.min(self.queue.len())).collect();
        if self.queue.is_empty() {
            // A first listing queues everything there is: the room is given back.
            self.queue = VecDeque::new();
            self.queued = HashSet::new();
        } else {
            taken.iter().for_each(|touched| {
                self.queued.remove(touched);
            });
        }
        taken
    }
}

impl Index {
    /// Takes changes that have to be recorded, at most `limit`. Whoever takes
    /// them records and [acknowledges](Self::acknowledge) them. Nothing if this
    /// index is not [recorded](Self::recorded).
    pub fn take_changes(&mut self, limit: usize) -> Changes {
        let Some(journal) = &mut self.journal else { return Changes::default() };
        let taken = journal.take(limit);
        let is_drained = journal.queue.is_empty();
        let changes = taken.into_iter().map(|touched| self.change(touched)).collect();
        Changes { changes, is_complete: is_drained && self.synced() }
    }

    /// A Webhook as it is now, whatever its pool.
    pub fn look_webhook(&self, namespace: &str, name: &str) -> (Home, Seen<WebhookEntry>) {
        let slot = self.namespaces.get(namespace);
        (home(slot), seen(slot.and_then(|slot| slot.webhooks.get(name))))
    }

    /// A Subscription as it is now, whatever its pool.
    pub fn look_subscription(&self, namespace: &str, name: &str) -> (Home, Seen<SubscriptionEntry>) {
        let slot = self.namespaces.get(namespace);
        (home(slot), seen(slot.and_then(|slot| slot.subscriptions.get(name))))
    }

    /// Which pool serves a namespace now.
    pub fn look_namespace(&self, namespace: &str) -> Home {
        home(self.namespaces.get(namespace))
    }

    /// What this change says is recorded: the feed may tell it.
    pub fn acknowledge(&mut self, change: &Change) {
        let (kind, namespace, name, told) = match change {
            Change::Namespace { name, home } => return self.acknowledge_namespace(name, home),
            Change::Webhook(object) => {
                let told = told(object, |entry| (&entry.uid, entry.generation));
                (FeedKind::Webhook, &object.namespace, &object.name, told)
            }
            Change::Subscription(object) => {
                let told = told(object, |entry| (&entry.uid, entry.generation));
                (FeedKind::Subscription, &object.namespace, &object.name, told)
            }
        };
        let key = ObjectKey { kind, namespace: Arc::clone(namespace), name: Arc::clone(name) };
        let known = self.feed.newest(&key);
        match told {
            Some((uid, state)) if known != Some((&uid, &state)) => self.feed.record(key, uid, state),
            None => {
                if let Some((uid, _)) = known.filter(|(_, state)| **state != State::Gone) {
                    let uid = Arc::clone(uid);
                    self.feed.record(key, uid, State::Gone);
                }
            }
            Some(_) => {}
        }
    }

    /// Its objects came before it, so the store serves them.
    fn acknowledge_namespace(&mut self, name: &str, home: &Home) {
        let facts = self.namespaces.get_mut(name).and_then(|slot| slot.facts.as_mut());
        if let (Some(facts), Home::Ours { uid }) = (facts, home) {
            facts.is_recorded |= facts.uid == *uid && facts.is_ours();
        }
    }

    /// All changes of a complete index are recorded and acknowledged: followers
    /// may take what they are not told of for absent.
    pub fn acknowledge_complete(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        if !std::mem::replace(&mut journal.told_synced, true) {
            self.feed.bump();
            self.pack();
        }
    }

    /// From now on objects come and go one by one.
    fn pack(&mut self) {
        self.feed.pack();
        for slot in self.namespaces.values_mut() {
            pack(&mut slot.webhooks);
            pack(&mut slot.subscriptions);
        }
    }

    /// Grows with every change that has to be recorded.
    pub(super) fn marks(&self) -> u64 {
        self.journal.as_ref().map_or(0, |journal| journal.marks)
    }

    fn change(&self, touched: Touched) -> Change {
        match touched {
            Touched::Namespace(name) => Change::Namespace { home: self.look_namespace(&name), name },
            Touched::Object(ObjectKey { kind: FeedKind::Webhook, namespace, name }) => {
                let (home, seen) = self.look_webhook(&namespace, &name);
                Change::Webhook(Object { namespace, name, home, seen })
            }
            Touched::Object(ObjectKey { kind: FeedKind::Subscription, namespace, name }) => {
                let (home, seen) = self.look_subscription(&namespace, &name);
                Change::Subscription(Object { namespace, name, home, seen })
            }
        }
    }
}

/// What followers are told of an object; none: that it is not in the index.
fn told<T>(object: &Object<T>, of: impl FnOnce(&T) -> (&Arc<str>, i64)) -> Option<(Arc<str>, State)> {
    match (&object.home, &object.seen) {
        (Home::Unknown | Home::Other { .. }, _) | (Home::Ours { .. }, Seen::Gone) => None,
        (Home::Ours { .. }, Seen::Refused { uid, generation, error }) => {
            Some((Arc::clone(uid), State::Refused(*generation, Arc::clone(error))))
        }
        (Home::Ours { .. }, Seen::Used(entry)) => {
            let (uid, generation) = of(entry);
            Some((Arc::clone(uid), State::Used(generation)))
        }
    }
}

fn home(slot: Option<&NamespaceSlot>) -> Home {
    match slot.and_then(|slot| slot.facts.as_ref()) {
        None => Home::Unknown,
        Some(facts) => match &facts.other_pool {
            None => Home::Ours { uid: Arc::clone(&facts.uid) },
            Some(pool) => Home::Other { uid: Arc::clone(&facts.uid), pool: pool.clone() },
        },
    }
}

fn seen<T>(slot: Option<&Slot<T>>) -> Seen<T> {
    let Some(slot) = slot else { return Seen::Gone };
    match &slot.content {
        Ok(entry) => Seen::Used(Arc::clone(entry)),
        Err(error) => {
            Seen::Refused { uid: Arc::clone(&slot.uid), generation: slot.generation, error: Arc::clone(error) }
        }
    }
}
