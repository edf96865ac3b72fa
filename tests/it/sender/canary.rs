//! Canaries: whatever happens, no secret comes out where people look.

use std::{
    io,
    sync::{Arc, Mutex},
};

use posthorn::{
    dispatch::{AttemptEnd, AttemptSender},
    routing::index::WebhookEntry,
};
use serde_json::{Value, json};
use tracing::{Level, subscriber::DefaultGuard};

use super::{
    Endpoint, Rig, SIGNING,
    endpoint::{Received, Reply, answer},
    event, job_with, merged,
    vault::{Mood, Vault},
    verified, verified_at,
};

/// What must be seen nowhere but at the endpoint.
const KEY: &str = "canary-signing-key-0123456789";
const TOKEN: &str = "canary-token-0123456789";
const LITERAL: &str = "canary-literal-0123456789";
const PATH: &str = "/canary-path-0123456789?token=canary-query-0123456789";
const BODY: &str = "canary-answer-0123456789";
const PAYLOAD: &str = r#"{"x":"canary-payload-0123456789"}"#;
/// What all of them have in common, as text and as a part of base64.
const MARK: &str = "canary-";

/// All that was logged while it lives, by every crate and on every level.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// For this thread, on which a test runs with all that it spawns.
    pub(super) fn capture(&self) -> DefaultGuard {
        let log = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn vault(url: &str) -> Vault {
    let vault = Vault::default();
    vault.put(SIGNING, json!({ "secret": KEY }));
    vault.put("token", json!({ "t": format!("Bearer {TOKEN}") }));
    vault.put("target", json!({ "u": url }));
    vault
}

/// A Webhook that has every kind of secret.
fn spec() -> Value {
    json!({
        "urlFrom": { "name": "target", "key": "u" },
        "dialect": "Improvado",
        "headers": [{ "name": "x-literal", "value": LITERAL }],
        "headersFrom": [{ "name": "authorization", "secretRef": { "name": "token", "key": "t" } }],
    })
}

/// One attempt; gives how it ended, and everything that people may see of it but
/// the part of the answer that the history keeps.
async fn seen(rig: &Rig, webhook: &Arc<WebhookEntry>) -> (AttemptEnd, String, String) {
    let job = job_with(webhook, event(None, PAYLOAD));
    let mut seen = format!("{job:?} {webhook:?} {:?}", rig.cache);
    let report = rig.sender.attempt(job).await;
    let detail = report.detail.clone().unwrap_or_default();
    seen.push_str(&format!("{:?} {}", report.end, detail.head));
    (report.end, seen, detail.body.into())
}

/// No secret is in it; the canary of the answer may be where the history keeps it.
fn check_clean(what: &str, text: &str) {
    let found = text.find(MARK).map(|at| &text[at.saturating_sub(200)..(at + 80).min(text.len())]);
    assert!(found.is_none(), "{what}: {found:?}");
}

type Answers = fn(&Received) -> Reply;

#[tokio::test]
async fn no_secret_is_told_whatever_the_endpoint_does() {
    let replies: [(&str, Answers); 6] = [
        ("200", |_| answer(200, "", BODY)),
        ("401", |_| answer(401, "", BODY)),
        ("500", |_| answer(500, "", BODY)),
        ("410", |_| answer(410, "", BODY)),
        ("no HTTP", |_| Reply::Close(BODY.into())),
        ("half an answer", |_| Reply::Close(format!("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{BODY}").into())),
    ];
    let log = Log::default();
    let _capturing = log.capture();
    for (what, reply) in replies {
        let endpoint = Endpoint::new(reply).await;
        let rig = Rig::with(vault(&endpoint.url(PATH)), None);
        let webhook = verified_at(&spec(), &endpoint.url(PATH));
        let (_, seen, body) = seen(&rig, &webhook).await;
        check_clean(what, &seen);
        assert!(body.is_empty() || body == BODY, "{what}: {body}");
        let request = endpoint.request();
        assert_eq!(request.line, format!("POST {PATH} HTTP/1.1"), "the endpoint itself gets it all");
        assert_eq!(request.header("authorization"), Some(&*format!("Bearer {TOKEN}")));
        assert_eq!(request.header("x-literal"), Some(LITERAL));
    }
    check_clean("log", &log.text());
}

#[tokio::test]
async fn what_an_endpoint_shows_of_its_request_is_masked_in_the_history() {
    let endpoint = Endpoint::new(|request| {
        let mut shown = format!("{}\n", request.line);
        for (name, value) in &request.headers {
            shown.push_str(&format!("{name}={value}\n"));
        }
        let signature = request.header("x-improvado-signature").unwrap();
        let headers = format!("x-shown: {} {signature}\r\nset-cookie: a={TOKEN}\r\n", request.line.replace(' ', "_"));
        answer(500, &headers, &shown)
    })
    .await;
    let rig = Rig::with(vault(&endpoint.url(PATH)), None);
    let webhook = verified_at(&spec(), &endpoint.url(PATH));
    let (_, seen, body) = seen(&rig, &webhook).await;
    check_clean("seen", &seen);
    check_clean("body", &body);
    let signature = endpoint.request().header("x-improvado-signature").unwrap().to_owned();
    assert!(!seen.contains(&signature) && !body.contains(&signature), "a signature lets others send the event again");
    assert!(body.contains("content-type=application/json"), "{body}");
}

#[tokio::test]
async fn what_an_endpoint_shows_in_an_encoding_of_its_own_is_masked_too() {
    let secret = "canary/token+0123456789==";
    for (from, to) in [("/", "\\/"), ("/", "\\u002f"), ("+", "\\u002B"), ("=", "%3D"), ("/", "%2f")] {
        let endpoint = Endpoint::new(move |request| {
            let signatures = request.header("webhook-signature").unwrap().replace("v1,", "").replace(' ', "\n");
            let shown = format!("{}\n{signatures}", request.header("x-token").unwrap());
            answer(500, "content-type: application/json\r\n", &shown.replace(from, to))
        })
        .await;
        let rig = Rig::with(vault("unused"), None);
        rig.vault.put("token", json!({ "t": secret }));
        rig.vault.put("old", json!({ "k": super::OLD_KEY }));
        let webhook = verified(&json!({
            "url": endpoint.url("/hook"),
            "headersFrom": [{ "name": "x-token", "secretRef": { "name": "token", "key": "t" } }],
            "signing": { "previousSecretRef": { "name": "old", "key": "k" } },
        }));
        let (_, _, body) = seen(&rig, &webhook).await;
        // Of a signature that begins with a slash the sign of its escape may be left.
        assert_eq!(body.replace("\\***", "***"), "***\n***\n***", "{from} as {to}");
    }
}

#[tokio::test]
async fn no_secret_is_told_when_nothing_can_be_sent() {
    let log = Log::default();
    let _capturing = log.capture();
    let endpoint = Endpoint::code(200).await;
    let url = endpoint.url(PATH);
    let plain = |change: Value| merged(json!({ "url": endpoint.url(PATH), "dialect": "Improvado" }), &change);
    let by_name = format!("http://hooks.example.com:{}{PATH}", endpoint.address.port());
    type Change = fn(&Rig);
    let cases: [(&str, Value, &str, Change); 11] = [
        ("URL edited", spec(), "http://127.0.0.1/other", |_| ()),
        ("URL is none", spec(), "ht!tp://canary-url", |rig| {
            rig.vault.put("target", json!({ "u": "ht!tp://canary-url" }))
        }),
        ("URL with user", spec(), "http://canary-user:canary-password@a.example/", |rig| {
            rig.vault.put("target", json!({ "u": "http://canary-user:canary-password@a.example/" }));
        }),
        ("URL inside", spec(), "http://10.0.0.1/canary-inside", |rig| {
            rig.vault.put("target", json!({ "u": "http://10.0.0.1/canary-inside" }));
        }),
        ("scheme", spec(), "ftp://a.example/canary-ftp", |rig| {
            rig.vault.put("target", json!({ "u": "ftp://a.example/canary-ftp" }));
        }),
        ("URL with a line break", spec(), "http://a.example/canary\n-x", |rig| {
            rig.vault.put("target", json!({ "u": "http://a.example/canary-\n-x" }));
        }),
        ("header", spec(), &url, |rig| rig.vault.put("token", json!({ "t": "canary-\u{7}" }))),
        ("key with a line break", spec(), &url, |rig| rig.vault.put(SIGNING, json!({ "secret": format!("{KEY}\n") }))),
        ("API server", spec(), &url, |rig| rig.vault.set(Mood::Code(500))),
        ("key missing", spec(), &url, |rig| rig.vault.put("token", json!({ "canary-another": TOKEN }))),
        ("header of the spec", plain(json!({ "headers": [{ "name": "x-a", "value": "canary-\u{1}" }] })), &url, |_| ()),
    ];
    for (what, spec, endpoint_url, change) in cases {
        let rig = Rig::with(vault(&url), None);
        change(&rig);
        let (end, seen, _) = seen(&rig, &verified_at(&spec, endpoint_url)).await;
        assert!(!matches!(end, AttemptEnd::Answered { .. }), "{what}: {end:?}");
        check_clean(what, &seen);
    }
    let rig = Rig::with(vault(&by_name), None);
    rig.names.set(&["10.0.0.1"]);
    let (_, refused, _) = seen(&rig, &verified_at(&spec(), &by_name)).await;
    check_clean("name inside", &refused);
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = format!("http://{closed}{PATH}");
    let (_, nobody, _) = seen(&Rig::with(vault(&closed), None), &verified_at(&spec(), &closed)).await;
    check_clean("nobody there", &nobody);
    let tls = format!("https://{}{PATH}", endpoint.address);
    // The endpoint waits for the rest of what is no request to it.
    tokio::time::pause();
    let (_, no_tls, _) = seen(&Rig::with(vault(&tls), None), &verified_at(&spec(), &tls)).await;
    check_clean("no TLS", &no_tls);
    let text = log.text();
    assert!(text.contains("orders"), "the operator is told of something");
    check_clean("log", &text);
}

#[tokio::test]
async fn a_literal_url_is_no_more_told_than_one_from_a_secret() {
    let log = Log::default();
    let _capturing = log.capture();
    let endpoint = Endpoint::new(|_| answer(500, "", "")).await;
    let rig = Rig::with(vault("unused"), None);
    let (_, seen, _) = seen(&rig, &verified(&json!({ "url": endpoint.url(PATH) }))).await;
    check_clean("seen", &seen);
    check_clean("log", &log.text());
}
