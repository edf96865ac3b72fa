//! What the registrar knows to be in the store. Changed only by what the store
//! has answered: a plan that was never registered leaves no trace but that of
//! who waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::jiff::Timestamp;

use super::HookAction;
use crate::{
    dispatch::HookView,
    policy::delivery::DeliverySettings,
    routing::index::{Change, Home, Index, Object, Seen, WebhookEntry},
    runtime::pack::pack,
    store::{HookId, HookNotes, Known, KnownHook, KnownNamespace},
};

/// Looks in a row that find nothing owed before a hook counts as drained: a scan
/// may be about to add rows.
const EMPTY_LOOKS: u8 = 2;

/// What is in the store, by UID of the namespace.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) namespaces: HashMap<Arc<str>, Namespace>,
    /// The highest number of a hook that was ever seen: a higher one is new, and
    /// nothing is owed to it.
    last_hook: HookId,
}

/// A namespace in the store.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) name: Arc<str>,
    pub(super) hooks: BTreeMap<Arc<str>, HookRecord>,
    pub(super) subs: BTreeMap<Arc<str>, SubRecord>,
    /// Subscriptions that are not in the store as they should be, because this
    /// Webhook is not, or is not verified yet.
    waiting: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// The Webhook that a Subscription waits for.
    waits_for: BTreeMap<Arc<str>, Arc<str>>,
}

/// A Webhook in the store.
#[derive(Debug)]
pub(super) struct HookRecord {
    id: HookId,
    pub(super) max_age_ms: i64,
    pub(super) is_ordered: bool,
    /// None before the Webhook could be read.
    settings: Option<Arc<DeliverySettings>>,
    reload: Option<Box<str>>,
    /// What the store remembers; counts when the dispatcher is told the first time.
    notes: Option<Box<HookNotes>>,
    is_moved: bool,
    /// The dispatcher was told of it.
    is_shown: bool,
    /// Looks in a row that found nothing owed; [`EMPTY_LOOKS`]: drained.
    empty_looks: u8,
}

/// A Subscription in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SubRecord {
    pub(super) uid: Arc<str>,
    pub(super) webhook: Arc<str>,
    pub(super) created: Timestamp,
}

/// A Webhook as it was registered.
#[derive(Debug)]
pub(super) struct ShownHook {
    pub(super) namespace: Arc<str>,
    pub(super) namespace_uid: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) max_age_ms: i64,
    pub(super) is_ordered: bool,
    /// None if its generation cannot be used.
    pub(super) entry: Option<Arc<WebhookEntry>>,
    pub(super) is_moved: bool,
}

impl Ledger {
    /// What a store knew at its start; what is gone is not in it. A namespace may
    /// have left nothing but events: those have to be purged when it is gone.
    pub(super) fn restore(known: &Known, namespaces: &[KnownNamespace]) -> Self {
        let mut ledger = Self::default();
        for KnownNamespace { name, uid } in namespaces {
            ledger.namespace_of(uid, name);
        }
        let mut names = HashMap::new();
        for hook in &known.hooks {
            ledger.last_hook = ledger.last_hook.max(hook.id);
            names.insert(hook.id, &hook.hook.name);
            let namespace = ledger.namespace_of(&hook.hook.namespace_uid, &hook.hook.namespace);
            if hook.gone_at.is_some() {
                continue;
            }
            namespace.hooks.insert(Arc::clone(&hook.hook.name), HookRecord::restore(hook));
        }
        for sub in &known.subs {
            let definition = &sub.sub;
            let Some(namespace) = ledger.namespaces.get_mut(&definition.namespace_uid) else { continue };
            let webhook = names.get(&sub.hook).map_or(&definition.webhook, |name| *name);
            let webhook = Arc::clone(webhook);
            let record = SubRecord { uid: Arc::clone(&definition.uid), webhook, created: definition.created };
            namespace.subs.insert(Arc::clone(&definition.name), record);
        }
        ledger
    }

    pub(super) fn namespace_of(&mut self, uid: &Arc<str>, name: &Arc<str>) -> &mut Namespace {
        let new = || Namespace { name: Arc::clone(name), ..Namespace::default() };
        self.namespaces.entry(Arc::clone(uid)).or_insert_with(new)
    }

    pub(super) fn hook(&self, namespace_uid: &str, name: &str) -> Option<&HookRecord> {
        self.namespaces.get(namespace_uid)?.hooks.get(name)
    }

