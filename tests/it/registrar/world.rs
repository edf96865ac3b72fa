//! A cluster, an index, a store in memory and a registrar between them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use posthorn::{
    api::{Subscription, Webhook},
    delivery::registrar::{Hooks, Registrar},
    dispatch::HookView,
    event::{Pos, StoreTime},
    routing::{
        index::{Index, SharedIndex, WatchedKind},
        table::RoutingTable,
    },
    store::{
        Answer, BlockedKey, CardMark, CardQuery, DeadRow, From, HookDefinition, HookId, HookNote, HookNotes, Known,
        KnownHook, KnownNamespace, KnownSub, OrderKey, Outcome, OwedPage, OwedRow, Partition, RecordTicket, Register,
        Registered, ReplayIdentity, ReplayOrder, ReplayRun, RouteChange, RouteKey, Router, StoreError, StoreLimits,
        StoredEvent, SubDefinition, SubId, TallyPage, TallyRevision, WaitingPage,
    },
    verify::fingerprint::{Bound, FingerprintKey},
    wire::index_feed::FeedEntry,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinHandle, yield_now},
};

use crate::index::{ALL, POOL, content, subscription, webhook_with};

/// What a store has on its disk, and the table that it routes with.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) hooks: BTreeMap<i64, StoredHook>,
    pub(super) subs: BTreeMap<i64, StoredSub>,
    pub(super) table: RoutingTable,
    pub(super) next: u64,
    /// Hook and position.
    pub(super) owed: BTreeSet<(i64, u64)>,
    /// Everything that was registered, in words.
    pub(super) log: Vec<String>,
    pub(super) namespaces_with_events: BTreeSet<KnownNamespace>,
    pub(super) gone_namespaces: BTreeSet<String>,
    pub(super) error: Option<StoreError>,
}

pub(super) struct StoredHook {
    pub(super) definition: HookDefinition,
    pub(super) is_gone: bool,
}

pub(super) struct StoredSub {
    pub(super) hook: i64,
    pub(super) live_from: u64,
    pub(super) definition: SubDefinition,
}

impl Disk {
    fn hook_named(&self, namespace_uid: &str, name: &str) -> Option<i64> {
        let is_it = |d: &HookDefinition| *d.namespace_uid == *namespace_uid && *d.name == *name;
        self.hooks.iter().find(|(_, hook)| is_it(&hook.definition)).map(|(id, _)| *id)
    }

    fn apply(&mut self, register: Register) -> Registered {
        match register {
            Register::Hook(definition) => {
                let known = self.hook_named(&definition.namespace_uid, &definition.name);
                let id = known.unwrap_or_else(|| self.hooks.keys().last().map_or(1, |last| last + 1));
                self.log.push(format!("hook {}", definition.uid));
                self.table.apply(&[RouteChange::Hook { id: HookId(id), hook: definition.clone() }]);
                self.hooks.insert(id, StoredHook { definition, is_gone: false });
                Registered::Hook(HookId(id))
            }
            Register::Sub(sub) => {
                let Some(hook) = self.hook_named(&sub.namespace_uid, &sub.webhook) else {
                    self.log.push(format!("no webhook for {}", sub.uid));
                    return Registered::NoSuchWebhook;
                };
                let known = self.subs.iter().find(|(_, known)| known.definition.uid == sub.uid);
                let known = known.map(|(id, known)| (*id, known.live_from));
                let from = match (known, sub.from) {
                    (Some(_), _) => "again".to_owned(),
                    (None, From::Earliest) => "earliest".to_owned(),
                    (None, From::Time(time)) => time.to_string(),
                };
                self.log.push(format!("sub {} {from}", sub.uid));
                let (id, live_from) = known.unwrap_or((self.subs.keys().last().map_or(1, |last| last + 1), self.next));
                let (sub_id, live) = (SubId(id), Pos(live_from));
                let change = RouteChange::Sub { id: sub_id, hook: HookId(hook), live_from: live, sub: sub.clone() };
                self.table.apply(&[change]);
                self.subs.insert(id, StoredSub { hook, live_from, definition: sub });
                Registered::Sub { id: sub_id, live_from: live }
            }
            Register::HookGone { namespace_uid, name } => {
                self.log.push(format!("hook gone {name}"));
                if let Some(id) = self.hook_named(&namespace_uid, &name) {
                    self.hooks.get_mut(&id).unwrap().is_gone = true;
                    self.table.apply(&[RouteChange::HookGone(HookId(id))]);
                }
                Registered::Done
            }
            Register::SubGone { uid } => {
                self.log.push(format!("sub gone {uid}"));
                self.forget_subs(|sub| sub.definition.uid == uid);
                Registered::Done
            }
            Register::NamespaceGone { uid } => {
                self.log.push(format!("namespace gone {uid}"));
                self.forget_subs(|sub| sub.definition.namespace_uid == uid);
                self.hooks.retain(|id, hook| {
                    let is_gone = hook.definition.namespace_uid == uid;
                    if is_gone {
                        self.table.apply(&[RouteChange::HookGone(HookId(*id))]);
                    }
                    !is_gone
                });
                self.owed.retain(|(hook, _)| self.hooks.contains_key(hook));
                self.namespaces_with_events.retain(|namespace| namespace.uid != uid);
                self.gone_namespaces.insert(uid.to_string());
                Registered::Done
            }
        }
    }

