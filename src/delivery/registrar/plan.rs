//! What has to be registered so that the store has what the index has. Pure.
//!
//! # When a Subscription is registered
//! Once its Webhook is in the store; with `start: Verification` (the default)
//! once that Webhook is first seen verified. Until then it waits: nothing is
//! owed for it, and the controller is not told that it is programmed. From then
//! on it stays registered, whatever becomes of the verification.
//!
//! # What stays when something cannot be served
//! A generation that cannot be used, and a namespace that moved to another pool,
//! are no deletions. Their records stay with a document that says so: nothing
//! new matches, what is owed stays owed, and of a namespace that moved it is
//! still sent from here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    HookAction,
    ledger::{Ledger, ShownHook, SubRecord},
    proof::verified_since,
};
use crate::{
    routing::index::{
        Change, Home, Index, Object, Seen, Start, SubscriptionEntry, WebhookEntry,
        document::{self, Standing},
    },
    store::{From, HookDefinition, Register, Registered, SubDefinition},
    verify::fingerprint::FingerprintKey,
};

/// What has to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// In this order.
    pub(super) steps: Vec<Step>,
    /// Changes that need no record.
    pub(super) told: Vec<Change>,
}

/// Something to register.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) register: Register,
    effect: Effect,
    /// What the feed may tell when it is registered.
    told: Option<Change>,
}

/// What is true when a step is done.
#[derive(Debug)]
enum Effect {
    Hook(Box<ShownHook>),
    HookGone { namespace_uid: Arc<str>, name: Arc<str> },
    Sub { namespace_uid: Arc<str>, name: Arc<str>, record: SubRecord },
    SubGone { namespace_uid: Arc<str>, name: Arc<str> },
    NamespaceGone { uid: Arc<str> },
}

/// Makes the plan for changes. `index` is asked for Webhooks, and for
/// Subscriptions that waited for one of these changes.
pub(super) fn plan(ledger: &mut Ledger, changes: Vec<Change>, index: &Index, key: Option<&FingerprintKey>) -> Plan {
    let mut planner = Planner { ledger, index, key, hooks: HashMap::new(), plan: Plan::default() };
    let (mut webhooks, mut subscriptions) = (Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Namespace { name, home } => planner.namespace(&name, &home),
            Change::Webhook(object) => webhooks.push(object),
            Change::Subscription(object) => subscriptions.push(object),
        }
    }
    let mut seen: HashSet<_> =
        subscriptions.iter().map(|object| (object.namespace.clone(), object.name.clone())).collect();
    for object in webhooks {
        let waiting = planner.waiting_for(&object);
        planner.webhook(object);
        subscriptions.extend(waiting.into_iter().filter(|sub| seen.insert((sub.namespace.clone(), sub.name.clone()))));
    }
    subscriptions.into_iter().for_each(|object| planner.subscription(object));
    planner.plan
}

/// The changes to plan for when the key of fingerprints is another one:
/// everything that waits.
pub(super) fn all_waiting(ledger: &Ledger, index: &Index) -> Vec<Change> {
    let of_namespace = |namespace: &super::ledger::Namespace| {
        let changes = namespace.all_waiting().map(|name| Change::Subscription(look(index, &namespace.name, name)));
        changes.collect::<Vec<_>>()
    };
    ledger.namespaces.values().flat_map(of_namespace).collect()
}

fn look(index: &Index, namespace: &Arc<str>, name: &Arc<str>) -> Object<SubscriptionEntry> {
    let (home, seen) = index.look_subscription(namespace, name);
    Object { namespace: Arc::clone(namespace), name: Arc::clone(name), home, seen }
}

