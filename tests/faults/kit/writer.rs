//! The process that accepts events. It is this test binary, started again with
//! the name of the one test below.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use posthorn::{
    event::{EventHead, Pos},
    store::{
        AcceptError, Accepted, From, HookDefinition, Ingest, NewEvent, NewsReceiver, Partition, Register, StoreLimits,
        SubDefinition, news_channel,
        sqlite::{OpenError, SqliteConfig, SqliteStore, StoreMetrics, SystemClock},
    },
};

use super::router::EverythingToEveryone;

/// Folder of the store; without it the test below does nothing.
const FOLDER: &str = "POSTHORN_FAULTS_FOLDER";
const PLAN: &str = "POSTHORN_FAULTS_PLAN";
/// How long a writer may take to begin.
const BEGIN_MAX: Duration = Duration::from_secs(30);
pub const NAMESPACE_UID: &str = "uid-of-shop";

/// What a writer does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Webhooks that get every event; beyond 64 a scan routes.
    pub hooks: usize,
    /// Publishers at once.
    pub publishers: usize,
    /// Bytes of an event.
    pub bytes: usize,
    /// Size of the store.
    pub size_bytes: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { hooks: 2, publishers: 16, bytes: 512, size_bytes: 1 << 30 }
    }
}

impl Plan {
    fn text(self) -> String {
        format!("{} {} {} {}", self.hooks, self.publishers, self.bytes, self.size_bytes)
    }

    fn parse(text: &str) -> Self {
        let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        let size = |n: usize| usize::try_from(numbers[n]).unwrap();
        Self { hooks: size(0), publishers: size(1), bytes: size(2), size_bytes: numbers[3] }
    }
}

/// Something that a writer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Its store is open.
    Ready,
    /// The event at this position was acknowledged.
    Acknowledged(Pos),
    /// The store has no room.
    Full,
    /// The store failed; the writer ends.
    Failed(String),
}

/// A writer that runs.
pub struct Writer {
    child: Child,
    said: Receiver<(Instant, Said)>,
}

impl Writer {
    pub fn start(folder: &Path, plan: Plan) -> Self {
        Self::start_under(&[], folder, plan)
    }

    /// Under another program, such as strace with its arguments.
    pub fn start_under(wrapper: &[&str], folder: &Path, plan: Plan) -> Self {
        let own = std::env::current_exe().unwrap();
        // The path of the test as libtest knows it: without the crate.
        let (_, module) = module_path!().split_once("::").unwrap();
        let mut words: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
        words.push(own.to_string_lossy().into_owned());
        words.extend(["--exact".into(), format!("{module}::accepts_events_until_it_ends"), "--nocapture".into()]);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env(FOLDER, folder)
            .env(PLAN, plan.text())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // A line that a kill cut off says nothing.
                if let Some(said) = parse(&line)
                    && sender.send((Instant::now(), said)).is_err()
                {
                    return;
                }
            }
        });
        let writer = Self { child, said };
        let first = writer.said.recv_timeout(BEGIN_MAX).expect("the writer begins in time").1;
        assert_eq!(first, Said::Ready);
        writer
    }

    /// What it says within this time.
    pub fn listen(&self, time: Duration) -> Vec<(Instant, Said)> {
        let end = Instant::now() + time;
        let next = || self.said.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
        std::iter::from_fn(next).collect()
    }

    /// kill -9, and what it had said by then.
    pub fn kill(mut self) -> Vec<Said> {
        self.kill_wrapped();
        self.child.kill().unwrap();
        self.wait().1
    }

    /// A wrapper that is killed leaves its own child running.
    fn kill_wrapped(&self) {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            // It may have ended just now.
            drop(Command::new("kill").args(["-9", child]).stderr(Stdio::null()).status());
        }
    }

    /// Whether it ended well, and what it had said.
    pub fn wait(&mut self) -> (bool, Vec<Said>) {
        let is_good = self.child.wait().unwrap().success();
        // The pipe is closed: this ends.
        (is_good, std::iter::from_fn(|| self.said.recv().ok()).map(|(_, said)| said).collect())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It ended already, or nobody needs it any more.
        self.kill_wrapped();
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn parse(line: &str) -> Option<Said> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    // A position ends with a dot: one that was cut off is another number.
    match word {
        "ready." => Some(Said::Ready),
        "ack" => Some(Said::Acknowledged(Pos(rest.strip_suffix('.')?.parse().ok()?))),
        "full." => Some(Said::Full),
        "failed" => Some(Said::Failed(rest.to_owned())),
        _ => None,
    }
}

