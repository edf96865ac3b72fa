//! Fan-out of events with many targets, and backfill for new Subscriptions.
//!
//! Both move their cursor in the transaction of the rows that they write. While
//! an event waits for its fan-out nobody else writes Deliveries of it: backfills
//! stop before it and Replays wait. So the fan-out needs no look at attempts.
//!
//! # Order
//! Of one namespace and ordering key one event at a time has its fan-out, the
//! oldest first, and an event that comes meanwhile stands behind it, however few
//! targets it has, if one of them is ordered ([`stands_behind_fan_out`]). So no
//! Webhook is owed an event of a key while an older one may yet be routed to it.

use rusqlite::{Connection, OptionalExtension, Result, Row, types::ValueRef};
use smallvec::SmallVec;

use super::{
    super::{
        effects::{STEP_ROWS_MAX, Step},
        rows::{self, order_key, pos_of, seq_of},
    },
    place::{NewOwed, added, count, insert_owed, is_known},
    retention::Pins,
};
use crate::{
    event::{Pos, StoreTime},
    store::{HookId, News, OrderKey, RouteKey, StoredEvent, SubId, Target},
};

/// Events that one step of a scan reads at most: a fraction of a millisecond, which
/// publishers wait. As many steps follow as there is time for.
pub(super) const SCAN_READS_MAX: usize = 128;
/// Deliveries that one step of fan-outs writes at most: publishers wait for the
/// whole step, and each transaction has time for one.
pub(super) const FAN_ROWS_MAX: usize = 16;
/// Events whose fan-out one step goes on with at most.
const STEP_FANS_MAX: usize = 32;

/// What routing asks of an event, as it is stored.
pub(super) struct Routed {
    pub(super) seq: i64,
    pub(super) ns: i64,
    pub(super) wall: i64,
    pub(super) uid: String,
    pub(super) event_type: String,
    pub(super) source: String,
    pub(super) head: Option<String>,
}

/// Columns that [`Routed::read`] takes, of `event e` and `ns n`.
pub(super) const ROUTED_COLUMNS: &str = "e.seq, e.ns, e.wall, n.uid, e.type, e.source, e.head";

impl Routed {
    pub(super) fn read(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            seq: row.get(0)?,
            ns: row.get(1)?,
            wall: row.get(2)?,
            uid: row.get(3)?,
            event_type: text(row, 4)?.unwrap_or_default(),
            source: text(row, 5)?.unwrap_or_default(),
            head: text(row, 6)?,
        })
    }

    pub(super) fn of(db: &Connection, seq: i64) -> Result<Option<Self>> {
        db.prepare_cached(&format!("SELECT {ROUTED_COLUMNS} FROM event e JOIN ns n ON n.id = e.ns WHERE e.seq = ?1"))?
            .query_row([seq], Self::read)
            .optional()
    }

    /// Events in [from, to), at most [`SCAN_READS_MAX`].
    pub(super) fn range(db: &Connection, from: i64, to: i64) -> Result<Vec<Self>> {
        db.prepare_cached(&format!(
            "SELECT {ROUTED_COLUMNS} FROM event e JOIN ns n ON n.id = e.ns
             WHERE e.seq >= ?1 AND e.seq < ?2 ORDER BY e.seq LIMIT {SCAN_READS_MAX}"
        ))?
        .query_map((from, to), Self::read)?
        .collect()
    }

    pub(super) fn route_key(&self) -> RouteKey<'_> {
        RouteKey { namespace_uid: &self.uid, event_type: &self.event_type, source: &self.source }
    }

    /// The ordering key, for a Webhook that is ordered.
    pub(super) fn order_key(&self, is_ordered: bool) -> Option<i64> {
        let head = self.head.as_deref().filter(|_| is_ordered)?;
        let head: serde_json::Value = serde_json::from_str(head).ok()?;
        head.get("key")?.as_str().map(|key| order_key(key).0)
    }
}

/// A text of a row that may be damaged on disk. It must not end the store, nor may
/// its row be left out, since rows are counted: what is owed for it is found to be
/// corrupt when it is read to be sent.
fn text(row: &Row<'_>, index: usize) -> Result<Option<String>> {
    Ok(match row.get_ref(index)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    })
}

/// An event that waits for its fan-out.
struct Fan {
    id: i64,
    seq: i64,
    /// The last hook that was routed to.
    cursor: i64,
}

/// Begins the fan-out of an event at its accept, behind those of its namespace
/// and ordering key.
pub(in super::super) fn begin_fan_out(
    db: &Connection,
    pos: Pos,
    (ns, key): (i64, Option<OrderKey>),
    (now, wall_ms): (StoreTime, i64),
) -> Result<()> {
    let behind = key.map_or(Ok(false), |key| stands_behind_fan_out(db, ns, key))?;
    let state = if behind { BEHIND } else { READY };
    db.prepare_cached(
        "INSERT INTO scan (kind, cursor, first, last, state, matched, reopened, begun, begun_wall, ns, key)
         VALUES ('fan', 0, ?1, ?1, ?2, 0, 0, ?3, ?4, ?5, ?6)",
    )?
    .execute((seq_of(pos), state, now.0, wall_ms, ns, key.map(|key| key.0)))?;
    Ok(())
}

