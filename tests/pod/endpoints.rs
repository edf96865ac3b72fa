//! Receivers that misbehave.

use std::{collections::HashSet, time::Duration};

use serde_json::json;

use crate::stage::{Stage, WAIT, until};

/// Tried twice, quickly, without a circuit.
fn quick() -> serde_json::Value {
    json!({"timeout": "1s", "retry": {"schedule": ["200ms"]}, "circuit": {"failures": 0}, "jitterPercent": 0})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_for_receivers_that_misbehave_end_as_dead_letters_with_the_right_reason() {
    let mut stage = Stage::set().await;
    let cases = [
        ("refuse", "http://127.0.0.1:1/", "ConnectionRefused", None),
        ("reset", "/reset", "ConnectionClosed", None),
        ("hang", "/hang", "AnswerTimedOut", None),
        ("drip", "/drip", "AnswerTimedOut", None),
        ("redirect", "/redirect", "RedirectRefused", Some(307)),
        ("error", "/status/500", "UnexpectedStatus", Some(500)),
        ("large", "/status/413", "UnexpectedStatus", Some(413)),
    ];
    for (name, path, ..) in cases {
        let url = if path.starts_with("http") { path.to_owned() } else { stage.receiver.url(path) };
        stage.webhook_at(name, &url, &format!("to.{name}"), quick());
    }
    stage.webhook("flood", "/flood", "to.flood", quick());
    stage.webhook("healthy", "/ok/healthy", "to.healthy", json!(null));
    stage.pod.start().await;
    stage.until_routed(9).await;
    let before = stage.pod.memory_kib().0;
    let mut ids = Vec::new();
    for (name, ..) in cases {
        ids.push(stage.publish(3, &format!("to.{name}")).await);
    }
    stage.publish(3, "to.flood").await;
    let healthy = stage.publish(100, "to.healthy").await;
    stage.until_delivered("/ok/healthy", &healthy).await;
    for ((name, _, reason, code), ids) in cases.iter().zip(&ids) {
        let cards = async || cards_of(&stage, name).len() == 3;
        until(&format!("three cards for {name}"), WAIT, cards).await;
        for card in cards_of(&stage, name) {
            assert_eq!(card["spec"]["reason"], "Exhausted", "{name}: {card}");
            assert_eq!(card["spec"]["attempts"], 2, "{name}: {card}");
            assert!(card["spec"]["error"].as_str().unwrap_or_default().contains(reason), "{name}: {card}");
            assert_eq!(card["spec"]["lastStatusCode"].as_u64(), *code, "{name}: {card}");
            assert!(ids.contains(card["spec"]["event"]["id"].as_str().unwrap()), "{name}: {card}");
        }
    }
    // A success is a success however long its body is; it is just not read.
    assert_eq!(cards_of(&stage, "flood").len(), 0);
    let after = stage.pod.memory_kib().0;
    assert!(after < before + 32 * 1024, "memory grew from {before} to {after} KiB");
}

fn cards_of(stage: &Stage, webhook: &str) -> Vec<serde_json::Value> {
    let all = stage.api.list("deadletters");
    all.into_iter().filter(|card| card["spec"]["webhookRef"]["name"] == webhook).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_holds_the_endpoint_for_as_long_as_it_asks_whatever_way_it_asks() {
    let mut stage = Stage::set().await;
    let past = "Wed,_21_Oct_2015_07:28:00_GMT";
    // What is no time, or lies in the past, leaves the schedule of 200 ms.
    let soon = ["0", "-5", "soon", past, ""];
    let late = ["3600", "Wed,_21_Oct_2099_07:28:00_GMT", "99999999999999999999"];
    for (n, after) in soon.iter().chain(&late).enumerate() {
        stage.webhook(&format!("w{n}"), &format!("/status/429/{after}"), &format!("to.{n}"), quick());
    }
    stage.pod.start().await;
    stage.until_routed((soon.len() + late.len()) as u64).await;
    for n in 0..soon.len() + late.len() {
        stage.publish(1, &format!("to.{n}")).await;
    }
    for (n, after) in soon.iter().enumerate() {
        let path = format!("/status/429/{after}");
        until(&format!("a second attempt after {after:?} (w{n})"), WAIT, async || {
            stage.receiver.requests_to(&path) == 2
        })
        .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked_late: HashSet<u64> =
        late.iter().map(|after| stage.receiver.requests_to(&format!("/status/429/{after}"))).collect();
    assert_eq!(asked_late, [1].into());
}
