//! Accepting events: deduplication, positions, rows, routing; inside the
//! writer's transaction.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Result};
use smallvec::SmallVec;

use super::{
    effects::{Effects, TallyDelta},
    maintenance,
    recent::{self, Remembered},
    rows::{self, DedupKey, EventColumns},
    space::Room,
    writer::State,
};
use crate::{
    event::{Event, Pos, StoreTime},
    store::{AcceptError, Accepted, HookId, INLINE_TARGETS_MAX, NewEvent, News, OwedRow, RouteKey, Router, Target},
};

/// An event with what was computed before the writer had it.
pub(super) struct Prepared {
    pub(super) event: NewEvent,
    /// See [`rows::head_text`].
    pub(super) head: Option<String>,
    /// None if the publisher gave no id.
    pub(super) dedup: Option<DedupKey>,
}

/// What a transaction adds to `bucket` and `bucket_ns`: written once at its end.
#[derive(Default)]
pub(super) struct Added {
    /// By bucket: times and sizes.
    buckets: HashMap<i64, BucketAdded>,
    /// By bucket and namespace: events and bytes.
    namespaces: HashMap<(i64, i64), (i64, i64)>,
}

struct BucketAdded {
    first_at: i64,
    last_at: i64,
    first_wall: i64,
    last_wall: i64,
    events: i64,
    bytes: i64,
}

/// One transaction's accepts.
pub(super) struct Accept<'a> {
    pub(super) db: &'a Connection,
    pub(super) state: &'a mut State,
    pub(super) router: &'a dyn Router,
    pub(super) room: &'a mut Room,
    pub(super) at: StoreTime,
    pub(super) wall_ms: i64,
    pub(super) effects: &'a mut Effects,
    pub(super) added: Added,
    /// An event has more targets than are written at once.
    pub(super) has_scans: bool,
}

impl Accept<'_> {
    /// Accepts a batch as a whole. The inner error is the publisher's, the outer
    /// one ends the store.
    pub(super) fn batch(&mut self, events: Vec<Prepared>) -> Result<std::result::Result<Vec<Accepted>, AcceptError>> {
        let mut namespaces = SmallVec::<[i64; 4]>::new();
        for prepared in &events {
            let ns = self.namespace(&prepared.event)?;
            if !self.room.take(ns, &prepared.event.namespace_uid, prepared.bytes()) {
                for (ns, taken) in namespaces.iter().zip(&events) {
                    self.room.give_back(*ns, taken.bytes());
                }
                return Ok(Err(AcceptError::Full));
            }
            namespaces.push(ns);
        }
        let mut verdicts = Vec::with_capacity(events.len());
        for (prepared, ns) in events.into_iter().zip(namespaces) {
            verdicts.push(self.event(prepared, ns)?);
        }
        Ok(Ok(verdicts))
    }

    fn event(&mut self, prepared: Prepared, ns: i64) -> Result<Accepted> {
        if let Some(dedup) = &prepared.dedup {
            if let Some(verdict) = self.known(dedup)? {
                self.room.give_back(ns, prepared.bytes());
                return Ok(verdict);
            }
            self.state.ids.remember(dedup, recent::bucket_of(self.at), self.state.next);
        }
        let pos = self.state.next;
        self.state.next = Pos(pos.0 + 1);
        self.insert(&prepared, ns, pos)?;
        let id = self.state.epochs.id(pos, self.wall_ms);
        let targets = self.route(&prepared.event, ns, pos)?;
        if !targets.is_empty() {
            let NewEvent { namespace, namespace_uid, head, data } = prepared.event;
            let accepted = rows::timestamp(self.wall_ms);
            let event = Event { id, at: self.at, accepted, namespace, namespace_uid, head, data };
            self.effects.news.push(News::Owed { pos, event: Some(Arc::new(event)), targets });
        }
        Ok(Accepted::New(id))
    }

    /// The number of a namespace. One that is gone is never remembered: its
    /// number ends with the purge.
    fn namespace(&mut self, event: &NewEvent) -> Result<i64> {
        if let Some(ns) = self.state.namespaces.get(&event.namespace_uid) {
            return Ok(*ns);
        }
        let (ns, is_gone) = namespace(self.db, &event.namespace_uid, &event.namespace)?;
        if !is_gone {
            self.state.namespaces.insert(event.namespace_uid.clone(), ns);
        }
        Ok(ns)
    }

    /// The verdict for a publisher's id that came before, within the window.
    fn known(&self, dedup: &DedupKey) -> Result<Option<Accepted>> {
        let first = recent::first_bucket(self.at, self.state.limits.deduplication);
        let Some(Remembered { pos, digest, .. }) = self.state.ids.known(self.db, &dedup.key, first)? else {
            return Ok(None);
        };
        let mut wall = self.db.prepare_cached("SELECT wall FROM event WHERE seq = ?1")?;
        // Retention may be shorter than the window: such an event is new.
        let wall: Option<i64> = wall.query_row([rows::seq_of(pos)], |row| row.get(0)).optional()?;
        let id = wall.map(|wall_ms| self.state.epochs.id(pos, wall_ms));
        Ok(id.map(|id| if digest == dedup.digest { Accepted::Duplicate(id) } else { Accepted::Conflict(id) }))
    }

    fn insert(&mut self, prepared: &Prepared, ns: i64, pos: Pos) -> Result<()> {
        let head = &prepared.event.head;
        let row = EventColumns {
            seq: rows::seq_of(pos),
            at: self.at.0,
            wall: self.wall_ms,
            ns,
            event_type: &head.event_type,
            source: &head.source,
            head: prepared.head.as_deref(),
            body: &prepared.event.data,
        };
        let mut insert = self.db.prepare_cached(
            "INSERT INTO event (seq, at, wall, ns, type, source, head, crc, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        let crc = row.crc();
        insert.execute((row.seq, row.at, row.wall, ns, row.event_type, row.source, row.head, crc, row.body))?;
        self.added.count(rows::bucket_of(pos), ns, self.at.0, self.wall_ms, prepared.bytes());
        Ok(())
    }

    /// Writes who gets the event, or a scan that will: because they are many, or
    /// because an older event of its ordering key waits for its own scan.
    fn route(&mut self, event: &NewEvent, ns: i64, pos: Pos) -> Result<SmallVec<[Target; 4]>> {
        let key = RouteKey {
            namespace_uid: &event.namespace_uid,
            event_type: &event.head.event_type,
            source: &event.head.source,
        };
        self.state.targets.clear();
        let order = event.head.key.as_deref().map(rows::order_key);
        let has_more = self.router.route(pos, key, HookId::default(), INLINE_TARGETS_MAX, &mut self.state.targets);
        let ordered = order.filter(|_| self.state.targets.iter().any(|target| target.is_ordered));
        let is_behind = |order| maintenance::stands_behind_fan_out(self.db, ns, order);
        if has_more || ordered.map_or(Ok(false), is_behind)? {
            self.has_scans = true;
            maintenance::begin_fan_out(self.db, pos, (ns, order), (self.at, self.wall_ms))?;
            return Ok(SmallVec::new());
        }
        for target in &self.state.targets {
            let key = order.filter(|_| target.is_ordered);
            rows::insert_owed(self.db, target.hook, &OwedRow { pos, sub: target.sub, key, tries: 0, shape: None })?;
            self.effects.deltas.push(TallyDelta { hook: target.hook, pending: 1, ..TallyDelta::default() });
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.state.first_buckets.entry(target.hook) {
                let bucket = rows::bucket_of(pos);
                rows::lower_first_bucket(self.db, target.hook, bucket)?;
                vacant.insert(bucket);
            }
        }
        self.effects.totals.routed += i64::try_from(self.state.targets.len()).unwrap_or_default();
        Ok(SmallVec::from_slice(&self.state.targets))
    }
}

