//! TLS: certificates that must be refused, and those that must not.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use posthorn::{
    api::{Reason, webhook::TlsVersion},
    egress::{
        EgressAnswer, EgressError, Failure, TlsError,
        client::TLS_CLIENTS_MAX,
        error::CertificateFailure,
        tls::{CERTIFICATES_MAX, configure},
    },
    wire::probe::{PEM_BYTES_MAX, TlsMaterial},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{AMPLE, SHORT, budgets, clients, destination, endpoint, post};

const HOST: &str = "hooks.example.com";

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, params: CertificateParams) -> (String, String) {
        let issuer: &Issuer<'static, KeyPair> = &self.0;
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    }

    fn trusted(&self) -> TlsMaterial {
        TlsMaterial { ca_pem: Some(self.pem()), ..none() }
    }
}

fn none() -> TlsMaterial {
    TlsMaterial { ca_pem: None, client_certificate_pem: None, client_key_pem: None, min_version: None }
}

pub(crate) fn for_name(name: &str) -> CertificateParams {
    CertificateParams::new([name.to_owned()]).unwrap()
}

pub(crate) fn server_config(
    (certificate, key): (String, String),
    client_authority: Option<&Authority>,
) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
}

async fn serve(config: ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok();
                }
                stream.read_to_end(&mut Vec::new()).await.ok();
            });
        }
    });
    address
}

async fn send(address: SocketAddr, material: Option<&TlsMaterial>) -> Result<EgressAnswer, EgressError> {
    let to = destination(&format!("https://{HOST}:{}/hook", address.port()));
    clients().client("shop", material).unwrap().send(&to, post("{}"), budgets(AMPLE)).await
}

fn check(result: Result<EgressAnswer, EgressError>, expected: CertificateFailure) {
    let error = result.unwrap_err();
    assert_eq!(error.failure(), Failure::Certificate(expected), "{error:?}");
    assert_eq!(error.reason(), Reason::CertificateInvalid);
    let message = error.message();
    assert!(message.contains(HOST) && !message.contains("other.example.com") && !message.contains("127."), "{message}");
}

