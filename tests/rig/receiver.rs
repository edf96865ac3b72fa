//! A receiver that costs little: HTTP/1.1 on keep-alive connections, an answer
//! from constants. What it does depends on the first word of the path.
//!
//! `/ok` 200 · `/status/NNN[/retry-after]` · `/hang` takes the request and says
//! nothing · `/slow/MS` · `/reset` closes at once · `/drip` sends a byte of the
//! answer's head a second · `/flood` sends an endless body · `/redirect` 307.
//! `/switch/NAME` is 200 while `set_up(NAME, true)`, else 503.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

#[derive(Default)]
struct Seen {
    /// Requests by path.
    by_path: HashMap<String, u64>,
    /// `webhook-id`s by path, of requests that were answered 2xx; kept when asked to.
    ids: HashMap<String, HashSet<String>>,
    /// Latencies in µs by first word of the path, from `"t":<µs since the start>` in the body.
    latencies: HashMap<String, Vec<u32>>,
    up: HashSet<String>,
    /// Whole requests, when asked for.
    requests: Vec<String>,
}

/// Counts what comes. Clones are the same one.
#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    inner: Arc<Inner>,
    _task: Arc<AbortOnDrop>,
}

struct Inner {
    start: Instant,
    received: AtomicU64,
    answered_ok: AtomicU64,
    keep: Keep,
    seen: Mutex<Seen>,
}

/// What a receiver remembers beside numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Keep {
    pub ids: bool,
    pub latencies: bool,
    pub requests: bool,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Receiver {
    /// `start`: what publishers' `t` counts from.
    pub async fn start(start: Instant, keep: Keep) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let inner = Arc::new(Inner {
            start,
            received: AtomicU64::new(0),
            answered_ok: AtomicU64::new(0),
            keep,
            seen: Mutex::default(),
        });
        let serving = Arc::clone(&inner);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&serving);
                tokio::spawn(async move {
                    stream.set_nodelay(true).ok();
                    serve(stream, &inner).await;
                });
            }
        });
        Self { address, inner, _task: Arc::new(AbortOnDrop(task)) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn received(&self) -> u64 {
        self.inner.received.load(Ordering::Relaxed)
    }

    /// Counts as [`Self::answered_ok`], from anywhere.
    pub fn counter(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let inner = Arc::clone(&self.inner);
        move || inner.answered_ok.load(Ordering::Relaxed)
    }

    pub fn answered_ok(&self) -> u64 {
        self.inner.answered_ok.load(Ordering::Relaxed)
    }

    pub fn set_up(&self, name: &str, is_up: bool) {
        let mut seen = self.inner.seen.lock().unwrap();
        if is_up {
            seen.up.insert(name.to_owned());
        } else {
            seen.up.remove(name);
        }
    }

    pub fn requests_to(&self, path: &str) -> u64 {
        self.inner.seen.lock().unwrap().by_path.get(path).copied().unwrap_or(0)
    }

    /// Ids that were delivered to a path.
    pub fn ids(&self, path: &str) -> HashSet<String> {
        self.inner.seen.lock().unwrap().ids.get(path).cloned().unwrap_or_default()
    }

    pub fn requests(&self) -> Vec<String> {
        self.inner.seen.lock().unwrap().requests.clone()
    }

    /// Takes the latencies of paths with this first word, in µs, sorted.
    pub fn take_latencies(&self, word: &str) -> Vec<u32> {
        let mut all = self.inner.seen.lock().unwrap().latencies.remove(word).unwrap_or_default();
        all.sort_unstable();
        all
    }
}

async fn serve(mut stream: TcpStream, inner: &Inner) {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let Some((head_end, body_end)) = read_request(&mut stream, &mut buffer).await else { return };
        inner.received.fetch_add(1, Ordering::Relaxed);
        let head = String::from_utf8_lossy(&buffer[..head_end]);
        let path = head.split(' ').nth(1).unwrap_or("/").to_owned();
        let id = if inner.keep.ids { header(&head, "webhook-id").map(str::to_owned) } else { None };
        drop(head);
        note(inner, &path, &buffer, head_end, body_end);
        let Some(code) = behave(&mut stream, inner, &path).await else { return };
        if (200..300).contains(&code) {
            inner.answered_ok.fetch_add(1, Ordering::Relaxed);
            if let Some(id) = id {
                inner.seen.lock().unwrap().ids.entry(path).or_default().insert(id);
            }
        }
        buffer.drain(..body_end);
    }
}

