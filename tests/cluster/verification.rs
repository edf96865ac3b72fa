//! Verification end to end: each way of it, each way an endpoint can get it
//! wrong, and the way out of every state.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use posthorn::api::{ConditionType, VERIFY_REQUESTED_ANNOTATION, Webhook, condition, webhook::VerificationState};

use crate::support::{Scope, in_namespace, is_true, reason_of};

/// The key that the receiver and the Webhooks of these tests share.
const KEY: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

/// A Webhook at a path of the inbox. `more` is further YAML of the spec.
fn webhook(name: &str, path: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: posthorn.dev/v1alpha1
kind: Webhook
metadata: {{name: {name}}}
spec:
  serviceRef: {{name: inbox, port: 80, path: {path}}}
  signing: {{secretRef: {{name: key, key: secret}}}}
{more}
"#
    )
}

async fn start(scope: &Scope) {
    let key = format!("{{apiVersion: v1, kind: Secret, metadata: {{name: key}}, stringData: {{secret: '{KEY}'}}}}");
    scope.apply(&key).await;
    scope.start_inbox(&["--secret", KEY]).await;
}

fn state(webhook: &Webhook) -> Option<VerificationState> {
    Some(webhook.status.as_ref()?.verification.as_ref()?.state)
}

#[test]
fn every_way_of_verification_ends_in_ready() {
    in_namespace("methods", |scope| async move {
        start(&scope).await;
        let ways = [
            ("challenge", ""),
            ("improvado-post", "  dialect: Improvado"),
            ("improvado-get", "  dialect: Improvado\n  verification: {httpMethod: GET}"),
            ("signed", "  verification: {method: SignedChallenge}"),
            ("cloudevents", "  dialect: CloudEvents"),
            ("none", "  dialect: Analytics"),
        ];
        for (name, more) in ways {
            scope.apply(&webhook(name, "/", more)).await;
        }
        for (name, _) in ways {
            let ready = scope.ready(name).await;
            assert_eq!(state(&ready), Some(VerificationState::Verified), "{name}");
            let expected = if name == "none" { "NotRequired" } else { "Verified" };
            assert_eq!(reason_of(&ready, ConditionType::Verified), expected, "{name}");
            let status = ready.status.unwrap();
            assert_eq!(status.endpoint.as_deref(), Some(format!("http://inbox.{}.svc", scope.namespace).as_str()));
            for absent in [ConditionType::Reconciling, ConditionType::Stalled] {
                assert!(!condition::is_true(&status.conditions, absent), "{name}: {absent:?}");
            }
        }
    });
}

