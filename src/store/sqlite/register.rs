//! What the store knows of Webhooks and Subscriptions; inside the writer's
//! transaction but for the loading.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::{accept, rows};
use crate::{
    event::{Pos, StoreTime},
    store::{
        From, HookDefinition, HookId, HookNote, HookNotes, Known, KnownHook, KnownNamespace, KnownSub, Register,
        Registered, RouteChange, SubDefinition, SubId,
    },
};

/// One transaction's registrations.
pub(super) struct Registrar<'a> {
    pub(super) db: &'a Connection,
    pub(super) now: StoreTime,
    pub(super) wall_ms: i64,
    /// The next position that will be given out.
    pub(super) next: Pos,
    /// For the router, when they are durable.
    pub(super) changes: Vec<RouteChange>,
    /// UIDs of namespaces that are gone.
    pub(super) gone: Vec<Arc<str>>,
}

impl Registrar<'_> {
    /// Takes changes over in their order.
    pub(super) fn all(&mut self, changes: &[Register]) -> Result<Vec<Registered>> {
        changes.iter().map(|change| self.one(change)).collect()
    }

    fn one(&mut self, change: &Register) -> Result<Registered> {
        match change {
            Register::Hook(hook) => self.hook(hook),
            Register::Sub(sub) => self.sub(sub),
            Register::HookGone { namespace_uid, name } => {
                let Some(id) = hook_id(self.db, namespace_uid, name)? else { return Ok(Registered::Done) };
                let mut update =
                    self.db.prepare_cached("UPDATE hook SET gone_at = coalesce(gone_at, ?2) WHERE id = ?1")?;
                update.execute((id.0, self.now.0))?;
                self.changes.push(RouteChange::HookGone(id));
                Ok(Registered::Done)
            }
            Register::SubGone { uid } => {
                let mut update = self
                    .db
                    .prepare_cached("UPDATE sub SET gone_at = coalesce(gone_at, ?2) WHERE uid = ?1 RETURNING id")?;
                let id: Option<i64> = update.query_row((uid, self.now.0), |row| row.get(0)).optional()?;
                self.changes.extend(id.map(|id| RouteChange::SubGone(SubId(id))));
                Ok(Registered::Done)
            }
            Register::NamespaceGone { uid } => {
                self.namespace_gone(uid)?;
                self.gone.push(uid.clone());
                Ok(Registered::Done)
            }
        }
    }

    fn hook(&mut self, hook: &HookDefinition) -> Result<Registered> {
        let (ns, _) = accept::namespace(self.db, &hook.namespace_uid, &hook.namespace)?;
        // A namesake of another UID takes the backlog up, but neither the circuit
        // nor the pause of its predecessor. What was withdrawn stays: the new one
        // has to be verified after it in any case.
        let mut upsert = self.db.prepare_cached(
            "INSERT INTO hook (ns, name, uid, max_age_ms, ordered, document) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (ns, name) DO UPDATE SET
             circuit = iif(uid = excluded.uid, circuit, NULL), held_until = iif(uid = excluded.uid, held_until, NULL),
             uid = excluded.uid, max_age_ms = excluded.max_age_ms, ordered = excluded.ordered,
             document = excluded.document, gone_at = NULL RETURNING id",
        )?;
        let columns = (ns, &hook.name, &hook.uid, hook.max_age_ms, hook.is_ordered, &hook.document);
        let id = HookId(upsert.query_row(columns, |row| row.get(0))?);
        self.changes.push(RouteChange::Hook { id, hook: hook.clone() });
        Ok(Registered::Hook(id))
    }

    fn sub(&mut self, sub: &SubDefinition) -> Result<Registered> {
        let Some(hook) = hook_id(self.db, &sub.namespace_uid, &sub.webhook)? else {
            return Ok(Registered::NoSuchWebhook);
        };
        let mut update = self.db.prepare_cached(
            "UPDATE sub SET hook = ?2, name = ?3, document = ?4, gone_at = NULL WHERE uid = ?1 RETURNING id, live_from",
        )?;
        let known = update.query_row((&sub.uid, hook.0, &sub.name, &sub.document), |row| {
            Ok((SubId(row.get(0)?), rows::pos_of(row.get(1)?)))
        });
        let (id, live_from) = match known.optional()? {
            Some(known) => known,
            None => (self.new_sub(hook, sub)?, self.next),
        };
        self.changes.push(RouteChange::Sub { id, hook, live_from, sub: sub.clone() });
        Ok(Registered::Sub { id, live_from })
    }

    /// First sight: what came before this position is for a scan, the rest is live.
    fn new_sub(&self, hook: HookId, sub: &SubDefinition) -> Result<SubId> {
        let from = match sub.from {
            From::Time(time) => pos_at(self.db, time, self.next)?,
            From::Earliest => earliest(self.db, self.next)?,
        };
        let from_ms = match sub.from {
            From::Time(time) => Some(time.as_millisecond()),
            From::Earliest => None,
        };
        let (from, live_from) = (rows::seq_of(from), rows::seq_of(self.next));
        let mut insert = self.db.prepare_cached(
            "INSERT INTO sub (hook, name, uid, created, from_ms, from_seq, live_from, document)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) RETURNING id",
        )?;
        let created = sub.created.as_millisecond();
        let columns = (hook.0, &sub.name, &sub.uid, created, from_ms, from, live_from, &sub.document);
        let id = SubId(insert.query_row(columns, |row| row.get(0))?);
        if from < live_from {
            let mut scan = self.db.prepare_cached(
                "INSERT INTO scan (kind, hook, sub, cursor, first, last, state, matched, reopened, begun, begun_wall)
                 VALUES ('backfill', ?1, ?2, ?3, ?3, ?4, 0, 0, 0, ?5, ?6)",
            )?;
            scan.execute((hook.0, id.0, from, live_from, self.now.0, self.wall_ms))?;
        }
        Ok(id)
    }

    fn namespace_gone(&mut self, uid: &str) -> Result<()> {
        let mut update =
            self.db.prepare_cached("UPDATE ns SET gone_at = coalesce(gone_at, ?2) WHERE uid = ?1 RETURNING id")?;
        let ns: Option<i64> = update.query_row((uid, self.now.0), |row| row.get(0)).optional()?;
        let Some(ns) = ns else { return Ok(()) };
        let mut subs = self.db.prepare_cached(
            "UPDATE sub SET gone_at = coalesce(gone_at, ?2) WHERE hook IN (SELECT id FROM hook WHERE ns = ?1)
             RETURNING id",
        )?;
        for id in subs.query_map((ns, self.now.0), |row| row.get(0))? {
            self.changes.push(RouteChange::SubGone(SubId(id?)));
        }
        let mut hooks =
            self.db.prepare_cached("UPDATE hook SET gone_at = coalesce(gone_at, ?2) WHERE ns = ?1 RETURNING id")?;
        for id in hooks.query_map((ns, self.now.0), |row| row.get(0))? {
            self.changes.push(RouteChange::HookGone(HookId(id?)));
        }
        Ok(())
    }
}

