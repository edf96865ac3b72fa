//! Events in JSON: CloudEvents in structured mode and plain JSON.

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{
    BATCH_EVENTS_MAX, Parsed, ParsedEvent, Places,
    attributes::{self, Attributes, REQUIRED},
    default_source,
    document::{self, Members, array, object, string},
    fault::{Fault, Faults, Rejection},
    keep,
    media_type::MediaType,
};
use crate::event::{EVENT_BYTES_MAX, EventHead};

/// Characters of a member's name that an answer repeats at most: a name may be as
/// long as the body.
const NAME_SHOWN_CHARS_MAX: usize = 64;
/// What data is when nothing else is said.
const JSON: &str = "application/json";

/// A CloudEvent in structured mode.
pub(super) fn structured(body: &Bytes) -> Result<Parsed, Rejection> {
    one(body, document::text(body), cloud_event)
}

/// CloudEvents in batched mode.
pub(super) fn structured_batch(body: &Bytes) -> Result<Parsed, Rejection> {
    batch(body, document::text(body), cloud_event)
}

/// Plain JSON: one event or an array of them.
pub(super) fn plain(body: &Bytes, namespace: &str) -> Result<Parsed, Rejection> {
    let text = document::text(body);
    let source = default_source(namespace);
    let read =
        |place: &Place<'_>, members: Members<'_>, faults: &mut Faults| plain_event(place, members, &source, faults);
    if text.as_ref().is_ok_and(|text| text.trim_ascii_start().starts_with('[')) {
        batch(body, text, read)
    } else {
        one(body, text, read)
    }
}

/// Where an event is.
struct Place<'a> {
    body: &'a Bytes,
    /// Its number in a batch.
    index: Option<usize>,
}

impl Place<'_> {
    fn pointer(&self, member: &str) -> String {
        let shown = member.char_indices().nth(NAME_SHOWN_CHARS_MAX).map_or(member, |(end, _)| &member[..end]);
        let member = shown.replace('~', "~0").replace('/', "~1");
        match self.index {
            Some(index) => format!("/{index}/{member}"),
            None => format!("/{member}"),
        }
    }
}

fn one(
    body: &Bytes,
    text: Result<&str, Fault>,
    read: impl Fn(&Place<'_>, Members<'_>, &mut Faults) -> ParsedEvent,
) -> Result<Parsed, Rejection> {
    let mut faults = Faults::default();
    let event = match text.and_then(object) {
        Ok(members) => read(&Place { body, index: None }, members, &mut faults),
        Err(fault) => refuse(None, fault, &mut faults),
    };
    faults.unless_any(Parsed { events: vec![event], places: Places::Object })
}

fn batch(
    body: &Bytes,
    text: Result<&str, Fault>,
    read: impl Fn(&Place<'_>, Members<'_>, &mut Faults) -> ParsedEvent,
) -> Result<Parsed, Rejection> {
    let places = Places::Array;
    let mut faults = Faults::default();
    let (elements, count) = match text.and_then(array) {
        Ok(array) => array,
        Err(fault) => {
            faults.pointer(String::new(), fault);
            return faults.unless_any(Parsed { events: Vec::new(), places });
        }
    };
    if count > BATCH_EVENTS_MAX {
        let detail = format!("the batch has {count} events; at most {BATCH_EVENTS_MAX} are taken: send several");
        return Err(Rejection::too_large(None, detail));
    }
    let mut events = Vec::with_capacity(elements.len());
    for (index, element) in elements.into_iter().enumerate() {
        events.push(match object(element.get()) {
            Ok(members) => read(&Place { body, index: Some(index) }, members, &mut faults),
            Err(fault) => refuse(Some(index), fault, &mut faults),
        });
        if faults.is_full() {
            break;
        }
    }
    faults.unless_any(Parsed { events, places })
}

/// Stands for an event that is none; the fault keeps it from being used.
fn refuse(index: Option<usize>, fault: Fault, faults: &mut Faults) -> ParsedEvent {
    faults.pointer(index.map(|index| format!("/{index}")).unwrap_or_default(), fault);
    ParsedEvent { head: EventHead::default(), data: Bytes::new() }
}

fn cloud_event(place: &Place<'_>, members: Members<'_>, faults: &mut Faults) -> ParsedEvent {
    let mut attributes = Attributes::default();
    let (mut data, mut base64) = (None, None);
    for (name, value) in members {
        let set = match &*name {
            "data" => once(&mut data, value),
            // Null is how JSON may write that a member is not there.
            "data_base64" if value.get() == "null" => Ok(()),
            "data_base64" => once(&mut base64, value),
            _ => match attribute(&name, value).transpose() {
                Some(value) => attributes.set(&name, value),
                None => Ok(()),
            },
        };
        if let Err(fault) = set {
            faults.pointer(place.pointer(&name), fault);
        }
    }
    for name in attributes.missing() {
        faults.pointer(place.pointer(name), "is missing: a CloudEvent must have it");
    }
    let content_type = attributes.content_type().unwrap_or(JSON);
    let (member, read) = match (data, base64) {
        (None, None) => return ParsedEvent { head: attributes.into_head(None), data: Bytes::new() },
        (Some(_), Some(_)) => ("data_base64", Err("is there beside data: leave one out".into())),
        (Some(value), None) => ("data", inline(place, content_type, value)),
        (None, Some(value)) => ("data_base64", decode(content_type, value)),
    };
    let data = read.unwrap_or_else(|fault| {
        faults.pointer(place.pointer(member), fault);
        Bytes::new()
    });
    check_size(place, member, &data, faults);
    let content_type = content_type.into();
    ParsedEvent { head: attributes.into_head(Some(content_type)), data }
}

