//! Every Webhook of these tests wants every event.

use std::collections::BTreeMap;

use posthorn::{
    event::Pos,
    store::{HookId, RouteChange, RouteKey, Router, SubId, Target},
};

#[derive(Default)]
pub struct EverythingToEveryone(BTreeMap<HookId, SubId>);

impl Router for EverythingToEveryone {
    fn route(&self, _: Pos, _: RouteKey<'_>, after: HookId, limit: usize, targets: &mut Vec<Target>) -> bool {
        let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut hooks = self.0.range(behind).map(|(&hook, &sub)| Target { hook, sub, is_ordered: false });
        targets.extend(hooks.by_ref().take(limit));
        hooks.next().is_some()
    }

    fn wants(&self, _: SubId, _: RouteKey<'_>) -> bool {
        true
    }

    fn apply(&mut self, changes: &[RouteChange]) {
        for change in changes {
            if let RouteChange::Sub { id, hook, .. } = change {
                self.0.insert(*hook, *id);
            }
        }
    }
}
