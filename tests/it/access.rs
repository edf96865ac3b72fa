//! Who may call the internal API: the API server is asked once, and not for
//! everything.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use posthorn::{
    access::{Access, AccessError, KubeTokenReviewer, REVIEW_TIMEOUT, ServiceAccount},
    runtime::secret::SecretString,
};
use serde_json::{Value, json};

use crate::fake_api::{self, Answer};

const CONTROLLER: &str = "system:serviceaccount:posthorn-system:posthorn-controller";

pub(crate) fn controller() -> ServiceAccount {
    "posthorn-system/posthorn-controller".parse().unwrap()
}

pub(crate) fn token(subject: &str, audience: &str, expires: i64) -> SecretString {
    let claims = json!({ "aud": [audience], "exp": expires, "sub": subject });
    SecretString::new(format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())))
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn good_token() -> SecretString {
    token(CONTROLLER, "posthorn-internal", now().as_second() + 3600)
}

fn verdict(authenticated: bool, audience: &str, username: &str) -> Value {
    json!({ "authenticated": authenticated, "audiences": [audience], "user": { "username": username } })
}

/// An Access before an API server that gives these answers in turn (the last one
/// for ever), and how often it was asked.
fn access(answers: Vec<Answer>) -> (Access, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mut answers = answers.into_iter();
    let client = fake_api::client(move |method, path, body| {
        assert_eq!((method, path), ("POST", "/apis/authentication.k8s.io/v1/tokenreviews?"));
        assert_eq!(body["spec"]["audiences"], json!(["posthorn-internal"]));
        count.fetch_add(1, Ordering::SeqCst);
        answers.next().unwrap_or(Answer::Never)
    });
    (Access::new(Arc::new(KubeTokenReviewer::new(client)), &[controller()]), asked)
}

fn review(status: Value) -> Answer {
    Answer::Json(
        201,
        json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {}, "status": status
        }),
    )
}

fn failure() -> Answer {
    Answer::Json(
        500,
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "no" }),
    )
}

#[tokio::test]
async fn what_the_api_server_says_decides() {
    let check = async |status: Value, expected: Result<(), AccessError>| {
        let (access, _) = access(vec![review(status.clone())]);
        assert_eq!(access.check(&good_token(), now()).await, expected, "{status}");
    };
    check(verdict(true, "posthorn-internal", CONTROLLER), Ok(())).await;
    check(verdict(false, "posthorn-internal", CONTROLLER), Err(AccessError::Refused)).await;
    check(verdict(true, "https://kubernetes.default.svc", CONTROLLER), Err(AccessError::Refused)).await;
    check(json!({ "authenticated": true, "user": { "username": CONTROLLER } }), Err(AccessError::Refused)).await;
    check(verdict(true, "posthorn-internal", "system:admin"), Err(AccessError::NotAllowed)).await;
    check(json!({}), Err(AccessError::Refused)).await;
}

#[tokio::test]
async fn what_cannot_be_ours_never_reaches_the_api_server() {
    let (access, asked) = access(vec![]);
    let later = now().as_second() + 3600;
    for (token, expected) in [
        (SecretString::from("garbage"), AccessError::NoUsableToken),
        (token(CONTROLLER, "posthorn", later), AccessError::NoUsableToken),
        (token(CONTROLLER, "posthorn-internal", now().as_second() - 60), AccessError::NoUsableToken),
        (token("system:serviceaccount:a:b", "posthorn-internal", later), AccessError::NotAllowed),
    ] {
        assert_eq!(access.check(&token, now()).await, Err(expected));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn many_calls_at_once_and_within_a_minute_are_one_question() {
    let (access, asked) = access(vec![review(verdict(true, "posthorn-internal", CONTROLLER))]);
    let token = good_token();
    let calls = (0..50).map(|_| access.check(&token, now()));
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(access.check(&token, now() + SignedDuration::from_secs(44)).await, Ok(()));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_yes_is_reviewed_again_before_it_ends_and_nobody_waits_for_that() {
    let yes = || review(verdict(true, "posthorn-internal", CONTROLLER));
    let (access, asked) = access(vec![yes(), yes()]);
    let token = good_token();
    let after = |seconds| now() + SignedDuration::from_secs(seconds);
    assert_eq!(access.check(&token, after(0)).await, Ok(()));
    assert_eq!(access.check(&token, after(45)).await, Ok(()));
    while asked.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn while_the_api_server_is_away_known_callers_have_five_minutes_and_others_are_told_to_come_back() {
    let (access, asked) =
        access(vec![review(verdict(true, "posthorn-internal", CONTROLLER)), failure(), failure(), failure()]);
    let token = good_token();
    let after = |seconds| now() + SignedDuration::from_secs(seconds);
    assert_eq!(access.check(&token, after(0)).await, Ok(()));
    assert_eq!(access.check(&token, after(299)).await, Ok(()));
    assert_eq!(access.check(&token, after(300)).await, Err(AccessError::Unavailable));
    let other = crate::access::token(CONTROLLER, "posthorn-internal", now().as_second() + 7200);
    assert_eq!(access.check(&other, after(0)).await, Err(AccessError::Unavailable));
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_an_api_server_that_is_away() {
    let (access, _) = access(vec![]);
    let started = tokio::time::Instant::now();
    assert_eq!(access.check(&good_token(), now()).await, Err(AccessError::Unavailable));
    assert_eq!(started.elapsed(), REVIEW_TIMEOUT);
}
