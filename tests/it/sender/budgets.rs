//! What an endpoint may take of us: time, bytes, connections.

use std::time::Duration;

use futures::future::join_all;
use posthorn::{
    api::Reason,
    delivery::sender::ANSWER_BODY_BYTES_MAX,
    dispatch::{AttemptEnd, FailureKind},
};
use serde_json::json;
use tokio::time::{Instant, pause};

use super::{
    Endpoint, Rig,
    endpoint::{Reply, answer},
    merged, verified,
};

/// What an attempt keeps of an answer's body at most.
const KEPT_BYTES_MAX: usize = 1024;
/// What an operating system may have buffered between two sockets on loopback.
const SOCKET_BYTES_MAX: usize = 8 * 1024 * 1024;

#[tokio::test]
async fn of_a_body_without_end_little_is_read_and_less_is_kept() {
    let endpoint = Endpoint::new(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10737418240\r\n\r\n";
        Reply::Flood(head.into(), vec![b'x'; 64 * 1024])
    })
    .await;
    let rig = Rig::new();
    let report = rig.attempt(&verified(&json!({ "url": endpoint.url("/hook") }))).await;
    assert!(matches!(report.end, AttemptEnd::Answered { code: 200, .. }), "{:?}", report.end);
    assert_eq!(report.detail.unwrap().body.len(), KEPT_BYTES_MAX);
    let taken = endpoint.until_flood_broke().await;
    assert!(taken < SOCKET_BYTES_MAX, "{taken} bytes");
}

#[tokio::test]
async fn a_body_at_the_limit_leaves_its_connection_and_a_long_one_costs_it() {
    let endpoint = Endpoint::new(|request| {
        let bytes: usize = request.header("x-bytes").unwrap().parse().unwrap();
        answer(200, "", &"x".repeat(bytes))
    })
    .await;
    let rig = Rig::new();
    let with = |bytes: usize| {
        let headers = json!({ "headers": [{ "name": "x-bytes", "value": bytes.to_string() }] });
        verified(&merged(json!({ "url": endpoint.url("/hook") }), &headers))
    };
    for (bytes, connection) in [(ANSWER_BODY_BYTES_MAX, 1), (SOCKET_BYTES_MAX, 1), (0, 2), (0, 2)] {
        assert_eq!(rig.code(&with(bytes)).await, 200);
        assert_eq!(endpoint.requests().pop().unwrap().connection, connection, "{bytes} bytes");
    }
}

#[tokio::test]
async fn headers_have_a_limit_of_bytes_and_of_number() {
    for headers in [format!("x-long: {}\r\n", "v".repeat(17 * 1024)), "x: y\r\n".repeat(101)] {
        let endpoint = Endpoint::new(move |_| answer(200, &headers, "")).await;
        let rig = Rig::new();
        let report = rig.attempt(&verified(&json!({ "url": endpoint.url("/hook") }))).await;
        let expected = AttemptEnd::Failed { reason: Reason::HeadersTooLong, kind: FailureKind::Other };
        assert_eq!(report.end, expected);
    }
}

/// An attempt at an endpoint that answers so; the clock stands still until the
/// request is there, and then runs as fast as it can.
async fn check_ends(reply: impl Fn() -> Reply + Send + Sync + 'static, expected: Reason) {
    let endpoint = Endpoint::new(move |_| reply()).await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook"), "delivery": { "timeout": "7s" } }));
    let sender = rig.sender.clone();
    let running = tokio::spawn(async move {
        let start = Instant::now();
        (posthorn::dispatch::AttemptSender::attempt(&sender, super::job(&webhook)).await, start.elapsed())
    });
    endpoint.until_requests(1).await;
    // The head of an answer, if there is one, has its moment to arrive.
    tokio::time::sleep(Duration::from_millis(1)).await;
    pause();
    let (report, took) = running.await.unwrap();
    assert_eq!(report.end, AttemptEnd::Failed { reason: expected, kind: FailureKind::Endpoint });
    assert!(took >= Duration::from_secs(6) && took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test]
async fn an_answer_that_never_comes_ends_with_the_time_out_of_the_webhook() {
    check_ends(|| Reply::Hang, Reason::AnswerTimedOut).await;
}

#[tokio::test]
async fn an_answer_that_never_ends_does_too() {
    check_ends(|| Reply::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_vec()), Reason::BodyTimedOut)
        .await;
}

#[tokio::test]
async fn redirects_are_answers_and_nobody_follows_them() {
    let target = Endpoint::code(200).await;
    for code in [301, 302, 303, 307, 308] {
        let location = format!("location: {}\r\n", target.url("/stolen"));
        let endpoint = Endpoint::new(move |_| answer(code, &location, "")).await;
        let rig = Rig::new();
        assert_eq!(rig.code(&verified(&json!({ "url": endpoint.url("/hook") }))).await, code);
        assert_eq!(endpoint.requests().len(), 1);
    }
    target.check_silence().await;
}

#[tokio::test]
async fn retry_after_is_told_in_seconds_and_has_a_limit() {
    for (value, expected) in [("120", Some(120)), ("99999999999", Some(86_400)), ("-1", None), ("soon", None)] {
        let header = format!("retry-after: {value}\r\n");
        let endpoint = Endpoint::new(move |_| answer(429, &header, "")).await;
        let rig = Rig::new();
        let report = rig.attempt(&verified(&json!({ "url": endpoint.url("/hook") }))).await;
        let expected = AttemptEnd::Answered { code: 429, retry_after: expected.map(Duration::from_secs) };
        assert_eq!(report.end, expected, "{value}");
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_up_or_talks_nonsense_costs_a_try() {
    let cases: [(&[u8], Reason); 3] = [
        (b"", Reason::ConnectionClosed),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", Reason::ConnectionClosed),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Reason::ProtocolError),
    ];
    for (bytes, expected) in cases {
        let endpoint = Endpoint::new(move |_| Reply::Close(bytes.to_vec())).await;
        let rig = Rig::new();
        assert_eq!(rig.failure(&verified(&json!({ "url": endpoint.url("/hook") }))).await, expected);
        assert_eq!(endpoint.requests().len(), 1, "a request that was written is never sent twice");
    }
}

#[tokio::test]
async fn many_attempts_at_once_stay_apart_and_leave_no_more_connections_than_they_opened() {
    let endpoint = Endpoint::new(|request| answer(200, "", request.header("webhook-id").unwrap())).await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    let reports = join_all((0..64).map(|_| rig.attempt(&webhook))).await;
    assert!(reports.iter().all(|report| matches!(report.end, AttemptEnd::Answered { code: 200, .. })));
    assert_eq!(endpoint.requests().len(), 64);
    let open = rig.clients.borrow().as_ref().unwrap().open_connections();
    assert!(open <= endpoint.connections().await, "{open}");
}