    fn forget_subs(&mut self, is_gone: impl Fn(&StoredSub) -> bool) {
        self.subs.retain(|id, sub| {
            let is_gone = is_gone(sub);
            if is_gone {
                self.table.apply(&[RouteChange::SubGone(SubId(*id))]);
            }
            !is_gone
        });
    }

    fn known(&self) -> Known {
        let hooks = self.hooks.iter().map(|(&id, hook)| KnownHook {
            id: HookId(id),
            hook: hook.definition.clone(),
            gone_at: hook.is_gone.then_some(StoreTime(1)),
            notes: HookNotes { circuit: Some(format!("notes of {id}").into()), ..HookNotes::default() },
            pending: self.owed.iter().filter(|(owed, _)| *owed == id).count() as u64,
        });
        let subs = self.subs.iter().map(|(&id, sub)| KnownSub {
            id: SubId(id),
            hook: HookId(sub.hook),
            live_from: Pos(sub.live_from),
            sub: sub.definition.clone(),
        });
        Known { hooks: hooks.collect(), subs: subs.collect() }
    }

    fn namespaces(&self) -> Vec<KnownNamespace> {
        let of_hooks = self.hooks.values().map(|hook| {
            let HookDefinition { namespace, namespace_uid, .. } = &hook.definition;
            KnownNamespace { name: Arc::clone(namespace), uid: Arc::clone(namespace_uid) }
        });
        let all: BTreeSet<_> = of_hooks.chain(self.namespaces_with_events.iter().cloned()).collect();
        all.into_iter().collect()
    }
}

/// A store in memory: of a partition only what the registrar uses.
pub(super) struct FakePartition {
    disk: Mutex<Disk>,
    /// A permit lets one call of `register` through.
    gate: Semaphore,
}

impl FakePartition {
    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }
}

fn unused<'a, T: Send + 'a>() -> Answer<'a, T> {
    Box::pin(async { Err(StoreError::Failed("the registrar does not ask for this".into())) })
}

