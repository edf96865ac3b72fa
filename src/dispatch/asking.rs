//! Asks the store what the engine wants to know.

use super::{
    hook::Origin,
    order::BLOCKED_KEYS_MAX,
    questions::{Question, Reply},
};
use crate::{
    event::{Pos, StoreTime},
    store::{HookId, OwedRow, Partition, StoreError, StoredEvent},
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
    let owed = store.owed(hook, Pos(0), 1).await?.rows.into_iter().map(|row| (row, Origin::Owed));
    let waiting = store.waiting(hook, StoreTime(i64::MAX), PROBE_ROWS).await?.rows;
    let waiting = waiting.into_iter().map(|row| (row, Origin::Waiting));
    let mut found = owed.chain(waiting).min_by_key(|(row, _)| row.pos);
    if found.is_none()
        && let Some(key) = store.blocked_keys(hook, 1).await?.first()
    {
        found = store.parked(hook, *key, 1).await?.first().map(|row| (*row, Origin::Parked));
    }
    let Some((row, origin)) = found else { return Ok(None) };
    let event = store.bodies(vec![row.pos]).await?.pop().unwrap_or(StoredEvent::Missing);
    Ok(Some((row, origin, event)))
}
