//! What the engine asks of the store, and what it makes of the answers.
//!
//! A hook has one question about rows open at a time, and one about bodies. All
//! hooks together have few: the store has few readers, and what is read takes
//! memory before it is asked for by anybody.

use super::{
    engine::{Action, CACHED_BYTES_MAX, Engine, Globals, IN_FLIGHT_MAX, Now, SUSPECTS_MAX},
    hook::{After, Closed, Hook, Item, Origin, Trust},
};
use crate::{
    event::{Pos, StoreTime},
    store::{BlockedKey, DeadReason, HookId, OrderKey, OwedPage, OwedRow, StoredEvent, WaitingPage},
};

/// Questions about rows that are open at once.
pub(super) const QUESTIONS_OPEN_MAX: usize = 64;
/// Bodies that are asked for at once; each may have 1 MiB.
pub(super) const BODIES_OPEN_MAX: usize = 64;
/// Bodies that one hook asks for at once.
pub(super) const BODIES_MAX: usize = 32;
/// Due rows that one hook reads at once.
pub(super) const DUE_ROWS: usize = 64;
/// Parked rows of a key that are read at once.
const PARKED_ROWS: usize = 16;
/// Hooks that may ask for bodies again after an answer brought room.
const FETCH_TURNS: usize = 8;
/// When a probe found no place among the running attempts.
const PROBE_AGAIN_MS: i64 = 1_000;
/// When there was nothing to probe with.
const PROBE_IDLE_MS: i64 = 30_000;

/// A question to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Owed {
        after: Pos,
        limit: usize,
    },
    Waiting {
        now: StoreTime,
        limit: usize,
    },
    /// The oldest Delivery that is not behind another one, with its event.
    Probe {
        blocks_on_dead: bool,
    },
    /// Blocked keys, and by what.
    Keys {
        blocks_on_dead: bool,
    },
    Parked {
        key: OrderKey,
        limit: usize,
    },
    Bodies {
        positions: Vec<Pos>,
    },
}

/// An answer of the store.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Owed(OwedPage),
    Waiting(WaitingPage),
    Probe(Option<(OwedRow, Origin, StoredEvent)>),
    Keys(Vec<BlockedKey>),
    Parked(Vec<OwedRow>),
    Bodies(Vec<StoredEvent>),
}

/// What a hook wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Owed,
    Waiting,
    Probe,
    Keys,
    Parked,
}

/// What a hook wants to know now. Held hooks want to know nothing.
pub(super) fn wanted(globals: &Globals, hook: &Hook, now: StoreTime) -> Option<Wanted> {
    if hook.asking.is_some() || !hook.is_known {
        return None;
    }
    match hook.closed {
        Some(Closed::Circuit) => {
            let at = hook.circuit.as_ref().and_then(|circuit| circuit.probe_at_ms()).map(StoreTime);
            let is_time = at.max(hook.probe_not_before).is_some_and(|at| at <= now);
            // What is in the air decides which Delivery is the oldest of its key.
            let is_quiet = hook.flying.is_empty() && hook.recording.is_empty();
            return (is_time && is_quiet).then_some(Wanted::Probe);
        }
        Some(Closed::Hold | Closed::Pause) => return None,
        None => {}
    }
    if let Some(keys) = &hook.keys {
        if !keys.is_loaded {
            // What is in the air decides which keys are blocked.
            return (hook.flying.is_empty() && hook.recording.is_empty()).then_some(Wanted::Keys);
        }
        if keys.wants_drain() {
            return Some(Wanted::Parked);
        }
    }
    if hook.due.is_empty() && hook.next_due.is_some_and(|due| due <= now) {
        return Some(Wanted::Waiting);
    }
    let has_room = hook.window_len() <= globals.window_rows() / 4;
    (hook.is_spilled && has_room && !hook.is_blocked_by_keys()).then_some(Wanted::Owed)
}

