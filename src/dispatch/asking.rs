//! Asks the store what the engine wants to know.

use super::{
    hook::Origin,
    order::BLOCKED_KEYS_MAX,
    questions::{Question, Reply},
};
use crate::{
    event::{Pos, StoreTime},
    store::{BlockedKey, HookId, OrderKey, OwedRow, Partition, StoreError, StoredEvent},
};

/// Owed rows, and waiting ones, among which the oldest is looked for.
const PROBE_ROWS: usize = 64;

/// The answer to a question, of the same kind.
pub(super) async fn ask(store: &dyn Partition, hook: HookId, question: &Question) -> Result<Reply, StoreError> {
    Ok(match question {
        Question::Owed { after, limit } => Reply::Owed(store.owed(hook, *after, *limit).await?),
        Question::Waiting { now, limit } => Reply::Waiting(store.waiting(hook, *now, *limit).await?),
        Question::Probe { blocks_on_dead } => Reply::Probe(oldest(store, hook, *blocks_on_dead).await?),
        Question::Keys { blocks_on_dead } => {
            Reply::Keys(store.blocked_keys(hook, *blocks_on_dead, BLOCKED_KEYS_MAX + 1).await?)
        }
        Question::Parked { key, limit } => Reply::Parked(store.parked(hook, *key, *limit).await?),
        Question::Bodies { positions } => Reply::Bodies(store.bodies(positions.clone()).await?),
    })
}

/// The oldest Delivery of a hook that is not behind another one, with its event.
async fn oldest(
    store: &dyn Partition,
    hook: HookId,
    blocks_on_dead: bool,
) -> Result<Option<(OwedRow, Origin, StoredEvent)>, StoreError> {
    let owed = store.owed(hook, Pos(0), PROBE_ROWS).await?.rows;
    let waiting = store.waiting(hook, StoreTime(i64::MAX), PROBE_ROWS).await?.rows;
    let blocked = store.blocked_keys(hook, blocks_on_dead, BLOCKED_KEYS_MAX + 1).await?;
    let found = match choose_probe(&owed, &waiting, &blocked) {
        Some(Probe::Row(row, origin)) => Some((row, origin)),
        Some(Probe::FirstParked(key)) => store.parked(hook, key, 1).await?.first().map(|row| (*row, Origin::Parked)),
        None => None,
    };
    let Some((row, origin)) = found else { return Ok(None) };
    let event = store.bodies(vec![row.pos]).await?.pop().unwrap_or(StoredEvent::Missing);
    Ok(Some((row, origin, event)))
}

/// What a circuit that is open is tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// This one.
    Row(OwedRow, Origin),
    /// The first one that is parked behind this key.
    FirstParked(OrderKey),
}

/// The oldest Delivery that is the first one of its key, of owed rows, of rows
/// that wait, and of parked ones.
pub(super) fn choose_probe(owed: &[OwedRow], waiting: &[OwedRow], blocked: &[BlockedKey]) -> Option<Probe> {
    // With more of them, a key that is not among these may be blocked as well.
    let is_all = blocked.len() <= BLOCKED_KEYS_MAX;
    let is_first = |row: &&OwedRow| match row.key.map(|key| blocked.iter().find(|by| by.key == key)) {
        None => true,
        Some(None) => is_all,
        Some(Some(by)) => !by.is_waiting && by.parked.is_none() && by.dead.is_none_or(|dead| row.pos < dead),
    };
    let first_parked = |by: &BlockedKey| {
        let first = by.parked.filter(|first| !by.is_waiting && by.dead.is_none_or(|dead| *first < dead))?;
        Some((first, Probe::FirstParked(by.key)))
    };
    let owed = owed.iter().find(is_first).map(|row| (row.pos, Probe::Row(*row, Origin::Owed)));
    // Of one key a single row waits, and what else there is of it comes after it.
    let waiting = waiting.iter().map(|row| (row.pos, Probe::Row(*row, Origin::Waiting)));
    let all = owed.into_iter().chain(waiting).chain(blocked.iter().filter_map(first_parked));
    all.min_by_key(|(pos, _)| *pos).map(|(_, probe)| probe)
}
