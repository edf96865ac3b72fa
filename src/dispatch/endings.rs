//! What follows the end of an attempt: for its Delivery, its key, its endpoint.

use std::{sync::Arc, time::Duration};

use super::{
    AttemptReport, HealthView, Hold, HookHealth,
    engine::{Action, Engine, Flight, Globals, Now, plus},
    hook::{After, Closed, HealthKey, HoldUntil, Hook, Item, Origin, Trust},
    order::Turn,
    verdict::{self, Judged, Verdict},
};
use crate::{
    api::Reason,
    event::StoreTime,
    policy::circuit::{Circuit, Transition},
    store::{Attempt, DeadReason, HookNote, Next, Outcome, OwedRow, RecordTicket},
};

/// Failures in a row after which an endpoint does not count as healthy, whether
/// or not its circuit opens.
const FAILING_AFTER: u16 = 5;
/// The shortest hold: a sender that wants to be asked again at once is asked
/// once a second, and the dispatcher does not spin.
pub(super) const HOLD_MIN: Duration = Duration::from_secs(1);

impl Engine {
    /// An attempt ended.
    pub(super) fn ended(&mut self, flight: u64, report: AttemptReport, now: Now) {
        let Self { hooks, globals } = self;
        let Some(flight) = globals.flights.remove(&flight) else { return };
        globals.metrics.attempts.get_or_create(&super::metrics::outcome(&report.end)).inc();
        globals.suspects -= usize::from(flight.is_suspect);
        globals.late_flights -= usize::from(flight.is_late);
        let id = flight.hook;
        let Some(hook) = hooks.get_mut(&id) else { return };
        hook.flying.retain(|pos| *pos != flight.row.pos);
        let chance = (globals.chance)();
        let judged = verdict::judge(&report.end, &hook.settings, flight.row.tries.saturating_add(1), chance);
        globals.end_delivery(hook, &flight, &judged, report, now);
        if flight.endpoint == hook.endpoint {
            globals.learn(hook, &flight, &judged, now);
        }
        globals.settle(hook, now);
        globals.wake_suspect(hooks);
        self.drop_if_removed(id);
    }

    /// Everything up to this ticket is durable.
    pub(super) fn recorded(&mut self, ticket: RecordTicket, now: Now) {
        while let Some((_, id)) = self.globals.unrecorded.front().copied().filter(|(handed, _)| *handed <= ticket) {
            self.globals.unrecorded.pop_front();
            let Some(hook) = self.hooks.get_mut(&id) else { continue };
            let Some((pos, after)) = hook.recording.pop_front() else { continue };
            if hook.asking.is_some() {
                hook.finished.push(pos);
            }
            match after {
                After::Nothing => {}
                After::Due(at) => hook.next_due = Some(hook.next_due.map_or(at, |due| due.min(at))),
                After::Again(origin) => self.globals.reread(hook, pos, origin),
                After::Parked(key) => {
                    if let Some(keys) = hook.keys.as_mut() {
                        keys.parked(key);
                    }
                }
            }
            if let Some(at) = hook.seen_again.iter().position(|seen| *seen == pos) {
                hook.seen_again.swap_remove(at);
                self.globals.read_again(hook, pos);
            }
            self.globals.settle(hook, now);
            self.drop_if_removed(id);
        }
    }
}

