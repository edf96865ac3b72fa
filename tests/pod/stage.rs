//! What every test begins with: a pod, one tenant, a receiver; and the oracle.

use std::{
    collections::HashSet,
    future::Future,
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

/// How long a wait may take.
pub const WAIT: Duration = Duration::from_secs(60);

/// `full` in the long form of a test, `short` in the short one.
pub fn scaled<T>(short: T, full: T) -> T {
    if std::env::var("POSTHORN_FAULTS").is_ok_and(|form| form == "full") { full } else { short }
}

pub struct Stage {
    pub start: Instant,
    pub api: ApiServer,
    pub receiver: Receiver,
    pub pod: Pod,
}

impl Stage {
    /// Everything but the pod's process.
    pub async fn set() -> Self {
        Self::with_pool(json!({})).await
    }

    pub async fn with_pool(pool: Value) -> Self {
        let start = Instant::now();
        let api = ApiServer::start().await;
        let receiver = Receiver::start(start, Keep { ids: true, latencies: false, requests: false }).await;
        api.apply("deliverypools", objects::pool(pool));
        objects::tenant(&api, NAMESPACE);
        let pod = Pod::new(env!("CARGO_BIN_EXE_posthorn"), &api);
        Self { start, api, receiver, pod }
    }

    /// A verified Webhook at a path of the receiver, with a Subscription to `event`.
    pub fn webhook(&self, name: &str, path: &str, event: &str, delivery: Value) {
        let url = self.receiver.url(path);
        self.webhook_at(name, &url, event, delivery);
    }

    pub fn webhook_at(&self, name: &str, url: &str, event: &str, delivery: Value) {
        let webhook = VerifiedWebhook { namespace: NAMESPACE, name, url, delivery };
        self.api.apply("webhooks", webhook.build(&format!("uid-{name}")));
        self.api.apply("subscriptions", objects::subscription(NAMESPACE, name, name, &[event]));
    }

    pub fn plan(&self) -> Plan {
        Plan { connections: 16, keep_ids: true, retries: true, ..Plan::new(self.pod.ingest, NAMESPACE) }
    }

    /// Waits until the pod routes to so many Subscriptions.
    pub async fn until_routed(&self, subscriptions: u64) {
        until("the pod routes to its Subscriptions", WAIT, async || {
            self.pod.metric("posthorn_routed_subscriptions").await as u64 >= subscriptions
        })
        .await;
    }

    /// Publishes so many events and gives back the ids that were acknowledged.
    pub async fn publish(&self, events: u64, event: &str) -> HashSet<String> {
        let event = event.to_owned();
        let plan = Plan { event_type: Arc::new(move |_| event.clone()), ..self.plan() };
        self.publish_plan(plan, events).await
    }

    pub async fn publish_plan(&self, plan: Plan, events: u64) -> HashSet<String> {
        let outcome = Arc::new(Outcome::default());
        publish(plan, Pace::Count(events), self.start, Arc::clone(&outcome)).join_all().await;
        let ids: HashSet<String> = outcome.ids().into_iter().collect();
        assert_eq!(ids.len() as u64, outcome.accepted(), "{:?}", outcome.refused.lock().unwrap());
        ids
    }

    /// One event, sent once: the status code and the headers of the answer. Waits
    /// for the pod to listen.
    pub async fn post(&self, namespace: &str, event: &str) -> (u16, reqwest::header::HeaderMap) {
        self.post_as("publisher", namespace, event).await
    }

    /// The same by a ServiceAccount that the pod may not know yet.
    pub async fn post_as(&self, account: &str, namespace: &str, event: &str) -> (u16, reqwest::header::HeaderMap) {
        let url = format!("http://127.0.0.1:{}/v1/namespaces/{namespace}/events", self.pod.ingest);
        let body = json!({"type": event, "data": {}}).to_string();
        let began = Instant::now();
        loop {
            let request = crate::rig::pod::client().post(&url).bearer_auth(objects::token(account));
            // A review of the caller has 5 s.
            let request = request.timeout(Duration::from_secs(10)).header("content-type", "application/json");
            match request.body(body.clone()).send().await {
                Ok(answer) => return (answer.status().as_u16(), answer.headers().clone()),
                Err(error) => assert!(began.elapsed() < WAIT, "{error}\n{}", self.pod.log_tail()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until all of these were delivered to a path.
    pub async fn until_delivered(&self, path: &str, ids: &HashSet<String>) {
        let began = Instant::now();
        loop {
            let delivered = self.receiver.ids(path);
            let missing = ids.difference(&delivered).count();
            if missing == 0 {
                return;
            }
            assert!(
                began.elapsed() < WAIT * 2,
                "{missing} of {} acknowledged events were not delivered, such as {:?}\n{}",
                ids.len(),
                ids.difference(&delivered).next(),
                self.pod.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until so many Deliveries were discarded since the pod's start.
    pub async fn until_discarded(&self, deliveries: u64) {
        until("Deliveries are discarded", WAIT, async || {
            self.pod.metric("posthorn_deliveries_discarded_total").await as u64 >= deliveries
        })
        .await;
    }

    /// Waits until so many events were removed since the pod's start.
    pub async fn until_removed(&self, events: u64) {
        until("events are removed", WAIT, async || {
            self.pod.metric("posthorn_store_events_removed_total").await as u64 >= events
        })
        .await;
    }

    /// What `posthorn store verify` says of the store; the pod must not run.
    pub fn verify_store(&self) -> String {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_posthorn"))
            .args(["store", "verify", "--folder"])
            .arg(&self.pod.data)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

/// The number in the first line of what [`Stage::verify_store`] gives that has this label.
pub fn number_of(table: &str, label: &str) -> u64 {
    let line = table.lines().find(|line| line.trim_start().starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no line {label:?} in\n{table}"));
    line.split_whitespace().next_back().unwrap().parse().unwrap()
}

/// Waits until something holds.
pub async fn until<F: Future<Output = bool>>(what: &str, limit: Duration, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
