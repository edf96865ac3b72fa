//! The fingerprint: a MAC that binds a verification to the Webhook, the
//! endpoint, the method and the times for which it holds. A status that was
//! forged, copied from another Webhook or left over from another endpoint does
//! not fit and is worth nothing.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::jiff::Timestamp;
use subtle::ConstantTimeEq;

use crate::{
    api::webhook::{ChallengeHttpMethod, VerificationMethod, VerificationState, VerificationStatus},
    dialect::{SigningKey, keys::hmac_sha256},
    runtime::secret::SecretBytes,
};

/// Bytes of a key's MAC that make its id: enough to tell keys apart, too few
/// to be of use for anything else.
const KEY_ID_BYTES: usize = 12;

/// The random key of fingerprints. Only the controller and the delivery pods
/// hold it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FingerprintKey(Arc<SecretBytes>);

/// What a fingerprint binds.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    /// UID of the Webhook.
    pub uid: &'a str,
    /// The endpoint in full: the whole URL, or the Service with port, path and
    /// scheme. May be a secret; the fingerprint does not reveal it.
    pub endpoint: &'a str,
    /// The handshake.
    pub method: VerificationMethod,
    /// HTTP method of the challenge.
    pub http_method: ChallengeHttpMethod,
    /// Since when the endpoint is verified; none if it is not.
    pub verified_time: Option<Timestamp>,
    /// Until when that holds; none if it is not verified.
    pub valid_until: Option<Timestamp>,
}

impl FingerprintKey {
    /// Takes over 32 random bytes.
    pub fn new(key: [u8; 32]) -> Self {
        Self(Arc::new(SecretBytes::new(key.to_vec())))
    }

    /// Whether the other is a clone of this one.
    pub fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The fingerprint, as text of 46 characters.
    pub fn fingerprint(&self, bound: Bound<'_>) -> String {
        let time = |t: Option<Timestamp>| t.map_or_else(String::new, |t| t.as_second().to_string());
        let mac = self.mac(
            "posthorn verification v1",
            &[
                bound.uid.as_bytes(),
                bound.endpoint.as_bytes(),
                method_name(bound.method).as_bytes(),
                http_method_name(bound.http_method).as_bytes(),
                time(bound.verified_time).as_bytes(),
                time(bound.valid_until).as_bytes(),
            ],
        );
        format!("v1.{}", URL_SAFE_NO_PAD.encode(mac))
    }

    /// Whether a status was made by Posthorn for this Webhook, endpoint and
    /// method. `bound`'s times are those of the status.
    ///
    /// The state is not part of the MAC, but exactly the state Verified has
    /// times, and those are: nobody can turn another state into Verified.
    pub fn fits(&self, status: &VerificationStatus, bound: Bound<'_>) -> bool {
        let times = (status.verified_time.as_ref().map(|t| t.0), status.valid_until.as_ref().map(|t| t.0));
        let coherent = match status.state {
            VerificationState::Verified => times.0.is_some() && times.1.is_some(),
            _ => times == (None, None),
        };
        let expected = self.fingerprint(Bound { verified_time: times.0, valid_until: times.1, ..bound });
        let given = status.fingerprint.as_deref().unwrap_or_default();
        coherent && bool::from(given.as_bytes().ct_eq(expected.as_bytes()))
    }

    /// Whether events may go to the endpoint now: the status is Verified, fits,
    /// and has not run out. A delivery pod asks before every attempt.
    pub fn permits(&self, status: &VerificationStatus, bound: Bound<'_>, now: Timestamp) -> bool {
        status.state == VerificationState::Verified
            && self.fits(status, bound)
            && status.valid_until.as_ref().is_some_and(|until| now <= until.0)
    }

    /// Tells the keys of a Webhook apart without revealing them. The same key
    /// has another id in another Webhook.
    pub fn key_id(&self, uid: &str, key: &SigningKey) -> String {
        let mac = self.mac("posthorn signing key v1", &[uid.as_bytes(), key.expose()]);
        URL_SAFE_NO_PAD.encode(&mac[..KEY_ID_BYTES])
    }

