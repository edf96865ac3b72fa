//! One hook: its window on what is owed, and what it may do now.
//!
//! # The window
//! `queue` holds owed rows in the order of their positions, `due` rows whose turn
//! has come again. Every owed row up to `cursor` is in memory (queued, behind a
//! key, in flight or being recorded) or has left `owed`. What is committed
//! behind `cursor` while there is no room makes the hook *spilled*: it is read
//! from the store until an answer has covered `spilled_to`.
//!
//! An answer of the store may be older than what happened since the question.
//! So a row that was recorded while a question was open is remembered until its
//! answer came (`finished`), and whatever moves the cursor back meanwhile cuts
//! the answer (`back_to`).

use std::{collections::VecDeque, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use smallvec::SmallVec;

use super::{Hold, HookView, metrics::HoldLabel, order::Keys, turns::Lane};
use crate::{
    api::Reason,
    event::{Event, Pos, StoreTime},
    policy::{circuit::Circuit, delivery::DeliverySettings, rate::RateLimiter},
    routing::index::WebhookEntry,
    store::{HookId, OwedRow},
};

/// Where a row stands in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Owed,
    Waiting,
    Parked,
}

/// A row in memory.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) row: OwedRow,
    pub(super) event: Option<Arc<Event>>,
    pub(super) origin: Origin,
    /// Its key is taken for it already.
    pub(super) has_turn: bool,
}

impl Item {
    pub(super) fn new(row: OwedRow, origin: Origin) -> Self {
        Self { row, event: None, origin, has_turn: false }
    }

    pub(super) fn bytes(&self) -> usize {
        self.event.as_ref().map_or(0, |event| event.memory_bytes())
    }
}

/// What is to be done once an outcome is durable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum After {
    Nothing,
    /// The row waits until then.
    Due(StoreTime),
    /// The row is where it was: read it again.
    Again(Origin),
    /// The row is parked behind this key.
    Parked(crate::store::OrderKey),
}

/// What the past attempts say of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// No attempt has ended: one at a time.
    Unproven,
    /// The last one that spoke of the endpoint succeeded.
    Proven,
    /// The last one that spoke of the endpoint failed: one at a time, and all
    /// such hooks together have a limit.
    Suspect,
}

/// Why nothing is sent to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Closed {
    /// The Webhook is gone, suspended, or held by the sender.
    Hold,
    /// The endpoint asked for a pause.
    Pause,
    /// The circuit is open.
    Circuit,
}

impl Closed {
    pub(super) const fn label(self) -> HoldLabel {
        HoldLabel {
            by: match self {
                Self::Hold => "hold",
                Self::Pause => "pause",
                Self::Circuit => "circuit",
            },
        }
    }
}

/// A hold until a time, or until the Webhook changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HoldUntil {
    pub(super) hold: Hold,
    pub(super) until: Option<StoreTime>,
}

/// How an endpoint does, in a form that is cheap to compare.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum HealthKey {
    Healthy,
    /// Paused, circuit open, or neither: only failures in a row.
    Failing(Option<Closed>, Reason),
    Held(Box<Hold>),
}

