//! Counters of hooks: in memory, exact after a crash.
//!
//! Writing a hook's row with every outcome would touch as many pages as there are
//! hooks. Instead each commit appends its changes to `tally_log`, and every few
//! seconds the rows of hooks that changed are written, some with each commit. A
//! row names the last entry of the log that is in it (`mark`), so a start adds
//! just the entries behind it. When all rows of a round are written, the log up
//! to the round's begin is removed.
//!
//! # An entry of the log
//! 34 bytes a hook, little endian: hook (8), changes of delivered, failed,
//! pending, dead (4 each), wall time of the last attempt (8; 0: none was made),
//! its status code (2).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OptionalExtension, Result};

use super::{
    effects::{LastAttempt, TallyDelta, TotalsDelta},
    rows::part,
};
use crate::{
    event::{Pos, StoreTime},
    store::{DiscardReason, HookId, Tally, TallyPage, TallyRevision},
};

/// Milliseconds between rounds.
const ROUND_EVERY_MS: i64 = 5_000;
/// Rows that a transaction writes at most.
const ROUND_ROWS_MAX: usize = 256;
/// Bytes of a hook in an entry.
const ENTRY_BYTES: usize = 34;
/// Buckets that a hook's first one may lie behind before it is looked for.
const FIRST_BUCKET_LAG: i64 = 2;

#[derive(Default)]
struct Counters {
    tallies: HashMap<HookId, (Tally, TallyRevision)>,
    order: BTreeMap<TallyRevision, HookId>,
    revision: TallyRevision,
}

/// Counters that everybody reads and the writer changes.
#[derive(Clone, Default)]
pub(super) struct Tallies(Arc<Mutex<Counters>>);

impl Tallies {
    fn lock(&self) -> MutexGuard<'_, Counters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hooks that changed since `after`, oldest change first.
    pub(super) fn page(&self, after: TallyRevision, limit: usize) -> TallyPage {
        let counters = self.lock();
        let behind = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut changes = counters.order.range(behind);
        let mut page = TallyPage { revision: after, ..TallyPage::default() };
        for (revision, hook) in changes.by_ref().take(limit) {
            page.tallies.extend(counters.tallies.get(hook).map(|(tally, _)| *tally));
            page.revision = *revision;
        }
        page.more = changes.next().is_some();
        page
    }

    /// Deliveries of a hook that are pending.
    pub(super) fn pending(&self, hook: HookId) -> u64 {
        self.lock().tallies.get(&hook).map_or(0, |(tally, _)| tally.pending)
    }

    /// The counters of a hook.
    pub(super) fn get(&self, hook: HookId) -> Tally {
        self.lock().tallies.get(&hook).map_or(Tally { hook, ..Tally::default() }, |(tally, _)| *tally)
    }

    fn apply(&self, deltas: &[TallyDelta]) {
        let mut counters = self.lock();
        let counters = &mut *counters;
        for delta in deltas {
            counters.revision.0 += 1;
            let fresh = || (Tally { hook: delta.hook, ..Tally::default() }, TallyRevision::default());
            let (tally, revision) = counters.tallies.entry(delta.hook).or_insert_with(fresh);
            add(tally, delta);
            counters.order.remove(revision);
            *revision = counters.revision;
            counters.order.insert(*revision, delta.hook);
        }
    }
}

fn add(tally: &mut Tally, delta: &TallyDelta) {
    for (count, change) in [
        (&mut tally.delivered, delta.delivered),
        (&mut tally.failed, delta.failed),
        (&mut tally.pending, delta.pending),
        (&mut tally.dead, delta.dead),
    ] {
        *count = count.saturating_add_signed(change);
    }
    if let Some(last) = delta.last {
        (tally.last_ms, tally.last_code) = (last.ms, last.code);
    }
}

/// The writer's side.
pub(super) struct Ledger {
    pub(super) tallies: Tallies,
    /// The last entry of the log that is committed.
    mark: i64,
    /// Hooks that changed since their row was written.
    dirty: HashSet<HookId>,
    /// Hooks of the round that is under way.
    round: Vec<HookId>,
    /// Hooks of it whose row the transaction under way writes.
    written: Vec<HookId>,
    /// The log up to here is not needed after the round.
    round_mark: i64,
    next_round: StoreTime,
}

