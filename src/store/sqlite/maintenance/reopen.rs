//! Replays under way: re-opens what matched at the rate of the order, and watches
//! how it ends.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Result};

use super::{
    super::effects::{STEP_ROWS_MAX, Step},
    Turn,
    place::{
        DISMISSED, NewOwed, bucket_of_seq, changed, count, insert_reopened, is_delivered, is_pending, is_unrouted,
    },
    replay::{Running, item, present_subs, state, wanted_by},
    retention::Pins,
    scans::Routed,
    sweep::remove_items,
};
use crate::{event::StoreTime, store::DiscardReason};

/// Time from one look at what became of a Replay's Deliveries to the next, in
/// milliseconds.
pub(super) const LOOK_EVERY_MS: i64 = 1_000;
/// After a look over many items the writer rests from looking for so many times
/// as long as it took.
const LOOK_REST_FACTOR: i64 = 9;
/// What the rate of a Replay allows and was not used is kept for so many
/// milliseconds: after a stop nothing comes in a flood.
pub(super) const CARRY_MS: i64 = 10_000;
/// Replays that one step looks at, at most, to find one with work.
const REPLAYS_MAX: usize = 64;

/// Where the rounds over Replays stand.
#[derive(Debug, Default)]
pub(super) struct Replays {
    turn: i64,
    looks: BTreeMap<i64, Look>,
}

/// A look over the items of a Replay.
#[derive(Clone, Copy, Debug, Default)]
struct Look {
    next_at: StoreTime,
    /// When the look began that is under way.
    begun_at: StoreTime,
    /// Items up to here were looked at.
    seq: i64,
}

impl Replays {
    /// One step of the next Replay that has work.
    pub(super) fn turn(&mut self, step: &mut Step<'_>, pins: &mut Pins) -> Result<Turn> {
        let mut idle = step.now.plus_ms(LOOK_EVERY_MS);
        let begun_at = self.turn;
        for _ in 0..REPLAYS_MAX {
            let Some(replay) = Running::behind(step.tx, self.turn)? else {
                if self.turn == 0 {
                    self.looks.clear();
                    return Ok(Turn::Idle(StoreTime(i64::MAX)));
                }
                self.turn = 0;
                if begun_at == 0 {
                    break;
                }
                continue;
            };
            self.turn = replay.id;
            match self.one(step, pins, replay)? {
                Turn::Worked => return Ok(Turn::Worked),
                Turn::Idle(at) => idle = idle.min(at),
            }
        }
        Ok(Turn::Idle(idle))
    }

    fn one(&mut self, step: &mut Step<'_>, pins: &mut Pins, mut replay: Running) -> Result<Turn> {
        if replay.state == state::ENDING {
            if remove_items(step.tx, replay.id, STEP_ROWS_MAX)? < STEP_ROWS_MAX {
                end(step, &replay, state::CANCELLED)?;
                self.looks.remove(&replay.id);
            }
            return Ok(Turn::Worked);
        }
        let is_dry_run = replay.spec.as_ref().is_none_or(|spec| spec.is_dry_run);
        if replay.is_matched() && is_dry_run {
            end(step, &replay, state::COMPLETE)?;
            return Ok(Turn::Worked);
        }
        if self.look(step, &replay)? {
            return Ok(Turn::Worked);
        }
        let next_at = match reopen_some(step, pins, &mut replay)? {
            Reopened::Some => return Ok(Turn::Worked),
            Reopened::None => None,
            Reopened::NotBefore(at) => Some(at),
        };
        if !replay.is_matched() {
            replay.match_some(step)?;
            return Ok(Turn::Worked);
        }
        let look_at = self.looks.get(&replay.id).map_or(step.now, |look| look.next_at);
        Ok(Turn::Idle(next_at.map_or(look_at, |at| at.min(look_at))))
    }