impl Prepared {
    /// Bytes that count against limits.
    fn bytes(&self) -> u64 {
        let head = &self.event.head;
        let texts = head.event_type.len() + head.source.len() + self.head.as_ref().map_or(0, String::len);
        (texts + self.event.data.len()) as u64
    }
}

impl Added {
    fn count(&mut self, bucket: i64, ns: i64, at: i64, wall: i64, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or_default();
        let added = self.buckets.entry(bucket).or_insert_with(|| BucketAdded {
            first_at: at,
            last_at: at,
            first_wall: wall,
            last_wall: wall,
            events: 0,
            bytes: 0,
        });
        added.events += 1;
        added.bytes += bytes;
        let namespace = self.namespaces.entry((bucket, ns)).or_default();
        namespace.0 += 1;
        namespace.1 += bytes;
    }

    /// Writes what was counted.
    pub(super) fn write(&self, db: &Connection) -> Result<()> {
        // Wall time may jump back: a bucket spans all that it saw.
        let mut bucket = db.prepare_cached(
            "INSERT INTO bucket (id, first_at, last_at, first_wall, last_wall, events, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (id) DO UPDATE SET
             last_at = excluded.last_at, first_wall = min(first_wall, excluded.first_wall),
             last_wall = max(last_wall, excluded.last_wall), events = events + excluded.events,
             bytes = bytes + excluded.bytes",
        )?;
        for (id, added) in &self.buckets {
            let BucketAdded { first_at, last_at, first_wall, last_wall, events, bytes } = added;
            bucket.execute((id, first_at, last_at, first_wall, last_wall, events, bytes))?;
        }
        let mut namespace = db.prepare_cached(
            "INSERT INTO bucket_ns (bucket, ns, events, bytes) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (bucket, ns) DO UPDATE SET events = events + excluded.events, bytes = bytes + excluded.bytes",
        )?;
        for ((id, ns), (events, bytes)) in &self.namespaces {
            namespace.execute((id, ns, events, bytes))?;
        }
        Ok(())
    }
}

/// The number of a namespace, which is made if it is not known, and whether the
/// namespace is gone.
pub(super) fn namespace(db: &Connection, uid: &str, name: &str) -> Result<(i64, bool)> {
    let mut upsert = db.prepare_cached(
        "INSERT INTO ns (uid, name) VALUES (?1, ?2) ON CONFLICT (uid) DO UPDATE SET name = excluded.name
         RETURNING id, gone_at IS NOT NULL",
    )?;
    upsert.query_row((uid, name), |row| Ok((row.get(0)?, row.get(1)?)))
}
