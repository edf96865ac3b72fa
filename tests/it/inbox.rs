//! The inbox against the real handshakes: what one side sends, the other side
//! must understand.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::jiff::Timestamp;
use posthorn::{
    api::{
        Reason,
        webhook::{ChallengeHttpMethod, Dialect, VerificationMethod},
    },
    dialect::{
        SigningKey, SigningKeys,
        sign::{Message, sign},
    },
    inbox::{self, Config, journal::Record},
    runtime::{clock, secret::SecretBytes},
    verify::challenge::{Handshake, Verdict, new_challenge},
    wire::probe::{PROBE_BODY_BYTES_MAX, ProbeAnswer, ProbeOutcome},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
const ORIGIN: &str = "posthorn.example";
const DIALECTS: [Dialect; 5] =
    [Dialect::StandardWebhooks, Dialect::CloudEvents, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];

struct Inbox {
    origin: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// Runs `test` against an inbox, then ends the inbox.
async fn with_inbox<F: Future<Output = ()>>(secret: Option<&str>, test: impl FnOnce(Arc<Inbox>) -> F) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let config = Config { secret: secret.map(|s| SecretBytes::new(s.into())), ..Config::default() };
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(inbox::run(config, listener, shutdown.clone()));
    let client = Client::builder(TokioExecutor::new()).build_http();
    test(Arc::new(Inbox { origin, client })).await;
    shutdown.cancel();
    server.await.unwrap();
}

fn keys(dialect: Dialect, secret: &str) -> SigningKeys {
    SigningKeys::new(SigningKey::parse(dialect, SecretBytes::new(secret.into())).unwrap(), None)
}

impl Inbox {
    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Result<ProbeAnswer, Box<dyn std::error::Error>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.origin));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = self.client.request(request.body(Full::new(Bytes::copy_from_slice(body)))?).await?;
        let status = response.status().as_u16();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers().iter().map(|(n, v)| (n.to_string(), text(v))).collect();
        let mut body = Vec::new();
        let mut rest = response.into_body();
        while let Some(frame) = rest.frame().await {
            body.extend_from_slice(&frame?.into_data().unwrap_or_default());
            if body.len() > PROBE_BODY_BYTES_MAX {
                break;
            }
        }
        let body_truncated = body.len() > PROBE_BODY_BYTES_MAX;
        body.truncate(PROBE_BODY_BYTES_MAX);
        Ok(ProbeAnswer { status, headers, body: String::from_utf8_lossy(&body).into_owned(), body_truncated })
    }

    async fn shake(
        &self,
        path: &str,
        dialect: Dialect,
        method: VerificationMethod,
        http_method: ChallengeHttpMethod,
        secret: &str,
    ) -> Option<Reason> {
        let challenge = new_challenge(clock::random_bytes());
        let handshake = Handshake {
            dialect,
            method,
            http_method,
            challenge: &challenge,
            keys: &keys(dialect, secret),
            message_id: "chk_1",
            now: clock::now(),
            origin: ORIGIN,
        };
        let request = handshake.request().unwrap();
        let headers: Vec<_> = request.headers.iter().map(|(n, v)| (n.clone(), v.expose().to_owned())).collect();
        let outcome = match self.send(request.method, path, &headers, request.body.as_bytes()).await {
            Ok(answer) => ProbeOutcome::Answer(answer),
            Err(_) => ProbeOutcome::Failure { reason: Reason::ConnectionClosed, message: "It closed.".to_owned() },
        };
        match handshake.judge(&outcome) {
            Verdict::Wanted => None,
            Verdict::NotWanted { reason, .. } => Some(reason),
        }
    }

    async fn challenge(&self, path: &str) -> Option<Reason> {
        let (dialect, method) = (Dialect::StandardWebhooks, VerificationMethod::Challenge);
        self.shake(path, dialect, method, ChallengeHttpMethod::Post, SECRET).await
    }

    async fn event(&self, dialect: Dialect, secret: &str, time: Timestamp) -> u16 {
        let message = Message { id: "evt_1", time, body: br#"{"type":"order.paid"}"# };
        let headers: Vec<_> =
            sign(dialect, &keys(dialect, secret), &message).into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        self.send("POST", "/hook", &headers, message.body).await.unwrap().status
    }

    async fn requests(&self) -> Vec<Record> {
        let request = Request::get(format!("{}/requests", self.origin)).body(Full::default()).unwrap();
        let body = self.client.request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice(&body).unwrap()
    }
}

#[tokio::test]
async fn every_handshake_of_every_dialect_succeeds() {
    use ChallengeHttpMethod::{Get, Post};
    use VerificationMethod::{Challenge, CloudEvents, SignedChallenge};
    for secret in [Some(SECRET), None] {
        with_inbox(secret, async |inbox| {
            for dialect in DIALECTS {
                assert_eq!(inbox.shake("/", dialect, Challenge, Post, SECRET).await, None, "{dialect:?}");
                assert_eq!(inbox.shake("/", dialect, CloudEvents, Post, SECRET).await, None, "{dialect:?}");
                // CloudEvents has no signature, so the inbox cannot know who asks.
                let expected = match (secret, dialect) {
                    (None, _) | (_, Dialect::CloudEvents) => Some(Reason::ProofMissing),
                    _ => None,
                };
                assert_eq!(inbox.shake("/", dialect, SignedChallenge, Post, SECRET).await, expected, "{dialect:?}");
            }
            assert_eq!(inbox.shake("/", Dialect::Improvado, Challenge, Get, SECRET).await, None);
        })
        .await;
    }
}

