//! Asks the store what the engine wants to know.

use super::{
    hook::Origin,
    order::BLOCKED_KEYS_MAX,
    questions::{Question, Reply},
};
use crate::{
    event::{Pos, StoreTime},
    store::{CardQuery, CardState, HookId, OrderKey, OwedRow, Partition, StoreError, StoredEvent, WaitingPage},
};

/// Owed rows, and waiting ones, among which the oldest is looked for.
const PROBE_ROWS: usize = 64;
/// Dead Deliveries that are listed at once.
const DEAD_ROWS: usize = 256;
/// Waiting rows that are read to tell blocked keys with a row that waits from
/// those with parked rows only.
const WAITING_KEYS_MAX: usize = 4 * BLOCKED_KEYS_MAX;

/// The answer to a question, of the same kind.
pub(super) async fn ask(store: &dyn Partition, hook: HookId, question: &Question) -> Result<Reply, StoreError> {
    Ok(match question {
        Question::Owed { after, limit } => Reply::Owed(store.owed(hook, *after, *limit).await?),
        Question::Waiting { now, limit } => Reply::Waiting(store.waiting(hook, *now, *limit).await?),
        Question::Probe { blocks_on_dead } => Reply::Probe(oldest(store, hook, *blocks_on_dead).await?),
        Question::Keys { blocks_on_dead } => {
            let dead = dead_keys(store, hook, *blocks_on_dead).await?;
            let blocked = store.blocked_keys(hook, BLOCKED_KEYS_MAX + 1).await?;
            if blocked.is_empty() {
                return Ok(Reply::Keys { blocked, waiting: Vec::new(), dead });
            }
            let page = store.waiting(hook, StoreTime(i64::MAX), WAITING_KEYS_MAX).await?;
            Reply::Keys { blocked, waiting: page.rows.iter().filter_map(|row| row.key).collect(), dead }
        }
        Question::Parked { key, limit } => Reply::Parked(store.parked(hook, *key, *limit).await?),
        Question::Bodies { positions } => Reply::Bodies(store.bodies(positions.clone()).await?),
    })
}

/// Keys with a dead Delivery that was not dismissed, and where that is.
///
/// What is dead is listed without its key: its event is read, one at a time, for
/// a body may have 1 MiB. While dead Deliveries block there are few of them.
async fn dead_keys(
    store: &dyn Partition,
    hook: HookId,
    blocks_on_dead: bool,
) -> Result<Vec<(OrderKey, Pos)>, StoreError> {
    let (mut keys, mut after) = (Vec::new(), None);
    while blocks_on_dead && keys.len() <= BLOCKED_KEYS_MAX {
        let query = CardQuery { hook: Some(hook), state: None, after, limit: DEAD_ROWS };
        let rows = store.cards(query).await?;
        let Some(last) = rows.last() else { break };
        after = Some((hook, last.pos));
        for row in rows.iter().filter(|row| row.card != CardState::Dismissed) {
            if let Some(StoredEvent::Event(event)) = store.bodies(vec![row.pos]).await?.pop() {
                keys.extend(event.head.key.as_deref().map(|key| (OrderKey::of(key), row.pos)));
            }
        }
    }
    Ok(keys)
}

/// The oldest Delivery of a hook that is not behind another one, with its event.
async fn oldest(
    store: &dyn Partition,
    hook: HookId,
    blocks_on_dead: bool,
) -> Result<Option<(OwedRow, Origin, StoredEvent)>, StoreError> {
    let dead = dead_keys(store, hook, blocks_on_dead).await?;
    let owed = store.owed(hook, Pos(0), PROBE_ROWS).await?.rows;
    let owed = owed.into_iter().find(|row| !is_behind_dead(&dead, row));
    let WaitingPage { rows: waiting, next_due } = store.waiting(hook, StoreTime(i64::MAX), PROBE_ROWS).await?;
    let parked_key = match owed {
        Some(row) => row.key,
        None if waiting.is_empty() => {
            let keys = store.blocked_keys(hook, BLOCKED_KEYS_MAX).await?;
            keys.into_iter().find(|key| dead.iter().all(|(dead, _)| dead != key))
        }
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

/// Whether a row stands behind a dead Delivery of its key.
pub(super) fn is_behind_dead(dead: &[(OrderKey, Pos)], row: &OwedRow) -> bool {
    dead.iter().any(|(key, pos)| row.key == Some(*key) && row.pos > *pos)
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
