//! JSON documents, taken apart without making trees of them.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{BATCH_EVENTS_MAX, attributes::EXTENSIONS_MAX, fault::Fault};

/// Objects and arrays inside each other at most, those of the envelope included.
pub const JSON_DEPTH_MAX: usize = 64;
/// Members of an event's object at most.
pub const MEMBERS_MAX: usize = 12 + EXTENSIONS_MAX;

/// The members of an object in their order.
pub(super) type Members<'a> = SmallVec<[(Cow<'a, str>, &'a RawValue); 12]>;

/// Whether data is JSON that others can read: well-formed, and not too deep.
pub(super) fn check(data: &[u8]) -> Result<(), Fault> {
    serde_json::from_str::<IgnoredAny>(text(data)?).map(drop).map_err(|error| syntax(&error))
}

/// A document as text that is UTF-8 and not too deep; not yet that it is JSON.
pub(super) fn text(document: &[u8]) -> Result<&str, Fault> {
    let text = std::str::from_utf8(document).map_err(|_| Fault::from("must be UTF-8, as all JSON"))?;
    check_depth(document)?;
    Ok(text)
}

/// The elements of an array of events, up to [`BATCH_EVENTS_MAX`], and how many
/// there are.
pub(super) fn array(text: &str) -> Result<(Vec<&RawValue>, usize), Fault> {
    let Elements { elements, count } =
        serde_json::from_str(text).map_err(|error| Fault::from(shape(&error, "an array of events")))?;
    Ok((elements, count))
}

/// Counts brackets outside of strings. Needs no well-formed JSON: what is not is
/// refused by the parser, and what is counted here bounds what it recurses into.
fn check_depth(text: &[u8]) -> Result<(), Fault> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return Err(format!("has more than {JSON_DEPTH_MAX} objects and arrays inside each other").into());
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = end_of_string(text, at + 1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Where the string ends that begins at `at`: at its closing quote.
fn end_of_string(text: &[u8], mut at: usize) -> usize {
    loop {
        let Some(next) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) else {
            return text.len();
        };
        at += next;
        if text.get(at) == Some(&b'"') {
            return at;
        }
        at += 2;
    }
}

/// The text of a JSON string.
pub(super) fn string(value: &RawValue) -> Result<Cow<'_, str>, Fault> {
    let text: Result<Text<'_>, _> = serde_json::from_str(value.get());
    text.map(|Text(text)| text).map_err(|_| "must be a string of whole Unicode characters".into())
}

/// The members of an event's object.
pub(super) fn object(text: &str) -> Result<Members<'_>, Fault> {
    let Object(members, count) =
        serde_json::from_str(text).map_err(|error| Fault::from(shape(&error, "an object with an event")))?;
    if count > MEMBERS_MAX {
        return Err(format!("has {count} members; at most {MEMBERS_MAX} are taken").into());
    }
    Ok(members)
}

/// What the parser says is left out but for the place: it may repeat data.
fn syntax(error: &serde_json::Error) -> Fault {
    format!("is not well-formed JSON: see line {}, column {}", error.line(), error.column()).into()
}

fn shape(error: &serde_json::Error, wanted: &str) -> String {
    if error.is_data() { format!("must be {wanted}") } else { syntax(error).into_owned() }
}

/// A string that borrows from the input where it can.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The members of an object in their order, up to [`MEMBERS_MAX`], and how many
/// there are.
struct Object<'a>(Members<'a>, usize);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut members, mut count) = (Members::new(), 0);
        while let Some((Text(name), value)) = map.next_entry()? {
            count += 1;
            if count <= MEMBERS_MAX {
                members.push((name, value));
            }
        }
        Ok(Object(members, count))
    }
}

/// The elements of an array, up to [`BATCH_EVENTS_MAX`], and how many there are.
struct Elements<'a> {
    elements: Vec<&'a RawValue>,
    count: usize,
}

impl<'de> Deserialize<'de> for Elements<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ElementsVisitor)
    }
}

struct ElementsVisitor;

impl<'de> Visitor<'de> for ElementsVisitor {
    type Value = Elements<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut elements, mut count) = (Vec::new(), 0);
        while let Some(element) = seq.next_element()? {
            count += 1;
            if count <= BATCH_EVENTS_MAX {
                elements.push(element);
            }
        }
        Ok(Elements { elements, count })
    }
}
