//! Rows of the store as values, and back: what every part of `sqlite` shares.
//!
//! # An event's row
//! `head` is [`EventHead`] beside type and source as JSON, NULL if there is
//! nothing in it. `crc` is the CRC-32C over position, times and namespace (each
//! 8 bytes, little endian), then type, source, head (each with its length in 4
//! bytes before it) and body: a row that was damaged on disk is found when it is
//! read, and its neighbors stay good.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Result, Row, types::ValueRef};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::effects::BUCKET_SHIFT;
use crate::{
    event::{Event, EventHead, EventId, Pos, StoreTime},
    store::{EventSummary, HookId, NewEvent, OrderKey, OwedRow, StoredEvent, SubId},
};

/// A position as SQLite has it. Positions are below 2^48.
pub(super) fn seq_of(pos: Pos) -> i64 {
    i64::try_from(pos.0).unwrap_or(i64::MAX)
}

/// A position from SQLite.
pub(super) fn pos_of(seq: i64) -> Pos {
    Pos(u64::try_from(seq).unwrap_or_default())
}

/// The bucket of a position.
pub(super) fn bucket_of(pos: Pos) -> i64 {
    seq_of(pos) >> BUCKET_SHIFT
}

/// The ordering key for a publisher's key.
pub(super) fn order_key(key: &str) -> OrderKey {
    OrderKey::of(key)
}

/// Wall time from milliseconds; what no clock shows becomes 1970.
pub(super) fn timestamp(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Epochs of the store by the position they begin at: a store that was restored
/// from a backup gives out positions again, but never an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Epochs(Vec<(u64, u16)>);

impl Epochs {
    /// Of a new store.
    pub(super) fn first() -> Self {
        Self(vec![(0, 1)])
    }

    /// From the text in `meta`: `first:epoch,first:epoch`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let pair = |part: &str| {
            let (first, epoch) = part.split_once(':')?;
            Some((first.parse().ok()?, epoch.parse().ok()?))
        };
        let pairs: Vec<_> = text.split(',').map(pair).collect::<Option<_>>()?;
        (!pairs.is_empty() && pairs.is_sorted()).then_some(Self(pairs))
    }

    /// The text for `meta`.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|(first, epoch)| format!("{first}:{epoch}")).collect::<Vec<_>>().join(",")
    }

    /// A new epoch begins at this position.
    pub(super) fn begin(&mut self, first: Pos) {
        let last = self.0.last().map_or(0, |(_, epoch)| *epoch);
        self.0.push((first.0, last.wrapping_add(1)));
    }

    /// The epoch of a position.
    fn of(&self, pos: Pos) -> u16 {
        self.0.iter().rev().find(|(first, _)| *first <= pos.0).map_or(0, |(_, epoch)| *epoch)
    }

    /// The id of the event at a position that was accepted at this wall time.
    pub(super) fn id(&self, pos: Pos, wall_ms: i64) -> EventId {
        EventId { time_ms: u64::try_from(wall_ms).unwrap_or_default(), epoch: self.of(pos), partition: 0, pos }
    }
}

/// What of an event's head has no column of its own.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeadText<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    extensions: &'a [(Box<str>, Box<str>)],
}

/// `head` of an event's row; none if there is nothing in it.
pub(super) fn head_text(head: &EventHead) -> Option<String> {
    let text = HeadText {
        id: head.given_id.as_deref(),
        subject: head.subject.as_deref(),
        time: head.time.map(|time| time.to_string()),
        content_type: head.content_type.as_deref(),
        schema: head.data_schema.as_deref(),
        key: head.key.as_deref(),
        extensions: &head.extensions,
    };
    // Texts and pairs of them: nothing of it can fail.
    serde_json::to_string(&text).ok().filter(|text| text != "{}")
}

