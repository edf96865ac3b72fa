//! How full the store is, in all and by namespace.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rusqlite::{Connection, Result};

use super::{open::PAGE_BYTES, volume::VolumeRoom};
use crate::store::{Space, StoreLimits};

/// Part of the store's size that is kept free of events: outcomes of what is
/// owed always fit.
const MARGIN_PART: u64 = 8;
/// Bytes of that margin at most.
const MARGIN_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes that an event takes on disk beside its own: rows, keys, and what its
/// first attempts leave.
const EVENT_DISK_BYTES: u64 = 1024;

/// Fullness of the store above which it evicts, in percent of its size.
const EVICT_PERCENT: u64 = 85;
/// Bytes that are kept free for events by evicting, so that the largest batch
/// fits: twice what one takes.
const EVICT_GAP_BYTES: u64 = 20 * 1024 * 1024;

/// Bytes in use above which a store of this size evicts: below those at which it
/// takes nothing more, by as much as a batch may need. A store too small for that
/// evicts when it is half full.
pub(super) fn evict_above(size_bytes: u64) -> u64 {
    let gap = (size_bytes - margin(size_bytes)).saturating_sub(EVICT_GAP_BYTES);
    (size_bytes / 100 * EVICT_PERCENT).min(gap).max(size_bytes / 2)
}

/// How much room is left for what comes with outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum History {
    /// Attempts and their detail are kept.
    Full,
    /// Attempts are kept, without detail.
    NoDetail,
    /// Only what becomes of Deliveries is kept.
    Nothing,
}

/// What readers of the fullness see.
#[derive(Default)]
pub(super) struct Usage {
    used: AtomicU64,
    /// Bytes beyond which no event is accepted.
    events_max: AtomicU64,
    namespace_max: AtomicU64,
    namespaces: RwLock<HashMap<Arc<str>, Arc<AtomicU64>>>,
}

impl Usage {
    /// The public answer.
    pub(super) fn space(&self, namespace_uid: &str) -> Space {
        let namespaces = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = namespaces.get(namespace_uid).map_or(0, |bytes| bytes.load(Ordering::Relaxed));
        if bytes >= self.namespace_max.load(Ordering::Relaxed) {
            Space::NamespaceFull
        } else if self.used.load(Ordering::Relaxed) + EVENT_DISK_BYTES > self.events_max.load(Ordering::Relaxed) {
            Space::StoreFull
        } else {
            Space::Free
        }
    }

    fn publish(&self, uid: &Arc<str>, bytes: u64) {
        let known = self.namespaces.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned();
        match known {
            Some(known) => known.store(bytes, Ordering::Relaxed),
            None => {
                let mut namespaces = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
                namespaces.insert(uid.clone(), Arc::new(AtomicU64::new(bytes)));
            }
        }
    }

