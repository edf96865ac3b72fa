//! Deliveries of the model: one entry each, for ever.

use std::collections::{BTreeMap, BTreeSet};

use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};

use super::state::State;

#[derive(Clone)]
pub(super) struct Delivery {
    sub: SubId,
    key: Option<OrderKey>,
    tries: u16,
    shape: Option<u8>,
    pub(super) place: Place,
    code: Option<u16>,
    error: Option<&'static str>,
    /// What `maxAge` counts from.
    since: StoreTime,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    Owed,
    Waiting(StoreTime),
    Parked,
    Dead { reason: DeadReason, at: StoreTime, wall_ms: i64, card: CardState },
    Delivered,
    Discarded(DiscardReason),
}

impl Delivery {
    pub(super) fn new(sub: SubId, key: Option<OrderKey>, since: StoreTime) -> Self {
        Self { sub, key, tries: 0, shape: None, place: Place::Owed, code: None, error: None, since }
    }

    fn row(&self, pos: Pos) -> OwedRow {
        OwedRow { pos, sub: self.sub, key: self.key, tries: self.tries, shape: self.shape }
    }

    pub(super) fn is_pending(&self) -> bool {
        matches!(self.place, Place::Owed | Place::Waiting(_) | Place::Parked)
    }

    fn is_dead(&self) -> bool {
        matches!(self.place, Place::Dead { card, .. } if card != CardState::Dismissed)
    }

    /// Owed again from the first attempt on; of a hook that is ordered it comes
    /// before what is owed.
    pub(super) fn reopen(&mut self, now: StoreTime, is_ordered: bool) {
        self.since = now;
        self.tries = 0;
        self.place = if is_ordered && self.key.is_some() { Place::Parked } else { Place::Owed };
    }
}

impl State {
    fn of(&self, hook: HookId) -> impl Iterator<Item = (Pos, &Delivery)> {
        self.deliveries.range((hook, Pos(0))..=(hook, Pos(u64::MAX))).map(|((_, pos), d)| (*pos, d))
    }

    pub(super) fn owed(&self, hook: HookId, after: Pos, limit: usize) -> OwedPage {
        let rows: Vec<_> = self
            .of(hook)
            .filter(|(pos, d)| *pos > after && d.place == Place::Owed)
            .map(|(pos, d)| d.row(pos))
            .take(limit)
            .collect();
        let newest = self.events.keys().last().copied().unwrap_or_default();
        let covered = if rows.len() == limit { rows.last().map_or(after, |r| r.pos) } else { newest };
        OwedPage { rows, covered }
    }

    pub(super) fn waiting(&self, hook: HookId, now: StoreTime, limit: usize) -> WaitingPage {
        let mut all: Vec<_> = self
            .of(hook)
            .filter_map(|(pos, d)| match d.place {
                Place::Waiting(due) => Some((due, pos, d.row(pos))),
                _ => None,
            })
            .collect();
        all.sort_by_key(|(due, pos, _)| (*due, *pos));
        let due = all.iter().filter(|(due, ..)| *due <= now).count().min(limit);
        WaitingPage {
            next_due: all.get(due).map(|(due, ..)| *due),
            rows: all.into_iter().take(due).map(|(.., row)| row).collect(),
        }
    }

    pub(super) fn blocked_keys(&self, hook: HookId, dead_blocks: bool, limit: usize) -> Vec<BlockedKey> {
        let firsts = |is: &dyn Fn(&Delivery) -> bool| -> BTreeMap<OrderKey, Pos> {
            let all: Vec<_> = self.of(hook).filter(|(_, d)| is(d)).filter_map(|(pos, d)| Some((d.key?, pos))).collect();
            all.into_iter().rev().collect()
        };
        let waiting = firsts(&|d| matches!(d.place, Place::Waiting(_)));
        let parked = firsts(&|d| d.place == Place::Parked);
        let dead = firsts(&|d| dead_blocks && d.is_dead());
        let mut known = BTreeSet::new();
        let keys = waiting.keys().chain(parked.keys()).chain(dead.keys()).filter(|key| known.insert(**key));
        let by = |key: &OrderKey| BlockedKey {
            key: *key,
            is_waiting: waiting.contains_key(key),
            parked: parked.get(key).copied(),
            dead: dead.get(key).copied(),
        };
        keys.take(limit).map(by).collect()
    }