/// Notes what was registered; gives back what the dispatcher is to be told and
/// what the feed may tell.
pub(super) fn settle(ledger: &mut Ledger, step: Step, registered: Registered) -> (Vec<HookAction>, Option<Change>) {
    let Step { register: _, effect, told } = step;
    let actions = match (effect, registered) {
        (Effect::Hook(shown), Registered::Hook(id)) => ledger.hook_registered(*shown, id),
        (Effect::HookGone { namespace_uid, name }, _) => ledger.hook_gone(&namespace_uid, &name).into_iter().collect(),
        (Effect::Sub { namespace_uid, name, record }, Registered::Sub { .. }) => {
            if let Some(namespace) = ledger.namespaces.get_mut(&namespace_uid) {
                namespace.subs.insert(name, record);
            }
            Vec::new()
        }
        (Effect::SubGone { namespace_uid, name }, _) => {
            if let Some(namespace) = ledger.namespaces.get_mut(&namespace_uid) {
                namespace.subs.remove(&name);
            }
            Vec::new()
        }
        (Effect::NamespaceGone { uid }, _) => ledger.namespace_gone(&uid),
        (Effect::Sub { namespace_uid, name, record }, _) => {
            // The store forgot the Webhook meanwhile: the Subscription waits
            // until it is seen again.
            if let Some(namespace) = ledger.namespaces.get_mut(&namespace_uid) {
                namespace.wait(&record.webhook, &name);
            }
            return (Vec::new(), None);
        }
        (Effect::Hook(_), _) => return (Vec::new(), None),
    };
    (actions, told)
}

struct Planner<'a> {
    ledger: &'a mut Ledger,
    index: &'a Index,
    key: Option<&'a FingerprintKey>,
    /// Webhooks that this plan brings into the store, or takes out of it, by UID
    /// of the namespace and name.
    hooks: HashMap<(Arc<str>, Arc<str>), bool>,
    plan: Plan,
}