    /// The one copy of the name of a Webhook that is in the store.
    pub(super) fn hook_name(&self, namespace_uid: &str, name: &str) -> Option<&Arc<str>> {
        Some(self.namespaces.get(namespace_uid)?.hooks.get_key_value(name)?.0)
    }

    pub(super) fn sub(&self, namespace_uid: &str, name: &str) -> Option<&SubRecord> {
        self.namespaces.get(namespace_uid)?.subs.get(name)
    }

    /// Tells the dispatcher of everything that the store knew at its start.
    pub(super) fn show_restored(&mut self, known: &Known, index: &Index) -> Vec<HookAction> {
        let mut actions = Vec::new();
        for KnownHook { id: _, hook, gone_at, notes: _, pending } in &known.hooks {
            if gone_at.is_some() {
                continue;
            }
            let (home, Seen::Used(entry)) = index.look_webhook(&hook.namespace, &hook.name) else { continue };
            if home.uid() != Some(&hook.namespace_uid) {
                continue;
            }
            let Some(namespace) = self.namespaces.get_mut(&hook.namespace_uid) else { continue };
            let Some(record) = namespace.hooks.get_mut(&hook.name) else { continue };
            record.is_moved = matches!(home, Home::Other { .. });
            actions.extend(record.show(&namespace.name, Some(entry), *pending > 0));
        }
        actions
    }

    /// A Webhook is in the store under this number.
    pub(super) fn hook_registered(&mut self, shown: ShownHook, id: HookId) -> Vec<HookAction> {
        let ShownHook { namespace, namespace_uid, name, max_age_ms, is_ordered, entry, is_moved } = shown;
        let is_new = id > self.last_hook;
        self.last_hook = self.last_hook.max(id);
        let record = self.namespace_of(&namespace_uid, &namespace).hooks.entry(name).or_insert(HookRecord {
            id,
            max_age_ms,
            is_ordered,
            settings: None,
            reload: None,
            notes: None,
            is_moved,
            is_shown: false,
            empty_looks: 0,
        });
        *record = HookRecord {
            id,
            max_age_ms,
            is_ordered,
            is_moved,
            empty_looks: if is_moved { record.empty_looks } else { 0 },
            ..std::mem::replace(record, HookRecord::EMPTY)
        };
        record.show(&namespace, entry, !is_new)
    }

    /// A Webhook is gone from the store. Its Subscriptions stay for a namesake.
    pub(super) fn hook_gone(&mut self, namespace_uid: &str, name: &str) -> Option<HookAction> {
        let record = self.namespaces.get_mut(namespace_uid)?.hooks.remove(name)?;
        record.is_shown.then_some(HookAction::Remove(record.id))
    }

    /// A namespace and all that was in it is gone from the store.
    pub(super) fn namespace_gone(&mut self, uid: &str) -> Vec<HookAction> {
        let gone = self.namespaces.remove(uid).unwrap_or_default();
        gone.hooks.into_values().filter(|hook| hook.is_shown).map(|hook| HookAction::Remove(hook.id)).collect()
    }

    /// What the store has and a complete index has not. Whatever went while this
    /// pod was away, or could not be restored, is found here.
    pub(super) fn missing(&self, index: &Index) -> Vec<Change> {
        let mut changes = Vec::new();
        for (uid, namespace) in &self.namespaces {
            let name = &namespace.name;
            let home = index.look_namespace(name);
            if home.uid() != Some(uid) {
                changes.push(Change::Namespace { name: Arc::clone(name), home });
                continue;
            }
            for hook in namespace.hooks.keys() {
                let (home, seen) = index.look_webhook(name, hook);
                if seen == Seen::Gone {
                    changes.push(Change::Webhook(Object { namespace: name.clone(), name: hook.clone(), home, seen }));
                }
            }
            for sub in namespace.subs.keys() {
                let (home, seen) = index.look_subscription(name, sub);
                if seen == Seen::Gone {
                    let gone = Object { namespace: name.clone(), name: sub.clone(), home, seen };
                    changes.push(Change::Subscription(gone));
                }
            }
        }
        changes
    }

    /// Gives back room that a first listing left.
    pub(super) fn pack(&mut self) {
        for namespace in self.namespaces.values_mut() {
            pack(&mut namespace.hooks);
            pack(&mut namespace.subs);
        }
    }

