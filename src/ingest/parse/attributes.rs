//! The attributes of an event, whatever carries them: what each may be.

use std::borrow::Cow;

use k8s_openapi::jiff::Timestamp;

use super::{OWN_TYPES, fault::Fault, media_type::MediaType};
use crate::{
    api::subscription_rules::{EVENT_BYTES_MAX as TYPE_BYTES_MAX, SOURCE_BYTES_MAX, is_pattern},
    event::EventHead,
};

/// Bytes of `id` at most.
pub const ID_BYTES_MAX: usize = 256;
/// Bytes of `subject` at most.
pub const SUBJECT_BYTES_MAX: usize = 1_024;
/// Bytes of `datacontenttype` at most.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// Bytes of `dataschema` at most.
pub const DATA_SCHEMA_BYTES_MAX: usize = 2_048;
/// Bytes of `key` and of the extension `partitionkey` at most.
pub const KEY_BYTES_MAX: usize = 256;
/// Extension attributes at most.
pub const EXTENSIONS_MAX: usize = 32;
/// Bytes of the name of an extension attribute at most. CloudEvents advises 20.
pub const EXTENSION_NAME_BYTES_MAX: usize = 64;
/// Bytes of the value of an extension attribute at most.
pub const EXTENSION_VALUE_BYTES_MAX: usize = 1_024;
/// Characters of a time at most.
const TIME_BYTES_MAX: usize = 40;

/// Attributes of a CloudEvent that must be there.
pub(super) const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];
/// The extension that orders deliveries.
const PARTITION_KEY: &str = "partitionkey";
/// Attributes beside those of [`REQUIRED`] that are no booleans or integers.
pub(super) const TEXTS: [&str; 5] = ["subject", "time", "datacontenttype", "dataschema", PARTITION_KEY];

/// The attributes of a CloudEvent, as they come in.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    head: EventHead,
    /// By [`REQUIRED`]: what was there, right or wrong.
    seen: [bool; REQUIRED.len()],
}

impl Attributes {
    /// Takes an attribute by its name; with a value that could not be read, only
    /// that it is there.
    pub(super) fn set(&mut self, name: &str, value: Result<Cow<'_, str>, Fault>) -> Result<(), Fault> {
        if let Some(at) = REQUIRED.iter().position(|required| *required == name) {
            once(self.seen[at])?;
            self.seen[at] = true;
        }
        let value = value?;
        let head = &mut self.head;
        match name {
            "specversion" if value == "1.0" => Ok(()),
            "specversion" => Err("must be 1.0: other versions are not taken".into()),
            "id" => id(value).map(|id| head.given_id = Some(id)),
            "type" => event_type(value).map(|event_type| head.event_type = event_type),
            "source" => source(value).map(|source| head.source = source),
            "subject" => put(&mut head.subject, text(value, SUBJECT_BYTES_MAX)),
            "time" => put(&mut head.time, time(&value)),
            "datacontenttype" => put(&mut head.content_type, content_type(value)),
            "dataschema" => put(&mut head.data_schema, data_schema(value)),
            "data" | "data_base64" => Err("is a name that no attribute may have".into()),
            _ => self.set_extension(name, value),
        }
    }

    fn set_extension(&mut self, name: &str, value: Cow<'_, str>) -> Result<(), Fault> {
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !is_name || name.len() > EXTENSION_NAME_BYTES_MAX {
            return Err(format!(
                "is no name of an attribute: it must have 1 to {EXTENSION_NAME_BYTES_MAX} lower-case letters and digits"
            )
            .into());
        }
        let extensions = &mut self.head.extensions;
        if extensions.len() >= EXTENSIONS_MAX {
            return Err(format!("is one extension attribute too many: at most {EXTENSIONS_MAX} are taken").into());
        }
        let Err(at) = extensions.binary_search_by(|(known, _)| (**known).cmp(name)) else { return once(true) };
        if name == PARTITION_KEY {
            self.head.key = Some(key(Cow::Borrowed(&value))?);
        }
        extensions.insert(at, (name.into(), text(value, EXTENSION_VALUE_BYTES_MAX)?));
        Ok(())
    }

