//! The body that each dialect makes of an event, as pure data: every attempt
//! renders anew and sends the same bytes.
//!
//! | dialect | JSON data | other data | none |
//! |---|---|---|---|
//! | `StandardWebhooks` | `{"type","timestamp","data"}` | the data itself, with its content type | `"data":null` |
//! | `CloudEvents` | binary mode: the data itself, attributes as `ce-…` headers | the same | an empty body without content type |
//! | `Improvado` | `{"id","type","timestamp","data"}` | unrenderable | `"data":null` |
//! | `Analytics` | `{"event","timestamp","tenantId","data"}` | unrenderable | `"data":null` |
//! | `Impira` | the data itself | unrenderable | `null` |
//!
//! JSON data goes out byte for byte as it came in: parsing and writing it again
//! would change numbers, the order of names and escapes. So it is only checked;
//! what calls itself JSON and is none is unrenderable wherever JSON is made of
//! it. Other data in a dialect that is JSON alone is unrenderable rather than
//! base64: those dialects have no place that tells a receiver of the encoding,
//! and a dead letter can be seen and mended, a misread text cannot.
//!
//! # Shapes
//! A [`Shape`] is a dialect and a version of its rendering in one byte, which is
//! kept with the Delivery at its first attempt: five bits of dialect, three of
//! version. When the dialect of a Webhook is edited between two attempts, body,
//! content type and attributes stay as they were, while headers that sign follow
//! the present dialect and keys. A rendering whose bytes change for any event
//! must get a new version, and the old one must stay.

use std::{borrow::Cow, fmt::Write};

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::{
    api::webhook::Dialect,
    event::{Event, EventHead},
};

/// Content type of the dialects that make JSON.
const JSON: &str = "application/json";
/// What the header of a CloudEvents attribute begins with.
const ATTRIBUTE_PREFIX: &str = "ce-";
/// Bits of a shape that hold the version.
const VERSION_BITS: u32 = 3;
/// The extension attribute that Analytics sends as `tenantId`.
const TENANT_EXTENSION: &str = "tenantid";
/// Bytes of an envelope beside type and data, roughly: one allocation is enough.
const ENVELOPE_BYTES: usize = 160;

/// In which form an event goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    dialect: Dialect,
}

impl Shape {
    /// The form in which a dialect sends an event for the first time.
    pub const fn of(dialect: Dialect) -> Self {
        Self { dialect }
    }

    /// The number that is kept with a Delivery. Never 0.
    pub const fn code(self) -> u8 {
        // Numbers stand on disk: they are never used for anything else.
        let dialect = match self.dialect {
            Dialect::StandardWebhooks => 1,
            Dialect::CloudEvents => 2,
            Dialect::Improvado => 3,
            Dialect::Analytics => 4,
            Dialect::Impira => 5,
        };
        dialect << VERSION_BITS
    }

    /// The shape of a number; none for one of a later version of Posthorn.
    pub fn from_code(code: u8) -> Option<Self> {
        let all =
            [Dialect::StandardWebhooks, Dialect::CloudEvents, Dialect::Improvado, Dialect::Analytics, Dialect::Impira];
        all.map(Self::of).into_iter().find(|shape| shape.code() == code)
    }
}

/// An event in the form of a dialect.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    /// The body.
    pub body: Bytes,
    /// Its content type; none if there is no body.
    pub content_type: Option<Cow<'static, str>>,
    /// Attributes that travel as headers, in the order of the specification.
    pub attributes: Vec<(Cow<'static, str>, String)>,
}

/// Payloads are not for logs.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({:?}, {} bytes)", self.content_type, self.body.len())
    }
}

/// Why an event cannot be brought into a form. Holds nothing of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unrenderable {
    /// It says that it is JSON.
    #[error("the data of the event says that it is JSON, and is none")]
    NotJson,
    /// The dialect is JSON alone.
    #[error("the data of the event is not JSON, and this dialect sends nothing else")]
    OtherData,
    /// Ingest takes no such event; one of an older version may have come through.
    #[error("an attribute or the content type of the event cannot stand in a header")]
    Attribute,
}

/// What the data of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data<'a> {
    None,
    Json(&'a [u8]),
    Other,
}

/// An event in a shape.
///
/// # Errors
/// [`Unrenderable`]: the same for every attempt.
pub fn render(shape: Shape, event: &Event) -> Result<Payload, Unrenderable> {
    let data = data_of(event);
    match shape.dialect {
        Dialect::CloudEvents => Ok(cloud_event(event)),
        Dialect::StandardWebhooks if data == Data::Other => Ok(raw(event)),
        Dialect::StandardWebhooks => Ok(standard_webhooks(event, json_of(data)?)),
        Dialect::Improvado => Ok(improvado(event, json_of(data)?)),
        Dialect::Analytics => Ok(analytics(event, json_of(data)?)),
        Dialect::Impira => {
            json_of(data)?;
            let body = if data == Data::None { Bytes::from_static(b"null") } else { event.data.clone() };
            Ok(json(body))
        }
    }
}

fn data_of(event: &Event) -> Data<'_> {
    match event.head.content_type.as_deref() {
        // Nothing is no JSON, so only what has another type can be empty.
        None if event.data.is_empty() => Data::None,
        Some(content_type) if is_json(content_type) && event.data.is_empty() => Data::None,
        Some(content_type) if !is_json(content_type) => Data::Other,
        _ => Data::Json(&event.data),
    }
}

