//! The egress client against endpoints that misbehave. Everything that is dialed
//! is a listener on loopback; for all other addresses only the guard is asked.

mod dns;
mod http;
mod service;
pub(crate) mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use posthorn::{
    egress::{Budgets, Clients, EgressAnswer, EgressError, EgressRequest, Resolve, ResolveError},
    policy::egress::{ClusterNetworks, Destination, EgressPolicy, parse_url},
};
use rustls::RootCertStore;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A budget that a test does not use up.
const AMPLE: Duration = Duration::from_secs(30);
/// A budget that has to pass in real time.
const SHORT: Duration = Duration::from_millis(300);

/// Public addresses by http and https, and loopback.
fn policy() -> EgressPolicy {
    let egress = serde_json::from_value(serde_json::json!({"schemes": ["https", "http"]})).unwrap();
    EgressPolicy::compile(Some(&egress), &ClusterNetworks::default()).unwrap().allow_loopback()
}

/// One answer of the name servers; none means that they never answer.
type Answer = Option<Result<Vec<IpAddr>, &'static str>>;

/// Name servers that give these answers one after the other, then the last one
/// again and again. They note the names that they were asked for.
#[derive(Default)]
struct Script {
    answers: Mutex<Vec<Answer>>,
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        let mut answers: Vec<_> = answers.into_iter().collect();
        answers.reverse();
        Arc::new(Self { answers: Mutex::new(answers), asked: Mutex::default() })
    }

    fn addresses(addresses: &[&str]) -> Answer {
        Some(Ok(addresses.iter().map(|address| address.parse().unwrap()).collect()))
    }

    fn loopback() -> Arc<Self> {
        Self::new([Self::addresses(&["127.0.0.1"])])
    }
}

impl Resolve for Script {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        self.asked.lock().unwrap().push(host.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
        Box::pin(async move {
            match answer.flatten() {
                Some(answer) => answer.map_err(ResolveError::Other),
                None => std::future::pending().await,
            }
        })
    }
}

fn clients() -> Clients {
    Clients::new(Arc::new(policy()), Script::loopback(), Arc::new(RootCertStore::empty())).unwrap()
}

fn destination(url: &str) -> Destination {
    parse_url(url, &policy()).unwrap()
}

fn post(body: &'static str) -> EgressRequest {
    EgressRequest::parse("POST", [("content-type", "application/json")], body).unwrap()
}

fn budgets(total: Duration) -> Budgets {
    Budgets { total, body_bytes_max: 1024 }
}

/// A listener that hands every connection to `serve`.
async fn listen<S, F>(serve: S) -> (SocketAddr, JoinHandle<()>)
where
    S: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    (address, task)
}

/// Reads the head of a request and as much body as its Content-Length says.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return text;
        }
    }
}

/// An endpoint that reads one request, writes these bytes, and holds the
/// connection open.
async fn endpoint(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = answer.into();
    let (address, _) = listen(move |mut stream| {
        let answer = answer.clone();
        async move {
            read_request(&mut stream).await;
            // The client may have enough before everything is written.
            stream.write_all(&answer).await.ok();
            std::future::pending().await
        }
    })
    .await;
    address
}

async fn send(address: SocketAddr, total: Duration) -> Result<EgressAnswer, EgressError> {
    let to = destination(&format!("http://{address}/hook"));
    clients().client("shop", None).unwrap().send(&to, post("{}"), budgets(total)).await
}
