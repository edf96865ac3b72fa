//! Work between commits: scans, expiry, limits, purges, retention, replays.
//! Nothing yet.

use rusqlite::{Connection, Result};

use super::effects::{Progress, Step};
use crate::store::{CardMark, CardQuery, DeadRow, ReplayIdentity, ReplayOrder, ReplayRun, ReplayState};

/// How long nothing is looked for.
const IDLE_MS: i64 = 60_000;

/// One bounded piece of work.
pub(super) fn step(step: &mut Step<'_>) -> Result<Progress> {
    Ok(Progress::Idle(step.now.plus_ms(IDLE_MS)))
}

/// Begins a Replay or finds it.
pub(super) fn replay(step: &mut Step<'_>, _order: &ReplayOrder) -> Result<ReplayRun> {
    let begun_ms = step.wall.as_millisecond();
    Ok(ReplayRun { is_known: false, state: ReplayState::Complete, matched: 0, reopened: 0, done: 0, dead: 0, begun_ms })
}

/// Ends a Replay.
pub(super) fn cancel_replay(_step: &mut Step<'_>, _identity: &ReplayIdentity) -> Result<Option<ReplayRun>> {
    Ok(None)
}

/// Where a Replay is.
pub(super) fn replay_run(_db: &Connection, _identity: &ReplayIdentity) -> Result<Option<ReplayRun>> {
    Ok(None)
}

/// Dead Deliveries.
pub(super) fn cards(_db: &Connection, _epochs: &super::rows::Epochs, _query: &CardQuery) -> Result<Vec<DeadRow>> {
    Ok(Vec::new())
}

/// Notes what became of cards.
pub(super) fn mark_cards(_step: &mut Step<'_>, _marks: &[CardMark]) -> Result<()> {
    Ok(())
}