#[derive(Debug)]
pub(super) struct Hook {
    pub(super) id: HookId,
    pub(super) namespace: Arc<str>,
    pub(super) webhook: Option<Arc<WebhookEntry>>,
    pub(super) settings: Arc<DeliverySettings>,
    pub(super) withdrawn: Option<Timestamp>,
    pub(super) queue: VecDeque<Item>,
    pub(super) due: VecDeque<Item>,
    pub(super) flying: SmallVec<[Pos; 1]>,
    pub(super) recording: VecDeque<(Pos, After)>,
    pub(super) finished: Vec<Pos>,
    /// Rows that an answer showed though their outcome is not durable.
    pub(super) seen_again: Vec<Pos>,
    pub(super) cursor: Pos,
    pub(super) spilled_to: Pos,
    pub(super) back_to: Option<Pos>,
    pub(super) next_due: Option<StoreTime>,
    pub(super) rate_at: Option<StoreTime>,
    pub(super) probe_not_before: Option<StoreTime>,
    pub(super) paused_until: Option<StoreTime>,
    /// The time under which the hook stands among the timers.
    pub(super) timer: Option<StoreTime>,
    pub(super) hold: Option<Box<HoldUntil>>,
    pub(super) circuit: Option<Box<Circuit>>,
    pub(super) limiter: Option<Box<RateLimiter>>,
    pub(super) keys: Option<Box<Keys>>,
    pub(super) health: Option<HealthKey>,
    /// Why the last attempt that failed did, and its status code.
    pub(super) last_failure: Option<(Reason, Option<u16>)>,
    pub(super) deficit: u32,
    /// Number of the view that the index gave, and of the endpoint in it.
    pub(super) view: u32,
    pub(super) endpoint: u32,
    pub(super) failures_in_row: u16,
    /// Number of the question that is open.
    pub(super) asking: Option<std::num::NonZeroU64>,
    pub(super) trust: Trust,
    pub(super) closed: Option<Closed>,
    pub(super) is_known: bool,
    pub(super) is_removed: bool,
    pub(super) is_spilled: bool,
    pub(super) is_fetching: bool,
    /// Something changed that the answer to the open question may not know of.
    pub(super) is_stale: bool,
    /// Everything in the queue came by fan-outs.
    pub(super) only_late: bool,
    pub(super) lane: Option<Lane>,
    pub(super) in_suspects: bool,
    pub(super) in_questions: bool,
    pub(super) takes_due_next: bool,
}

impl Hook {
    /// A hook that only the store has spoken of so far: nothing is sent.
    pub(super) fn unknown(id: HookId, before: Pos) -> Box<Self> {
        Box::new(Self {
            id,
            namespace: "".into(),
            webhook: None,
            settings: Arc::default(),
            withdrawn: None,
            queue: VecDeque::new(),
            due: VecDeque::new(),
            flying: SmallVec::new(),
            recording: VecDeque::new(),
            finished: Vec::new(),
            seen_again: Vec::new(),
            cursor: before,
            spilled_to: Pos(0),
            back_to: None,
            next_due: None,
            rate_at: None,
            probe_not_before: None,
            paused_until: None,
            timer: None,
            hold: None,
            circuit: None,
            limiter: None,
            keys: None,
            health: None,
            last_failure: None,
            deficit: 0,
            view: 0,
            endpoint: 0,
            failures_in_row: 0,
            asking: None,
            trust: Trust::Unproven,
            closed: None,
            is_known: false,
            is_removed: false,
            is_spilled: false,
            is_fetching: false,
            is_stale: false,
            only_late: false,
            lane: None,
            in_suspects: false,
            in_questions: false,
            takes_due_next: false,
        })
    }

    /// Takes the view of the index over. True if it is another generation of
    /// the Webhook: what is known of the endpoint is worth nothing then.
    pub(super) fn take_view(&mut self, view: HookView) -> bool {
        let HookView { id: _, namespace, webhook, settings, notes, has_backlog } = view;
        let generation = |entry: &Option<Arc<WebhookEntry>>| entry.as_ref().map(|e| (e.uid.clone(), e.generation));
        let is_other = self.webhook.is_some() && webhook.is_some() && generation(&self.webhook) != generation(&webhook);
        (self.namespace, self.webhook, self.settings) = (namespace, webhook, settings);
        self.is_removed = false;
        self.view = self.view.wrapping_add(1);
        if !self.is_known {
            self.is_known = true;
            self.withdrawn = notes.withdrawn;
            self.paused_until = notes.held_until;
            self.circuit = notes.circuit.map(|text| Box::new(Circuit::from_text(&text)));
            if has_backlog {
                // Rows may be parked from when it was ordered.
                self.keys.get_or_insert_default();
                // From the beginning; how far, the answer tells: nothing may be
                // left by then.
                self.set_back(Pos(0));
                self.next_due = Some(StoreTime(i64::MIN));
            }
        }
        if !self.settings.rate.is_some_and(|rate| self.limiter.as_ref().is_some_and(|limiter| limiter.is_of(rate))) {
            self.limiter = self.settings.rate.map(|rate| Box::new(RateLimiter::new(rate)));
            self.rate_at = None;
        }
        is_other
    }