#[test]
fn every_wrong_answer_has_a_reason_of_its_own() {
    in_namespace("wrong", |scope| async move {
        start(&scope).await;
        scope.apply("{apiVersion: v1, kind: Service, metadata: {name: nobody}, spec: {selector: {app: inbox}, ports: [{port: 80, targetPort: 9}]}}").await;
        scope.apply("{apiVersion: v1, kind: Service, metadata: {name: no-pods}, spec: {selector: {app: nothing}, ports: [{port: 80}]}}").await;
        scope.apply("{apiVersion: v1, kind: Service, metadata: {name: elsewhere}, spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}}").await;
        let short = "  verification: {timeout: 1s}";
        let service = |name: &str, more: &str| format!("serviceRef: {{name: {name}, port: 80{more}}}");
        let cases = [
            ("wrong", "serviceRef: {name: inbox, port: 80, path: /wrong}".to_owned(), "", "BodyMismatch"),
            ("status", "serviceRef: {name: inbox, port: 80, path: /status/503}".to_owned(), "", "UnexpectedStatus"),
            ("redirect", "serviceRef: {name: inbox, port: 80, path: /redirect}".to_owned(), "", "RedirectRefused"),
            ("hang", "serviceRef: {name: inbox, port: 80, path: /hang}".to_owned(), short, "AnswerTimedOut"),
            ("late", "serviceRef: {name: inbox, port: 80, path: /slow/3000}".to_owned(), short, "AnswerTimedOut"),
            ("endless", "serviceRef: {name: inbox, port: 80, path: /endless}".to_owned(), short, "BodyTooLong"),
            ("drop", "serviceRef: {name: inbox, port: 80, path: /drop}".to_owned(), "", "ConnectionClosed"),
            ("refused", service("nobody", ""), "", "ConnectionRefused"),
            ("no-service", service("absent", ""), "", "ServiceNotFound"),
            ("no-pods", service("no-pods", ""), "", "ServiceWithoutPods"),
            ("external", service("elsewhere", ""), "", "ServiceNotUsable"),
            ("not-tls", service("inbox", ", scheme: https"), "", "TlsFailed"),
            ("forbidden", "url: https://169.254.169.254/latest".to_owned(), "", "DestinationNotAllowed"),
            ("loopback", "url: https://2130706433/".to_owned(), "", "DestinationNotAllowed"),
            ("cluster-name", "url: https://kubernetes.default.svc/".to_owned(), "", "DestinationNotAllowed"),
            ("unknown-name", "url: https://receiver.invalid/".to_owned(), "", "NameNotResolved"),
        ];
        for (name, endpoint, more, _) in &cases {
            let manifest = format!(
                "apiVersion: posthorn.dev/v1alpha1\nkind: Webhook\nmetadata: {{name: {name}}}\nspec:\n  {endpoint}\n  signing: {{secretRef: {{name: key, key: secret}}}}\n{more}\n"
            );
            scope.apply(&manifest).await;
        }
        let mut checks = Vec::new();
        for (name, _, _, expected) in cases {
            checks.push(reason_within(&scope, name, expected));
        }
        let wrong: Vec<String> = join_all(checks).await.into_iter().filter_map(Result::err).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// Waits until the last check of the Webhook failed for this reason.
async fn reason_within(scope: &Scope, name: &str, expected: &str) -> Result<(), String> {
    let api = scope.api::<Webhook>();
    let mut seen = String::new();
    for _ in 0..200 {
        let webhook = api.get(name).await.unwrap();
        seen = webhook.status.and_then(|s| s.verification).and_then(|v| v.reason).unwrap_or_default();
        if seen == expected {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Err(format!("{name}: expected {expected}, saw {seen:?}"))
}

#[test]
fn a_bad_certificate_is_refused_and_a_named_authority_is_trusted() {
    in_namespace("tls", |scope| async move {
        let host = format!("inbox.{}.svc", scope.namespace);
        let made = rcgen::generate_simple_self_signed(vec![host]).unwrap();
        let secret = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "inbox-tls"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": made.cert.pem(), "tls.key": made.signing_key.serialize_pem()}
        });
        let authority = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "authority"}, "stringData": {"ca.crt": made.cert.pem()}
        });
        scope.apply_one(secret).await.unwrap();
        scope.apply_one(authority).await.unwrap();
        scope.start_inbox_with_tls("inbox-tls").await;
        let webhook = |name: &str, more: &str| {
            format!(
                "{{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {{name: {name}}}, spec: {{serviceRef: {{name: inbox, port: 80, scheme: https}}{more}}}}}"
            )
        };
        scope.apply(&webhook("untrusted", "")).await;
        scope.apply(&webhook("trusted", ", tls: {caRef: {name: authority, key: ca.crt}}")).await;
        reason_within(&scope, "untrusted", "CertificateInvalid").await.unwrap();
        scope.ready("trusted").await;
    });
}

#[test]
fn a_failed_webhook_is_stalled_until_its_spec_or_the_annotation_helps() {
    in_namespace("failed", |scope| async move {
        start(&scope).await;
        scope.apply(&webhook("changed", "/wrong", "")).await;
        scope.apply(&webhook("asked", "/flaky/4", "")).await;
        for name in ["changed"] {
            let failed = scope.wait(name, "Stalled", |w: &Webhook| is_true(w, ConditionType::Stalled)).await;
            assert_eq!(state(&failed), Some(VerificationState::Failed));
            assert!(!is_true(&failed, ConditionType::Reconciling) && !is_true(&failed, ConditionType::Ready));
        }
        scope.apply(&webhook("changed", "/", "")).await;
        scope.ready("changed").await;
        scope.wait("asked", "asked at least once", |w: &Webhook| state(w) != Some(VerificationState::Unverified)).await;
        for round in 0..6 {
            ask_again(&scope, "asked", round).await;
        }
        scope.ready("asked").await;
    });
}

/// Sets the annotation that asks for a check at once, and waits until it was
/// acted upon.
async fn ask_again(scope: &Scope, name: &str, round: u32) {
    let value = format!("round-{round}");
    let patch = serde_json::json!({"metadata": {"annotations": {VERIFY_REQUESTED_ANNOTATION: value}}});
    scope.api::<Webhook>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    scope
        .wait(name, "asked again", |w: &Webhook| {
            let verification = w.status.as_ref().and_then(|s| s.verification.as_ref());
            verification.and_then(|v| v.last_requested.as_deref()) == Some(value.as_str())
        })
        .await;
}

