//! What the model holds, how events come in and what is registered.

use std::{collections::BTreeMap, sync::Arc};

use posthorn::{
    event::{Event, EventHead, EventId, Pos, StoreTime},
    store::*,
};
use sha2::Digest;

use super::{deliveries::Delivery, replays::ModelReplay};
use crate::store::{clock::TestClock, router::PatternRouter};

/// Longest time that a start believes the wall clock about a stop.
const STOP_MS_MAX: i64 = 3_600_000;

/// Namespace, source and publisher's id.
type DedupKey = (Arc<str>, Box<str>, Box<str>);

pub struct State {
    clock: Arc<TestClock>,
    router: Box<dyn Router>,
    pub(super) news: NewsSender,
    store_ms: i64,
    monotonic_ms: i64,
    stored_wall_ms: i64,
    next: u64,
    numbers: i64,
    pub(super) limits: StoreLimits,
    pub(super) events: BTreeMap<Pos, Arc<Event>>,
    dedup: BTreeMap<DedupKey, Arc<Event>>,
    pub(super) hooks: BTreeMap<HookId, Hook>,
    pub(super) subs: BTreeMap<SubId, Sub>,
    pub(super) deliveries: BTreeMap<(HookId, Pos), Delivery>,
    pub(super) attempts: Vec<AttemptRow>,
    pub(super) replays: Vec<ModelReplay>,
    pub(super) revision: u64,
}

pub(super) struct Hook {
    pub(super) definition: HookDefinition,
    pub(super) gone_at: Option<StoreTime>,
    pub(super) notes: HookNotes,
    pub(super) tally: Tally,
    pub(super) revision: u64,
}

pub(super) struct Sub {
    pub(super) hook: HookId,
    pub(super) live_from: Pos,
    pub(super) definition: SubDefinition,
    pub(super) is_gone: bool,
    /// What came before `live_from` is still to be looked through.
    waits: bool,
}

impl State {
    pub fn new(clock: Arc<TestClock>) -> Self {
        Self {
            store_ms: clock.wall_ms(),
            monotonic_ms: clock.monotonic_ms(),
            stored_wall_ms: clock.wall_ms(),
            clock,
            router: Box::new(PatternRouter::default()),
            news: news_channel().0,
            next: 1,
            numbers: 0,
            limits: StoreLimits::default(),
            events: BTreeMap::new(),
            dedup: BTreeMap::new(),
            hooks: BTreeMap::new(),
            subs: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            attempts: Vec::new(),
            replays: Vec::new(),
            revision: 0,
        }
    }

    /// What a start does: a new router learns what is known, and store time goes
    /// on by what the wall clock says, at most by an hour.
    pub(super) fn start(&mut self, router: Box<dyn Router>) -> NewsReceiver {
        self.store_ms += (self.clock.wall_ms() - self.stored_wall_ms).clamp(0, STOP_MS_MAX);
        self.monotonic_ms = self.clock.monotonic_ms();
        self.router = router;
        let mut changes: Vec<_> = self
            .hooks
            .iter()
            .filter(|(_, h)| h.gone_at.is_none())
            .map(|(&id, h)| RouteChange::Hook { id, hook: h.definition.clone() })
            .collect();
        changes.extend(self.present_subs().map(|(&id, s)| s.change(id)));
        self.router.apply(&changes);
        let (sender, receiver) = news_channel();
        self.news = sender;
        receiver
    }

    pub(super) fn now(&self) -> StoreTime {
        StoreTime(self.store_ms + self.clock.monotonic_ms() - self.monotonic_ms)
    }

    pub(super) fn wall_ms(&self) -> i64 {
        self.clock.wall_ms()
    }

    /// Does what the store does on its own by now.
    pub(super) fn maintain(&mut self) {
        self.store_ms = self.now().0;
        self.monotonic_ms = self.clock.monotonic_ms();
        self.stored_wall_ms = self.clock.wall_ms();
        self.discard_gone();
        self.backfill();
        self.expire();
        self.run_replays();
    }

