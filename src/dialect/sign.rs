//! Signing a request, and the other side of it: authenticating one.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use subtle::{Choice, ConstantTimeEq};

use super::{
    keys::{SigningKey, SigningKeys},
    scheme::{self, Content, Encoding, Scheme},
};
use crate::api::webhook::Dialect;

/// How far the time of a request may be from the receiver's clock, either way,
/// in seconds: what the reference libraries of Standard Webhooks use.
pub const TOLERANCE_SECONDS: i64 = 300;

/// A request as the signer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The id, the same in every attempt. Has no dot.
    pub id: &'a str,
    /// The time of this attempt.
    pub time: Timestamp,
    /// The body as it goes out.
    pub body: &'a [u8],
}

/// The headers that the dialect's signature adds to a request: id and time too,
/// where the dialect has them, even if there is no key.
pub fn sign(dialect: Dialect, keys: &SigningKeys, message: &Message<'_>) -> Vec<(&'static str, String)> {
    let Some(scheme) = scheme::of(dialect) else { return Vec::new() };
    let time = message.time.as_second().to_string();
    let mut headers = Vec::with_capacity(4);
    headers.extend(scheme.id_header.map(|name| (name, message.id.to_owned())));
    headers.extend(scheme.time_header.map(|name| (name, time.clone())));
    let one = |key: &SigningKey| signature(scheme, key, message.id, &time, message.body);
    match scheme.previous_header {
        None => {
            let all: Vec<String> = keys.iter().map(one).collect();
            if !all.is_empty() {
                headers.push((scheme.header, all.join(" ")));
            }
        }
        Some(previous_header) => {
            headers.extend(keys.current().map(|key| (scheme.header, one(key))));
            headers.extend(keys.previous().map(|key| (previous_header, one(key))));
        }
    }
    headers
}

fn signature(scheme: &Scheme, key: &SigningKey, id: &str, time: &str, body: &[u8]) -> String {
    let mac = match scheme.content {
        Content::Body => key.mac(&[body]),
        Content::IdTimeBody => key.mac(&[id.as_bytes(), b".", time.as_bytes(), b".", body]),
    };
    let encoded = match scheme.encoding {
        Encoding::Hex => hex(&mac),
        Encoding::Base64 => STANDARD.encode(mac),
    };
    format!("{}{encoded}", scheme.prefix)
}

/// Why a request is not authentic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAuthentic {
    /// The dialect has no signature.
    #[error("the dialect has no signature")]
    NoScheme,
    /// A header that the signature needs is absent.
    #[error("the header {0} is missing")]
    HeaderMissing(&'static str),
    /// The time is not a number of seconds.
    #[error("the time is not a number of seconds")]
    TimeUnreadable,
    /// The time is too far from now.
    #[error("the time is more than {TOLERANCE_SECONDS} s away")]
    TimeOutOfTolerance,
    /// No signature was made with one of the keys over these bytes.
    #[error("the signature does not fit")]
    Mismatch,
}

