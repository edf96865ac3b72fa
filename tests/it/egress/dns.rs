//! Names: what the guard lets through. Nothing here is dialed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
};
use posthorn::{
    api::Reason,
    egress::{
        Budgets, Clients, Failure, Resolve, SystemResolver,
        connector::{ConnectError, Guard},
        resolver::{ADDRESSES_MAX, RESOLVE_TIMEOUT, ResolveError},
    },
    policy::egress::{ClusterNetworks, Destination, EgressPolicy, parse_url},
};
use rustls::RootCertStore;
use tokio::net::UdpSocket;

use super::{Answer, Script, post};

/// The default rules, as in production: loopback is closed.
fn strict() -> Arc<EgressPolicy> {
    Arc::new(EgressPolicy::compile(None, &ClusterNetworks::default()).unwrap())
}

fn hooks() -> Destination {
    parse_url("https://hooks.example.com/", &strict()).unwrap()
}

async fn vet(answer: Answer) -> Result<Vec<SocketAddr>, ConnectError> {
    Guard::new(strict(), Script::new([answer])).vet(hooks().uri()).await
}

async fn check_forbidden(addresses: &[&str]) {
    let vetted = vet(Script::addresses(addresses)).await;
    assert!(matches!(vetted, Err(ConnectError::Forbidden(_))), "{addresses:?}: {vetted:?}");
}

#[tokio::test]
async fn public_addresses_are_dialed_in_the_order_of_the_answer() {
    let vetted = vet(Script::addresses(&["8.8.8.8", "2001:4860:4860::8888", "1.1.1.1"])).await.unwrap();
    let expected = ["8.8.8.8:443", "[2001:4860:4860::8888]:443", "1.1.1.1:443"];
    assert_eq!(vetted, expected.map(|address| address.parse().unwrap()));
}

