//! Single bits of a store that is not running flip.

use std::{collections::BTreeMap, fs};

use posthorn::{
    event::Pos,
    store::{
        Partition, StoredEvent,
        sqlite::{OpenError, verify},
    },
};
use tempfile::TempDir;

use crate::{
    kit::{damage, writer},
    scaled,
};

const SIZE_BYTES: u64 = 1 << 30;
const EVENTS: usize = 40;

#[derive(Debug, Default)]
struct Seen {
    refused: u32,
    corrupt: u32,
    told: u32,
    nothing: u32,
}

/// What a store gives out is what was put in, or it says that it is damaged: to
/// whoever verifies it, always.
#[tokio::test]
async fn no_flipped_bit_changes_what_is_delivered_or_stays_unseen_in_an_event() {
    let original = TempDir::new().unwrap();
    let positions = damage::store_with(original.path(), EVENTS).await;
    let bytes = damage::pages(original.path());
    let expected = data(original.path(), &positions).await.unwrap();
    assert!(expected.iter().all(Option::is_some));
    let mut seen = Seen::default();
    for _ in 0..scaled(60, 3_000) {
        let bit = rand::random::<u64>() % (bytes.len() as u64 * 8);
        let folder = TempDir::new().unwrap();
        let mut damaged = bytes.clone();
        damaged[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        fs::write(damage::database(folder.path()), damaged).unwrap();
        check(folder.path(), &positions, &expected, bit, &mut seen).await;
    }
    println!("{} bytes, one bit flipped at a time: {seen:?}", bytes.len());
}

async fn check(folder: &std::path::Path, positions: &[Pos], expected: &[Option<Vec<u8>>], bit: u64, seen: &mut Seen) {
    let problems = verify(&damage::database(folder)).map(|found| found.problems);
    let is_told = !matches!(&problems, Ok(problems) if problems.is_empty());
    let found = match data(folder, positions).await {
        Ok(found) => found,
        Err(_) => {
            seen.refused += 1;
            assert!(is_told, "bit {bit}: the store is refused, but verified as good");
            return;
        }
    };
    let pairs: BTreeMap<_, _> = positions.iter().zip(expected.iter().zip(&found)).collect();
    let changed = pairs.iter().find(|(_, (expected, found))| found.is_some() && found != expected);
    assert!(changed.is_none(), "bit {bit}: another event is given out than was accepted: {changed:?}");
    let bad = found.iter().filter(|found| found.is_none()).count();
    assert!(bad == 0 || is_told, "bit {bit}: {bad} events are not given out, but the store is verified as good");
    match (bad, is_told) {
        (0, false) => seen.nothing += 1,
        (0, true) => seen.told += 1,
        _ => seen.corrupt += 1,
    }
}

/// The data of each event, as far as it is given out.
async fn data(folder: &std::path::Path, positions: &[Pos]) -> Result<Vec<Option<Vec<u8>>>, String> {
    let opened: Result<_, OpenError> = writer::open(folder, SIZE_BYTES);
    let (store, _news) = opened.map_err(|error| error.to_string())?;
    let stored = store.bodies(positions.to_vec()).await.map_err(|error| error.to_string())?;
    let data = |stored: StoredEvent| match stored {
        StoredEvent::Event(event) => Some(event.data.to_vec()),
        StoredEvent::Corrupt | StoredEvent::Missing => None,
    };
    Ok(stored.into_iter().map(data).collect())
}
