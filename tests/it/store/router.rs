//! A router for tests: the document of a Subscription is the pattern of types
//! that it wants (`a.b`, `a.*`, `*`).

use std::collections::BTreeMap;

use posthorn::{
    event::Pos,
    store::{HookDefinition, HookId, RouteChange, RouteKey, Router, SubDefinition, SubId, Target},
};

#[derive(Default)]
pub struct PatternRouter {
    hooks: BTreeMap<HookId, HookDefinition>,
    subs: BTreeMap<SubId, Served>,
}

struct Served {
    hook: HookId,
    live_from: Pos,
    sub: SubDefinition,
}

impl Served {
    fn matches(&self, event: RouteKey<'_>) -> bool {
        *self.sub.namespace_uid == *event.namespace_uid && matches(&self.sub.document, event.event_type)
    }
}

fn matches(pattern: &str, event_type: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => event_type.starts_with(prefix),
        None => event_type == pattern,
    }
}

impl Router for PatternRouter {
    fn route(&self, pos: Pos, event: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool {
        let mut oldest = BTreeMap::<HookId, (SubId, &SubDefinition)>::new();
        let served = |s: &Served| s.hook > after && s.live_from <= pos && s.matches(event);
        for (&id, served) in self.subs.iter().filter(|(_, s)| served(s) && self.hooks.contains_key(&s.hook)) {
            let best = oldest.entry(served.hook).or_insert((id, &served.sub));
            if (served.sub.created, &served.sub.name) < (best.1.created, &best.1.name) {
                *best = (id, &served.sub);
            }
        }
        let more = oldest.len() > limit;
        targets.extend(oldest.into_iter().take(limit).map(|(hook, (sub, _))| Target {
            hook,
            sub,
            is_ordered: self.hooks[&hook].is_ordered,
        }));
        more
    }

    fn wants(&self, sub: SubId, event: RouteKey<'_>) -> bool {
        self.subs.get(&sub).is_some_and(|s| s.matches(event))
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        for change in changes {
            match change.clone() {
                RouteChange::Hook { id, hook } => {
                    self.hooks.insert(id, hook);
                }
                RouteChange::Sub { id, hook, live_from, sub } => {
                    self.subs.insert(id, Served { hook, live_from, sub });
                }
                RouteChange::HookGone(id) => {
                    self.hooks.remove(&id);
                }
                RouteChange::SubGone(id) => {
                    self.subs.remove(&id);
                }
            }
        }
    }
}