#[tokio::test]
async fn a_certificate_of_a_named_authority_is_accepted() {
    let authority = Authority::new();
    let address = serve(server_config(authority.issue(for_name(HOST)), None)).await;
    assert_eq!(&send(address, Some(&authority.trusted())).await.unwrap().body[..], b"ok");
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let (authority, another) = (Authority::new(), Authority::new());
    let address = serve(server_config(authority.issue(for_name(HOST)), None)).await;
    check(send(address, None).await, CertificateFailure::UnknownIssuer);
    check(send(address, Some(&another.trusted())).await, CertificateFailure::UnknownIssuer);
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let key = KeyPair::generate().unwrap();
    let certificate = for_name(HOST).self_signed(&key).unwrap();
    let address = serve(server_config((certificate.pem(), key.serialize_pem()), None)).await;
    check(send(address, None).await, CertificateFailure::UnknownIssuer);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let address = serve(server_config(authority.issue(for_name("other.example.com")), None)).await;
    check(send(address, Some(&authority.trusted())).await, CertificateFailure::WrongName);
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused() {
    let authority = Authority::new();
    let mut expired = for_name(HOST);
    expired.not_before = date_time_ymd(2001, 1, 1);
    expired.not_after = date_time_ymd(2002, 1, 1);
    let address = serve(server_config(authority.issue(expired), None)).await;
    check(send(address, Some(&authority.trusted())).await, CertificateFailure::Expired);
    let mut early = for_name(HOST);
    early.not_before = date_time_ymd(2999, 1, 1);
    early.not_after = date_time_ymd(3000, 1, 1);
    let address = serve(server_config(authority.issue(early), None)).await;
    check(send(address, Some(&authority.trusted())).await, CertificateFailure::NotYetValid);
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_client_certificate_gets_it() {
    let (authority, clients_authority) = (Authority::new(), Authority::new());
    let address = serve(server_config(authority.issue(for_name(HOST)), Some(&clients_authority))).await;
    let mut params = for_name("posthorn");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let (certificate, key) = clients_authority.issue(params);
    let mut material = authority.trusted();
    let error = send(address, Some(&material)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TlsFailed, "{error:?}");
    material.client_certificate_pem = Some(certificate);
    material.client_key_pem = Some(key.as_str().into());
    assert_eq!(send(address, Some(&material)).await.unwrap().status.as_u16(), 200);
}

#[tokio::test]
async fn the_lowest_version_is_kept() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(for_name(HOST));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let old = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let address = serve(old.with_no_client_auth().with_single_cert(chain, key).unwrap()).await;
    let mut material = authority.trusted();
    assert!(send(address, Some(&material)).await.is_ok());
    material.min_version = Some(TlsVersion::Tls13);
    assert_eq!(send(address, Some(&material)).await.unwrap_err().reason(), Reason::TlsFailed);
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_a_tls_failure() {
    let address = endpoint("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    // The listener answers as soon as it has read something like a request.
    let (plain, _) = super::listen(|mut stream| async move {
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    })
    .await;
    assert_eq!(send(plain, None).await.unwrap_err().failure(), Failure::Tls);
    let to = destination(&format!("https://{address}/hook"));
    let result = clients().client("shop", None).unwrap().send(&to, post("{}"), budgets(SHORT)).await;
    assert_eq!(result.unwrap_err().failure(), Failure::ConnectTimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_never_ends_costs_the_budget_of_the_connection() {
    let (silent, _) = super::listen(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let started = tokio::time::Instant::now();
    let error = send(silent, None).await.unwrap_err();
    assert_eq!((error.failure(), error.reason()), (Failure::TlsTimedOut, Reason::TlsFailed), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(13), "{:?}", started.elapsed());
}

#[test]
fn material_that_cannot_be_used_is_told_with_its_field_and_without_its_value() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue(for_name("posthorn"));
    let (_, other_key) = authority.issue(for_name("posthorn"));
    let with_ca = |pem: String| TlsMaterial { ca_pem: Some(pem), ..none() };
    let with_client = |certificate: Option<&str>, key: Option<&str>| TlsMaterial {
        client_certificate_pem: certificate.map(Into::into),
        client_key_pem: key.map(Into::into),
        ..none()
    };
    let check = |material: TlsMaterial, field: &str| {
        let error: TlsError = configure(Some(&material), &Arc::new(RootCertStore::empty())).unwrap_err();
        assert_eq!(error.reason(), Reason::SecretInvalid);
        let message = error.message();
        assert!(message.contains(field) && !message.contains("sesame"), "{message}");
    };
    check(with_ca("sesame".into()), "spec.tls.caRef");
    check(with_ca(String::new()), "spec.tls.caRef");
    check(with_ca("-----BEGIN CERTIFICATE-----\nc2VzYW1l\n-----END CERTIFICATE-----\n".into()), "spec.tls.caRef");
    check(with_ca("-----BEGIN CERTIFICATE-----\nc2Vz".into()), "spec.tls.caRef");
    check(with_ca(key.clone()), "spec.tls.caRef");
    check(with_ca("a".repeat(PEM_BYTES_MAX + 1)), "spec.tls.caRef");
    check(with_ca(authority.pem().repeat(CERTIFICATES_MAX + 1)), "spec.tls.caRef");
    check(with_client(Some(&certificate), None), "spec.tls.clientCertificateRef");
    check(with_client(None, Some(&key)), "spec.tls.clientCertificateRef");
    check(with_client(Some("sesame"), Some(&key)), "spec.tls.clientCertificateRef");
    check(with_client(Some(&certificate), Some("sesame")), "spec.tls.clientCertificateRef");
    check(with_client(Some(&certificate), Some(&certificate)), "spec.tls.clientCertificateRef");
    check(with_client(Some(&certificate), Some(&other_key)), "spec.tls.clientCertificateRef");
    let good = with_client(Some(&certificate), Some(&key));
    assert!(configure(Some(&good), &Arc::new(RootCertStore::empty())).is_ok());
    assert!(configure(Some(&with_ca(authority.pem().repeat(3))), &Arc::new(RootCertStore::empty())).is_ok());
}

#[tokio::test]
async fn clients_with_settings_of_their_own_share_connections_until_too_many_others_came() {
    let authority = Authority::new();
    let address = serve(server_config(authority.issue(for_name(HOST)), None)).await;
    let to = destination(&format!("https://{HOST}:{}/hook", address.port()));
    let clients = clients();
    let material = authority.trusted();
    clients.client("shop", Some(&material)).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
    assert_eq!(clients.open_connections(), 1);
    for number in 0..TLS_CLIENTS_MAX {
        // Text around the blocks changes the material and not its meaning.
        let ca_pem = Some(format!("# {number}\n{}", authority.pem()));
        clients.client("shop", Some(&TlsMaterial { ca_pem, ..none() })).unwrap();
    }
    // The first client is forgotten; a new one has no connection yet.
    clients.client("shop", Some(&material)).unwrap().send(&to, post("{}"), budgets(AMPLE)).await.unwrap();
}
