//! A publisher that costs little: keep-alive connections, requests put together
//! by hand, answers read no further than needed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use super::receiver::read_request;

/// What a publisher sends.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub namespace: String,
    pub token: String,
    /// Connections that send at once.
    pub connections: usize,
    /// Bytes of an event's data, roughly.
    pub data_bytes: usize,
    /// Events in one request; 1: no array.
    pub batch: usize,
    /// The type of the n-th event.
    pub event_type: Arc<dyn Fn(u64) -> String + Send + Sync>,
    /// The publisher's id of the n-th event; none: no ids.
    pub id: Option<Arc<dyn Fn(u64) -> String + Send + Sync>>,
    /// The ordering key of the n-th event.
    pub key: Option<Arc<dyn Fn(u64) -> String + Send + Sync>>,
    /// Ids of acknowledged events are kept.
    pub keep_ids: bool,
    /// A refused connection, 429 and 503 are tried again, as a good publisher does.
    pub retries: bool,
    /// Each request is signed as Standard Webhooks says, in place of a delivery pod.
    pub signs: bool,
    /// Whether another request may be sent after so many events; none: always.
    pub may_send: Option<Arc<dyn Fn(u64) -> bool + Send + Sync>>,
}

impl Plan {
    pub fn new(port: u16, namespace: &str) -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            namespace: namespace.to_owned(),
            token: super::objects::token("publisher"),
            connections: 64,
            data_bytes: 1024,
            batch: 1,
            event_type: Arc::new(|_| "order.paid".to_owned()),
            id: None,
            key: None,
            keep_ids: false,
            retries: false,
            signs: false,
            may_send: None,
        }
    }
}

/// What came of it. Shared with the tasks that send.
#[derive(Default)]
pub struct Outcome {
    /// Events that were acknowledged.
    pub accepted: AtomicU64,
    /// Requests by other answers.
    pub refused: Mutex<std::collections::BTreeMap<u16, u64>>,
    /// Requests without an answer: connection refused or broken.
    pub broken: AtomicU64,
    /// Ids of acknowledged events.
    pub ids: Mutex<Vec<String>>,
    /// Times from request to answer in µs.
    pub latencies: Mutex<Vec<u32>>,
    next: AtomicU64,
    stop: AtomicBool,
}

impl Outcome {
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Latencies so far, sorted; they are forgotten.
    pub fn take_latencies(&self) -> Vec<u32> {
        let mut all = std::mem::take(&mut *self.latencies.lock().unwrap());
        all.sort_unstable();
        all
    }

    pub fn ids(&self) -> Vec<String> {
        self.ids.lock().unwrap().clone()
    }
}

/// How fast.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Each connection sends when it has its answer.
    Closed,
    /// So many requests a second in all, whatever the answers; a request that is
    /// late because all connections are busy counts its wait.
    PerSecond(f64),
    /// So many events, then the end.
    Count(u64),
}

/// Sends until it is stopped (or the count is reached). `start`: what `t` counts from.
pub fn publish(plan: Plan, pace: Pace, start: Instant, outcome: Arc<Outcome>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..plan.connections {
        let (plan, outcome) = (plan.clone(), Arc::clone(&outcome));
        tasks.spawn(async move { connection(&plan, pace, start, began, &outcome).await });
    }
    tasks
}