impl Globals {
    /// Records what becomes of the Delivery, and of what waits behind it.
    fn end_delivery(&mut self, hook: &mut Hook, flight: &Flight, judged: &Judged, report: AttemptReport, now: Now) {
        let row = flight.row;
        let is_back = match &judged.verdict {
            Verdict::Held(_) => {
                // Nothing was sent: nothing to record, the row is where it was.
                self.key_goes_back(hook, &row, flight.origin);
                self.reread(hook, row.pos, flight.origin);
                return;
            }
            Verdict::Gone => true,
            Verdict::Again(_) | Verdict::Dead(DeadReason::Exhausted | DeadReason::DeadOn) => flight.is_probe,
            Verdict::Done | Verdict::Dead(_) => false,
        };
        let attempt = Attempt {
            at: report.at,
            duration_ms: u32::try_from(report.duration.as_millis()).unwrap_or(u32::MAX),
            code: judged.code,
            error: judged.failure.map(Reason::as_str),
            shape: report.shape,
            detail: report.detail,
        };
        let (next, after) = match judged.verdict {
            _ if is_back => (Next::Back, After::Again(flight.origin)),
            Verdict::Again(wait) => {
                let at = plus(now.store, wait);
                (Next::At(at), After::Due(at))
            }
            Verdict::Dead(reason) => (Next::Dead(reason), After::Nothing),
            Verdict::Done | Verdict::Gone | Verdict::Held(_) => (Next::Done, After::Nothing),
        };
        self.push_outcome(hook, row, Some(attempt), next, after);
        match next {
            Next::Back => self.key_goes_back(hook, &row, flight.origin),
            Next::At(_) => self.key_blocks(hook, &row, false),
            Next::Dead(_) if hook.settings.blocks_on_dead => self.key_blocks(hook, &row, true),
            Next::Done | Next::Dead(_) | Next::Park => self.key_is_done(hook, &row),
        }
    }

    /// What the attempt tells of the endpoint.
    fn learn(&mut self, hook: &mut Hook, flight: &Flight, judged: &Judged, now: Now) {
        if let Some(reason) = judged.failure {
            hook.last_failure = Some((reason, judged.code));
            hook.failures_in_row = hook.failures_in_row.saturating_add(1);
        }
        let transition = match &judged.verdict {
            Verdict::Held(hold) => {
                if flight.view == hook.view {
                    let until = hold.retry_after.map(|wait| plus(now.store, wait.max(HOLD_MIN)));
                    hook.hold = Some(Box::new(HoldUntil { hold: hold.clone(), until }));
                }
                return;
            }
            Verdict::Gone => {
                self.withdraw(hook, now);
                Transition::None
            }
            Verdict::Done => {
                (hook.trust, hook.failures_in_row) = (Trust::Proven, 0);
                hook.circuit.as_mut().map_or(Transition::None, |circuit| circuit.succeeded())
            }
            _ if judged.is_of_endpoint => {
                self.suspect(hook);
                let limit = hook.settings.circuit_failures;
                let circuit = hook.circuit.get_or_insert_with(Box::default);
                if flight.is_probe {
                    circuit.probe_failed(now.store.0)
                } else {
                    circuit.failed(flight.row.pos.0, now.store.0, limit)
                }
            }
            // It answers, though not to our liking: it is there.
            _ if judged.code.is_some() => {
                hook.trust = Trust::Proven;
                let is_back = |circuit: &&mut Box<Circuit>| circuit.at_once().is_some();
                hook.circuit.as_mut().filter(is_back).map_or(Transition::None, |circuit| circuit.succeeded())
            }
            _ if flight.is_probe => {
                hook.circuit.as_mut().map_or(Transition::None, |circuit| circuit.probe_failed(now.store.0))
            }
            _ => Transition::None,
        };
        if transition == Transition::Changed {
            self.note_circuit(hook);
        }
        if hook.circuit.as_ref().is_some_and(|circuit| circuit.is_fresh()) {
            hook.circuit = None;
        }
        if let Some(pause) = judged.pause.filter(|pause| !pause.is_zero()) {
            let until = plus(now.store, pause);
            hook.paused_until = hook.paused_until.max(Some(until));
            self.actions.push(Action::Note(hook.id, HookNote::HeldUntil(hook.paused_until)));
        }
    }

