//! Services: what of them is believed. The API server is a mock.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use kube::client::Body;
use posthorn::{
    api::{Reason, webhook::Scheme},
    egress::{
        ServiceError, ServiceResolver, ServiceTarget,
        connector::{ConnectError, Guard},
        service::CACHE_TIME,
    },
    policy::egress::{ClusterNetworks, Destination, EgressPolicy},
};
use serde_json::{Value, json};
use tower_test::mock::Handle;

use super::{AMPLE, Script, budgets, clients, listen, post, read_request};

type Api = Handle<Request<Body>, Response<Body>>;

fn policy() -> EgressPolicy {
    let egress = serde_json::from_value(json!({"allow": [{"namespaces": ["team-a"]}]})).unwrap();
    EgressPolicy::compile(Some(&egress), &ClusterNetworks::default()).unwrap()
}

fn resolver() -> (ServiceResolver, Api) {
    let (service, api) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    (ServiceResolver::new(kube::Client::new(service, "default")), api)
}

/// Answers one request of the resolver.
async fn reply(api: &mut Api, path: &str, status: u16, body: Value) {
    let (request, respond) = api.next_request().await.unwrap();
    assert_eq!((request.method().as_str(), request.uri().path_and_query().unwrap().as_str()), ("GET", path));
    let body = Body::from(serde_json::to_vec(&body).unwrap());
    respond.send_response(Response::builder().status(status).body(body).unwrap());
}

const SERVICE: &str = "/api/v1/namespaces/team-a/services/inbox";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/team-a/endpointslices?&labelSelector=kubernetes.io%2Fservice-name%3Dinbox&limit=100";

fn service() -> Value {
    json!({"metadata": {"name": "inbox", "namespace": "team-a"}, "spec": {
        "selector": {"app": "inbox"},
        "ports": [{"name": "dns", "port": 80, "protocol": "UDP"}, {"name": "web", "port": 80, "targetPort": "http"},
            {"name": "admin", "port": 81}],
    }})
}

fn pod(address: &str) -> Value {
    json!({"addresses": [address], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "namespace": "team-a", "name": "p"}})
}

fn slice(endpoints: Value) -> Value {
    json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "admin", "port": 9001}, {"name": "web", "port": 8080, "protocol": "TCP"}]})
}

fn slices(items: Value) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "metadata": {}, "items": items})
}

async fn resolve(resolver: &ServiceResolver, port: u16) -> Result<Destination, ServiceError> {
    let target = ServiceTarget { namespace: "team-a".into(), name: "inbox".into(), port };
    resolver.resolve(&target, Scheme::Http, "/hook", &policy()).await
}

/// Resolves with these objects and returns what the guard would dial.
async fn pods(service: Value, items: Value) -> Result<Vec<SocketAddr>, ServiceError> {
    let (resolver, mut api) = resolver();
    let answers = async {
        reply(&mut api, SERVICE, 200, service).await;
        reply(&mut api, SLICES, 200, slices(items)).await;
    };
    let (destination, ()) = tokio::join!(resolve(&resolver, 80), answers);
    let guard = Guard::new(Arc::new(policy()), Script::new([None]));
    Ok(guard.vet(destination?.uri()).await.unwrap())
}

fn check(result: Result<impl std::fmt::Debug, ServiceError>, expected: Reason) {
    let error = result.unwrap_err();
    assert_eq!(error.reason(), expected, "{error:?}");
    assert!(!error.message().contains("10."), "{}", error.message());
}

#[tokio::test]
async fn ready_pods_of_this_namespace_are_dialed_on_the_target_port() {
    let endpoints = json!([
        pod("10.0.0.2"),
        pod("10.0.0.1"),
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "namespace": "team-a"}},
        {"addresses": ["10.0.0.4"], "conditions": {}, "targetRef": {"kind": "Pod", "namespace": "team-a"}},
        {"addresses": ["10.0.0.5"], "conditions": {"ready": true}},
        {"addresses": ["10.0.0.6"], "targetRef": {"kind": "Pod", "namespace": "team-b"}},
        {"addresses": ["10.0.0.7"], "targetRef": {"kind": "Node", "namespace": "team-a"}},
        {"addresses": ["not an address"], "targetRef": {"kind": "Pod", "namespace": "team-a"}},
    ]);
    let mut names = slice(json!([pod("10.0.0.9")]));
    names["addressType"] = json!("FQDN");
    let mut other_port = slice(json!([pod("10.0.0.8")]));
    other_port["ports"] = json!([{"name": "admin", "port": 9001}]);
    let found = pods(service(), json!([slice(endpoints), names, other_port])).await.unwrap();
    assert_eq!(found, ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.4:8080"].map(|pod| pod.parse().unwrap()));
}

#[tokio::test]
async fn a_port_without_a_name_finds_the_slices_port_without_a_name() {
    let mut unnamed = service();
    unnamed["spec"]["ports"] = json!([{"port": 80}]);
    let mut endpoints = slice(json!([pod("10.0.0.1")]));
    endpoints["ports"] = json!([{"name": "", "port": 8080}]);
    assert_eq!(pods(unnamed, json!([endpoints])).await.unwrap(), ["10.0.0.1:8080".parse().unwrap()]);
}

