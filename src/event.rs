//! The Event: what a publisher handed in, immutable; and its id.
//!
//! Values only; nothing here does I/O or reads a clock.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use ulid::Ulid;

/// Prefix of every id of an event.
pub const EVENT_ID_PREFIX: &str = "evt_";
/// Bytes of an event's data at most: 1 MiB.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// A place in the order of a partition of the store. Opaque outside the store:
/// ordered inside a partition, with gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pos(pub u64);

/// Time of the store in milliseconds since 1970: never goes backwards, drives
/// schedules, `maxAge`, deduplication and retention. Signatures and shown times
/// use wall time instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StoreTime(pub i64);

impl StoreTime {
    /// This time and so many milliseconds; saturates.
    pub const fn plus_ms(self, milliseconds: i64) -> Self {
        Self(self.0.saturating_add(milliseconds))
    }
}

/// Id of an event: `evt_` and a ULID (26 characters of Crockford's base 32).
///
/// # Format
/// 48 bits wall time in milliseconds, 16 bits epoch of the store, 16 bits
/// partition, 48 bits position: an event is found by its id without an index,
/// and a store that was restored from a backup (another epoch) makes no id twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// Wall time of the accept, milliseconds since 1970, 48 bits.
    pub time_ms: u64,
    /// Epoch of the store.
    pub epoch: u16,
    /// Partition of the store.
    pub partition: u16,
    /// Position in it, 48 bits.
    pub pos: Pos,
}

/// 48 bits.
const BITS_48: u64 = (1 << 48) - 1;

impl EventId {
    fn ulid(self) -> Ulid {
        let high = (u128::from(self.time_ms & BITS_48) << 80) | (u128::from(self.epoch) << 64);
        Ulid(high | (u128::from(self.partition) << 48) | u128::from(self.pos.0 & BITS_48))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0; ulid::ULID_LEN];
        write!(f, "{EVENT_ID_PREFIX}{}", self.ulid().array_to_str(&mut buffer))
    }
}

/// The text is no id of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no id of an event: it begins with evt_ and has 26 characters of 0-9 and A-Z after that")]
pub struct ParseEventIdError;

impl FromStr for EventId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(EVENT_ID_PREFIX).ok_or(ParseEventIdError)?;
        let number = Ulid::from_string(digits).map_err(|_| ParseEventIdError)?.0;
        let bits = |shift: u32, mask: u64| {
            // Masked to at most 48 bits, so it fits.
            u64::try_from((number >> shift) & u128::from(mask)).unwrap_or_default()
        };
        let short = |shift| u16::try_from(bits(shift, 0xffff)).unwrap_or_default();
        let id =
            Self { time_ms: bits(80, BITS_48), epoch: short(64), partition: short(48), pos: Pos(bits(0, BITS_48)) };
        // One text for one id: ULID texts have two bits to spare, and lower case.
        if id.to_string() == text { Ok(id) } else { Err(ParseEventIdError) }
    }
}

/// What a publisher said about an event, beside its data. The names are those of
/// CloudEvents 1.0; plain JSON events are brought into the same form.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EventHead {
    /// `type`.
    pub event_type: Box<str>,
    /// `source`; never empty.
    pub source: Box<str>,
    /// `id` as the publisher gave it. Only such events are deduplicated.
    pub given_id: Option<Box<str>>,
    /// `subject`.
    pub subject: Option<Box<str>>,
    /// `time`: when it happened, by the publisher's clock. Else the time of the
    /// accept is used.
    pub time: Option<Timestamp>,
    /// `datacontenttype`; none if there is no data.
    pub content_type: Option<Box<str>>,
    /// `dataschema`.
    pub data_schema: Option<Box<str>>,
    /// Extension attributes by name, in the order of their names.
    pub extensions: Vec<(Box<str>, Box<str>)>,
    /// What orders deliveries: `key`, or the extension `partitionkey`.
    pub key: Option<Box<str>>,
}

/// An accepted event. Cheap to share, never changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// Store time of the accept: what `maxAge` counts from.
    pub at: StoreTime,
    /// Wall time of the accept.
    pub accepted: Timestamp,
    /// Name of its namespace.
    pub namespace: Arc<str>,
    /// UID of its namespace: the identity of its data.
    pub namespace_uid: Arc<str>,
    /// What the publisher said about it.
    pub head: EventHead,
    /// The data as it came; JSON unless `head.content_type` says otherwise.
    pub data: Bytes,
}

/// Payloads are not for logs.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({} {} {} bytes)", self.id, self.head.event_type, self.data.len())
    }
}

impl Event {
    /// Bytes that the event takes in memory, roughly.
    pub fn memory_bytes(&self) -> usize {
        let head = &self.head;
        let extensions: usize = head.extensions.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        size_of::<Self>() + self.data.len() + head.event_type.len() + head.source.len() + extensions + 64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_is_a_ulid_with_our_prefix() {
        let id = EventId { time_ms: 1_795_000_000_000, epoch: 7, partition: 0, pos: Pos(42) };
        let text = id.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(Ulid::from_string(&text[4..]).unwrap().timestamp_ms(), 1_795_000_000_000);
    }

    #[test]
    fn texts_that_are_no_ids_are_refused() {
        for text in [
            "",
            "evt_",
            "01K5ZZZZZZZZZZZZZZZZZZZZZZ",
            "evt_01k5zzzzzzzzzzzzzzzzzzzzzz",
            "evt_Z1K5ZZZZZZZZZZZZZZZZZZZZZZ",
            "evt_é",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(ParseEventIdError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_id_survives_its_text(time_ms in 0..=BITS_48, epoch: u16, partition: u16, pos in 0..=BITS_48) {
            let id = EventId { time_ms, epoch, partition, pos: Pos(pos) };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn ids_of_one_epoch_sort_as_they_were_made(time_ms in 0..BITS_48, pos in 0..BITS_48) {
            let id = |time_ms, pos| EventId { time_ms, epoch: 1, partition: 0, pos: Pos(pos) }.to_string();
            prop_assert!(id(time_ms, pos) < id(time_ms, pos + 1));
            prop_assert!(id(time_ms, pos) < id(time_ms + 1, 0));
        }
    }
}