    /// The endpoint wants no events any more: held until the Webhook changes.
    fn withdraw(&mut self, hook: &mut Hook, now: Now) {
        hook.withdrawn = Some(now.wall);
        self.actions.push(Action::Note(hook.id, HookNote::Withdrawn(now.wall)));
        let message = "The endpoint answered 410: it wants no events any more. What is owed to it is kept.";
        let hold = Hold { reason: Reason::Gone, message: message.into(), retry_after: None };
        hook.hold = Some(Box::new(HoldUntil { hold, until: None }));
    }

    /// From now on one at a time, and without bodies in memory.
    fn suspect(&mut self, hook: &mut Hook) {
        if hook.trust == Trust::Suspect {
            return;
        }
        hook.trust = Trust::Suspect;
        for item in &mut hook.queue {
            self.bytes -= item.bytes();
            item.event = None;
        }
    }

    /// What is known of the endpoint is worth nothing any more.
    pub(super) fn forget_endpoint(&mut self, hook: &mut Hook) {
        hook.endpoint = hook.endpoint.wrapping_add(1);
        (hook.trust, hook.failures_in_row, hook.last_failure) = (Trust::Unproven, 0, None);
        if hook.paused_until.take().is_some() {
            self.actions.push(Action::Note(hook.id, HookNote::HeldUntil(None)));
        }
        if hook.circuit.take().is_some_and(|circuit| circuit.at_once().is_some()) {
            self.note_circuit(hook);
        }
    }

    fn note_circuit(&mut self, hook: &Hook) {
        let text = hook.circuit.as_ref().and_then(|circuit| circuit.to_text()).map(Arc::from);
        self.actions.push(Action::Note(hook.id, HookNote::Circuit(text)));
    }

    pub(super) fn push_outcome(
        &mut self,
        hook: &mut Hook,
        row: OwedRow,
        attempt: Option<Attempt>,
        next: Next,
        after: After,
    ) {
        hook.recording.push_back((row.pos, after));
        self.outcomes.push(Outcome { hook: hook.id, pos: row.pos, tries: row.tries, attempt, next });
    }

    /// Puts the next row of a source aside if its key is taken or blocked.
    pub(super) fn put_aside(&mut self, hook: &mut Hook, takes_due: bool) -> bool {
        if hook.keys.is_none() {
            return false;
        }
        let Some(item) = hook.source(takes_due).front_mut().filter(|item| !item.has_turn) else { return false };
        let (Some(key), pos, origin) = (item.row.key, item.row.pos, item.origin) else { return false };
        let Some(turn) = hook.keys.as_mut().map(|keys| keys.turn(key, pos, origin)) else { return false };
        if turn == Turn::Send {
            if let Some(item) = hook.source(takes_due).front_mut() {
                item.has_turn = true;
            }
            return false;
        }
        let Some(item) = hook.source(takes_due).pop_front() else { return false };
        if turn == Turn::Park {
            self.count_out(&item);
            self.park(hook, &item);
        } else if let Some(keys) = hook.keys.as_mut() {
            keys.keep_behind(key, item);
        }
        true
    }

    fn park(&mut self, hook: &mut Hook, item: &Item) {
        let (Some(keys), Some(key)) = (hook.keys.as_mut(), item.row.key) else { return };
        keys.parking(key, item.row.pos);
        self.push_outcome(hook, item.row, None, Next::Park, After::Parked(key));
    }

    /// The Delivery in front of its key is over: the next one's turn.
    pub(super) fn key_is_done(&mut self, hook: &mut Hook, row: &OwedRow) {
        let (Some(keys), Some(key)) = (hook.keys.as_mut(), row.key) else { return };
        if let Some(mut next) = keys.advance(key) {
            next.has_turn = true;
            hook.due.push_back(next);
        }
    }

    /// The Delivery in front of its key waits, or is dead and blocks it.
    pub(super) fn key_blocks(&mut self, hook: &mut Hook, row: &OwedRow, is_dead: bool) {
        let (Some(keys), Some(key)) = (hook.keys.as_mut(), row.key) else { return };
        let behind = if is_dead { keys.block_dead(key, row.pos) } else { keys.block(key) };
        for item in behind {
            self.count_out(&item);
            match item.origin {
                Origin::Owed => self.park(hook, &item),
                Origin::Waiting => hook.next_due = Some(StoreTime(i64::MIN)),
                Origin::Parked => {}
            }
        }
    }