    pub(super) fn accept(&mut self, batch: Vec<NewEvent>) -> Result<Vec<Accepted>, AcceptError> {
        if batch.iter().any(|e| self.space(&e.namespace_uid) != Space::Free) {
            return Err(AcceptError::Full);
        }
        Ok(batch.into_iter().map(|e| self.accept_one(e)).collect())
    }

    fn accept_one(&mut self, new: NewEvent) -> Accepted {
        let key = new.head.given_id.clone().map(|id| (new.namespace_uid.clone(), new.head.source.clone(), id));
        if let Some(first) = key.as_ref().and_then(|k| self.remembered(k)) {
            let is_same = first.data == new.data && told(&first.head) == told(&new.head);
            return if is_same { Accepted::Duplicate(first.id) } else { Accepted::Conflict(first.id) };
        }
        let pos = Pos(self.next);
        self.next += 1;
        let accepted = self.clock.wall();
        let time_ms = u64::try_from(accepted.as_millisecond()).unwrap();
        let event = Arc::new(Event {
            id: EventId { time_ms, epoch: 0, partition: 0, pos },
            at: self.now(),
            accepted,
            namespace: new.namespace,
            namespace_uid: new.namespace_uid,
            head: new.head,
            data: new.data,
        });
        self.events.insert(pos, event.clone());
        if let Some(key) = key {
            self.dedup.insert(key, event.clone());
        }
        self.route(&event);
        Accepted::New(event.id)
    }

    fn remembered(&self, key: &(Arc<str>, Box<str>, Box<str>)) -> Option<Arc<Event>> {
        let window_ms = i64::try_from(self.limits.deduplication.as_millis()).unwrap();
        self.dedup.get(key).filter(|e| self.now() < e.at.plus_ms(window_ms)).cloned()
    }

    fn route(&mut self, event: &Arc<Event>) {
        let mut targets = Vec::new();
        self.router.route(event.id.pos, route_key(event), HookId(0), usize::MAX, &mut targets);
        for target in &targets {
            self.owe(target.hook, event, target.sub, event.at);
        }
        if targets.len() > INLINE_TARGETS_MAX {
            let (pos, event) = (event.id.pos, Some(event.clone()));
            self.tell(News::Late { pos, event, targets: targets.into_iter().collect() });
        } else {
            self.tell(News::Owed {
                pos: event.id.pos,
                event: Some(event.clone()),
                targets: targets.into_iter().collect(),
            });
        }
    }

    /// A Delivery, unless there is or was one of this event and hook.
    pub(super) fn owe(&mut self, hook: HookId, event: &Event, sub: SubId, since: StoreTime) {
        let is_ordered = self.hooks[&hook].definition.is_ordered;
        let key = event.head.key.as_ref().filter(|_| is_ordered).map(|k| order_key(k));
        self.deliveries.entry((hook, event.id.pos)).or_insert_with(|| Delivery::new(sub, key, since));
        self.touch(hook);
    }

    /// The oldest Subscription of a hook that wants an event.
    pub(super) fn wanted_by(&self, hook: HookId, event: &Event) -> Option<SubId> {
        self.subs
            .iter()
            .filter(|(id, s)| s.hook == hook && self.router.wants(**id, route_key(event)))
            .min_by_key(|(_, s)| (s.definition.created, s.definition.name.clone()))
            .map(|(id, _)| *id)
    }

    pub(super) fn space(&self, namespace_uid: &str) -> Space {
        let bytes = |of: &dyn Fn(&Event) -> bool| -> u64 {
            self.events.values().filter(|e| of(e)).map(|e| e.data.len() as u64).sum()
        };
        let limit = self.limits.namespace_bytes;
        if limit.is_some_and(|limit| bytes(&|e| *e.namespace_uid == *namespace_uid) >= limit) {
            Space::NamespaceFull
        } else if bytes(&|_| true) >= self.limits.size_bytes {
            Space::StoreFull
        } else {
            Space::Free
        }
    }

