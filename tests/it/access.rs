//! Who may call the internal API: the API server is asked once, and not for
//! everything.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use posthorn::{
    access::{
        AWAY_PATIENCE, Access, AccessError, Authorizer, Caller, GRACE, KubeTokenReviewer, PublishRight, REVIEW_TIMEOUT,
        ReviewError, ServiceAccount, publish::PublishAccess,
    },
    runtime::{reachability::Reachability, secret::SecretString},
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

/// Knows one right, and counts what it is asked.
struct Rights {
    answers: std::sync::Mutex<Vec<Option<bool>>>,
}

impl Authorizer for Rights {
    fn may_publish<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a PublishRight,
    ) -> futures::future::BoxFuture<'a, Result<bool, ReviewError>> {
        let answer = self.answers.lock().unwrap().pop().flatten().ok_or_else(|| ReviewError("away".into()));
        Box::pin(async move { answer })
    }
}

#[tokio::test]
async fn a_right_is_remembered_for_a_minute_has_the_grace_given_and_ends_with_its_token() {
    let grace = std::time::Duration::from_secs(120);
    let client = fake_api::client(|_, _, _| review(verdict(true, "posthorn", CONTROLLER)));
    // The last one first: yes, away, away, no.
    let rights = Rights { answers: std::sync::Mutex::new(vec![Some(false), None, None, Some(true)]) };
    let access =
        PublishAccess::new(Arc::new(KubeTokenReviewer::new(client)), Arc::new(rights), None, Reachability::default());
    let token = token(CONTROLLER, "posthorn", now().as_second() + 3600);
    let publisher = access.authenticate(token.expose(), grace, now()).await.unwrap();
    let may = async |seconds: i64, grace| {
        access.may_publish(&publisher, "shop", None, grace, now() + SignedDuration::from_secs(seconds)).await
    };
    assert_eq!(may(0, grace).await, Ok(true));
    assert_eq!(may(44, grace).await, Ok(true));
    assert_eq!(may(60, grace).await, Ok(true), "the API server is away");
    assert_eq!(may(120, grace).await, Err(AccessError::Unavailable));
    assert_eq!(may(121, grace).await, Ok(false));
    assert_eq!(may(125, grace).await, Ok(false), "a no is remembered");
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_nobody_who_is_not_known_waits_long() {
    let api_server = Reachability::default();
    let hangs = fake_api::client(|_, _, _| Answer::Never);
    let rights = Arc::new(Rights { answers: std::sync::Mutex::default() });
    let access = |api_server: &Reachability| {
        let reviewer = Arc::new(KubeTokenReviewer::new(hangs.clone()));
        PublishAccess::new(reviewer, Arc::clone(&rights) as Arc<dyn Authorizer>, None, api_server.clone())
    };
    let wait = async |access: &PublishAccess, number: i64| {
        let (began, token) = (tokio::time::Instant::now(), token(CONTROLLER, "posthorn", now().as_second() + number));
        let refused = access.authenticate(token.expose(), GRACE, now()).await;
        assert_eq!(refused.unwrap_err(), AccessError::Unavailable);
        began.elapsed().as_secs()
    };
    // Nobody knows of the outage; the first review that brings nothing tells of it.
    let unaware = access(&api_server);
    assert_eq!(wait(&unaware, 100).await, REVIEW_TIMEOUT.as_secs());
    assert_eq!(wait(&unaware, 101).await, AWAY_PATIENCE.as_secs());
    // The watches know.
    api_server.report("Webhook", false);
    assert_eq!(wait(&access(&api_server), 102).await, AWAY_PATIENCE.as_secs());
    api_server.report("Webhook", true);
    assert_eq!(wait(&access(&api_server), 103).await, REVIEW_TIMEOUT.as_secs());
}

#[tokio::test]
async fn tokens_of_other_issuers_are_hardly_ever_reviewed() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let client = fake_api::client(move |_, _, _| {
        count.fetch_add(1, Ordering::SeqCst);
        review(verdict(false, "posthorn", CONTROLLER))
    });
    let rights = Arc::new(Rights { answers: std::sync::Mutex::default() });
    let access = PublishAccess::new(
        Arc::new(KubeTokenReviewer::new(client)),
        rights,
        Some("own".to_owned()),
        Reachability::default(),
    );
    for number in 0..20 {
        let token = token(CONTROLLER, "posthorn", now().as_second() + 3600 + number);
        assert!(access.authenticate(token.expose(), GRACE, now()).await.is_err());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
