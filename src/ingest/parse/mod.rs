//! From a request to events: CloudEvents 1.0 (binary, structured, batched) and
//! plain JSON. Pure.
//!
//! | Content-Type | headers | what it is |
//! |---|---|---|
//! | `application/cloudevents-batch+json` | | an array of CloudEvents |
//! | `application/cloudevents+json` | | one CloudEvent |
//! | any, or none without a body | `ce-…` | one CloudEvent, its data as the body |
//! | `application/json` | | `{type, data, id?, timestamp?, source?, key?}`, or an array of such |
//!
//! Data is kept byte for byte: JSON in JSON is cut out of the body and never
//! written anew. Everything that is wrong is told at once, up to
//! [`ERRORS_MAX`] places; of a batch with an error nothing is accepted.
//!
//! The crate cloudevents-sdk is not used: it reads JSON data into a tree and
//! writes it anew (numbers and the order of members change, signatures inside
//! break), does not percent-decode header values, and tells of an error neither
//! the attribute nor the place.

mod attributes;
mod document;
mod fault;
mod headers;
mod json;
mod media_type;

use bytes::Bytes;
use http::{HeaderMap, header};

pub use attributes::{
    CONTENT_TYPE_BYTES_MAX, DATA_SCHEMA_BYTES_MAX, EXTENSION_NAME_BYTES_MAX, EXTENSION_VALUE_BYTES_MAX, EXTENSIONS_MAX,
    ID_BYTES_MAX, KEY_BYTES_MAX, SUBJECT_BYTES_MAX,
};
pub use document::{JSON_DEPTH_MAX, MEMBERS_MAX};
pub use fault::{ERRORS_MAX, Rejection};

use crate::{
    event::{EVENT_BYTES_MAX, EventHead},
    runtime::problem::FieldError,
};
use media_type::MediaType;

/// Bytes of a body at most, unless it is the data of one event: 8 MiB.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Events of a batch at most.
pub const BATCH_EVENTS_MAX: usize = 1_000;
/// Data of at most so many bytes is copied out of the body: an event of some
/// bytes must not keep the buffer of a connection, or a whole batch, in memory.
pub const COPY_BYTES_MAX: usize = 64 * 1024;
/// Types that begin so are Posthorn's own.
pub const OWN_TYPES: &str = "posthorn.";

/// An event as it was handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedEvent {
    /// What the publisher said about it.
    pub head: EventHead,
    /// Its data.
    pub data: Bytes,
}

/// The events of a request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The events.
    pub events: Vec<ParsedEvent>,
    /// Where their fields are.
    pub places: Places,
}

/// Where the fields of events are in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Places {
    /// In headers.
    Headers,
    /// In an object.
    Object,
    /// In an array of objects.
    Array,
}

impl Places {
    /// What is wrong with a member of the event of this number.
    pub fn field(self, index: usize, member: &str, detail: String) -> FieldError {
        let (pointer, header) = match self {
            Self::Headers => (None, Some(format!("{}{member}", headers::PREFIX))),
            Self::Object => (Some(format!("/{member}")), None),
            Self::Array => (Some(format!("/{index}/{member}")), None),
        };
        FieldError { pointer, header, detail }
    }
}

/// How a request carries its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A CloudEvent in headers and body.
    Binary,
    /// A CloudEvent as JSON.
    Structured,
    /// An array of CloudEvents.
    StructuredBatch,
    /// Plain JSON: one event or an array.
    Plain,
}

impl Format {
    /// The format that the headers of a request announce.
    ///
    /// # Errors
    /// [`Rejection::MediaType`].
    pub fn of(headers: &HeaderMap) -> Result<Self, Rejection> {
        if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(Rejection::encoding());
        }
        let media_type = match headers.get(header::CONTENT_TYPE) {
            Some(value) => Some(MediaType::parse(value.as_bytes()).ok_or_else(Rejection::media_type)?),
            None => None,
        };
        let format = match &media_type {
            Some(media_type) if media_type.starts_with("application/cloudevents-batch") => {
                media_type.is("application/cloudevents-batch+json").then_some(Self::StructuredBatch)
            }
            Some(media_type) if media_type.starts_with("application/cloudevents") => {
                media_type.is("application/cloudevents+json").then_some(Self::Structured)
            }
            _ if headers.keys().any(|name| name.as_str().starts_with(headers::PREFIX)) => return Ok(Self::Binary),
            Some(media_type) => media_type.is("application/json").then_some(Self::Plain),
            None => None,
        };
        match format {
            // All of these are JSON, which is UTF-8 (RFC 8259 §8.1).
            Some(format) if media_type.is_none_or(|media_type| media_type.is_utf8()) => Ok(format),
            _ => Err(Rejection::media_type()),
        }
    }

    /// Bytes of the body at most.
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::Binary => EVENT_BYTES_MAX,
            Self::Structured | Self::StructuredBatch | Self::Plain => BATCH_BYTES_MAX,
        }
    }
}

/// Takes a request apart.
///
/// # Errors
/// [`Rejection`].
pub fn parse(format: Format, headers: &HeaderMap, namespace: &str, body: &Bytes) -> Result<Parsed, Rejection> {
    match format {
        Format::Binary => Ok(Parsed { events: vec![headers::parse(headers, body)?], places: Places::Headers }),
        Format::Structured => json::structured(body),
        Format::StructuredBatch => json::structured_batch(body),
        Format::Plain => json::plain(body, namespace),
    }
}

/// The default of `source` for plain JSON.
pub fn default_source(namespace: &str) -> String {
    format!("/namespaces/{namespace}")
}

/// Data that keeps nothing else in memory, unless it is large.
fn keep(body: &Bytes, data: &[u8], is_alone: bool) -> Bytes {
    if data.len() <= COPY_BYTES_MAX || !is_alone { Bytes::copy_from_slice(data) } else { body.slice_ref(data) }
}

#[cfg(test)]
mod tests;