impl Planner<'_> {
    fn namespace(&mut self, name: &Arc<str>, home: &Home) {
        let is_gone = |uid: &Arc<str>| home.uid() != Some(uid);
        let all = self.ledger.namespaces.iter().filter(|(_, namespace)| namespace.name == *name);
        let gone: Vec<_> = all.filter(|(uid, _)| is_gone(uid)).map(|(uid, _)| Arc::clone(uid)).collect();
        for uid in gone {
            let register = Register::NamespaceGone { uid: Arc::clone(&uid) };
            self.plan.steps.push(Step { register, effect: Effect::NamespaceGone { uid }, told: None });
        }
        if let Home::Ours { uid } = home {
            // Remembered without any object: its data has to be purged once.
            self.ledger.namespace_of(uid, name);
        }
        self.plan.told.push(Change::Namespace { name: Arc::clone(name), home: home.clone() });
    }

    /// Subscriptions that may be registered because of this Webhook.
    fn waiting_for(&self, object: &Object<WebhookEntry>) -> Vec<Object<SubscriptionEntry>> {
        let namespace = object.home.uid().and_then(|uid| self.ledger.namespaces.get(uid));
        let names = namespace.into_iter().flat_map(|namespace| namespace.waiting_for(&object.name));
        names.map(|name| look(self.index, &object.namespace, name)).collect()
    }

    fn webhook(&mut self, object: Object<WebhookEntry>) {
        let Some(uid) = object.home.uid().cloned() else { return self.plan.told.push(Change::Webhook(object)) };
        let known = self.ledger.hook(&uid, &object.name).map(|hook| (hook.max_age_ms, hook.is_ordered));
        match (&object.home, &object.seen, known) {
            (_, Seen::Gone, Some(_)) => {
                let name = Arc::clone(&object.name);
                self.hooks.insert((Arc::clone(&uid), Arc::clone(&name)), false);
                let register = Register::HookGone { namespace_uid: Arc::clone(&uid), name: Arc::clone(&name) };
                let effect = Effect::HookGone { namespace_uid: uid, name };
                self.plan.steps.push(Step { register, effect, told: Some(Change::Webhook(object)) });
            }
            (_, Seen::Refused { uid: object_uid, generation, .. }, Some((max_age_ms, is_ordered))) => {
                let facts = HookFacts { uid: Arc::clone(object_uid), max_age_ms, is_ordered, entry: None };
                let document = document::of_refused(*generation);
                self.hook(&uid, object, facts, document);
            }
            (Home::Ours { .. }, Seen::Used(entry), _) => {
                let document = document::of_webhook(entry, Standing::Served);
                let facts = HookFacts::of(entry);
                self.hook(&uid, object, facts, document);
            }
            (Home::Other { pool, .. }, Seen::Used(entry), Some(_)) => {
                let document = document::of_webhook(entry, Standing::Moved((&**pool).into()));
                let facts = HookFacts::of(entry);
                self.hook(&uid, object, facts, document);
            }
            _ => self.plan.told.push(Change::Webhook(object)),
        }
    }

    fn hook(&mut self, namespace_uid: &Arc<str>, object: Object<WebhookEntry>, facts: HookFacts, document: Arc<str>) {
        let HookFacts { uid, max_age_ms, is_ordered, entry } = facts;
        self.hooks.insert((Arc::clone(namespace_uid), Arc::clone(&object.name)), true);
        let register = Register::Hook(HookDefinition {
            namespace: Arc::clone(&object.namespace),
            namespace_uid: Arc::clone(namespace_uid),
            name: Arc::clone(&object.name),
            uid,
            max_age_ms,
            is_ordered,
            document,
        });
        let shown = ShownHook {
            namespace: Arc::clone(&object.namespace),
            namespace_uid: Arc::clone(namespace_uid),
            name: Arc::clone(&object.name),
            max_age_ms,
            is_ordered,
            entry,
            is_moved: matches!(object.home, Home::Other { .. }),
        };
        let effect = Effect::Hook(Box::new(shown));
        self.plan.steps.push(Step { register, effect, told: Some(Change::Webhook(object)) });
    }

    fn subscription(&mut self, object: Object<SubscriptionEntry>) {
        let Some(uid) = object.home.uid().cloned() else { return self.plan.told.push(Change::Subscription(object)) };
        if let Some(namespace) = self.ledger.namespaces.get_mut(&uid) {
            namespace.stop_waiting(&object.name);
        }
        let mut known = self.ledger.sub(&uid, &object.name).cloned();
        let object_uid = match &object.seen {
            Seen::Gone => None,
            Seen::Refused { uid, .. } => Some(uid),
            Seen::Used(entry) => Some(&entry.uid),
        };
        let gone = known.take_if(|known| Some(&known.uid) != object_uid);
        let is_removed = gone.is_some();
        if let Some(gone) = gone {
            self.sub_gone(&uid, gone, &object.name);
        }
        match (&object.home, &object.seen, known) {
            (Home::Ours { .. }, Seen::Used(entry), known) => {
                let entry = Arc::clone(entry);
                self.serve(&uid, object, &entry, known);
            }
            (Home::Other { pool, .. }, Seen::Used(entry), Some(record)) => {
                let document = document::of_subscription(entry, Standing::Moved((&**pool).into()));
                self.known_sub(&uid, record, &object.name, document);
                self.tell_with_last(object);
            }
            (_, Seen::Refused { generation, .. }, Some(record)) => {
                self.known_sub(&uid, record, &object.name, document::of_refused(*generation));
                self.tell_with_last(object);
            }
            (_, Seen::Gone, None) if is_removed => self.tell_with_last(object),
            _ => self.plan.told.push(Change::Subscription(object)),
        }
    }

    /// A Subscription that this pool serves, if its Webhook allows it already.
    fn serve(
        &mut self,
        namespace_uid: &Arc<str>,
        object: Object<SubscriptionEntry>,
        entry: &Arc<SubscriptionEntry>,
        known: Option<SubRecord>,
    ) {
        // What is known keeps what it has, and the store ignores `from`.
        let from = if known.is_some() { Some(From::Time(entry.created)) } else { self.from(&object.namespace, entry) };
        let name = Arc::clone(&object.name);
        match from.zip(self.known_hook(namespace_uid, &entry.webhook)) {
            Some((from, webhook)) => {
                let record = SubRecord { uid: Arc::clone(&entry.uid), webhook, created: entry.created };
                let document = document::of_subscription(entry, Standing::Served);
                self.sub(namespace_uid, record, &name, from, document);
                self.tell_with_last(object);
            }
            None => {
                if let Some(record) = known {
                    // It must not go on with what it said before. Its Webhook is
                    // gone, or it names another one that is not there.
                    self.known_sub(namespace_uid, record, &name, document::of_refused(entry.generation));
                }
                self.ledger.namespace_of(namespace_uid, &object.namespace).wait(&entry.webhook, &name);
            }
        }
    }

    /// From when on events are owed to a Subscription that is seen for the first
    /// time; none: not yet.
    fn from(&self, namespace: &str, entry: &SubscriptionEntry) -> Option<From> {
        match entry.start {
            Start::Now => Some(From::Time(entry.created)),
            Start::Earliest => Some(From::Earliest),
            Start::At(time) => Some(From::Time(time)),
            Start::Verification => {
                let webhook = self.index.webhook(namespace, &entry.webhook)?;
                verified_since(webhook, self.key).map(From::Time)
            }
        }
    }

    fn known_hook(&self, namespace_uid: &Arc<str>, name: &str) -> Option<Arc<str>> {
        match self.hooks.get_key_value(&(Arc::clone(namespace_uid), name.into())) {
            Some(((_, name), is_there)) => is_there.then(|| Arc::clone(name)),
            None => self.ledger.hook_name(namespace_uid, name).cloned(),
        }
    }

    /// Another document for a Subscription that the store has.
    fn known_sub(&mut self, namespace_uid: &Arc<str>, record: SubRecord, name: &Arc<str>, document: Arc<str>) {
        let from = From::Time(record.created);
        self.sub(namespace_uid, record, name, from, document);
    }

    fn sub(&mut self, namespace_uid: &Arc<str>, record: SubRecord, name: &Arc<str>, from: From, document: Arc<str>) {
        let register = Register::Sub(SubDefinition {
            namespace_uid: Arc::clone(namespace_uid),
            webhook: Arc::clone(&record.webhook),
            name: Arc::clone(name),
            uid: Arc::clone(&record.uid),
            created: record.created,
            from,
            document,
        });
        let effect = Effect::Sub { namespace_uid: Arc::clone(namespace_uid), name: Arc::clone(name), record };
        self.plan.steps.push(Step { register, effect, told: None });
    }

    fn sub_gone(&mut self, namespace_uid: &Arc<str>, record: SubRecord, name: &Arc<str>) {
        let register = Register::SubGone { uid: record.uid };
        let effect = Effect::SubGone { namespace_uid: Arc::clone(namespace_uid), name: Arc::clone(name) };
        self.plan.steps.push(Step { register, effect, told: None });
    }

    /// The feed may tell of this Subscription when the last step is done.
    fn tell_with_last(&mut self, object: Object<SubscriptionEntry>) {
        if let Some(step) = self.plan.steps.last_mut() {
            step.told = Some(Change::Subscription(object));
        }
    }
}

/// What the store and the dispatcher are told of a Webhook.
struct HookFacts {
    uid: Arc<str>,
    max_age_ms: i64,
    is_ordered: bool,
    entry: Option<Arc<WebhookEntry>>,
}

impl HookFacts {
    fn of(entry: &Arc<WebhookEntry>) -> Self {
        Self {
            uid: Arc::clone(&entry.uid),
            max_age_ms: i64::try_from(entry.settings.max_age.as_millis()).unwrap_or(i64::MAX),
            is_ordered: entry.settings.is_ordered,
            entry: Some(Arc::clone(entry)),
        }
    }
}
