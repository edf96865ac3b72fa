//! How many, at what cost, how soon.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    report::Report,
    rig::{
        publisher::{Outcome, Pace, Plan, publish},
        receiver::{Keep, Receiver},
    },
    setup::{Bench, Hook, Measured, Settings, measure, median, plain_pool, quantile_ms},
};

const LATENCIES: Keep = Keep { ids: false, latencies: true, requests: false };
const NOTHING: Keep = Keep { ids: false, latencies: false, requests: false };

/// Webhooks in the figures with many.
const MANY: u64 = 10_000;
/// Events that are sent and not delivered at most in a closed loop: to accept an
/// event costs less than to deliver it, so publishers who wait for the accept alone
/// would measure the growth of a backlog.
const AHEAD_MAX: u64 = 1_000;
/// Connections of publishers in a closed loop: with fewer, how long an accept takes
/// decides how many events there are.
const PUBLISHERS: usize = 256;

/// The yardstick: requests a second from the generator straight to the receiver.
/// The generator's requests are as long as a signed delivery; the receiver reads
/// them in the same way.
pub async fn raw(settings: &Settings, report: &mut Report) -> f64 {
    let mut rates = Vec::new();
    for _ in 0..settings.rounds {
        let start = Instant::now();
        let receiver = Receiver::start(start, NOTHING).await;
        let outcome = Arc::new(Outcome::default());
        let plan = Plan { address: receiver.address, signs: true, connections: PUBLISHERS, ..Plan::new(0, "ok") };
        let tasks = publish(plan, Pace::Closed, start, Arc::clone(&outcome));
        let window = settings.window().min(Duration::from_secs(20));
        tokio::time::sleep(window / 10).await;
        let (began, before) = (Instant::now(), receiver.received());
        tokio::time::sleep(window).await;
        rates.push((receiver.received() - before) as f64 / began.elapsed().as_secs_f64());
        outcome.stop();
        tasks.join_all().await;
    }
    let raw = median(rates);
    report.row("raw: generator → receiver, signed", "the yardstick", format!("{raw:.0}/s"));
    raw
}

async fn rounds(settings: &Settings, bench: &Bench, plan: &Plan) -> Measured {
    let (mut rates, mut cpus, mut accept) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let measured = closed(settings, bench, plan).await;
        eprintln!("  {:.0}/s, {:.1} µs", measured.rate, measured.cpu_us);
        rates.push(measured.rate);
        cpus.push(measured.cpu_us);
        accept.extend(measured.accept);
    }
    accept.sort_unstable();
    Measured { rate: median(rates), cpu_us: median(cpus), accept }
}

/// A window of as many events as are delivered.
async fn closed(settings: &Settings, bench: &Bench, plan: &Plan) -> Measured {
    bench.until_quiet().await;
    let (delivered, before) = (bench.receiver.counter(), bench.receiver.answered_ok());
    let may_send = Arc::new(move |sent| sent < delivered() - before + AHEAD_MAX);
    measure(bench, Plan { may_send: Some(may_send), ..plan.clone() }, Pace::Closed, settings.window()).await
}

fn tell(report: &mut Report, figure: &str, goal: &str, raw: f64, measured: &Measured) {
    let Measured { rate, cpu_us, accept } = measured;
    let text = format!(
        "{:.3} × raw ({rate:.0}/s) · {cpu_us:.1} µs · accept p50 {:.1} ms, p99 {:.1} ms",
        rate / raw,
        quantile_ms(accept, 0.5),
        quantile_ms(accept, 0.99)
    );
    report.row(figure, goal, text);
}

pub async fn single(settings: &Settings, report: &mut Report, raw: f64) {
    let hooks =
        [Hook { delivery: serde_json::json!({"concurrency": 64}), ..Hook::new("one", "/ok/one", "order.paid") }];
    let bench = Bench::start(settings, NOTHING, &hooks, plain_pool()).await;
    bench.warm_up(settings.warm_up, bench.plan()).await;
    let plan = Plan { connections: PUBLISHERS, ..bench.plan() };
    let measured = rounds(settings, &bench, &plan).await;
    tell(report, "one Webhook, one event a request, no publishers' ids", "≥ 0.22 × raw · ≤ 80 µs", raw, &measured);
}

pub async fn many(settings: &Settings, report: &mut Report, raw: f64) {
    let hooks: Vec<Hook> =
        (0..MANY).map(|n| Hook::new(&format!("hook-{n}"), &format!("/ok/{n}"), &format!("order.{n}"))).collect();
    let bench = Bench::start(settings, NOTHING, &hooks, plain_pool()).await;
    let plan = Plan {
        // Spread without order, and never the same id twice in a run.
        event_type: Arc::new(|n| format!("order.{}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % MANY)),
        id: Some(Arc::new(|_| format!("{:016x}", rand::random::<u64>()))),
        connections: PUBLISHERS,
        ..bench.plan()
    };
    bench.warm_up(settings.warm_up, plan.clone()).await;
    let measured = rounds(settings, &bench, &plan).await;
    tell(report, "10,000 Webhooks, random publishers' ids", "≥ 0.17 × raw · ≤ 100 µs", raw, &measured);
}

pub async fn batch(settings: &Settings, report: &mut Report, raw: f64) {
    let hooks =
        [Hook { delivery: serde_json::json!({"concurrency": 64}), ..Hook::new("one", "/ok/one", "order.paid") }];
    let bench = Bench::start(settings, NOTHING, &hooks, plain_pool()).await;
    let plan = Plan { batch: 100, connections: 8, ..bench.plan() };
    bench.warm_up(settings.warm_up, plan.clone()).await;
    let measured = rounds(settings, &bench, &plan).await;
    tell(report, "one Webhook, 100 events a request", "≥ 0.35 × raw · ≤ 55 µs", raw, &measured);
}

/// Open loop at half of what the closed loop reaches: from the moment at which an
/// event was due to be sent to its arrival.
pub async fn latency(settings: &Settings, report: &mut Report) {
    let hooks =
        [Hook { delivery: serde_json::json!({"concurrency": 64}), ..Hook::new("one", "/ok/one", "order.paid") }];
    let bench = Bench::start(settings, LATENCIES, &hooks, plain_pool()).await;
    bench.warm_up(settings.warm_up, bench.plan()).await;
    let most = closed(settings, &bench, &Plan { connections: PUBLISHERS, ..bench.plan() }).await.rate;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        bench.until_quiet().await;
        let plan = Plan { connections: 256, ..bench.plan() };
        measure(&bench, plan, Pace::PerSecond(most / 2.0), settings.window()).await;
        let latencies = bench.receiver.take_latencies("ok");
        p50.push(quantile_ms(&latencies, 0.5));
        p99.push(quantile_ms(&latencies, 0.99));
    }
    let goal = format!(
        "p50 ≤ 3 ms + 1 sync ({:.1}), p99 ≤ 15 ms + 3 syncs ({:.1})",
        3.0 + report.sync_p50_ms,
        15.0 + 3.0 * report.sync_p99_ms
    );
    let text = format!("p50 {:.1} ms, p99 {:.1} ms at {:.0}/s", median(p50), median(p99), most / 2.0);
    report.row("open loop at half of the maximal rate, send → received", &goal, text);
}

impl Bench {
    /// Waits until nothing arrives any more.
    pub async fn until_quiet(&self) {
        let mut before = self.receiver.answered_ok();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = self.receiver.answered_ok();
            if now == before {
                return;
            }
            before = now;
        }
    }
}
