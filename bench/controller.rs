//! `make bench-controller`: 10,000 Webhooks, each with a Subscription, against
//! one receiver on a real API server.
//!
//! Prints time until all are Ready, API writes per object as the API server
//! counted them, peak memory as the kernel counted it, writes once settled, and
//! the time from a restart of the controller to settled. The cluster is that of
//! `KUBECONFIG`, Posthorn is installed, an inbox runs as Deployment `inbox` in
//! `posthorn-bench`; `scripts/bench-controller.sh` sees to that.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a benchmark, not a part"
)]

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use kube_runtime::{WatchStreamExt, watcher};
use posthorn::api::{ConditionType, Subscription, Webhook, condition};
use serde::de::DeserializeOwned;
use serde_json::json;

const RELEASE_NAMESPACE: &str = "posthorn-system";
const BENCH_NAMESPACE: &str = "posthorn-bench";
/// Objects of a kind in one namespace; within the supported 1,500.
const PER_NAMESPACE: usize = 500;
/// Requests that create objects at once.
const PARALLEL: usize = 16;
/// How long the whole may take before the benchmark gives up.
const READY_LIMIT: Duration = Duration::from_secs(900);
/// The window in which a settled controller must not write.
const SETTLED_WINDOW: Duration = Duration::from_secs(60);
/// Quiet time that counts as settled before that window begins.
const QUIET: Duration = Duration::from_secs(10);
const RESTART_LIMIT: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let total: usize = std::env::var("POSTHORN_BENCH_WEBHOOKS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let client = Client::try_default().await.expect("KUBECONFIG");
    let url = inbox_url(&client).await;
    make_namespaces(&client, total).await;
    let before = Writes::read(&client).await;
    let pods = Memory::processes();

    let start = Instant::now();
    let ready = tokio::spawn(all_ready(client.clone(), total));
    create(&client, &url, total).await;
    let created = start.elapsed();
    eprintln!("created {total} Webhooks and Subscriptions in {:.1} s", created.as_secs_f64());
    let done = ready.await.unwrap() - start;
    let until_ready = Writes::read(&client).await.minus(&before);
    let memory = Memory::peaks(&pods);

    let (settled, minute) = settled_writes(&client).await;
    let restart = restart(&client, total).await;
    report(total, created, done, &until_ready, &memory, settled, &minute, &restart);
    remove(&client, total).await;
}

/// The inbox by its pod's address: one receiver for all namespaces.
async fn inbox_url(client: &Client) -> String {
    let pods: Api<Pod> = Api::namespaced(client.clone(), BENCH_NAMESPACE);
    let list = pods.list(&ListParams::default().labels("app=inbox")).await.unwrap();
    let address = list.items.iter().find_map(|p| p.status.as_ref()?.pod_ip.clone()).expect("the inbox runs");
    format!("http://{address}:8080")
}

fn namespace(index: usize) -> String {
    format!("bench-{:02}", index / PER_NAMESPACE)
}

async fn make_namespaces(client: &Client, total: usize) {
    let api: Api<Namespace> = Api::all(client.clone());
    for index in (0..total).step_by(PER_NAMESPACE) {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(index)}});
        api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    }
}

async fn create(client: &Client, url: &str, total: usize) {
    stream::iter(0..total)
        .for_each_concurrent(PARALLEL, |index| async move {
            let (namespace, name) = (namespace(index), format!("hook-{index}"));
            let webhook = json!({
                "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook", "metadata": {"name": name},
                "spec": {"url": format!("{url}/{name}")}
            });
            let subscription = json!({
                "apiVersion": "posthorn.dev/v1alpha1", "kind": "Subscription", "metadata": {"name": name},
                "spec": {"webhookRef": {"name": name}, "events": ["order.paid", "refund.*"]}
            });
            let webhooks: Api<Webhook> = Api::namespaced(client.clone(), &namespace);
            webhooks.create(&PostParams::default(), &serde_json::from_value(webhook).unwrap()).await.unwrap();
            let subscriptions: Api<Subscription> = Api::namespaced(client.clone(), &namespace);
            subscriptions.create(&PostParams::default(), &serde_json::from_value(subscription).unwrap()).await.unwrap();
        })
        .await;
}