fn once<'a>(slot: &mut Option<&'a RawValue>, value: &'a RawValue) -> Result<(), Fault> {
    if slot.replace(value).is_some() { Err("is there twice: leave one out".into()) } else { Ok(()) }
}

/// The value of an attribute as text; none if it is null, which means that it is
/// not there.
fn attribute<'a>(name: &str, value: &'a RawValue) -> Result<Option<Cow<'a, str>>, Fault> {
    match value.get().as_bytes().first() {
        Some(b'"') => string(value).map(Some),
        Some(b'n') => Ok(None),
        _ if attributes::TEXTS.contains(&name) || REQUIRED.contains(&name) => Err("must be a string".into()),
        Some(b't' | b'f') => Ok(Some(Cow::Borrowed(value.get()))),
        // CloudEvents know integers of 32 bits only.
        _ if value.get().parse::<i32>().is_ok() => Ok(Some(Cow::Borrowed(value.get()))),
        _ => Err("must be a string, a boolean or an integer of 32 bits: put anything else into data".into()),
    }
}

/// Data that stands in the event as a JSON value.
fn inline(place: &Place<'_>, content_type: &str, value: &RawValue) -> Result<Bytes, Fault> {
    let raw = value.get();
    if MediaType::parse(content_type.as_bytes()).is_some_and(|media_type| media_type.is_json()) {
        return Ok(keep(place.body, raw.as_bytes(), place.index.is_none()));
    }
    if raw.starts_with('"') {
        return Ok(Bytes::copy_from_slice(string(value)?.as_bytes()));
    }
    Err("must be a string, because datacontenttype is not JSON; send bytes as data_base64".into())
}

fn decode(content_type: &str, value: &RawValue) -> Result<Bytes, Fault> {
    if !value.get().starts_with('"') {
        return Err("must be a string".into());
    }
    let Ok(data) = BASE64_STANDARD.decode(string(value)?.as_bytes()) else {
        return Err("must be base64 of the standard alphabet, with padding".into());
    };
    if MediaType::parse(content_type.as_bytes()).is_some_and(|media_type| media_type.is_json()) {
        document::check(&data).map_err(|_| {
            Fault::from(
                "must be well-formed JSON, because datacontenttype is JSON or not there: name the type of the data",
            )
        })?;
    }
    Ok(Bytes::from(data))
}

fn plain_event(place: &Place<'_>, members: Members<'_>, source: &str, faults: &mut Faults) -> ParsedEvent {
    let mut head = EventHead::default();
    let mut data = None;
    let mut seen = SmallVec::<[Cow<'_, str>; 8]>::new();
    for (name, value) in members {
        let set = if seen.contains(&name) {
            Err("is there twice: leave one out".into())
        } else if name == "data" {
            data = Some(value);
            Ok(())
        } else {
            plain_member(&mut head, &name, value)
        };
        if let Err(fault) = set {
            faults.pointer(place.pointer(&name), fault);
        }
        seen.push(name);
    }
    if !seen.iter().any(|name| name == "type") {
        faults.pointer(place.pointer("type"), "is missing: every event must have a type, such as order.paid");
    }
    if head.source.is_empty() {
        head.source = source.into();
    }
    let Some(data) = data else {
        faults.pointer(place.pointer("data"), "is missing: every event must have data, which may be any JSON value");
        return ParsedEvent { head, data: Bytes::new() };
    };
    head.content_type = Some(JSON.into());
    let data = keep(place.body, data.get().as_bytes(), place.index.is_none());
    check_size(place, "data", &data, faults);
    ParsedEvent { head, data }
}

fn plain_member(head: &mut EventHead, name: &str, value: &RawValue) -> Result<(), Fault> {
    if !matches!(name, "type" | "id" | "timestamp" | "source" | "key") {
        return Err("is no member of an event: type, data, id, timestamp, source and key are; for others send a \
                    CloudEvent"
            .into());
    }
    match value.get().as_bytes().first() {
        Some(b'"') => {}
        Some(b'n') if name != "type" => return Ok(()),
        _ => return Err("must be a string".into()),
    }
    let text = string(value)?;
    match name {
        "type" => head.event_type = attributes::event_type(text)?,
        "id" => head.given_id = Some(attributes::id(text)?),
        "timestamp" => head.time = Some(attributes::time(&text)?),
        "source" => head.source = attributes::source(text)?,
        _ => head.key = Some(attributes::key(text)?),
    }
    Ok(())
}

fn check_size(place: &Place<'_>, member: &str, data: &[u8], faults: &mut Faults) {
    if data.len() > EVENT_BYTES_MAX {
        let detail = format!("has {} bytes; the data of an event has at most {EVENT_BYTES_MAX}", data.len());
        faults.too_large(Some(place.pointer(member)), detail);
    }
}