/// Whether an event of this namespace and ordering key waits for its fan-out: a
/// younger one must not be routed before it.
pub(in super::super) fn stands_behind_fan_out(db: &Connection, ns: i64, key: OrderKey) -> Result<bool> {
    db.prepare_cached(FAN_OF_KEY)?.query_row((ns, key.0), |row| row.get(0))
}

/// Fan-outs behind `turn`, which becomes the number of the last of them, as many
/// as one step has room for: of those that stood behind others for their key,
/// each has few targets. False if there is none at all.
pub(super) fn fan(step: &mut Step<'_>, pins: &mut Pins, turn: &mut i64) -> Result<bool> {
    let mut room = FAN_ROWS_MAX;
    for nth in 0..STEP_FANS_MAX {
        let Some(fan) = next_fan(step.tx, *turn)?.filter(|_| room > 0) else { return Ok(nth > 0) };
        *turn = fan.id;
        room -= fan_to(step, pins, &fan, room)?;
    }
    Ok(true)
}

/// A part of a fan-out; how many hooks it went to.
fn fan_to(step: &mut Step<'_>, pins: &mut Pins, fan: &Fan, room: usize) -> Result<usize> {
    let seq = fan.seq;
    let Some(event) = Routed::of(step.tx, seq)? else {
        end_fan_out(step.tx, seq)?;
        return Ok(0);
    };
    let mut targets = Vec::new();
    let has_more = step.router.route(pos_of(seq), event.route_key(), HookId(fan.cursor), room, &mut targets);
    let order_key = event.order_key(targets.iter().any(|target| target.is_ordered));
    for target in &targets {
        let key = order_key.filter(|_| target.is_ordered);
        let row = NewOwed { hook: target.hook.0, seq, sub: target.sub.0, key, shape: None, since: None };
        route(step, pins, &row)?;
    }
    tell_late(step, pos_of(seq), &targets)?;
    match targets.last().filter(|_| has_more) {
        Some(last) => {
            step.tx.prepare_cached("UPDATE scan SET cursor = ?2 WHERE id = ?1")?.execute((fan.id, last.hook.0))?;
        }
        None => end_fan_out(step.tx, seq)?,
    }
    Ok(targets.len())
}

/// Tells the dispatcher who gets an event, with the event: it need not ask for it
/// once for each of them.
fn tell_late(step: &mut Step<'_>, pos: Pos, targets: &[Target]) -> Result<()> {
    if targets.is_empty() {
        return Ok(());
    }
    let event = match rows::event(step.tx, step.epochs, pos)? {
        StoredEvent::Event(event) => Some(event),
        StoredEvent::Corrupt | StoredEvent::Missing => None,
    };
    step.effects.news.push(News::Late { pos, event, targets: SmallVec::from_slice(targets) });
    Ok(())
}