    pub(super) fn parked(&self, hook: HookId, key: OrderKey, limit: usize) -> Vec<OwedRow> {
        let is_it = |d: &Delivery| d.place == Place::Parked && d.key == Some(key);
        self.of(hook).filter(|(_, d)| is_it(d)).map(|(pos, d)| d.row(pos)).take(limit).collect()
    }

    pub(super) fn record(&mut self, outcome: Outcome) {
        let (now, wall_ms) = (self.now(), self.wall_ms());
        let Some(delivery) = self.deliveries.get_mut(&(outcome.hook, outcome.pos)) else { return };
        if !delivery.is_pending() || delivery.tries != outcome.tries {
            return;
        }
        let tally = &mut self.hooks.get_mut(&outcome.hook).unwrap().tally;
        let number = delivery.tries + 1;
        if let Some(attempt) = &outcome.attempt {
            delivery.shape.get_or_insert(attempt.shape);
            delivery.code = attempt.code;
            delivery.error = attempt.error;
            delivery.tries += u16::from(outcome.next != Next::Back);
            tally.failed += u64::from(outcome.next != Next::Done);
            tally.last_ms = attempt.at.as_millisecond();
            tally.last_code = attempt.code.unwrap_or(0);
        }
        match outcome.next {
            Next::Done => {
                delivery.place = Place::Delivered;
                tally.delivered += 1;
            }
            Next::At(due) => delivery.place = Place::Waiting(due),
            Next::Dead(reason) => {
                delivery.place = Place::Dead { reason, at: now, wall_ms, card: CardState::Wanted };
            }
            Next::Park => delivery.place = Place::Parked,
            Next::Back => {}
        }
        self.log_attempt(outcome, number);
    }

    fn log_attempt(&mut self, outcome: Outcome, number: u16) {
        let id = AttemptId(self.attempts.len() as i64 + 1);
        if let Some(attempt) = outcome.attempt {
            self.attempts.push(AttemptRow {
                id,
                hook: outcome.hook,
                pos: outcome.pos,
                number,
                at_ms: attempt.at.as_millisecond(),
                duration_ms: attempt.duration_ms,
                code: attempt.code,
                error: attempt.error.map(Into::into),
                is_ok: outcome.next == Next::Done,
                detail: attempt.detail.map(|d| *d),
            });
        }
        self.touch(outcome.hook);
    }

    /// Gives up what has been owed for longer than the Webhook wants.
    pub(super) fn expire(&mut self) {
        let (now, wall_ms) = (self.now(), self.wall_ms());
        for (&(hook, _), delivery) in self.deliveries.iter_mut().filter(|(_, d)| d.is_pending()) {
            let Some(known) = self.hooks.get_mut(&hook) else { continue };
            if delivery.since.plus_ms(known.definition.max_age_ms) < now {
                let reason = DeadReason::Expired;
                delivery.place = Place::Dead { reason, at: now, wall_ms, card: CardState::Wanted };
                self.revision += 1;
                known.revision = self.revision;
            }
        }
    }

    /// Ends everything of a hook that was not delivered.
    pub(super) fn discard_all(&mut self, hook: HookId, reason: DiscardReason) {
        for (_, delivery) in self.deliveries.range_mut((hook, Pos(0))..=(hook, Pos(u64::MAX))) {
            if delivery.is_pending() || delivery.is_dead() {
                delivery.place = Place::Discarded(reason);
            }
        }
        self.touch(hook);
    }

    pub(super) fn tally(&self, hook: HookId) -> Tally {
        let count = |is: fn(&Delivery) -> bool| self.of(hook).filter(|(_, d)| is(d)).count() as u64;
        Tally { pending: count(Delivery::is_pending), dead: count(Delivery::is_dead), ..self.hooks[&hook].tally }
    }

