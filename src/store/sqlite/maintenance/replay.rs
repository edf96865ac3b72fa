//! Replays: the order, what matches it, and how it stands.
//!
//! The record and the first items are written in one transaction; after that the
//! rounds go on ([`super::reopen`]). An order that is known, by namespace UID,
//! name and hash of its spec, is never run again while its record is kept.
//!
//! # What matches
//! Positions are matched in their order, a step at a time, as of the positions
//! and the store time of the begin: what dies or is accepted later is not part of
//! it. A dry run counts the same way, keeps its record, and re-opens nothing.

use rusqlite::{Connection, OptionalExtension, Result};
use serde::{Deserialize, Serialize};

use super::{
    super::{
        effects::{STEP_ROWS_MAX, Step},
        rows::seq_of,
    },
    place::{is_known, is_pending},
    scans::Routed,
};
use crate::{
    event::Pos,
    store::{ReplayIdentity, ReplayOrder, ReplayRun, ReplayState, ReplayWhat, SubId},
};

/// States of a Replay in `scan.state`.
pub(super) mod state {
    /// Matches and re-opens.
    pub(in super::super) const RUNNING: i64 = 0;
    /// Everything is re-opened.
    pub(in super::super) const SENDING: i64 = 1;
    /// Cancelled; its items are not yet removed.
    pub(in super::super) const ENDING: i64 = 2;
    /// Everything that matched has ended.
    pub(in super::super) const COMPLETE: i64 = 3;
    /// Cancelled.
    pub(in super::super) const CANCELLED: i64 = 4;
}

/// States of a matched Delivery in `replay_item.state`.
pub(super) mod item {
    /// To be re-opened.
    pub(in super::super) const OPEN: i64 = 0;
    /// Re-opened.
    pub(in super::super) const REOPENED: i64 = 1;
    /// Was pending already: left as it is, and waited for.
    pub(in super::super) const PENDING: i64 = 2;
}

/// An order as `scan.document` keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) what: What,
    pub(super) per_second: Option<u32>,
    pub(super) is_dry_run: bool,
}

/// [`ReplayWhat`]; positions in ascending order, times in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum What {
    AllDead,
    Dead(Vec<i64>),
    Events(Vec<i64>),
    Range { since: i64, until: Option<i64> },
}

impl Spec {
    fn of(order: &ReplayOrder) -> Self {
        let sorted = |positions: &[Pos]| {
            let mut positions: Vec<i64> = positions.iter().map(|pos| seq_of(*pos)).collect();
            positions.sort_unstable();
            positions.dedup();
            positions
        };
        let what = match &order.what {
            ReplayWhat::AllDead => What::AllDead,
            ReplayWhat::Dead(positions) => What::Dead(sorted(positions)),
            ReplayWhat::Events(positions) => What::Events(sorted(positions)),
            ReplayWhat::Range { since, until } => {
                What::Range { since: since.as_millisecond(), until: until.map(|until| until.as_millisecond()) }
            }
        };
        Self { what, per_second: order.per_second, is_dry_run: order.is_dry_run }
    }
}

/// A Replay under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) id: i64,
    pub(super) hook: i64,
    /// Namespace of the hook; none if the hook is not, or not in the namespace of
    /// the order: then nothing matches.
    pub(super) ns: Option<i64>,
    pub(super) is_ordered: bool,
    pub(super) cursor: i64,
    pub(super) last: i64,
    pub(super) state: i64,
    pub(super) opened: i64,
    pub(super) paced: i64,
    pub(super) begun: i64,
    /// None if the record makes no sense: then nothing matches.
    pub(super) spec: Option<Spec>,
}

impl Running {
    /// The first open Replay behind `after`.
    pub(super) fn behind(db: &Connection, after: i64) -> Result<Option<Self>> {
        db.prepare_cached(NEXT_REPLAY)?
            .query_row([after], |row| {
                Ok(Self {
                    id: row.get(0)?,
                    hook: row.get(1)?,
                    ns: row.get(2)?,
                    is_ordered: row.get::<_, Option<bool>>(3)?.unwrap_or(false),
                    cursor: row.get(4)?,
                    last: row.get(5)?,
                    state: row.get(6)?,
                    opened: row.get(7)?,
                    paced: row.get(8)?,
                    begun: row.get(9)?,
                    spec: serde_json::from_str(&row.get::<_, String>(10)?).ok(),
                })
            })
            .optional()
    }

    pub(super) fn is_matched(&self) -> bool {
        self.cursor >= self.last
    }

