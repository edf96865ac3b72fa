//! Connections: kept where they may be, and judged anew whenever one is opened.

use posthorn::{
    api::Reason,
    dispatch::{AttemptEnd, AttemptSender, FailureKind},
};
use serde_json::json;

use super::{
    Endpoint, Rig,
    endpoint::{Reply, answer},
    entry, job, merged, object, verification_of, verified,
};

#[tokio::test]
async fn one_connection_serves_one_attempt_after_the_other() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    for _ in 0..10 {
        rig.code(&webhook).await;
    }
    let other = verified(&json!({ "url": endpoint.url("/other") }));
    rig.code(&other).await;
    assert_eq!(endpoint.connections().await, 1, "an edit of the path opens no other one");
}

#[tokio::test]
async fn namespaces_share_no_connection() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let spec = json!({ "url": endpoint.url("/hook"), "dialect": "Impira", "signing": { "none": true } });
    let webhook = |uid: &str| {
        let mut object = object(&spec, &verification_of(uid, &spec, &endpoint.url("/hook")));
        object["metadata"]["uid"] = json!(uid);
        entry(&object)
    };
    let (shop, bank) = (webhook("uid-shop"), webhook("uid-bank"));
    for (namespace, webhook) in [("shop", &shop), ("bank", &bank), ("shop", &shop), ("bank", &bank)] {
        let mut job = job(webhook);
        job.namespace = namespace.into();
        let end = rig.sender.attempt(job).await.end;
        assert!(matches!(end, AttemptEnd::Answered { code: 200, .. }), "{end:?}");
    }
    let connections: Vec<_> = endpoint.requests().iter().map(|request| request.connection).collect();
    assert_eq!(connections, [1, 2, 1, 2]);
}

#[tokio::test]
async fn a_connection_that_the_endpoint_closed_is_replaced_without_a_failure() {
    let endpoint = Endpoint::new(|_| Reply::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())).await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    for number in 1..=5 {
        assert_eq!(rig.code(&webhook).await, 200);
        assert_eq!(endpoint.requests().len(), number);
    }
}

#[tokio::test]
async fn bytes_that_nobody_asked_for_are_no_answer_to_the_next_request() {
    let endpoint = Endpoint::new(|request| {
        let Reply::Bytes(mut bytes) = answer(500, "", "") else { return Reply::Hang };
        if request.connection == 1 {
            bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
        Reply::Bytes(bytes)
    })
    .await;
    let rig = Rig::new();
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    assert_eq!(rig.code(&webhook).await, 500);
    assert_eq!(rig.code(&webhook).await, 500, "the second answer of the first connection was believed");
}

#[tokio::test]
async fn a_name_that_leads_inside_after_its_verification_is_refused_at_every_dial() {
    let endpoint =
        Endpoint::new(|_| Reply::Close(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec()))
            .await;
    let rig = Rig::new();
    let url = format!("http://hooks.example.com:{}/hook", endpoint.address.port());
    let webhook = verified(&json!({ "url": url }));
    assert_eq!(rig.code(&webhook).await, 200);
    let answers: [&[&str]; 9] = [
        &["10.0.0.1"],
        &["192.168.1.1"],
        &["169.254.169.254"],
        &["100.64.0.1"],
        &["fd00:ec2::254"],
        &["fe80::1"],
        &["::ffff:10.0.0.1"],
        &["64:ff9b::a9fe:a9fe"],
        &["127.0.0.1", "10.0.0.1"],
    ];
    for addresses in answers {
        rig.names.set(addresses);
        let report = rig.attempt(&webhook).await;
        let expected = AttemptEnd::Failed { reason: Reason::DestinationNotAllowed, kind: FailureKind::Other };
        assert_eq!(report.end, expected, "{addresses:?}");
        let told = format!("{:?}", report.detail);
        for address in addresses {
            assert!(!told.contains(address), "the tenant is not told where the name leads: {told}");
        }
    }
    assert_eq!(endpoint.requests().len(), 1, "one forbidden address refuses the allowed one beside it");
    rig.names.set(&["127.0.0.1"]);
    assert_eq!(rig.code(&webhook).await, 200);
}

#[tokio::test]
async fn the_headers_of_the_tenant_arrive_and_none_that_frames_the_message() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let with = |name: &str, value: &str| {
        let headers = json!({ "headers": [{ "name": name, "value": value }] });
        verified(&merged(json!({ "url": endpoint.url("/hook") }), &headers))
    };
    for name in [
        "Host",
        "content-length",
        "Transfer-Encoding",
        "connection",
        "expect",
        "webhook-id",
        "ce-id",
        "cookie",
        "x-forwarded-for",
    ] {
        assert_eq!(rig.hold(&with(name, "1")).await.reason, Reason::InvalidHeader, "{name}");
    }
    assert_eq!(rig.hold(&with("x-a", "one\r\nx-b: two")).await.reason, Reason::InvalidHeader);
    endpoint.check_silence().await;
    assert_eq!(rig.code(&with("X-Team", "payments")).await, 200);
    let request = endpoint.request();
    assert_eq!(request.header("x-team"), Some("payments"));
    assert_eq!(request.header("host"), Some(&*endpoint.address.to_string()));
    assert_eq!(request.header("accept-encoding"), Some("identity"));
}