    /// What of [`REQUIRED`] was not there.
    pub(super) fn missing(&self) -> impl Iterator<Item = &'static str> {
        REQUIRED.into_iter().zip(self.seen).filter(|(_, seen)| !seen).map(|(name, _)| name)
    }

    /// The `datacontenttype`.
    pub(super) fn content_type(&self) -> Option<&str> {
        self.head.content_type.as_deref()
    }

    /// The event's head, if it has data of this type.
    pub(super) fn into_head(mut self, content_type: Option<Box<str>>) -> EventHead {
        self.head.content_type = content_type;
        self.head
    }
}

fn once(is_there: bool) -> Result<(), Fault> {
    if is_there { Err("is there twice: leave one out".into()) } else { Ok(()) }
}

fn put<T>(place: &mut Option<T>, value: Result<T, Fault>) -> Result<(), Fault> {
    once(place.is_some())?;
    *place = Some(value?);
    Ok(())
}

/// A type that Subscriptions can name, and not one of our own.
pub(super) fn event_type(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    if value.starts_with(OWN_TYPES) {
        return Err(format!("must not begin with {OWN_TYPES}: these types are Posthorn's own").into());
    }
    if value.contains('*') || !is_pattern(&value) {
        return Err(format!(
            "must be words of letters, digits, _ and - with dots between them, such as order.paid, of at most \
             {TYPE_BYTES_MAX} bytes"
        )
        .into());
    }
    Ok(boxed(value))
}

/// A URI reference by the specification; what is certainly none is refused.
pub(super) fn source(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    let value = text(value, SOURCE_BYTES_MAX)?;
    if value.contains(char::is_whitespace) {
        return Err("must be a URI or the path of one, so without spaces".into());
    }
    Ok(value)
}

pub(super) fn id(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    text(value, ID_BYTES_MAX)
}

pub(super) fn key(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    text(value, KEY_BYTES_MAX)
}

/// RFC 3339, with `T`, seconds and an offset.
pub(super) fn time(value: &str) -> Result<Timestamp, Fault> {
    const SHAPE: &[u8; 19] = b"0000-00-00T00:00:00";
    let bytes = value.as_bytes();
    let has_shape = bytes.len() > SHAPE.len()
        && bytes.len() <= TIME_BYTES_MAX
        && bytes.iter().zip(SHAPE).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b't'),
            other => byte == other,
        })
        // A time zone in brackets is RFC 9557.
        && !value.contains('[');
    let parsed = has_shape.then(|| value.parse().ok()).flatten();
    parsed.ok_or_else(|| "must be a time such as 2026-11-23T12:00:00Z".into())
}

pub(super) fn content_type(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    let is_good = value.len() <= CONTENT_TYPE_BYTES_MAX && MediaType::parse(value.as_bytes()).is_some();
    if is_good && !value.chars().any(char::is_control) {
        Ok(boxed(value))
    } else {
        Err(format!(
            "must be a media type such as application/json, of at most {CONTENT_TYPE_BYTES_MAX} bytes of ASCII"
        )
        .into())
    }
}

fn data_schema(value: Cow<'_, str>) -> Result<Box<str>, Fault> {
    let value = text(value, DATA_SCHEMA_BYTES_MAX)?;
    if url::Url::parse(&value).is_ok() { Ok(value) } else { Err("must be an absolute URI".into()) }
}

/// A text as CloudEvents define it: not empty, without control characters.
pub(super) fn text(value: Cow<'_, str>, bytes_max: usize) -> Result<Box<str>, Fault> {
    if value.is_empty() {
        return Err("must not be empty: leave it out, or give it a value".into());
    }
    if value.len() > bytes_max {
        return Err(format!("has {} bytes; at most {bytes_max} are taken", value.len()).into());
    }
    if value.chars().any(|c| c.is_control() || is_noncharacter(c)) {
        return Err("must not have control characters".into());
    }
    Ok(boxed(value))
}

/// Unicode's code points that are no characters.
fn is_noncharacter(c: char) -> bool {
    matches!(u32::from(c), 0xfdd0..=0xfdef) || u32::from(c) & 0xfffe == 0xfffe
}

fn boxed(value: Cow<'_, str>) -> Box<str> {
    match value {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(text) => text.into_boxed_str(),
    }
}
