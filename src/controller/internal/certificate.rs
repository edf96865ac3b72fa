//! Certificates as pure functions: make an authority, make a serving
//! certificate, judge whether a serving certificate is good for long enough.
//!
//! A certificate is judged by doing what its clients will do: rustls verifies
//! it against the authority, for the name that will be dialed, at a time that
//! lies ahead. So nothing here parses X.509, and what passes here passes there.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};

use crate::runtime::secret::SecretString;

/// Life of the authority: ten years.
pub(super) const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * DAY_SECONDS);
/// Life of a serving certificate: one year.
pub(super) const SERVING_LIFE: Duration = Duration::from_secs(365 * DAY_SECONDS);
/// A serving certificate is renewed when less than a third of its life is left.
pub(super) const RENEW_BEFORE: Duration = Duration::from_secs(SERVING_LIFE.as_secs() / 3);
/// Certificates begin this much before they are made: clocks of nodes differ.
const BACKDATE: Duration = Duration::from_secs(3600);
const DAY_SECONDS: u64 = 24 * 3600;
/// The authority's name. It never changes: certificates are signed from the key
/// in the Secret and this name, without parsing the authority's certificate.
const AUTHORITY_NAME: &str = "Posthorn internal authority";

/// A certificate chain and its key, as PEM.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) certificate_pem: String,
    pub(super) key_pem: SecretString,
}

/// Why a serving certificate is to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Good for long enough.
    Good,
    /// Not PEM, or the key belongs to another certificate.
    Damaged,
    /// Clients would refuse it: another authority, another name, not valid.
    Refused,
    /// Still good, but its end is near.
    Ending,
}

/// Makes a new authority.
pub(super) fn make_authority(now: Timestamp) -> Result<Pair, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = authority_params();
    set_validity(&mut params, now, AUTHORITY_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok(pair(&certificate, &key))
}

/// Makes a serving certificate for these DNS names, signed by the authority's key.
pub(super) fn make_serving(
    authority_key_pem: &SecretString,
    names: &[String],
    now: Timestamp,
) -> Result<Pair, rcgen::Error> {
    let issuer = Issuer::new(authority_params(), KeyPair::from_pem(authority_key_pem.expose())?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    set_validity(&mut params, now, SERVING_LIFE);
    params.distinguished_name = common_name("posthorn delivery");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(pair(&certificate, &key))
}

/// Judges a serving certificate as a client of `host` will, now and
/// [`RENEW_BEFORE`] ahead.
pub(super) fn judge(ca_pem: &str, pair: &Pair, host: &str, now: Timestamp) -> Verdict {
    let Some(chain) = certificates(&pair.certificate_pem) else { return Verdict::Damaged };
    let Ok(key) = PrivateKeyDer::from_pem_slice(pair.key_pem.expose().as_bytes()) else { return Verdict::Damaged };
    if CertifiedKey::from_der(chain.clone(), key, &aws_lc_rs::default_provider()).is_err() {
        return Verdict::Damaged;
    }
    let ahead = now.checked_add(RENEW_BEFORE).unwrap_or(now);
    match (accepts(ca_pem, &chain, host, now), accepts(ca_pem, &chain, host, ahead)) {
        (true, true) => Verdict::Good,
        (true, false) => Verdict::Ending,
        (false, _) => Verdict::Refused,
    }
}

/// Whether this is a text with at least one certificate that can be an authority.
pub(super) fn is_authority(ca_pem: &str) -> bool {
    roots(ca_pem).is_some()
}

/// Whether the key signs for the authority in `ca_pem`.
pub(super) fn is_key_of(ca_pem: &str, key_pem: &SecretString) -> bool {
    let Some(chain) = certificates(ca_pem) else { return false };
    PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes())
        .is_ok_and(|key| CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).is_ok())
}

