//! What the store does by itself, in bounded steps inside transactions of the
//! writer: fan-out, backfill, Replay, expiry, the limit of a backlog, purge and
//! retention.
//!
//! A step moves at most [`STEP_ROWS_MAX`](super::effects::STEP_ROWS_MAX)
//! Deliveries or events, and leaves everything that it needs to go on in the
//! tables, in the same transaction: a step that is rolled back was never begun.
//! What is kept in memory ([`Rounds`]) is only where a round of looking stands.

mod cards;
mod expiry;
mod place;
mod purge;
mod reopen;
mod replay;
mod retention;
mod scans;
mod sweep;
#[cfg(test)]
mod tests;

use rusqlite::Result;

pub(super) use cards::{cards, mark_cards};
pub(super) use replay::{cancel_replay, replay, replay_run};
pub(super) use scans::{begin_fan_out, stands_behind_fan_out};
pub(super) use sweep::EVENT_BYTES;

use self::{
    expiry::Expiry,
    purge::Purge,
    reopen::Replays,
    retention::{Pins, RETENTION_EVERY_MS, Retention},
};
use super::{
    effects::{Progress, Step},
    space::evict_above,
};
use crate::{
    event::StoreTime,
    store::{HookId, StoreLimits},
};

/// What a kind of work did when it had its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// One step.
    Worked,
    /// Nothing, and there is nothing before this time.
    Idle(StoreTime),
}

/// Something that upkeep does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    FanOut,
    Backfill,
    Replays,
    Expiry,
    Purge,
    Retention,
    DeadOfAge,
    Forget,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::FanOut,
        Self::Backfill,
        Self::Replays,
        Self::Expiry,
        Self::Purge,
        Self::Retention,
        Self::DeadOfAge,
        Self::Forget,
    ];

    /// What is left when this kind has worked: events wait for their fan-out, for
    /// everything else some milliseconds do not matter.
    const fn progress(self) -> Progress {
        if matches!(self, Self::FanOut) { Progress::More } else { Progress::Spare }
    }
}

/// Where the rounds stand. Lives as long as the writer; a new one begins every
/// round from its start, which is only slower.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// Whose turn is next: an index of [`Kind::ALL`].
    turn: usize,
    /// Limits as of the last step.
    limits: Option<StoreLimits>,
    last_fan: i64,
    last_backfill: i64,
    replays: Replays,
    expiry: Expiry,
    purge: Purge,
    retention: Retention,
    pins: Pins,
    dead_at: StoreTime,
    forget_at: StoreTime,
    was_nearly_full: bool,
}

impl Rounds {
    /// So much of the store's size is in use after a commit. True if it is nearly
    /// full since now: there is something to do before the next round, or
    /// publishers are refused until then.
    pub(super) fn look_at_room(&mut self, used: u64, size: u64) -> bool {
        let is_nearly_full = used > evict_above(size);
        let is_new = is_nearly_full && !self.was_nearly_full;
        self.was_nearly_full = is_nearly_full;
        if is_new {
            self.expiry.hurry();
            self.retention.press();
        }
        is_new
    }

    /// Does one bounded piece of work; the kinds of work take turns.
    ///
    /// `pending` tells how many Deliveries of a hook are owed, wait or are
    /// parked, without what the effects of this step hold already.
    ///
    /// # Assumptions
    /// The caller comes back at the time of [`Progress::Idle`], and at once after
    /// a transaction that began a scan or a Replay, or changed the limits. If the
    /// transaction of a step fails, new rounds take the place of these.
    pub(super) fn step(&mut self, step: &mut Step<'_>, pending: &dyn Fn(HookId) -> u64) -> Result<Progress> {
        if self.limits.replace(*step.limits) != Some(*step.limits) {
            self.expiry.hurry();
            self.retention.hurry();
            (self.dead_at, self.forget_at) = (StoreTime(0), StoreTime(0));
        }
        let mut idle = StoreTime(i64::MAX);
        for offset in 0..Kind::ALL.len() {
            let index = (self.turn + offset) % Kind::ALL.len();
            let kind = Kind::ALL[index];
            match self.take_turn(kind, step, pending)? {
                Turn::Worked => {
                    self.turn = index + 1;
                    return Ok(kind.progress());
                }
                Turn::Idle(at) => idle = idle.min(at),
            }
        }
        Ok(Progress::Idle(idle))
    }

    fn take_turn(&mut self, kind: Kind, step: &mut Step<'_>, pending: &dyn Fn(HookId) -> u64) -> Result<Turn> {
        let never = StoreTime(i64::MAX);
        match kind {
            Kind::FanOut => scans::fan(step, &mut self.pins, &mut self.last_fan).map(|did| worked(did, never)),
            Kind::Backfill => {
                let did = scans::backfill(step, &mut self.pins, &mut self.last_backfill)?;
                Ok(worked(did, never))
            }
            Kind::Replays => self.replays.turn(step, &mut self.pins),
            Kind::Expiry => self.expiry.turn(step, pending),
            Kind::Purge => self.purge.turn(step),
            Kind::Retention => self.retention.turn(step, &mut self.pins),
            Kind::DeadOfAge => every(&mut self.dead_at, step, retention::dead_of_age),
            Kind::Forget => every(&mut self.forget_at, step, |step| sweep::forget(step)),
        }
    }
}

fn worked(did: bool, next_at: StoreTime) -> Turn {
    if did { Turn::Worked } else { Turn::Idle(next_at) }
}

/// Work that goes on until nothing is left, then rests.
fn every(
    next_at: &mut StoreTime,
    step: &mut Step<'_>,
    work: impl FnOnce(&mut Step<'_>) -> Result<bool>,
) -> Result<Turn> {
    if step.now < *next_at {
        return Ok(Turn::Idle(*next_at));
    }
    let did = work(step)?;
    if !did {
        *next_at = step.now.plus_ms(RETENTION_EVERY_MS);
    }
    Ok(worked(did, *next_at))
}
