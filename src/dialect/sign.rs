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
