//! What one tenant's trouble costs the others.

use std::{net::TcpListener, sync::Arc, time::Duration};

use serde_json::json;

use crate::{
    report::Report,
    rig::{
        api::ApiServer,
        objects::{self, NAMESPACE, VerifiedWebhook},
        publisher::{Outcome, Pace, Plan, publish},
        receiver::Keep,
    },
    setup::{Bench, Hook, Settings, measure, median, plain_pool, quantile_ms},
};

const LATENCIES: Keep = Keep { ids: false, latencies: true, requests: false };
/// Events a second to each group of endpoints.
const RATE: f64 = 1_000.0;
const FAN: usize = 5_000;

/// 100 healthy endpoints alone, then beside 100 dead and 10 slow ones.
pub async fn dead_and_slow(settings: &Settings, report: &mut Report) {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let healthy: Vec<Hook> =
            (0..100).map(|n| Hook::new(&format!("ok-{n}"), &format!("/ok/{n}"), &format!("ok.{n}"))).collect();
        let bench = Bench::start(settings, LATENCIES, &healthy, plain_pool()).await;
        let plan = Plan { event_type: Arc::new(|n| format!("ok.{}", n % 100)), ..bench.plan() };
        alone.push(p99(&bench, &plan, settings).await);

        let mut trouble: Vec<Hook> =
            (0..10).map(|n| Hook::new(&format!("slow-{n}"), &format!("/slow/2000/{n}"), &format!("bad.{n}"))).collect();
        trouble.extend((10..60).map(|n| Hook::new(&format!("hang-{n}"), &format!("/hang/{n}"), &format!("bad.{n}"))));
        crate::setup::add(&bench.api, &bench.receiver, &trouble);
        refusing(&bench.api, 60..110);
        bench.until_known(210).await;
        let bad = Plan { connections: 16, event_type: Arc::new(|n| format!("bad.{}", n % 110)), ..bench.plan() };
        let outcome = Arc::new(Outcome::default());
        let tasks = publish(bad, Pace::PerSecond(RATE), bench.start, Arc::clone(&outcome));
        beside.push(p99(&bench, &plan, settings).await);
        outcome.stop();
        tasks.join_all().await;
    }
    let (alone, beside) = (median(alone), median(beside));
    let text =
        format!("alone {alone:.1} ms, beside {beside:.1} ms: {:.2} ×, {:+.1} ms", beside / alone, beside - alone);
    report.row("100 dead, 10 slow, 100 healthy: the healthy ones' p99", "≤ 1.2 × alone, or + 2 ms", text);
}

async fn p99(bench: &Bench, plan: &Plan, settings: &Settings) -> f64 {
    measure(bench, plan.clone(), Pace::PerSecond(RATE), settings.window()).await;
    quantile_ms(&bench.receiver.take_latencies("ok"), 0.99)
}

/// Webhooks whose port nobody listens on.
fn refusing(api: &ApiServer, numbers: std::ops::Range<u64>) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for n in numbers {
        let (name, url) = (format!("refuse-{n}"), format!("http://127.0.0.1:{port}/{n}"));
        let hook = VerifiedWebhook { namespace: NAMESPACE, name: &name, url: &url, delivery: json!(null) };
        api.apply("webhooks", hook.build(&format!("uid-{name}")));
        api.apply("subscriptions", objects::subscription(NAMESPACE, &name, &name, &[&format!("bad.{n}")]));
    }
}

/// 1,000 single events a second alone, then beside events that go to 5,000 Webhooks each.
pub async fn fan_out(settings: &Settings, report: &mut Report) {
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        let mut hooks: Vec<Hook> =
            (0..FAN).map(|n| Hook::new(&format!("fan-{n}"), &format!("/fan/{n}"), "everyone")).collect();
        hooks.push(Hook { delivery: json!({"concurrency": 64}), ..Hook::new("one", "/ok/one", "order.paid") });
        let bench = Bench::start(settings, LATENCIES, &hooks, plain_pool()).await;
        let plan = bench.plan();
        alone.push(p99(&bench, &plan, settings).await);
        let everyone = Plan { connections: 1, event_type: Arc::new(|_| "everyone".to_owned()), ..bench.plan() };
        let outcome = Arc::new(Outcome::default());
        // One such event a second: 5,000 Deliveries a second beside the 1,000.
        let tasks = publish(everyone, Pace::PerSecond(1.0), bench.start, Arc::clone(&outcome));
        beside.push(p99(&bench, &plan, settings).await);
        outcome.stop();
        tasks.join_all().await;
        assert!(!bench.receiver.take_latencies("fan").is_empty(), "the fan-out was not delivered");
    }
    let (alone, beside) = (median(alone), median(beside));
    let text = format!("alone {alone:.1} ms, beside {beside:.1} ms: {:.2} ×", beside / alone);
    report.row("fan-out 1 → 5,000 (1/s) beside 1,000 single events/s: the singles' p99", "≤ 1.5 × alone", text);
}

/// Accept latency with and without retention at work, both under full load.
pub async fn retention(settings: &Settings, report: &mut Report) {
    let hooks = [Hook { delivery: json!({"concurrency": 64}), ..Hook::new("one", "/ok/one", "order.paid") }];
    let mut quantiles = Vec::new();
    for pool in [plain_pool(), json!({"store": {"retention": {"age": "1m"}}})] {
        let bench = Bench::start(settings, Keep::default(), &hooks, pool).await;
        bench.warm_up(settings.warm_up, bench.plan()).await;
        // What the warm-up left is more than a minute old now, and goes.
        tokio::time::sleep(Duration::from_secs(61)).await;
        let mut all = Vec::new();
        for _ in 0..settings.rounds {
            all.push(quantile_ms(&measure(&bench, bench.plan(), Pace::Closed, settings.window()).await.accept, 0.99));
        }
        let removed = bench.pod.metric("posthorn_store_events_removed_total").await;
        quantiles.push((median(all), removed));
    }
    let [(without, _), (with, removed)] = quantiles[..] else { panic!("two runs") };
    let text =
        format!("{without:.1} ms without, {with:.1} ms with: {:.2} × ({removed:.0} events removed)", with / without);
    report.row("retention running at full load: accept p99", "≤ 1.5 × without", text);
}