impl Engine {
    /// Asks what hooks want to know, as far as there is room for answers.
    pub(super) fn ask_questions(&mut self, now: Now) {
        let Self { hooks, globals } = self;
        while globals.open_questions < QUESTIONS_OPEN_MAX {
            let Some(id) = globals.questions.pop_front() else { break };
            let Some(hook) = hooks.get_mut(&id) else { continue };
            hook.in_questions = false;
            let Some(question) = globals.question(hook, now.store) else { continue };
            let Some(serial) = globals.last_serial.checked_add(1) else { break };
            globals.last_serial = serial;
            globals.open_questions += 1;
            globals.metrics.reads.inc();
            hook.asking = Some(serial);
            globals.actions.push(Action::Ask { hook: id, serial, question });
        }
        if globals.open_bodies == 0 {
            globals.wake_fetchers(hooks);
        }
    }

    /// The store answered.
    pub(super) fn answered(
        &mut self,
        id: HookId,
        serial: std::num::NonZeroU64,
        question: Question,
        reply: Reply,
        now: Now,
    ) {
        let Self { hooks, globals } = self;
        if let (Question::Bodies { positions }, Reply::Bodies(events)) = (&question, &reply) {
            globals.open_bodies = globals.open_bodies.saturating_sub(positions.len());
            if let Some(hook) = hooks.get_mut(&id) {
                hook.is_fetching = false;
                globals.take_bodies(hook, positions, events);
                globals.settle(hook, now);
            }
            globals.wake_fetchers(hooks);
            return;
        }
        globals.open_questions -= 1;
        let Some(hook) = hooks.get_mut(&id).filter(|hook| hook.asking == Some(serial)) else { return };
        hook.asking = None;
        let back_to = hook.back_to.take();
        let is_stale = std::mem::take(&mut hook.is_stale);
        match (question, reply) {
            (Question::Owed { limit, .. }, Reply::Owed(page)) => globals.take_owed(hook, page, limit, back_to),
            (Question::Waiting { .. }, Reply::Waiting(page)) => globals.take_waiting(hook, page, back_to),
            (Question::Parked { key, .. }, Reply::Parked(rows)) => globals.take_parked(hook, key, &rows),
            // Else they are asked for again.
            (_, Reply::Keys(blocked)) if !is_stale => {
                if let Some(keys) = hook.keys.as_mut().filter(|_| hook.closed.is_none()) {
                    keys.load(&blocked);
                }
            }
            (_, Reply::Probe(found)) => globals.take_probe(hook, found, back_to, now),
            // The shell answers each question in its kind.
            (_, _) => {}
        }
        hook.finished.clear();
        globals.settle(hook, now);
    }
}

impl Globals {
    fn question(&mut self, hook: &mut Hook, now: StoreTime) -> Option<Question> {
        loop {
            let window = self.window_rows();
            return Some(match wanted(self, hook, now)? {
                Wanted::Owed => {
                    let limit = window.saturating_sub(hook.window_len()).max(1);
                    Question::Owed { after: hook.cursor, limit }
                }
                Wanted::Waiting => {
                    hook.next_due = None;
                    let known = hook.flying.len() + hook.recording.len();
                    Question::Waiting { now, limit: window.min(DUE_ROWS) + known }
                }
                Wanted::Probe => Question::Probe { blocks_on_dead: hook.settings.blocks_on_dead },
                Wanted::Keys => Question::Keys { blocks_on_dead: hook.settings.blocks_on_dead },
                Wanted::Parked => match hook.keys.as_mut().and_then(|keys| keys.next_drain()) {
                    Some(key) => Question::Parked { key, limit: PARKED_ROWS + hook.recording.len() },
                    None => continue,
                },
            });
        }
    }

    /// Owed rows from `from` on are read again. What the queue has of them goes: it
    /// would be there twice.
    pub(super) fn read_again(&mut self, hook: &mut Hook, from: Pos) {
        let freed = hook.unload_queue(from);
        self.free(freed);
        hook.set_back(from);
    }

    /// A row that was in flight is where it was in the store: read it again.
    pub(super) fn reread(&mut self, hook: &mut Hook, pos: Pos, origin: Origin) {
        match origin {
            Origin::Owed => self.read_again(hook, pos),
            Origin::Waiting | Origin::Parked => hook.reread(pos, origin),
        }
    }