#[tokio::test]
async fn a_handshake_with_another_secret_is_refused() {
    use VerificationMethod::{Challenge, SignedChallenge};
    with_inbox(Some(SECRET), async |inbox| {
        for (dialect, method) in [
            (Dialect::StandardWebhooks, Challenge),
            (Dialect::StandardWebhooks, SignedChallenge),
            (Dialect::Improvado, Challenge),
        ] {
            let refused = inbox.shake("/", dialect, method, ChallengeHttpMethod::Post, OTHER).await;
            assert_eq!(refused, Some(Reason::UnexpectedStatus), "{dialect:?} {method:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn each_path_misbehaves_as_it_says() {
    with_inbox(Some(SECRET), async |inbox| {
        assert_eq!(inbox.challenge("/wrong").await, Some(Reason::BodyMismatch));
        assert_eq!(inbox.challenge("/status/503").await, Some(Reason::UnexpectedStatus));
        assert_eq!(inbox.challenge("/redirect").await, Some(Reason::RedirectRefused));
        assert_eq!(inbox.challenge("/endless").await, Some(Reason::BodyTooLong));
        assert_eq!(inbox.challenge("/drop").await, Some(Reason::ConnectionClosed));
        assert_eq!(inbox.challenge("/slow/1").await, None);
        let origin = inbox
            .shake("/wrong", Dialect::CloudEvents, VerificationMethod::CloudEvents, ChallengeHttpMethod::Post, SECRET)
            .await;
        assert_eq!(origin, Some(Reason::OriginNotAllowed));
        for path in ["/flaky/2", "/flaky/2/other"] {
            for expected in [Some(Reason::UnexpectedStatus), Some(Reason::UnexpectedStatus), None, None] {
                assert_eq!(inbox.challenge(path).await, expected, "{path}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_hanging_request_does_not_keep_the_inbox_from_ending() {
    let mut task = None;
    with_inbox(None, async |inbox| {
        let asking = Arc::clone(&inbox);
        task = Some(tokio::spawn(async move { asking.challenge("/hang").await }));
        // The journal shows the request once it hangs.
        while inbox.requests().await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(task.unwrap().await.unwrap(), Some(Reason::ConnectionClosed));
}

#[tokio::test]
async fn signatures_of_events_are_checked_if_there_is_a_secret() {
    let now = clock::now();
    let old = Timestamp::from_second(now.as_second() - 3600).unwrap();
    with_inbox(Some(SECRET), async |inbox| {
        for dialect in DIALECTS {
            let unsigned = dialect == Dialect::CloudEvents;
            assert_eq!(inbox.event(dialect, SECRET, now).await, 204, "{dialect:?}");
            assert_eq!(inbox.event(dialect, OTHER, now).await, if unsigned { 204 } else { 401 }, "{dialect:?}");
        }
        assert_eq!(inbox.event(Dialect::StandardWebhooks, SECRET, old).await, 401);
    })
    .await;
    with_inbox(None, async |inbox| {
        assert_eq!(inbox.event(Dialect::Impira, OTHER, now).await, 204);
    })
    .await;
}

#[tokio::test]
async fn the_last_requests_can_be_read_and_hold_no_secret() {
    with_inbox(Some(SECRET), async |inbox| {
        let (dialect, method) = (Dialect::Improvado, VerificationMethod::Challenge);
        assert_eq!(inbox.shake("/a?token=hunter2", dialect, method, ChallengeHttpMethod::Get, SECRET).await, None);
        let headers = [("authorization".to_owned(), "Bearer hunter2".to_owned())];
        inbox.send("POST", "/b", &headers, b"{}").await.unwrap();
        let requests = inbox.requests().await;
        let shown: Vec<_> =
            requests.iter().map(|r| format!("{} {} {:?} {}", r.method, r.path, r.status, r.what)).collect();
        assert_eq!(
            shown,
            ["GET /a Some(200) Improvado challenge, answered, token ok", "POST /b Some(204) event, unsigned"]
        );
        assert_eq!(requests[1].body, "{}");
        let text = serde_json::to_string(&requests).unwrap();
        assert!(!text.contains(SECRET) && !text.contains("hunter2"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn other_requests_are_told_what_the_inbox_is() {
    with_inbox(None, async |inbox| {
        assert_eq!(inbox.send("GET", "/healthz", &[], b"").await.unwrap().status, 200);
        for method in [Method::GET, Method::PUT, Method::OPTIONS, Method::HEAD] {
            let answer = inbox.send(method.as_str(), "/", &[], b"").await.unwrap();
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED.as_u16(), "{method}");
        }
        assert_eq!(inbox.send("POST", "/", &[], b"not json").await.unwrap().status, 204);
        let long = vec![b'x'; 1024 * 1024];
        assert_eq!(inbox.send("POST", "/", &[], &long).await.unwrap().status, 204);
        let longer = vec![b'x'; 1024 * 1024 + 1];
        let refused = inbox.send("POST", "/", &[], &longer).await;
        assert!(refused.is_err() || refused.unwrap().status == 413);
        tokio::time::timeout(Duration::from_secs(5), inbox.requests()).await.unwrap();
    })
    .await;
}