    fn key_goes_back(&mut self, hook: &mut Hook, row: &OwedRow, origin: Origin) {
        if row.key.is_some() && hook.keys.is_some() {
            let behind = match (hook.keys.as_mut(), row.key) {
                (Some(keys), Some(key)) => keys.hand_back(key, row.pos, origin),
                _ => std::collections::VecDeque::new(),
            };
            // What stood behind it must not overtake it.
            for item in behind {
                self.count_out(&item);
                hook.reread(item.row.pos, item.origin);
            }
            self.unload(hook);
        }
    }

    /// A place among the suspects is free.
    fn wake_suspect(&mut self, hooks: &mut super::engine::Hooks) {
        while self.suspects < super::engine::SUSPECTS_MAX {
            let Some(id) = self.suspect_ring.pop_front() else { break };
            let Some(hook) = hooks.get_mut(&id) else { continue };
            hook.in_suspects = false;
            self.mark_ready(hook);
            if hook.lane.is_some() {
                break;
            }
        }
    }

    /// Tells how the endpoint does, if that changed.
    pub(super) fn refresh_health(&mut self, hook: &mut Hook, now: Now) {
        let Some(key) = health_key(hook) else { return };
        if hook.health.as_ref() == Some(&key) {
            return;
        }
        let view = match &key {
            HealthKey::Healthy => HealthView::Healthy,
            HealthKey::Held(hold) => HealthView::Held(Hold::clone(hold)),
            HealthKey::Failing(by, reason) => {
                HealthView::Failing { reason: *reason, message: failing_message(hook, *by).into() }
            }
        };
        hook.health = Some(key);
        self.actions.push(Action::Health(HookHealth { hook: hook.id, view, since: now.wall }));
    }
}

fn health_key(hook: &Hook) -> Option<HealthKey> {
    let reason = hook.last_failure.map_or(Reason::UnexpectedStatus, |(reason, _)| reason);
    match hook.closed {
        Some(Closed::Hold) => {
            let webhook = hook.webhook.as_ref()?;
            if let Some(held) = &hook.hold {
                return Some(HealthKey::Held(Box::new(held.hold.clone())));
            }
            let message = "spec.suspend is true: what is owed is kept and nothing is sent.";
            let hold = Hold { reason: Reason::Suspended, message: message.into(), retry_after: None };
            webhook.suspended.then(|| HealthKey::Held(Box::new(hold)))
        }
        Some(closed) => Some(HealthKey::Failing(Some(closed), reason)),
        None if hook.failures_in_row >= FAILING_AFTER => Some(HealthKey::Failing(None, reason)),
        // Nothing is known before the first attempt has ended.
        None => (hook.health.is_some() || hook.trust != Trust::Unproven).then_some(HealthKey::Healthy),
    }
}

/// Without times and counts that change: each change is a write of a status.
fn failing_message(hook: &Hook, by: Option<Closed>) -> String {
    let last = match hook.last_failure {
        Some((_, Some(code))) => format!("the last one with status {code}"),
        Some((reason, None)) => format!("the last one with {reason}"),
        None => "as before the restart".to_owned(),
    };
    match by {
        Some(Closed::Pause) => "The endpoint answered 429 and asked for a pause. What is owed is kept; sending goes \
                                on by itself after the pause."
            .to_owned(),
        Some(Closed::Circuit) => format!(
            "Attempts failed in a row, {last}. Sending is paused and what is owed is kept; one Delivery is tried at \
             least every 5 minutes, and sending goes on when it succeeds."
        ),
        Some(Closed::Hold) | None => {
            format!("Attempts failed in a row, {last}. They are repeated as the Webhook's delivery.retry says.")
        }
    }
}
