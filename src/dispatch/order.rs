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
//! A dead Delivery that blocks its key blocks what is younger. What is older, a
//! Delivery that a Replay re-opened, is parked and sent as if it were not there.
//! What blocks a key is asked of the store again whenever rows of the hook change
//! behind the dispatcher's back: nothing is remembered that the rows do not say.
//!
//! A hook that is no longer ordered keeps its keys until nothing of them is
//! blocked: nobody else reads what is parked.

use std::collections::{HashMap, VecDeque};

use super::hook::{Item, Origin};
use crate::{
    event::Pos,
    store::{BlockedKey, OrderKey, OwedRow},
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
    /// Rows are parked, none of them before this position.
    parked: Option<Pos>,
    /// Rows that are being parked and are not durable there.
    parking: u32,
    /// Something was parked since the parked rows were asked for.
    parked_since: bool,
    in_drains: bool,
    /// The first dead Delivery that blocks.
    dead: Option<Pos>,
    /// In the order of their positions.
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
        if state.is_waiting || state.parked.is_some() || !state.comes_before_dead(pos) {
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
    }

    /// Keeps a row behind the one in flight.
    pub(super) fn keep_behind(&mut self, key: OrderKey, item: Item) {
        let behind = &mut self.states.entry(key).or_default().behind;
        // A backfill brings older rows late.
        let at = behind.partition_point(|other| other.row.pos < item.row.pos);
        behind.insert(at, item);
        self.behind_rows += 1;
    }

    /// The row at this position is being parked.
    pub(super) fn parking(&mut self, key: OrderKey, pos: Pos) {
        let state = self.states.entry(key).or_default();
        state.parking += 1;
        state.parked = Some(state.parked.map_or(pos, |first| first.min(pos)));
        state.parked_since = true;
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
            state.is_waiting = false;
            state.dead = Some(state.dead.map_or(pos, |first| first.min(pos)));
        }
        behind
    }

    /// The one in front, at this position, went back to where it was: the rows
    /// behind it, which go back too.
    pub(super) fn hand_back(&mut self, key: OrderKey, pos: Pos, origin: Origin) -> VecDeque<Item> {
        let Some(state) = self.states.get_mut(&key) else { return VecDeque::new() };
        state.is_taken = false;
        state.is_waiting |= origin == Origin::Waiting;
        let behind = std::mem::take(&mut state.behind);
        let parked = behind.iter().filter(|item| item.origin == Origin::Parked).map(|item| item.row.pos);
        let parked = parked.chain((origin == Origin::Parked).then_some(pos));
        state.parked = state.parked.into_iter().chain(parked).min();
        self.behind_rows -= behind.len();
        self.wish_drain(key);
        self.free_if_idle(key);
        behind
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

    /// Parked rows of a key in their order, as far as they come before what is dead
    /// and blocks it.
    pub(super) fn sendable<'a>(&self, key: OrderKey, rows: &'a [OwedRow]) -> &'a [OwedRow] {
        let state = self.states.get(&key);
        let end = rows.iter().position(|row| state.is_some_and(|state| !state.comes_before_dead(row.pos)));
        &rows[..end.unwrap_or(rows.len())]
    }

    /// Takes parked rows of a key that may be sent, those left out whose outcomes
    /// are not durable yet. The first one to send. `first` is the first row that the
    /// store showed; none: no row is left.
    pub(super) fn take_parked(
        &mut self,
        key: OrderKey,
        rows: impl Iterator<Item = Item>,
        first: Option<Pos>,
    ) -> Option<Item> {
        let state = self.states.entry(key).or_default();
        let before = state.behind.len();
        state.behind.extend(rows);
        self.behind_rows += state.behind.len() - before;
        if !state.parked_since && state.parking == 0 {
            state.parked = first;
        }
        if state.is_taken || state.is_waiting {
            return None;
        }
        let next = state.behind.pop_front();
        state.is_taken = next.is_some();
        self.behind_rows -= usize::from(next.is_some());
        if next.is_none() {
            self.wish_drain(key);
            self.free_if_idle(key);
        }
        next
    }

    /// What the store says: keys that are blocked, at most [`BLOCKED_KEYS_MAX`] + 1.
    pub(super) fn load(&mut self, blocked: &[BlockedKey]) {
        self.is_loaded = true;
        self.is_truncated = blocked.len() > BLOCKED_KEYS_MAX;
        for &BlockedKey { key, is_waiting, parked, dead } in blocked {
            let state = self.states.entry(key).or_default();
            (state.is_waiting, state.parked, state.dead) = (is_waiting, parked, dead);
            self.wish_drain(key);
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
            (state.is_waiting, state.dead) = (false, None);
            state.parked = state.parked.filter(|_| state.parking > 0);
            state.is_taken || state.parking > 0
        });
        behind
    }

    /// Nothing is taken or blocked, as far as the store was asked.
    pub(super) fn is_over(&self) -> bool {
        self.is_loaded && !self.is_truncated && self.states.is_empty()
    }

    /// Whether this row stands behind its key.
    pub(super) fn holds(&self, row: &OwedRow) -> bool {
        let state = row.key.and_then(|key| self.states.get(&key));
        state.is_some_and(|state| state.behind.binary_search_by_key(&row.pos, |item| item.row.pos).is_ok())
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
    fn comes_before_dead(&self, pos: Pos) -> bool {
        self.dead.is_none_or(|dead| pos < dead)
    }

    fn may_drain(&self) -> bool {
        let is_free = !self.is_taken && !self.is_waiting && self.behind.is_empty();
        is_free && self.parking == 0 && self.parked.is_some_and(|first| self.comes_before_dead(first))
    }

    fn is_idle(&self) -> bool {
        let is_blocked = self.is_taken || self.is_waiting || self.parked.is_some() || self.dead.is_some();
        !is_blocked && self.parking == 0 && self.behind.is_empty()
    }
}