    /// Looks at some items that are on their way; ends the Replay if none is left.
    /// False if it is not yet time.
    fn look(&mut self, step: &mut Step<'_>, replay: &Running) -> Result<bool> {
        let look = self.looks.entry(replay.id).or_default();
        if step.now < look.next_at {
            return Ok(false);
        }
        if look.seq == 0 {
            look.begun_at = step.now;
        }
        let items: Vec<(i64, i64)> = step
            .tx
            .prepare_cached("SELECT seq, state FROM replay_item WHERE scan = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3")?
            .query_map((replay.id, look.seq, STEP_ROWS_MAX), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_>>()?;
        for &(seq, state) in &items {
            look.seq = seq;
            if state != item::OPEN && !is_pending(step.tx, replay.hook, seq)? {
                end_item(step, (replay.id, replay.hook), seq, state)?;
            }
        }
        if items.len() < STEP_ROWS_MAX {
            let took_ms = step.now.0 - look.begun_at.0;
            let rest_ms = LOOK_EVERY_MS.max(took_ms * LOOK_REST_FACTOR);
            *look = Look { next_at: step.now.plus_ms(rest_ms), ..Look::default() };
            if replay.state == state::SENDING && !has_items(step, replay.id)? {
                end(step, replay, state::COMPLETE)?;
                self.looks.remove(&replay.id);
            }
        }
        Ok(true)
    }
}

/// The Delivery of an item is not pending any more.
fn end_item(step: &Step<'_>, (scan, hook): (i64, i64), seq: i64, state: i64) -> Result<()> {
    set_item(step, scan, seq, None)?;
    if state == item::REOPENED {
        let dead = is_dead(step, hook, seq)?;
        step.tx
            .prepare_cached("UPDATE scan SET done = done + 1, dead = dead + ?2 WHERE id = ?1")?
            .execute((scan, dead))?;
    }
    Ok(())
}

/// Other Replays waited for a Delivery that has ended and is about to be opened
/// again: for them it stays ended, though they did not look since.
fn end_for_others(step: &Step<'_>, replay: &Running, others: &[i64], seq: i64) -> Result<()> {
    for scan in others {
        let state: Option<i64> = step
            .tx
            .prepare_cached("SELECT state FROM replay_item WHERE scan = ?1 AND seq = ?2")?
            .query_row((scan, seq), |row| row.get(0))
            .optional()?;
        if let Some(state) = state.filter(|state| *state != item::OPEN) {
            end_item(step, (*scan, replay.hook), seq, state)?;
        }
    }
    Ok(())
}

/// Replays of the same Webhook that have not ended.
fn others_of(step: &Step<'_>, replay: &Running) -> Result<Vec<i64>> {
    step.tx
        .prepare_cached("SELECT id FROM scan WHERE kind = 'replay' AND state < 3 AND hook = ?1 AND id <> ?2")?
        .query_map((replay.hook, replay.id), |row| row.get(0))?
        .collect()
}

fn has_items(step: &Step<'_>, scan: i64) -> Result<bool> {
    step.tx
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM replay_item WHERE scan = ?1)")?
        .query_row([scan], |row| row.get(0))
}

fn is_dead(step: &Step<'_>, hook: i64, seq: i64) -> Result<bool> {
    step.tx
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3)")?
        .query_row((bucket_of_seq(seq), hook, seq), |row| row.get(0))
}

fn end(step: &Step<'_>, replay: &Running, state: i64) -> Result<()> {
    step.tx.prepare_cached("UPDATE scan SET state = ?2 WHERE id = ?1")?.execute((replay.id, state))?;
    Ok(())
}

/// What a step of re-opening did.
enum Reopened {
    Some,
    /// There was nothing to re-open, or it waits for a fan-out.
    None,
    /// The rate allows the next one at this time.
    NotBefore(StoreTime),
}

/// Re-opens as much as the rate allows, in the order of positions.
fn reopen_some(step: &mut Step<'_>, pins: &mut Pins, replay: &mut Running) -> Result<Reopened> {
    if replay.state != state::RUNNING {
        return Ok(Reopened::None);
    }
    let pace = Pace::of(replay, step.now);
    let room = pace.allowed(step.now).min(STEP_ROWS_MAX);
    if room == 0 {
        return Ok(Reopened::NotBefore(pace.next_at()));
    }
    let items: Vec<i64> = step
        .tx
        .prepare_cached(
            "SELECT seq FROM replay_item WHERE scan = ?1 AND seq >= ?2 AND state = 0 ORDER BY seq LIMIT ?3",
        )?
        .query_map((replay.id, replay.opened, room), |row| row.get(0))?
        .collect::<Result<_>>()?;
    let mut opened = if items.len() < room { replay.cursor } else { replay.opened };
    let (mut reopened, mut first) = (0, None);
    let (subs, others) = (present_subs(step.tx, replay.hook)?, others_of(step, replay)?);
    for &seq in &items {
        if is_unrouted(step.tx, seq)? {
            // Its fan-out comes first and decides whether there is a Delivery.
            opened = seq;
            break;
        }
        opened = opened.max(seq + 1);
        let state = if is_pending(step.tx, replay.hook, seq)? {
            Some(item::PENDING)
        } else {
            end_for_others(step, replay, &others, seq)?;
            reopen(step, pins, replay, &subs, seq)?
        };
        set_item(step, replay.id, seq, state)?;
        if state == Some(item::REOPENED) {
            first = first.or(Some(seq));
            reopened += 1;
        }
    }
    if let Some(first) = first {
        changed(step, replay.hook, first);
    }
    let is_all = opened >= replay.last && replay.is_matched();
    if opened == replay.opened && !is_all {
        return Ok(Reopened::None);
    }
    let has_worked = is_all || !items.is_empty();
    let state = if is_all { state::SENDING } else { state::RUNNING };
    step.tx
        .prepare_cached("UPDATE scan SET state = ?2, opened = ?3, reopened = reopened + ?4, paced = ?5 WHERE id = ?1")?
        .execute((replay.id, state, opened, reopened, pace.after(reopened)))?;
    Ok(if has_worked { Reopened::Some } else { Reopened::None })
}

