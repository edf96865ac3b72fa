//! Tests of what the store does by itself: most open the whole store, with a
//! clock that they move.

mod limits;
mod plans;
mod removal;
mod replays;
mod routing;
mod sums;

use std::sync::Arc;

use super::super::{SqliteStore, tests::Place};
use crate::{
    event::{Pos, StoreTime},
    store::{
        Accepted, DeadReason, DeliveryState, History, HookDefinition, HookId, HookNote, Ingest, NewEvent, Next,
        Outcome, Partition, Register, Registered,
    },
};

pub(super) use super::super::tests::{
    BEGIN_MS, DAY_MS, accept, check_totals, event, hook, outcome, query_plans, record, register, sub, tally,
};

/// Lets the writer work until something is so.
async fn until(store: &SqliteStore, what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..3_000 {
        if is_so().await {
            return;
        }
        nudge(store).await;
    }
    panic!("never: {what}");
}

/// A transaction: the writer looks at its clock.
async fn nudge(store: &SqliteStore) {
    store.note(HookId(0), HookNote::Circuit(None)).await.unwrap();
}

/// Several transactions: whatever is due has its turn.
async fn settle(store: &SqliteStore) {
    for _ in 0..60 {
        nudge(store).await;
    }
}

async fn accept_all(store: &SqliteStore, events: Vec<NewEvent>) -> Vec<Pos> {
    let verdicts = store.accept(events).await.unwrap();
    let pos = |verdict| match verdict {
        Accepted::New(id) => id.pos,
        other => panic!("{other:?}"),
    };
    verdicts.into_iter().map(pos).collect()
}

async fn register_all(store: &SqliteStore, changes: Vec<Register>) -> Vec<Registered> {
    store.register(changes).await.unwrap()
}

async fn state(store: &SqliteStore, hook: HookId, pos: Pos) -> Option<DeliveryState> {
    store.states_of(pos).await.unwrap().into_iter().find(|(id, _)| *id == hook).map(|(_, state)| state)
}

fn dead(hook: HookId, pos: Pos) -> Outcome {
    outcome(hook, pos, 0, Next::Dead(DeadReason::Exhausted))
}

/// A hook that keeps what it is owed for 100 days.
fn patient(name: &str) -> HookDefinition {
    HookDefinition { max_age_ms: 100 * DAY_MS, ..hook(name, false) }
}

async fn register_patient(store: &SqliteStore, name: &str) -> HookId {
    let changes = vec![Register::Hook(patient(name)), Register::Sub(sub(name, name))];
    let [Registered::Hook(id), _] = register_all(store, changes).await[..] else { panic!() };
    id
}

fn pass(place: &Place, ms: i64) {
    place.clock.pass_ms(ms.cast_unsigned());
}

/// The store after a restart.
fn reopened(place: &Place, store: Arc<SqliteStore>) -> Arc<SqliteStore> {
    drop(store);
    place.open().0
}

fn in_a_day(store: &SqliteStore) -> Next {
    let StoreTime(now) = store.store_now();
    Next::At(StoreTime(now + DAY_MS))
}
