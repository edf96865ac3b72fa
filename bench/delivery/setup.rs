//! What every figure begins with.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::rig::{
    api::ApiServer,
    objects::{self, NAMESPACE, VerifiedWebhook},
    pod::Pod,
    publisher::{Outcome, Pace, Plan, publish},
    receiver::{Keep, Receiver},
};

/// How long, how often.
pub struct Settings {
    pub seconds: u64,
    pub rounds: usize,
    pub warm_up: u64,
    pub folder: PathBuf,
}

impl Settings {
    pub fn from_environment() -> Self {
        let number = |name: &str, default: u64| {
            std::env::var(name)
                .ok()
                .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
        };
        let folder = std::env::var("POSTHORN_BENCH_FOLDER").map_or_else(|_| std::env::temp_dir(), PathBuf::from);
        Self {
            seconds: number("POSTHORN_BENCH_SECONDS", 60),
            rounds: usize::try_from(number("POSTHORN_BENCH_ROUNDS", 5)).unwrap(),
            warm_up: number("POSTHORN_BENCH_WARMUP", 1_000_000),
            folder,
        }
    }

    pub fn window(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// A pod with its surroundings.
pub struct Bench {
    pub start: Instant,
    pub api: ApiServer,
    pub receiver: Receiver,
    pub pod: Pod,
    _data: tempfile::TempDir,
}

/// Webhooks to make: name, path at the receiver, delivery settings, events.
pub struct Hook {
    pub name: String,
    pub path: String,
    pub delivery: Value,
    pub events: Vec<String>,
}

impl Hook {
    pub fn new(name: &str, path: &str, event: &str) -> Self {
        Self { name: name.to_owned(), path: path.to_owned(), delivery: Value::Null, events: vec![event.to_owned()] }
    }
}

impl Bench {
    /// A pod that is ready and knows these Webhooks.
    pub async fn start(settings: &Settings, keep: Keep, hooks: &[Hook], pool: Value) -> Self {
        let start = Instant::now();
        let api = ApiServer::start().await;
        let receiver = Receiver::start(start, keep).await;
        api.apply("deliverypools", objects::pool(pool));
        objects::tenant(&api, NAMESPACE);
        add(&api, &receiver, hooks);
        let data = tempfile::tempdir_in(&settings.folder).unwrap();
        let mut pod = Pod::new(env!("CARGO_BIN_EXE_posthorn"), &api);
        data.path().clone_into(&mut pod.data);
        pod.environment.push(("RUST_LOG".to_owned(), "warn".to_owned()));
        pod.start().await;
        let bench = Self { start, api, receiver, pod, _data: data };
        bench.until_known(hooks.len() as u64).await;
        bench
    }

    /// Waits until the pod routes to so many Webhooks.
    pub async fn until_known(&self, hooks: u64) {
        let began = Instant::now();
        while (self.pod.metric("posthorn_routed_subscriptions").await as u64) < hooks {
            assert!(
                began.elapsed() < Duration::from_secs(300),
                "the pod does not know its Webhooks:\n{}",
                self.pod.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn plan(&self) -> Plan {
        Plan::new(self.pod.ingest, NAMESPACE)
    }

    /// Publishes so many events in batches and waits until they are delivered.
    pub async fn warm_up(&self, events: u64, plan: Plan) {
        let outcome = Arc::new(Outcome::default());
        let plan = Plan { batch: 100, connections: 16, retries: true, ..plan };
        let before = self.receiver.answered_ok();
        publish(plan, Pace::Count(events), self.start, Arc::clone(&outcome)).join_all().await;
        self.until_delivered(before + outcome.accepted()).await;
        eprintln!("  warmed up with {events} events");
    }

    /// Waits until so many requests were answered with success.
    pub async fn until_delivered(&self, total: u64) {
        let mut last = (self.receiver.answered_ok(), Instant::now());
        while self.receiver.answered_ok() < total {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.receiver.answered_ok();
            if now > last.0 {
                last = (now, Instant::now());
            }
            assert!(
                last.1.elapsed() < Duration::from_secs(60),
                "nothing is delivered any more: {now} of {total}\n{}",
                self.pod.log_tail()
            );
        }
    }
}

/// Makes Webhooks and Subscriptions.
pub fn add(api: &ApiServer, receiver: &Receiver, hooks: &[Hook]) {
    api.apply_all(
        "webhooks",
        hooks.iter().map(|hook| {
            let url = receiver.url(&hook.path);
            let webhook =
                VerifiedWebhook { namespace: NAMESPACE, name: &hook.name, url: &url, delivery: hook.delivery.clone() };
            webhook.build(&format!("uid-{}", hook.name))
        }),
    );
    api.apply_all(
        "subscriptions",
        hooks.iter().map(|hook| {
            let events: Vec<&str> = hook.events.iter().map(String::as_str).collect();
            objects::subscription(NAMESPACE, &hook.name, &hook.name, &events)
        }),
    );
}

/// What a window of load showed.
pub struct Measured {
    /// Delivered a second.
    pub rate: f64,
    /// CPU time of the pod for each delivered event, in µs.
    pub cpu_us: f64,
    /// Times from request to 202 in µs, sorted.
    pub accept: Vec<u32>,
}

/// Load for one window, after a tenth of it as a run-up.
pub async fn measure(bench: &Bench, plan: Plan, pace: Pace, window: Duration) -> Measured {
    let outcome = Arc::new(Outcome::default());
    let tasks = publish(plan, pace, bench.start, Arc::clone(&outcome));
    tokio::time::sleep(window / 10).await;
    bench.receiver.take_latencies("ok");
    outcome.take_latencies();
    let (began, delivered, cpu) = (Instant::now(), bench.receiver.answered_ok(), bench.pod.cpu());
    tokio::time::sleep(window).await;
    let (seconds, delivered, cpu) = (
        began.elapsed().as_secs_f64(),
        bench.receiver.answered_ok() - delivered,
        bench.pod.cpu().checked_sub(cpu).unwrap_or_default(),
    );
    let accept = outcome.take_latencies();
    outcome.stop();
    tasks.join_all().await;
    let refused = outcome.refused.lock().unwrap().clone();
    if !refused.is_empty() {
        eprintln!("  answers other than 202: {refused:?}");
    }
    Measured { rate: delivered as f64 / seconds, cpu_us: cpu.as_secs_f64() * 1e6 / (delivered.max(1) as f64), accept }
}

/// The p-th quantile of sorted values, in ms.
pub fn quantile_ms(sorted: &[u32], p: f64) -> f64 {
    if sorted.is_empty() {
        return f64::NAN;
    }
    f64::from(sorted[((sorted.len() - 1) as f64 * p) as usize]) / 1000.0
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Nothing beyond what a pool says by itself.
pub fn plain_pool() -> Value {
    json!({})
}