/// `application/json`, `text/json` and what ends with `+json`, whatever follows
/// as parameters.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().as_bytes();
    let ends = |suffix: &str| {
        essence.len() > suffix.len() && essence[essence.len() - suffix.len()..].eq_ignore_ascii_case(suffix.as_bytes())
    };
    ends("+json") || essence.eq_ignore_ascii_case(JSON.as_bytes()) || essence.eq_ignore_ascii_case(b"text/json")
}

fn json_of(data: Data<'_>) -> Result<&str, Unrenderable> {
    match data {
        Data::None => Ok("null"),
        Data::Other => Err(Unrenderable::OtherData),
        Data::Json(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|_| Unrenderable::NotJson)?;
            serde_json::from_str::<IgnoredAny>(text).map_err(|_| Unrenderable::NotJson)?;
            Ok(text)
        }
    }
}

fn json(body: impl Into<Bytes>) -> Payload {
    Payload { body: body.into(), content_type: Some(Cow::Borrowed(JSON)), attributes: Vec::new() }
}

fn raw(event: &Event) -> Payload {
    let content_type = event.head.content_type.as_deref().map(|text| Cow::Owned(text.to_owned()));
    Payload { body: event.data.clone(), content_type, attributes: Vec::new() }
}

fn standard_webhooks(event: &Event, data: &str) -> Payload {
    let mut envelope = Envelope::new(event);
    envelope.text("type", &event.head.event_type);
    envelope.text("timestamp", &timestamp(event));
    envelope.end(data)
}

fn improvado(event: &Event, data: &str) -> Payload {
    let mut envelope = Envelope::new(event);
    envelope.text("id", &event.id.to_string());
    envelope.text("type", &event.head.event_type);
    envelope.text("timestamp", &timestamp(event));
    envelope.end(data)
}

fn analytics(event: &Event, data: &str) -> Payload {
    let tenant = event.head.extensions.iter().find(|(name, _)| &**name == TENANT_EXTENSION);
    let mut envelope = Envelope::new(event);
    envelope.text("event", &event.head.event_type);
    envelope.text("timestamp", &timestamp(event));
    envelope.text("tenantId", tenant.map_or(&*event.namespace, |(_, value)| value));
    envelope.end(data)
}

/// A JSON object of texts, and the data at its end.
struct Envelope(String);

impl Envelope {
    fn new(event: &Event) -> Self {
        let mut text = String::with_capacity(ENVELOPE_BYTES + event.head.event_type.len() + event.data.len());
        text.push('{');
        Self(text)
    }

    fn text(&mut self, name: &str, value: &str) {
        self.0.push('"');
        self.0.push_str(name);
        self.0.push_str("\":\"");
        escape(&mut self.0, value);
        self.0.push_str("\",");
    }

    fn end(mut self, data: &str) -> Payload {
        self.0.push_str("\"data\":");
        self.0.push_str(data);
        self.0.push('}');
        json(self.0)
    }
}

/// The inside of a JSON string (RFC 8259 §7).
fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                // Writing into a String has no failing case.
                write!(text, "\\u{:04x}", u32::from(control)).ok();
            }
            other => text.push(other),
        }
    }
}

/// When the event happened, by its publisher's clock, as it said; else when it
/// was accepted, in milliseconds, which is what the store keeps.
fn timestamp(event: &Event) -> String {
    event.head.time.map_or_else(|| format!("{:.3}", event.accepted), |time| time.to_string())
}

/// Binary mode of the HTTP binding.
fn cloud_event(event: &Event) -> Payload {
    let EventHead { event_type, source, given_id, subject, time: _, content_type, data_schema, extensions, key: _ } =
        &event.head;
    // `source` and `id` name an event across systems: a publisher's own id stays.
    let id = given_id.as_deref().map_or_else(|| event.id.to_string(), str::to_owned);
    let mut attributes = Vec::with_capacity(8 + extensions.len());
    let mut add = |name: &'static str, value: &str| attributes.push((Cow::Borrowed(name), percent_encode(value)));
    add("ce-specversion", "1.0");
    add("ce-id", &id);
    add("ce-source", source);
    add("ce-type", event_type);
    add("ce-time", &timestamp(event));
    if let Some(subject) = subject {
        add("ce-subject", subject);
    }
    if let Some(schema) = data_schema {
        add("ce-dataschema", schema);
    }
    for (name, value) in extensions {
        attributes.push((Cow::Owned(format!("{ATTRIBUTE_PREFIX}{name}")), percent_encode(value)));
    }
    // Plain JSON events say nothing of their type of data, which is JSON.
    let content_type = match content_type {
        Some(text) => Some(Cow::Owned(text.clone().into_string())),
        None if event.data.is_empty() => None,
        None => Some(Cow::Borrowed(JSON)),
    };
    Payload { body: event.data.clone(), content_type, attributes }
}

/// The value of an attribute as a header (HTTP binding §3.1.3.2): space, `"`, `%`
/// and everything outside U+0021 to U+007E as UTF-8 bytes in upper-case hex.
fn percent_encode(value: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => {}
            b'!'..=b'~' => {
                text.push(char::from(byte));
                continue;
            }
            _ => {}
        }
        text.push('%');
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0x0f)]));
    }
    text
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