    /// Matches the next positions, at most [`STEP_ROWS_MAX`].
    pub(super) fn match_some(&mut self, step: &Step<'_>) -> Result<()> {
        let what = self.spec.as_ref().map(|spec| spec.what.clone());
        let (found, cursor) = match (self.ns, what) {
            (None, _) | (_, None) => (Vec::new(), self.last),
            (_, Some(What::AllDead)) => self.all_dead(step)?,
            (_, Some(What::Dead(positions))) => self.listed(&positions, |seq| is_dead(step.tx, self.hook, seq))?,
            (Some(ns), Some(What::Events(positions))) => {
                let subs = present_subs(step.tx, self.hook)?;
                self.listed(&positions, |seq| self.is_matching_event(step, ns, &subs, seq))?
            }
            (Some(ns), Some(What::Range { since, until })) => self.range(step, ns, (since, until))?,
        };
        let is_dry_run = self.spec.as_ref().is_some_and(|spec| spec.is_dry_run);
        for seq in found.iter().filter(|_| !is_dry_run) {
            let state = if is_pending(step.tx, self.hook, *seq)? { item::PENDING } else { item::OPEN };
            step.tx
                .prepare_cached("INSERT OR IGNORE INTO replay_item (scan, seq, state) VALUES (?1, ?2, ?3)")?
                .execute((self.id, seq, state))?;
        }
        self.cursor = cursor;
        step.tx.prepare_cached("UPDATE scan SET cursor = ?2, matched = matched + ?3 WHERE id = ?1")?.execute((
            self.id,
            cursor,
            found.len(),
        ))?;
        Ok(())
    }

    /// Those that were dead at the begin.
    fn all_dead(&self, step: &Step<'_>) -> Result<(Vec<i64>, i64)> {
        let rows: Vec<(i64, i64)> = step
            .tx
            .prepare_cached(ALL_DEAD)?
            .query_map((self.hook, self.cursor, self.last, STEP_ROWS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        let is_last = rows.len() < STEP_ROWS_MAX;
        let cursor = rows.last().filter(|_| !is_last).map_or(self.last, |(seq, _)| seq + 1);
        Ok((rows.iter().filter(|(_, at)| *at <= self.begun).map(|(seq, _)| *seq).collect(), cursor))
    }

    fn listed(&self, positions: &[i64], matches: impl Fn(i64) -> Result<bool>) -> Result<(Vec<i64>, i64)> {
        let from = positions.partition_point(|seq| *seq < self.cursor);
        let chunk = &positions[from..positions.len().min(from + STEP_ROWS_MAX)];
        let mut found = Vec::new();
        for seq in chunk {
            if matches(*seq)? {
                found.push(*seq);
            }
        }
        let is_last = from + chunk.len() == positions.len();
        Ok((found, chunk.last().filter(|_| !is_last).map_or(self.last, |seq| seq + 1)))
    }

    /// An event of the hook's namespace that was routed to the hook, or that it
    /// wants now.
    fn is_matching_event(&self, step: &Step<'_>, ns: i64, subs: &[i64], seq: i64) -> Result<bool> {
        let Some(event) = Routed::of(step.tx, seq)?.filter(|event| event.ns == ns && seq < self.last) else {
            return Ok(false);
        };
        Ok(wanted_by(step, subs, &event).is_some() || is_known(step.tx, self.hook, seq)?)
    }

    /// Events of [since, until) by wall time. Wall time may jump: every bucket
    /// that saw a time of the range is read.
    fn range(&self, step: &Step<'_>, ns: i64, (since, until): (i64, Option<i64>)) -> Result<(Vec<i64>, i64)> {
        let until = until.unwrap_or(i64::MAX);
        let bucket: Option<i64> = step
            .tx
            .prepare_cached(
                "SELECT id FROM bucket WHERE id >= ?1 AND last_wall >= ?2 AND first_wall < ?3 ORDER BY id LIMIT 1",
            )?
            .query_row((super::place::bucket_of_seq(self.cursor), since, until), |row| row.get(0))
            .optional()?;
        let Some((first, last)) = bucket.map(super::sweep::positions_of) else { return Ok((Vec::new(), self.last)) };
        let (from, end) = (self.cursor.max(first), self.last.min(last + 1));
        let events = Routed::range(step.tx, from, end)?;
        let mut cursor = if events.len() < super::scans::SCAN_READS_MAX { end.max(self.cursor) } else { from };
        let subs = present_subs(step.tx, self.hook)?;
        let mut found = Vec::new();
        for event in &events {
            if found.len() == STEP_ROWS_MAX {
                cursor = event.seq;
                break;
            }
            cursor = cursor.max(event.seq + 1);
            let is_in_range = event.ns == ns && (since..until).contains(&event.wall);
            if is_in_range && wanted_by(step, &subs, event).is_some() {
                found.push(event.seq);
            }
        }
        Ok((found, cursor.min(self.last)))
    }
}

pub(super) const NEXT_REPLAY: &str =
    "SELECT s.id, s.hook, n.id, h.ordered, s.cursor, s.last, s.state, s.opened, s.paced, s.begun, s.document
     FROM scan s LEFT JOIN hook h ON h.id = s.hook LEFT JOIN ns n ON n.id = h.ns AND n.uid = s.ns_uid
     WHERE s.kind = 'replay' AND s.state < 3 AND s.id > ?1 ORDER BY s.id LIMIT 1";

pub(super) const ALL_DEAD: &str = "SELECT seq, at FROM dead
     WHERE hook = ?1 AND seq >= ?2 AND seq < ?3 AND card <> 3 ORDER BY seq LIMIT ?4";

fn is_dead(db: &Connection, hook: i64, seq: i64) -> Result<bool> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 AND card <> 3)")?
        .query_row((super::place::bucket_of_seq(seq), hook, seq), |row| row.get(0))
}