fn note(inner: &Inner, path: &str, buffer: &[u8], head_end: usize, body_end: usize) {
    let Keep { ids, latencies, requests } = inner.keep;
    if !(ids || latencies || requests) {
        return;
    }
    let mut seen = inner.seen.lock().unwrap();
    if ids {
        *seen.by_path.entry(path.to_owned()).or_default() += 1;
    }
    if latencies && let Some(sent) = sent_at(&buffer[head_end..body_end]) {
        let now = u64::try_from(inner.start.elapsed().as_micros()).unwrap();
        let word = path.split('/').nth(1).unwrap_or_default();
        let latency = u32::try_from(now.saturating_sub(sent)).unwrap_or(u32::MAX);
        match seen.latencies.get_mut(word) {
            Some(list) => list.push(latency),
            None => {
                seen.latencies.insert(word.to_owned(), vec![latency]);
            }
        }
    }
    if requests {
        seen.requests.push(String::from_utf8_lossy(&buffer[..body_end]).into_owned());
    }
}

/// Answers; the status code, or none if the connection is done with.
async fn behave(stream: &mut TcpStream, inner: &Inner, path: &str) -> Option<u16> {
    let mut words = path.trim_start_matches('/').split('/');
    match words.next().unwrap_or_default() {
        "hang" => {
            sleep(Duration::from_secs(3600)).await;
            None
        }
        "slow" => {
            sleep(Duration::from_millis(words.next()?.parse().ok()?)).await;
            stream.write_all(OK).await.ok()?;
            Some(200)
        }
        "reset" => {
            stream.set_zero_linger().ok();
            None
        }
        "drip" => {
            for byte in OK {
                stream.write_all(&[*byte]).await.ok()?;
                sleep(Duration::from_secs(1)).await;
            }
            Some(200)
        }
        "flood" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n").await.ok()?;
            let block = vec![b'x'; 64 * 1024];
            while stream.write_all(&block).await.is_ok() {}
            None
        }
        "redirect" => say(stream, 307, "location: /ok\r\n").await,
        "status" => {
            let code = words.next()?.parse().ok()?;
            let retry_after = words.next().map(|after| format!("retry-after: {}\r\n", after.replace('_', " ")));
            say(stream, code, &retry_after.unwrap_or_default()).await
        }
        "switch" => {
            let is_up = inner.seen.lock().unwrap().up.contains(words.next().unwrap_or_default());
            say(stream, if is_up { 200 } else { 503 }, "").await
        }
        _ => {
            stream.write_all(OK).await.ok()?;
            Some(200)
        }
    }
}

async fn say(stream: &mut TcpStream, code: u16, headers: &str) -> Option<u16> {
    let answer = format!("HTTP/1.1 {code} X\r\n{headers}content-length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    Some(code)
}

/// Reads one request; where its head and its body end in the buffer.
pub(super) async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(usize, usize)> {
    let mut looked = 0;
    loop {
        if let Some(end) = find(&buffer[looked..], b"\r\n\r\n") {
            let head_end = looked + end + 4;
            let body_end = head_end + content_length(&buffer[..head_end]);
            while buffer.len() < body_end {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            return Some((head_end, body_end));
        }
        looked = buffer.len().saturating_sub(3);
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

pub(super) fn content_length(head: &[u8]) -> usize {
    const NAME: &[u8] = b"content-length:";
    let Some(at) = head.windows(NAME.len()).position(|window| window.eq_ignore_ascii_case(NAME)) else { return 0 };
    let digits = head[at + NAME.len()..].iter().skip_while(|byte| **byte == b' ');
    digits.take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, byte| sum * 10 + usize::from(byte - b'0'))
}

pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (line_name, value) = line.split_once(':')?;
        line_name.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The number behind `"t":`.
fn sent_at(body: &[u8]) -> Option<u64> {
    let at = find(body, b"\"t\":")? + 4;
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0')))
}
