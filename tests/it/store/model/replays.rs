//! Replays of the model.

use std::collections::BTreeSet;

use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};

use super::{
    deliveries::{Delivery, Place},
    state::State,
};

pub(super) struct ModelReplay {
    order: ReplayOrder,
    begun: StoreTime,
    begun_ms: i64,
    is_cancelled: bool,
    matched: u64,
    /// What is still to be re-opened.
    left: Vec<Pos>,
    /// What was pending already, and is.
    awaited: BTreeSet<Pos>,
    /// What was re-opened and has not ended.
    sent: BTreeSet<Pos>,
    reopened: u64,
    done: u64,
    dead: u64,
}

impl State {
    pub(super) fn replay(&mut self, order: ReplayOrder) -> ReplayRun {
        if let Some(run) = self.replay_run(&order.identity, true) {
            return run;
        }
        let identity = order.identity.clone();
        let matched = self.matched(&order);
        let count = matched.len() as u64;
        let (left, awaited): (Vec<_>, Vec<_>) = if order.is_dry_run {
            (Vec::new(), Vec::new())
        } else {
            matched.into_iter().partition(|pos| !self.is_pending(order.hook, *pos))
        };
        self.replays.push(ModelReplay {
            begun: self.now(),
            begun_ms: self.wall_ms(),
            is_cancelled: false,
            matched: count,
            left,
            awaited: awaited.into_iter().collect(),
            sent: BTreeSet::new(),
            reopened: 0,
            done: 0,
            dead: 0,
            order,
        });
        self.run_replays();
        self.replay_run(&identity, false).unwrap()
    }

    fn matched(&self, order: &ReplayOrder) -> Vec<Pos> {
        let place = |pos: Pos| self.deliveries.get(&(order.hook, pos)).map(|d| d.place);
        let is_dead = |p: Pos| matches!(place(p), Some(Place::Dead { card, .. }) if card != CardState::Dismissed);
        let wants = |p: Pos| self.events.get(&p).is_some_and(|e| self.wanted_by(order.hook, e).is_some());
        match &order.what {
            ReplayWhat::AllDead => self.events.keys().copied().filter(|p| is_dead(*p)).collect(),
            ReplayWhat::Dead(positions) => positions.iter().copied().filter(|p| is_dead(*p)).collect(),
            ReplayWhat::Events(positions) => positions
                .iter()
                .copied()
                .filter(|p| self.events.contains_key(p) && (place(*p).is_some() || wants(*p)))
                .collect(),
            ReplayWhat::Range { since, until } => self
                .events
                .iter()
                .filter(|(_, e)| e.accepted >= *since && until.is_none_or(|u| e.accepted < u))
                .map(|(pos, _)| *pos)
                .filter(|p| wants(*p))
                .collect(),
        }
    }

    fn is_pending(&self, hook: HookId, pos: Pos) -> bool {
        self.deliveries.get(&(hook, pos)).is_some_and(Delivery::is_pending)
    }

    /// Counts what has ended, then re-opens what may be by now.
    pub(super) fn run_replays(&mut self) {
        let now = self.now();
        let mut replays = std::mem::take(&mut self.replays);
        for replay in replays.iter_mut() {
            let hook = replay.order.hook;
            replay.awaited.retain(|pos| self.is_pending(hook, *pos));
            for pos in replay.sent.extract_if(.., |pos| !self.is_pending(hook, *pos)) {
                let place = self.deliveries.get(&(hook, pos)).map(|d| d.place);
                replay.done += 1;
                replay.dead += u64::from(matches!(place, Some(Place::Dead { .. })));
            }
        }
        for replay in replays.iter_mut().filter(|r| !r.is_cancelled) {
            let seconds = (now.0 - replay.begun.0) / 1000 + 1;
            let rate = replay.order.per_second.map_or(u64::MAX, u64::from);
            let allowed = rate.saturating_mul(seconds.cast_unsigned()).saturating_sub(replay.reopened);
            let count = replay.left.len().min(usize::try_from(allowed).unwrap());
            for pos in replay.left.drain(..count) {
                replay.reopened += 1;
                replay.sent.insert(pos);
                self.reopen(replay.order.hook, pos);
            }
        }
        self.replays = replays;
    }

    fn reopen(&mut self, hook: HookId, pos: Pos) {
        let Some(event) = self.events.get(&pos).cloned() else { return };
        let now = self.now();
        if !self.deliveries.contains_key(&(hook, pos))
            && let Some(sub) = self.wanted_by(hook, &event)
        {
            self.owe(hook, &event, sub, now);
        }
        let is_ordered = self.hooks[&hook].definition.is_ordered;
        if let Some(delivery) = self.deliveries.get_mut(&(hook, pos)) {
            delivery.reopen(now, is_ordered);
        }
        self.touch(hook);
        self.tell(News::Changed { hook, from: pos });
    }

    fn replay_index(&self, identity: &ReplayIdentity) -> Option<usize> {
        self.replays.iter().position(|r| r.order.identity == *identity)
    }

    pub(super) fn replay_run(&self, identity: &ReplayIdentity, is_known: bool) -> Option<ReplayRun> {
        let replay = &self.replays[self.replay_index(identity)?];
        let state = match () {
            () if replay.is_cancelled => ReplayState::Cancelled,
            () if !replay.left.is_empty() => ReplayState::Running,
            () if !replay.sent.is_empty() || !replay.awaited.is_empty() => ReplayState::Sending,
            () => ReplayState::Complete,
        };
        let &ModelReplay { matched, reopened, done, dead, begun_ms, .. } = replay;
        Some(ReplayRun { is_known, state, matched, reopened, done, dead, begun_ms })
    }

    pub(super) fn cancel_replay(&mut self, identity: &ReplayIdentity) -> Option<ReplayRun> {
        let run = self.replay_run(identity, true)?;
        if matches!(run.state, ReplayState::Running | ReplayState::Sending) {
            let index = self.replay_index(identity)?;
            self.replays[index].is_cancelled = true;
        }
        self.replay_run(identity, true)
    }
}
