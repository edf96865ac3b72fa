//! Whose turn it is to start attempts.
//!
//! Hooks with work stand in two rings: *late* those that have nothing but
//! Deliveries of fan-outs, *live* all others. Late ones have every fourth turn
//! while others wait, not all of the places, and start at a pace ([`Pace`]): an
//! event for 5,000 hooks delays none that is for one. Within a ring each hook has its turn, with as many bytes
//! as every other.
//!
//! A step starts few attempts. What was started gets the processor, and what
//! comes in meanwhile is taken in, before the next one.
//!
//! [`Pace`]: super::pace::Pace

use std::collections::VecDeque;

use super::{
    engine::{Engine, Globals, IN_FLIGHT_MAX, Now, SUSPECTS_MAX, UNRECORDED_MAX, plus},
    hook::{Hook, Trust},
};
use crate::{event::StoreTime, store::HookId};

/// Attempts that one step starts, but for the rest of a hook's turn.
pub(super) const STARTS_MAX: u64 = 32;
/// Attempts at once of hooks that have nothing but Deliveries of fan-outs.
pub(super) const LATE_IN_FLIGHT_MAX: usize = IN_FLIGHT_MAX / 2;
/// While hooks of both rings wait, one turn of so many is for late ones.
const LATE_SHARE: u32 = 4;
/// A hook may have this part of the places that live ones leave free, and that
/// part of those that are free: when they get few, no hook that hangs takes the
/// last ones.
const LIVE_SHARE: usize = 16;
const FREE_SHARE: usize = 4;
/// Bytes that a hook may send in one turn.
const QUANTUM_BYTES: u32 = 64 * 1024;
/// What an event costs at least, so that small ones take turns as well.
const COST_BYTES_MIN: u32 = 4 * 1024;

/// One of the two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Live,
    Late,
}

/// Hooks that wait for their turn. A hook that went over to the other ring has
/// left its place in the first one, which is passed over.
#[derive(Debug, Default)]
pub(super) struct Rings {
    live: VecDeque<HookId>,
    late: VecDeque<HookId>,
    turns: u32,
    /// The last step left hooks that may start something.
    is_cut: bool,
}

impl Rings {
    fn push(&mut self, id: HookId, lane: Lane) {
        match lane {
            Lane::Live => self.live.push_back(id),
            Lane::Late => self.late.push_back(id),
        }
    }

    /// The next place in the rings; none of the late one if `late_may` not.
    fn pop(&mut self, late_may: bool) -> Option<(HookId, Lane)> {
        self.turns = self.turns.wrapping_add(1);
        let is_late_turn = self.turns.is_multiple_of(LATE_SHARE) || self.live.is_empty();
        if late_may
            && is_late_turn
            && let Some(id) = self.late.pop_front()
        {
            return Some((id, Lane::Late));
        }
        self.live.pop_front().map(|id| (id, Lane::Live))
    }
}

impl Engine {
    /// Hooks have their turns until enough is started.
    pub(super) fn serve_rings(&mut self, now: Now) {
        let Self { hooks, globals } = self;
        let first = globals.last_flight;
        globals.rings.is_cut = false;
        globals.late_pace.fill(now.store);
        while globals.flights.len() < IN_FLIGHT_MAX && globals.unrecorded_len() < UNRECORDED_MAX {
            if globals.last_flight - first >= STARTS_MAX {
                globals.rings.is_cut = true;
                break;
            }
            let late_may = globals.late_may();
            let Some((id, lane)) = globals.rings.pop(late_may) else { break };
            let Some(hook) = hooks.get_mut(&id).filter(|hook| hook.lane == Some(lane)) else { continue };
            hook.lane = None;
            if globals.serve(hook, now) {
                globals.stand_in_line(hook);
            } else {
                hook.deficit = 0;
                globals.settle(hook, now);
            }
        }
    }

    /// When hooks of the late ring may start more, if that is a matter of time.
    pub(super) fn next_late(&self) -> Option<StoreTime> {
        let globals = &self.globals;
        let waits = !globals.rings.late.is_empty() && !globals.late_pace.has_left();
        waits.then(|| globals.late_pace.next())
    }

    /// Whether another step would start more.
    pub(super) const fn wants_step(&self) -> bool {
        self.globals.rings.is_cut
    }
}

impl Globals {
    /// Gives a hook with work its place in a ring.
    pub(super) fn mark_ready(&mut self, hook: &mut Hook) {
        let may = !hook.in_suspects && !hook.is_fetching && hook.closed.is_none();
        if may && hook.rate_at.is_none() && hook.has_work() && hook.flying.len() < self.at_once(hook) {
            self.stand_in_line(hook);
        }
    }

    fn stand_in_line(&mut self, hook: &mut Hook) {
        let lane = if hook.is_late() { Lane::Late } else { Lane::Live };
        let is_better = hook.lane.is_none() || (hook.lane == Some(Lane::Late) && lane == Lane::Live);
        if is_better {
            hook.lane = Some(lane);
            self.rings.push(hook.id, lane);
        }
    }

    /// Starts attempts of a hook in its turn. True if it has more to start.
    fn serve(&mut self, hook: &mut Hook, now: Now) -> bool {
        if hook.closed.is_some() || hook.is_fetching {
            return false;
        }
        hook.deficit = hook.deficit.saturating_add(QUANTUM_BYTES);
        while self.flights.len() < IN_FLIGHT_MAX && hook.flying.len() < self.at_once(hook) {
            if hook.trust == Trust::Suspect && self.suspects >= SUSPECTS_MAX {
                hook.in_suspects = true;
                self.suspect_ring.push_back(hook.id);
                return false;
            }
            if hook.is_late() && !self.late_may() {
                return true;
            }
            let Some(takes_due) = hook.next_source() else { return false };
            if self.put_aside(hook, takes_due) {
                continue;
            }
            let Some(item) = hook.source(takes_due).front() else { return false };
            let Some(event) = &item.event else {
                self.fetch(hook, takes_due);
                return false;
            };
            let cost = u32::try_from(event.memory_bytes()).unwrap_or(u32::MAX).max(COST_BYTES_MIN);
            if hook.deficit < cost {
                return true;
            }
            if let Some(Err(wait)) = hook.limiter.as_mut().map(|limiter| limiter.take(now.store.0)) {
                hook.rate_at = Some(plus(now.store, wait));
                return false;
            }
            hook.deficit -= cost;
            hook.takes_due_next = !takes_due;
            if let Some(item) = hook.source(takes_due).pop_front() {
                self.count_out(&item);
                self.start(hook, item, false, now);
            }
        }
        false
    }

    fn late_may(&self) -> bool {
        self.late_flights < LATE_IN_FLIGHT_MAX && self.late_pace.has_left()
    }

    /// Attempts that a hook may have in flight as things are.
    fn at_once(&self, hook: &Hook) -> usize {
        let free = IN_FLIGHT_MAX.saturating_sub(self.flights.len());
        let share = ((free + self.late_flights) / LIVE_SHARE).min(free / FREE_SHARE);
        hook.at_once().min(share.max(1))
    }
}