/// The fan-out of an event is over, whatever became of it: the next one of its
/// namespace and ordering key has its turn.
pub(super) fn end_fan_out(db: &Connection, seq: i64) -> Result<()> {
    let of_key: Option<(Option<i64>, Option<i64>)> =
        db.prepare_cached(END_FAN)?.query_row([seq], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    if let Some((Some(ns), Some(key))) = of_key {
        let next = format!("UPDATE scan SET state = {READY} WHERE id = ({FIRST_FAN_OF_KEY})");
        db.prepare_cached(&next)?.execute((ns, key))?;
    }
    Ok(())
}

/// States of a fan-out in `scan.state`. Spelled out where an index asks for it.
const READY: i64 = 0;
/// An older event of its ordering key has its fan-out first.
const BEHIND: i64 = -1;

/// A backfill under way.
struct Backfill {
    id: i64,
    hook: i64,
    sub: i64,
    cursor: i64,
    last: i64,
    from_ms: Option<i64>,
    /// None if the Webhook is gone for good.
    ns: Option<i64>,
    is_ordered: bool,
    is_hook_gone: bool,
    is_sub_gone: bool,
}

/// One step of the first backfill behind `turn`, which becomes its number. False
/// if there is none that can go on.
///
/// A Subscription that is gone ends its backfill; a Webhook that is gone stops
/// it until a namesake comes or the Webhook is purged.
pub(super) fn backfill(step: &mut Step<'_>, pins: &mut Pins, turn: &mut i64) -> Result<bool> {
    let mut is_around = *turn == 0;
    for _ in 0..STEP_ROWS_MAX {
        let Some(scan) = next_backfill(step.tx, *turn)? else {
            *turn = 0;
            if is_around {
                return Ok(false);
            }
            is_around = true;
            continue;
        };
        *turn = scan.id;
        if scan.ns.is_none() || scan.is_sub_gone {
            end_scan(step.tx, scan.id)?;
            return Ok(true);
        }
        let end = first_unrouted(step.tx, scan.cursor, scan.last)?.unwrap_or(scan.last);
        // An event that waits for its fan-out has its turn elsewhere.
        let waits = end <= scan.cursor && end < scan.last;
        if !waits && !scan.is_hook_gone {
            backfill_to(step, pins, &scan, end)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// One step of a backfill, at most up to `end`.
fn backfill_to(step: &mut Step<'_>, pins: &mut Pins, scan: &Backfill, end: i64) -> Result<()> {
    let events = Routed::range(step.tx, scan.cursor, end)?;
    let mut cursor = if events.len() < SCAN_READS_MAX { end } else { scan.cursor };
    let (mut first, mut written) = (None, 0);
    for event in &events {
        if written == STEP_ROWS_MAX {
            cursor = event.seq;
            break;
        }
        cursor = cursor.max(event.seq + 1);
        let is_meant = Some(event.ns) == scan.ns && scan.from_ms.is_none_or(|from| event.wall >= from);
        let is_wanted = is_meant && step.router.wants(SubId(scan.sub), event.route_key());
        if is_wanted && !is_known(step.tx, scan.hook, event.seq)? {
            let (key, since) = (event.order_key(scan.is_ordered), Some(step.now.0));
            let row = NewOwed { hook: scan.hook, seq: event.seq, sub: scan.sub, key, shape: None, since };
            route(step, pins, &row)?;
            first = first.or(Some(event.seq));
            written += 1;
        }
    }
    if let Some(first) = first {
        added(step, scan.hook, first);
    }
    if cursor >= scan.last {
        return end_scan(step.tx, scan.id);
    }
    step.tx.prepare_cached("UPDATE scan SET cursor = ?2 WHERE id = ?1")?.execute((scan.id, cursor))?;
    Ok(())
}

/// Owes a Delivery that is new, and counts it.
pub(super) fn route(step: &mut Step<'_>, pins: &mut Pins, row: &NewOwed) -> Result<()> {
    if insert_owed(step.tx, row)? {
        pins.pin(row.seq);
        count(step, row.hook, 1, 0);
        step.effects.totals.routed += 1;
    }
    Ok(())
}

/// The lowest position in [from, to) whose event waits for its fan-out.
pub(super) fn first_unrouted(db: &Connection, from: i64, to: i64) -> Result<Option<i64>> {
    db.prepare_cached("SELECT min(first) FROM scan WHERE kind = 'fan' AND first >= ?1 AND first < ?2")?
        .query_row((from, to), |row| row.get(0))
}

/// The first fan-out behind `turn`, else the very first: each gets its turn.
fn next_fan(db: &Connection, turn: i64) -> Result<Option<Fan>> {
    let mut select = db.prepare_cached(NEXT_FAN)?;
    let read = |row: &Row<'_>| Ok(Fan { id: row.get(0)?, seq: row.get(1)?, cursor: row.get(2)? });
    let mut next = |after: i64| select.query_row([after], read).optional();
    match next(turn)? {
        None if turn > 0 => next(0),
        found => Ok(found),
    }
}

fn next_backfill(db: &Connection, turn: i64) -> Result<Option<Backfill>> {
    db.prepare_cached(NEXT_BACKFILL)?
        .query_row([turn], |row| {
            Ok(Backfill {
                id: row.get(0)?,
                hook: row.get(1)?,
                sub: row.get(2)?,
                cursor: row.get(3)?,
                last: row.get(4)?,
                from_ms: row.get(5)?,
                ns: row.get(6)?,
                is_ordered: row.get::<_, Option<bool>>(7)?.unwrap_or(false),
                is_hook_gone: row.get(8)?,
                is_sub_gone: row.get(9)?,
            })
        })
        .optional()
}

fn end_scan(db: &Connection, id: i64) -> Result<()> {
    db.prepare_cached("DELETE FROM scan WHERE id = ?1")?.execute([id])?;
    Ok(())
}

pub(super) const NEXT_FAN: &str =
    "SELECT id, first, cursor FROM scan INDEXED BY scan_fan_ready WHERE kind = 'fan' AND state = 0 AND id > ?1
     ORDER BY id LIMIT 1";
pub(super) const END_FAN: &str = "DELETE FROM scan WHERE kind = 'fan' AND first = ?1 RETURNING ns, key";
pub(super) const FAN_OF_KEY: &str = "SELECT EXISTS (SELECT 1 FROM scan WHERE ns = ?1 AND key = ?2)";
pub(super) const FIRST_FAN_OF_KEY: &str = "SELECT min(id) FROM scan WHERE ns = ?1 AND key = ?2";
pub(super) const NEXT_BACKFILL: &str =
    "SELECT s.id, s.hook, s.sub, s.cursor, s.last, u.from_ms, h.ns, h.ordered, h.gone_at IS NOT NULL,
            u.id IS NULL OR u.gone_at IS NOT NULL
     FROM scan s LEFT JOIN hook h ON h.id = s.hook LEFT JOIN sub u ON u.id = s.sub
     WHERE s.kind = 'backfill' AND s.state < 3 AND s.id > ?1 ORDER BY s.id LIMIT 1";
