//! The routing table: what the store asks, beside the one that gives out
//! positions, to learn which Webhooks get an event.
//!
//! Pure. It is built from what was registered in the store and changes in step
//! with it, not with the index: so a Subscription takes effect at an exact
//! position.
//!
//! # Cost
//! An event is looked up by its exact type, by each of its dotted prefixes and
//! among the patterns for all types: the time goes with the candidates of these
//! lists, not with the Subscriptions of the namespace. Behind `after` the lists
//! are entered by binary search, so paging through a large fan-out costs no more
//! than walking it once.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;
use smallvec::SmallVec;

use crate::{
    event::Pos,
    routing::index::{
        EventPattern,
        document::{Standing, SubscriptionFacts, read_subscription},
    },
    store::{HookId, RouteChange, RouteKey, Router, SubDefinition, SubId, Target},
};

/// The routing table of a partition.
#[derive(Debug, Default)]
pub struct RoutingTable {
    hooks: HashMap<HookId, Hook>,
    /// Boxed, since a third of the places of a hash table is empty.
    subs: HashMap<SubId, Box<Sub>>,
    /// By UID.
    namespaces: HashMap<Arc<str>, Namespace>,
    /// Subscriptions that are routed to, for whoever watches from outside.
    routed: Gauge,
}

#[derive(Debug)]
struct Hook {
    is_ordered: bool,
    /// Nothing is routed to it, or it was not seen yet; its Subscriptions wait
    /// for it, or for its namesake.
    is_gone: bool,
    /// Subscriptions that name it.
    subs: u32,
}

#[derive(Debug)]
struct Sub {
    namespace_uid: Arc<str>,
    hook: HookId,
    live_from: Pos,
    created: Timestamp,
    name: Box<str>,
    /// What it wants; nothing if it is suspended or refused. Texts are shared
    /// with the keys of [`Namespace`].
    patterns: Box<[Pattern]>,
    condition: Condition,
    /// It is in the lists of its namespace: it gets new events.
    is_listed: bool,
}

/// What an event must fulfil beside its type.
#[derive(Debug, Default, PartialEq, Eq)]
struct Condition {
    source: Option<Box<str>>,
    // A compiled CEL filter goes here. It needs more of the event than
    // `RouteKey` has: that grows by a borrowed view of attributes and data.
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    All,
    Prefix(Arc<str>),
    Exact(Arc<str>),
}

/// The Subscriptions of a namespace by what they want.
#[derive(Debug, Default)]
struct Namespace {
    /// Of [`RoutingTable::subs`]: with none left the namespace is forgotten.
    subs: usize,
    all: Candidates,
    /// By the text before the star, which ends in a dot.
    prefixes: HashMap<Arc<str>, Candidates>,
    exact: HashMap<Arc<str>, Candidates>,
}

/// A Subscription in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    hook: HookId,
    sub: SubId,
}

/// In the order of hook and Subscription. Nearly all types have one taker.
type Candidates = SmallVec<[Candidate; 1]>;