fn hook_id(db: &Connection, namespace_uid: &str, name: &str) -> Result<Option<HookId>> {
    let mut select =
        db.prepare_cached("SELECT h.id FROM hook h JOIN ns n ON n.id = h.ns WHERE n.uid = ?1 AND h.name = ?2")?;
    Ok(select.query_row((namespace_uid, name), |row| row.get(0)).optional()?.map(HookId))
}

/// The first position that is kept.
fn earliest(db: &Connection, next: Pos) -> Result<Pos> {
    let first: Option<i64> = db.prepare_cached("SELECT min(seq) FROM event")?.query_row([], |row| row.get(0))?;
    Ok(first.map_or(next, rows::pos_of))
}

/// The first position that was accepted at this wall time or later. Wall time may
/// jump back: then events from before the jump are among those behind it, which
/// is more than was asked for and never less.
pub(super) fn pos_at(db: &Connection, time: Timestamp, next: Pos) -> Result<Pos> {
    let wall = time.as_millisecond();
    let mut bucket = db.prepare_cached("SELECT id FROM bucket WHERE last_wall >= ?1 ORDER BY id LIMIT 1")?;
    let bucket: Option<i64> = bucket.query_row([wall], |row| row.get(0)).optional()?;
    let Some(bucket) = bucket else { return Ok(next) };
    let mut event = db.prepare_cached("SELECT seq FROM event WHERE seq >= ?1 AND wall >= ?2 ORDER BY seq LIMIT 1")?;
    let first = bucket << super::effects::BUCKET_SHIFT;
    let seq: Option<i64> = event.query_row((first, wall), |row| row.get(0)).optional()?;
    Ok(seq.map_or(next, rows::pos_of))
}