/// Subscriptions of a hook that are not gone, oldest first.
pub(super) fn present_subs(db: &Connection, hook: i64) -> Result<Vec<i64>> {
    db.prepare_cached("SELECT id FROM sub WHERE hook = ?1 AND gone_at IS NULL ORDER BY created, name")?
        .query_map([hook], |row| row.get(0))?
        .collect()
}

/// The oldest of these Subscriptions that wants an event.
pub(super) fn wanted_by(step: &Step<'_>, subs: &[i64], event: &Routed) -> Option<i64> {
    subs.iter().copied().find(|sub| step.router.wants(SubId(*sub), event.route_key()))
}

/// Begins a Replay, or tells of the one with this identity.
pub(in super::super) fn replay(step: &mut Step<'_>, order: &ReplayOrder) -> Result<ReplayRun> {
    if let Some(run) = replay_run(step.tx, &order.identity)? {
        return Ok(run);
    }
    let ReplayIdentity { namespace_uid, name, spec_hash } = &order.identity;
    // What is put in is numbers and booleans; it always becomes text.
    let document = serde_json::to_string(&Spec::of(order)).unwrap_or_default();
    // The first second's share is there at once.
    let paced = (step.now.0 - 1_000) * 1_000;
    let id: i64 = step
        .tx
        .prepare_cached(
            "INSERT INTO scan (kind, ns_uid, name, spec_hash, hook, cursor, first, last, document, state,
                               matched, reopened, begun, begun_wall, paced)
             VALUES ('replay', ?1, ?2, ?3, ?4, 0, 0, ?5, ?6, 0, 0, 0, ?7, ?8, ?9) RETURNING id",
        )?
        .query_row(
            (
                namespace_uid,
                name,
                spec_hash,
                order.hook.0,
                seq_of(step.next),
                document,
                step.now.0,
                step.wall.as_millisecond(),
                paced,
            ),
            |row| row.get(0),
        )?;
    if let Some(mut running) = Running::behind(step.tx, id - 1)?.filter(|running| running.id == id) {
        running.match_some(step)?;
    }
    let run = replay_run(step.tx, &order.identity)?;
    Ok(ReplayRun { is_known: false, ..run.unwrap_or_else(|| nothing(step.wall.as_millisecond())) })
}

fn nothing(begun_ms: i64) -> ReplayRun {
    ReplayRun { is_known: false, state: ReplayState::Complete, matched: 0, reopened: 0, done: 0, dead: 0, begun_ms }
}

/// Ends a Replay: what it has not re-opened stays as it is, and what it has is
/// sent all the same. None if there is no such Replay.
pub(in super::super) fn cancel_replay(step: &mut Step<'_>, identity: &ReplayIdentity) -> Result<Option<ReplayRun>> {
    let ReplayIdentity { namespace_uid, name, spec_hash } = identity;
    step.tx
        .prepare_cached(
            "UPDATE scan SET state = ?4, cursor = last WHERE kind = 'replay' AND ns_uid = ?1 AND name = ?2
             AND spec_hash = ?3 AND state < ?4",
        )?
        .execute((namespace_uid, name, spec_hash, state::ENDING))?;
    replay_run(step.tx, identity)
}

/// How a Replay stands; none if there is no such.
pub(in super::super) fn replay_run(db: &Connection, identity: &ReplayIdentity) -> Result<Option<ReplayRun>> {
    let ReplayIdentity { namespace_uid, name, spec_hash } = identity;
    db.prepare_cached(
        "SELECT state, matched, reopened, done, dead, begun_wall FROM scan
         WHERE kind = 'replay' AND ns_uid = ?1 AND name = ?2 AND spec_hash = ?3",
    )?
    .query_row((namespace_uid, name, spec_hash), |row| {
        let state = match row.get(0)? {
            state::RUNNING => ReplayState::Running,
            state::SENDING => ReplayState::Sending,
            state::COMPLETE => ReplayState::Complete,
            _ => ReplayState::Cancelled,
        };
        Ok(ReplayRun {
            is_known: true,
            state,
            matched: row.get(1)?,
            reopened: row.get(2)?,
            done: row.get(3)?,
            dead: row.get(4)?,
            begun_ms: row.get(5)?,
        })
    })
    .optional()
}