impl Router for RoutingTable {
    fn route(&self, pos: Pos, event: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool {
        let Some(namespace) = self.namespaces.get(event.namespace_uid) else { return false };
        let mut lists = namespace.lists(event.event_type, after);
        let mut room = limit;
        while let Some(hook) = lists.iter().filter_map(|list| Some(list.first()?.hook)).min() {
            let oldest = lists.iter_mut().filter_map(|list| self.oldest(take_hook(list, hook), pos, event));
            let Some((_, _, sub)) = oldest.min() else { continue };
            let Some(known) = self.hooks.get(&hook).filter(|known| !known.is_gone) else { continue };
            if room == 0 {
                return true;
            }
            room -= 1;
            targets.push(Target { hook, sub, is_ordered: known.is_ordered });
        }
        false
    }

    fn wants(&self, sub: SubId, event: RouteKey<'_>) -> bool {
        self.subs.get(&sub).is_some_and(|sub| {
            *sub.namespace_uid == *event.namespace_uid
                && sub.patterns.iter().any(|pattern| pattern.matches(event.event_type))
                && sub.condition.holds(event)
        })
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        for change in changes {
            match change {
                RouteChange::Hook { id, hook } => {
                    let known = self.hooks.entry(*id).or_insert(Hook::UNSEEN);
                    *known = Hook { is_ordered: hook.is_ordered, is_gone: false, ..*known };
                }
                RouteChange::Sub { id, hook, live_from, sub } => self.put_sub(*id, *hook, *live_from, sub),
                RouteChange::HookGone(id) => {
                    self.hooks.entry(*id).and_modify(|hook| hook.is_gone = true);
                    self.drop_hook_if_unused(*id);
                }
                RouteChange::SubGone(id) => self.remove_sub(*id),
            }
        }
        self.routed.set(i64::try_from(self.subs.len()).unwrap_or(i64::MAX));
    }
}

impl RoutingTable {
    /// A table that routes nothing yet and shows in a gauge how many
    /// Subscriptions it serves.
    pub fn counted(routed: Gauge) -> Self {
        Self { routed, ..Self::default() }
    }

    /// A table that routes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The oldest of these Subscriptions of one hook that wants an event.
    fn oldest(&self, run: &[Candidate], pos: Pos, event: RouteKey<'_>) -> Option<(Timestamp, &str, SubId)> {
        run.iter()
            .filter_map(|candidate| Some((candidate.sub, self.subs.get(&candidate.sub)?)))
            .filter(|(_, sub)| sub.live_from <= pos && sub.condition.holds(event))
            .map(|(id, sub)| (sub.created, &*sub.name, id))
            .min()
    }

    fn put_sub(&mut self, id: SubId, hook: HookId, live_from: Pos, definition: &SubDefinition) {
        self.remove_sub(id);
        let SubDefinition { namespace_uid, webhook, name, uid, created, from: _, document } = definition;
        let facts = SubscriptionFacts { name, uid, created: *created, webhook };
        let restored = match read_subscription(facts, document) {
            Ok(restored) => restored,
            Err(error) => {
                tracing::warn!(
                    subscription = &**name,
                    namespace_uid = &**namespace_uid,
                    error = &error as &dyn std::error::Error,
                    "a Subscription in the store cannot be used until the API server is heard of"
                );
                return;
            }
        };
        let is_listed = restored.standing == Standing::Served;
        let entry = restored.entry.filter(|entry| !entry.suspended);
        let (patterns, source) = entry.map_or_else(Default::default, |entry| (entry.events, entry.source));
        let namespace_uid = self.intern(namespace_uid);
        let namespace = self.namespaces.entry(Arc::clone(&namespace_uid)).or_default();
        namespace.subs += 1;
        let patterns: Box<[_]> = patterns.iter().map(|pattern| namespace.share(pattern)).collect();
        if is_listed {
            patterns.iter().for_each(|pattern| namespace.insert(pattern, Candidate { hook, sub: id }));
        }
        self.hooks.entry(hook).or_insert(Hook::UNSEEN).subs += 1;
        let (name, created) = ((&**name).into(), *created);
        let condition = Condition { source };
        let sub = Sub { namespace_uid, hook, live_from, created, name, patterns, condition, is_listed };
        self.subs.insert(id, Box::new(sub));
    }

    fn remove_sub(&mut self, id: SubId) {
        let Some(sub) = self.subs.remove(&id) else { return };
        if let Some(hook) = self.hooks.get_mut(&sub.hook) {
            hook.subs -= 1;
        }
        self.drop_hook_if_unused(sub.hook);
        let Some(namespace) = self.namespaces.get_mut(&sub.namespace_uid) else { return };
        if sub.is_listed {
            let candidate = Candidate { hook: sub.hook, sub: id };
            sub.patterns.iter().for_each(|pattern| namespace.remove(pattern, candidate));
        }
        namespace.subs -= 1;
        if namespace.subs == 0 {
            self.namespaces.remove(&sub.namespace_uid);
        }
    }

