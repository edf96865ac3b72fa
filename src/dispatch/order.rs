//! Which ordering keys of a hook are taken: one Delivery of a key at a time, in
//! the order of their events.
//!
//! A key is *free* (not in the map), *taken* (one is in flight; rows behind it
//! wait in memory and count to the window) or *blocked* (one waits for its retry,
//! or rows are parked in the store). What comes while a key is blocked is parked;
//! when the one in front is done, the parked ones are read again, in order, until
//! none is left.
//!
//! What is parked is always older than what is still owed of the same key: so a
//! row is parked only if the one in front is blocked durably, never because many
//! wait behind one in flight. A window that one slow key has filled holds up the
//! other keys of its hook, and no other hook.
//!
//! A hook that is no longer ordered keeps its keys until nothing of them is
//! blocked: nobody else reads what is parked.

use std::collections::{HashMap, VecDeque};

use super::hook::{Item, Origin};
use crate::{
    event::Pos,
    store::{OrderKey, OwedRow},
};

/// Blocked keys of one hook at most; with more, new Deliveries of it wait.
pub(super) const BLOCKED_KEYS_MAX: usize = 1_024;

/// The keys of a hook.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// The store was asked which ones are blocked.
    pub(super) is_loaded: bool,
    /// There were more than [`BLOCKED_KEYS_MAX`]: unknown ones may be blocked.
    is_truncated: bool,
    states: HashMap<OrderKey, KeyState>,
    /// Rows in memory behind one in flight.
    behind_rows: usize,
    /// Keys whose parked rows shall be read.
    drains: VecDeque<OrderKey>,
}

#[derive(Debug, Default)]
struct KeyState {
    is_taken: bool,
    is_waiting: bool,
    is_parked: bool,
    /// Rows that are being parked and are not durable there.
    parking: u32,
    /// Something was parked since the parked rows were asked for.
    parked_since: bool,
    in_drains: bool,
    /// Blocked behind this dead Delivery.
    dead: Option<Pos>,
    /// It was, and the store says it is dead no longer: if it was re-opened it
    /// comes before what is parked behind it.
    awaits: Option<Pos>,
    behind: VecDeque<Item>,
}

/// What may be done with a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Send it; the key is taken.
    Send,
    /// Keep it behind the one in flight.
    Behind,
    /// Park it.
    Park,
}

impl Keys {
    /// Judges a row, and takes its key if it may be sent.
    pub(super) fn turn(&mut self, key: OrderKey, pos: Pos, origin: Origin) -> Turn {
        let state = self.states.entry(key).or_default();
        if origin != Origin::Owed {
            if state.is_taken {
                return Turn::Behind;
            }
            state.is_taken = true;
            state.is_waiting &= origin != Origin::Waiting;
            return Turn::Send;
        }
        if state.dead.or(state.awaits) == Some(pos) && !state.is_taken {
            // It was re-opened: it comes before what is parked behind it.
            (state.dead, state.awaits, state.is_taken) = (None, None, true);
            return Turn::Send;
        }
        if state.is_waiting || state.is_parked || state.is_behind_dead() {
            return Turn::Park;
        }
        if !state.is_taken {
            state.is_taken = true;
            return Turn::Send;
        }
        Turn::Behind
    }

    /// Takes a key for a row that the store says is the first one of it.
    pub(super) fn take(&mut self, key: OrderKey, origin: Origin) {
        let state = self.states.entry(key).or_default();
        state.is_taken = true;
        state.is_waiting &= origin != Origin::Waiting;
        (state.dead, state.awaits) = (None, None);
    }

    /// Keeps a row behind the one in flight.
    pub(super) fn keep_behind(&mut self, key: OrderKey, item: Item) {
        self.states.entry(key).or_default().behind.push_back(item);
        self.behind_rows += 1;
    }

    /// A row of this key is being parked.
    pub(super) fn parking(&mut self, key: OrderKey) {
        let state = self.states.entry(key).or_default();
        state.parking += 1;
        (state.is_parked, state.parked_since) = (true, true);
    }

