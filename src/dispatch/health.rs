//! How endpoints do, for their statuses: the newest view of each hook with a
//! revision, so that a reader asks for what changed and never for everything.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::HookHealth;
use crate::store::HookId;

/// Hooks whose view changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HealthPage {
    /// The newest view of each, oldest change first.
    pub entries: Vec<HookHealth>,
    /// Ask again with this.
    pub revision: u64,
    /// More wait behind these.
    pub more: bool,
}

/// The newest view of every hook that was ever tried.
#[derive(Debug)]
pub(super) struct HealthBoard {
    entries: Mutex<Entries>,
    revision: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Entries {
    revision: u64,
    by_hook: HashMap<HookId, (u64, HookHealth)>,
    by_revision: BTreeMap<u64, HookId>,
}

impl HealthBoard {
    pub(super) fn new() -> Self {
        Self { entries: Mutex::default(), revision: watch::Sender::new(0) }
    }

    /// Takes changes in; of several for one hook the last one counts.
    pub(super) fn put(&self, changes: impl IntoIterator<Item = HookHealth>) {
        let mut entries = self.lock();
        let before = entries.revision;
        for health in changes {
            entries.revision += 1;
            let revision = entries.revision;
            let hook = health.hook;
            if let Some((old, _)) = entries.by_hook.insert(hook, (revision, health)) {
                entries.by_revision.remove(&old);
            }
            entries.by_revision.insert(revision, hook);
        }
        let revision = entries.revision;
        drop(entries);
        if revision != before {
            self.revision.send_replace(revision);
        }
    }

    /// Forgets a hook that is gone.
    pub(super) fn remove(&self, hook: HookId) {
        let mut entries = self.lock();
        if let Some((revision, _)) = entries.by_hook.remove(&hook) {
            entries.by_revision.remove(&revision);
        }
    }

    pub(super) fn get(&self, hook: HookId) -> Option<HookHealth> {
        self.lock().by_hook.get(&hook).map(|(_, health)| health.clone())
    }

    pub(super) fn page(&self, after: u64, limit: usize) -> HealthPage {
        let entries = self.lock();
        let behind = after.saturating_add(1);
        let changed = entries.by_revision.range(behind..).take(limit).filter_map(|(_, hook)| {
            let (revision, health) = entries.by_hook.get(hook)?;
            Some((*revision, health.clone()))
        });
        let (revisions, page): (Vec<u64>, Vec<HookHealth>) = changed.unzip();
        let last = revisions.last().copied();
        let more = last.is_some_and(|last| entries.by_revision.range(last.saturating_add(1)..).next().is_some());
        HealthPage { entries: page, revision: last.unwrap_or(after.max(entries.revision)), more }
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Plain data: a panic elsewhere cannot leave it half changed.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::dispatch::HealthView;

    fn health(hook: i64) -> HookHealth {
        HookHealth { hook: HookId(hook), view: HealthView::Healthy, since: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn a_reader_gets_each_change_once_and_only_the_newest_of_a_hook() {
        let board = HealthBoard::new();
        board.put([health(1), health(2), health(1)]);
        let page = board.page(0, 10);
        assert_eq!(page.entries, [health(2), health(1)]);
        assert!(!page.more);
        assert_eq!(board.page(page.revision, 10).entries, []);
        board.put([health(3)]);
        assert_eq!(board.page(page.revision, 10).entries, [health(3)]);
        assert_eq!(*board.changes().borrow(), 4);
    }

    #[test]
    fn pages_are_cut_at_their_limit_and_lose_nothing() {
        let board = HealthBoard::new();
        board.put((0..5).map(health));
        let first = board.page(0, 2);
        assert!(first.more && first.entries.len() == 2);
        let second = board.page(first.revision, 10);
        assert_eq!(second.entries, [health(2), health(3), health(4)]);
        board.remove(HookId(1));
        assert_eq!(board.page(0, 10).entries.len(), 4);
        assert_eq!(board.get(HookId(1)), None);
    }
}
