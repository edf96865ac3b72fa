//! Signatures and bodies as they arrive, checked with HMAC of our own making
//! from RFC 2104 and SHA-256 alone, and with published implementations.

use base64::{Engine, engine::general_purpose::STANDARD};
use posthorn::{
    api::webhook::Dialect,
    dialect::{
        SigningKey, SigningKeys,
        sign::{Message, sign},
    },
    dispatch::{AttemptEnd, AttemptSender},
    runtime::secret::SecretBytes,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Endpoint, KEY, OLD_KEY, Rig, endpoint::Received, event, job_with, merged, verified};

/// RFC 2104 with SHA-256: nothing of the product's and nothing of its HMAC crate.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    const BLOCK: usize = 64;
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::digest([&block.map(|byte| byte ^ 0x36), message].concat());
    Sha256::digest([&block.map(|byte| byte ^ 0x5c)[..], &inner].concat()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn standard_webhooks(secret: &str, id: &str, time: &str, body: &[u8]) -> String {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let message = [id.as_bytes(), b".", time.as_bytes(), b".", body].concat();
    format!("v1,{}", STANDARD.encode(hmac(&key, &message)))
}

/// A vector of the file of golden vectors.
struct Golden {
    name: String,
    dialect: Dialect,
    secrets: Vec<String>,
    id: String,
    time: i64,
    body: String,
    headers: Vec<(String, String)>,
}

/// Blocks of `name: value` lines; a value begins after the first space.
fn golden() -> Vec<Golden> {
    let text = include_str!("../../golden/signatures.txt");
    let blocks = text.split("\n\n").filter(|block| block.lines().any(|line| !line.starts_with('#')));
    blocks
        .map(|block| {
            let lines: Vec<_> = block
                .lines()
                .filter(|line| !line.starts_with('#') && !line.is_empty())
                .map(|line| line.split_once(": ").unwrap())
                .collect();
            let all = |wanted: &str| -> Vec<String> {
                lines.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned()).collect()
            };
            let one = |wanted: &str| all(wanted).remove(0);
            let header = |line: String| {
                let (name, value) = line.split_once(": ").unwrap();
                (name.to_owned(), value.to_owned())
            };
            Golden {
                name: one("vector"),
                dialect: serde_json::from_value(one("dialect").into()).unwrap(),
                secrets: all("secret"),
                id: one("id"),
                time: one("time").parse().unwrap(),
                body: one("body"),
                headers: all("header").into_iter().map(header).collect(),
            }
        })
        .collect()
}

#[test]
fn every_golden_vector_is_signed_byte_for_byte() {
    let vectors = golden();
    assert_eq!(vectors.len(), 7, "{:?}", vectors.iter().map(|vector| &vector.name).collect::<Vec<_>>());
    for vector in vectors {
        let key = |secret: &String| SigningKey::parse(vector.dialect, SecretBytes::new(secret.clone().into())).unwrap();
        let keys = SigningKeys::new(key(&vector.secrets[0]), vector.secrets.get(1).map(key));
        let time = k8s_openapi::jiff::Timestamp::from_second(vector.time).unwrap();
        let message = Message { id: &vector.id, time, body: vector.body.as_bytes() };
        let signed = sign(vector.dialect, &keys, &message);
        let signed: Vec<_> = signed.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(signed, vector.headers, "{}", vector.name);
    }
}

/// One delivery of `event` in a dialect with the keys of a rotation.
async fn deliver(dialect: &str, extra: &Value, content_type: Option<&str>, data: &'static str) -> Received {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    rig.vault.put("old", json!({ "k": OLD_KEY }));
    let spec = merged(json!({ "url": endpoint.url("/hook"), "dialect": dialect }), extra);
    let job = job_with(&verified(&spec), event(content_type, data));
    let end = rig.sender.attempt(job).await.end;
    assert!(matches!(end, AttemptEnd::Answered { code: 200, .. }), "{dialect}: {end:?}");
    endpoint.request()
}

fn rotation() -> Value {
    json!({ "signing": { "previousSecretRef": { "name": "old", "key": "k" } } })
}

#[tokio::test]
async fn in_rotation_both_keys_sign_as_standard_webhooks_says() {
    let request = deliver("StandardWebhooks", &rotation(), None, r#"{"n":1}"#).await;
    let id = request.header("webhook-id").unwrap();
    let time = request.header("webhook-timestamp").unwrap();
    let expected = [KEY, OLD_KEY].map(|key| standard_webhooks(key, id, time, &request.body)).join(" ");
    assert_eq!(request.header("webhook-signature"), Some(&*expected));
    assert_eq!(id, event(None, "").id.to_string());
    let headers: http::HeaderMap = request
        .headers
        .iter()
        .map(|(name, value)| (http::HeaderName::try_from(name).unwrap(), http::HeaderValue::try_from(value).unwrap()))
        .collect();
    for key in [KEY, OLD_KEY] {
        standardwebhooks::Webhook::new(key).unwrap().verify(&request.body, &headers).unwrap();
    }
    let stranger = standardwebhooks::Webhook::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    stranger.verify(&request.body, &headers).unwrap_err();
}

#[tokio::test]
async fn a_body_that_is_no_text_is_signed_as_it_is() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    let data: &'static [u8] = b"\x89PNG\r\n\x00\xff\xfe";
    let webhook = verified(&json!({ "url": endpoint.url("/hook") }));
    rig.sender.attempt(job_with(&webhook, event(Some("image/png"), data))).await;
    let request = endpoint.request();
    assert_eq!((request.header("content-type"), &request.body[..]), (Some("image/png"), data));
    let time = request.header("webhook-timestamp").unwrap();
    let expected = standard_webhooks(KEY, request.header("webhook-id").unwrap(), time, data);
    assert_eq!(request.header("webhook-signature"), Some(&*expected));
}