impl Partition for FakePartition {
    fn register(&self, changes: Vec<Register>) -> Answer<'_, Vec<Registered>> {
        Box::pin(async {
            assert!(changes.len() <= posthorn::delivery::registrar::BATCH_MAX);
            self.gate.acquire().await.unwrap().forget();
            yield_now().await;
            let registered = {
                let mut disk = self.disk();
                if let Some(error) = &disk.error {
                    return Err(error.clone());
                }
                changes.into_iter().map(|change| disk.apply(change)).collect()
            };
            yield_now().await;
            Ok(registered)
        })
    }

    fn known(&self) -> Answer<'_, Known> {
        Box::pin(async { Ok(self.disk().known()) })
    }

    fn namespaces(&self) -> Answer<'_, Vec<KnownNamespace>> {
        Box::pin(async { Ok(self.disk().namespaces()) })
    }

    fn owed(&self, _: HookId, _: Pos, _: usize) -> Answer<'_, OwedPage> {
        unused()
    }
    fn waiting(&self, _: HookId, _: StoreTime, _: usize) -> Answer<'_, WaitingPage> {
        unused()
    }
    fn blocked_keys(&self, _: HookId, _: bool, _: usize) -> Answer<'_, Vec<BlockedKey>> {
        unused()
    }
    fn parked(&self, _: HookId, _: OrderKey, _: usize) -> Answer<'_, Vec<OwedRow>> {
        unused()
    }
    fn bodies(&self, _: Vec<Pos>) -> Answer<'_, Vec<StoredEvent>> {
        unused()
    }
    fn record(&self, _: Vec<Outcome>) -> RecordTicket {
        RecordTicket::default()
    }
    fn recorded(&self) -> watch::Receiver<RecordTicket> {
        watch::channel(RecordTicket::default()).1
    }
    fn note(&self, _: HookId, _: HookNote) -> Answer<'_, ()> {
        unused()
    }
    fn tallies(&self, _: TallyRevision, _: usize) -> Answer<'_, TallyPage> {
        unused()
    }
    fn cards(&self, _: CardQuery) -> Answer<'_, Vec<DeadRow>> {
        unused()
    }
    fn mark_cards(&self, _: Vec<CardMark>) -> Answer<'_, ()> {
        unused()
    }
    fn replay(&self, _: ReplayOrder) -> Answer<'_, ReplayRun> {
        unused()
    }
    fn replay_run(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn cancel_replay(&self, _: ReplayIdentity) -> Answer<'_, Option<ReplayRun>> {
        unused()
    }
    fn configure(&self, _: StoreLimits) {}
    fn store_now(&self) -> StoreTime {
        StoreTime(0)
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        unused()
    }
}

/// What the dispatcher was told.
#[derive(Default)]
pub(super) struct Told {
    /// The newest view of each hook that was not removed.
    pub(super) views: BTreeMap<i64, HookView>,
    pub(super) reloads: Vec<i64>,
}

#[derive(Clone, Default)]
pub(super) struct FakeHooks(Arc<Mutex<Told>>);

impl FakeHooks {
    pub(super) fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap()
    }
}

impl Hooks for FakeHooks {
    fn set_hook(&self, view: HookView) {
        self.told().views.insert(view.id.0, view);
    }

    fn reload_hook(&self, hook: HookId) {
        self.told().reloads.push(hook.0);
    }

    fn remove_hook(&self, hook: HookId) {
        assert!(self.told().views.remove(&hook.0).is_some(), "only what was set is removed");
    }
}

pub(super) struct World {
    pub(super) index: Arc<SharedIndex>,
    pub(super) store: Arc<FakePartition>,
    pub(super) hooks: FakeHooks,
    pub(super) key: watch::Sender<Option<FingerprintKey>>,
    pub(super) run: JoinHandle<Result<(), StoreError>>,
}