/// The moment at which every Webhook and every Subscription is Ready.
async fn all_ready(client: Client, total: usize) -> Instant {
    let webhooks = watch_ready::<Webhook>(client.clone(), total, |w| {
        w.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, ConditionType::Ready))
    });
    let subscriptions = watch_ready::<Subscription>(client, total, |s| {
        s.status.as_ref().is_some_and(|s| condition::is_true(&s.conditions, ConditionType::Ready))
    });
    let both = futures::future::join(webhooks, subscriptions);
    let (a, b) = tokio::time::timeout(READY_LIMIT, both).await.expect("all Ready within the limit");
    a.max(b)
}

async fn watch_ready<K>(client: Client, total: usize, is_ready: impl Fn(&K) -> bool) -> Instant
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let mut ready = HashSet::new();
    let mut next_report = 1_000;
    let mut events =
        watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff().applied_objects().boxed();
    while let Some(object) = events.try_next().await.unwrap_or(None) {
        let in_bench = object.namespace().is_some_and(|n| n.starts_with("bench-"));
        if in_bench && is_ready(&object) {
            ready.insert(object.name_any());
        }
        if ready.len() >= next_report {
            eprintln!("  {} {}s are Ready", ready.len(), K::kind(&()));
            next_report += 1_000;
        }
        if ready.len() == total {
            return Instant::now();
        }
    }
    panic!("the watch ended");
}

/// Requests that change something, by resource, as the API server counts them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Writes(BTreeMap<String, u64>);

impl Writes {
    async fn read(client: &Client) -> Self {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = client.request_text(request).await.expect("the API server's metrics");
        let mut counts = BTreeMap::new();
        for line in text.lines().filter(|l| l.starts_with("apiserver_request_total{")) {
            let label = |name: &str| {
                line.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(v, _)| v)
            };
            if !["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&label("verb")) {
                continue;
            }
            let resource = match label("subresource") {
                "" => label("resource").to_owned(),
                sub => format!("{}/{sub}", label("resource")),
            };
            let value = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
            let value = value as u64;
            *counts.entry(resource).or_insert(0) += value;
        }
        Self(counts)
    }

    fn minus(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().map(|(k, v)| (k.clone(), v - earlier.0.get(k).copied().unwrap_or(0)));
        Self(grown.filter(|(_, v)| *v > 0).collect())
    }

    /// What Posthorn may have written: not the Lease, not what Kubernetes itself does.
    fn of_posthorn(&self) -> Self {
        let ours = [
            "webhooks/status",
            "subscriptions/status",
            "deliverypools/status",
            "webhooks",
            "subscriptions",
            "secrets",
            "events",
            "statefulsets",
            "services",
            "configmaps",
            "networkpolicies",
            "poddisruptionbudgets",
        ];
        Self(self.0.iter().filter(|(k, _)| ours.contains(&k.as_str())).map(|(k, v)| (k.clone(), *v)).collect())
    }

    fn of(&self, resource: &str) -> u64 {
        self.0.get(resource).copied().unwrap_or(0)
    }
}

/// Waits for quiet, then counts what is written in the window.
async fn settled_writes(client: &Client) -> (Duration, Writes) {
    let start = Instant::now();
    let mut last = Writes::read(client).await.of_posthorn();
    loop {
        tokio::time::sleep(QUIET).await;
        let now = Writes::read(client).await.of_posthorn();
        if now == last || start.elapsed() > READY_LIMIT {
            break;
        }
        last = now;
    }
    let settled = start.elapsed();
    let before = Writes::read(client).await;
    tokio::time::sleep(SETTLED_WINDOW).await;
    (settled, Writes::read(client).await.minus(&before).of_posthorn())
}

/// Peak resident memory of Posthorn's processes. The cluster's node is this
/// machine, so the kernel tells.
struct Memory;

impl Memory {
    fn processes() -> Vec<(String, u32)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let words: Vec<_> = command.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            if words[0] == "/posthorn" && words.len() > 1 && ["controller", "delivery"].contains(&words[1].as_str()) {
                found.push((words[1].clone(), pid));
            }
        }
        found.sort();
        found
    }

    fn peaks(processes: &[(String, u32)]) -> Vec<(String, u64)> {
        let peak = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|l| l.starts_with("VmHWM"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        processes.iter().filter_map(|(role, pid)| Some((role.clone(), peak(pid)?))).collect()
    }
}