    /// Why nothing may be sent now.
    pub(super) fn judge_closed(&self, now: StoreTime) -> Option<Closed> {
        let is_suspended = self.webhook.as_ref().is_none_or(|webhook| webhook.suspended);
        if is_suspended || self.hold.as_ref().is_some_and(|hold| hold.until.is_none_or(|until| until > now)) {
            return Some(Closed::Hold);
        }
        if self.paused_until.is_some_and(|until| until > now) {
            return Some(Closed::Pause);
        }
        (self.circuit_at_once() == Some(0)).then_some(Closed::Circuit)
    }

    pub(super) fn circuit_at_once(&self) -> Option<u16> {
        self.circuit.as_ref().and_then(|circuit| circuit.at_once())
    }

    /// Requests that may run at once, by what this hook is and does.
    pub(super) fn at_once(&self) -> usize {
        if self.trust != Trust::Proven {
            return 1;
        }
        let own = self.settings.concurrency;
        usize::from(self.circuit_at_once().map_or(own, |ramp| ramp.min(own)))
    }

    /// When something happens to this hook by itself, as things are.
    pub(super) fn next_timer(&self) -> Option<StoreTime> {
        match self.closed {
            Some(Closed::Hold) => self.hold.as_ref().and_then(|hold| hold.until),
            Some(Closed::Pause) => self.paused_until,
            Some(Closed::Circuit) if self.asking.is_none() && self.flying.is_empty() => {
                let at = self.circuit.as_ref().and_then(|circuit| circuit.probe_at_ms()).map(StoreTime);
                at.max(self.probe_not_before)
            }
            Some(Closed::Circuit) => None,
            None => {
                // With rows at hand, due ones are asked for when those are gone.
                let due = self.next_due.filter(|_| self.asking.is_none() && self.due.is_empty());
                [due, self.rate_at].into_iter().flatten().min()
            }
        }
    }

    /// Rows in the window.
    pub(super) fn window_len(&self) -> usize {
        self.queue.len() + self.keys.as_ref().map_or(0, |keys| keys.behind_rows())
    }

    /// Due rows and new ones take turns: true for the due ones.
    pub(super) fn next_source(&self) -> Option<bool> {
        // The one whose turn it is has its key already.
        let has_new = self.queue.front().is_some_and(|item| item.has_turn || !self.is_blocked_by_keys());
        match (self.due.is_empty(), has_new) {
            (true, false) => None,
            (true, true) => Some(false),
            (false, false) => Some(true),
            (false, true) => Some(self.takes_due_next),
        }
    }

    /// Due rows, or new ones.
    pub(super) fn source(&mut self, takes_due: bool) -> &mut VecDeque<Item> {
        if takes_due { &mut self.due } else { &mut self.queue }
    }

    /// Whether it has nothing but Deliveries of fan-outs.
    pub(super) fn is_late(&self) -> bool {
        self.only_late && self.due.is_empty()
    }

    /// Whether some row waits in memory for its turn.
    pub(super) fn has_work(&self) -> bool {
        self.next_source().is_some()
    }

    /// New Deliveries must wait: too many keys are blocked, or they are unknown.
    pub(super) fn is_blocked_by_keys(&self) -> bool {
        // Without an order only those wait that were routed while there was one.
        let is_ordered = self.settings.is_ordered;
        self.keys.as_ref().is_some_and(|keys| !keys.is_loaded || (is_ordered && keys.is_full()))
    }

    /// Whether this row is in memory elsewhere than in `queue`.
    pub(super) fn holds(&self, row: &OwedRow) -> bool {
        let pos = row.pos;
        self.flying.contains(&pos)
            || self.keys.as_ref().is_some_and(|keys| keys.holds(row))
            || self.recording.iter().any(|(known, _)| *known == pos)
            || self.due.iter().any(|item| item.row.pos == pos)
            || self.finished.contains(&pos)
    }

    /// Owed rows from `from` on are read again.
    pub(super) fn set_back(&mut self, from: Pos) {
        let before = Pos(from.0.saturating_sub(1));
        self.spilled_to = self.spilled_to.max(from);
        self.is_spilled = true;
        self.cursor = self.cursor.min(before);
        if self.asking.is_some() {
            self.back_to = Some(self.back_to.map_or(before, |back| back.min(before)));
        }
    }

