//! The wall clock jumps.

use std::{fs, process::Command, time::Duration};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    rig::{objects, publisher::Plan},
    stage::{Stage, scaled},
};

/// The library behind the program `faketime`, as it names it itself.
fn library() -> String {
    let output = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
    let output = output.expect("faketime is missing: install the Debian package faketime");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jumps_of_the_clock_by_three_days_expire_nothing_and_hold_nothing_up() {
    let mut stage = Stage::set().await;
    // More attempts than these a Webhook cannot have: they must not be used up.
    let pause = scaled("300ms", "2s");
    let patient = json!({"retry": {"backoff": {"initial": pause, "factor": 1, "max": pause, "attempts": 100}}, "circuit": {"failures": 0}});
    stage.webhook("orders", "/switch/orders", "order.paid", patient);
    stage.webhook("prompt", "/ok/prompt", "order.paid", json!(null));
    let file = stage.pod.folder().join("time");
    let set = |offset: &str| fs::write(&file, offset).unwrap();
    set("+0d");
    let variables = [
        ("LD_PRELOAD", library()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap().to_owned()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    stage.pod.environment.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    stage.pod.start().await;
    stage.until_routed(2).await;
    let plan = || Plan { token: objects::token_for_days("publisher", 30), ..stage.plan() };
    let mut ids = stage.publish_plan(plan(), 20).await;
    for offset in ["+3d", "-3d", "+0d", "-3d", "+3d"] {
        set(offset);
        let asked = stage.receiver.requests_to("/switch/orders");
        tokio::time::sleep(Duration::from_secs(scaled(1, 10))).await;
        let attempts = stage.receiver.requests_to("/switch/orders") - asked;
        assert!(attempts > 0, "nothing is tried at {offset}\n{}", stage.pod.log_tail());
        let prompt = stage.publish_plan(plan(), 20).await;
        stage.until_delivered("/ok/prompt", &prompt).await;
        ids.extend(prompt);
    }
    assert_eq!(stage.api.list("deadletters").len(), 0);
    // A start reads both clocks anew, here six days apart from the last one.
    stage.pod.kill();
    set("-3d");
    stage.pod.start().await;
    stage.receiver.set_up("orders", true);
    stage.until_delivered("/switch/orders", &ids).await;
    assert_eq!(stage.api.list("deadletters").len(), 0);
    let then = (Timestamp::now() - SignedDuration::from_hours(72)).strftime("%Y-%m-%dT").to_string();
    assert!(stage.pod.log().contains(&then), "the clock did not jump\n{}", stage.pod.log_tail());
}
