//! Reads a whole store and says what is wrong with it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Result};

use super::{
    effects::BUCKET_SHIFT,
    maintenance::EVENT_BYTES,
    open::{SCHEMA_VERSION, bring_over, meta},
    rows::{Epochs, damaged},
    tally::{Ledger, discarded_key},
};
use crate::store::{DiscardReason, HookId, Totals};

/// Problems of one kind that are told one by one.
const PROBLEMS_MAX: u32 = 20;
/// What is pending, from all tables.
const PENDING: &str = "SELECT hook, seq FROM owed UNION ALL SELECT hook, seq FROM retry
     UNION ALL SELECT hook, seq FROM parked";
/// `dead.card` of what was dismissed.
const CARD_DISMISSED: i64 = 3;

/// What a store holds, and what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Its id.
    pub store_id: String,
    /// The DeliveryPool that it belongs to.
    pub pool: String,
    /// Version of its schema.
    pub schema: u32,
    /// Bytes of the events' data.
    pub event_bytes: u64,
    /// Deliveries that are owed.
    pub owed: u64,
    /// Deliveries that wait for a retry.
    pub waiting: u64,
    /// Deliveries behind a blocked ordering key.
    pub parked: u64,
    /// Fan-outs, backfills and Replays that are not finished.
    pub scans: u64,
    /// Events and Deliveries by how they ended.
    pub totals: Totals,
    /// What is wrong; empty: nothing.
    pub problems: Vec<Problem>,
}

/// Something that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The database is damaged.
    #[error("the structure of the database is damaged ({0}); restore a backup")]
    Structure(String),
    /// It is no store.
    #[error("the file is no store of Posthorn")]
    NoStore,
    /// The schema is not the one of this program.
    #[error(
        "the schema has version {0}, and this program knows up to {SCHEMA_VERSION}; use the newer version of Posthorn that wrote it"
    )]
    Schema(u32),
    /// Events do not fit their checksum.
    #[error(
        "{count} event(s) do not fit their checksum, the first at position {first}; their Deliveries end as dead letters of reason Corrupt"
    )]
    Corrupt {
        /// How many.
        count: u64,
        /// Position of the first.
        first: u64,
    },
    /// Deliveries are pending whose event is not there.
    #[error("{0} pending Deliveries have no event")]
    NoEvent(u64),
    /// Deliveries are in two states.
    #[error("{0} Deliveries are in more than one state")]
    TwoStates(u64),
    /// Deliveries are missing, or too many.
    #[error("{routed} Deliveries were routed, but {found} are accounted for")]
    Sum {
        /// Deliveries of all times.
        routed: u64,
        /// Delivered, dead, discarded and pending ones.
        found: u64,
    },
    /// Counters of Webhooks do not tell what the tables hold.
    #[error(
        "the counters of {count} Webhook(s) are wrong, the first is {first}: {counted} pending and dead, not {found}"
    )]
    Tally {
        /// How many.
        count: u64,
        /// Number of the first.
        first: i64,
        /// Its pending and its dead Deliveries, by its counters.
        counted: String,
        /// The same, by the tables.
        found: String,
    },
    /// The numbers of events and bytes that are kept of parts of the store are wrong.
    #[error("{0} of the store's parts have other events or bytes than are counted for them")]
    Buckets(u64),
}

/// Verifies a store or a backup of one. A store may be in use meanwhile; its log
/// grows as long as that takes.
///
/// # Errors
/// The file cannot be opened or read. What is wrong inside is no error.
pub fn verify(file: &Path) -> Result<Verification> {
    let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    verify_database(&db)
}