/// Checks the signature of a request that was received, in constant time.
/// `header` gives the value of a header by its name in any case.
///
/// # Errors
/// The first thing that is wrong.
pub fn authenticate<'h>(
    dialect: Dialect,
    keys: &SigningKeys,
    header: impl Fn(&str) -> Option<&'h str>,
    body: &[u8],
    now: Timestamp,
) -> Result<(), NotAuthentic> {
    let scheme = scheme::of(dialect).ok_or(NotAuthentic::NoScheme)?;
    let need = |name: &'static str| header(name).ok_or(NotAuthentic::HeaderMissing(name));
    let given = need(scheme.header)?;
    let (id, time) = match scheme.content {
        Content::Body => ("", ""),
        Content::IdTimeBody => {
            let time = scheme.time_header.map_or(Ok(""), need)?;
            let seconds: i64 = time.parse().map_err(|_| NotAuthentic::TimeUnreadable)?;
            if seconds.saturating_sub(now.as_second()).unsigned_abs() > TOLERANCE_SECONDS.unsigned_abs() {
                return Err(NotAuthentic::TimeOutOfTolerance);
            }
            (scheme.id_header.map_or(Ok(""), need)?, time)
        }
    };
    let previous = scheme.previous_header.and_then(&header).unwrap_or_default();
    let mut fits = Choice::from(0);
    for key in keys.iter() {
        let expected = signature(scheme, key, id, time, body);
        for item in given.split(' ').chain([previous]) {
            fits |= item.as_bytes().ct_eq(expected.as_bytes());
        }
    }
    if bool::from(fits) { Ok(()) } else { Err(NotAuthentic::Mismatch) }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0x0f)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runtime::secret::SecretBytes;

    /// Body and time of the cross-scheme set of vectors.
    const BODY: &[u8] = br#"{"type":"demo.created","data":{"n":1}}"#;
    const TIME: i64 = 1_700_000_000;
    const ONE: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const TWO: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
    const SIGNED: [Dialect; 4] = [Dialect::StandardWebhooks, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];

    fn key(dialect: Dialect, value: &str) -> SigningKey {
        SigningKey::parse(dialect, SecretBytes::new(value.into())).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn check(dialect: Dialect, keys: &[&str], id: &str, time: i64, body: &[u8], expected: &[(&str, &str)]) {
        let mut keys = keys.iter().map(|value| key(dialect, value));
        let keys = match keys.next() {
            Some(current) => SigningKeys::new(current, keys.next()),
            None => SigningKeys::none(),
        };
        let headers = sign(dialect, &keys, &Message { id, time: at(time), body });
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(headers, expected);
    }

    #[test]
    fn the_vectors_of_standard_webhooks_and_svix_come_out() {
        let check = |keys: &[&str], id: &str, time: i64, body: &[u8], signature: &str| {
            let time_text = time.to_string();
            let expected = [("webhook-id", id), ("webhook-timestamp", &time_text), ("webhook-signature", signature)];
            check(Dialect::StandardWebhooks, keys, id, time, body, &expected);
        };
        check(
            &["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1_649_367_553,
            br#"{"email":"test@example.com","username":"test_user"}"#,
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        );
        check(
            &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        );
        check(
            &[ONE, TWO],
            "msg_demo1",
            TIME,
            BODY,
            "v1,WHb6mpmV7aV2uJzJu63zS/X7ooIwU6rr2DS0BMTD4Pw= v1,NTtELDp9hZg3mIcOq4xe+qTrrBeAz69uoZII4xo7JNY=",
        );
    }

    #[test]
    fn the_dialects_that_sign_the_body_write_it_their_own_way() {
        const MAC: &str = "74eaa72c5000877c5b6fa4fd765cb6e6603b06b88dca5501aa9f19f66edc7f90";
        const KEY: &str = "demo-signing-secret";
        let prefixed = format!("sha256={MAC}");
        check(Dialect::CloudEvents, &[ONE], "evt_1", TIME, BODY, &[]);
        let check = |dialect, expected: &[(&str, &str)]| check(dialect, &[KEY], "evt_1", TIME, BODY, expected);
        check(Dialect::Improvado, &[("X-Improvado-Idempotency-Key", "evt_1"), ("X-Improvado-Signature", MAC)]);
        check(Dialect::Analytics, &[("X-Webhook-Signature", &prefixed)]);
        check(Dialect::Impira, &[("impira-signature", MAC)]);
    }

    #[test]
    fn without_a_key_only_id_and_time_are_sent() {
        check(Dialect::Impira, &[], "evt_1", TIME, BODY, &[]);
        check(Dialect::Improvado, &[], "evt_1", TIME, BODY, &[("X-Improvado-Idempotency-Key", "evt_1")]);
        let expected = [("webhook-id", "evt_1"), ("webhook-timestamp", "1700000000")];
        check(Dialect::StandardWebhooks, &[], "evt_1", TIME, BODY, &expected);
    }

    #[test]
    fn in_rotation_a_header_for_one_signature_keeps_the_current_one() {
        let keys = SigningKeys::new(key(Dialect::Analytics, ONE), Some(key(Dialect::Analytics, TWO)));
        let message = Message { id: "evt_1", time: at(TIME), body: BODY };
        let headers = sign(Dialect::Analytics, &keys, &message);
        assert_eq!(headers[0].0, "X-Webhook-Signature");
        assert_eq!(headers[1].0, "X-Webhook-Signature-Previous");
        let alone = |value| {
            let keys = SigningKeys::new(key(Dialect::Analytics, value), None);
            sign(Dialect::Analytics, &keys, &message).remove(0).1
        };
        assert_eq!((headers[0].1.clone(), headers[1].1.clone()), (alone(ONE), alone(TWO)));
    }

    #[test]
    fn the_published_library_accepts_what_we_sign_with_either_key() {
        let keys = SigningKeys::new(key(Dialect::StandardWebhooks, ONE), Some(key(Dialect::StandardWebhooks, TWO)));
        // The library reads the wall clock, so the time of the attempt is now.
        let time = crate::runtime::clock::now();
        let message = Message { id: "msg_demo1", time, body: BODY };
        let mut headers = http::HeaderMap::new();
        for (name, value) in sign(Dialect::StandardWebhooks, &keys, &message) {
            headers.insert(name, value.parse().unwrap());
        }
        for secret in [ONE, TWO] {
            let library = standardwebhooks::Webhook::new(secret).unwrap();
            library.verify(BODY, &headers).unwrap();
            library.verify(b"{}", &headers).unwrap_err();
        }
        let library = standardwebhooks::Webhook::new(ONE).unwrap();
        let theirs = library.sign("msg_demo1", time.as_second(), BODY).unwrap();
        assert_eq!(headers["webhook-signature"].to_str().unwrap().split(' ').next(), Some(theirs.as_str()));
    }

    fn authenticate_with(
        dialect: Dialect,
        keys: &SigningKeys,
        headers: &[(&'static str, String)],
        body: &[u8],
        now: i64,
    ) -> Result<(), NotAuthentic> {
        let header =
            |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
        authenticate(dialect, keys, header, body, at(now))
    }

    #[test]
    fn what_was_signed_is_authentic_and_what_was_changed_is_not() {
        for dialect in SIGNED {
            let (one, two) = (key(dialect, ONE), key(dialect, TWO));
            let both = SigningKeys::new(one.clone(), Some(two.clone()));
            let message = Message { id: "evt_1", time: at(TIME), body: BODY };
            let headers = sign(dialect, &both, &message);
            for receiver in [&one, &two] {
                let keys = SigningKeys::new(receiver.clone(), None);
                assert_eq!(authenticate_with(dialect, &keys, &headers, BODY, TIME), Ok(()), "{dialect:?}");
                let changed = authenticate_with(dialect, &keys, &headers, b"{}", TIME);
                assert_eq!(changed, Err(NotAuthentic::Mismatch), "{dialect:?}");
            }
            let other = SigningKeys::new(key(dialect, "another-key-that-is-long-enough"), None);
            assert_eq!(authenticate_with(dialect, &other, &headers, BODY, TIME), Err(NotAuthentic::Mismatch));
            let none = SigningKeys::none();
            assert_eq!(authenticate_with(dialect, &none, &headers, BODY, TIME), Err(NotAuthentic::Mismatch));
            let missing = authenticate_with(dialect, &both, &[], BODY, TIME).unwrap_err();
            assert!(matches!(missing, NotAuthentic::HeaderMissing(_)), "{dialect:?}");
        }
        let keys = SigningKeys::none();
        assert_eq!(authenticate_with(Dialect::CloudEvents, &keys, &[], BODY, TIME), Err(NotAuthentic::NoScheme));
    }

    #[test]
    fn a_time_more_than_five_minutes_away_is_refused() {
        let dialect = Dialect::StandardWebhooks;
        let keys = SigningKeys::new(key(dialect, ONE), None);
        let mut headers = sign(dialect, &keys, &Message { id: "evt_1", time: at(TIME), body: BODY });
        for (now, expected) in [
            (TIME - TOLERANCE_SECONDS, Ok(())),
            (TIME + TOLERANCE_SECONDS, Ok(())),
            (TIME - TOLERANCE_SECONDS - 1, Err(NotAuthentic::TimeOutOfTolerance)),
            (TIME + TOLERANCE_SECONDS + 1, Err(NotAuthentic::TimeOutOfTolerance)),
        ] {
            assert_eq!(authenticate_with(dialect, &keys, &headers, BODY, now), expected, "{now}");
        }
        for (time, expected) in [
            ("", NotAuthentic::TimeUnreadable),
            ("soon", NotAuthentic::TimeUnreadable),
            ("-9223372036854775808", NotAuthentic::TimeOutOfTolerance),
        ] {
            headers[1].1 = time.to_owned();
            assert_eq!(authenticate_with(dialect, &keys, &headers, BODY, TIME), Err(expected), "{time}");
        }
    }

    proptest! {
        #[test]
        fn every_body_of_bytes_is_signed_and_authentic(body: Vec<u8>, id in "[a-zA-Z0-9_]{1,40}") {
            for dialect in SIGNED {
                let keys = SigningKeys::new(key(dialect, ONE), None);
                let headers = sign(dialect, &keys, &Message { id: &id, time: at(TIME), body: &body });
                prop_assert_eq!(authenticate_with(dialect, &keys, &headers, &body, TIME), Ok(()));
            }
        }

        #[test]
        fn no_header_makes_it_panic(value: String, time: String, body: Vec<u8>) {
            for dialect in SIGNED {
                let keys = SigningKeys::new(key(dialect, ONE), Some(key(dialect, TWO)));
                let header = |name: &str| Some(if name.ends_with("timestamp") { time.as_str() } else { value.as_str() });
                prop_assert!(authenticate(dialect, &keys, header, &body, at(TIME)).is_err());
            }
        }
    }
}