    /// A row of this key is parked durably.
    pub(super) fn parked(&mut self, key: OrderKey) {
        if let Some(state) = self.states.get_mut(&key) {
            state.parking = state.parking.saturating_sub(1);
        }
        self.wish_drain(key);
    }

    /// The one in front is done or dead: the next one behind it, if it is in
    /// memory. Its key stays taken then.
    pub(super) fn advance(&mut self, key: OrderKey) -> Option<Item> {
        let state = self.states.get_mut(&key)?;
        let next = state.behind.pop_front();
        state.is_taken = next.is_some();
        self.behind_rows -= usize::from(next.is_some());
        if next.is_none() {
            self.wish_drain(key);
            self.free_if_idle(key);
        }
        next
    }

    /// The one in front waits for its retry: those behind it, to be parked.
    pub(super) fn block(&mut self, key: OrderKey) -> VecDeque<Item> {
        let state = self.states.entry(key).or_default();
        (state.is_taken, state.is_waiting) = (false, true);
        self.behind_rows -= state.behind.len();
        std::mem::take(&mut state.behind)
    }

    /// The one in front is dead and blocks its key.
    pub(super) fn block_dead(&mut self, key: OrderKey, pos: Pos) -> VecDeque<Item> {
        let behind = self.block(key);
        if let Some(state) = self.states.get_mut(&key) {
            (state.is_waiting, state.dead) = (false, Some(pos));
        }
        behind
    }

    /// The one in front went back to where it was.
    pub(super) fn hand_back(&mut self, key: OrderKey, origin: Origin) {
        if let Some(state) = self.states.get_mut(&key) {
            state.is_taken = false;
            state.is_waiting |= origin == Origin::Waiting;
            state.is_parked |= origin == Origin::Parked;
        }
        self.free_if_idle(key);
    }

    /// The next key whose parked rows shall be read.
    pub(super) fn next_drain(&mut self) -> Option<OrderKey> {
        while let Some(key) = self.drains.pop_front() {
            if let Some(state) = self.states.get_mut(&key) {
                state.in_drains = false;
                if state.may_drain() {
                    state.parked_since = false;
                    return Some(key);
                }
            }
        }
        None
    }

    /// Whether parked rows of some key shall be read.
    pub(super) fn wants_drain(&self) -> bool {
        !self.drains.is_empty()
    }

    /// Parked rows of a key, those left out whose outcomes are not durable yet.
    /// The first one to send. With `is_last` no parked row is left.
    pub(super) fn take_parked(
        &mut self,
        key: OrderKey,
        rows: impl Iterator<Item = Item>,
        is_last: bool,
    ) -> Option<Item> {
        let state = self.states.entry(key).or_default();
        let before = state.behind.len();
        state.behind.extend(rows);
        self.behind_rows += state.behind.len() - before;
        if state.is_taken || state.is_waiting || state.is_behind_dead() {
            return None;
        }
        let first = state.behind.pop_front();
        state.is_taken = first.is_some();
        self.behind_rows -= usize::from(first.is_some());
        if first.is_none() {
            state.is_parked = !is_last || state.parked_since || state.parking > 0;
            self.wish_drain(key);
            self.free_if_idle(key);
        }
        first
    }

    /// What the store says: keys that are blocked (at most
    /// [`BLOCKED_KEYS_MAX`] + 1), of them those with a row that waits, and those
    /// with a dead Delivery that blocks.
    pub(super) fn load(&mut self, blocked: &[OrderKey], waiting: &[OrderKey], dead: &[(OrderKey, Pos)]) {
        self.is_loaded = true;
        self.is_truncated = blocked.len() > BLOCKED_KEYS_MAX;
        for key in blocked {
            self.states.entry(*key).or_default().is_parked = true;
        }
        for key in waiting {
            self.states.entry(*key).or_default().is_waiting = true;
        }
        for (key, pos) in dead {
            let state = self.states.entry(*key).or_default();
            state.dead = Some(state.dead.map_or(*pos, |first| first.min(*pos)));
            state.awaits = None;
        }
        for key in blocked {
            self.wish_drain(*key);
        }
    }

