//! Authorities and client certificates from Secrets.

use posthorn::api::Reason;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use serde_json::{Value, json};

use super::{Endpoint, Rig, endpoint::answer, merged, vault::Vault, verified};
use crate::egress::tls::{Authority, for_name, server_config};

const HOST: &str = "hooks.example.com";

fn spec(port: u16, tls: &Value) -> Value {
    merged(json!({ "url": format!("https://{HOST}:{port}/hook"), "dialect": "CloudEvents" }), &json!({ "tls": tls }))
}

fn client_certificate(authority: &Authority) -> (String, String) {
    let mut params = CertificateParams::new([]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    authority.issue(params)
}

#[tokio::test]
async fn an_authority_from_a_secret_is_trusted_and_no_other_is() {
    let (authority, another) = (Authority::new(), Authority::new());
    let port = Endpoint::tls(server_config(authority.issue(for_name(HOST)), None), |_| answer(200, "", ""))
        .await
        .address
        .port();
    let vault = Vault::default();
    vault.put("ca", json!({ "ca.crt": authority.pem(), "other": another.pem() }));
    let rig = Rig::with(vault, None);
    let by = |key: &str| verified(&spec(port, &json!({ "caRef": { "name": "ca", "key": key } })));
    assert_eq!(rig.code(&by("ca.crt")).await, 200);
    assert_eq!(rig.failure(&by("other")).await, Reason::CertificateInvalid);
    let public = verified(&json!({ "url": format!("https://{HOST}:{port}/hook"), "dialect": "CloudEvents" }));
    assert_eq!(rig.failure(&public).await, Reason::CertificateInvalid);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_who_asks_for_it() {
    let (authority, of_clients) = (Authority::new(), Authority::new());
    let port =
        Endpoint::tls(server_config(authority.issue(for_name(HOST)), Some(&of_clients)), |_| answer(200, "", ""))
            .await
            .address
            .port();
    let (certificate, key) = client_certificate(&of_clients);
    let (foreign_certificate, foreign_key) = client_certificate(&authority);
    let vault = Vault::default();
    vault.put("ca", json!({ "ca.crt": authority.pem() }));
    vault.put_as("client", "kubernetes.io/tls", &json!({ "tls.crt": certificate, "tls.key": key }));
    vault.put_as("foreign", "kubernetes.io/tls", &json!({ "tls.crt": foreign_certificate, "tls.key": foreign_key }));
    let rig = Rig::with(vault, None);
    let ca = json!({ "caRef": { "name": "ca", "key": "ca.crt" } });
    let with =
        |name: &str| verified(&spec(port, &merged(ca.clone(), &json!({ "clientCertificateRef": { "name": name } }))));
    assert_eq!(rig.code(&with("client")).await, 200);
    assert_ne!(rig.failure(&with("foreign")).await, Reason::Internal);
    assert_ne!(rig.failure(&verified(&spec(port, &ca))).await, Reason::Internal);
    // The connection that was authenticated serves nobody else.
    assert_eq!(rig.code(&with("client")).await, 200);
    assert_ne!(rig.failure(&verified(&spec(port, &ca))).await, Reason::Internal);
}

#[tokio::test]
async fn a_client_certificate_that_was_renewed_is_used_from_the_next_reading_on() {
    let (authority, old_clients, new_clients) = (Authority::new(), Authority::new(), Authority::new());
    let port =
        Endpoint::tls(server_config(authority.issue(for_name(HOST)), Some(&new_clients)), |_| answer(200, "", ""))
            .await
            .address
            .port();
    let (certificate, key) = client_certificate(&old_clients);
    let vault = Vault::default();
    vault.put("ca", json!({ "ca.crt": authority.pem() }));
    vault.put_as("client", "kubernetes.io/tls", &json!({ "tls.crt": certificate, "tls.key": key }));
    let rig = Rig::with(vault, None);
    let tls = json!({ "caRef": { "name": "ca", "key": "ca.crt" }, "clientCertificateRef": { "name": "client" } });
    let webhook = verified(&spec(port, &tls));
    rig.failure(&webhook).await;
    let (certificate, key) = client_certificate(&new_clients);
    rig.vault.put_as("client", "kubernetes.io/tls", &json!({ "tls.crt": certificate, "tls.key": key }));
    super::secrets::pass(posthorn::delivery::sender::Pace::default().fresh).await;
    assert_eq!(rig.code(&webhook).await, 200);
}

#[tokio::test]
async fn certificates_that_cannot_be_used_hold_and_dial_nobody() {
    let authority = Authority::new();
    let (certificate, key) = client_certificate(&authority);
    let endpoint = Endpoint::code(200).await;
    let check = async |type_: &str, values: Value, expected: Reason| {
        let vault = Vault::default();
        vault.put_as("client", type_, &values);
        let tls = json!({ "clientCertificateRef": { "name": "client" } });
        let hold = Rig::with(vault, None).hold(&verified(&spec(endpoint.address.port(), &tls))).await;
        assert_eq!(hold.reason, expected, "{}", hold.message);
        assert!(!hold.message.contains("-----"), "{}", hold.message);
    };
    let (_, other_key) = client_certificate(&authority);
    check("Opaque", json!({ "tls.crt": certificate, "tls.key": key }), Reason::SecretTypeForbidden).await;
    check("kubernetes.io/tls", json!({ "tls.crt": certificate }), Reason::SecretKeyMissing).await;
    check("kubernetes.io/tls", json!({ "tls.crt": certificate, "tls.key": other_key }), Reason::SecretInvalid).await;
    check("kubernetes.io/tls", json!({ "tls.crt": key, "tls.key": key }), Reason::SecretInvalid).await;
    check("kubernetes.io/tls", json!({ "tls.crt": "hello", "tls.key": key }), Reason::SecretInvalid).await;
    endpoint.check_silence().await;
}