    /// Forgets a namespace.
    fn forget(&self, uid: &str) {
        self.namespaces.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// The writer's own account.
pub(super) struct Room {
    usage: Arc<Usage>,
    size_bytes: u64,
    events_max: u64,
    namespace_max: u64,
    used: u64,
    /// What this transaction has taken so far, roughly.
    taken: u64,
    volume: VolumeRoom,
    /// By number: UID and bytes of events.
    namespaces: HashMap<i64, (Arc<str>, u64)>,
    /// Bytes before this transaction of namespaces that it changed; none: it is the
    /// first to know of it.
    before: HashMap<i64, Option<u64>>,
    /// Numbers whose bytes are to be published.
    changed: Vec<i64>,
}

impl Room {
    /// Counts what is there.
    pub(super) fn load(db: &Connection, usage: Arc<Usage>, limits: &StoreLimits) -> Result<Self> {
        let mut room = Self {
            usage,
            size_bytes: 0,
            events_max: 0,
            namespace_max: 0,
            used: 0,
            taken: 0,
            volume: VolumeRoom { for_events: true, database: u64::MAX, kept: 0 },
            namespaces: HashMap::new(),
            before: HashMap::new(),
            changed: Vec::new(),
        };
        let mut select =
            db.prepare("SELECT b.ns, n.uid, sum(b.bytes) FROM bucket_ns b JOIN ns n ON n.id = b.ns GROUP BY b.ns")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let (ns, uid, bytes): (i64, Arc<str>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            room.namespaces.insert(ns, (uid, u64::try_from(bytes).unwrap_or_default()));
            room.changed.push(ns);
        }
        room.configure(db, limits)?;
        room.committed(db)?;
        Ok(room)
    }

    /// Takes over limits. The database itself never grows beyond its size.
    pub(super) fn configure(&mut self, db: &Connection, limits: &StoreLimits) -> Result<()> {
        self.size_bytes = limits.size_bytes;
        self.events_max = limits.size_bytes - margin(limits.size_bytes);
        self.namespace_max = limits.namespace_bytes.unwrap_or(u64::MAX);
        self.usage.events_max.store(self.events_max(), Ordering::Relaxed);
        self.usage.namespace_max.store(self.namespace_max, Ordering::Relaxed);
        let pages = i64::try_from(limits.size_bytes / PAGE_BYTES).unwrap_or(i64::MAX);
        db.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
    }

    /// Takes over what the volume has room for.
    pub(super) fn look_at(&mut self, volume: VolumeRoom) {
        self.volume = volume;
        self.usage.events_max.store(self.events_max(), Ordering::Relaxed);
    }

    /// Bytes that may be in use with an event that is accepted.
    fn events_max(&self) -> u64 {
        let VolumeRoom { for_events, database, kept } = self.volume;
        if for_events { self.events_max.min(database.saturating_sub(kept)) } else { 0 }
    }

    /// Bytes in use as of the last commit.
    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    /// Takes room for an event; false if there is none.
    pub(super) fn take(&mut self, ns: i64, uid: &Arc<str>, bytes: u64) -> bool {
        let events_max = self.events_max();
        self.before.entry(ns).or_insert_with(|| self.namespaces.get(&ns).map(|(_, bytes)| *bytes));
        let namespace = self.namespaces.entry(ns).or_insert_with(|| (uid.clone(), 0));
        let taken = self.taken + bytes + EVENT_DISK_BYTES;
        if namespace.1 + bytes > self.namespace_max || self.used + taken > events_max {
            return false;
        }
        self.taken = taken;
        namespace.1 += bytes;
        self.changed.push(ns);
        true
    }

    /// Gives room back that was taken in this transaction.
    pub(super) fn give_back(&mut self, ns: i64, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes + EVENT_DISK_BYTES);
        self.free(&[(ns, bytes)]);
    }

    /// What of an outcome may be kept.
    pub(super) fn history(&self) -> History {
        let left = |of: u64| of.saturating_sub(self.used + self.taken);
        let (in_all, on_volume) = (left(self.size_bytes), left(self.volume.database));
        let (margin, kept) = (margin(self.size_bytes), self.volume.kept);
        match () {
            () if in_all < margin / 4 || on_volume < kept / 2 => History::Nothing,
            () if in_all < margin / 2 || on_volume < kept => History::NoDetail,
            () => History::Full,
        }
    }

    /// Everything that this transaction has taken is free again.
    pub(super) fn rolled_back(&mut self) {
        self.taken = 0;
        for (ns, before) in self.before.drain() {
            match (before, self.namespaces.get_mut(&ns)) {
                (Some(bytes), Some(namespace)) => namespace.1 = bytes,
                // Its number may be another's with the next transaction.
                _ => drop(self.namespaces.remove(&ns)),
            }
        }
    }

    /// Gives bytes of events back.
    pub(super) fn free(&mut self, freed: &[(i64, u64)]) {
        for (ns, bytes) in freed {
            if let Some(namespace) = self.namespaces.get_mut(ns) {
                namespace.1 = namespace.1.saturating_sub(*bytes);
                self.changed.push(*ns);
            }
        }
    }

    /// Measures again after a commit, and publishes.
    pub(super) fn committed(&mut self, db: &Connection) -> Result<()> {
        let number = |pragma| db.prepare_cached(pragma)?.query_row([], |row| row.get::<_, i64>(0));
        let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
        self.used = u64::try_from(pages).unwrap_or_default() * PAGE_BYTES;
        self.taken = 0;
        self.before.clear();
        self.usage.used.store(self.used, Ordering::Relaxed);
        self.changed.sort_unstable();
        self.changed.dedup();
        for ns in self.changed.drain(..) {
            if let Some((uid, bytes)) = self.namespaces.get(&ns) {
                self.usage.publish(uid, *bytes);
            }
        }
        Ok(())
    }

    /// Forgets a namespace that is gone; its bytes no longer matter to anybody.
    pub(super) fn forget(&mut self, uid: &str) {
        self.namespaces.retain(|_, (known, _)| &**known != uid);
        self.usage.forget(uid);
    }
}

fn margin(size_bytes: u64) -> u64 {
    (size_bytes / MARGIN_PART).min(MARGIN_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(size_bytes: u64, namespace_bytes: Option<u64>, used: u64) -> Room {
        let mut room = Room {
            usage: Arc::new(Usage::default()),
            size_bytes: 0,
            events_max: 0,
            namespace_max: 0,
            used,
            taken: 0,
            volume: VolumeRoom { for_events: true, database: u64::MAX, kept: 0 },
            namespaces: HashMap::new(),
            before: HashMap::new(),
            changed: Vec::new(),
        };
        let db = Connection::open_in_memory().unwrap();
        room.configure(&db, &StoreLimits { size_bytes, namespace_bytes, ..StoreLimits::default() }).unwrap();
        room.usage.used.store(used, Ordering::Relaxed);
        room
    }

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn events_fit_up_to_the_margin_and_history_gives_way_before_outcomes_do() {
        let check = |used, fits, expected| {
            let mut room = room(800 * MIB, None, used);
            assert_eq!(room.history(), expected, "history with {used} bytes used");
            assert_eq!(room.usage.space("a") == Space::Free, fits, "space with {used} bytes used");
            assert_eq!(room.take(1, &"a".into(), 0), fits, "{used} bytes used");
        };
        check(0, true, History::Full);
        check(700 * MIB - EVENT_DISK_BYTES, true, History::Full);
        check(700 * MIB - EVENT_DISK_BYTES + 1, false, History::Full);
        check(750 * MIB, false, History::Full);
        check(750 * MIB + 1, false, History::NoDetail);
        check(775 * MIB + 1, false, History::Nothing);
        check(900 * MIB, false, History::Nothing);
    }

    #[test]
    fn a_store_evicts_before_it_refuses_the_largest_batch() {
        assert_eq!(evict_above(10_000 * MIB), 8_500 * MIB);
        let smallest = 230 * MIB;
        let room = room(smallest, None, 0);
        assert_eq!(room.events_max - evict_above(smallest), EVICT_GAP_BYTES);
        assert_eq!(evict_above(8 * MIB), 4 * MIB);
    }

    #[test]
    fn what_the_volume_cannot_hold_is_not_accepted_nor_is_its_history_kept() {
        let volume = |for_events, database| VolumeRoom { for_events, database, kept: 8 * MIB };
        let check = |used, volume, fits, expected| {
            let mut room = room(800 * MIB, None, used);
            room.look_at(volume);
            assert_eq!(room.history(), expected, "history with {used} bytes used of {volume:?}");
            assert_eq!(room.usage.space("a") == Space::Free, fits, "space with {used} bytes used of {volume:?}");
            assert_eq!(room.take(1, &"a".into(), 0), fits, "{used} bytes used of {volume:?}");
        };
        check(0, volume(true, 100 * MIB), true, History::Full);
        check(0, volume(false, 100 * MIB), false, History::Full);
        check(92 * MIB - EVENT_DISK_BYTES, volume(true, 100 * MIB), true, History::Full);
        check(92 * MIB - EVENT_DISK_BYTES + 1, volume(true, 100 * MIB), false, History::Full);
        check(92 * MIB + 1, volume(true, 100 * MIB), false, History::NoDetail);
        check(96 * MIB + 1, volume(true, 100 * MIB), false, History::Nothing);
    }

    #[test]
    fn a_transaction_that_is_rolled_back_has_taken_nothing() {
        let mut room = room(800 * MIB, Some(1_000), 0);
        let db = Connection::open_in_memory().unwrap();
        assert!(room.take(1, &"a".into(), 600));
        room.committed(&db).unwrap();
        assert!(room.take(1, &"a".into(), 300) && room.take(2, &"b".into(), 300) && room.take(1, &"a".into(), 50));
        room.rolled_back();
        assert_eq!((room.taken, room.namespaces.get(&1).map(|known| known.1)), (0, Some(600)));
        // The number that the namespace would have had is another's.
        assert!(room.take(2, &"c".into(), 1_000));
        room.committed(&db).unwrap();
        assert_eq!((room.usage.space("b"), room.usage.space("c")), (Space::Free, Space::NamespaceFull));
    }

    #[test]
    fn a_namespace_at_its_limit_is_refused_and_another_is_not() {
        let mut room = room(800 * MIB, Some(1_000), 0);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert!(room.take(1, &a, 600));
        assert!(!room.take(1, &a, 401));
        assert!(room.take(1, &a, 400));
        assert!(room.take(2, &b, 1_000));
        room.give_back(1, 400);
        assert!(room.take(1, &a, 400));
        let db = Connection::open_in_memory().unwrap();
        room.committed(&db).unwrap();
        assert_eq!((room.usage.space("a"), room.usage.space("c")), (Space::NamespaceFull, Space::Free));
        room.free(&[(1, 1)]);
        room.committed(&db).unwrap();
        assert_eq!(room.usage.space("a"), Space::Free);
        room.forget("b");
        assert_eq!(room.usage.space("b"), Space::Free);
    }
}
