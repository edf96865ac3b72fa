//! Much that is owed: memory, start, writes to the API server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    report::Report,
    rig::{
        publisher::{Outcome, Pace, Plan, publish},
        receiver::Keep,
    },
    setup::{Bench, Hook, Settings, plain_pool},
};

const MANY: u64 = 10_000;
const BACKLOG: u64 = 1_000_000;
/// How long memory is watched after the backlog stands.
const WATCH: Duration = Duration::from_secs(20);
/// Time after which a pod without load counts as idle.
const IDLE_AFTER: Duration = Duration::from_secs(30);

pub async fn memory(settings: &Settings, report: &mut Report) {
    let bench = Bench::start(settings, Keep::default(), &[], plain_pool()).await;
    tokio::time::sleep(IDLE_AFTER).await;
    let idle = bench.pod.memory_kib().0;
    report.row("memory: idle", "≤ 20 MiB", format!("{:.1} MiB", mib(idle)));
    drop(bench);

    let bench = Bench::start(settings, Keep::default(), &many(None), plain_pool()).await;
    tokio::time::sleep(IDLE_AFTER).await;
    let with_hooks = bench.pod.memory_kib().0;
    let each = (with_hooks.saturating_sub(idle)) as f64 / MANY as f64;
    report.row("memory: per idle Webhook with Subscription (10,000)", "≤ 4 KiB", format!("{each:.2} KiB"));
    drop(bench);

    let refusing = json!({"retry": {"schedule": ["10m"]}, "circuit": {"failures": 0}});
    let suspended: [(&str, Vec<Hook>); 3] = [
        ("one Webhook", vec![dead_hook("one", "order.0", &refusing)]),
        ("10,000 Webhooks", many(Some(&refusing))),
        ("10,000 Webhooks, all in retry", many(Some(&refusing))),
    ];
    for (name, hooks) in suspended {
        let all_tried = name.ends_with("retry");
        let bench = Bench::start(settings, Keep::default(), &hooks, plain_pool()).await;
        let count = hooks.len() as u64;
        fill(&bench, BACKLOG, count).await;
        if all_tried {
            until_attempts(&bench, BACKLOG).await;
        }
        tokio::time::sleep(WATCH).await;
        let (now, peak) = bench.pod.memory_kib();
        let text = format!("{:.1} MiB, peak {:.1} MiB", mib(now), mib(peak));
        report.row(&format!("memory: backlog of 1,000,000, {name}"), "≤ 128 MiB", text);
    }
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

fn dead_hook(name: &str, event: &str, delivery: &Value) -> Hook {
    Hook { delivery: delivery.clone(), ..Hook::new(name, "/status/500", event) }
}

fn many(dead: Option<&Value>) -> Vec<Hook> {
    (0..MANY)
        .map(|n| match dead {
            Some(delivery) => dead_hook(&format!("hook-{n}"), &format!("order.{n}"), delivery),
            None => Hook::new(&format!("hook-{n}"), &format!("/ok/{n}"), &format!("order.{n}")),
        })
        .collect()
}

/// Publishes so many small events, spread over the Webhooks.
async fn fill(bench: &Bench, events: u64, hooks: u64) {
    let outcome = Arc::new(Outcome::default());
    let plan = Plan {
        batch: 100,
        connections: 16,
        retries: true,
        data_bytes: 200,
        event_type: Arc::new(move |n| format!("order.{}", n % hooks)),
        ..bench.plan()
    };
    publish(plan, Pace::Count(events), bench.start, Arc::clone(&outcome)).join_all().await;
    assert!(outcome.accepted() >= events, "{:?}", outcome.refused.lock().unwrap());
}

async fn until_attempts(bench: &Bench, attempts: u64) {
    let began = Instant::now();
    while (bench.pod.metric("posthorn_attempts_total").await as u64) < attempts {
        assert!(began.elapsed() < Duration::from_secs(900), "attempts do not come:\n{}", bench.pod.log_tail());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The pod is killed with 10,000,000 owed, the page cache dropped, and it starts.
pub async fn start(settings: &Settings, report: &mut Report) {
    let owed: u64 = std::env::var("POSTHORN_BENCH_OWED").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000_000);
    let dead = json!({"retry": {"schedule": ["24h"]}, "circuit": {"failures": 5}});
    let mut bench =
        Bench::start(settings, Keep::default(), &many(Some(&dead)), json!({"store": {"size": "64Gi"}})).await;
    fill(&bench, owed, MANY).await;
    bench.pod.kill();
    let wal = std::fs::metadata(bench.pod.data.join("store.db-wal")).map_or(0, |file| file.len());
    let dropped = std::process::Command::new("sh").args(["-c", "sync; echo 3 > /proc/sys/vm/drop_caches"]).status();
    let took = bench.pod.start().await;
    let cache = if dropped.is_ok_and(|status| status.success()) { "dropped" } else { "not dropped" };
    let text = format!("{:.1} s (WAL {:.0} MiB, page cache {cache})", took.as_secs_f64(), mib(wal / 1024));
    report.row(&format!("start with {owed} owed over 10,000 Webhooks"), "ready < 5 s", text);
}

/// One endpoint dead at 1,000 events a second: what the API server sees of it.
pub async fn dead_endpoint(settings: &Settings, report: &mut Report) {
    let seconds = settings.seconds.max(1) * 10;
    let dead = json!({"retry": {"schedule": ["1s"]}, "circuit": {"failures": 0}, "concurrency": 64});
    let bench = Bench::start(settings, Keep::default(), &[dead_hook("one", "order.paid", &dead)], plain_pool()).await;
    let before = bench.api.writes();
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(bench.plan(), Pace::PerSecond(1_000.0), bench.start, Arc::clone(&outcome));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let writes = (bench.api.writes() - before) as f64 / seconds as f64;
    outcome.stop();
    tasks.join_all().await;
    let accepted = outcome.accepted();
    let began = Instant::now();
    while (bench.pod.metric("posthorn_deliveries_dead_total").await as u64) < accepted {
        assert!(began.elapsed() < Duration::from_secs(600), "not all are dead:\n{}", bench.pod.log_tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let cards = bench.api.list("deadletters").len() as u64;
    let overflow = bench.pod.metric("posthorn_dead_letters_overflow_total").await as u64;
    let exact = if cards + overflow == accepted { "exact" } else { "WRONG" };
    let text = format!(
        "{writes:.2} writes/s over {seconds} s; {accepted} dead = {cards} cards + {overflow} overflow ({exact})"
    );
    report.row(
        "one endpoint dead at 1,000 events/s, failures: 0, schedule [1s]",
        "≤ 1 API write/s, overflow exact",
        text,
    );
}

/// 10,000 Webhooks with an event a second each: writes of the pod. Those of the
/// controller are bounded by its own budget.
pub async fn many_active(settings: &Settings, report: &mut Report) {
    let bench = Bench::start(settings, Keep::default(), &many(None), plain_pool()).await;
    let plan = Plan {
        batch: 100,
        connections: 16,
        data_bytes: 200,
        event_type: Arc::new(|n| format!("order.{}", n % MANY)),
        ..bench.plan()
    };
    let before = bench.api.writes();
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(plan, Pace::PerSecond(MANY as f64 / 100.0), bench.start, Arc::clone(&outcome));
    tokio::time::sleep(settings.window()).await;
    let writes = (bench.api.writes() - before) as f64 / settings.seconds as f64;
    outcome.stop();
    tasks.join_all().await;
    let delivered = bench.receiver.answered_ok();
    let text = format!("{writes:.2} writes/s by the pod; {delivered} delivered of {}", outcome.accepted());
    report.row("10,000 Webhooks with 1 event/s each", "≤ 6 API writes/s (5 by the controller's budget)", text);
}