pub(super) fn verify_database(db: &Connection) -> Result<Verification> {
    let mut found = Verification { problems: structure(db)?, ..Verification::default() };
    if !found.problems.is_empty() {
        return Ok(found);
    }
    // One snapshot, so that the counts fit each other.
    let snapshot = db.unchecked_transaction()?;
    let Some(epochs) = identity(&snapshot, &mut found)? else { return Ok(found) };
    if !(1..=SCHEMA_VERSION).contains(&found.schema) {
        found.problems.push(Problem::Schema(found.schema));
        return Ok(found);
    }
    if schema(&snapshot)? != expected_schema(found.schema)? {
        found.problems.push(Problem::Structure("the text of the schema is another one".to_owned()));
        return Ok(found);
    }
    count(&snapshot, &mut found)?;
    check_events(&snapshot, &epochs, &mut found)?;
    check_deliveries(&snapshot, &mut found)?;
    check_tallies(&snapshot, &mut found)?;
    check_buckets(&snapshot, &mut found)?;
    Ok(found)
}

/// What SQLite itself finds. Its error is a finding too.
fn structure(db: &Connection) -> Result<Vec<Problem>> {
    let check = || -> Result<Vec<String>> {
        let mut check = db.prepare(&format!("PRAGMA integrity_check({PROBLEMS_MAX})"))?;
        let lines = check.query_map([], |row| row.get(0))?;
        lines.collect()
    };
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match check() {
        Ok(lines) => Ok(lines.into_iter().filter(|line| line != "ok").map(Problem::Structure).collect()),
        Err(error) if error.sqlite_error_code() == Some(NotADatabase) => Ok(vec![Problem::NoStore]),
        Err(error) if error.sqlite_error_code() == Some(DatabaseCorrupt) => {
            Ok(vec![Problem::Structure(error.to_string())])
        }
        Err(error) => Err(error),
    }
}

fn identity(db: &Connection, found: &mut Verification) -> Result<Option<Epochs>> {
    let is_store = db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'meta'")?.exists([])?;
    let epochs = match is_store {
        true => meta::<String>(db, "epochs")?.as_deref().and_then(Epochs::parse),
        false => None,
    };
    let Some(epochs) = epochs else {
        found.problems.push(Problem::NoStore);
        return Ok(None);
    };
    found.schema = meta(db, "schema")?.unwrap_or_default();
    found.pool = meta(db, "pool")?.unwrap_or_default();
    found.store_id = meta(db, "store")?.unwrap_or_default();
    Ok(Some(epochs))
}

/// Names of tables and indexes, and how they were made. SQLite finds no fault with a
/// column of another name, and a store would not open on it.
fn schema(db: &Connection) -> Result<Vec<(String, Option<String>)>> {
    let mut select = db.prepare("SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name")?;
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

fn expected_schema(version: u32) -> Result<Vec<(String, Option<String>)>> {
    let db = Connection::open_in_memory()?;
    bring_over(&db, 0, version)?;
    schema(&db)
}

fn number(db: &Connection, query: &str) -> Result<u64> {
    let number: i64 = db.query_row(query, [], |row| row.get(0))?;
    Ok(u64::try_from(number).unwrap_or_default())
}

fn count(db: &Connection, found: &mut Verification) -> Result<()> {
    let total = |key: &str| -> Result<u64> {
        let mut select = db.prepare_cached("SELECT coalesce((SELECT n FROM total WHERE k = ?1), 0)")?;
        Ok(u64::try_from(select.query_row([key], |row| row.get::<_, i64>(0))?).unwrap_or_default())
    };
    found.owed = number(db, "SELECT count(*) FROM owed")?;
    found.waiting = number(db, "SELECT count(*) FROM retry")?;
    found.parked = number(db, "SELECT count(*) FROM parked")?;
    found.scans = number(db, "SELECT count(*) FROM scan WHERE state < 3")?;
    found.event_bytes = number(db, "SELECT coalesce(sum(length(body)), 0) FROM event")?;
    found.totals = Totals {
        events: number(db, "SELECT count(*) FROM event")?,
        routed: total("routed")?,
        delivered: total("delivered")?,
        dead: number(db, &format!("SELECT count(*) FROM dead WHERE card <> {CARD_DISMISSED}"))?,
        pending: found.owed + found.waiting + found.parked,
        discarded: [0; DiscardReason::ALL.len()],
    };
    for (reason, count) in DiscardReason::ALL.into_iter().zip(&mut found.totals.discarded) {
        *count = total(&discarded_key(reason))?;
    }
    let totals = &found.totals;
    let sum = totals.delivered + totals.dead + totals.pending + totals.discarded.iter().sum::<u64>();
    if sum != totals.routed {
        found.problems.push(Problem::Sum { routed: totals.routed, found: sum });
    }
    Ok(())
}

fn check_events(db: &Connection, epochs: &Epochs, found: &mut Verification) -> Result<()> {
    let (mut count, mut first) = (0, None);
    damaged(db, epochs, |pos| {
        count += 1;
        first.get_or_insert(pos.0);
    })?;
    if let Some(first) = first {
        found.problems.push(Problem::Corrupt { count, first });
    }
    Ok(())
}

fn check_deliveries(db: &Connection, found: &mut Verification) -> Result<()> {
    let no_event = number(
        db,
        &format!("SELECT count(*) FROM ({PENDING}) p WHERE NOT EXISTS (SELECT 1 FROM event e WHERE e.seq = p.seq)"),
    )?;
    if no_event > 0 {
        found.problems.push(Problem::NoEvent(no_event));
    }
    let two_states = number(
        db,
        &format!(
            "SELECT count(*) FROM (SELECT 1 FROM ({PENDING} UNION ALL SELECT hook, seq FROM dead)
             GROUP BY hook, seq HAVING count(*) > 1)"
        ),
    )?;
    if two_states > 0 {
        found.problems.push(Problem::TwoStates(two_states));
    }
    Ok(())
}