fn set_item(step: &Step<'_>, scan: i64, seq: i64, state: Option<i64>) -> Result<()> {
    match state {
        Some(state) => step
            .tx
            .prepare_cached("UPDATE replay_item SET state = ?3 WHERE scan = ?1 AND seq = ?2")?
            .execute((scan, seq, state))?,
        None => step.tx.prepare_cached("DELETE FROM replay_item WHERE scan = ?1 AND seq = ?2")?.execute((scan, seq))?,
    };
    Ok(())
}

/// Re-opens a Delivery that is not pending: the same one, with no attempt used up. The new state of
/// its item; none if there is nothing to open any more.
fn reopen(step: &mut Step<'_>, pins: &mut Pins, replay: &Running, subs: &[i64], seq: i64) -> Result<Option<i64>> {
    let hook = replay.hook;
    let since = Some(step.now.0);
    let dead = step
        .tx
        .prepare_cached(
            "DELETE FROM dead WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 RETURNING sub, key, shape, card",
        )?
        .query_row((bucket_of_seq(seq), hook, seq), |row| {
            let row_of = NewOwed { hook, seq, sub: row.get(0)?, key: row.get(1)?, shape: row.get(2)?, since };
            Ok((row_of, row.get::<_, i64>(3)?))
        })
        .optional()?;
    if let Some((row, card)) = dead {
        insert_reopened(step.tx, &row, replay.is_ordered)?;
        pins.pin(seq);
        if card == DISMISSED {
            step.effects.discard(DiscardReason::Dismissed, -1);
            count(step, hook, 1, 0);
        } else {
            count(step, hook, 1, -1);
        }
        return Ok(Some(item::REOPENED));
    }
    let Some(event) = Routed::of(step.tx, seq)?.filter(|event| Some(event.ns) == replay.ns) else { return Ok(None) };
    let wanted = wanted_by(step, subs, &event);
    let is_delivered = is_delivered(step.tx, hook, seq)?;
    let sub = match wanted {
        Some(sub) => sub,
        // It was delivered for a Subscription that wants it no more.
        None if is_delivered => any_sub(step, hook)?.unwrap_or_default(),
        None => return Ok(None),
    };
    let row = NewOwed { hook, seq, sub, key: event.order_key(replay.is_ordered), shape: None, since };
    if insert_reopened(step.tx, &row, replay.is_ordered)? {
        pins.pin(seq);
        count(step, hook, 1, 0);
        step.effects.totals.routed += 1;
    }
    if is_delivered {
        // The same Delivery again, not a new one.
        step.effects.totals.routed -= 1;
        step.effects.totals.delivered -= 1;
    }
    Ok(Some(item::REOPENED))
}

/// The oldest Subscription of a hook, present ones first.
fn any_sub(step: &Step<'_>, hook: i64) -> Result<Option<i64>> {
    step.tx
        .prepare_cached("SELECT id FROM sub WHERE hook = ?1 ORDER BY gone_at IS NOT NULL, created, name LIMIT 1")?
        .query_row([hook], |row| row.get(0))
        .optional()
}

/// The rate of a Replay: what is allowed grows from `paced_us` on.
#[derive(Clone, Copy, Debug)]
struct Pace {
    paced_us: i64,
    per_second: Option<i64>,
}

impl Pace {
    fn of(replay: &Running, now: StoreTime) -> Self {
        let per_second = replay.spec.as_ref().and_then(|spec| spec.per_second).map(|rate| i64::from(rate.max(1)));
        Self { paced_us: replay.paced.max((now.0 - CARRY_MS).saturating_mul(1_000)), per_second }
    }

    /// How many Deliveries may be re-opened now.
    fn allowed(self, now: StoreTime) -> usize {
        let Some(per_second) = self.per_second else { return usize::MAX };
        let passed_us = now.0.saturating_mul(1_000).saturating_sub(self.paced_us).max(0);
        usize::try_from(passed_us.saturating_mul(per_second) / 1_000_000).unwrap_or(usize::MAX)
    }

    /// From when what is allowed counts after so many.
    fn after(self, reopened: i64) -> i64 {
        self.per_second.map_or(self.paced_us, |per_second| self.paced_us + reopened * 1_000_000 / per_second)
    }

    /// When one is allowed, if none is now.
    fn next_at(self) -> StoreTime {
        let interval_us = self.per_second.map_or(0, |per_second| (1_000_000 + per_second - 1) / per_second);
        StoreTime((self.paced_us + interval_us + 999) / 1_000)
    }
}