    fn drop_hook_if_unused(&mut self, id: HookId) {
        if self.hooks.get(&id).is_some_and(|hook| hook.is_gone && hook.subs == 0) {
            self.hooks.remove(&id);
        }
    }

    /// The one copy of a namespace's UID.
    fn intern(&self, uid: &Arc<str>) -> Arc<str> {
        self.namespaces.get_key_value(uid).map_or_else(|| Arc::clone(uid), |(known, _)| Arc::clone(known))
    }
}

impl Hook {
    const UNSEEN: Self = Self { is_ordered: false, is_gone: true, subs: 0 };
}

impl Condition {
    fn holds(&self, event: RouteKey<'_>) -> bool {
        self.source.as_deref().is_none_or(|wanted| wanted == event.source)
    }
}

impl Pattern {
    fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::All => EventPattern::All.matches(event_type),
            Self::Prefix(prefix) => event_type.starts_with(&**prefix),
            Self::Exact(exact) => event_type == &**exact,
        }
    }
}

impl Namespace {
    /// The lists in which takers of a type may be, behind `after`.
    fn lists(&self, event_type: &str, after: HookId) -> SmallVec<[&[Candidate]; 4]> {
        let all = EventPattern::All.matches(event_type).then_some(&self.all);
        let prefixes = event_type.match_indices('.').filter_map(|(dot, _)| self.prefixes.get(&event_type[..=dot]));
        // Most namespaces have no prefixes, and a type may have many dots.
        let prefixes = (!self.prefixes.is_empty()).then_some(prefixes).into_iter().flatten();
        let lists = self.exact.get(event_type).into_iter().chain(prefixes).chain(all);
        lists.map(|list| &list[list.partition_point(|candidate| candidate.hook <= after)..]).collect()
    }

    /// A pattern whose text is the one of the key in the map, if there is one.
    fn share(&self, pattern: &EventPattern) -> Pattern {
        let share = |map: &HashMap<Arc<str>, Candidates>, text: &str| {
            map.get_key_value(text).map_or_else(|| text.into(), |(known, _)| Arc::clone(known))
        };
        match pattern {
            EventPattern::All => Pattern::All,
            EventPattern::Prefix(prefix) => Pattern::Prefix(share(&self.prefixes, prefix)),
            EventPattern::Exact(exact) => Pattern::Exact(share(&self.exact, exact)),
        }
    }

    fn insert(&mut self, pattern: &Pattern, candidate: Candidate) {
        let list = match pattern {
            Pattern::All => &mut self.all,
            Pattern::Prefix(prefix) => self.prefixes.entry(Arc::clone(prefix)).or_default(),
            Pattern::Exact(exact) => self.exact.entry(Arc::clone(exact)).or_default(),
        };
        if let Err(place) = list.binary_search(&candidate) {
            list.insert(place, candidate);
        }
    }

    fn remove(&mut self, pattern: &Pattern, candidate: Candidate) {
        let (map, text) = match pattern {
            Pattern::All => return remove_candidate(&mut self.all, candidate),
            Pattern::Prefix(prefix) => (&mut self.prefixes, prefix),
            Pattern::Exact(exact) => (&mut self.exact, exact),
        };
        let Some(list) = map.get_mut(text) else { return };
        remove_candidate(list, candidate);
        if list.is_empty() {
            map.remove(text);
        }
    }
}

fn remove_candidate(list: &mut Candidates, candidate: Candidate) {
    if let Ok(place) = list.binary_search(&candidate) {
        list.remove(place);
    }
}

/// Takes the candidates of a hook from the front of a list.
fn take_hook<'a>(list: &mut &'a [Candidate], hook: HookId) -> &'a [Candidate] {
    let end = list.iter().take_while(|candidate| candidate.hook == hook).count();
    let (run, rest) = list.split_at(end);
    *list = rest;
    run
}