/// [`EventHead`] from its row; none if the text makes no sense.
fn head_from(event_type: &str, source: &str, text: Option<&str>) -> Option<EventHead> {
    let mut head = EventHead { event_type: event_type.into(), source: source.into(), ..EventHead::default() };
    let Some(text) = text else { return Some(head) };
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let get = |name: &str| map.get(name).and_then(serde_json::Value::as_str).map(Box::from);
    head.given_id = get("id");
    head.subject = get("subject");
    head.time = match get("time") {
        Some(time) => Some(time.parse().ok()?),
        None => None,
    };
    head.content_type = get("contentType");
    head.data_schema = get("schema");
    head.key = get("key");
    if let Some(pairs) = map.get("extensions") {
        head.extensions = serde_json::from_value(pairs.clone()).ok()?;
    }
    Some(head)
}

/// The columns of an event's row that its checksum covers.
pub(super) struct EventColumns<'a> {
    pub(super) seq: i64,
    pub(super) at: i64,
    pub(super) wall: i64,
    pub(super) ns: i64,
    pub(super) event_type: &'a str,
    pub(super) source: &'a str,
    pub(super) head: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl EventColumns<'_> {
    /// The checksum, as the module's head says.
    pub(super) fn crc(&self) -> u32 {
        let mut crc = 0;
        for number in [self.seq, self.at, self.wall, self.ns] {
            crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
        }
        for text in [self.event_type, self.source, self.head.unwrap_or_default()] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            crc = crc32c::crc32c_append(crc, &length.to_le_bytes());
            crc = crc32c::crc32c_append(crc, text.as_bytes());
        }
        crc32c::crc32c_append(crc, self.body)
    }
}

/// The event at a position.
pub(super) fn event(db: &Connection, epochs: &Epochs, pos: Pos) -> Result<StoredEvent> {
    let mut select = db.prepare_cached(
        "SELECT e.seq, e.at, e.wall, e.ns, e.type, e.source, e.head, e.crc, e.body, n.name, n.uid
         FROM event e LEFT JOIN ns n ON n.id = e.ns WHERE e.seq = ?1",
    )?;
    let found = select.query_row([seq_of(pos)], |row| Ok(decode(row, epochs))).optional()?;
    Ok(found.map_or(StoredEvent::Missing, |event| event.map_or(StoredEvent::Corrupt, StoredEvent::Event)))
}

/// Tells the position of every event that is damaged.
pub(super) fn damaged(db: &Connection, epochs: &Epochs, mut tell: impl FnMut(Pos)) -> Result<()> {
    let mut select = db.prepare(
        "SELECT e.seq, e.at, e.wall, e.ns, e.type, e.source, e.head, e.crc, e.body, n.name, n.uid
         FROM event e LEFT JOIN ns n ON n.id = e.ns ORDER BY e.seq",
    )?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        if decode(row, epochs).is_none() {
            tell(pos_of(row.get(0)?));
        }
    }
    Ok(())
}

/// An event without its data; none if it is missing or damaged.
pub(super) fn summary(db: &Connection, epochs: &Epochs, pos: Pos) -> Result<Option<EventSummary>> {
    let StoredEvent::Event(event) = event(db, epochs, pos)? else { return Ok(None) };
    Ok(Some(EventSummary {
        id: event.id,
        event_type: event.head.event_type.clone(),
        given_id: event.head.given_id.clone(),
        source: event.head.source.clone(),
        accepted: event.accepted,
        data_bytes: event.data.len() as u64,
        data_sha256: Sha256::digest(&event.data).into(),
    }))
}

