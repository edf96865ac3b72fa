//! The partition is taken away at every call there is: the caller is told, and
//! whoever comes next finds each call done in full or not at all.

use std::sync::Arc;

use futures::future::BoxFuture;
use posthorn::{event::Pos, store::*};

use crate::store::{
    fenced::{Fence, FencedPartition},
    grounds::ModelGround,
    world::*,
};

/// What a caller does, one call after the other; with the state before it.
type Call = Box<dyn Fn(&World, Arc<dyn Partition>) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// A hook with five events: one waits, one is dead, three are owed.
async fn prepare(w: &World) -> (HookId, Vec<Pos>) {
    let hook = w.wanting("h", "*").await;
    let all = w.publish_many("a", 5).await;
    w.fail(hook, all[0], 0, w.in_time(HOUR)).await;
    w.kill(hook, all[1], 0).await;
    (hook, all)
}

fn call<F, A>(make: F) -> Call
where
    F: Fn(&World, Arc<dyn Partition>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    Box::new(move |w, p| Box::pin(make(w, p)))
}

/// Every call of the contract that may change something, and two that read.
fn calls(hook_id: HookId, all: &[Pos]) -> Vec<Call> {
    let (first, dead, owed, last) = (all[0], all[1], all[2], all[3]);
    let order = replay_order("again", hook_id, ReplayWhat::AllDead);
    let identity = order.identity.clone();
    vec![
        call(move |w, p| {
            let changes = vec![
                Register::Hook(hook("second")),
                Register::Sub(sub("second", "second", "*", From::Earliest, w.clock.wall())),
            ];
            async move { p.register(changes).await.map(drop) }
        }),
        call(move |_, p| async move { p.known().await.map(drop) }),
        call(move |_, p| async move { p.owed(hook_id, Pos(0), 10).await.map(drop) }),
        call(move |_, p| async move { p.bodies(vec![first]).await.map(drop) }),
        call(move |w, p| {
            let outcomes = vec![
                outcome(&w.clock, hook_id, owed, 0, Some(200), Next::Done),
                outcome(&w.clock, hook_id, last, 0, Some(500), Next::Dead(DeadReason::DeadOn)),
            ];
            async move {
                let ticket = p.record(outcomes);
                let mut recorded = p.recorded();
                drop(p);
                let timeout = std::time::Duration::from_secs(10);
                match tokio::time::timeout(timeout, recorded.wait_for(|upto| *upto >= ticket)).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(_)) | Err(_) => Err(StoreError::Fenced),
                }
            }
        }),
        call(move |_, p| async move { p.note(hook_id, HookNote::Circuit(Some("open".into()))).await }),
        call(move |_, p| async move {
            p.mark_cards(vec![CardMark { hook: hook_id, pos: dead, state: CardState::Made }]).await
        }),
        call(move |_, p| {
            let order = order.clone();
            async move { p.replay(order).await.map(drop) }
        }),
        call(move |_, p| {
            let identity = identity.clone();
            async move { p.cancel_replay(identity).await.map(drop) }
        }),
        call(move |_, p| async move { p.register(vec![hook_gone("second")]).await.map(drop) }),
    ]
}

/// What whoever comes next sees, in words that do not depend on the store.
async fn seen(w: &World, all: &[Pos]) -> String {
    let known = w.partition().known().await.unwrap();
    let name = |id: HookId| known.hooks.iter().find(|h| h.id == id).map(|h| h.hook.name.clone());
    let index = |pos: Pos| all.iter().position(|p| *p == pos);
    let mut states = Vec::new();
    for pos in all {
        let of: Vec<_> = w.states(*pos).await.into_iter().map(|(hook, state)| (name(hook), state)).collect();
        states.push(of);
    }
    let hooks: Vec<_> = known.hooks.iter().map(|h| (&h.hook.name, h.gone_at.is_some(), &h.notes, h.pending)).collect();
    let query = CardQuery { hook: None, state: None, after: None, limit: 100 };
    let dead = w.partition().cards(query).await.unwrap();
    let dead: Vec<_> = dead.iter().map(|r| (name(r.hook), index(r.pos), r.card)).collect();
    format!("{hooks:?} {states:?} {dead:?} {:?}", w.totals().await)
}

/// What is seen before and after each call, on the model.
async fn expected() -> Vec<String> {
    let w = World::new(ModelGround::fresh()).await;
    let (hook, all) = prepare(&w).await;
    let mut seen_after = vec![seen(&w, &all).await];
    for call in calls(hook, &all) {
        call(&w, w.partition().clone()).await.unwrap();
        seen_after.push(seen(&w, &all).await);
    }
    seen_after
}

async fn fence_at(mut w: World, at: usize, fence: Fence, expected: &[String]) {
    let (hook, all) = prepare(&w).await;
    let calls = calls(hook, &all);
    for (call, after) in calls.iter().zip(&expected[1..]).take(at) {
        call(&w, w.partition().clone()).await.unwrap();
        w.settles("good call", after.clone(), || seen(&w, &all)).await;
    }
    let fenced: Arc<dyn Partition> = Arc::new(FencedPartition::new(w.partition().clone(), fence, 0));
    let answer = calls[at](&w, fenced.clone()).await;
    assert_eq!(answer, Err(StoreError::Fenced), "call {at}, {fence:?}");
    assert_eq!(fenced.known().await, Err(StoreError::Fenced), "and it stays fenced");
    drop(fenced);
    w.restart().await;
    let after = &expected[at + usize::from(fence == Fence::After)];
    w.settles("fenced call", after.clone(), || seen(&w, &all)).await;
}

/// `world` makes a fresh world of the same store.
pub async fn each_call_is_done_in_full_or_not_at_all<F: Future<Output = World>>(world: impl Fn() -> F) {
    let expected = expected().await;
    for fence in [Fence::Before, Fence::After] {
        for at in 0..expected.len() - 1 {
            fence_at(world().await, at, fence, &expected).await;
        }
    }
}