/// What a restart of every controller pod cost.
struct Restart {
    took: Duration,
    probes: u64,
    writes: Writes,
}

async fn restart(client: &Client, total: usize) -> Restart {
    let pods: Api<Pod> = Api::namespaced(client.clone(), RELEASE_NAMESPACE);
    let selector = ListParams::default().labels("app.kubernetes.io/component=controller");
    let before = Writes::read(client).await;
    // The old ones serve their metrics until they have ended.
    let mut old = HashSet::new();
    for pod in pods.list(&selector).await.unwrap() {
        pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
        old.insert(pod.name_any());
    }
    let start = Instant::now();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().unwrap();
    loop {
        for pod in pods.list(&selector).await.unwrap().items.into_iter().filter(|p| !old.contains(&p.name_any())) {
            let Some(address) = pod.status.as_ref().and_then(|s| s.pod_ip.clone()) else { continue };
            let Ok(text) = scrape(&http, &address).await else { continue };
            let led = metric(&text, "posthorn_controller_leader", "");
            let seen = |kind: &str| metric(&text, "posthorn_controller_reconciles_total", &format!("kind=\"{kind}\""));
            if led == 1 && seen("Webhook") >= total as u64 && seen("Subscription") >= total as u64 {
                let took = start.elapsed();
                tokio::time::sleep(QUIET).await;
                let text = scrape(&http, &address).await.unwrap();
                let probes = metric(&text, "posthorn_controller_probes_total", "");
                let writes = Writes::read(client).await.minus(&before).of_posthorn();
                return Restart { took, probes, writes };
            }
        }
        assert!(start.elapsed() < RESTART_LIMIT, "no controller settled within {RESTART_LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn scrape(http: &reqwest::Client, address: &str) -> reqwest::Result<String> {
    http.get(format!("http://{address}:8081/metrics")).send().await?.text().await
}

/// The sum of a metric over all series that contain `label`.
fn metric(text: &str, name: &str, label: &str) -> u64 {
    let lines = text.lines().filter(|l| l.starts_with(name) && !l.starts_with('#') && l.contains(label));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[allow(clippy::too_many_arguments, reason = "every figure once")]
fn report(
    total: usize,
    created: Duration,
    done: Duration,
    writes: &Writes,
    memory: &[(String, u64)],
    settled: Duration,
    minute: &Writes,
    restart: &Restart,
) {
    #[allow(clippy::cast_precision_loss, reason = "a ratio to print")]
    let per = |count: u64| count as f64 / total as f64;
    let per_webhook = writes.of("webhooks/status") + writes.of("secrets") + writes.of("events");
    println!("| figure ({total} Webhooks, {total} Subscriptions) | goal | measured |\n|---|---|---|");
    println!("| creating them (part of the next row) | | {:.1} s |", created.as_secs_f64());
    println!("| first created → all Ready | < 120 s | {:.1} s |", done.as_secs_f64());
    println!("| API writes per Webhook (status, Secret, Events of both kinds) | ≤ 5 | {:.2} |", per(per_webhook));
    println!(
        "| of these: status, Secrets, Events | | {:.2}, {:.2}, {:.2} |",
        per(writes.of("webhooks/status")),
        per(writes.of("secrets")),
        per(writes.of("events"))
    );
    println!("| API writes per Subscription (status) | ≤ 2 | {:.2} |", per(writes.of("subscriptions/status")));
    for (role, kib) in memory {
        println!("| peak memory, {role} | < 96 MiB | {:.1} MiB |", *kib as f64 / 1024.0);
    }
    println!(
        "| last Ready → quiet | | {:.0} s |",
        settled.as_secs_f64().max(QUIET.as_secs_f64()) - QUIET.as_secs_f64()
    );
    println!("| API writes in a minute once settled | 0 | {:?} |", minute.0);
    println!("| restart of all controller pods → all seen again | < 5 s | {:.1} s |", restart.took.as_secs_f64());
    println!(
        "| probes · writes after the restart (Events: Kubernetes' own of the new pods) | 0 · 0 | {} · {:?} |",
        restart.probes, restart.writes.0
    );
}

async fn remove(client: &Client, total: usize) {
    let api: Api<Namespace> = Api::all(client.clone());
    for index in (0..total).step_by(PER_NAMESPACE) {
        api.delete(&namespace(index), &DeleteParams::background()).await.ok();
    }
}