/// None if a column has another type than it was written with, or the checksum
/// does not fit.
fn decode(row: &Row<'_>, epochs: &Epochs) -> Option<Arc<Event>> {
    let text = |index: usize| row.get_ref(index).ok()?.as_str().ok();
    let number = |index: usize| row.get::<_, i64>(index).ok();
    let (event_type, source) = (text(4)?, text(5)?);
    let head = match row.get_ref(6).ok()? {
        ValueRef::Null => None,
        value => Some(value.as_str().ok()?),
    };
    let body = row.get_ref(8).ok()?.as_blob().ok()?;
    let columns = EventColumns {
        seq: number(0)?,
        at: number(1)?,
        wall: number(2)?,
        ns: number(3)?,
        event_type,
        source,
        head,
        body,
    };
    if number(7)? != i64::from(columns.crc()) {
        return None;
    }
    Some(Arc::new(Event {
        id: epochs.id(pos_of(columns.seq), columns.wall),
        at: StoreTime(columns.at),
        accepted: timestamp(columns.wall),
        namespace: text(9)?.into(),
        namespace_uid: text(10)?.into(),
        head: head_from(event_type, source, head)?,
        data: bytes::Bytes::copy_from_slice(body),
    }))
}

/// The `N` bytes of an entry from `at` on, which it must have.
pub(super) fn part<const N: usize>(entry: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&entry[at..at + N]);
    part
}

/// Bytes that tell ids apart.
pub(super) const KEY_BYTES: usize = 16;
/// Bytes that tell a repetition from another event of the same id.
pub(super) const DIGEST_BYTES: usize = 8;

/// How an event is recognized when its publisher sends it again.
pub(super) struct DedupKey {
    /// First bytes of SHA-256 over namespace UID, source and the given id.
    pub(super) key: [u8; KEY_BYTES],
    /// First bytes of SHA-256 over what a repetition has in common with the
    /// first: not its time and its extensions, where a trace goes on.
    pub(super) digest: [u8; DIGEST_BYTES],
}

impl DedupKey {
    /// None if the publisher gave no id.
    pub(super) fn of(event: &NewEvent) -> Option<Self> {
        let head = &event.head;
        let given = head.given_id.as_deref()?;
        let option = |text: &Option<Box<str>>| text.as_deref().unwrap_or_default().as_bytes().to_vec();
        let key = hash(&[event.namespace_uid.as_bytes(), head.source.as_bytes(), given.as_bytes()]);
        let (subject, order) = (option(&head.subject), option(&head.key));
        let digest = hash(&[head.event_type.as_bytes(), &subject, &order, &event.data]);
        Some(Self { key, digest })
    }
}

/// First bytes of SHA-256 over parts, each with its length before it.
fn hash<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    part(&hash.finalize(), 0)
}

/// Writes an owed Delivery. False if it is owed already.
pub(super) fn insert_owed(db: &Connection, hook: HookId, row: &OwedRow) -> Result<bool> {
    let mut insert = db.prepare_cached(
        "INSERT OR IGNORE INTO owed (bucket, hook, seq, sub, key, tries, shape) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let key = row.key.map(|key| key.0);
    let bucket = bucket_of(row.pos);
    Ok(insert.execute((bucket, hook.0, seq_of(row.pos), row.sub.0, key, row.tries, row.shape))? == 1)
}

/// Makes sure that readers of a hook's owed rows begin at this bucket at the
/// latest. To be called with every owed row that is written by others than the
/// accept, which does it for itself.
pub(super) fn lower_first_bucket(db: &Connection, hook: HookId, bucket: i64) -> Result<()> {
    let mut update = db.prepare_cached(
        "UPDATE hook SET first_bucket = ?2 WHERE id = ?1 AND (first_bucket IS NULL OR first_bucket > ?2)",
    )?;
    update.execute((hook.0, bucket))?;
    Ok(())
}

/// An owed, waiting or parked Delivery from columns (seq, sub, key, tries, shape).
pub(super) fn owed_row(row: &Row<'_>) -> Result<OwedRow> {
    Ok(OwedRow {
        pos: pos_of(row.get(0)?),
        sub: SubId(row.get(1)?),
        key: row.get::<_, Option<i64>>(2)?.map(OrderKey),
        tries: row.get(3)?,
        shape: row.get(4)?,
    })
}