impl Ledger {
    /// Reads rows and log.
    pub(super) fn load(db: &Connection) -> Result<Self> {
        let mut marks = HashMap::new();
        let mut counters = Counters::default();
        let mut select =
            db.prepare("SELECT hook, delivered, failed, pending, dead, last_ms, last_code, mark FROM tally")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let count = |index| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(index)?).unwrap_or_default());
            let tally = Tally {
                hook: HookId(row.get(0)?),
                delivered: count(1)?,
                failed: count(2)?,
                pending: count(3)?,
                dead: count(4)?,
                last_ms: row.get(5)?,
                last_code: row.get(6)?,
            };
            marks.insert(tally.hook, row.get::<_, i64>(7)?);
            counters.revision.0 += 1;
            counters.order.insert(counters.revision, tally.hook);
            counters.tallies.insert(tally.hook, (tally, counters.revision));
        }
        let tallies = Tallies(Arc::new(Mutex::new(counters)));
        let mut ledger = Self {
            tallies,
            mark: marks.values().copied().max().unwrap_or_default(),
            dirty: HashSet::new(),
            round: Vec::new(),
            written: Vec::new(),
            round_mark: 0,
            next_round: StoreTime(0),
        };
        let mut select = db.prepare("SELECT id, changes FROM tally_log ORDER BY id")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let mut deltas = decode(row.get_ref(1)?.as_blob()?);
            deltas.retain(|delta| marks.get(&delta.hook).is_none_or(|mark| *mark < id));
            ledger.committed(&deltas, Some(id));
        }
        Ok(ledger)
    }

    /// Writes some rows if it is time; before the transaction's own changes.
    /// True if there is more to write.
    pub(super) fn write_rows(&mut self, db: &Connection, now: StoreTime, next: Pos) -> Result<bool> {
        if self.round.is_empty() {
            if self.dirty.is_empty() || now < self.next_round {
                return Ok(false);
            }
            self.round.extend(self.dirty.drain());
            // Neighbours share pages.
            self.round.sort_unstable();
            self.round_mark = self.mark;
            self.next_round = now.plus_ms(ROUND_EVERY_MS);
        }
        // What was purged has counters in memory until the next start, and no row.
        let mut upsert = db.prepare_cached(
            "INSERT OR REPLACE INTO tally (hook, delivered, failed, pending, dead, last_ms, last_code, mark)
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (SELECT 1 FROM hook WHERE id = ?1)",
        )?;
        let from = self.round.len().saturating_sub(ROUND_ROWS_MAX);
        self.written = self.round.split_off(from);
        for &hook in &self.written {
            let tally = self.tallies.get(hook);
            let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let (delivered, failed) = (number(tally.delivered), number(tally.failed));
            let (pending, dead) = (number(tally.pending), number(tally.dead));
            let (last_ms, last_code) = (tally.last_ms, tally.last_code);
            upsert.execute((hook.0, delivered, failed, pending, dead, last_ms, last_code, self.mark))?;
            raise_first_bucket(db, hook, super::rows::bucket_of(next))?;
        }
        if self.round.is_empty() {
            db.prepare_cached("DELETE FROM tally_log WHERE id <= ?1")?.execute([self.round_mark])?;
        }
        Ok(!self.round.is_empty())
    }

    /// When rows want to be written, if they do.
    pub(super) fn due(&self) -> Option<StoreTime> {
        if !self.round.is_empty() { Some(StoreTime(0)) } else { (!self.dirty.is_empty()).then_some(self.next_round) }
    }

    /// Appends a transaction's changes to the log; gives the entry's number.
    pub(super) fn append(&self, db: &Connection, deltas: &[TallyDelta]) -> Result<Option<i64>> {
        if deltas.is_empty() {
            return Ok(None);
        }
        let id = self.mark + 1;
        db.prepare_cached("INSERT INTO tally_log (id, changes) VALUES (?1, ?2)")?.execute((id, encode(deltas)))?;
        Ok(Some(id))
    }

    /// Takes changes over that are committed under this entry of the log.
    pub(super) fn committed(&mut self, deltas: &[TallyDelta], entry: Option<i64>) {
        self.written.clear();
        self.mark = entry.unwrap_or(self.mark);
        self.dirty.extend(deltas.iter().map(|delta| delta.hook));
        self.tallies.apply(deltas);
    }

    /// The transaction under way is rolled back: the rows that it wrote are of its
    /// round again.
    pub(super) fn rolled_back(&mut self) {
        self.round.append(&mut self.written);
    }
}