/// Bodies are compared as text, so that a difference can be read.
fn check_body(request: &Received, expected: &str) {
    assert_eq!(std::str::from_utf8(&request.body).unwrap(), expected);
    assert_eq!(request.header("content-type"), Some("application/json"));
}

const DATA: &str = r#" {"z":1.0,"e":"\u00e9\/", "n":12345678901234567890123} "#;

#[tokio::test]
async fn improvado_gets_its_envelope_its_id_and_a_hex_signature_for_each_key() {
    let id = event(None, "").id;
    let request = deliver("Improvado", &rotation(), None, DATA).await;
    check_body(
        &request,
        &format!(r#"{{"id":"{id}","type":"load_completed","timestamp":"2026-11-23T09:00:00.123Z","data":{DATA}}}"#),
    );
    assert_eq!(request.header("x-improvado-idempotency-key"), Some(&*id.to_string()));
    let expected = [KEY, OLD_KEY].map(|key| hex(&hmac(key.as_bytes(), &request.body)));
    assert_eq!(request.header("x-improvado-signature"), Some(&*expected[0]));
    assert_eq!(request.header("x-improvado-signature-previous"), Some(&*expected[1]));
    let secret_of_the_handshake = request.headers.iter().any(|(_, value)| value.contains(KEY));
    assert!(!secret_of_the_handshake, "a delivery never carries the secret itself");
}

#[tokio::test]
async fn analytics_gets_its_envelope_and_a_prefixed_hex_signature() {
    let request = deliver("Analytics", &rotation(), None, DATA).await;
    check_body(
        &request,
        &format!(
            r#"{{"event":"load_completed","timestamp":"2026-11-23T09:00:00.123Z","tenantId":"shop","data":{DATA}}}"#
        ),
    );
    let expected = [KEY, OLD_KEY].map(|key| format!("sha256={}", hex(&hmac(key.as_bytes(), &request.body))));
    assert_eq!(request.header("x-webhook-signature"), Some(&*expected[0]));
    assert_eq!(request.header("x-webhook-signature-previous"), Some(&*expected[1]));
}

#[tokio::test]
async fn impira_gets_the_record_and_a_hex_signature() {
    let request = deliver("Impira", &rotation(), None, DATA).await;
    check_body(&request, DATA);
    let expected = [KEY, OLD_KEY].map(|key| hex(&hmac(key.as_bytes(), DATA.as_bytes())));
    assert_eq!(request.header("impira-signature"), Some(&*expected[0]));
    assert_eq!(request.header("impira-signature-previous"), Some(&*expected[1]));
}

#[tokio::test]
async fn without_a_key_there_is_no_signature_and_no_secret_is_read() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    for dialect in ["Analytics", "Impira"] {
        let spec = json!({ "url": endpoint.url("/hook"), "dialect": dialect, "signing": { "none": true } });
        assert_eq!(rig.code(&verified(&spec)).await, 200);
    }
    for request in endpoint.requests() {
        assert!(request.headers.iter().all(|(name, _)| !name.contains("signature")), "{:?}", request.headers);
    }
    assert_eq!(rig.vault.gets(), [""; 0]);
}

#[tokio::test]
async fn cloud_events_travel_in_binary_mode_and_say_from_whom() {
    let request = deliver("CloudEvents", &json!({}), Some("application/cloud+json"), DATA).await;
    assert_eq!(request.body, DATA.as_bytes());
    assert_eq!(request.header("content-type"), Some("application/cloud+json"));
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-type", "load_completed"),
        ("ce-source", "shop"),
        ("ce-time", "2026-11-23T09:00:00.123Z"),
        ("webhook-request-origin", "posthorn.example"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.header("ce-id"), Some(&*event(None, "").id.to_string()));
    assert_eq!(request.header("webhook-signature"), None);
}

#[tokio::test]
async fn every_attempt_of_a_delivery_sends_the_same_bytes_even_in_another_dialect() {
    let endpoint = Endpoint::code(500).await;
    let rig = Rig::new();
    let url = json!({ "url": endpoint.url("/hook") });
    let first = rig.attempt(&verified(&url)).await;
    let mut again = super::job(&verified(&merged(url, &json!({ "dialect": "Impira" }))));
    again.shape = Some(first.shape);
    let second = rig.sender.attempt(again).await;
    assert_eq!(first.shape, second.shape);
    let [one, two] = &endpoint.requests()[..] else { panic!("two requests") };
    assert_eq!(one.body, two.body);
    let expected = hex(&hmac(KEY.as_bytes(), &two.body));
    assert_eq!(two.header("impira-signature"), Some(&*expected), "the signature is the present dialect's");
}

#[tokio::test]
async fn a_dialect_of_json_alone_sends_nothing_that_is_none() {
    let endpoint = Endpoint::code(200).await;
    let rig = Rig::new();
    for dialect in ["Improvado", "Analytics", "Impira"] {
        let webhook = verified(&json!({ "url": endpoint.url("/hook"), "dialect": dialect }));
        for (content_type, data) in [(Some("text/plain"), "hello"), (None, "{"), (Some("application/json"), "NaN")] {
            let report = rig.sender.attempt(job_with(&webhook, event(content_type, data))).await;
            assert_eq!(report.end, AttemptEnd::Unrenderable, "{dialect} {data}");
        }
    }
    endpoint.check_silence().await;
}