/// Keeps a note on a hook.
pub(super) fn note(db: &Connection, hook: HookId, note: &HookNote) -> Result<()> {
    match note {
        HookNote::Circuit(circuit) => {
            db.prepare_cached("UPDATE hook SET circuit = ?2 WHERE id = ?1")?.execute((hook.0, circuit.as_deref()))?
        }
        HookNote::Withdrawn(time) => db
            .prepare_cached("UPDATE hook SET withdrawn = max(coalesce(withdrawn, 0), ?2) WHERE id = ?1")?
            .execute((hook.0, time.as_millisecond()))?,
        HookNote::HeldUntil(until) => db
            .prepare_cached("UPDATE hook SET held_until = ?2 WHERE id = ?1")?
            .execute((hook.0, until.map(|until| until.0)))?,
    };
    Ok(())
}

/// Everything of namespaces that are not gone; `pending` tells what a hook owes,
/// which no table says.
pub(super) fn known(db: &Connection, pending: impl Fn(HookId) -> u64) -> Result<Known> {
    let mut hooks = db.prepare_cached(
        "SELECT h.id, n.name, n.uid, h.name, h.uid, h.max_age_ms, h.ordered, h.document, h.gone_at, h.circuit,
         h.withdrawn, h.held_until FROM hook h JOIN ns n ON n.id = h.ns WHERE n.gone_at IS NULL ORDER BY h.id",
    )?;
    let mut subs = db.prepare_cached(
        "SELECT s.id, s.hook, s.live_from, n.uid, h.name, s.name, s.uid, s.created, s.from_ms, s.document
         FROM sub s JOIN hook h ON h.id = s.hook JOIN ns n ON n.id = h.ns
         WHERE s.gone_at IS NULL AND n.gone_at IS NULL ORDER BY s.id",
    )?;
    Ok(Known {
        hooks: hooks.query_map([], |row| known_hook(row, &pending))?.collect::<Result<_>>()?,
        subs: subs.query_map([], known_sub)?.collect::<Result<_>>()?,
    })
}

fn known_hook(row: &Row<'_>, pending: impl Fn(HookId) -> u64) -> Result<KnownHook> {
    let id = HookId(row.get(0)?);
    Ok(KnownHook {
        id,
        hook: HookDefinition {
            namespace: row.get(1)?,
            namespace_uid: row.get(2)?,
            name: row.get(3)?,
            uid: row.get(4)?,
            max_age_ms: row.get(5)?,
            is_ordered: row.get(6)?,
            document: row.get(7)?,
        },
        gone_at: row.get::<_, Option<i64>>(8)?.map(StoreTime),
        notes: HookNotes {
            circuit: row.get(9)?,
            withdrawn: row.get::<_, Option<i64>>(10)?.map(rows::timestamp),
            held_until: row.get::<_, Option<i64>>(11)?.map(StoreTime),
        },
        pending: pending(id),
    })
}

/// Namespaces that are not gone.
pub(super) fn namespaces(db: &Connection) -> Result<Vec<KnownNamespace>> {
    let mut select = db.prepare_cached("SELECT name, uid FROM ns WHERE gone_at IS NULL ORDER BY uid")?;
    let rows = select.query_map([], |row| Ok(KnownNamespace { name: row.get(0)?, uid: row.get(1)? }))?;
    rows.collect()
}

fn known_sub(row: &Row<'_>) -> Result<KnownSub> {
    Ok(KnownSub {
        id: SubId(row.get(0)?),
        hook: HookId(row.get(1)?),
        live_from: rows::pos_of(row.get(2)?),
        sub: SubDefinition {
            namespace_uid: row.get(3)?,
            webhook: row.get(4)?,
            name: row.get(5)?,
            uid: row.get(6)?,
            created: rows::timestamp(row.get(7)?),
            from: row.get::<_, Option<i64>>(8)?.map_or(From::Earliest, |ms| From::Time(rows::timestamp(ms))),
            document: row.get(9)?,
        },
    })
}

/// What a router is told at a start.
pub(super) fn route_changes(known: Known) -> Vec<RouteChange> {
    let hooks = known.hooks.into_iter().filter(|known| known.gone_at.is_none());
    let hooks = hooks.map(|KnownHook { id, hook, .. }| RouteChange::Hook { id, hook });
    let subs = known.subs.into_iter();
    let subs = subs.map(|KnownSub { id, hook, live_from, sub }| RouteChange::Sub { id, hook, live_from, sub });
    hooks.chain(subs).collect()
}