#[tokio::test]
async fn services_that_could_lead_anywhere_are_refused() {
    let mut external = service();
    external["spec"]["type"] = json!("ExternalName");
    external["spec"]["externalName"] = json!("metadata.google.internal");
    check(pods(external, json!([])).await, Reason::ServiceNotUsable);
    for selector in [json!(null), json!({})] {
        let mut manual = service();
        manual["spec"]["selector"] = selector;
        check(pods(manual, json!([slice(json!([pod("10.0.0.1")]))])).await, Reason::ServiceNotUsable);
    }
}

#[tokio::test]
async fn without_the_port_or_without_ready_pods_there_is_nothing_to_dial() {
    let mut other = service();
    other["spec"]["ports"] = json!([{"port": 81}, {"port": 80, "protocol": "UDP"}]);
    check(pods(other, json!([])).await, Reason::ServiceNotUsable);
    check(pods(service(), json!([])).await, Reason::ServiceWithoutPods);
    check(pods(service(), json!([slice(json!([]))])).await, Reason::ServiceWithoutPods);
}

#[tokio::test]
async fn a_namespace_without_a_rule_is_not_even_looked_up() {
    let (resolver, _api) = resolver();
    let target = ServiceTarget { namespace: "team-b".into(), name: "inbox".into(), port: 80 };
    let result = resolver.resolve(&target, Scheme::Http, "/", &policy()).await;
    check(result, Reason::DestinationNotAllowed);
}

#[tokio::test]
async fn errors_of_the_api_server_are_told_and_not_kept() {
    let (resolver, mut api) = resolver();
    let status =
        |code: u16, reason: &str| json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason});
    let not_found = reply(&mut api, SERVICE, 404, status(404, "NotFound"));
    check(tokio::join!(resolve(&resolver, 80), not_found).0, Reason::ServiceNotFound);
    let forbidden = reply(&mut api, SERVICE, 403, status(403, "Forbidden"));
    check(tokio::join!(resolve(&resolver, 80), forbidden).0, Reason::Internal);
    let there = async {
        reply(&mut api, SERVICE, 200, service()).await;
        reply(&mut api, SLICES, 200, slices(json!([slice(json!([pod("10.0.0.1")]))]))).await;
    };
    tokio::join!(resolve(&resolver, 80), there).0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_never_answers_is_given_up() {
    let (resolver, mut api) = resolver();
    let (result, _held) = tokio::join!(resolve(&resolver, 80), api.next_request());
    check(result, Reason::Internal);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_is_used_again_for_five_seconds() {
    let (resolver, mut api) = resolver();
    let read = async |api: &mut Api, address: &str| {
        reply(api, SERVICE, 200, service()).await;
        reply(api, SLICES, 200, slices(json!([slice(json!([pod(address)]))]))).await;
    };
    let (first, ()) = tokio::join!(resolve(&resolver, 80), read(&mut api, "10.0.0.1"));
    let first = first.unwrap();
    tokio::time::advance(CACHE_TIME - Duration::from_millis(1)).await;
    assert_eq!(resolve(&resolver, 80).await.unwrap(), first);
    tokio::time::advance(Duration::from_millis(1)).await;
    let (second, ()) = tokio::join!(resolve(&resolver, 80), read(&mut api, "10.0.0.2"));
    assert_ne!(second.unwrap(), first);
}

#[tokio::test]
async fn a_slice_that_names_loopback_metadata_or_the_api_server_is_refused_at_the_dial() {
    let cluster = ClusterNetworks { api_servers: vec!["10.96.0.1".parse().unwrap()], ..ClusterNetworks::default() };
    let egress = serde_json::from_value(json!({"allow": [{"namespaces": ["*"]}, {"cidr": "0.0.0.0/0"}]})).unwrap();
    let policy = EgressPolicy::compile(Some(&egress), &cluster).unwrap();
    let guard = Guard::new(Arc::new(policy), Script::new([None]));
    for address in ["127.0.0.1:80", "169.254.169.254:80", "[fe80::1]:80", "[::ffff:127.0.0.1]:80", "10.96.0.1:6443"] {
        let pods = ["10.0.0.1:80".parse().unwrap(), address.parse().unwrap()];
        let to = Destination::service(Scheme::Http, "inbox", "team-a", 80, "/", &pods).unwrap();
        let vetted = guard.vet(to.uri()).await;
        assert!(matches!(vetted, Err(ConnectError::Forbidden(_))), "{address}: {vetted:?}");
    }
}

#[tokio::test]
async fn a_request_to_a_service_names_the_service_and_reaches_the_pod() {
    let (address, _) = listen(|mut stream| async move {
        use tokio::io::AsyncWriteExt;
        let request = read_request(&mut stream).await;
        let host = request.lines().find(|line| line.starts_with("host: ")).unwrap().to_owned();
        let length = host.len();
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{host}").as_bytes())
            .await
            .unwrap();
    })
    .await;
    let to = Destination::service(Scheme::Http, "inbox", "team-a", 80, "/hook", &[address]).unwrap();
    let answer = clients().client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    assert_eq!(&answer.body[..], b"host: inbox.team-a.svc");
}

#[tokio::test]
async fn a_pod_that_refuses_is_passed_over_for_the_next() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (there, _) = listen(|mut stream| async move {
        use tokio::io::AsyncWriteExt;
        read_request(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    })
    .await;
    // Which one is dialed first is chance, so both orders come up.
    let to = Destination::service(Scheme::Http, "inbox", "team-a", 80, "/", &[gone, there]).unwrap();
    let clients = clients();
    for _ in 0..16 {
        clients.client("shop", None).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    }
}