pub(super) fn key() -> FingerprintKey {
    FingerprintKey::new([7; 32])
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Ends a task when the world ends.
impl Drop for World {
    fn drop(&mut self) {
        self.run.abort();
    }
}

const OPEN: usize = 1_000_000;

impl World {
    /// A pod with an empty store; nothing was listed yet.
    pub(super) fn new() -> Self {
        let disk = Mutex::new(Disk { next: 1, ..Disk::default() });
        Self::start(Arc::new(FakePartition { disk, gate: Semaphore::new(OPEN) }))
    }

    fn start(store: Arc<FakePartition>) -> Self {
        let index = Arc::new(SharedIndex::new(Index::recorded(POOL, "test")));
        let hooks = FakeHooks::default();
        let (sender, receiver) = watch::channel(Some(key()));
        let partition: Arc<dyn Partition> = Arc::<FakePartition>::clone(&store);
        let registrar = Registrar::new(Arc::clone(&index), partition, Arc::new(hooks.clone()), receiver);
        Self { index, store, hooks, key: sender, run: tokio::spawn(registrar.run()) }
    }

    /// The pod starts anew on its store. Nothing was listed yet.
    pub(super) fn restart(&self) -> Self {
        self.run.abort();
        Self::start(Arc::clone(&self.store))
    }

    /// A pod that has listed a cluster with the namespace `shop` and nothing else.
    pub(super) async fn with_namespace() -> Self {
        let world = Self::new();
        world.list(|_| {});
        world.settle().await;
        world
    }

    /// A complete listing of every kind: the namespace `shop`, and what is applied.
    pub(super) fn list(&self, apply: impl Fn(&mut Index)) {
        for kind in ALL {
            self.index.update(|index| {
                index.begin_list(kind);
                if kind == WatchedKind::Namespace {
                    index.apply_namespace("shop", "ns-1", None);
                }
                apply(index);
            });
        }
        ALL.into_iter().for_each(|kind| self.index.update(|index| index.end_list(kind)));
    }

    pub(super) fn close_gate(&self) {
        self.store.gate.forget_permits(OPEN);
    }

    pub(super) fn open_gate(&self) {
        self.store.gate.add_permits(OPEN);
    }

    /// Until nobody has anything to do: time stands still, and every call of the
    /// fake store takes some turns.
    pub(super) async fn settle(&self) {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    pub(super) fn content(&self) -> Vec<FeedEntry> {
        self.index.read(content)
    }

    /// Names and generations that the feed tells.
    pub(super) fn told(&self) -> Vec<String> {
        let told = |entry: FeedEntry| format!("{} {}", entry.name, entry.generation.unwrap_or_default());
        self.content().into_iter().map(told).collect()
    }

    /// Publishes an event and gives back the UIDs of the Webhooks that are owed it.
    pub(super) fn publish(&self, namespace_uid: &str, event_type: &str) -> Vec<String> {
        let mut disk = self.store.disk();
        let pos = disk.next;
        disk.next += 1;
        let (mut targets, event) = (Vec::new(), RouteKey { namespace_uid, event_type, source: "/" });
        assert!(!disk.table.route(Pos(pos), event, HookId(0), 1_000, &mut targets));
        disk.owed.extend(targets.iter().map(|target| (target.hook.0, pos)));
        targets.iter().map(|target| disk.hooks[&target.hook.0].definition.uid.to_string()).collect()
    }

    pub(super) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.store.disk().log)
    }

    pub(super) fn apply_webhook(&self, webhook: &Webhook) {
        self.index.update(|index| index.apply_webhook(webhook));
    }

    pub(super) fn apply_sub(&self, subscription: &Subscription) {
        self.index.update(|index| index.apply_subscription(subscription));
    }

    pub(super) fn view(&self, hook: i64) -> HookView {
        self.hooks.told().views[&hook].clone()
    }
}

pub(super) fn hook(name: &str, generation: i64) -> Webhook {
    webhook_with("shop", name, generation, json!({ "url": "https://hooks.example.com/in" }))
}

/// With a fingerprint as the controller makes it.
pub(super) fn verified(mut webhook: Webhook, since: i64) -> Webhook {
    let (verified_time, valid_until) = (Some(at(since)), Some(at(since + 1_000_000)));
    let uid = webhook.metadata.uid.clone().unwrap();
    let fingerprint = key().fingerprint(Bound {
        uid: &uid,
        endpoint: webhook.spec.url.as_deref().unwrap_or_default(),
        method: webhook.spec.effective_method(),
        http_method: webhook.spec.effective_http_method(),
        verified_time,
        valid_until,
    });
    let verification = json!({
        "state": "Verified", "fingerprint": fingerprint, "verifiedTime": verified_time, "validUntil": valid_until,
    });
    webhook.status = Some(serde_json::from_value(json!({ "verification": verification })).unwrap());
    webhook
}

/// A Subscription to all events of the Webhook, made at second 50.
pub(super) fn sub(name: &str, generation: i64, webhook: &str, extra: &Value) -> Subscription {
    let mut spec = json!({ "webhookRef": { "name": webhook }, "events": ["*"] });
    spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let mut object = subscription("shop", name, generation, spec);
    object.metadata.creation_timestamp = Some(serde_json::from_value(json!(at(50))).unwrap());
    object
}

pub(super) fn now_sub(name: &str, generation: i64, webhook: &str) -> Subscription {
    sub(name, generation, webhook, &json!({ "start": "Now" }))
}