#[test]
fn an_edited_endpoint_is_unverified_until_it_answered() {
    in_namespace("edited", |scope| async move {
        start(&scope).await;
        scope.apply(&webhook("hook", "/", "")).await;
        let before = scope.ready("hook").await.status.unwrap().verification.unwrap();
        scope.apply(&webhook("hook", "/wrong", "")).await;
        let edited = scope.verified_reason("hook", "VerificationPending").await;
        let after = edited.status.clone().unwrap().verification.unwrap();
        assert!(!is_true(&edited, ConditionType::Ready) && !is_true(&edited, ConditionType::Verified));
        assert!(after.fingerprint.is_none() || after.fingerprint != before.fingerprint);
        scope.apply(&webhook("hook", "/", "")).await;
        scope.ready("hook").await;
    });
}

#[test]
fn suspend_holds_verification_and_lets_go_again() {
    in_namespace("suspend", |scope| async move {
        start(&scope).await;
        scope.apply(&webhook("hook", "/", "  suspend: true")).await;
        let held =
            scope.wait("hook", "Suspended", |w: &Webhook| reason_of(w, ConditionType::Ready) == "Suspended").await;
        assert_ne!(state(&held), Some(VerificationState::Verified));
        scope.apply(&webhook("hook", "/", "  suspend: false")).await;
        scope.ready("hook").await;
    });
}

#[test]
fn a_bad_secret_has_a_reason_and_mending_it_is_enough() {
    in_namespace("secret", |scope| async move {
        scope.start_inbox(&[]).await;
        let secret = |type_: &str, data: &str| {
            format!("{{apiVersion: v1, kind: Secret, metadata: {{name: key}}, type: {type_}, stringData: {data}}}")
        };
        let steps = [
            (None, "SecretNotFound"),
            (Some(secret("Opaque", "{other: x}")), "SecretKeyMissing"),
            (Some(secret("Opaque", "{secret: ''}")), "SecretEmpty"),
            (Some(secret("Opaque", "{secret: short}")), "SecretTooShort"),
            (
                Some(secret(
                    "kubernetes.io/basic-auth",
                    "{username: a, password: b, secret: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}",
                )),
                "SecretTypeForbidden",
            ),
        ];
        scope.apply(&webhook("hook", "/", "")).await;
        let secrets = scope.api::<Secret>();
        for (manifest, expected) in steps {
            secrets.delete("key", &Default::default()).await.ok();
            if let Some(manifest) = manifest {
                scope.apply(&manifest).await;
            }
            let webhook = scope
                .wait_for("hook", expected, Duration::from_secs(75), |w: &Webhook| {
                    reason_of(w, ConditionType::Ready) == expected
                })
                .await;
            let conditions = webhook.status.unwrap().conditions;
            let message = &condition::find(&conditions, ConditionType::Ready).unwrap().message;
            assert!(message.contains("key"), "{expected}: {message}");
            scope.reload("hook", expected).await;
        }
        secrets.delete("key", &Default::default()).await.ok();
        scope.apply(&secret("Opaque", &format!("{{secret: '{KEY}'}}"))).await;
        scope.wait_for("hook", "Ready", Duration::from_secs(75), |w: &Webhook| is_true(w, ConditionType::Ready)).await;
    });
}

#[test]
fn a_webhook_without_secret_gets_one_and_keeps_it_when_it_is_made_again() {
    in_namespace("made", |scope| async move {
        scope.start_inbox(&[]).await;
        let manifest = "{apiVersion: posthorn.dev/v1alpha1, kind: Webhook, metadata: {name: hook}, spec: {serviceRef: {name: inbox, port: 80}}}";
        scope.apply(manifest).await;
        let ready = scope.ready("hook").await;
        assert_eq!(ready.status.unwrap().secret_name.as_deref(), Some("hook-signing"));
        let secrets = scope.api::<Secret>();
        let first = secrets.get("hook-signing").await.unwrap();
        assert_eq!(first.type_.as_deref(), Some("posthorn.dev/signing"));
        assert!(first.metadata.owner_references.is_none());
        scope.api::<Webhook>().delete("hook", &Default::default()).await.unwrap();
        scope.apply(manifest).await;
        scope.ready("hook").await;
        let second = secrets.get("hook-signing").await.unwrap();
        assert_eq!(first.data, second.data, "the key must survive");
    });
}