    /// Owed rows were read up to `cursor`, and `has` tells of those at hand:
    /// keys whose dead Delivery was not re-opened are free.
    pub(super) fn covered(&mut self, cursor: Pos, has: impl Fn(Pos) -> bool) {
        let is_over = |pos: Pos| pos <= cursor && !has(pos);
        let over = self.states.iter().filter(|(_, state)| state.awaits.is_some_and(is_over));
        let over: Vec<OrderKey> = over.map(|(key, _)| *key).collect();
        for key in over {
            if let Some(state) = self.states.get_mut(&key) {
                state.awaits = None;
            }
            self.wish_drain(key);
            self.free_if_idle(key);
        }
    }

    /// Forgets everything but what is in flight or being parked, to be loaded
    /// again; the rows that were in memory.
    pub(super) fn reset(&mut self) -> Vec<Item> {
        self.is_loaded = false;
        self.drains.clear();
        self.behind_rows = 0;
        let mut behind = Vec::new();
        for state in self.states.values_mut() {
            state.in_drains = false;
            behind.extend(state.behind.drain(..));
        }
        self.states.retain(|_, state| {
            (state.is_waiting, state.is_parked) = (false, state.parking > 0);
            state.awaits = state.dead.take().or(state.awaits);
            state.is_taken || state.parking > 0 || state.awaits.is_some()
        });
        behind
    }

    /// Nothing is taken or blocked, as far as the store was asked.
    pub(super) fn is_over(&self) -> bool {
        self.is_loaded && !self.is_truncated && self.states.is_empty()
    }

    /// Dead Deliveries block nothing any more.
    pub(super) fn release_dead(&mut self) {
        let dead: Vec<OrderKey> =
            self.states.iter().filter(|(_, state)| state.dead.is_some()).map(|(key, _)| *key).collect();
        for key in dead {
            if let Some(state) = self.states.get_mut(&key) {
                state.dead = None;
            }
            self.wish_drain(key);
            self.free_if_idle(key);
        }
    }

    /// Whether this row stands behind its key.
    pub(super) fn holds(&self, row: &OwedRow) -> bool {
        let state = row.key.and_then(|key| self.states.get(&key));
        state.is_some_and(|state| state.behind.iter().any(|item| item.row.pos == row.pos))
    }

    /// Rows in memory behind one in flight.
    pub(super) const fn behind_rows(&self) -> usize {
        self.behind_rows
    }

    /// Whether new Deliveries must wait because too many keys are blocked.
    pub(super) fn is_full(&self) -> bool {
        self.is_truncated || self.states.len() > BLOCKED_KEYS_MAX
    }

    /// Whether enough keys are free again to ask for the others.
    pub(super) fn wants_reload(&self) -> bool {
        self.is_loaded && self.is_truncated && self.states.len() < BLOCKED_KEYS_MAX / 2
    }

    fn wish_drain(&mut self, key: OrderKey) {
        if let Some(state) = self.states.get_mut(&key)
            && state.may_drain()
            && !state.in_drains
        {
            state.in_drains = true;
            self.drains.push_back(key);
        }
    }

    fn free_if_idle(&mut self, key: OrderKey) {
        if self.states.get(&key).is_some_and(KeyState::is_idle) {
            self.states.remove(&key);
        }
    }
}

impl KeyState {
    const fn is_behind_dead(&self) -> bool {
        self.dead.is_some() || self.awaits.is_some()
    }

    fn may_drain(&self) -> bool {
        let is_blocked = self.is_taken || self.is_waiting || self.is_behind_dead();
        self.is_parked && self.parking == 0 && !is_blocked && self.behind.is_empty()
    }

    fn is_idle(&self) -> bool {
        let is_blocked = self.is_taken || self.is_waiting || self.is_parked || self.is_behind_dead();
        !is_blocked && self.parking == 0 && self.behind.is_empty()
    }
}