async fn connection(plan: &Plan, pace: Pace, start: Instant, began: Instant, outcome: &Outcome) {
    let mut stream = None;
    let mut buffer = Vec::with_capacity(16 * 1024);
    let filler = "x".repeat(plan.data_bytes.saturating_sub(40));
    while !outcome.stop.load(Ordering::Relaxed) {
        if plan.may_send.as_ref().is_some_and(|may_send| !may_send(outcome.next.load(Ordering::Relaxed))) {
            tokio::time::sleep(Duration::from_micros(200)).await;
            continue;
        }
        let first = outcome.next.fetch_add(plan.batch as u64, Ordering::Relaxed);
        let due = match pace {
            Pace::Closed => Instant::now(),
            Pace::Count(count) if first >= count => return,
            Pace::Count(_) => Instant::now(),
            Pace::PerSecond(rate) => {
                let due = began + Duration::from_secs_f64(first as f64 / plan.batch as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
                due
            }
        };
        let request = request(plan, first, due.duration_since(start), &filler);
        while !send(plan, &mut stream, &mut buffer, &request, due, outcome).await {
            if !plan.retries || outcome.stop.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn request(plan: &Plan, first: u64, sent: Duration, filler: &str) -> Vec<u8> {
    use std::fmt::Write;
    let mut body = String::with_capacity(plan.batch * (plan.data_bytes + 200));
    if plan.batch > 1 {
        body.push('[');
    }
    for n in first..first + plan.batch as u64 {
        if n > first {
            body.push(',');
        }
        write!(body, r#"{{"type":"{}""#, (plan.event_type)(n)).unwrap();
        if let Some(id) = &plan.id {
            write!(body, r#","id":"{}""#, id(n)).unwrap();
        }
        if let Some(key) = &plan.key {
            write!(body, r#","key":"{}""#, key(n)).unwrap();
        }
        write!(body, r#","data":{{"t":{},"n":{n},"filler":"{filler}"}}}}"#, sent.as_micros()).unwrap();
    }
    if plan.batch > 1 {
        body.push(']');
    }
    let signature = if plan.signs { signature(first, &body) } else { String::new() };
    let mut request = format!(
        "POST /v1/namespaces/{}/events HTTP/1.1\r\nhost: posthorn\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{signature}\r\n",
        plan.namespace,
        plan.token,
        body.len()
    );
    request.push_str(&body);
    request.into_bytes()
}

/// The headers of Standard Webhooks.
fn signature(n: u64, body: &str) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&[7; 32]).unwrap();
    mac.update(format!("evt_{n:026}.1763900000.").as_bytes());
    mac.update(body.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    format!("webhook-id: evt_{n:026}\r\nwebhook-timestamp: 1763900000\r\nwebhook-signature: v1,{signature}\r\n")
}

/// Sends one request and reads its answer; true if that is settled.
async fn send(
    plan: &Plan,
    stream: &mut Option<TcpStream>,
    buffer: &mut Vec<u8>,
    request: &[u8],
    due: Instant,
    outcome: &Outcome,
) -> bool {
    let answer = exchange(plan, stream, buffer, request).await;
    let Some((code, body)) = answer else {
        *stream = None;
        buffer.clear();
        outcome.broken.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    let micros = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
    outcome.latencies.lock().unwrap().push(micros);
    if code == 202 {
        outcome.accepted.fetch_add(plan.batch as u64, Ordering::Relaxed);
        if plan.keep_ids {
            outcome.ids.lock().unwrap().extend(ids(&body));
        }
        return true;
    }
    *outcome.refused.lock().unwrap().entry(code).or_default() += 1;
    code != 429 && code != 503
}

async fn exchange(
    plan: &Plan,
    stream: &mut Option<TcpStream>,
    buffer: &mut Vec<u8>,
    request: &[u8],
) -> Option<(u16, Vec<u8>)> {
    if stream.is_none() {
        let connected = TcpStream::connect(plan.address).await.ok()?;
        connected.set_nodelay(true).ok()?;
        *stream = Some(connected);
    }
    let stream = stream.as_mut()?;
    stream.write_all(request).await.ok()?;
    let (head_end, body_end) = read_request(stream, buffer).await?;
    let code = std::str::from_utf8(buffer.get(9..12)?).ok()?.parse().ok()?;
    let body = buffer[head_end..body_end].to_vec();
    buffer.drain(..body_end);
    Some((code, body))
}

/// Ids of events in an answer.
fn ids(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    text.match_indices("evt_").filter_map(|(at, _)| Some(text.get(at..at + 30)?.to_owned())).collect()
}