    /// Rows from `from` on changed in the store: those that wait may have ended,
    /// and other keys are blocked.
    pub(super) fn changed(&mut self, hook: &mut Hook, from: Pos) {
        self.reload_keys(hook);
        self.read_again(hook, from);
        let freed = hook.unload_due(from);
        self.free(freed);
    }

    /// What is known of a hook's keys is worth nothing: they are asked for again.
    pub(super) fn reload_keys(&mut self, hook: &mut Hook) {
        if hook.keys.is_some() {
            self.unload(hook);
            hook.is_stale = hook.asking.is_some();
        }
    }

    fn take_owed(&mut self, hook: &mut Hook, page: OwedPage, limit: usize, back_to: Option<Pos>) {
        if hook.closed.is_some() {
            // Read again once it is released: the cursor has not moved.
            return;
        }
        let OwedPage { rows, covered } = page;
        let is_exhausted = rows.len() < limit && back_to.is_none();
        let upto = back_to.unwrap_or(Pos(u64::MAX));
        let mut again = None;
        for row in rows.into_iter().take_while(|row| row.pos <= upto) {
            if hook.recording.iter().any(|(known, _)| *known == row.pos) {
                hook.seen_again.push(row.pos);
            } else if hook.finished.contains(&row.pos) {
                // Read before its outcome was durable, or re-opened after it.
                again = again.or(Some(row.pos));
            } else if !hook.holds(&row) {
                let item = Item::new(row, Origin::Owed);
                self.count_in(&item);
                hook.only_late = false;
                hook.queue.push_back(item);
            }
        }
        hook.cursor = if back_to.is_some() { covered.min(upto) } else { covered.max(hook.cursor) };
        if is_exhausted && hook.cursor >= hook.spilled_to {
            hook.is_spilled = false;
        }
        if let Some(pos) = again {
            self.read_again(hook, pos);
        }
    }

    fn take_waiting(&mut self, hook: &mut Hook, page: WaitingPage, back_to: Option<Pos>) {
        // Keys that were forgotten meanwhile are loaded first: a row that is sent
        // before that would count as waiting for ever.
        if hook.closed.is_some() || hook.keys.as_ref().is_some_and(|keys| !keys.is_loaded) {
            hook.next_due = Some(StoreTime(i64::MIN));
            return;
        }
        let upto = back_to.unwrap_or(Pos(u64::MAX));
        for row in page.rows {
            if row.pos > upto {
                // Rows changed after this was read: it is read again.
                hook.next_due = Some(StoreTime(i64::MIN));
            } else if !hook.holds(&row) {
                let item = Item::new(row, Origin::Waiting);
                self.count_in(&item);
                hook.due.push_back(item);
            }
        }
        hook.next_due = [hook.next_due, page.next_due].into_iter().flatten().min();
    }

    fn take_parked(&mut self, hook: &mut Hook, key: OrderKey, rows: &[OwedRow]) {
        if hook.closed.is_some() {
            return;
        }
        // Keys that were forgotten meanwhile are asked for again.
        let Some(keys) = hook.keys.as_ref().filter(|keys| keys.is_loaded) else { return };
        let sendable = keys.sendable(key, rows).iter().filter(|row| !hook.holds(row));
        let fresh: Vec<Item> = sendable.map(|row| Item::new(*row, Origin::Parked)).collect();
        fresh.iter().for_each(|item| self.count_in(item));
        let Some(keys) = hook.keys.as_mut() else { return };
        if let Some(mut first) = keys.take_parked(key, fresh.into_iter(), rows.first().map(|row| row.pos)) {
            first.has_turn = true;
            hook.due.push_back(first);
        }
    }