pub fn config(folder: &Path, size_bytes: u64) -> SqliteConfig {
    SqliteConfig {
        folder: folder.to_owned(),
        pool: "default".to_owned(),
        expected_store: None,
        accept_store: None,
        limits: StoreLimits { size_bytes, ..StoreLimits::default() },
        clock: Arc::new(SystemClock),
        metrics: StoreMetrics::default(),
    }
}

pub fn open(folder: &Path, size_bytes: u64) -> Result<(Arc<SqliteStore>, NewsReceiver), OpenError> {
    let (sender, news) = news_channel();
    Ok((SqliteStore::open(config(folder, size_bytes), Box::new(EverythingToEveryone::default()), sender)?, news))
}

/// Makes so many Webhooks known that get everything.
pub async fn register(store: &SqliteStore, hooks: usize) {
    let changes = (0..hooks).flat_map(|n| {
        let name: Arc<str> = format!("h{n}").into();
        let uid: Arc<str> = format!("uid-{n}").into();
        let hook = HookDefinition {
            namespace: "shop".into(),
            namespace_uid: NAMESPACE_UID.into(),
            name: name.clone(),
            uid: uid.clone(),
            max_age_ms: 72 * 3_600_000,
            is_ordered: false,
            document: "{}".into(),
        };
        let created = Timestamp::UNIX_EPOCH;
        let sub = SubDefinition {
            namespace_uid: NAMESPACE_UID.into(),
            webhook: name.clone(),
            name,
            uid,
            created,
            from: From::Earliest,
            document: "{}".into(),
        };
        [Register::Hook(hook), Register::Sub(sub)]
    });
    store.register(changes.collect()).await.unwrap();
}

/// The n-th event of a writer. Its data tells what it is, so that a reader can
/// tell whether it got the right one.
pub fn event(mark: &str, bytes: usize) -> NewEvent {
    let mut data = format!("{{\"mark\":\"{mark}\",\"filler\":\"").into_bytes();
    data.resize(bytes.max(data.len() + 2) - 2, b'x');
    data.extend(b"\"}");
    let head = EventHead { event_type: "order.paid".into(), source: "faults".into(), ..EventHead::default() };
    NewEvent { namespace: "shop".into(), namespace_uid: NAMESPACE_UID.into(), head, data: data.into() }
}

/// Lines reach the pipe whole: one write each.
fn say(line: &str) {
    // Nobody may listen any more; then nothing needs to be said.
    drop(std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()));
}

async fn publish(store: &SqliteStore, publisher: usize, plan: Plan) {
    for n in 0_u64.. {
        match store.accept(vec![event(&format!("{publisher}-{n}"), plan.bytes)]).await {
            Ok(accepted) => {
                for verdict in accepted {
                    let Accepted::New(id) = verdict else { unreachable!("no ids are given") };
                    say(&format!("ack {}.", id.pos.0));
                }
            }
            Err(AcceptError::Full) => {
                say("full.");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(AcceptError::Busy { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error @ (AcceptError::NotStored | AcceptError::Unknown)) => {
                say(&format!("failed {error}"));
                return;
            }
        }
    }
}

/// No test but the other process: does nothing unless it is told a folder.
#[test]
fn accepts_events_until_it_ends() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let plan = Plan::parse(&std::env::var(PLAN).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, mut news) = match open(&folder, plan.size_bytes) {
            Ok(opened) => opened,
            Err(error) => return say(&format!("failed {error}")),
        };
        register(&store, plan.hooks).await;
        say("\nready.");
        let publishers = futures::stream::iter(0..plan.publishers).map(|n| publish(&store, n, plan));
        let all = publishers.buffer_unordered(plan.publishers).collect::<Vec<()>>();
        let listen = async { while news.recv().await.is_some() {} };
        futures::future::select(std::pin::pin!(all), std::pin::pin!(listen)).await;
    });
    std::process::exit(3);
}
