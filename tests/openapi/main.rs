//! Fuzzes ingest by its own OpenAPI description, with schemathesis.
//!
//! `scripts/test.sh` runs it. Alone:
//! `SCHEMATHESIS=$(scripts/schemathesis.sh) cargo test --test openapi`
#![allow(missing_docs, unreachable_pub, reason = "tests are named as sentences, and nobody links them")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should panic")]

#[path = "../it/fake_ingest.rs"]
mod fake_ingest;

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use posthorn::{
    access::{Authorizer, Caller, PublishRight, Review, ReviewError, TokenReviewer, publish::PublishAccess},
    ingest::{IngestApi, IngestMetrics, IngestParts, IngestSettings, parse::BATCH_EVENTS_MAX, serve},
    routing::index::{Index, SharedIndex, WatchedKind},
    runtime::{reachability::Reachability, secret::SecretString},
    store::{AcceptError, Accepted},
};
use tokio::{net::TcpListener, process::Command, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use fake_ingest::{FakeIngest, Verdict, id};

/// Random requests at most, beside those that cover the description.
const EXAMPLES_MAX: &str = "25";
/// Time for all of it; on two busy cores it takes half of that.
const TIME_MAX: Duration = Duration::from_secs(60);
/// What must hold of every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,response_headers_conformance,negative_data_rejection";
/// With which statuses a request may be refused that the description forbids.
const REFUSALS: &str =
    "[checks.negative_data_rejection]\nexpected-statuses = [400, 401, 403, 404, 405, 413, 415, 421, 429]\n";

/// Vouches for everyone.
struct Everyone;

impl TokenReviewer for Everyone {
    fn review<'a>(&'a self, _: &'a SecretString, audience: &'a str) -> BoxFuture<'a, Result<Review, ReviewError>> {
        let review = Review { authenticated: true, audiences: vec![audience.to_owned()], caller: Caller::default() };
        Box::pin(async { Ok(review) })
    }
}

impl Authorizer for Everyone {
    fn may_publish<'a>(&'a self, _: &'a Caller, right: &'a PublishRight) -> BoxFuture<'a, Result<bool, ReviewError>> {
        // In `depot`, each type is asked about, and some are refused.
        let may = right.namespace != "depot" || right.event_type.as_ref().is_some_and(|name| name.len() % 2 == 0);
        Box::pin(async move { Ok(may) })
    }
}

/// A store that has every answer but those that are an error of the server.
fn store() -> Arc<FakeIngest> {
    let store = FakeIngest::default();
    // As many as the largest batch has events; of fewer, the first ones count.
    let verdicts = |first: usize| -> Vec<Verdict> {
        let each = |number: usize| -> Verdict {
            match (first + number) % 3 {
                0 => Box::new(Accepted::New),
                1 => Box::new(|_| Accepted::Duplicate(id(7))),
                _ => Box::new(|_| Accepted::Conflict(id(9))),
            }
        };
        (0..BATCH_EVENTS_MAX).map(each).collect()
    };
    for number in 0..1_000 {
        let answer = match number % 8 {
            7 => Err(AcceptError::Busy { retry_after: Duration::from_secs(1) }),
            _ => Ok(verdicts(number)),
        };
        store.answers.lock().unwrap().push_back(answer);
    }
    Arc::new(store)
}

async fn start(store: Arc<FakeIngest>, shutdown: CancellationToken) -> SocketAddr {
    let mut index = Index::new("default", "one");
    let kinds = [WatchedKind::Namespace, WatchedKind::Webhook, WatchedKind::Subscription];
    kinds.into_iter().for_each(|kind| index.begin_list(kind));
    index.apply_namespace("shop", "1", None);
    index.apply_namespace("depot", "2", None);
    index.apply_namespace("bank", "3", Some("secure"));
    kinds.into_iter().for_each(|kind| index.end_list(kind));
    let (_settings, newest) = watch::channel(IngestSettings::default());
    let api = IngestApi::new(IngestParts {
        store,
        namespaces: Arc::new(SharedIndex::new(index)),
        access: PublishAccess::new(Arc::new(Everyone), Arc::new(Everyone), None, Reachability::default()),
        settings: newest,
        metrics: IngestMetrics::unregistered(),
        service_of: Box::new(|pool| format!("posthorn-{pool}.posthorn-system.svc")),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, api, shutdown));
    address
}

/// Runs schemathesis; none of its namespace leaves the choice to it.
async fn fuzz(program: &str, address: SocketAddr, namespace: Option<&str>, folder: &Path) {
    let fixed = namespace.map(|name| format!("[parameters]\n\"path.namespace\" = \"{name}\"\n")).unwrap_or_default();
    let config = format!("{fixed}{REFUSALS}");
    let config_file = folder.join(format!("{}.toml", namespace.unwrap_or("any")));
    std::fs::write(&config_file, config).unwrap();
    let claims = r#"{"aud":["posthorn"],"exp":32503680000,"sub":"system:serviceaccount:shop:checkout"}"#;
    let token = format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let mut command = Command::new(program);
    command.arg("--config-file").arg(config_file).arg("--no-color").arg("run");
    // Covering the description takes most of the time, and once is enough.
    let phases = if namespace == Some("shop") { "coverage,fuzzing" } else { "fuzzing" };
    command.args(["--checks", CHECKS, "--max-examples", EXAMPLES_MAX, "--seed", "1", "--phases", phases]);
    command.args(["--warnings", "off", "--continue-on-failure", "--header", &format!("Authorization: Bearer {token}")]);
    command.arg(format!("http://{address}/openapi.json"));
    // Nothing of the folder that the tests run in, and nothing left in it.
    command.current_dir(folder).env("NO_PROXY", "127.0.0.1").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(TIME_MAX, command.output()).await.expect("schemathesis has not ended in time");
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_answers_as_its_description_says_whatever_it_is_sent() {
    let Ok(program) = std::env::var("SCHEMATHESIS") else {
        panic!(
            "SCHEMATHESIS does not name the program schemathesis: run \
             SCHEMATHESIS=$(scripts/schemathesis.sh) cargo test --test openapi"
        );
    };
    let (store, shutdown) = (store(), CancellationToken::new());
    let address = start(Arc::clone(&store), shutdown.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let runs = [Some("shop"), Some("depot"), None];
    futures::future::join_all(runs.map(|namespace| fuzz(&program, address, namespace, folder.path()))).await;
    let batches = store.batches.lock().unwrap().len();
    assert!(batches > 20, "only {batches} requests reached the store");
    shutdown.cancel();
}