    /// Whether hooks of namespaces that moved still send what they owe.
    pub(super) fn drains(&self) -> bool {
        self.namespaces.values().flat_map(|namespace| namespace.hooks.values()).any(HookRecord::drains)
    }

    /// Looks which of them have nothing left to send.
    pub(super) fn drained(&mut self, known: &Known) -> Vec<HookAction> {
        let mut actions = Vec::new();
        for KnownHook { id: _, hook, gone_at: _, notes, pending } in &known.hooks {
            let Some(namespace) = self.namespaces.get_mut(&hook.namespace_uid) else { continue };
            let Some(record) = namespace.hooks.get_mut(&hook.name).filter(|record| record.drains()) else { continue };
            record.empty_looks = if *pending == 0 { record.empty_looks + 1 } else { 0 };
            if !record.drains() {
                record.is_shown = false;
                record.notes = to_notes(notes);
                actions.push(HookAction::Remove(record.id));
            }
        }
        actions
    }
}

impl Namespace {
    /// A Subscription waits for a Webhook.
    pub(super) fn wait(&mut self, webhook: &str, subscription: &Arc<str>) {
        let webhook: Arc<str> = webhook.into();
        self.stop_waiting(subscription);
        self.waits_for.insert(Arc::clone(subscription), Arc::clone(&webhook));
        self.waiting.entry(webhook).or_default().insert(Arc::clone(subscription));
    }

    pub(super) fn stop_waiting(&mut self, subscription: &str) {
        let Some(webhook) = self.waits_for.remove(subscription) else { return };
        let Some(names) = self.waiting.get_mut(&webhook) else { return };
        names.remove(subscription);
        if names.is_empty() {
            self.waiting.remove(&webhook);
        }
    }

    /// Subscriptions that wait for this Webhook.
    pub(super) fn waiting_for(&self, webhook: &str) -> impl Iterator<Item = &Arc<str>> {
        self.waiting.get(webhook).into_iter().flatten()
    }

    /// All Subscriptions that wait.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = &Arc<str>> {
        self.waits_for.keys()
    }
}

/// Nearly no Webhook has any.
fn to_notes(notes: &HookNotes) -> Option<Box<HookNotes>> {
    (*notes != HookNotes::default()).then(|| Box::new(notes.clone()))
}

impl HookRecord {
    const EMPTY: Self = Self {
        id: HookId(0),
        max_age_ms: 0,
        is_ordered: false,
        settings: None,
        reload: None,
        notes: None,
        is_moved: false,
        is_shown: false,
        empty_looks: 0,
    };

    fn restore(known: &KnownHook) -> Self {
        Self {
            id: known.id,
            max_age_ms: known.hook.max_age_ms,
            is_ordered: known.hook.is_ordered,
            notes: to_notes(&known.notes),
            ..Self::EMPTY
        }
    }

    fn drains(&self) -> bool {
        self.is_moved && self.is_shown && self.empty_looks < EMPTY_LOOKS
    }

    /// What the dispatcher is told of this Webhook as it is now. Without an
    /// entry its generation cannot be used: nothing is sent.
    fn show(&mut self, namespace: &Arc<str>, entry: Option<Arc<WebhookEntry>>, has_backlog: bool) -> Vec<HookAction> {
        let is_drained = self.is_moved && self.empty_looks >= EMPTY_LOOKS;
        let was_shown = self.is_shown;
        let old_reload = self.reload.take();
        if let Some(entry) = &entry {
            self.settings = Some(Arc::clone(&entry.settings));
            self.reload.clone_from(&entry.reload);
        }
        // A hook that was never read and is not readable now: the dispatcher
        // does not know it, so nothing is sent.
        let Some(settings) = self.settings.clone().filter(|_| !is_drained) else { return Vec::new() };
        self.is_shown = true;
        let is_reloaded = was_shown && entry.is_some() && old_reload != self.reload;
        let view = HookView {
            id: self.id,
            namespace: Arc::clone(namespace),
            webhook: entry,
            settings,
            notes: self.notes.as_deref().cloned().unwrap_or_default(),
            has_backlog: has_backlog && !was_shown,
        };
        let reload = is_reloaded.then_some(HookAction::Reload(self.id));
        [HookAction::Set(Box::new(view))].into_iter().chain(reload).collect()
    }
}
