//! The delivery pod as a child process.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    api::ApiServer,
    objects::{self, FINGERPRINT_KEY},
};

/// How long a pod may take to become ready.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// Folders, ports and flags of a pod; they outlive its process.
pub struct Pod {
    binary: PathBuf,
    pub folder: tempfile::TempDir,
    /// The store's folder; by default inside `folder`.
    pub data: PathBuf,
    pub ingest: u16,
    pub internal: u16,
    pub health: u16,
    pub environment: Vec<(String, String)>,
    /// Words before the binary: strace, faketime, taskset.
    pub wrapper: Vec<String>,
    child: Option<Child>,
}

impl Pod {
    pub fn new(binary: &str, api: &ApiServer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        for name in ["data", "run", "keys", "tls"] {
            fs::create_dir(path.join(name)).unwrap();
        }
        api.write_kubeconfig(&path.join("kubeconfig"));
        fs::write(path.join("keys/fingerprint"), FINGERPRINT_KEY).unwrap();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        fs::write(path.join("tls/tls.crt"), certified.cert.pem()).unwrap();
        fs::write(path.join("tls/tls.key"), certified.signing_key.serialize_pem()).unwrap();
        let [ingest, internal, health] = free_ports();
        let data = path.join("data");
        Self {
            binary: binary.into(),
            folder,
            data,
            ingest,
            internal,
            health,
            environment: Vec::new(),
            wrapper: Vec::new(),
            child: None,
        }
    }

    /// Starts the process; does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the pod runs already");
        let path = self.folder.path();
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&self.binary),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.binary);
                command
            }
        };
        let log = fs::File::options().create(true).append(true).open(path.join("log")).unwrap();
        command
            .arg("delivery")
            .arg(format!("--ingest-listen=127.0.0.1:{}", self.ingest))
            .arg(format!("--internal-listen=127.0.0.1:{}", self.internal))
            .arg(format!("--health-listen=127.0.0.1:{}", self.health))
            .arg("--data-dir")
            .arg(&self.data)
            .arg("--run-dir")
            .arg(path.join("run"))
            .arg("--keys-dir")
            .arg(path.join("keys"))
            .arg("--tls-dir")
            .arg(path.join("tls"))
            .arg("--insecure-allow-loopback")
            .env("KUBECONFIG", path.join("kubeconfig"))
            .env("MALLOC_ARENA_MAX", "2")
            .env("MIMALLOC_PURGE_DELAY", "100")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts the process and waits until it is ready; how long that took.
    pub async fn start(&mut self) -> Duration {
        let start = Instant::now();
        self.spawn();
        self.until_ready().await;
        start.elapsed()
    }

    pub async fn until_ready(&mut self) {
        let start = Instant::now();
        loop {
            if self.is_ready().await {
                return;
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the pod ended with {status} before it was ready:\n{}", self.log_tail());
            }
            assert!(start.elapsed() < READY_LIMIT, "the pod is not ready:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn is_ready(&self) -> bool {
        matches!(self.get("/readyz").await, Some((200, _)))
    }

    /// GET on the health port: status and body.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.health);
        let answer = client().get(url).send().await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    /// GET of the internal API, as the controller does it: the status and the
    /// JSON of the answer; none if the pod does not answer.
    pub async fn internal(&self, path: &str) -> Option<(u16, serde_json::Value)> {
        let pem = fs::read(self.folder.path().join("tls/tls.crt")).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        let url = format!("https://localhost:{}{path}", self.internal);
        let answer = client.get(url).bearer_auth(objects::controller_token()).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    /// The sum of a metric over its labels, 0 if there is none.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.map(|(_, text)| text).unwrap_or_default();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the pod runs").id()
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Behind a wrapper the pod is a child of the child, and would outlive it.
            let pid = child.id();
            if !self.wrapper.is_empty() {
                let pods = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
                for pod in pods.split_whitespace() {
                    Command::new("kill").args(["-KILL", pod]).status().unwrap();
                }
            }
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end; its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the pod runs");
        Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap();
        child.wait().unwrap().code()
    }

    /// Waits for an end that the pod finds itself; its exit code.
    pub async fn until_ended(&mut self, limit: Duration) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                self.child = None;
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the pod still runs after {limit:?}:\n{}", self.log_tail());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// CPU time of the process so far, user and system.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.pid())
    }

    /// Resident memory now and at its peak, in KiB.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One client for all health requests.
pub fn client() -> &'static reqwest::Client {
    static CLIENT: std::sync::OnceLock<reqwest::Client> = std::sync::OnceLock::new();
    CLIENT.get_or_init(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        reqwest::Client::builder().timeout(Duration::from_secs(5)).build().unwrap()
    })
}

/// CPU time of a process. `/proc/PID/stat` counts in ticks of 10 ms.
pub fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name may hold spaces; what follows its closing bracket does not.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Ports that are free now. Another process could take one meanwhile, which the
/// pod would say at its start.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