    pub(super) fn register(&mut self, change: Register) -> Registered {
        match change {
            Register::Hook(definition) => self.register_hook(definition),
            Register::Sub(definition) => self.register_sub(definition),
            Register::HookGone { namespace_uid, name } => {
                if let Some(id) = self.hook_named(&namespace_uid, &name) {
                    let now = self.now();
                    self.hooks.get_mut(&id).unwrap().gone_at.get_or_insert(now);
                    self.router.apply(&[RouteChange::HookGone(id)]);
                }
                Registered::Done
            }
            Register::SubGone { uid } => {
                let gone = self.subs.iter_mut().filter(|(_, s)| s.definition.uid == uid).map(|(id, sub)| {
                    (sub.is_gone, sub.waits) = (true, false);
                    RouteChange::SubGone(*id)
                });
                let changes: Vec<_> = gone.collect();
                self.router.apply(&changes);
                Registered::Done
            }
            Register::NamespaceGone { uid } => self.forget_namespace(&uid),
        }
    }

    fn hook_named(&self, namespace_uid: &str, name: &str) -> Option<HookId> {
        let is_it = |h: &Hook| *h.definition.namespace_uid == *namespace_uid && *h.definition.name == *name;
        self.hooks.iter().find(|(_, h)| is_it(h)).map(|(id, _)| *id)
    }

    /// A number that was never given out.
    fn number(&mut self) -> i64 {
        self.numbers += 1;
        self.numbers
    }

    fn register_hook(&mut self, definition: HookDefinition) -> Registered {
        let known = self.hook_named(&definition.namespace_uid, &definition.name);
        let id = known.unwrap_or_else(|| HookId(self.number()));
        let hook = self.hooks.entry(id).or_insert_with(|| Hook {
            definition: definition.clone(),
            gone_at: None,
            notes: HookNotes::default(),
            tally: Tally { hook: id, ..Tally::default() },
            revision: 0,
        });
        hook.definition = definition.clone();
        hook.gone_at = None;
        self.router.apply(&[RouteChange::Hook { id, hook: definition }]);
        Registered::Hook(id)
    }

    fn register_sub(&mut self, definition: SubDefinition) -> Registered {
        let Some(hook) = self.hook_named(&definition.namespace_uid, &definition.webhook) else {
            return Registered::NoSuchWebhook;
        };
        let known = self.subs.iter().find(|(_, s)| s.definition.uid == definition.uid).map(|(id, _)| *id);
        let id = known.unwrap_or_else(|| SubId(self.number()));
        let next = Pos(self.next);
        let sub = self.subs.entry(id).or_insert_with(|| Sub {
            hook,
            live_from: next,
            definition: definition.clone(),
            is_gone: false,
            waits: true,
        });
        let SubDefinition { created, from, .. } = sub.definition;
        sub.definition = SubDefinition { created, from, ..definition };
        sub.is_gone = false;
        let live_from = sub.live_from;
        self.router.apply(&[sub.change(id)]);
        Registered::Sub { id, live_from }
    }

    fn present_subs(&self) -> impl Iterator<Item = (&SubId, &Sub)> {
        self.subs.iter().filter(|(_, s)| !s.is_gone)
    }

    /// Owes what came before a Subscription. A Webhook that is gone makes that
    /// wait until it comes back.
    fn backfill(&mut self) {
        let is_here = |s: &Sub| self.hooks.get(&s.hook).is_some_and(|h| h.gone_at.is_none());
        let waiting: Vec<_> = self.subs.iter().filter(|(_, s)| s.waits && is_here(s)).map(|(id, _)| *id).collect();
        for id in waiting {
            let sub = self.subs.get_mut(&id).unwrap();
            sub.waits = false;
            let (hook, from, live_from) = (sub.hook, sub.definition.from, sub.live_from);
            let since = |e: &Event| match from {
                From::Earliest => true,
                From::Time(time) => e.accepted >= time,
            };
            let wanted = |e: &Event| e.id.pos < live_from && since(e) && self.router.wants(id, route_key(e));
            let events: Vec<_> = self.events.values().filter(|e| wanted(e)).cloned().collect();
            let now = self.now();
            for event in events {
                self.owe(hook, &event, id, now);
                self.tell(News::Added { hook, from: event.id.pos });
            }
        }
    }

