//! Replays of the model.

use std::collections::BTreeSet;

use posthorn::{
    event::{Pos, StoreTime},
    store::*,
};

use super::{deliveries::Place, state::State};

pub(super) struct ModelReplay {
    order: ReplayOrder,
    begun: StoreTime,
    begun_ms: i64,
    is_cancelled: bool,
    matched: u64,
    /// What is still to be re-opened.
    left: Vec<Pos>,
    reopened: BTreeSet<Pos>,
}

impl State {
    pub(super) fn replay(&mut self, order: ReplayOrder) -> ReplayRun {
        if let Some(run) = self.replay_run(&order.identity, true) {
            return run;
        }
        let identity = order.identity.clone();
        let matched = self.matched(&order);
        let is_dry_run = order.is_dry_run;
        self.replays.push(ModelReplay {
            begun: self.now(),
            begun_ms: self.wall_ms(),
            is_cancelled: false,
            matched: matched.len() as u64,
            left: if is_dry_run {
                Vec::new()
            } else {
                matched.into_iter().filter(|p| self.reopens(order.hook, *p)).collect()
            },
            reopened: BTreeSet::new(),
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

    /// What is pending already is left as it is.
    fn reopens(&self, hook: HookId, pos: Pos) -> bool {
        self.deliveries.get(&(hook, pos)).is_none_or(|d| !d.is_pending())
    }

    pub(super) fn run_replays(&mut self) {
        let now = self.now();
        let mut steps = Vec::new();
        for replay in &mut self.replays {
            if replay.is_cancelled {
                continue;
            }
            let seconds = (now.0 - replay.begun.0) / 1000 + 1;
            let allowed =
                replay.order.per_second.map_or(usize::MAX, |n| n as usize * usize::try_from(seconds).unwrap());
            let count = replay.left.len().min(allowed.saturating_sub(replay.reopened.len()));
            for pos in replay.left.drain(..count) {
                replay.reopened.insert(pos);
                steps.push((replay.order.hook, pos));
            }
        }
        for (hook, pos) in steps {
            self.reopen(hook, pos);
        }
    }

    fn reopen(&mut self, hook: HookId, pos: Pos) {
        let Some(event) = self.events.get(&pos).cloned() else { return };
        let now = self.now();
        match self.deliveries.get_mut(&(hook, pos)) {
            Some(delivery) => delivery.reopen(now),
            None => {
                if let Some(sub) = self.wanted_by(hook, &event) {
                    self.owe(hook, &event, sub, now);
                }
            }
        }
        self.touch(hook);
        self.tell(News::Changed { hook, from: pos });
    }

    fn replay_index(&self, identity: &ReplayIdentity) -> Option<usize> {
        self.replays.iter().position(|r| r.order.identity == *identity)
    }

    pub(super) fn replay_run(&self, identity: &ReplayIdentity, is_known: bool) -> Option<ReplayRun> {
        let replay = &self.replays[self.replay_index(identity)?];
        let place = |pos: &Pos| self.deliveries.get(&(replay.order.hook, *pos)).map(|d| d.place);
        let ended = |pos: &Pos| !matches!(place(pos), Some(Place::Owed | Place::Waiting(_) | Place::Parked));
        let done = replay.reopened.iter().filter(|p| ended(p)).count() as u64;
        let dead = replay.reopened.iter().filter(|p| matches!(place(p), Some(Place::Dead { .. }))).count() as u64;
        let state = match () {
            () if replay.is_cancelled => ReplayState::Cancelled,
            () if !replay.left.is_empty() => ReplayState::Running,
            () if done < replay.reopened.len() as u64 => ReplayState::Sending,
            () => ReplayState::Complete,
        };
        let reopened = replay.reopened.len() as u64;
        Some(ReplayRun { is_known, state, matched: replay.matched, reopened, done, dead, begun_ms: replay.begun_ms })
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
