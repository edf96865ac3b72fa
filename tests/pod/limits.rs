//! Tenants and the store at their limits.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    rig::{
        objects,
        publisher::{Outcome, Pace, Plan, publish},
    },
    stage::{Stage, WAIT, scaled, until},
};

/// Events a second that a namespace may hand in, and so many at once.
const RATE: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_at_his_limit_is_told_when_to_come_again_and_the_other_notices_nothing() {
    let limits = json!({"limits": {"perNamespace": {"eventsPerSecond": RATE, "burst": RATE}}});
    let mut stage = Stage::with_pool(limits).await;
    objects::tenant(&stage.api, "loud");
    stage.webhook("orders", "/ok/orders", "order.paid", json!(null));
    stage.pod.start().await;
    stage.until_routed(1).await;
    let run = async || {
        let outcome = Arc::new(Outcome::default());
        let plan = Plan { connections: 8, ..stage.plan() };
        let tasks = publish(plan, Pace::PerSecond(50.0), stage.start, Arc::clone(&outcome));
        tokio::time::sleep(Duration::from_secs(scaled(4, 30))).await;
        outcome.stop();
        tasks.join_all().await;
        outcome
    };
    let p99 = |outcome: &Arc<Outcome>| {
        let latencies = outcome.take_latencies();
        Duration::from_micros(latencies[latencies.len() * 99 / 100].into())
    };
    let alone = p99(&run().await);

    let (loud, began) = (Arc::new(Outcome::default()), Instant::now());
    let plan = Plan { connections: 16, retries: false, ..Plan::new(stage.pod.ingest, "loud") };
    let tasks = publish(plan, Pace::Closed, stage.start, Arc::clone(&loud));
    until("the loud tenant is at his limit", WAIT, async || loud.refused.lock().unwrap().contains_key(&429)).await;
    let beside = run().await;
    // One more of his requests that comes too early, to see all of the answer.
    let headers = loop {
        let (code, headers) = stage.post("loud", "order.paid").await;
        if code == 429 {
            break headers;
        }
    };
    loud.stop();
    tasks.join_all().await;
    let took = began.elapsed();

    let seconds: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let refused = loud.refused.lock().unwrap().clone();
    assert_eq!(refused.keys().copied().collect::<Vec<_>>(), [429]);
    let most = RATE + (took.as_secs_f64() * RATE as f64) as u64 + 1;
    assert!(loud.accepted() <= most, "{} of {most} accepted", loud.accepted());
    assert_eq!(*beside.refused.lock().unwrap(), [].into(), "the other tenant was refused");
    assert_eq!(beside.broken.load(std::sync::atomic::Ordering::Relaxed), 0);
    let with = p99(&beside);
    println!(
        "{} accepted and {refused:?} refused in {took:?}; the other's p99 {with:?}, alone {alone:?}",
        loud.accepted()
    );
    // Both share two cores with the sender of this flood: a queue behind it would
    // show as seconds.
    assert!(with < alone * 5 + Duration::from_millis(250), "p99 {with:?} beside him, {alone:?} alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_takes_nothing_more_and_goes_on_delivering() {
    // The backlog of one Webhook may take a tenth of the store: more would die.
    const WEBHOOKS: u64 = 12;
    let mut stage = Stage::with_pool(json!({"store": {"size": "24Mi"}})).await;
    let patient = json!({"retry": {"backoff": {"initial": "1s", "factor": 1, "max": "1s", "attempts": 100}}, "circuit": {"failures": 0}});
    let path = |n| format!("/switch/orders/{n}");
    for n in 0..WEBHOOKS {
        stage.webhook(&format!("orders-{n}"), &path(n), &format!("to.{n}"), patient.clone());
    }
    stage.pod.start().await;
    stage.until_routed(WEBHOOKS).await;
    let outcome = Arc::new(Outcome::default());
    let event_type = Arc::new(|n| format!("to.{}", n % WEBHOOKS));
    let plan = Plan { event_type, batch: 12, data_bytes: 8 * 1024, connections: 4, retries: false, ..stage.plan() };
    let tasks = publish(plan, Pace::Closed, stage.start, Arc::clone(&outcome));
    until("the store is full", WAIT, async || outcome.refused.lock().unwrap().contains_key(&507)).await;
    outcome.stop();
    tasks.join_all().await;
    let refused = outcome.refused.lock().unwrap().clone();
    assert!(refused.keys().all(|code| matches!(code, 507 | 429)), "{refused:?}");
    stage.receiver.set_up("orders", true);
    let ids: HashSet<String> = outcome.ids().into_iter().collect();
    until("all are delivered", WAIT, async || {
        let delivered: HashSet<_> = (0..WEBHOOKS).flat_map(|n| stage.receiver.ids(&path(n))).collect();
        delivered.is_superset(&ids)
    })
    .await;
    assert!(stage.pod.is_ready().await);
    println!("{} accepted, then {refused:?}", ids.len());
    // What was delivered makes room, within the minute after which it is looked at.
    if scaled(false, true) {
        until("events are taken again", WAIT * 2, async || stage.post("shop", "order.paid").await.0 == 202).await;
    }
}