fn accepts(ca_pem: &str, chain: &[CertificateDer<'static>], host: &str, at: Timestamp) -> bool {
    let (Some(roots), Ok(name), Some((leaf, intermediates))) =
        (roots(ca_pem), ServerName::try_from(host), chain.split_first())
    else {
        return false;
    };
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0)));
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()))
        .build()
        .is_ok_and(|verifier| verifier.verify_server_cert(leaf, intermediates, &name, &[], at).is_ok())
}

fn roots(ca_pem: &str) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem)? {
        roots.add(certificate).ok()?;
    }
    Some(roots)
}

fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The certificate begins a little before `now` and lasts for `life`.
fn set_validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = now - BACKDATE;
    params.not_after = now + life;
}

fn pair(certificate: &rcgen::Certificate, key: &KeyPair) -> Pair {
    Pair { certificate_pem: certificate.pem(), key_pem: SecretString::new(key.serialize_pem()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "posthorn-sturdy-0.posthorn-sturdy-pods.mail.svc";

    fn names() -> Vec<String> {
        vec!["*.posthorn-sturdy-pods.mail.svc".into(), "localhost".into()]
    }

    fn start() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn after(duration: Duration) -> Timestamp {
        start().checked_add(duration).unwrap()
    }

    fn made() -> (Pair, Pair) {
        let authority = make_authority(start()).unwrap();
        let serving = make_serving(&authority.key_pem, &names(), start()).unwrap();
        (authority, serving)
    }

    #[test]
    fn a_new_certificate_is_good_for_every_pod_and_for_tests_on_the_loopback() {
        let (authority, serving) = made();
        for host in [HOST, "posthorn-sturdy-7.posthorn-sturdy-pods.mail.svc", "localhost"] {
            assert_eq!(judge(&authority.certificate_pem, &serving, host, start()), Verdict::Good, "{host}");
        }
    }

    #[test]
    fn another_host_another_authority_and_another_key_are_refused() {
        let (authority, serving) = made();
        let (stranger, foreign) = made();
        let swapped = Pair { key_pem: foreign.key_pem.clone(), ..serving.clone() };
        let check = |ca: &Pair, pair: &Pair, host: &str| judge(&ca.certificate_pem, pair, host, start());
        assert_eq!(check(&authority, &serving, "posthorn-other-0.posthorn-other-pods.mail.svc"), Verdict::Refused);
        assert_eq!(check(&stranger, &serving, HOST), Verdict::Refused);
        assert_eq!(check(&authority, &swapped, HOST), Verdict::Damaged);
        assert_eq!(check(&authority, &Pair { certificate_pem: "-".into(), ..serving }, HOST), Verdict::Damaged);
    }

    #[test]
    fn a_certificate_is_renewed_when_less_than_a_third_of_its_life_is_left() {
        let (authority, serving) = made();
        let third_left = SERVING_LIFE - RENEW_BEFORE;
        let check = |at| judge(&authority.certificate_pem, &serving, HOST, at);
        assert_eq!(check(after(third_left)), Verdict::Good);
        assert_eq!(check(after(third_left + Duration::from_secs(1))), Verdict::Ending);
        assert_eq!(check(after(SERVING_LIFE)), Verdict::Ending);
        assert_eq!(check(after(SERVING_LIFE + Duration::from_secs(1))), Verdict::Refused);
    }

    #[test]
    fn a_clock_that_is_behind_by_less_than_an_hour_accepts_a_new_certificate() {
        let (authority, serving) = made();
        let behind = start().checked_sub(BACKDATE).unwrap();
        assert_eq!(judge(&authority.certificate_pem, &serving, HOST, behind), Verdict::Good);
    }

    #[test]
    fn an_authority_is_known_by_its_own_key() {
        let (authority, _) = made();
        let (stranger, _) = made();
        assert!(is_authority(&authority.certificate_pem) && !is_authority("") && !is_authority("no PEM"));
        assert!(is_key_of(&authority.certificate_pem, &authority.key_pem));
        assert!(!is_key_of(&authority.certificate_pem, &stranger.key_pem));
    }

    #[test]
    fn keys_are_not_printed() {
        let (authority, _) = made();
        assert!(!format!("{authority:?}").contains("PRIVATE KEY"));
    }
}