    fn forget_namespace(&mut self, uid: &str) -> Registered {
        let gone: Vec<_> =
            self.hooks.iter().filter(|(_, h)| *h.definition.namespace_uid == *uid).map(|(id, _)| *id).collect();
        let mut changes: Vec<_> =
            self.subs.extract_if(.., |_, s| gone.contains(&s.hook)).map(|(id, _)| RouteChange::SubGone(id)).collect();
        changes.extend(gone.iter().map(|id| RouteChange::HookGone(*id)));
        self.router.apply(&changes);
        for id in gone {
            self.discard_all(id, DiscardReason::NamespaceDeleted);
            self.hooks.remove(&id);
        }
        self.events.retain(|_, e| *e.namespace_uid != *uid);
        self.dedup.retain(|(namespace, ..), _| **namespace != *uid);
        Registered::Done
    }

    /// Hooks that have been gone for too long.
    fn discard_gone(&mut self) {
        let keep_ms = i64::try_from(GONE_KEEP.as_millis()).unwrap();
        let is_over = |h: &Hook| h.gone_at.is_some_and(|gone| gone.plus_ms(keep_ms) <= self.now());
        let over: Vec<_> = self.hooks.iter().filter(|(_, h)| is_over(h)).map(|(id, _)| *id).collect();
        over.into_iter().for_each(|id| self.discard_all(id, DiscardReason::WebhookDeleted));
    }

    pub(super) fn known(&self) -> Known {
        let hook = |(&id, hook): (&HookId, &Hook)| KnownHook {
            id,
            hook: hook.definition.clone(),
            gone_at: hook.gone_at,
            notes: hook.notes.clone(),
            pending: self.tally(id).pending,
        };
        let sub = |(&id, sub): (&SubId, &Sub)| KnownSub {
            id,
            hook: sub.hook,
            live_from: sub.live_from,
            sub: sub.definition.clone(),
        };
        Known { hooks: self.hooks.iter().map(hook).collect(), subs: self.present_subs().map(sub).collect() }
    }

    pub(super) fn namespaces(&self) -> Vec<KnownNamespace> {
        let of_events = self.events.values().map(|event| (&event.namespace_uid, &event.namespace));
        let of_hooks = self.hooks.values().map(|hook| (&hook.definition.namespace_uid, &hook.definition.namespace));
        let all: BTreeMap<_, _> = of_events.chain(of_hooks).collect();
        all.into_iter().map(|(uid, name)| KnownNamespace { name: name.clone(), uid: uid.clone() }).collect()
    }

    pub(super) fn note(&mut self, hook: HookId, note: HookNote) {
        let Some(hook) = self.hooks.get_mut(&hook) else { return };
        match note {
            HookNote::Circuit(circuit) => hook.notes.circuit = circuit,
            HookNote::Withdrawn(at) => hook.notes.withdrawn = Some(at),
            HookNote::HeldUntil(until) => hook.notes.held_until = until,
        }
    }

    pub(super) fn tell(&self, news: News) {
        self.news.send(news);
    }

    /// The counters of a hook changed.
    pub(super) fn touch(&mut self, hook: HookId) {
        self.revision += 1;
        if let Some(hook) = self.hooks.get_mut(&hook) {
            hook.revision = self.revision;
        }
    }
}

impl Sub {
    fn change(&self, id: SubId) -> RouteChange {
        RouteChange::Sub { id, hook: self.hook, live_from: self.live_from, sub: self.definition.clone() }
    }
}

fn route_key(event: &Event) -> RouteKey<'_> {
    RouteKey { namespace_uid: &event.namespace_uid, event_type: &event.head.event_type, source: &event.head.source }
}

/// What a repetition has in common with the first: not its time and its
/// extensions, where a trace goes on.
fn told(head: &EventHead) -> (&str, Option<&str>, Option<&str>) {
    (&head.event_type, head.subject.as_deref(), head.key.as_deref())
}

fn order_key(text: &str) -> OrderKey {
    let hash = sha2::Sha256::digest(text);
    OrderKey(i64::from_le_bytes(hash[..8].try_into().unwrap()))
}
