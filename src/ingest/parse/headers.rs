//! A CloudEvent in binary mode: attributes in headers, data as the body.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, header};

use super::{
    ParsedEvent,
    attributes::{Attributes, content_type},
    document,
    fault::{Fault, Faults, Rejection},
    keep,
    media_type::MediaType,
};

/// What the names of headers with attributes begin with.
pub(super) const PREFIX: &str = "ce-";

/// Reads the event.
pub(super) fn parse(headers: &HeaderMap, body: &Bytes) -> Result<ParsedEvent, Rejection> {
    let mut attributes = Attributes::default();
    let mut faults = Faults::default();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(PREFIX) else { continue };
        let set = match name {
            "datacontenttype" => Err("is not a header of its own in binary mode: send it as content-type".into()),
            _ => attributes.set(name, decode(value.as_bytes())),
        };
        if let Err(fault) = set {
            faults.header(header.as_str(), fault);
        }
    }
    for name in attributes.missing() {
        faults.header(&format!("{PREFIX}{name}"), "is missing: a binary CloudEvent must have it");
    }
    let content_type = data_type(headers, body, &mut faults)?;
    let event = ParsedEvent { head: attributes.into_head(content_type), data: keep(body, body, true) };
    faults.unless_any(event)
}

/// The type of the data; none if there is no data.
fn data_type(headers: &HeaderMap, body: &Bytes, faults: &mut Faults) -> Result<Option<Box<str>>, Rejection> {
    if body.is_empty() {
        return Ok(None);
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Err(Rejection::media_type()) };
    let text = value.to_str().map_err(|_| Rejection::media_type())?;
    let media_type = MediaType::parse(text.as_bytes()).ok_or_else(Rejection::media_type)?;
    if media_type.is_json()
        && let Err(fault) = document::check(body)
    {
        faults.pointer(String::new(), fault);
    }
    match content_type(Cow::Borrowed(text)) {
        Ok(content_type) => Ok(Some(content_type)),
        Err(fault) => {
            faults.header(header::CONTENT_TYPE.as_str(), fault);
            Ok(None)
        }
    }
}

/// The text of a header's value: quotes are taken away once, percent-encoded
/// bytes are decoded once, and the result must be UTF-8.
pub(super) fn decode(value: &[u8]) -> Result<Cow<'_, str>, Fault> {
    let Some(text) = std::str::from_utf8(value).ok().filter(|text| text.is_ascii()) else {
        return Err("must be ASCII: percent-encode other characters as UTF-8".into());
    };
    let text = unquote(text);
    if !text.contains('%') {
        return Ok(text);
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digits =
            tail.split_first_chunk::<2>().and_then(|(&[high, low], tail)| Some((hex(high)? << 4 | hex(low)?, tail)));
        let Some((byte, tail)) = digits else {
            return Err("has a percent sign without two hexadecimal digits: write %25 for the sign itself".into());
        };
        decoded.push(byte);
        rest = tail;
    }
    match String::from_utf8(decoded) {
        Ok(text) => Ok(Cow::Owned(text)),
        Err(_) => Err("must be UTF-8 when it is percent-decoded".into()),
    }
}

fn hex(digit: u8) -> Option<u8> {
    // A hexadecimal digit is below 16.
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn unquote(text: &str) -> Cow<'_, str> {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return Cow::Borrowed(text);
    };
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_unquoted_once_and_decoded_once() {
        let check = |value: &str, expected: &str| assert_eq!(decode(value.as_bytes()).as_deref(), Ok(expected));
        check("plain", "plain");
        check("", "");
        check("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀");
        check("%e2%82%ac%41", "€A");
        check("%2541", "%41");
        check(r#""a \"b\" %22""#, r#"a "b" ""#);
        check(r#"""a"""#, r#""a""#);
        check(r#"""#, r#"""#);
        check("\"\\\"", "");
    }

    #[test]
    fn bytes_that_are_no_utf8_and_half_encodings_are_refused() {
        for value in [&b"%C0%A0"[..], b"%ff", b"%ED%A0%80", b"%", b"%4", b"%4g", b"%+1", b"a%", b"\xe2\x82\xac"] {
            assert!(decode(value).is_err(), "{value:?}");
        }
    }
}