    /// Every field goes in with its length before it, so that no two lists of
    /// fields make the same message; the purpose comes first.
    fn mac(&self, purpose: &str, fields: &[&[u8]]) -> [u8; 32] {
        let all = || [purpose.as_bytes()].into_iter().chain(fields.iter().copied());
        let mut message = Vec::with_capacity(all().map(|field| size_of::<u64>() + field.len()).sum());
        for field in all() {
            message.extend_from_slice(&(field.len() as u64).to_be_bytes());
            message.extend_from_slice(field);
        }
        hmac_sha256(self.0.expose(), &[&message])
    }
}

/// Spelled out: what is bound must not change with a renamed variant.
const fn method_name(method: VerificationMethod) -> &'static str {
    match method {
        VerificationMethod::Challenge => "Challenge",
        VerificationMethod::SignedChallenge => "SignedChallenge",
        VerificationMethod::CloudEvents => "CloudEvents",
        VerificationMethod::None => "None",
    }
}

const fn http_method_name(method: ChallengeHttpMethod) -> &'static str {
    match method {
        ChallengeHttpMethod::Post => "POST",
        ChallengeHttpMethod::Get => "GET",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::webhook::Dialect;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn key() -> FingerprintKey {
        FingerprintKey::new([1; 32])
    }

    const BOUND: Bound<'_> = Bound {
        uid: "uid",
        endpoint: "https://a.example/x",
        method: VerificationMethod::Challenge,
        http_method: ChallengeHttpMethod::Post,
        verified_time: None,
        valid_until: None,
    };

    #[test]
    fn everything_that_is_bound_changes_the_fingerprint() {
        let mut all = vec![
            key().fingerprint(BOUND),
            key().fingerprint(Bound { uid: "uid2", ..BOUND }),
            key().fingerprint(Bound { endpoint: "https://a.example/y", ..BOUND }),
            key().fingerprint(Bound { method: VerificationMethod::None, ..BOUND }),
            key().fingerprint(Bound { http_method: ChallengeHttpMethod::Get, ..BOUND }),
            key().fingerprint(Bound { verified_time: Some(at(1)), ..BOUND }),
            key().fingerprint(Bound { valid_until: Some(at(1)), ..BOUND }),
            FingerprintKey::new([2; 32]).fingerprint(BOUND),
            // Pieces that move from one field to the next.
            key().fingerprint(Bound { uid: "", endpoint: "uidhttps://a.example/x", ..BOUND }),
        ];
        assert!(all.iter().all(|text| text.len() == 46));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_fingerprint_of_this_version_stays_what_it_is() {
        let bound = Bound { verified_time: Some(at(1_700_000_000)), valid_until: Some(at(1_700_345_600)), ..BOUND };
        assert_eq!(key().fingerprint(bound), "v1.nBoujX33zLvy0ZLM9ixpnj4japVem-1M7rYCzAMXKsE");
    }

    #[test]
    fn events_may_go_only_while_a_verification_that_fits_lasts() {
        let bound = Bound { verified_time: Some(at(100)), valid_until: Some(at(200)), ..BOUND };
        let status = VerificationStatus {
            state: VerificationState::Verified,
            fingerprint: Some(key().fingerprint(bound)),
            verified_time: Some(Time(at(100))),
            valid_until: Some(Time(at(200))),
            ..VerificationStatus::default()
        };
        assert!(key().permits(&status, BOUND, at(200)));
        assert!(!key().permits(&status, BOUND, at(201)));
        assert!(!key().permits(&status, Bound { endpoint: "https://b.example/x", ..BOUND }, at(150)));
        let failed = VerificationStatus { state: VerificationState::Failed, ..status.clone() };
        assert!(!key().permits(&failed, BOUND, at(150)));
        let longer = VerificationStatus { valid_until: Some(Time(at(300))), ..status };
        assert!(!key().permits(&longer, BOUND, at(150)));
    }

    #[test]
    fn the_id_of_a_key_differs_by_key_and_by_webhook_and_fits_the_schema() {
        let signing = |text: &str| SigningKey::parse(Dialect::Impira, SecretBytes::new(text.into())).unwrap();
        let (one, two) = (signing("0123456789abcdef"), signing("fedcba9876543210"));
        let ids = [key().key_id("a", &one), key().key_id("a", &two), key().key_id("b", &one)];
        assert!(ids.iter().all(|id| id.len() == 16));
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
        assert_eq!(ids[0], key().key_id("a", &one));
    }
}