#[tokio::test]
async fn one_forbidden_address_refuses_all() {
    check_forbidden(&["8.8.8.8", "10.0.0.1"]).await;
    check_forbidden(&["10.0.0.1", "8.8.8.8"]).await;
    check_forbidden(&["8.8.8.8", "1.1.1.1", "127.0.0.1"]).await;
    check_forbidden(&["8.8.8.8", "fd00::1"]).await;
    check_forbidden(&["8.8.8.8", "::ffff:169.254.169.254"]).await;
    check_forbidden(&["64:ff9b::10.0.0.1"]).await;
    check_forbidden(&["0.0.0.0"]).await;
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_judged_at_every_dial() {
    let script = Script::new([Script::addresses(&["8.8.8.8"]), Script::addresses(&["127.0.0.1"])]);
    let guard = Guard::new(strict(), script);
    assert!(guard.vet(hooks().uri()).await.is_ok());
    assert!(matches!(guard.vet(hooks().uri()).await, Err(ConnectError::Forbidden(_))));
}

#[tokio::test]
async fn more_addresses_than_the_limit_are_refused_and_the_limit_is_not() {
    let public = |number: u32| -> Answer {
        Some(Ok((0..number).map(|n| std::net::Ipv4Addr::from(0x0808_0000 + n).into()).collect()))
    };
    let limit = u32::try_from(ADDRESSES_MAX).unwrap();
    assert_eq!(vet(public(limit)).await.unwrap().len(), ADDRESSES_MAX);
    for number in [limit + 1, 1000] {
        let vetted = vet(public(number)).await;
        assert!(matches!(vetted, Err(ConnectError::Resolve(ResolveError::TooMany(_)))), "{number}: {vetted:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn name_servers_that_never_answer_cost_two_seconds() {
    let started = tokio::time::Instant::now();
    let vetted = vet(None).await;
    assert!(matches!(vetted, Err(ConnectError::Resolve(ResolveError::TimedOut))), "{vetted:?}");
    assert!(started.elapsed() >= RESOLVE_TIMEOUT && started.elapsed() < RESOLVE_TIMEOUT + Duration::from_millis(50));
}

#[tokio::test]
async fn the_name_is_asked_for_without_its_trailing_dot_and_literals_are_not_asked_for() {
    let script = Script::new([Script::addresses(&["8.8.8.8"])]);
    let guard = Guard::new(strict(), script.clone());
    for url in ["https://Hooks.example.com./", "https://8.8.8.8/", "https://[2001:4860:4860::8888]/"] {
        guard.vet(parse_url(url, &strict()).unwrap().uri()).await.unwrap();
    }
    assert_eq!(*script.asked.lock().unwrap(), ["hooks.example.com"]);
}

#[tokio::test]
async fn a_literal_is_judged_at_the_dial_even_if_its_text_passed_before() {
    let lenient = EgressPolicy::compile(None, &ClusterNetworks::default()).unwrap().allow_loopback();
    let to = parse_url("https://127.0.0.1:443/", &lenient).unwrap();
    let vetted = Guard::new(strict(), Script::new([None])).vet(to.uri()).await;
    assert!(matches!(vetted, Err(ConnectError::Forbidden(_))), "{vetted:?}");
}

/// What a tenant is told: the reason, and a message without the address.
async fn check_told(answer: Answer, failure: Failure, reason: Reason) {
    let clients = Clients::new(strict(), Script::new([answer]), Arc::new(RootCertStore::empty())).unwrap();
    let budgets = Budgets { total: Duration::from_secs(15), body_bytes_max: 1024 };
    let error = clients.client("shop", None).unwrap().send(&hooks(), post("{}"), budgets).await.unwrap_err();
    assert_eq!((error.failure(), error.reason()), (failure, reason), "{error:?}");
    let message = error.message();
    assert!(message.contains("hooks.example.com") && !message.contains("10.") && !message.contains("!"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_tenant_is_told_a_reason_and_no_address() {
    check_told(Script::addresses(&["10.0.0.1"]), Failure::NotAllowed, Reason::DestinationNotAllowed).await;
    check_told(Script::addresses(&["127.0.0.1"]), Failure::NotAllowed, Reason::DestinationNotAllowed).await;
    check_told(Some(Err("SERVFAIL")), Failure::NameNotResolved, Reason::NameNotResolved).await;
    check_told(Some(Ok(vec![])), Failure::NameNotResolved, Reason::NameNotResolved).await;
    check_told(Some(Ok(vec![[8, 8, 8, 8].into(); 17])), Failure::TooManyAddresses, Reason::NameNotResolved).await;
    check_told(None, Failure::NameNotResolved, Reason::NameNotResolved).await;
}

/// The records of a name, or an error.
type Zone = Result<Vec<(&'static str, RData)>, ResponseCode>;

/// A name server on loopback that answers by this function of name and type.
/// Gives a resolver that uses it, with the search list of a Pod.
async fn name_server(answer: fn(&str, RecordType) -> Zone) -> SystemResolver {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut udp = ConnectionConfig::udp();
    udp.port = socket.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, asker)) = socket.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut message = Message::response(question.metadata.id, question.metadata.op_code);
            match answer(&query.name().to_ascii().to_lowercase(), query.query_type()) {
                Ok(records) => {
                    let record =
                        |(name, data): (&str, RData)| Record::from_rdata(Name::from_ascii(name).unwrap(), 60, data);
                    message.add_answers(records.into_iter().map(record));
                }
                Err(code) => message.metadata.response_code = code,
            }
            message.queries.push(query);
            socket.send_to(&message.to_vec().unwrap(), asker).await.unwrap();
        }
    });
    let server = NameServerConfig::new("127.0.0.1".parse().unwrap(), true, vec![udp]);
    let search = ["team-a.svc.cluster.local.", "svc.cluster.local.", "cluster.local."];
    let search = search.map(|name| Name::from_ascii(name).unwrap()).to_vec();
    SystemResolver::from_config(ResolverConfig::from_parts(None, search, vec![server])).unwrap()
}

fn a(address: &str) -> RData {
    RData::A(address.parse::<std::net::Ipv4Addr>().unwrap().into())
}

fn aaaa(address: &str) -> RData {
    RData::AAAA(address.parse::<std::net::Ipv6Addr>().unwrap().into())
}

fn cname(name: &str) -> RData {
    RData::CNAME(hickory_resolver::proto::rr::rdata::CNAME(Name::from_ascii(name).unwrap()))
}

#[tokio::test]
async fn both_families_of_a_name_are_asked_for() {
    let resolver = name_server(|name, kind| match (name, kind) {
        ("hooks.example.com.", RecordType::A) => Ok(vec![("hooks.example.com.", a("8.8.8.8"))]),
        ("hooks.example.com.", RecordType::AAAA) => Ok(vec![("hooks.example.com.", aaaa("fd00::1"))]),
        _ => Err(ResponseCode::NXDomain),
    })
    .await;
    let addresses = resolver.resolve("hooks.example.com").await.unwrap();
    assert_eq!(addresses, ["8.8.8.8", "fd00::1"].map(|address| address.parse::<std::net::IpAddr>().unwrap()));
    let guard = Guard::new(strict(), Arc::new(resolver));
    assert!(matches!(guard.vet(hooks().uri()).await, Err(ConnectError::Forbidden(_))));
}

#[tokio::test]
async fn the_search_list_of_the_cluster_is_not_used() {
    let resolver = name_server(|name, _| match name {
        "foo.bar." => Err(ResponseCode::NXDomain),
        // Here the search list would lead.
        _ => Ok(vec![("foo.bar.svc.cluster.local.", a("8.8.8.8"))]),
    })
    .await;
    let answer = resolver.resolve("foo.bar").await;
    assert!(matches!(answer, Err(ResolveError::Lookup(_))), "{answer:?}");
}

#[tokio::test]
async fn an_alias_is_judged_by_where_it_ends() {
    let resolver = name_server(|name, kind| match (name, kind) {
        ("hooks.example.com.", RecordType::A) => Ok(vec![
            ("hooks.example.com.", cname("kubernetes.default.svc.cluster.local.")),
            ("kubernetes.default.svc.cluster.local.", a("10.96.0.1")),
        ]),
        _ => Ok(vec![]),
    })
    .await;
    let vetted = Guard::new(strict(), Arc::new(resolver)).vet(hooks().uri()).await;
    assert!(matches!(vetted, Err(ConnectError::Forbidden(_))), "{vetted:?}");
}

#[tokio::test]
async fn aliases_in_a_circle_and_failing_name_servers_give_no_address() {
    let circle = name_server(|_, _| {
        Ok(vec![("hooks.example.com.", cname("b.example.com.")), ("b.example.com.", cname("hooks.example.com."))])
    })
    .await;
    let failing = name_server(|_, _| Err(ResponseCode::ServFail)).await;
    for resolver in [circle, failing] {
        let vetted = Guard::new(strict(), Arc::new(resolver)).vet(hooks().uri()).await;
        assert!(matches!(vetted, Err(ConnectError::Resolve(_))), "{vetted:?}");
    }
}
