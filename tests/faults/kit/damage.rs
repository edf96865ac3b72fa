//! Damage to the files of a store that is not running.

use std::{
    fs,
    path::{Path, PathBuf},
};

use posthorn::{
    event::Pos,
    store::{Accepted, Ingest, Partition, StoredEvent, sqlite::DATABASE_FILE},
};

use super::writer;

const PAGE_BYTES: usize = 8192;
const SIZE_BYTES: u64 = 1 << 30;

/// A closed store with so many events; each says its number.
pub async fn store_with(folder: &Path, events: usize) -> Vec<Pos> {
    let (store, _news) = writer::open(folder, SIZE_BYTES).unwrap();
    writer::register(&store, 2).await;
    let batch = (0..events).map(|n| writer::event(&format!("number-{n}-"), 2000)).collect();
    let accepted = store.accept(batch).await.unwrap();
    store.close().await.unwrap();
    accepted.into_iter().map(|a| if let Accepted::New(id) = a { id.pos } else { panic!("{a:?}") }).collect()
}

pub fn database(folder: &Path) -> PathBuf {
    folder.join(DATABASE_FILE)
}

/// The pages of a store, without what its file has beyond them.
pub fn pages(folder: &Path) -> Vec<u8> {
    let mut bytes = fs::read(database(folder)).unwrap();
    // Where a database says how many pages it has.
    let pages = u32::from_be_bytes(bytes[28..32].try_into().unwrap());
    bytes.truncate(usize::try_from(pages).unwrap() * PAGE_BYTES);
    bytes
}

/// Flips one bit in the data of the n-th event.
pub fn flip_bit_of(folder: &Path, n: usize) {
    let mut bytes = pages(folder);
    let mark = format!("number-{n}-");
    let found: Vec<_> = bytes.windows(mark.len()).enumerate().filter(|(_, w)| *w == mark.as_bytes()).collect();
    let [(at, _)] = found[..] else { panic!("{mark} is there {} times", found.len()) };
    bytes[at + 3] ^= 1;
    fs::write(database(folder), bytes).unwrap();
}

/// Gives a column of the database another name, by one bit.
pub fn rename_column(folder: &Path) {
    let mut bytes = pages(folder);
    let name = b"first_bucket INTEGER";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at] ^= 4;
    fs::write(database(folder), bytes).unwrap();
}

/// Overwrites a page with bytes that are no page.
pub fn garble_page(folder: &Path, page: usize, from: usize) {
    let mut bytes = pages(folder);
    let begin = page * PAGE_BYTES;
    bytes[begin + from..begin + PAGE_BYTES].fill(0xa5);
    fs::write(database(folder), bytes).unwrap();
}

/// Which of these events are damaged; everything else must be good.
pub async fn corrupt(folder: &Path, positions: &[Pos]) -> Vec<Pos> {
    let (store, _news) = writer::open(folder, SIZE_BYTES).unwrap();
    let stored = store.bodies(positions.to_vec()).await.unwrap();
    let is_corrupt = |stored: &StoredEvent| match stored {
        StoredEvent::Event(_) => false,
        StoredEvent::Corrupt => true,
        StoredEvent::Missing => panic!("an event is missing"),
    };
    let found = positions.iter().zip(&stored).filter(|(_, stored)| is_corrupt(stored)).map(|(pos, _)| *pos).collect();
    // What is intact is taken and given out as before.
    store.accept(vec![writer::event("after", 100)]).await.unwrap();
    found
}
