//! The tools that wait for Posthorn's objects see the right thing without
//! configuration: kubectl, and Helm 4, whose `--wait` reads kstatus as Flux does.

use std::process::Output;

use posthorn::api::{ConditionType, Webhook};

use crate::support::{Scope, in_namespace, is_true, kubectl, repository};

async fn helm(scope: &Scope, arguments: &[&str]) -> Output {
    let command = std::env::var("HELM").expect("HELM is not set: run `make test-cluster`");
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let chart = repository().join("tests/cluster/chart");
    tokio::process::Command::new(program)
        .args(words)
        .args(["upgrade", "--install", "team"])
        .arg(chart)
        .args(["--namespace", &scope.namespace, "--wait"])
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn helm_waits_until_the_webhook_is_ready() {
    in_namespace("helm", |scope| async move {
        scope.start_inbox(&[]).await;
        let output = helm(&scope, &["--timeout", "60s"]).await;
        assert!(output.status.success(), "{}", said(&output));
        let webhook = scope.api::<Webhook>().get("hook").await.unwrap();
        assert!(is_true(&webhook, ConditionType::Ready), "helm returned before the Webhook was Ready: {webhook:#?}");
    });
}

#[test]
fn helm_fails_when_the_webhook_fails() {
    in_namespace("helm-fails", |scope| async move {
        scope.start_inbox(&[]).await;
        let output = helm(&scope, &["--set", "path=/wrong", "--timeout", "90s"]).await;
        assert!(!output.status.success(), "{}", said(&output));
        let webhook = scope.api::<Webhook>().get("hook").await.unwrap();
        assert!(is_true(&webhook, ConditionType::Stalled), "helm gave up by its time-out: {}", said(&output));
    });
}

#[test]
fn kubectl_wait_returns_when_ready_and_not_before() {
    in_namespace("wait", |scope| async move {
        scope.start_inbox(&[]).await;
        let hook = |path: &str| {
            format!(
                "{{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {{name: hook}}, spec: {{serviceRef: {{name: inbox, port: 80, path: {path}}}}}}}"
            )
        };
        let wait = |timeout: &'static str| {
            let namespace = scope.namespace.clone();
            async move { kubectl(&["wait", "webhook/hook", "-n", &namespace, "--for=condition=Ready", timeout]).await }
        };
        scope.apply(&hook("/wrong")).await;
        assert!(!wait("--timeout=3s").await.status.success(), "a wrong answer is not Ready");
        scope.apply(&hook("/")).await;
        let output = wait("--timeout=60s").await;
        assert!(output.status.success(), "{}", said(&output));
        scope.apply(&hook("/wrong")).await;
        let stale = wait("--timeout=2s").await;
        assert!(!stale.status.success(), "Ready of the generation before must not count");
    });
}
