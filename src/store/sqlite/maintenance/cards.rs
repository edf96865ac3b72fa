//! Dead Deliveries for cards, and what became of their cards.

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::{
    super::{
        effects::Step,
        rows::{Epochs, bucket_of, pos_of, seq_of, summary},
    },
    place::{DISMISSED, changed, count},
};
use crate::{
    event::StoreTime,
    store::{CardMark, CardQuery, CardState, DeadReason, DeadRow, DiscardReason, HookId},
};

/// Rows that one question is answered with at most.
pub(super) const CARDS_MAX: usize = 1_000;

/// All states of a card, in the order of their numbers in the store.
const CARD_STATES: [CardState; 5] =
    [CardState::Wanted, CardState::Made, CardState::Overflow, CardState::Dismissed, CardState::Expired];

const COLUMNS: &str = "hook, seq, reason, code, err, tries, at, wall, card";

/// Dead Deliveries in the order of (hook, position), at most [`CARDS_MAX`]. For
/// each its event is read, since its digest is not stored.
pub(in super::super) fn cards(db: &Connection, epochs: &Epochs, query: &CardQuery) -> Result<Vec<DeadRow>> {
    let (after_hook, after_seq) = query.after.map_or((-1, -1), |(hook, pos)| (hook.0, seq_of(pos)));
    // With a state dead_card answers, else dead_hook.
    let state = query.state.map_or_else(String::new, |state| format!("AND card = {}", state as i64));
    let limit = query.limit.min(CARDS_MAX);
    let rows: Vec<DeadRow> = match query.hook {
        Some(hook) => {
            let after = if after_hook > hook.0 { i64::MAX } else { after_seq_of(after_hook, after_seq, hook) };
            db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM dead WHERE hook = ?1 AND seq > ?2 {state} ORDER BY seq LIMIT ?3"
            ))?
            .query_map((hook.0, after, limit), read)?
            .collect::<Result<_>>()?
        }
        None => db
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM dead WHERE (hook, seq) > (?1, ?2) {state} ORDER BY hook, seq LIMIT ?3"
            ))?
            .query_map((after_hook, after_seq, limit), read)?
            .collect::<Result<_>>()?,
    };
    rows.into_iter().map(|row| with_event(db, epochs, row)).collect()
}

/// Behind which position of `hook` a list goes on that was read up to a pair.
fn after_seq_of(after_hook: i64, after_seq: i64, hook: HookId) -> i64 {
    if after_hook == hook.0 { after_seq } else { -1 }
}

fn with_event(db: &Connection, epochs: &Epochs, row: DeadRow) -> Result<DeadRow> {
    let event = summary(db, epochs, row.pos)?;
    let first_ms = match &event {
        Some(event) => event.accepted.as_millisecond(),
        None => wall_of(db, &row)?.unwrap_or_default(),
    };
    Ok(DeadRow { event, first_ms, ..row })
}

/// Wall time of the accept as a damaged row tells it.
fn wall_of(db: &Connection, row: &DeadRow) -> Result<Option<i64>> {
    db.prepare_cached("SELECT wall FROM event WHERE seq = ?1 AND typeof(wall) = 'integer'")?
        .query_row([seq_of(row.pos)], |row| row.get(0))
        .optional()
}

fn read(row: &Row<'_>) -> Result<DeadRow> {
    let reason: usize = row.get(2)?;
    let card: usize = row.get(8)?;
    Ok(DeadRow {
        hook: HookId(row.get(0)?),
        pos: pos_of(row.get(1)?),
        event: None,
        reason: DeadReason::ALL.get(reason).copied().unwrap_or(DeadReason::Corrupt),
        code: row.get(3)?,
        error: row.get::<_, Option<String>>(4)?.map(String::into_boxed_str),
        tries: row.get(5)?,
        first_ms: 0,
        last_ms: row.get(7)?,
        at: StoreTime(row.get(6)?),
        card: CARD_STATES.get(card).copied().unwrap_or(CardState::Expired),
    })
}

/// Notes what became of cards. What is not dead any more is left alone.
///
/// [`CardState::Dismissed`] ends a Delivery as discarded, once: no other mark
/// takes it back. Its row and its event stay until retention, so that a Replay by
/// id reaches it.
pub(in super::super) fn mark_cards(step: &mut Step<'_>, marks: &[CardMark]) -> Result<()> {
    for mark in marks {
        let marked = step
            .tx
            .prepare_cached("UPDATE dead SET card = ?4 WHERE bucket = ?1 AND hook = ?2 AND seq = ?3 AND card <> 3")?
            .execute((bucket_of(mark.pos), mark.hook.0, seq_of(mark.pos), mark.state as i64))?;
        if marked == 1 && mark.state as i64 == DISMISSED {
            count(step, mark.hook.0, 0, -1);
            step.effects.discard(DiscardReason::Dismissed, 1);
            // It may have blocked its ordering key.
            changed(step, mark.hook.0, seq_of(mark.pos));
        }
    }
    Ok(())
}
