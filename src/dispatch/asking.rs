//! Asks the store what the engine wants to know.

use super::{
    hook::Origin,
    order::BLOCKED_KEYS_MAX,
    questions::{Question, Reply},
};
use crate::{
    event::{Pos, StoreTime},
    store::{HookId, OwedRow, Partition, StoreError, StoredEvent, WaitingPage},
};

/// Waiting rows among which the oldest is looked for.
const PROBE_ROWS: usize = 64;
/// Waiting rows that are read to tell blocked keys with a row that waits from
/// those with parked rows only.
const WAITING_KEYS_MAX: usize = 4 * BLOCKED_KEYS_MAX;

/// The answer to a question, of the same kind.
pub(super) async fn ask(store: &dyn Partition, hook: HookId, question: &Question) -> Result<Reply, StoreError> {
    Ok(match question {
        Question::Owed { after, limit } => Reply::Owed(store.owed(hook, *after, *limit).await?),
        Question::Waiting { now, limit } => Reply::Waiting(store.waiting(hook, *now, *limit).await?),
        Question::Probe => Reply::Probe(oldest(store, hook).await?),
        Question::Keys => {
            let blocked = store.blocked_keys(hook, BLOCKED_KEYS_MAX + 1).await?;
            if blocked.is_empty() {
                return Ok(Reply::Keys { blocked, waiting: Vec::new() });
            }
            let page = store.waiting(hook, StoreTime(i64::MAX), WAITING_KEYS_MAX).await?;
            Reply::Keys { blocked, waiting: page.rows.iter().filter_map(|row| row.key).collect() }
        }
        Question::Parked { key, limit } => Reply::Parked(store.parked(hook, *key, *limit).await?),
        Question::Bodies { positions } => Reply::Bodies(store.bodies(positions.clone()).await?),
    })
}

/// The oldest Delivery of a hook, with its event.
async fn oldest(store: &dyn Partition, hook: HookId) -> Result<Option<(OwedRow, Origin, StoredEvent)>, StoreError> {
    let owed = store.owed(hook, Pos(0), 1).await?.rows.first().copied();
    let WaitingPage { rows: waiting, next_due } = store.waiting(hook, StoreTime(i64::MAX), PROBE_ROWS).await?;
    let parked_key = match owed {
        Some(row) => row.key,
        None if waiting.is_empty() => store.blocked_keys(hook, 1).await?.first().copied(),
        None => None,
    };
    let parked = match parked_key {
        Some(key) => store.parked(hook, key, 1).await?.first().copied(),
        None => None,
    };
    let found = choose_probe(owed, &waiting, next_due.is_some(), parked);
    let Some((row, origin)) = found else { return Ok(None) };
    let event = store.bodies(vec![row.pos]).await?.pop().unwrap_or(StoredEvent::Missing);
    Ok(Some((row, origin, event)))
}

/// The oldest Delivery that is the first one of its key. `parked` is the first
/// parked one of the key of `owed`, or of any key if nothing else is there;
/// `has_more`: more rows wait than `waiting` shows.
pub(super) fn choose_probe(
    owed: Option<OwedRow>,
    waiting: &[OwedRow],
    has_more: bool,
    parked: Option<OwedRow>,
) -> Option<(OwedRow, Origin)> {
    // Of one key a single row waits, and everything else of it is younger.
    let oldest_waiting = waiting.iter().min_by_key(|row| row.pos).map(|row| (*row, Origin::Waiting));
    let oldest_else = match (owed, parked) {
        // An unseen row that waits may be of the same key.
        (Some(row), _) if row.key.is_some() && has_more => None,
        (Some(row), Some(parked)) if parked.pos < row.pos => {
            let has_waiting = waiting.iter().any(|other| other.key == row.key);
            (!has_waiting).then_some((parked, Origin::Parked))
        }
        (Some(row), _) => Some((row, Origin::Owed)),
        (None, parked) => parked.map(|row| (row, Origin::Parked)),
    };
    oldest_else.into_iter().chain(oldest_waiting).min_by_key(|(row, _)| row.pos)
}