    pub(super) fn tallies(&self, after: TallyRevision, limit: usize) -> TallyPage {
        let mut changed: Vec<_> =
            self.hooks.iter().filter(|(_, h)| h.revision > after.0).map(|(id, h)| (h.revision, *id)).collect();
        changed.sort();
        let more = changed.len() > limit;
        changed.truncate(limit);
        TallyPage {
            revision: TallyRevision(changed.last().map_or(after.0, |(revision, _)| *revision)),
            tallies: changed.into_iter().map(|(_, id)| self.tally(id)).collect(),
            more,
        }
    }

    pub(super) fn cards(&self, query: &CardQuery) -> Vec<DeadRow> {
        let wanted = |key: &(HookId, Pos), card: CardState| {
            query.hook.is_none_or(|h| h == key.0)
                && query.state.is_none_or(|s| s == card)
                && query.after.is_none_or(|after| *key > after)
        };
        self.deliveries
            .iter()
            .filter_map(|(key, d)| match d.place {
                Place::Dead { reason, at, wall_ms, card } if wanted(key, card) => {
                    Some(self.dead_row(*key, d, (reason, at, wall_ms, card)))
                }
                _ => None,
            })
            .take(query.limit)
            .collect()
    }

    fn dead_row(
        &self,
        (hook, pos): (HookId, Pos),
        delivery: &Delivery,
        (reason, at, last_ms, card): (DeadReason, StoreTime, i64, CardState),
    ) -> DeadRow {
        let event = self.events.get(&pos);
        DeadRow {
            hook,
            pos,
            event: event.map(|e| summary(e)),
            reason,
            code: delivery.code,
            error: delivery.error.map(Into::into),
            tries: delivery.tries,
            first_ms: event.map_or(0, |e| e.accepted.as_millisecond()),
            last_ms,
            at,
            card,
        }
    }

    pub(super) fn mark_card(&mut self, mark: CardMark) {
        if let Some(delivery) = self.deliveries.get_mut(&(mark.hook, mark.pos))
            && let Place::Dead { card, .. } = &mut delivery.place
        {
            *card = mark.state;
            self.touch(mark.hook);
        }
    }

    pub(super) fn states_of(&self, pos: Pos) -> Vec<(HookId, DeliveryState)> {
        self.deliveries
            .iter()
            .filter(|((_, of), _)| *of == pos)
            .filter_map(|((hook, _), d)| {
                let state = match d.place {
                    Place::Owed => DeliveryState::Owed,
                    Place::Waiting(due) => DeliveryState::Waiting(due),
                    Place::Parked => DeliveryState::Parked,
                    Place::Dead { card: CardState::Dismissed, .. } => DeliveryState::Dismissed,
                    Place::Dead { reason, .. } => DeliveryState::Dead(reason),
                    Place::Delivered => DeliveryState::Delivered,
                    Place::Discarded(_) => return None,
                };
                Some((*hook, state))
            })
            .collect()
    }

    pub(super) fn totals(&self) -> Totals {
        let all = || self.deliveries.values();
        let count = |is: &dyn Fn(&Delivery) -> bool| all().filter(|d| is(d)).count() as u64;
        let discarded = DiscardReason::ALL.map(|reason| {
            count(&|d| match d.place {
                Place::Discarded(by) => by == reason,
                Place::Dead { card: CardState::Dismissed, .. } => reason == DiscardReason::Dismissed,
                _ => false,
            })
        });
        Totals {
            events: self.events.len() as u64,
            routed: all().count() as u64,
            delivered: count(&|d| d.place == Place::Delivered),
            dead: count(&Delivery::is_dead),
            pending: count(&Delivery::is_pending),
            discarded,
        }
    }
}

fn summary(event: &posthorn::event::Event) -> EventSummary {
    use sha2::Digest;
    EventSummary {
        id: event.id,
        event_type: event.head.event_type.clone(),
        given_id: event.head.given_id.clone(),
        source: event.head.source.clone(),
        accepted: event.accepted,
        data_bytes: event.data.len() as u64,
        data_sha256: sha2::Sha256::digest(&event.data).into(),
    }
}