    /// Takes the queue from `from` on out of memory; it will be read again. The
    /// number of rows and of bytes that this frees.
    pub(super) fn unload_queue(&mut self, from: Pos) -> (usize, usize) {
        let at = self.queue.partition_point(|item| item.row.pos < from);
        let Some(first) = self.queue.get(at).map(|item| item.row.pos) else { return (0, 0) };
        let last = self.queue.back().map_or(first, |item| item.row.pos);
        let (mut freed, mut behind) = ((0, 0), VecDeque::new());
        for item in self.queue.drain(at..) {
            freed = (freed.0 + 1, freed.1 + item.bytes());
            behind.append(&mut give_turn_back(&mut self.keys, &item));
        }
        self.spilled_to = self.spilled_to.max(last);
        self.set_back(first);
        for item in behind {
            freed = (freed.0 + 1, freed.1 + item.bytes());
            self.reread(item.row.pos, item.origin);
        }
        self.trim();
        freed
    }

    /// Takes due rows from `from` on out of memory; they will be read again. What
    /// that frees.
    pub(super) fn unload_due(&mut self, from: Pos) -> (usize, usize) {
        let mut freed = (0, 0);
        let mut is_changed = false;
        self.due.retain(|item| {
            // A row that has its turn is not among those that the store gives.
            if item.row.pos < from || item.has_turn {
                return true;
            }
            freed = (freed.0 + 1, freed.1 + item.bytes());
            is_changed = true;
            false
        });
        if is_changed {
            self.next_due = Some(StoreTime(i64::MIN));
        }
        freed
    }

    /// The Webhook is gone: what is known of it is worth nothing if one of its
    /// name comes again.
    pub(super) fn forget_webhook(&mut self) {
        (self.webhook, self.is_removed, self.is_known) = (None, true, false);
        self.endpoint = self.endpoint.wrapping_add(1);
        (self.trust, self.failures_in_row, self.last_failure) = (Trust::Unproven, 0, None);
        (self.hold, self.paused_until, self.circuit, self.withdrawn) = (None, None, None, None);
        (self.health, self.probe_not_before) = (None, None);
    }

    /// Takes everything that is not in flight out of memory.
    pub(super) fn unload(&mut self) -> (usize, usize) {
        let (mut rows, mut bytes) = self.unload_queue(Pos(0));
        let due = std::mem::take(&mut self.due);
        let mut behind: Vec<Item> = due.iter().flat_map(|item| give_turn_back(&mut self.keys, item)).collect();
        behind.extend(self.keys.as_mut().map(|keys| keys.reset()).unwrap_or_default());
        for item in due.into_iter().chain(behind) {
            rows += 1;
            bytes += item.bytes();
            self.reread(item.row.pos, item.origin);
        }
        self.trim();
        (rows, bytes)
    }

    /// A row that was in memory is where it was in the store: read it again.
    pub(super) fn reread(&mut self, pos: Pos, origin: Origin) {
        match origin {
            Origin::Owed => self.set_back(pos),
            Origin::Waiting => self.next_due = Some(StoreTime(i64::MIN)),
            // Its key is asked for again.
            Origin::Parked => {}
        }
    }

    /// Gives memory of the past back when nothing is left in it.
    pub(super) fn trim(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > KEEP_ROWS {
            self.queue = VecDeque::new();
        }
        if self.due.is_empty() && self.due.capacity() > KEEP_ROWS {
            self.due = VecDeque::new();
        }
        if self.recording.is_empty() && self.recording.capacity() > KEEP_ROWS {
            self.recording = VecDeque::new();
        }
        if self.finished.is_empty() && self.finished.capacity() > KEEP_ROWS {
            self.finished = Vec::new();
        }
    }
}

/// The turn of a row goes back; the rows that stood behind it.
fn give_turn_back(keys: &mut Option<Box<Keys>>, item: &Item) -> VecDeque<Item> {
    match (keys, item.row.key) {
        (Some(keys), Some(key)) if item.has_turn => keys.hand_back(key, item.row.pos, item.origin),
        _ => VecDeque::new(),
    }
}

/// Rows for which an idle hook keeps room.
const KEEP_ROWS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_hook_is_small() {
        assert!(size_of::<Hook>() <= 480, "{}", size_of::<Hook>());
        assert!(size_of::<Item>() <= 64, "{}", size_of::<Item>());
    }
}