/// Counters of hooks that are known: of one that was purged entries of the log may
/// be left.
fn check_tallies(db: &Connection, found: &mut Verification) -> Result<()> {
    let tallies = Ledger::load(db)?.tallies;
    let mut rows = db.prepare(&format!(
        "SELECT h.id, coalesce(p.n, 0), coalesce(d.n, 0) FROM hook h
         LEFT JOIN (SELECT hook, count(*) n FROM ({PENDING}) GROUP BY hook) p ON p.hook = h.id
         LEFT JOIN (SELECT hook, count(*) n FROM dead WHERE card <> {CARD_DISMISSED} GROUP BY hook) d ON d.hook = h.id
         ORDER BY h.id"
    ))?;
    let mut rows = rows.query([])?;
    let (mut count, mut first) = (0, None);
    while let Some(row) = rows.next()? {
        let (hook, held): (i64, (u64, u64)) = (row.get(0)?, (row.get(1)?, row.get(2)?));
        let tally = tallies.get(HookId(hook));
        if (tally.pending, tally.dead) != held {
            count += 1;
            first.get_or_insert((hook, (tally.pending, tally.dead), held));
        }
    }
    if let Some((first, counted, held)) = first {
        let text = |(pending, dead): (u64, u64)| format!("{pending} and {dead}");
        found.problems.push(Problem::Tally { count, first, counted: text(counted), found: text(held) });
    }
    Ok(())
}

fn check_buckets(db: &Connection, found: &mut Verification) -> Result<()> {
    let wrong = |kept: &str, by: &str| {
        let held = format!(
            "SELECT seq >> {BUCKET_SHIFT} AS bucket, {by} AS part, count(*) n, sum({EVENT_BYTES}) bytes
             FROM event GROUP BY 1, 2"
        );
        number(
            db,
            &format!(
                "SELECT count(*) FROM ({kept}) k FULL JOIN ({held}) e ON e.bucket = k.bucket AND e.part = k.part
                 WHERE coalesce(k.events, 0) <> coalesce(e.n, 0) OR coalesce(k.bytes, 0) <> coalesce(e.bytes, 0)"
            ),
        )
    };
    let parts = wrong("SELECT id AS bucket, 0 AS part, events, bytes FROM bucket", "0")?
        + wrong("SELECT bucket, ns AS part, events, bytes FROM bucket_ns", "ns")?;
    if parts > 0 {
        found.problems.push(Problem::Buckets(parts));
    }
    Ok(())
}