/// Brings a hook's first bucket up to where its oldest owed row is. Readers
/// begin there, so a hook that never falls idle must not begin at its first day.
fn raise_first_bucket(db: &Connection, hook: HookId, current: i64) -> Result<()> {
    let mut select = db.prepare_cached("SELECT first_bucket FROM hook WHERE id = ?1")?;
    let first: Option<i64> = select.query_row([hook.0], |row| row.get(0)).optional()?.flatten();
    let Some(first) = first.filter(|first| *first + FIRST_BUCKET_LAG < current) else { return Ok(()) };
    let mut oldest = db.prepare_cached(
        "SELECT b.id FROM bucket b WHERE b.id >= ?2
         AND EXISTS (SELECT 1 FROM owed o WHERE o.bucket = b.id AND o.hook = ?1) ORDER BY b.id LIMIT 1",
    )?;
    let oldest: Option<i64> = oldest.query_row((hook.0, first), |row| row.get(0)).optional()?;
    let mut update = db.prepare_cached("UPDATE hook SET first_bucket = ?2 WHERE id = ?1")?;
    update.execute((hook.0, oldest.unwrap_or(current)))?;
    Ok(())
}

/// Adds up the changes of each hook.
pub(super) fn merge(mut deltas: Vec<TallyDelta>) -> Vec<TallyDelta> {
    deltas.sort_by_key(|delta| delta.hook);
    deltas.dedup_by(|later, kept| {
        let is_same = later.hook == kept.hook;
        if is_same {
            kept.delivered += later.delivered;
            kept.failed += later.failed;
            kept.pending += later.pending;
            kept.dead += later.dead;
            kept.last = later.last.or(kept.last);
        }
        is_same
    });
    deltas
}

fn encode(deltas: &[TallyDelta]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(deltas.len() * ENTRY_BYTES);
    for delta in deltas {
        bytes.extend(delta.hook.0.to_le_bytes());
        for change in [delta.delivered, delta.failed, delta.pending, delta.dead] {
            // A transaction touches some thousand rows.
            bytes.extend(i32::try_from(change).unwrap_or_default().to_le_bytes());
        }
        let last = delta.last.unwrap_or(LastAttempt { ms: 0, code: 0 });
        bytes.extend(last.ms.to_le_bytes());
        bytes.extend(last.code.to_le_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Vec<TallyDelta> {
    let entry = |entry: &[u8]| {
        let change = |index: usize| i64::from(i32::from_le_bytes(part(entry, 8 + 4 * index)));
        let last = LastAttempt { ms: i64::from_le_bytes(part(entry, 24)), code: u16::from_le_bytes(part(entry, 32)) };
        TallyDelta {
            hook: HookId(i64::from_le_bytes(part(entry, 0))),
            delivered: change(0),
            failed: change(1),
            pending: change(2),
            dead: change(3),
            last: (last.ms != 0).then_some(last),
        }
    };
    bytes.chunks_exact(ENTRY_BYTES).map(entry).collect()
}

/// Adds to the totals what a transaction changed.
pub(super) fn write_totals(db: &Connection, delta: &TotalsDelta) -> Result<()> {
    let mut upsert =
        db.prepare_cached("INSERT INTO total (k, n) VALUES (?1, ?2) ON CONFLICT (k) DO UPDATE SET n = n + excluded.n")?;
    for (key, change) in [("routed", delta.routed), ("delivered", delta.delivered)] {
        if change != 0 {
            upsert.execute((key, change))?;
        }
    }
    for reason in DiscardReason::ALL {
        let change = delta.discarded[reason as usize];
        if change != 0 {
            upsert.execute((discarded_key(reason), change))?;
        }
    }
    Ok(())
}

/// The name of a total.
pub(super) fn discarded_key(reason: DiscardReason) -> String {
    format!("discarded:{}", reason.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_one_hook_are_added_up_and_survive_the_log() {
        let hook = HookId(7);
        let last = Some(LastAttempt { ms: 9, code: 503 });
        let merged = merge(vec![
            TallyDelta { hook, pending: 1, ..TallyDelta::default() },
            TallyDelta { hook: HookId(3), dead: -2, ..TallyDelta::default() },
            TallyDelta { hook, pending: 1, failed: 1, last, ..TallyDelta::default() },
        ]);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[1], TallyDelta { hook, pending: 2, failed: 1, last, ..TallyDelta::default() });
        assert_eq!(decode(&encode(&merged)), merged);
    }

    #[test]
    fn a_page_tells_the_newest_state_of_hooks_in_the_order_of_their_changes() {
        let tallies = Tallies::default();
        let pending = |hook| TallyDelta { hook: HookId(hook), pending: 1, ..TallyDelta::default() };
        tallies.apply(&[pending(1), pending(2), pending(1)]);
        let page = tallies.page(TallyRevision::default(), 1);
        assert_eq!((page.tallies[0].hook, page.more), (HookId(2), true));
        let page = tallies.page(page.revision, 10);
        assert_eq!((page.tallies.len(), page.tallies[0].pending, page.more), (1, 2, false));
        assert_eq!(tallies.page(page.revision, 10), TallyPage { revision: page.revision, ..TallyPage::default() });
    }
}
