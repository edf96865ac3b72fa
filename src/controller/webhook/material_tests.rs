//! Tests of reading and making Secrets, against an API server that is made up.

use http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};

use super::*;

type Handle = tower_test::mock::Handle<Request<Body>, Response<Body>>;

fn client() -> (Client, Handle) {
    let (service, handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), handle)
}

fn webhook(extra: Value) -> Webhook {
    let mut object = json!({
        "apiVersion": "posthorn.dev/v1alpha1", "kind": "Webhook",
        "metadata": { "name": "orders", "namespace": "shop", "uid": "u", "generation": 1 },
        "spec": { "url": "https://a.example/" }
    });
    for (key, value) in extra.as_object().unwrap() {
        object[key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// Answers one call; tells method, path and body.
async fn answer(handle: &mut Handle, code: u16, body: Value) -> (String, Value) {
    let (request, send) = handle.next_request().await.unwrap();
    let call = format!("{} {}", request.method(), request.uri().path());
    let sent = request.into_body().collect_bytes().await.unwrap();
    let body =
        if code < 400 { body } else { json!({ "kind": "Status", "code": code, "message": "no", "reason": "x" }) };
    send.send_response(Response::builder().status(code).body(Body::from(serde_json::to_vec(&body).unwrap())).unwrap());
    (call, serde_json::from_slice(&sent).unwrap_or_default())
}

fn secret(type_: &str, value: &str) -> Value {
    let value = serde_json::to_value(ByteString(value.as_bytes().to_vec())).unwrap();
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "orders-signing" }, "type": type_, "data": { "secret": value } })
}

const SECRETS: &str = "/api/v1/namespaces/shop/secrets";

#[tokio::test]
async fn a_fresh_webhook_gets_its_secret_by_one_call() {
    let (client, mut handle) = client();
    let task = tokio::spawn(async move { read(&client, &webhook(json!({}))).await.unwrap() });
    let (call, body) = answer(&mut handle, 201, secret("posthorn.dev/signing", "unused")).await;
    assert_eq!(call, format!("POST {SECRETS}"));
    assert_eq!(body["metadata"]["labels"]["posthorn.dev/webhook"], "orders");
    assert_eq!((&body["type"], &body["metadata"]["ownerReferences"]), (&json!("posthorn.dev/signing"), &Value::Null));
    let reading = task.await.unwrap();
    assert_eq!(reading.secret_name.as_deref(), Some("orders-signing"));
    assert!(reading.material.unwrap().keys.current().is_some());
}

#[tokio::test]
async fn a_secret_that_stands_there_is_taken_up_and_never_overwritten() {
    let (client, mut handle) = client();
    let task = tokio::spawn(async move { read(&client, &webhook(json!({}))).await.unwrap() });
    assert_eq!(answer(&mut handle, 409, json!(null)).await.0, format!("POST {SECRETS}"));
    let existing = secret("Opaque", "a key of the last life of this webhook");
    assert_eq!(answer(&mut handle, 200, existing).await.0, format!("GET {SECRETS}/orders-signing"));
    let keys = task.await.unwrap().material.unwrap().keys;
    assert_eq!(keys.current().unwrap().expose(), b"a key of the last life of this webhook");
}

#[tokio::test]
async fn a_foreign_secret_under_the_name_is_refused() {
    let (client, mut handle) = client();
    let task = tokio::spawn(async move { read(&client, &webhook(json!({}))).await.unwrap() });
    answer(&mut handle, 409, json!(null)).await;
    answer(&mut handle, 200, secret("kubernetes.io/tls", "x")).await;
    assert_eq!(task.await.unwrap().material.unwrap_err().reason, Reason::SecretTypeForbidden);
}

#[tokio::test]
async fn a_made_secret_that_was_deleted_is_made_again() {
    let (client, mut handle) = client();
    let known = webhook(json!({ "status": { "secretName": "orders-signing" } }));
    let task = tokio::spawn(async move { read(&client, &known).await.unwrap() });
    assert_eq!(answer(&mut handle, 404, json!(null)).await.0, format!("GET {SECRETS}/orders-signing"));
    assert_eq!(answer(&mut handle, 201, secret("x", "x")).await.0, format!("POST {SECRETS}"));
    assert!(task.await.unwrap().material.is_ok());
}

#[tokio::test]
async fn each_secret_is_read_once_and_an_api_server_that_fails_is_no_problem_of_the_users() {
    let (client, mut handle) = client();
    let of = |key: &str| json!({ "name": "one", "key": key });
    let spec = json!({ "urlFrom": of("u"), "signing": { "secretRef": of("k") }, "headersFrom": [{ "name": "a", "secretRef": of("h") }] });
    let hook = webhook(json!({ "spec": spec }));
    let task = tokio::spawn(async move { (read(&client, &hook).await, read(&client, &hook).await) });
    let data = json!({ "u": "aHR0cHM6Ly9hLmV4YW1wbGUvc2VjcmV0", "k": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5", "h": "dg==" });
    answer(&mut handle, 200, json!({ "metadata": { "name": "one" }, "type": "Opaque", "data": data })).await;
    answer(&mut handle, 500, json!(null)).await;
    let (first, second) = task.await.unwrap();
    let first = first.unwrap();
    assert_eq!(first.url.unwrap().expose(), "https://a.example/secret");
    assert_eq!(first.material.unwrap().headers[0].1.expose(), "v");
    assert!(second.is_err());
}

#[tokio::test]
async fn a_missing_header_secret_still_tells_the_url() {
    let (client, mut handle) = client();
    let spec = json!({ "urlFrom": { "name": "u", "key": "u" }, "dialect": "Analytics", "signing": { "none": true },
        "headersFrom": [{ "name": "a", "secretRef": { "name": "h", "key": "h" } }] });
    let hook = webhook(json!({ "spec": spec }));
    let task = tokio::spawn(async move { read(&client, &hook).await.unwrap() });
    let found = json!({ "metadata": { "name": "u" }, "type": "Opaque", "data": { "u": "aHR0cHM6Ly9hLmV4YW1wbGUv" } });
    answer(&mut handle, 200, found).await;
    answer(&mut handle, 404, json!(null)).await;
    let reading = task.await.unwrap();
    assert_eq!(reading.url.unwrap().expose(), "https://a.example/");
    let problem = reading.material.unwrap_err();
    assert_eq!(problem.reason, Reason::SecretNotFound);
    assert!(problem.message.contains("Secret h"));
}