    fn take_probe(
        &mut self,
        hook: &mut Hook,
        found: Option<(OwedRow, Origin, StoredEvent)>,
        back_to: Option<Pos>,
        now: Now,
    ) {
        if hook.closed != Some(Closed::Circuit) {
            return;
        }
        let Some((row, origin, stored)) = found else {
            hook.probe_not_before = Some(now.store.plus_ms(PROBE_IDLE_MS));
            return;
        };
        if back_to.is_some_and(|upto| row.pos > upto) {
            // Rows changed after this was read: it is read again.
            return;
        }
        let is_crowded = self.flights.len() >= IN_FLIGHT_MAX
            || (hook.trust == Trust::Suspect && self.suspects >= SUSPECTS_MAX)
            || hook.holds(&row)
            || self.is_stopping;
        if is_crowded {
            hook.probe_not_before = Some(now.store.plus_ms(PROBE_AGAIN_MS));
            return;
        }
        hook.probe_not_before = None;
        match stored {
            StoredEvent::Event(event) => {
                if let (Some(keys), Some(key)) = (hook.keys.as_mut(), row.key) {
                    keys.take(key, origin);
                }
                self.start(hook, Item { row, event: Some(event), origin, has_turn: true }, true, now);
            }
            StoredEvent::Corrupt => self.give_up(hook, row, DeadReason::Corrupt),
            StoredEvent::Missing => hook.probe_not_before = Some(now.store.plus_ms(PROBE_IDLE_MS)),
        }
    }

    /// Asks for the bodies of the next rows of a hook, beginning with the source
    /// whose turn it is.
    pub(super) fn fetch(&mut self, hook: &mut Hook, takes_due: bool) {
        hook.is_fetching = true;
        let room = BODIES_OPEN_MAX.saturating_sub(self.open_bodies);
        if room == 0 {
            self.fetch_ring.push_back(hook.id);
            return;
        }
        // A hook that sends one at a time holds no bodies beyond that one.
        let is_narrow = self.bytes >= CACHED_BYTES_MAX || hook.trust != Trust::Proven;
        let limit = if is_narrow { 1 } else { BODIES_MAX.min(room) };
        let (first, second) = if takes_due { (&hook.due, &hook.queue) } else { (&hook.queue, &hook.due) };
        let bare = first.iter().chain(second).filter(|item| item.event.is_none());
        let positions: Vec<Pos> = bare.take(limit).map(|item| item.row.pos).collect();
        self.open_bodies += positions.len();
        self.metrics.reads.inc();
        self.actions.push(Action::Ask {
            hook: hook.id,
            serial: self.last_serial,
            question: Question::Bodies { positions },
        });
    }

    fn take_bodies(&mut self, hook: &mut Hook, positions: &[Pos], events: &[StoredEvent]) {
        let found = |pos: Pos| positions.iter().zip(events).find(|(known, _)| **known == pos).map(|(_, stored)| stored);
        let mut bad = Vec::new();
        for item in hook.due.iter_mut().chain(hook.queue.iter_mut()).filter(|item| item.event.is_none()) {
            match found(item.row.pos) {
                Some(StoredEvent::Event(event)) => {
                    item.event = Some(std::sync::Arc::clone(event));
                    self.bytes += item.bytes();
                }
                Some(StoredEvent::Corrupt) => bad.push((item.clone(), true)),
                Some(StoredEvent::Missing) => bad.push((item.clone(), false)),
                None => {}
            }
        }
        for (item, is_corrupt) in bad {
            hook.due.retain(|other| other.row.pos != item.row.pos);
            hook.queue.retain(|other| other.row.pos != item.row.pos);
            self.count_out(&item);
            if is_corrupt {
                self.give_up(hook, item.row, DeadReason::Corrupt);
            } else {
                // Its event is purged: the row goes with it.
                tracing::warn!(hook = hook.id.0, pos = item.row.pos.0, "an owed event is not in the store");
                self.key_is_done(hook, &item.row);
            }
        }
    }

    /// Lets hooks that wait for room for bodies take their turn again.
    fn wake_fetchers(&mut self, hooks: &mut super::engine::Hooks) {
        for _ in 0..FETCH_TURNS {
            let Some(id) = self.fetch_ring.pop_front() else { break };
            if let Some(hook) = hooks.get_mut(&id) {
                hook.is_fetching = false;
                self.mark_ready(hook);
            }
        }
    }

    /// A row ends without an attempt: its outcome.
    pub(super) fn give_up(&mut self, hook: &mut Hook, row: OwedRow, reason: DeadReason) {
        self.push_outcome(hook, row, None, crate::store::Next::Dead(reason), After::Nothing);
        if hook.settings.blocks_on_dead {
            self.key_blocks(hook, &row, true);
        } else {
            self.key_is_done(hook, &row);
        }
    }
}
